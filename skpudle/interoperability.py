"""Exchange dictionaries with other packages.

Fitted learners of scikit-learn and SPORCO are recognised by their attributes, so that neither
package has to be imported: ``components_`` or ``dictionary`` with atoms as rows, or ``getdict()``
with atoms as columns. Files are safetensors, which execute nothing when they are read.
"""

import json
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import SparseCoder
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from skpudle._data.arrays import (
    check_rows,
    make_generator,
    mean_square,
    to_numpy,
    to_tensor,
    unit_of,
)
from skpudle._data.files import MOST_UNFOLDINGS, named_errors, replace_file
from skpudle._data.foreign import dictionary_of, given_atoms
from skpudle.initialization import initial_atoms
from skpudle.lasso import solve_lasso
from skpudle.search import Problem, advance, auto_alpha, begin, is_done

__all__ = [
    "dict_learning_online",
    "dictionary_of",
    "load_atoms",
    "load_sae",
    "make_sparse_coder",
    "save_atoms",
    "save_sae",
]

# parameters that codes depend on, with all that begin with "transform_"
_CODING = {
    "alpha",
    "atom_norm",
    "debias",
    "dispersion",
    "initial_threshold",
    "lambda_decay",
    "loss",
    "n_trials",
    "n_unfoldings",
    "positive_code",
    "shrinkage",
    "split_sign",
    "step_size",
    "threshold",
}
# least and largest values and kinds of numbers among them
_LEAST, _LARGEST = float(np.finfo(float).tiny), float(np.finfo(float).max)
_RANGES = {
    "alpha": (0, _LARGEST, Real),
    "debias": (0, 1, Real),
    "dispersion": (0, _LARGEST, Real),
    "initial_threshold": (0, _LARGEST, Real),
    "lambda_decay": (_LEAST, 1, Real),
    "n_trials": (1, _LARGEST, Real),
    "n_unfoldings": (1, MOST_UNFOLDINGS, Integral),
    "step_size": (_LEAST, _LARGEST, Real),
    "threshold": (0, _LARGEST, Real),
    "transform_alpha": (0, _LARGEST, Real),
    "transform_kept": (0, _LARGEST, Integral),
    "transform_n_nonzero_coefs": (1, _LARGEST, Integral),
    "transform_tol": (0, _LARGEST, Real),
}
# Times the squared norm of an atom. Least squares diverge with 2, rare counts with some hundreds.
_LARGEST_STEP = 1e4
# parameters that may be "auto" or a pair, and the attributes with the number in use
_CHOSEN = {
    "alpha": "alpha_",
    "debias": "debias_",
    "dispersion": "dispersion_",
    "lambda_decay": "lambda_decay_",
    "threshold": "alpha_",
}
# weights of autoencoders in a folder with "cfg.json": SAELens', sparsify's
_SAE_FILES = "sae_weights.safetensors", "sae.safetensors"
_DECODERS, _BIASES = ("W_dec", "decoder.weight"), ("b_dec", "decoder.bias")
# of fine-tuned autoencoders of SAELens: latents are multiplied by it before they are decoded
_FACTORS = "finetuning_scaling_factor", "scaling_factor"
_FLOATS = "F16", "BF16", "F32", "F64"
# autoencoders whose decoder is one matrix; sparsify names none
_ARCHITECTURES = (
    "standard",
    "relu",
    "gated",
    "jumprelu",
    "topk",
    "batchtopk",
    "matryoshka_batchtopk",
    "matching_pursuit",
)
# arrays and metadata of a file of atoms
_ARRAYS, _SAID = {"components", "intercept", "mean"}, {"learner", "params", "notes"}


# algorithms of scikit-learn's coder
_ALGORITHMS = ("lasso_cd", "lasso_lars", "lars", "omp", "threshold")


def thresholds_hard(learner):
    """Return whether a learner's alpha is a hard threshold, not a penalty of the lasso."""
    return getattr(learner, "shrinkage", "soft") != "soft" or hasattr(learner, "threshold")


