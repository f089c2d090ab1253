"""Functions that other packages call in the place of scikit-learn's, with the same signatures."""

from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

from skpudle._data.arrays import (
    check_rows,
    make_generator,
    mean_square,
    to_numpy,
    to_tensor,
    unit_of,
)
from skpudle._data.foreign import given_atoms
from skpudle._initialization import initial_atoms
from skpudle.lasso import solve_lasso
from skpudle.search import Problem, auto_alpha

__all__ = ["dict_learning_online"]

# Penalty of dict_learning_online(alpha="auto"), in deviations of correlations of noise with an
# atom. nilearn finds 135 of 192 planted maps with it, 131 with 1.5 and with 2; 133 with its best
# alpha, and 80 with the search's penalty.
_DEVIATIONS = 1.75
_MAD = 0.6745  # the median modulus of normal numbers of variance 1

# Parameters of scikit-learn's solver by batches: defaults, and checks of values. They do not change
# the atoms, since this solver uses all rows at once.
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

    Most correlations of data of sparse codes with atoms are noise, so their median modulus gives
    the deviation of the noise.
    """
    directions = atoms / torch.linalg.vector_norm(atoms, dim=1, keepdim=True)
    median = float((x @ directions.mT).abs().median())
    return max(auto_alpha(x), _DEVIATIONS * median / _MAD)


def dict_learning_online(
    X: ArrayLike,
    n_components: int | None = 2,
    *,
    alpha: float | Literal["auto"] = 1,
    return_code: bool = True,
    dict_init: ArrayLike | None = None,
    random_state: int | np.random.RandomState | None = None,
    **params: Any,
) -> tuple[np.ndarray, np.ndarray]:
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
        data; at least 0.07 times the root mean square norm of a sample. It is for data that are
        mostly noise, such as the voxels of brain images.
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
        If it gets unknown parameters, such as scikit-learn's ``callback`` or ``tol``.
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
    signs = dict(positive_code=bool(options["positive_code"]))
    signs["positive_atoms"] = bool(options["positive_dict"])
    problem = Problem.in_unit(x, penalty, unit_of(mean_square(x)), **signs)
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
