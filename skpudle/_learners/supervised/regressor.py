"""Learn dictionaries for regression, through the encoder."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_array
from torch import Tensor

from skpudle._data.arrays import host_array, like_input
from skpudle._learners.parameters import fits
from skpudle._learners.supervised.learner import OfRows, TaskLearner
from skpudle._learners.supervised.tasks import Regression


class PUDLERegressor(RegressorMixin, TaskLearner):
    r"""A linear regression on sparse codes, and a dictionary learned for it.

    By default the dictionary starts as the unsupervised one of `PUDLEDictionaryLearning`, and the
    regression as ridge regression on its codes. Both are then trained together, and the gradient of
    the squared error passes through the encoder to the atoms:

    .. math:: D \leftarrow D - \eta \frac{\partial}{\partial D} \left(
        (1 - b) \tfrac12 \|x - D z(D)\|^2 + b\, E\, \tfrac12 \|W z(D) + w_0 - y\|^2 \right),

    with the supervision :math:`b` and the mean squared norm :math:`E` of a sample. Targets
    :math:`y` are centred and divided by their standard deviation. If a sample has several targets,
    their squared errors are averaged. Both terms are then :math:`E / 2` times an unexplained share
    of a variance, and independent of units.

    Parameters
    ----------
    n_components : int or "auto", default=None
        Number of atoms: by default that of ``dict_init``, or of features.

    alpha : float or "auto", default="auto"
        The penalty of the lasso, in the units of the data; "auto" is half of its value in
        `PUDLEDictionaryLearning`: less sparse codes predict better.

    supervision : float, default=0.5
        :math:`b`, from 0 to 1. 0: the dictionary is the unsupervised one, with ridge regression on
        its codes. 1: only the task counts.

    C : float, default=1.0
        Inverse strength of the penalty of the weights: 10 over ``alpha`` of
        `~sklearn.linear_model.Ridge`, for targets in units of their standard deviation and codes in
        units of :math:`\sqrt{E / p}` with p atoms.

    n_unfoldings : int, None or "auto", default="auto"
        Depth of the encoder. None: converged codes. "auto": None, or 100 with ``alpha=0``.

    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.

    split_sign : bool, default=True
        Whether the regression, and `transform`, see positive and negative parts of a code as two
        features.

    learning_rate : float, default=1e-3
        Learning rate of Adam.

    batch_size : int or "auto", default="auto"
        Samples in an update; "auto" is ``min(256, n_samples)``.

    max_iter : int or "auto", default="auto"
        Largest number of epochs, after the search; "auto" is 100. Without supervision only a named
        encoder is trained, as in `PUDLEDictionaryLearning`.

    tol : float or None, default=1e-4
        Relative improvement that counts. None: ``max_iter`` epochs.

    n_iter_no_change : int, default=10
        Checks in a row without improvement that end training.

    dict_init : "search" or as in `PUDLEDictionaryLearning`, default="search"
        Initial dictionary.

    device : str, default="auto"
        A torch device; "auto" is that of a tensor input, else CUDA if present, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Seed of first atoms and of the order of samples.

    verbose : int, default=0
        Whether to print a line per epoch.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features_out,) or (n_outputs, n_features_out)
        Weights of the codes that `transform` returns; with ``split_sign`` two per atom.

    intercept_ : float or ndarray of shape (n_outputs,)
        Intercepts of the predictions.

    baseline_ : ndarray of shape (n_features,) or float
        The baseline of rows, learned as in `PUDLEDictionaryLearning`; 0.0 without one.

    components_, alpha_, step_size_, loss_curve_, n_iter_, n_steps_, ended_by_, phases_, device_
        As in `PUDLEDictionaryLearning`; ``loss_curve_`` is the loss of the reconstruction.

    fit_seconds_, n_components_, n_features_in_, feature_names_in_
        As in `PUDLEDictionaryLearning`.

    See Also
    --------
    PUDLEClassifier : The same for classes.

    References
    ----------
    .. [1] B. Tolooshams and D. Ba, "Stable and Interpretable Unrolled Dictionary Learning", TMLR
       2022.
    .. [2] J. Mairal, F. Bach and J. Ponce, "Task-Driven Dictionary Learning", IEEE Transactions on
       Pattern Analysis and Machine Intelligence 34(4), 2012.

    Examples
    --------
    Predict the lower half of a digit from the upper one:

    >>> from sklearn.datasets import load_digits
    >>> from skpudle import PUDLERegressor
    >>> X = load_digits().data
    >>> regressor = PUDLERegressor(16, max_iter=5, tol=None, random_state=0)
    >>> regressor.fit(X[:1500, :32], X[:1500, 32:]).predict(X[1500:, :32]).shape
    (297, 32)
    """

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _check_target(self, y):  # -> (n,) or (n, n_outputs)
        return check_array(y, ensure_2d=False, dtype=np.float64, input_name="y", estimator=self)

    def _task(self, y, weight, part):
        units = StandardScaler().fit(y.reshape(len(y), -1), sample_weight=weight)
        return Regression(units.mean_, units.scale_, y.ndim == 1)

    @fits()
    def partial_fit(self, X: Any, y: Any, sample_weight: OfRows = None) -> Self:
        """Update dictionary and regression by one pass over the data, in their order.

        The first call chooses the initial dictionary from its data without a search, and the units
        of ``y``; the regression starts at the mean of ``y``. After `fit` it continues from the
        fitted parameters.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, cut into batches of ``batch_size``.
        y : array-like or Tensor of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of squared errors, in the unit of the weights of the first call.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            If data or targets are unfit, or of another shape than before, which leaves the
            estimator unchanged; or if training diverges twice.
        """
        return self._partial_fit(X, y, sample_weight=sample_weight)

    def predict(self, X: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """Return predicted targets.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, as for `transform`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples,) or (n_samples, n_outputs)
            ``transform(X) @ coef_.T + intercept_``.
        """
        decisions = self._decisions(X)
        return like_input(decisions[:, 0] if np.ndim(self.coef_) == 1 else decisions, X)

    def score(self, X: Any, y: Any, sample_weight: OfRows = None) -> float:
        """Return the coefficient of determination, :math:`R^2`.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, as for `transform`.
        y : array-like or Tensor of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        float
            The explained share of the variance, averaged over outputs.
        """
        numbers, weights = host_array(y), host_array(sample_weight)
        return r2_score(numbers, host_array(self.predict(X)), sample_weight=weights)