def penalty_of(learner):
    """Return the penalty or threshold that a learner encodes with.

    Raises
    ------
    ValueError
        If the learner was made from atoms alone: "auto" had no data to choose a penalty from.
    """
    if getattr(learner, "transform_alpha", None) is not None:
        return learner.transform_alpha
    if not hasattr(learner, "alpha_"):
        raise ValueError(
            "alpha='auto' is chosen from data, and atoms alone came without. Pass transform_alpha, "
            "or data to partial_fit."
        )
    return learner.alpha_


def make_sparse_coder(learner, transform_algorithm="lasso_cd", **params):
    """Return scikit-learn's coder with the atoms of a fitted learner.

    Parameters
    ----------
    learner : DictionaryTransformer
        A fitted learner.
    transform_algorithm : {"lasso_cd", "lasso_lars", "lars", "omp", "threshold"}, default="lasso_cd"
        Algorithm of scikit-learn that finds codes.
    **params : dict
        Further parameters of `~sklearn.decomposition.SparseCoder`. Defaults are the learner's:
        ``transform_alpha`` for the two algorithms that solve the lasso, ``split_sign`` and
        ``positive_code``.

    Returns
    -------
    SparseCoder
        Fitted. With the lasso its codes are those of ``transform_algorithm="lasso"``.

    Raises
    ------
    ValueError
        If scikit-learn has no such algorithm; if the lasso is requested of a learner with hard
        thresholds, whose alpha is no penalty; or if atoms are convolved.
    """
    check_is_fitted(learner, "components_")
    if hasattr(learner, "atom_shape"):
        raise ValueError(
            "scikit-learn's coder knows no convolutions, and "
            f"{type(learner).__name__} learns convolved atoms. Use its transform."
        )
    if not isinstance(transform_algorithm, str) or transform_algorithm not in _ALGORITHMS:
        raise ValueError(
            f"transform_algorithm={transform_algorithm!r:.50} is none of scikit-learn's; pass one "
            f"of {_ALGORITHMS}."
        )
    if getattr(learner, "mean_", None) is not None:
        raise ValueError(
            "scikit-learn's coder subtracts no mean, and this learner has a mean_. Pass its "
            "components_ to sklearn.decomposition.SparseCoder, and rows minus mean_."
        )
    defaults = {name: getattr(learner, name, False) for name in ("split_sign", "positive_code")}
    if transform_algorithm.startswith("lasso_") and "transform_alpha" not in params:
        if thresholds_hard(learner):
            raise ValueError(
                f"{type(learner).__name__} thresholds hard: its alpha_ is no penalty of a lasso. "
                "Pass transform_alpha, or transform_algorithm='omp' with the number of atoms."
            )
        defaults["transform_alpha"] = penalty_of(learner)
    coder = SparseCoder(
        learner.components_.copy(), transform_algorithm=transform_algorithm, **(defaults | params)
    )
    return coder.fit(learner.components_)


# dict_learning_online(alpha="auto"): times the deviation of correlations of noise with an atom.
# Of 12 times 16 planted maps, nilearn finds 131 with 1.5, 135 with 1.75 and 131 with 2, and 103,
# 133 and 111 with alpha = 1, 2 and 3 (scikit-learn: 97, 128 and 104). The search's penalty, which
# is a third of this where most rows are noise, finds 80.
_DEVIATIONS = 1.75
_MAD = 0.6745  # the median modulus of normal numbers of variance 1

# Of a solver that goes through data in batches, its default, and the values that it takes. Ours
# goes through all rows at once, so that each of these values leads to the same atoms.
_OF_THE_SOLVER = {
    "batch_size": (256, lambda value: isinstance(value, Integral) and value > 0),
    "method": ("lars", lambda value: isinstance(value, str) and value in ("lars", "cd")),
    "n_jobs": (None, lambda value: value is None or value == 1),
    "shuffle": (True, lambda value: isinstance(value, bool | np.bool_)),
}
_OF_THE_FIT = {
    "max_iter": (100, lambda value: isinstance(value, Integral) and value > 0),
    "positive_code": (False, lambda value: isinstance(value, bool | np.bool_)),
    "positive_dict": (False, lambda value: isinstance(value, bool | np.bool_)),
    "verbose": (False, lambda value: isinstance(value, Integral | np.bool_)),
}


