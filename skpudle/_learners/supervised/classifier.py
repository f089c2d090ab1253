"""Learn dictionaries for classification, through the encoder."""

from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets
from sklearn.utils.validation import _check_y
from torch import Tensor

from skpudle._data.arrays import host_array, like_input, to_numpy, to_tensor
from skpudle._fit.encoders import refuse
from skpudle._learners.parameters import fits, sets_parameters
from skpudle._learners.supervised.learner import OfRows, TaskLearner
from skpudle._learners.supervised.tasks import Classification, class_decisions


@sets_parameters()
class PUDLEClassifier(ClassifierMixin, TaskLearner):
    r"""A linear classifier of sparse codes, and a dictionary learned for it.

    By default the dictionary starts as the unsupervised one of `PUDLEDictionaryLearning`, and the
    classifier as logistic regression on its codes. Both are then trained together, and the gradient
    of the classification passes through the encoder to the atoms:

    .. math:: D \leftarrow D - \eta \frac{\partial}{\partial D} \left(
        (1 - b) \tfrac12 \|x - D z(D)\|^2 + b\, E\, \ell(W z(D) + w_0, y) \right),

    with the supervision :math:`b`, the cross-entropy :math:`\ell`, and the mean squared norm
    :math:`E` of a sample.

    Parameters
    ----------
    n_components : int or "auto", default=None
        Number of atoms: by default that of ``dict_init``, or of features.

    alpha : float or "auto", default="auto"
        The penalty of the lasso, in the units of the data; "auto" is half of its value in
        `PUDLEDictionaryLearning`: less sparse codes classify better.

    supervision : float, default=0.5
        :math:`b`, from 0 to 1. 0: the dictionary is the unsupervised one, and the classifier is
        logistic regression on its codes. 1: only the task counts.

    C : float, default=1.0
        Inverse strength of the penalty of the classifier's weights, as in
        `~sklearn.linear_model.LogisticRegression`, for codes in units of :math:`\sqrt{E / p}` with
        p atoms.

    class_weight : dict, "balanced" or None, default=None
        Weights of classes by label, which multiply ``sample_weight``; 1 for a label without one.

    n_unfoldings : int, None or "auto", default="auto"
        Depth of the encoder. None: converged codes. "auto": None, or 100 with ``alpha=0``.

    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.

    split_sign : bool, default=True
        Whether the classifier, and `transform`, see positive and negative parts of a code as two
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
    classes_ : ndarray of shape (n_classes,)
        The classes.

    coef_ : ndarray of shape (n_classes, n_features_out), or (1, n_features_out) for two classes
        Weights of the codes that `transform` returns; with ``split_sign`` two per atom.

    intercept_ : ndarray of shape (n_classes,) or (1,)
        Intercepts of the decisions.

    baseline_ : ndarray of shape (n_features,) or float
        The baseline of rows, learned as in `PUDLEDictionaryLearning`; 0.0 without one.

    components_, alpha_, step_size_, loss_curve_, n_iter_, n_steps_, ended_by_, phases_, device_
        As in `PUDLEDictionaryLearning`; ``loss_curve_`` is the loss of the reconstruction.

    fit_seconds_, n_components_, n_features_in_, feature_names_in_
        As in `PUDLEDictionaryLearning`.

    See Also
    --------
    skpudle.inspection.atom_contributions : Which training samples make an atom.

    References
    ----------
    .. [1] B. Tolooshams and D. Ba, "Stable and Interpretable Unrolled Dictionary Learning", TMLR
       2022.
    .. [2] J. Mairal, F. Bach and J. Ponce, "Task-Driven Dictionary Learning", IEEE Transactions on
       Pattern Analysis and Machine Intelligence 34(4), 2012.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from skpudle import PUDLEClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    >>> classifier = PUDLEClassifier(16, max_iter=20, tol=None, random_state=0)
    >>> classifier.fit(X_train, y_train).score(X_test, y_test) > 0.93
    True
    """

    def __init__(
        self,
        n_components: int | Literal["auto"] | None = None,
        *,
        alpha: float | Literal["auto"] = "auto",
        supervision: float = 0.5,
        C: float = 1.0,
        class_weight: dict | Literal["balanced"] | None = None,
        n_unfoldings: int | Literal["auto"] | None = "auto",
        positive_code: bool = False,
        split_sign: bool = True,
        learning_rate: float = 1e-3,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 1e-4,
        n_iter_no_change: int = 10,
        dict_init: Any = "search",
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        """Set the parameters."""

    # ------------------------------------------------------------------ fitting

    def _class_weights(self, y, weight, part):
        classes = self.classes_ if part else np.unique(y)
        given = dict(classes=classes, y=y, sample_weight=weight)
        of_classes = compute_class_weight(self.class_weight, **given)
        return of_classes[LabelEncoder().fit(classes).transform(y)]

    def _check_target(self, y):  # -> (n,)
        y = _check_y(y, estimator=self)
        check_classification_targets(y)
        return y

    def _task(self, y, weight, part):
        classes = self.classes_ if part else np.unique(y)
        refuse(
            len(classes) < 2,
            f"{type(self).__name__} got samples with a weight of {len(classes)} class(es), "
            f"{classes.tolist()!r:.50}. Pass samples of two or more.",
        )
        return Classification(classes)

    def _attributes(self, plan, data, fitted):
        found = super()._attributes(plan, data, fitted)
        return found | {"classes_": data.task.classes}

    @fits()
    def partial_fit(
        self, X: Any, y: Any, classes: ArrayLike | None = None, sample_weight: OfRows = None
    ) -> Self:
        """Update dictionary and classifier by one pass over the data, in their order.

        The first call chooses the initial dictionary from its data without a search, and the
        classifier starts at zero. After `fit` it continues from the fitted parameters.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, cut into batches of ``batch_size``.
        y : array-like or Tensor of shape (n_samples,)
            Labels.
        classes : array-like of shape (n_classes,), default=None
            All labels of the data to come; needed in the first call.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights in the cross-entropy, in the unit of the weights of the first call.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            If data or labels are unfit, or have other features or classes than before, which leaves
            the estimator unchanged; or if training diverges twice.
        """
        refuse(
            self.class_weight == "balanced",
            "class_weight='balanced' needs all labels at once, and partial_fit sees some. Pass the "
            "weights of the classes as a dict.",
        )
        _check_partial_fit_first_call(self, None if classes is None else host_array(classes))
        return self._partial_fit(X, y, sample_weight=sample_weight)

    # ------------------------------------------------------------------ decisions

    def decision_function(self, X: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """Return the decision function of the classes.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, as for `transform`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_classes), or (n_samples,) for two classes
            ``transform(X) @ coef_.T + intercept_``; for two classes positive for the second.
        """
        decisions = self._decisions(X)
        return like_input(decisions[:, 0] if decisions.shape[1] == 1 else decisions, X)

    def predict(self, X: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """Return the most probable classes.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, as for `transform`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)
            Labels; a tensor if ``X`` is one and labels are numbers.
        """
        indices = class_decisions(self._decisions(X)).argmax(1)
        labels = self.classes_[to_numpy(indices)]
        numbers = isinstance(X, torch.Tensor) and labels.dtype.kind in "iufb"
        return to_tensor(labels, X.device) if numbers else labels

    def predict_proba(self, X: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """Return the probabilities of the classes, in the order of ``classes_``.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, as for `transform`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_classes)
            Probabilities.
        """
        return like_input(class_decisions(self._decisions(X)).softmax(1), X)

    def predict_log_proba(self, X: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """Return the logarithms of the probabilities.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_classes)
            Logarithms of the probabilities of `predict_proba`.
        """
        return like_input(class_decisions(self._decisions(X)).log_softmax(1), X)

    def score(self, X: Any, y: Any, sample_weight: OfRows = None) -> float:
        """Return the accuracy.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, as for `transform`.
        y : array-like or Tensor of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        float
            Share of the samples with the right class.
        """
        labels, weights = host_array(y), host_array(sample_weight)
        return accuracy_score(labels, host_array(self.predict(X)), sample_weight=weights)
