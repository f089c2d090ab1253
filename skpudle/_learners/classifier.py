"""Dictionaries that are learned for classification, through the encoder."""

from dataclasses import fields
from functools import partial
from math import sqrt
from numbers import Real

import numpy as np
import torch
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    _check_y,
    check_consistent_length,
    check_is_fitted,
)

from skpudle._data.arrays import handed_over, host_array, to_numpy, to_tensor
from skpudle._data.batches import Batch, Rows
from skpudle._data.sources import is_stream
from skpudle._learners.models import DenseModel
from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle._learners.task import Head, TaskLayout, TaskModel, class_decisions, joint
from skpudle._precision import own_precision, training_mode
from skpudle._training.stopping import HeldOut
from skpudle._training.team import current_team

__all__ = ["PUDLEClassifier"]

_AUTO_EPOCHS = 100


def _distinct(x, mask, target):  # -> the same, sorted
    """Return samples with those that are equal, of equal class, as one with the sum of weights.

    So weights mean what repetitions do, and no order of the samples counts.
    """
    kept = target.sum(1) > 0
    x, mask, target = (None if t is None else t[kept] for t in (x, mask, target))
    label = target.argmax(1, keepdim=True).to(x)
    rows = torch.cat([x, label] if mask is None else [x, label, mask], dim=1)
    rows, which = torch.unique(rows, dim=0, return_inverse=True)
    summed = target.new_zeros(len(rows), target.shape[1]).index_add_(0, which, target)
    n_features = x.shape[1]
    mask = None if mask is None else rows[:, n_features + 1 :].contiguous()
    return rows[:, :n_features].contiguous(), mask, summed


@torch.no_grad()
def _accuracy(model, batch, rows):  # -> float, weighted
    network = model.network(rows, 0)
    decisions = class_decisions(network.decide(network.encode(batch.x, mask=batch.mask)))
    right = batch.target.gather(1, decisions.argmax(1, keepdim=True))
    return float(right.sum() / batch.target.sum())


def _n_outputs(target):  # (n, n_classes) -> int
    return 1 if target.shape[1] == 2 else target.shape[1]


def _logistic(features, target, C):  # Tensors (n, n_sides * p), (n, n_classes) -> Head
    """Return the head that logistic regression gives features of codes."""
    labels, weights = to_numpy(target.argmax(1)), to_numpy(target.sum(1))
    rows = to_numpy(features).astype(np.float64)
    found = LogisticRegression(C=C, max_iter=1000).fit(rows, labels, sample_weight=weights)
    return Head(*(to_tensor(part).to(features) for part in (found.coef_, found.intercept_)))