def _checked_params(params):
    """Return the further parameters of `dict_learning_online`, with defaults."""
    known = _OF_THE_SOLVER | _OF_THE_FIT
    unknown = sorted(params.keys() - known.keys())
    if unknown:
        raise TypeError(
            f"dict_learning_online has no {', '.join(unknown)}. Leave it out, or use "
            "PUDLEDictionaryLearning, which has callbacks and stopping rules of its own."
        )
    for name, value in params.items():
        if not known[name][1](value):
            hint = "torch uses the cores; pass None" if name == "n_jobs" else "see the docstring"
            raise ValueError(f"{name}={value!r:.50} is not possible here: {hint}.")
    return {name: default for name, (default, _) in known.items()} | params


def _penalty_above_noise(x, atoms):
    """Return a penalty above the noise of correlations with the atoms.

    Most of the correlations of data with sparse codes are noise. Their median modulus gives its
    deviation, whatever the few others are.
    """
    directions = atoms / torch.linalg.vector_norm(atoms, dim=1, keepdim=True)
    median = float((x @ directions.mT).abs().median())
    return max(auto_alpha(x), _DEVIATIONS * median / _MAD)


def dict_learning_online(
    X,
    n_components=2,
    *,
    alpha=1,
    return_code=True,
    dict_init=None,
    random_state=None,
    **params,
):
    r"""Learn a dictionary by a function with the signature of scikit-learn's.

    It minimises :math:`\frac12 \|X - Z D\|^2 + \alpha \|Z\|_1` over codes and over atoms of norm
    at most 1, as `sklearn.decomposition.dict_learning_online` does, for packages that call that
    function: nilearn's ``DictLearning``, see :doc:`/guide/other_tools`. From initial atoms it
    descends to the nearest minimum; without them it searches (`skpudle.search.search`).

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Data.
    n_components : int or None, default=2
        Number of atoms; None for the number of features.
    alpha : float or "auto", default=1
        Penalty, in the units of ``X``. "auto" is 1.75 times the standard deviation of correlations
        of noise with an atom, estimated from the median of the correlations of initial atoms and
        data; at least 0.07 times the root mean square norm of a sample. It is for data of which
        most is noise, such as the voxels of brain images.
    return_code : bool, default=True
        Whether to return codes.
    dict_init : array-like of shape (n_components, n_features), default=None
        Initial atoms, of any norm.
    random_state : int, RandomState instance or None, default=None
        Chooses samples as initial atoms if there are none.
    **params : dict
        ``max_iter`` (int, default=100): largest number of epochs. ``positive_code``,
        ``positive_dict`` (bool, default=False): whether codes, atoms are non-negative. ``verbose``:
        whether to print a line for each epoch. ``batch_size``, ``shuffle``, ``n_jobs`` (None or 1)
        and ``method`` ("lars" or "cd") are accepted, for callers that name them, and do not change
        the result: an epoch takes all rows at once, and solves the lasso in a way of its own.

    Returns
    -------
    code : ndarray of shape (n_samples, n_components)
        The lasso's codes, exact, of the dtype of ``X``; with ``return_code``.
    dictionary : ndarray of shape (n_components, n_features)
        Atoms of norm 1.

    Raises
    ------
    TypeError
        If there are other parameters, such as scikit-learn's ``callback`` or ``tol``.
    ValueError
        If the value of a parameter is not possible, or shapes do not fit.

    Examples
    --------
    >>> from skpudle.datasets import make_dictionary_data
    >>> from skpudle.interoperability import dict_learning_online
    >>> X = make_dictionary_data(200, 10, 7, 2, random_state=0)[0]
    >>> code, dictionary = dict_learning_online(X, 7, alpha=0.1, random_state=0)
    >>> code.shape, dictionary.shape
    ((200, 7), (7, 10))
    """
    options, automatic = _checked_params(params), isinstance(alpha, str) and alpha == "auto"
    if not automatic and not (isinstance(alpha, Real) and 0 < alpha < float("inf")):
        raise ValueError(f"alpha={alpha!r:.50} is no penalty. Pass a positive number, or 'auto'.")
    x = to_tensor(check_rows(X))
    n_components = x.shape[1] if n_components is None else n_components
    if not isinstance(n_components, Integral) or n_components < 1:
        raise ValueError(f"n_components={n_components!r:.50}. Pass a natural number, or None.")
    if dict_init is None:
        atoms = initial_atoms(x, n_components, "data", make_generator(random_state))
    else:
        atoms = given_atoms(dict_init, n_components, x)
    penalty = _penalty_above_noise(x, atoms) if automatic else float(alpha)
    unit = unit_of(mean_square(x))
    problem = Problem(
        x if unit == 1 else x.double() / unit,
        penalty / unit,
        positive_code=bool(options["positive_code"]),
        positive_atoms=bool(options["positive_dict"]),
        unit=unit,
    )
    state = begin(problem, atoms)
    if dict_init is not None:  # splits and moves would lead away from the caller's atoms
        state = replace(state, n_splits=0, moves=False)
    while not is_done(state) and state.epoch < options["max_iter"]:
        state = advance(problem, state)
        if options["verbose"]:
            print(f"epoch {state.epoch}: {state.losses[-1]:.6g} = mean of |x - D z|^2 / 2")
    atoms = state.found[0].to(x)
    if not return_code:
        return to_numpy(atoms)
    codes, _ = solve_lasso(atoms, x, penalty, positive=options["positive_code"], certify=False)
    return to_numpy(codes), to_numpy(atoms)


