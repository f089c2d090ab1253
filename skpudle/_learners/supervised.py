r"""Classifier and regressor on sparse codes, whose dictionary is trained for the task, too.

A task, `Classification` or `Regression`, knows its targets, its loss, and the linear model of
scikit-learn whose solution training begins with. The *head* is the linear model on the codes:
weights and intercepts. A *decision* is an output of the head: the prediction of a regression, or
the logit of a class. In training, targets and decisions have ``task.mean`` subtracted and are
divided by ``task.scale``; the fitted attributes ``coef_`` and ``intercept_`` are in the units of
``y``.

Training updates one tensor, as for any dictionary, with a row for each atom: the atom, its weights
in the head, and a copy of the intercepts. The intercepts of the head are the mean of all copies.

A head sees codes as they are or, with ``split_sign``, the positive and the negative part of each
code as two features, the two *sides* of an atom. In training all codes are divided by one number,
`TaskPlan.code_scale`: the root of the mean squared norm of a sample over the number of atoms. If
each feature were divided by its own standard deviation instead, rare features would weigh too much:
with two sides digits had 0.8 % more errors.
"""

from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.preprocessing import LabelEncoder, StandardScaler
from sklearn.utils import check_array
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call,
    check_classification_targets,
)
from sklearn.utils.validation import _check_y, check_consistent_length, check_is_fitted
from torch import Tensor
from torch.nn.functional import cross_entropy

from skpudle._data.arrays import (
    check_sample_weight,
    host_array,
    like_input,
    to_numpy,
    to_tensor,
)
from skpudle._data.sources import open_source
from skpudle._fit.messages import refuse
from skpudle._fit.plan import Plan
from skpudle._gradients import Evaluation, average
from skpudle._learners.parameters import fits, sets_parameters
from skpudle._learners.rows import DenseLearner, RowPhases
from skpudle._precision import in_own_precision, own_precision
from skpudle._shrinkage import split_signs

# ------------------------------------------------------------------ the tasks


def class_decisions(decisions):  # (n, n_outputs) -> (n, n_classes)
    """Return a logit for each class, from which softmax makes probabilities.

    ``decisions`` are the outputs of the linear model on codes. For two classes it has one output,
    the logit of the second class against the first; the logit of the first class is then 0.
    """
    if decisions.shape[1] > 1:
        return decisions
    return torch.cat([torch.zeros_like(decisions), decisions], dim=1)


@dataclass(frozen=True, eq=False)
class Classification:
    """The task of a classifier, with cross-entropy for loss; a target is the index of a class.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        Sorted labels.
    total_weight : float, default=0.0
        The sum of the weights of all samples so far, over all calls of `partial_fit`.
    """

    classes: np.ndarray
    total_weight: float = 0.0

    # `TaskPlan` reads these attributes of any task, and `Regression` explains them. Here they mean:
    # targets are not standardised, a loss is one term, C is that of `LogisticRegression`, and
    # ``coef_`` has two axes.
    mean = np.zeros(1)
    scale = np.ones(1)
    n_terms = 1
    penalty = 1
    is_flat = False

    @property
    def attributes(self):
        """The fitted attributes of a classifier that a regressor lacks."""
        return {"classes_": self.classes}

    @property
    def n_outputs(self):
        """Number of outputs of the linear model on codes: one per class, or 1 for two classes."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    def encode(self, y):  # (n,) -> (n, 1)
        """Return the indices of labels in ``classes``, as floats in a column.

        Raises
        ------
        ValueError
            If a label is unknown.
        """
        return LabelEncoder().fit(self.classes).transform(y)[:, None].astype(float)

    def losses(self, decisions, target):  # (n, n_outputs), (n, 1) -> (n,)
        """Return the cross-entropy of every sample."""
        return cross_entropy(
            class_decisions(decisions), target[:, 0].long(), reduction="none"
        )

    def linear_model(self, C):
        """Return scikit-learn's model, not fitted, for this loss; a larger ``C`` penalises less."""
        return LogisticRegression(C=C, max_iter=1000)


