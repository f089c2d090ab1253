"""NOODL: dictionary learning with iterative hard thresholding and the sign of the codes."""

from typing import Any, Literal

import numpy as np

from skpudle._learners.parameters import sets_parameters
from skpudle._learners.rows import DenseLearner


@sets_parameters()
class NOODLDictionaryLearning(DenseLearner):
    r"""Dictionary learning with iterative hard thresholding and a sign gradient (NOODL).

    By default a search finds the first atoms, and up to 100 epochs of training follow. `transform`
    has the encoder of `PUDLEDictionaryLearning` with hard shrinkage; no gradient goes through it:

    .. math:: z_{t+1} = \mathrm{HT}_b(z_t + s D^T (x - D z_t)), \quad
        D \leftarrow D - \eta (D z_T - x)\,\mathrm{sign}(z_T)^T .

    The method is local: it needs an initial dictionary near the one that generated the data.

    Parameters
    ----------
    n_components : int, default=None
        Number of atoms; by default the number in ``dict_init`` if it is an array or a learner, else
        the number of features.

    threshold : float or "auto", default="auto"
        :math:`b`: codes with a smaller modulus become zero. "auto" is 0.07 times the root mean
        square norm of the nonzero samples, times the root of the step size, as for the hard
        shrinkage of `PUDLEDictionaryLearning`.

    initial_threshold : float, default=None
        Codes start from the correlations :math:`D^T x`, hard-thresholded at this value, as in [1]_;
        None starts from zero.

    n_unfoldings : int, default=100
        Number of iterations of the encoder.

    step_size : float or "auto", default="auto"
        Step of an iteration; "auto" is 1 over a bound of the squared spectral norm of the atoms.

    learning_rate : float, default=0.1
        Learning rate :math:`\eta` of the mean gradient of a batch, in units of 1 over the data: if
        you scale the data by c, divide the rate by c.

    batch_size : int or "auto", default="auto"
        As in `PUDLEDictionaryLearning`.

    max_iter : int, default=100
        Largest number of epochs.

    tol : float or None, default=1e-4
        As in `PUDLEDictionaryLearning`.

    n_iter_no_change : int, default=5
        Checks in a row without improvement that end training.

    dict_init, device, random_state, verbose
        As in `PUDLEDictionaryLearning`; training follows a search.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        The dictionary, one atom of norm 1 per row.

    alpha_ : float
        The threshold in use.

    n_components_, n_features_in_, n_iter_, n_steps_, loss_curve_, ended_by_, phases_
        As in `PUDLEDictionaryLearning`.

    fit_seconds_, step_size_, device_
        As in `PUDLEDictionaryLearning`.

    References
    ----------
    .. [1] S. Rambhatla, X. Li and J. Haupt, "NOODL: Provable Online Dictionary Learning and Sparse
       Coding", ICLR 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import NOODLDictionaryLearning
    >>> X = load_digits().data / 16
    >>> learner = NOODLDictionaryLearning(
    ...     n_components=32, max_iter=5, tol=None, random_state=0
    ... )
    >>> learner.fit_transform(X).shape
    (1797, 32)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        threshold: float | Literal["auto"] = "auto",
        initial_threshold: float | None = None,
        n_unfoldings: int = 100,
        step_size: float | Literal["auto"] = "auto",
        learning_rate: float = 0.1,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int = 100,
        tol: float | None = 1e-4,
        n_iter_no_change: int = 5,
        dict_init: Any = "search",
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        """Declare the parameters; `sets_parameters` writes the constructor from this signature."""

    # Parameters of other learners, which are constants here. NOODL updates atoms by stochastic
    # gradient descent without momentum. Its gradient, "noodl" in `skpudle._gradients`, is for codes
    # of hard thresholds; ``threshold`` is their alpha. ``_penalty`` names the parameter that sets
    # ``alpha_``.
    gradient = "noodl"
    shrinkage = "hard"
    optimizer = "sgd"
    alpha = property(lambda self: self.threshold)
    _penalty = "threshold"