def _safetensors():
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "Atoms are stored by safetensors, which is not installed. Install it with `pip install "
            "skpudle[safetensors]`, or use numpy.savez."
        ) from error
    return safetensors


def _path(file):
    path = Path(file)
    if path.suffix != ".safetensors":
        raise ValueError(f"The file is {str(file)!r}; its name has to end in .safetensors.")
    return path


def _json(value, name):
    """Return a dictionary as JSON that reads back as it was; NumPy's numbers become JSON's."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is a {type(value).__name__}; pass a dict.")
    try:
        return json.dumps(value, default=lambda v: v.item(), allow_nan=False)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{name} does not fit into JSON ({error}); pass numbers, texts, None, and lists and "
            "dicts of them."
        ) from error


def _params(learner):
    """Return the parameters that codes depend on, with chosen numbers in the place of "auto"."""
    params = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in learner.get_params(deep=False).items()
        if name in _CODING or name.startswith("transform_")
    }
    for name, fitted in _CHOSEN.items():
        value = getattr(learner, fitted, None)
        if name in params and value is not None and np.isfinite(value):
            params[name] = float(value)
    if params.get("transform_algorithm") == "omp":  # its codes have no bias
        params.pop("debias", None)
    return params


def _check_params(params, atoms):
    """Raise ValueError unless parameters are of codes, and possible for the atoms."""
    for name, value in params.items():
        if name not in _CODING and not name.startswith("transform_"):
            raise ValueError(f"codes depend on no parameter {name!r:.50}")
        if value is None or isinstance(value, str):
            continue
        least, most, kind = _RANGES.get(name, (-_LARGEST, _LARGEST, Real))
        numbers = value if name == "transform_kept" and isinstance(value, list) else [value]
        if not all(isinstance(number, kind) and least <= number <= most for number in numbers):
            what = "whole number" if kind is Integral else "number"
            raise ValueError(
                f"{name} is {value!r:.50}, expected a {what} from {least:.3g} to {most:.3g}, a "
                "text or None"
            )
    step = params.get("step_size")
    if isinstance(step, Real):
        largest = float(np.square(atoms, dtype=np.float64).sum(axis=1).max())
        if not step * largest <= _LARGEST_STEP:
            raise ValueError(f"step_size is {step:.3g}, which diverges for these atoms")


def _check(arrays, params):
    """Raise ValueError unless the arrays, by name, are atoms with their baseline and mean."""
    unknown = arrays.keys() - _ARRAYS
    if unknown or "components" not in arrays:
        raise ValueError(f"it holds {sorted(arrays)}, expected some of {sorted(_ARRAYS)}")
    atoms = arrays["components"]
    if atoms.ndim != 2 or not atoms.size:
        raise ValueError(f"components has shape {atoms.shape}, expected (n_components, n_features)")
    for name, array in arrays.items():
        if name != "components" and array.shape != atoms.shape[1:]:
            raise ValueError(f"{name} has shape {array.shape}, expected {atoms.shape[1:]}")
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite, or of dtype {array.dtype}; expected floats")
    _check_params(params, atoms)
    loss = params.get("loss", "gaussian")
    if ("intercept" in arrays) != (loss != "gaussian"):
        raise ValueError(f"loss is {loss!r}, and it holds {sorted(arrays)}")


def save_atoms(learner, file, *, mean=None, notes=None):
    """Write the atoms of a fitted learner, and all that its codes depend on, as safetensors.

    Everything but arrays is JSON in the metadata of the file. The weights of a classifier or
    regressor are left out.

    Parameters
    ----------
    learner : DictionaryTransformer or ConsensusDictionary
        A fitted learner with atoms as rows. Of a consensus it is the learner that codes, its
        ``estimator_``.
    file : str or path-like
        File to write, with a name that ends in ".safetensors". An older file of that name is
        replaced when the new one is complete.
    mean : array-like of shape (n_features,), default=None
        Mean subtracted from the data before `fit`, stored with the atoms; None takes the learner's
        ``mean_``, if it has one.
    notes : dict, default=None
        Any other facts that fit into JSON, such as the name of the network and of the layer.

    Raises
    ------
    NotFittedError
        If the learner is not fitted.
    ValueError
        If the name ends otherwise; if the atoms or the mean are not finite, or of another shape; if
        the notes do not fit into JSON; if the atoms are convolved, which
        `skpudle.pretrained.save_denoiser` stores; if the learner is one of another package, whose
        codes depend on parameters that learners here do not have; or if its ``loss`` was set after
        `fit`.
    ImportError
        If safetensors is not installed.
    """
    check_is_fitted(learner, "components_")
    path, learner = _path(file), getattr(learner, "estimator_", learner)
    if not any(kind.__module__.startswith("skpudle.") for kind in type(learner).__mro__):
        raise ValueError(
            f"{type(learner).__name__} of {type(learner).__module__.partition('.')[0]} codes by "
            "parameters that the file has no place for. Pass "
            "PUDLEDictionaryLearning.from_components(learner, alpha=...), with the penalty of its "
            "codes."
        )
    if getattr(learner, "separate_atoms", False) and learner.components_.ndim == 2:
        raise ValueError(
            f"separate_atoms={learner.separate_atoms!r} has an encoder beside the atoms, for which "
            "the file has no place. Use learner.to_module(), save_sae or pickle."
        )
    if learner.components_.ndim != 2:
        raise ValueError(
            f"{type(learner).__name__} has atoms of shape {learner.components_.shape[1:]}, which "
            "are convolved; use skpudle.pretrained.save_denoiser."
        )
    n_codes = len(learner.get_feature_names_out())
    learner.inverse_transform(np.zeros((1, n_codes)))  # refuses a loss that was set after `fit`
    params = _params(learner)
    arrays = {"components": learner.components_}
    if params.get("loss", "gaussian") != "gaussian":
        arrays["intercept"] = learner.intercept_
    mean = getattr(learner, "mean_", None) if mean is None else mean
    if mean is not None:
        mean = np.asarray(mean)
        arrays["mean"] = mean.astype(np.float64) if mean.dtype.kind in "iub" else mean
    said = {
        "learner": type(learner).__name__,
        "params": _json(params, "get_params()"),
        "notes": _json({} if notes is None else notes, "notes"),
    }
    try:
        _check(arrays, params)
    except ValueError as error:
        raise ValueError(f"{error}; these atoms cannot be stored.") from error
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    replace_file(path, _safetensors().numpy.save(arrays, metadata=said))


def load_atoms(file):
    """Read a file of `save_atoms`.

    Parameters
    ----------
    file : str or path-like
        The file.

    Returns
    -------
    Bunch
        With these attributes:

        components : ndarray of shape (n_components, n_features), one atom per row
        intercept : ndarray of shape (n_features,), the baseline of counts, or None
        mean : ndarray of shape (n_features,) or None
        learner : str, the class name of the learner
        params : dict of the parameters that codes depend on, for the constructor of that class
        notes : dict

    Raises
    ------
    ValueError
        If the name ends otherwise, or the file, which the message names, is damaged or of another
        kind.
    FileNotFoundError
        If there is no such file.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    Make a learner with the same codes, and one that continues to learn from these atoms.
    `skpudle.PUDLEClassifier` and `skpudle.PUDLERegressor` take the parameters of the first, too.

    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.interoperability import load_atoms
    >>> stored = load_atoms("concepts.safetensors")  # doctest: +SKIP
    >>> coder = PUDLEDictionaryLearning.from_components(
    ...     stored.components, intercept=stored.intercept, mean=stored.mean, **stored.params
    ... )  # doctest: +SKIP
    >>> learner = PUDLEDictionaryLearning(
    ...     dict_init=stored.components, **stored.params
    ... )  # doctest: +SKIP
    """
    path, safetensors = _path(file), _safetensors().numpy
    content = path.read_bytes()
    with named_errors(path, "file of atoms", "Pass a file that save_atoms wrote."):
        arrays = safetensors.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        said = header.get("__metadata__", {})
        if said.keys() != _SAID:
            raise ValueError(f"its metadata are {sorted(said)}, expected {sorted(_SAID)}")
        params, notes = json.loads(said["params"]), json.loads(said["notes"])
        if not (isinstance(params, dict) and isinstance(notes, dict)):
            raise ValueError("its params or its notes are no dictionary")
        _check(arrays, params)
    return Bunch(
        components=arrays["components"],
        intercept=arrays.get("intercept"),
        mean=arrays.get("mean"),
        learner=said["learner"],
        params=params,
        notes=notes,
    )


def save_sae(learner, folder):
    """Write an encoder of one unfolding as a sparse autoencoder in the layout of SAELens.

    Codes are ``relu(x @ W_enc + b_enc)``, and rows ``codes @ W_dec``. The folder gets ``cfg.json``
    and ``sae_weights.safetensors``, which ``sae_lens.SAE.load_from_disk`` reads.

    Parameters
    ----------
    learner : PUDLEDictionaryLearning
        Fitted with ``n_unfoldings=1``, and with ``positive_code`` or ``split_sign``.
    folder : str or path-like
        Where to; it is made if it is not there.

    Raises
    ------
    ValueError
        If the learner has another encoder, or the folder is a file.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.interoperability import save_sae
    >>> options = dict(n_unfoldings=1, separate_atoms="unfolding", positive_code=True, max_iter=5)
    >>> learner = PUDLEDictionaryLearning(20, **options).fit(load_digits().data[:200])
    >>> save_sae(learner, "sae")  # doctest: +SKIP
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file. Pass the path of a folder, or of none yet.")
    module = learner.to_module()
    analysis, thresholds, atoms = (
        part.detach() for part in (module.analysis, module.thresholds, module.decoder)
    )
    signed = not (learner.positive_code or learner.split_sign)
    if len(thresholds) != 1 or learner.shrinkage != "soft" or signed:
        raise ValueError(
            "A sparse autoencoder has one unfolding and codes that are not negative, got "
            f"n_unfoldings={learner.n_unfoldings!r}, positive_code={learner.positive_code!r} and "
            f"split_sign={learner.split_sign!r}. Fit with n_unfoldings=1, "
            "separate_atoms='unfolding' and positive_code=True."
        )
    weights, biases, rows = analysis[0].mT, -thresholds[0], atoms
    if learner.split_sign:  # a feature for each sign; negative parts of positive codes are zero
        sign = 0 if learner.positive_code else 1
        weights = torch.cat([weights, -sign * weights], dim=1)
        biases, rows = torch.cat([biases, sign * biases]), torch.cat([rows, -rows])
    tensors = {"W_enc": weights, "b_enc": biases, "W_dec": rows, "b_dec": torch.zeros_like(rows[0])}
    arrays = {name: np.ascontiguousarray(to_numpy(value)) for name, value in tensors.items()}
    config = {
        "architecture": "standard",
        "d_in": rows.shape[1],
        "d_sae": len(rows),
        "dtype": str(rows.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {},
    }
    content = _safetensors().numpy.save(arrays)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "sae_weights.safetensors", content)
    replace_file(folder / "cfg.json", json.dumps(config).encode())


