"""SPORCO's dictionary learning behind the interface of scikit-learn."""

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from skpudle._compilation import import_extra
from skpudle._data import arrays
from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.sources import Samples, merge_samples, open_source, scale_weights
from skpudle._fit.encoders import Converged
from skpudle._fit.messages import warn_of_few_samples
from skpudle._fit.plan import choose_atoms
from skpudle._fit.run import EpochRecord, FollowedFit
from skpudle._learners.parameters import ATOMS, POSITIVE, fits, sets_parameters
from skpudle._learners.transformer import DictionaryTransformer
from skpudle.search import auto_alpha


@sets_parameters(alpha=[POSITIVE], dict_init=ATOMS)
class SporcoDictionaryLearning(FollowedFit, DictionaryTransformer):
    r"""Dictionary learning by alternating minimisation of the lasso, with SPORCO [1]_.

    By default `fit` runs 200 iterations of ``sporco.dictlrn.bpdndl.BPDNDictLearn``. It alternates
    steps of the method of multipliers (ADMM) for the codes of all samples and for the dictionary.
    `transform` solves the lasso for the learned dictionary, so that the code of a sample is
    independent of all other samples.

    Parameters
    ----------
    n_components : int, default=None
        Number of atoms; by default the number in ``dict_init`` if it is an array or a learner, else
        the number of features.

    alpha : float or "auto", default="auto"
        Penalty of the lasso, in the units of the data. "auto" is 0.07 times the root mean square
        norm of the nonzero samples, as in `PUDLEDictionaryLearning`.

    max_iter : int, default=200
        Number of SPORCO's iterations, each over all samples.

    dict_init : {"data", "random", "svd", "vertices"} or array-like, default="data"
        Initial dictionary, as in `PUDLEDictionaryLearning`.

    options : dict, default=None
        SPORCO's own options, as nested dictionaries, such as ``{"BPDN": {"rho": 10.0}, "CMOD":
        {"ZeroMean": True}}``; see its ``BPDNDictLearn.Options``. Its ``"MaxMainIter"`` replaces
        ``max_iter``.

    random_state : int, RandomState instance or None, default=None
        Seed of the initial dictionary.

    verbose : int, default=0
        Whether to print a line per iteration.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        The dictionary, one atom of norm 1 per row.

    n_components_ : int
        Number of atoms.

    n_features_in_ : int
        Number of features seen in `fit`.

    feature_names_in_ : ndarray of shape (n_features,)
        Names of features seen in `fit`, if ``X`` has names.

    n_iter_ : int
        Number of iterations.

    loss_curve_ : ndarray of shape (n_iterations,)
        Mean over the samples of :math:`\frac12 \|x - D z\|^2`, as SPORCO reports it after each
        iteration.

    ended_by_ : str
        "max_iter", "callback" or "interrupt" (Ctrl-C).

    alpha_ : float
        The penalty in use.

    See Also
    --------
    PUDLEDictionaryLearning : Trained by gradients, with ``gradient="dec"`` (codes as constants) for
        the same objective.

    References
    ----------
    .. [1] B. Wohlberg, "SPORCO: A Python package for standard and convolutional sparse
       representations", SciPy 2017.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import SporcoDictionaryLearning
    >>> X = load_digits().data[:300]
    >>> learner = SporcoDictionaryLearning(n_components=32, max_iter=5, random_state=0)
    >>> learner.fit_transform(X).shape
    (300, 32)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        alpha: float | Literal["auto"] = "auto",
        max_iter: int = 200,
        dict_init: Literal["data", "random", "svd", "vertices"] | ArrayLike = "data",
        options: dict | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        """Declare the parameters; `sets_parameters` writes the constructor from this signature."""

    @fits()
    def fit(
        self, X: Any, y: None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Learn a dictionary.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data; float32 stays float32, and all other types become float64.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts. For this SPORCO gets each row and its penalty times the root
            of the row's weight.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ImportError
            If SPORCO is not installed.
        ValueError
            If data or parameters are invalid.
        """
        bpdndl = import_extra("sporco", "sporco.dictlrn.bpdndl")
        x = to_tensor(arrays.check_rows(open_source(X).array(), estimator=self))
        weight = None
        n_rows = len(x)
        generator = arrays.make_generator(self.random_state)
        if sample_weight is not None:
            weight = arrays.check_sample_weight(sample_weight, n_rows).to(x)
        # Equal rows are merged, so that weights equal repetitions. The weights of the distinct rows
        # then have the mean 1, or are None if all are equal.
        samples, _ = merge_samples(Samples(x, weight=weight))
        x = samples.x
        weight, _ = scale_weights(samples.weight, len(samples))
        arrays.mean_square(x)  # raises ValueError if squares leave the dtype's range
        atoms = choose_atoms(
            self.dict_init, self.n_components, x, generator, weight=weight
        )
        if isinstance(self.dict_init, str):
            warn_of_few_samples(n_rows, len(atoms))
        alpha = self.alpha
        alpha = auto_alpha(x, weight=weight) if alpha == "auto" else float(alpha)
        defaults = {"Verbose": False, "MaxMainIter": self.max_iter}
        settings = bpdndl.BPDNDictLearn.Options(defaults | (self.options or {}))
        if weight is not None:
            # If a row and its L1 penalty are multiplied by the root of the weight, the codes of the
            # row are, too, and both terms of its objective, squared error and penalty, are
            # multiplied by the weight.
            root = weight.sqrt()
            x = x * root[:, None]
            penalties = settings["BPDN"]
            penalties["L1Weight"] = penalties["L1Weight"] * to_numpy(root)
        # SPORCO makes one iteration per call of ``solve``, so that scikit-learn's callbacks and
        # Ctrl-C work between iterations. `epochs` calls the callback in the user's ``options``.
        callback = settings["Callback"]
        max_iter = settings["MaxMainIter"]
        settings.update({"Callback": None, "MaxMainIter": 1})
        solver = bpdndl.BPDNDictLearn(to_numpy(atoms).T, to_numpy(x).T, alpha, settings)

        # ``DFid`` is SPORCO's name for half the squared error, summed over the rows.
        def attributes():  # -> dict of fitted attributes
            losses = np.array(solver.getitstat().DFid, dtype=np.float64) / len(x)
            return arrays.input_attributes(X) | {
                "components_": to_numpy(to_tensor(solver.getdict().T).to(x.dtype)),
                "alpha_": alpha,
                "n_components_": len(atoms),
                "n_iter_": len(losses),
                "loss_curve_": losses,
            }

        def epochs(interrupts):  # yields an `EpochRecord` for each iteration
            for n in range(1, max_iter + 1):
                solver.solve()
                stops = callback is not None and callback(solver)
                loss = solver.getitstat().DFid[-1] / len(x)
                yield EpochRecord(
                    note=f"iteration {n}/{max_iter}  loss {loss:.6g}",
                    attributes=attributes,
                    ended_by="callback" if stops else "max_iter",
                    is_done=stops or n == max_iter,
                )

        self._follow(epochs, X, y, max_iter)
        return self

    def _transform_encoder(self):  # -> encoder, see `skpudle._fit.encoders`
        return Converged(self.alpha_)

    _allows_nan = False