@dataclass(frozen=True, eq=False)
class Regression:
    r"""The task of a regressor, with squared errors of standardised targets for loss.

    The loss is half the unexplained fraction of the variance of ``y``, averaged over outputs. It is
    independent of the units of ``y`` and of the number of outputs.

    Parameters
    ----------
    mean, scale : ndarray of shape (n_outputs,)
        Means and standard deviations of ``y``.
    is_flat : bool
        Whether ``y`` has one dimension, so that ``coef_`` and predictions have no axis of outputs.
    total_weight : float, default=0.0
        The sum of the weights of all samples so far, over all calls of `partial_fit`.
    """

    mean: np.ndarray
    scale: np.ndarray
    is_flat: bool
    total_weight: float = 0.0

    @property
    def n_outputs(self):
        """Number of outputs of the linear model on codes: the number of columns of ``y``."""
        return len(self.mean)

    n_terms = (
        n_outputs  # the loss of a sample is a mean of this number of squared errors
    )
    penalty = 10  # the ``alpha`` of scikit-learn's Ridge that C=1 stands for

    @property
    def attributes(self):
        """No fitted attributes beside weights and intercepts."""
        return {}

    def encode(self, y):  # (n,) or (n, n_outputs) -> (n, n_outputs)
        """Return standardised targets in columns."""
        return (y.reshape(len(y), -1) - self.mean) / self.scale

    def losses(self, decisions, target):  # (n, n_outputs) twice -> (n,)
        """Return half the mean squared error of every sample."""
        return 0.5 * (decisions - target).square().mean(1)

    def linear_model(self, C):
        """Return scikit-learn's model, not fitted, for this loss; a larger ``C`` penalises less."""
        return Ridge(alpha=self.penalty / C)


# ------------------------------------------------------------------ the plan and model