def _check_config(config):
    """Raise ValueError unless the decoder explains rows as the autoencoder gets them."""
    if not isinstance(config, dict):
        raise ValueError("cfg.json holds no dictionary")
    kind = str(config.get("architecture") or "standard").lower()
    if "transcoder" in kind or config.get("transcode") or config.get("skip_connection"):
        raise ValueError("it is a transcoder, whose decoder explains another layer than it reads")
    if kind == "temporal":
        raise ValueError("it is a temporal autoencoder, whose decoder explains a part of each row")
    if kind not in _ARCHITECTURES:
        raise ValueError(f"its architecture is {kind!r:.50}, expected one of {_ARCHITECTURES}")
    scaling = config.get("normalize_activations") or "none"
    if scaling != "none":
        raise ValueError(f"it scales rows before it codes them (normalize_activations={scaling!r})")
    factor = config.get("scaling_factor")
    if factor is not None and factor != 1:
        raise ValueError(f"it scales rows before it codes them (scaling_factor={factor!r:.50})")


def _read_first(names, file, expected=None):  # -> str, Tensor or None
    """Return the first of these arrays that a file has, in float32 or float64, and its name.

    The array has the expected shape, or is any matrix. The header is checked before the array is
    made: a shape with a zero has no bytes in the file.
    """
    name = next((name for name in names if name in set(file.keys())), "")
    if not name:
        return name, None
    stored = file.get_slice(name)
    shape = tuple(stored.get_shape())
    if 0 in shape or (len(shape) != 2 if expected is None else shape != expected):
        wanted = "(n_components, n_features)" if expected is None else expected
        raise ValueError(f"{name} has shape {shape}, expected {wanted}")
    if stored.get_dtype() not in _FLOATS:
        raise ValueError(f"{name} is of dtype {stored.get_dtype()}, expected one of {_FLOATS}")
    array = file.get_tensor(name)
    array = array if array.dtype == torch.float64 else array.float()
    if not array.isfinite().all():
        raise ValueError(f"{name} is not finite")
    return name, array