class PUDLEClassifier(ClassifierMixin, PUDLEDictionaryLearning):
    r"""A linear classifier of sparse codes, whose dictionary is learned for it.

    The dictionary starts as `PUDLEDictionaryLearning` finds it without labels, the classifier as
    logistic regression on its codes. Then both are trained together, and the gradient of the
    classification goes through the encoder to the atoms:

    .. math:: D \leftarrow D - \eta \frac{\partial}{\partial D} \left(
        (1 - b) \tfrac12 |x - D z(D)|^2 + b\, E\, \ell(W z(D) + w_0, y) \right),

    with the supervision :math:`b`, the cross-entropy :math:`\ell`, and the mean squared norm
    :math:`E` of a sample, so that units of the data change nothing.

    Parameters
    ----------
    n_components : int, default=None
        Number of atoms; by default that of ``dict_init`` if it is an array or a learner, else the
        number of features.

    alpha : float or "auto", default="auto"
        The penalty of the lasso, in the units of the data; "auto" as in `PUDLEDictionaryLearning`.

    supervision : float, default=0.5
        :math:`b`, from 0 to 1. 0: the dictionary is the unsupervised one, to the bit (that of the
        same parameters and ``optimizer="adam"``), and the classifier is logistic regression on its
        codes. 1: the task alone.

    C : float, default=1.0
        Inverse strength of the penalty of the classifier's weights, as in
        `~sklearn.linear_model.LogisticRegression`; of codes in units of :math:`\sqrt{E / p}`, p
        atoms.

    class_weight : dict, "balanced" or None, default=None
        Weights of the classes in the cross-entropy, as in scikit-learn.

    n_unfoldings : int, None or "auto", default="auto"
        Number of iterations of the encoder; None and, where ``alpha`` is not 0, "auto": converged
        codes, with the implicit derivative.

    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.

    split_sign : bool, default=True
        Whether the classifier, and `transform`, see positive and negative parts of a code as two
        features: a pattern and its negative may speak for different classes, or for the same.

    learning_rate : float, default=1e-3
        Of Adam.

    batch_size : int or "auto", default="auto"
        Samples in an update; "auto" is ``min(256, n_samples)``.

    max_iter : int or "auto", default="auto"
        Largest number of epochs, after the search; "auto" is 100, and none without supervision.

    tol : float or None, default=1e-4
        Relative improvement of the smoothed objective that counts as one, with ``early_stopping``
        improvement of the accuracy; None trains for ``max_iter`` epochs.

    n_iter_no_change : int, default=10
        Training stops after this many checks, with ``early_stopping`` epochs, in a row without
        improvement.

    early_stopping : bool, default=False
        Whether to hold out samples, to stop when their accuracy does not improve, and to end with
        the parameters of the best epoch. Nothing is learned from them. Without supervision, and in
        `partial_fit`, nothing is held out.

    validation_fraction : float, default=0.1
        Share of the samples that is held out, of each class.

    dict_init : "search" or as in `PUDLEDictionaryLearning`, default="search"
        Initial dictionary.

    device : str, default="auto"
        A torch device, or "auto": that of a tensor input, else CUDA if present, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Determines the initial dictionary, what is held out, and the order of the samples.

    verbose : int, default=0
        Whether to print a line per epoch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The classes.

    coef_ : ndarray of shape (n_classes, n_features_out), or (1, n_features_out) for two classes
        Weights of the codes that `transform` returns, of which ``split_sign`` makes two per atom.

    intercept_ : ndarray of shape (n_classes,) or (1,)
        What is added.

    validation_scores_ : ndarray of shape (n_epochs,)
        Accuracy of the samples that are held out, with ``early_stopping``.

    components_, n_components_, n_features_in_, feature_names_in_, n_iter_, n_steps_, loss_curve_, \
            alpha_, step_size_, device_
        As in `PUDLEDictionaryLearning`; ``loss_curve_`` is that of the reconstruction.

    See Also
    --------
    skpudle.inspection.atom_contributions : Which training samples make an atom.

    Notes
    -----
    Equal samples of equal class are one with the sum of their weights, and their order does not
    count, so that a weight of two is the same as to be there twice. The search for the initial
    dictionary, and the reconstruction, see each once, whatever its weight; samples of weight zero
    count for nothing. Without supervision and weights the dictionary sees samples as they are.

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

    # the rest of a dictionary learner's parameters, which have one value here
    gradient, lambda_decay, shrinkage, step_size = "ae-ls", 1.0, "soft", "auto"
    positive_dict, atom_norm = False, "unit"
    optimizer, optimizer_params = "adam", None
    transform_algorithm, transform_alpha = "unfolded", None

    def __init__(
        self,
        n_components=None,
        *,
        alpha="auto",
        supervision=0.5,
        C=1.0,
        class_weight=None,
        n_unfoldings="auto",
        positive_code=False,
        split_sign=True,
        learning_rate=1e-3,
        batch_size="auto",
        max_iter="auto",
        tol=1e-4,
        n_iter_no_change=10,
        early_stopping=False,
        validation_fraction=0.1,
        dict_init="search",
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.n_components = n_components
        self.alpha = alpha
        self.supervision = supervision
        self.C = C
        self.class_weight = class_weight
        self.n_unfoldings = n_unfoldings
        self.positive_code = positive_code
        self.split_sign = split_sign
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.dict_init = dict_init
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    _parameter_constraints = {
        name: constraint
        for name, constraint in PUDLEDictionaryLearning._parameter_constraints.items()
        if name
        in {
            "n_components",
            "alpha",
            "n_unfoldings",
            "positive_code",
            "split_sign",
            "learning_rate",
            "batch_size",
            "max_iter",
            "tol",
            "n_iter_no_change",
            "dict_init",
            "device",
            "random_state",
            "verbose",
        }
    } | {
        "supervision": [Interval(Real, 0, 1, closed="both")],
        "C": [Interval(Real, 0, None, closed="neither")],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    }

    # ------------------------------------------------------------------ fitting

    @_fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def fit(self, X, y, sample_weight=None):
        """Learn a dictionary and a classifier.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data. NaN marks missing entries, with a number of unfoldings.
        y : array-like or Tensor of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights in the cross-entropy, not negative.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If data, labels or parameters are unfit, such as one class alone, which leaves the
            estimator as it was; or if training diverges twice.

        Warns
        -----
        ConvergenceWarning
            If ``max_iter`` is a number, and training ended before it had stalled.
        """
        return self._fit_to(X, y, sample_weight=sample_weight)

    @_fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Update dictionary and classifier by one pass over the data, in their order.

        The first call chooses the initial dictionary from its data without a search, and the
        classifier starts from nothing; after `fit` it goes on from there.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, cut into batches of ``batch_size``.
        y : array-like or Tensor of shape (n_samples,)
            Labels.
        classes : array-like of shape (n_classes,), default=None
            All labels that there are to be; needed in the first call.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights in the cross-entropy, in the unit of those of the first call.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            If data or labels are unfit, or of other features or classes than before, which leaves
            the estimator as it was; or if training diverges twice.
        """
        if classes is None and not hasattr(self, "classes_"):
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all labels at once, and partial_fit sees some; pass "
                "the weights of the classes as a dict."
            )
        classes = getattr(self, "classes_", None) if classes is None else np.unique(classes)
        return self._update(X, y, classes=classes, sample_weight=sample_weight)

    def _read(self, X, y, *, known=False, classes=None, sample_weight=None):  # -> Data
        name = type(self).__name__
        if y is None:
            raise ValueError(f"{name} requires y to be passed, but the target y is None.")
        if is_stream(X) or current_team() is not None:
            raise TypeError(
                f"{name} learns from arrays and tensors in one process; pass parts of the data to "
                "partial_fit."
            )
        data = super()._read(np.asarray(X) if isinstance(X, np.memmap) else X, None, known=known)
        x, mask = data.source.x, data.source.mask
        y = _check_y(host_array(y), estimator=self)
        check_classification_targets(y)
        check_consistent_length(x, y)
        fits, present = classes is None, np.unique(y)
        classes = self._checked_classes(present, classes, known)
        weights = _check_sample_weight(host_array(sample_weight), y, ensure_non_negative=True)
        labels = np.searchsorted(classes, y)
        target = np.zeros((len(y), len(classes)))
        target[np.arange(len(y)), labels] = weights
        target *= self._weights_of(classes, labels, weights)
        target = to_tensor(target, data.device).to(x.dtype)
        if self.supervision or sample_weight is not None:
            x, mask, target = _distinct(x, mask, target)
        if fits and (target.sum(0) > 0).sum() < 2:
            raise ValueError(
                f"{name} separates classes, and all samples with a weight are of one class, "
                f"{classes[int(target.sum(0).argmax())]}; pass samples of two or more."
            )
        held_out = None
        if fits and self.early_stopping and self.supervision:
            x, mask, target, held_out = self._without_held_out(x, mask, target)
        trained = self.supervision or not fits
        return data._replace(
            source=Rows(x, mask=mask, target=target if trained else None),
            sample=x,
            mask=mask,
            inputs=data.inputs | ({} if known else {"classes_": classes}),
            target=target,
            held_out=held_out,
        )

    def _checked_classes(self, present, classes, known):
        """Return the classes that there are to be, all present ones among them."""
        if known and not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"classes={classes!r:.80} are not those of the calls before, {self.classes_!r:.80}."
            )
        classes = present if classes is None else classes
        unknown = np.setdiff1d(present, classes)
        if len(unknown):
            raise ValueError(
                f"y contains {unknown!r:.80}, which is not in classes={classes!r:.80}."
            )
        return classes

    def _weights_of(self, classes, labels, weights):  # -> (n_classes,)
        if self.class_weight is None:
            return np.ones(len(classes))
        if isinstance(self.class_weight, dict):
            return np.array([self.class_weight.get(name, 1.0) for name in classes.tolist()], float)
        totals = np.bincount(labels, weights, minlength=len(classes))
        present = totals > 0
        return totals.sum() / present.sum() / np.where(present, totals, 1)

    def _without_held_out(self, x, mask, target):  # -> the same for training, Batch
        parts = train_test_split(
            np.arange(len(x)),
            test_size=self.validation_fraction,
            stratify=to_numpy(target.argmax(1)),
            random_state=check_random_state(self.random_state),
        )
        train, rest = (to_tensor(np.sort(part), x.device) for part in parts)
        known = (None, None) if mask is None else (mask[train], mask[rest])
        return x[train], known[0], target[train], Batch(rest, x[rest], target[rest], known[1])

    def _new_model(self, data, generator, course=None):  # -> model, rows
        model, atoms = super()._new_model(data, generator, course)
        if not self.supervision and course is not None:
            return model, atoms  # the head is found at the end
        model = self._task_model(model, atoms, data)
        n_outputs, p = model.layout.n_outputs, len(atoms) * model.layout.n_sides
        if course is None:  # some classes may be still to come
            head = Head(atoms.new_zeros(n_outputs, p), atoms.new_zeros(n_outputs))
        else:
            head = _logistic(self._features(model, atoms, data), data.target, self.C)
        return model, model.layout.pack(atoms, head)

    def _known_model(self, data, generator):  # -> model, rows
        model, atoms = super()._known_model(data, generator)
        state = self._training_state
        model = self._task_model(model, atoms, data, state["mean_weight"], state["total_weight"])
        coef, intercept = (to_tensor(a).to(atoms) for a in (self.coef_, self.intercept_))
        return model, model.layout.pack(atoms, Head(coef * model.layout.unit, intercept))

    def _layout(self, model, atoms, data):
        return TaskLayout(
            atoms.shape[1],
            1 if data.target.shape[1] == 2 else data.target.shape[1],
            2 if self.split_sign else 1,
            sqrt(model.data_scale / len(atoms)) or 1.0,
        )

    def _task_model(self, model, atoms, data, mean_weight=None, total_weight=0.0):
        here = float(data.target.sum())
        return TaskModel(
            **{field.name: getattr(model, field.name) for field in fields(model)} | {"rule": joint},
            layout=self._layout(model, atoms, data),
            supervision=float(self.supervision),
            mean_weight=here / len(data.target) if mean_weight is None else mean_weight,
            total_weight=total_weight + here,
            strength=float(self.C),
        )

    @torch.no_grad()
    def _features(self, model, atoms, data):  # -> (n, n_sides * n_components)
        dense = DenseModel.network(model, atoms, 0)
        codes = dense.encode(data.sample, mask=data.mask)
        return self._layout(model, atoms, data).features(codes)

    def _n_updates(self, n_batches, batch_size, data):
        if self.max_iter == "auto" and self.supervision:
            return _AUTO_EPOCHS * n_batches
        return super()._n_updates(n_batches, batch_size, data)

    def _stopping(self, trainer, data, n_updates):
        if data.held_out is None:
            return super()._stopping(trainer, data, n_updates)
        return HeldOut(
            partial(_accuracy, trainer.model, data.held_out),
            trainer.optimizer.atoms.detach,
            len(data.sample),
            self.tol,
            self.n_iter_no_change,
            n_updates=n_updates,
        )

    def _attributes(self, trainer, data, idle=None):
        attributes = super()._attributes(trainer, data, idle)
        model, rows = trainer.model, trainer.optimizer.atoms.detach()
        if not isinstance(model, TaskModel):
            head = _logistic(self._features(model, rows, data), data.target, self.C)
            task = self._task_model(model, rows, data)
            attributes |= task.attributes(task.layout.pack(rows, head))
            attributes["_training_state"] |= task.memory()
        scores = None if data.held_out is None else np.array(trainer.state.stopping[3])
        return attributes | {"validation_scores_": scores}

    # ------------------------------------------------------------------ what is decided

    def _decisions(self, X):  # -> (n, n_outputs)
        check_is_fitted(self, "coef_")
        codes = to_tensor(self.transform(X))
        coef, intercept = (to_tensor(a).to(codes) for a in (self.coef_, self.intercept_))
        with own_precision():
            return codes @ coef.mT + intercept

    def decision_function(self, X):
        """Return what codes weigh for the classes.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, as for `transform`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_classes), or (n_samples,) for two classes
            ``transform(X) @ coef_.T + intercept_``; of two classes positive for the second.
        """
        decisions = self._decisions(X)
        return handed_over(decisions[:, 0] if decisions.shape[1] == 1 else decisions, X)

    def predict(self, X):
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
        decisions = self._decisions(X)
        binary = decisions.shape[1] == 1
        indices = (decisions[:, 0] > 0).long() if binary else decisions.argmax(1)
        labels = self.classes_[to_numpy(indices)]
        numbers = isinstance(X, torch.Tensor) and labels.dtype.kind in "iufb"
        return to_tensor(labels, X.device) if numbers else labels

    def predict_proba(self, X):
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
        return handed_over(self._log_probabilities(X).exp(), X)

    def predict_log_proba(self, X):
        """Return the logarithms of the probabilities; see `predict_proba`."""
        return handed_over(self._log_probabilities(X), X)

    def _log_probabilities(self, X):
        return class_decisions(self._decisions(X)).log_softmax(1)

    def score(self, X, y, sample_weight=None):
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
            Share of the samples whose class is right.
        """
        labels, weights = host_array(y), host_array(sample_weight)
        return accuracy_score(labels, host_array(self.predict(X)), sample_weight=weights)