class TaskPlan(Plan):
    """The plan of a learner for a task: a search as without the task, then joint training.

    Joint training updates atoms and head (see the module) together. A plan gets its task, a
    `Classification` or `Regression`, from the targets: `for_data` returns the plan with it. A
    record (`Fitted`, the results of the fit so far) has the head in ``extra``, of shape
    (n_components, n_sides * n_outputs + n_outputs); `with_head` and `head` convert weights and
    intercepts to this form and back. ``n_sides`` is 2 with ``split_sign``, else 1.
    """

    # With alpha="auto" the penalty is half of the default one, since less sparse codes predict
    # targets better. Of the factors 1, 1/2 and 1/4 the factor 1/2 had the smallest
    # errors in cross-validation (128 atoms, benchmarks/bench_classifiers.py).
    alpha_share = 0.5
    # The fitted attribute of the baseline that is subtracted from rows. ``intercept_`` has the
    # intercepts of the linear model, as in scikit-learn.
    name_of_baseline = "baseline_"
    axis = 1  # `Plan.join` puts the weights of the linear model into columns beside the atoms

    def __init__(self, learner):
        super().__init__(learner)
        self.supervision = float(learner.supervision)
        trains_task = self.supervision > 0
        if trains_task and self.params.max_iter == "auto":
            self.params.max_iter = 100
        # Noise of features is not learned: a feature that is nearly a sum of other features has a
        # noise near zero, so in units of the noise it would dominate the atoms. Only outliers are
        # found. Nor do held-out features choose the penalty of codes (``codes_follow_data``), since
        # predicting features is not the task.
        if self.learns_noise:
            self.noise = "outliers"
        self.codes_follow_data = False
        self.trains = self.trains or trains_task
        self.alternates = False  # alternating codes and atoms would not train the head
        if trains_task:
            self.name = "supervised"
        self.C = float(learner.C)
        self.n_sides = 1 + learner.split_sign

    def for_data(self, data):  # -> TaskPlan
        """Return the plan with the task that the checked input, `Data`, has from its targets."""
        plan = copy(self)
        plan.task = data.task
        return plan

    @in_own_precision
    def rule(
        self,
        fitted,
        dictionary,
        batch,
        *,
        encoder,
        penalty,
    ):
        r"""Evaluate the gradient rule of joint training: reconstruction and task, through encoder.

        With the supervision :math:`b` and the mean squared norm of a sample :math:`E`, which makes
        :math:`b` independent of units, atoms descend

        .. math:: (1 - b) \tfrac12 \|x - D z\|^2 + b\, E\, \ell(W z, y),

        and the head descends :math:`E (\ell(W z, y) + \frac\rho2 \|W\|^2)` whatever :math:`b`.
        ``fitted`` is the record with the head, and ``dictionary`` has the atoms. ``batch`` are
        `Samples`: rows ``x``, their ``mask`` (1 if known), ``target`` and ``weight``.
        ``encoder(dictionary, x, mask=mask)`` returns codes. Their ``penalty`` is not used. Return
        an `Evaluation`: the scalar to differentiate, the objective, and for each sample the loss of
        the reconstruction and the codes.
        """
        b = self.supervision
        task = self.task
        weights, intercept = self.head(fitted.extra)
        z = encoder(dictionary, batch.x, mask=batch.mask)
        # If training began with samples as atoms, as in `partial_fit`, a gradient of the
        # reconstruction through the encoder finds no good atoms. So codes are constants there.
        constant = z.detach()
        decoded = dictionary.synthesis(constant if fitted.from_samples else z)
        residual = decoded - batch.x
        if batch.mask is not None:
            residual = residual * batch.mask
        losses = 0.5 * residual.square().sum(1)
        # The codes here equal z, but have b times its gradient: so atoms descend b times the loss
        # of the task, and the head the whole loss.
        features = self.features(fitted, b * z + (1 - b) * constant)
        task_losses = task.losses(features @ weights.mT + intercept, batch.target)
        # scikit-learn penalises the sum of losses, and here losses are averaged (over ``n_terms``
        # outputs, too): so the penalty is divided by the sum of the weights of all samples
        rho = task.penalty / (self.C * task.total_weight * task.n_terms)
        ridge = 0.5 * rho * weights.square().sum()
        energy = fitted.data_scale or 1.0
        mean = average((1 - b) * losses + energy * task_losses, batch.weight)
        surrogate = mean + energy * ridge
        return Evaluation(surrogate, surrogate.detach(), losses.detach(), constant)

    def code_scale(self, fitted):  # -> float
        """Return the number by which all codes are divided for the linear model on them.

        It is the root of the mean squared norm of a sample over the number of atoms, or 1 if this
        is 0. So the penalty of weights does not depend on the units of the data. In training the
        weights of the linear model belong to the divided codes; ``coef_`` belongs to codes as
        `transform` returns them.
        """
        return ((fitted.data_scale or 0.0) / len(fitted.atoms)) ** 0.5 or 1.0

    def features(self, fitted, z):  # (n, n_components) -> (n, n_sides * n_components)
        """Return the features of the linear model: codes divided by `code_scale`.

        With ``split_sign`` they are the positive parts of all codes, and then the negative parts.
        """
        z = z / self.code_scale(fitted)
        return z if self.n_sides == 1 else split_signs(z)

    def with_head(self, fitted, weights, intercept):  # -> Fitted
        """Return the record with the linear model (head) in ``extra``; undoes `head`.

        ``weights`` are (n_outputs, n_sides * n_components) and ``intercept`` is (n_outputs,).
        """
        n_atoms = len(fitted.atoms)
        weights = weights.unflatten(1, (self.n_sides, n_atoms)).movedim(2, 0)
        head = torch.cat([weights.flatten(1), intercept.expand(n_atoms, -1)], dim=1)
        return replace(fitted, extra=head)

    def head(self, extra):  # -> (n_outputs, n_sides * n_components), (n_outputs,)
        """Return weights and intercepts of the linear model (head), as differentiable tensors.

        ``extra`` is (n_components, n_sides * n_outputs + n_outputs): a row has the weights of an
        atom, and a copy of the intercepts, whose mean over atoms is returned.
        """
        n = self.task.n_outputs
        weights = extra[:, :-n].unflatten(1, (n, self.n_sides))
        return weights.movedim(0, 2).flatten(1), extra[:, -n:].mean(0)

    def network(self, fitted, update=0):
        """Return the gradient rule, the dictionary, and a dict of encoder and penalty.

        ``update`` is the number of the next update, from 0. The rule is that of joint training,
        `rule`, if the record ``fitted`` has a head.
        """
        rule, dictionary, settings = super().network(fitted, update)
        if fitted.extra is not None:
            rule = partial(self.rule, fitted)
        return rule, dictionary, settings

    def replacements(self, fitted, samples):
        """Make atoms of samples, to replace atoms that no code uses; return the rows of parameters.

        ``samples`` are (n, n_features). A row of parameters has the atom, its weights in the linear
        model, which are zero, and a copy of the intercepts, so that decisions do not jump.
        """
        atoms = super().replacements(fitted, samples)
        if fitted.extra is None:
            return atoms
        head = fitted.extra.mean(0).expand(len(atoms), -1).clone()
        head[:, : -self.task.n_outputs] = 0
        return torch.cat([atoms, head], dim=1)

    @torch.no_grad()
    def solve(self, fitted, samples):  # -> Fitted
        """Return the record with the best linear model (head) for its atoms, from scikit-learn.

        ``samples`` are `Samples` of rows less their baseline, with encoded targets.
        """
        _, dictionary, settings = super().network(fitted)
        codes = settings["encoder"](dictionary, samples.x, mask=samples.mask)
        features = self.features(fitted, codes)
        # `fit` has divided the weights of samples by their mean. ``C`` belongs to the weights that
        # the user passed, whose sum is ``total_weight``.
        total_weight = self.task.total_weight
        model = self.task.linear_model(self.C * total_weight / samples.total_weight)
        weight = None if samples.weight is None else to_numpy(samples.weight.double())
        target = to_numpy(samples.target.squeeze(1))
        model.fit(to_numpy(features.double()), target, sample_weight=weight)
        weights = to_tensor(np.atleast_2d(model.coef_)).to(features)
        intercept = to_tensor(np.atleast_1d(model.intercept_)).to(features)
        return self.with_head(fitted, weights, intercept)

    def attributes(self, fitted):
        """Return the fitted attributes of dictionary and linear model as a dict from name to value.

        Weights and intercepts are in the units of ``y`` and of the codes of `transform`.
        """
        task = self.task
        weights, intercept = self.head(fitted.extra)
        mean = to_tensor(task.mean).to(weights)
        scale = to_tensor(task.scale).to(weights)
        coef = to_numpy(weights * (scale[:, None] / self.code_scale(fitted)))
        intercept = to_numpy(mean + scale * intercept)
        if task.is_flat:
            coef = coef[0]
            intercept = float(intercept[0])
        attributes = super().attributes(fitted) | task.attributes
        return attributes | {
            "coef_": coef,
            "intercept_": intercept,
            "_fitted_task": task,
        }