def _read_decoder(file, config):  # -> rows (n_components, n_features), bias (n_features,)
    """Return the decoder in a file of safetensors, for its latents as they are encoded."""
    n_features = config.get("d_in")
    name, rows = _read_first(_DECODERS, file)
    if rows is None:
        raise ValueError(f"it has no matrix {' or '.join(_DECODERS)}")
    if name == "decoder.weight":  # a layer of torch has atoms as columns
        rows = rows.mT
    if n_features not in (None, rows.shape[1]):
        raise ValueError(f"{name} is for {rows.shape[1]} features, and d_in is {n_features!r:.50}")
    _, bias = _read_first(_BIASES, file, tuple(rows.shape[1:]))
    _, factors = _read_first(_FACTORS, file, tuple(rows.shape[:1]))
    if factors is None and config.get("finetuning_scaling_factor"):
        raise ValueError("it scales its latents by a finetuning_scaling_factor, which it lacks")
    rows = rows if factors is None else factors[:, None] * rows
    return rows, rows.new_zeros(rows.shape[1]) if bias is None else bias


def _split_norms(rows):  # (n, n_features) -> directions (n, n_features), norms (n,)
    """Divide rows by their norms, whose squares may overflow or be zero; zero rows stay zero."""
    largest = rows.abs().amax(1, keepdim=True)
    directions = rows / largest.where(largest > 0, 1.0)
    lengths = torch.linalg.vector_norm(directions, dim=1, keepdim=True)
    norms = (largest * lengths).flatten()
    if not norms.isfinite().all():
        raise ValueError(f"norms of its rows overflow in {str(rows.dtype).removeprefix('torch.')}")
    return directions.div_(lengths.where(largest > 0, 1.0)), norms