# ------------------------------------------------------------------ the learners


class _TaskPhases(RowPhases):
    """The phases of a fit for a task: as for rows, but training is of atoms and head together."""

    def train(self, fitted):
        """Train atoms and head (a linear model): a phase, which yields a `Fitted` for each epoch.

        Training begins with the best head for the first atoms. Without supervision this phase
        trains only atoms, and `TaskLearner._attributes` fits the head afterwards.
        """
        if self.plan.supervision:
            fitted = self.plan.solve(fitted, self.data.samples.in_units(fitted.units))
        return super().train(fitted)

    def warn_of_rise(self, fitted):
        """Do not warn: training minimises another loss; that of the reconstruction may rise."""


OfRows = ArrayLike | None  # type of arguments with one number for each row


@sets_parameters()
class TaskLearner(DenseLearner):
    """Base of `PUDLEClassifier` and `PUDLERegressor`.

    It finds atoms as a dictionary learner does, and adds the task. A subclass has
    ``_check_target(y, weight, part)``, which returns checked targets and the weights of samples,
    and ``_task(y, weight, part)``, which returns a `Classification` or `Regression`. ``y`` has an
    entry for each sample, ``weight`` is (n_samples,), and ``part`` is True in `partial_fit`.
    """

    def __init__(
        self,
        n_components: int | Literal["auto"] | None = None,
        *,
        alpha: float | Literal["auto"] = "auto",
        supervision: float = 0.5,
        C: float = 1.0,
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
        """Declare the parameters; `sets_parameters` writes the constructor from this signature."""

    @fits()
    def fit(self, X: Any, y: Any = None, sample_weight: OfRows = None) -> Self:
        """Learn a dictionary, and the decisions from its codes.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data. NaN marks missing entries.
        y : array-like or Tensor of shape (n_samples,)
            Labels of a classifier; numbers of a regressor, also of shape (n_samples, n_outputs).
        sample_weight : array-like of shape (n_samples,), default=None
            How often each sample counts, in the dictionary and in the loss of the task. Weights
            equal repetitions, and a weight of zero equals absence.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If data, targets or parameters are invalid, such as a single class, which leaves the
            estimator unchanged; or if training diverges.

        Warns
        -----
        ConvergenceWarning
            If ``max_iter`` is a number, and training ended before the objective had stalled.
        """
        return self._fit(X, y, sample_weight=sample_weight)

    _phases = _TaskPhases

    def _plan(self):  # -> TaskPlan
        return TaskPlan(self)

    def _read(
        self,
        X,
        y,
        *,
        is_fitted=False,
        part=False,
        sample_weight=None,
    ):
        """Check rows and targets, and return them as `Data` with the task.

        ``is_fitted`` says that the learner has a task already, whose classes or scales hold, and
        ``part`` that the caller is `partial_fit`, which does not merge equal rows. The weights of
        the samples are multiplied by class weights, and ``samples.target`` has the encoded targets.
        Data outside memory are read as a whole. ValueError is raised for invalid data.
        """
        name = type(self).__name__
        refuse(
            y is None,
            f"{name} requires y to be passed, but the target y is None. Pass a label or number for "
            "each row.",
        )
        source = open_source(X)
        y = host_array(y)
        X = source.array()
        check_consistent_length(X, y)
        weight = 1.0 if sample_weight is None else sample_weight
        weight = to_numpy(check_sample_weight(weight, source.n_rows))
        y, weight = self._check_target(y, weight, part)
        # Samples of weight 0 count as absent. Their labels are not read, since a label may be
        # unknown to the classifier, and get the target 0.
        used = to_numpy(check_sample_weight(weight, len(y))) > 0
        if is_fitted:
            task = self._fitted_task
        else:
            task = self._task(y[used], weight[used], part)
        encoded = task.encode(y[used])
        target = np.zeros((len(y), encoded.shape[1]))
        target[used] = encoded
        data = super()._read(
            X,
            is_fitted=is_fitted,
            part=part,
            sample_weight=weight,
            target=to_tensor(target),
        )
        total_weight = task.total_weight + data.samples.total_weight
        task = replace(task, total_weight=total_weight)
        # without ``merged_index`` the fit records no outliers: a learner with a task reports none
        return data._replace(task=task, merged_index=None)

    def _begin(self, plan, data):  # -> Fitted
        """Return the `Fitted` that a first `partial_fit` updates: its head (linear model) is zero.

        ``plan`` is the `TaskPlan`, and ``data`` are the `Data` of the call.
        """
        fitted = super()._begin(plan, data)
        shape = len(fitted.atoms), plan.task.n_outputs * (plan.n_sides + 1)
        return replace(fitted, extra=fitted.atoms.new_zeros(shape))

    def _resume(self, plan, data):  # -> Fitted
        """Return the `Fitted` that a later `partial_fit` updates, with the present head.

        The head, weights and intercepts of the linear model, comes from ``coef_`` and
        ``intercept_``, converted to the units of training.
        """
        fitted = super()._resume(plan, data)
        task = plan.task
        coef = np.atleast_2d(self.coef_)
        weights = coef * plan.code_scale(fitted) / task.scale[:, None]
        intercept = (np.atleast_1d(self.intercept_) - task.mean) / task.scale
        atoms = fitted.atoms
        return plan.with_head(
            fitted, to_tensor(weights).to(atoms), to_tensor(intercept).to(atoms)
        )

    def _attributes(self, plan, data, fitted):
        """Return a dict of all fitted attributes, as `DenseLearner._attributes`.

        If the record has no linear model (head), as without supervision, it is fitted here.
        """
        if fitted.extra is None:
            fitted = plan.solve(fitted, data.samples.in_units(fitted.units))
        return super()._attributes(plan, data, fitted)

    def _decisions(self, X):  # -> (n, n_outputs)
        """Return the outputs of the linear model for the user's rows.

        All predictions follow from them. The outputs are codes times weights plus intercepts, in
        the units of ``y``. A classifier of two classes has one output.
        """
        check_is_fitted(self, "coef_")
        codes = to_tensor(self.transform(X))
        coef = to_tensor(np.atleast_2d(self.coef_)).to(codes)
        intercept = to_tensor(np.atleast_1d(self.intercept_)).to(codes)
        with own_precision():
            return codes @ coef.mT + intercept


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
        Number of atoms: by default that of ``dict_init``, or of features; "auto" as in
        `PUDLEDictionaryLearning`.

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
        Iterations of the encoder. None: converged codes. "auto": None, or 100 with ``alpha=0``.

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
        Largest number of epochs, after the search; "auto" is 100. Without supervision no
        training follows a lasso's search.

    tol : float or None, default=1e-4
        Least relative improvement of the objective. None: ``max_iter`` epochs.

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
        Labels of the classes, sorted.

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
        """Declare the parameters; `sets_parameters` writes the constructor from this signature."""

    # ------------------------------------------------------------------ fitting

    def _check_target(self, y, weight, part):  # -> (n,), (n,)
        """Check labels ``y`` (n_samples,), and multiply weights by those of their classes.

        ``weight`` (n_samples,) is changed in place. Labels of samples of weight 0 are not read. In
        `partial_fit` (``part``) labels have to be in ``classes_``.
        """
        y = _check_y(y, estimator=self)
        used = weight > 0
        check_classification_targets(y)
        classes = self.classes_ if part else np.unique(y[used])
        labels = LabelEncoder().fit(classes).transform(y[used])
        if self.class_weight == "balanced":
            # This is the formula of `compute_class_weight`, which takes the weights of samples only
            # from scikit-learn 1.9 on: classes get equal sums of weights.
            totals = np.bincount(labels, weight[used])
            weight[used] *= totals.sum() / (len(classes) * totals[labels])
        else:
            of_classes = compute_class_weight(
                self.class_weight, classes=classes, y=y[used]
            )
            weight[used] *= of_classes[labels]
        return y, weight

    def _task(self, y, weight, part):  # -> Classification
        """Return the task for labels ``y`` (n_samples,), whose weights are positive.

        In `partial_fit` (``part``) the classes are those of the first call, else those in ``y``.

        Raises
        ------
        ValueError
            If there are fewer than two classes.
        """
        classes = self.classes_ if part else np.unique(y)
        refuse(
            len(classes) < 2,
            f"Samples have {len(classes)} class(es), {classes.tolist()!r:.50}. Pass two or more.",
        )
        return Classification(classes)

    @fits()
    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: ArrayLike | None = None,
        sample_weight: OfRows = None,
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
            How often each sample counts, on the same scale in all calls.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            If data or labels are invalid, or have other features or classes than before, which
            leaves the estimator unchanged; or if training diverges.
        """
        refuse(
            self.class_weight == "balanced",
            "class_weight='balanced' needs all labels at once. Pass the weights as a dict.",
        )
        _check_partial_fit_first_call(
            self, None if classes is None else host_array(classes)
        )
        return self._partial_fit(X, y, sample_weight=sample_weight)

    # ------------------------------------------------------------------ decisions

    def decision_function(self, X: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """Return the logits of the classes, from which `predict` and `predict_proba` follow.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, as for `transform`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_classes), or (n_samples,) for two classes
            ``transform(X) @ coef_.T + intercept_``. For two classes a positive number decides for
            the second class, ``classes_[1]``.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the data are invalid.
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
            Labels, as in ``classes_``; a tensor if ``X`` is one and labels are numbers.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the data are invalid.
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
            Probabilities, which sum to 1 in each row.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the data are invalid.
        """
        return like_input(class_decisions(self._decisions(X)).softmax(1), X)

    def predict_log_proba(self, X: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """Return the logarithms of the probabilities.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, as for `transform`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_classes)
            Natural logarithms of the probabilities of `predict_proba`.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the data are invalid.
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
            Share of the samples whose predicted class is right, from 0 to 1.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the data are invalid.
        """
        labels = host_array(y)
        weights = host_array(sample_weight)
        return accuracy_score(
            labels, host_array(self.predict(X)), sample_weight=weights
        )


class PUDLERegressor(MultiOutputMixin, RegressorMixin, TaskLearner):
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
        Number of atoms: by default that of ``dict_init``, or of features; "auto" as in
        `PUDLEDictionaryLearning`.

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

    n_unfoldings, positive_code
        As in `PUDLEClassifier`.

    split_sign : bool, default=True
        Whether the regression, and `transform`, see positive and negative parts of a code as two
        features.

    learning_rate, batch_size, max_iter, tol, n_iter_no_change
        As in `PUDLEClassifier`.

    dict_init, device, random_state, verbose
        As in `PUDLEClassifier`.

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

    # Check that ``y`` are numbers, and return them as float64, with the weights unchanged.
    def _check_target(self, y, weight, part):  # -> (n,) or (n, n_outputs), (n,)
        first = np.asarray(y).flat[:1].tolist()
        refuse(
            any(isinstance(label, str) for label in first),
            f"y has labels of text, such as {first}. Pass numbers, or take PUDLEClassifier, which "
            "predicts labels.",
        )
        numbers = check_array(
            y, ensure_2d=False, dtype=np.float64, input_name="y", estimator=self
        )
        return numbers, weight

    def _task(self, y, weight, part):  # -> Regression
        """Return the task for targets ``y``, with their weighted means and standard deviations."""
        scaler = StandardScaler().fit(y.reshape(len(y), -1), sample_weight=weight)
        return Regression(scaler.mean_, scaler.scale_, y.ndim == 1)

    @fits()
    def partial_fit(self, X: Any, y: Any, sample_weight: OfRows = None) -> Self:
        """Update dictionary and regression by one pass over the data, in their order.

        The first call chooses the initial dictionary from its data without a search, and the mean
        and scale of ``y`` for all calls; the regression starts at this mean. After `fit` it
        continues from the fitted parameters.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, cut into batches of ``batch_size``.
        y : array-like or Tensor of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each sample counts, on the same scale in all calls.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            If data or targets are invalid, or of another shape than before, which leaves the
            estimator unchanged; or if training diverges.
        """
        return self._partial_fit(X, y, sample_weight=sample_weight)

    def predict(self, X: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """Predict the targets of rows.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, as for `transform`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples,) or (n_samples, n_outputs)
            ``transform(X) @ coef_.T + intercept_``, in the units and the dimensions of ``y`` in
            `fit`.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the data are invalid.
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
            The explained fraction of the variance, averaged over outputs; at most 1.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If the data are invalid.
        """
        numbers = host_array(y)
        weights = host_array(sample_weight)
        return r2_score(numbers, host_array(self.predict(X)), sample_weight=weights)