def load_sae(folder):
    """Read the decoder of a sparse autoencoder, as SAELens and sparsify store it.

    Only safetensors are read, which execute nothing.

    Parameters
    ----------
    folder : str or path-like
        Folder with ``cfg.json``, and ``sae_weights.safetensors`` (SAELens) or ``sae.safetensors``
        (sparsify), or the path of one of these two.

    Returns
    -------
    Bunch
        With these attributes:

        - components : ndarray of shape (n_components, n_features), the decoder's rows, divided by
          their norms; a zero row stays zero
        - norms : ndarray of shape (n_components,), the norms: codes for ``components``, divided by
          them, are in the units of the autoencoder's latents
        - mean : ndarray of shape (n_features,), the decoder's bias, zero if it has none
        - config : dict, the content of ``cfg.json``

    Raises
    ------
    ValueError
        If the files are damaged or of another kind, if the autoencoder is a transcoder or of an
        unknown architecture, if it scales each row before it codes it, or if a folder holds both
        files.
    FileNotFoundError
        If there are no such files.
    ImportError
        If safetensors is not installed.

    See Also
    --------
    skpudle.PUDLEDictionaryLearning.from_sae : Exact codes for this decoder.

    Examples
    --------
    >>> from skpudle.interoperability import load_sae
    >>> sae = load_sae("sae")  # doctest: +SKIP
    >>> decoder = sae.norms[:, None] * sae.components  # doctest: +SKIP
    """
    folder, safetensors = Path(folder), _safetensors()
    if folder.name in _SAE_FILES and folder.is_file():
        folder, names = folder.parent, [folder.name]
    else:
        names = [name for name in _SAE_FILES if (folder / name).is_file()]
    if not names or not (folder / "cfg.json").is_file():
        raise FileNotFoundError(
            f"{folder} is no folder of an autoencoder: it lacks cfg.json, or {_SAE_FILES[0]} "
            f"(SAELens) and {_SAE_FILES[1]} (sparsify). Pass the folder of one autoencoder, with "
            "its weights as safetensors."
        )
    if len(names) > 1:
        raise ValueError(
            f"{folder} holds {' and '.join(names)}, weights of two autoencoders. Pass the path of "
            "one of these files."
        )
    advice = "Pass its decoder, as rows, to from_components, with data that it explains."
    with named_errors(folder, "autoencoder whose codes can be solved for", advice):
        config = json.loads((folder / "cfg.json").read_text("utf-8"))
        _check_config(config)
        with safetensors.safe_open(folder / names[0], framework="pt") as file:
            rows, bias = _read_decoder(file, config)
        directions, norms = _split_norms(rows)
    arrays = dict(components=directions, norms=norms, mean=bias)
    return Bunch(config=config, **{name: to_numpy(array) for name, array in arrays.items()})
