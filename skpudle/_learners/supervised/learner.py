"""Learn a dictionary for a task: read data and targets, and build a joint model."""

from dataclasses import dataclass, fields, replace
from math import sqrt
from numbers import Real
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
)
from torch import Tensor

from skpudle._data.arrays import (
    check_rows,
    host_array,
    input_attributes,
    resolve_device,
    split_missing,
    to_numpy,
    to_tensor,
)
from skpudle._data.batches import Rows, Samples
from skpudle._data.names import explain_names, fit_context
from skpudle._data.sources import Positions, Stream, open_source
from skpudle._data.weights import known_samples
from skpudle._learners.base import Data
from skpudle._learners.dense import DenseLearner
from skpudle._learners.plan import CodePlan, DensePlan
from skpudle._learners.pudle import PUDLEDictionaryLearning, module_of
from skpudle._learners.rows import RowPhases, resume_rows
from skpudle._learners.supervised.model import TaskLayout, TaskModel, joint
from skpudle._learners.supervised.tasks import Head, check_weights, distinct, hold_out
from skpudle._precision import own_precision, training_mode
from skpudle._training.messages import wrong_atoms
from skpudle._training.team import refuse_several
from skpudle.encoding import EncoderModule

_AUTO_EPOCHS = 100

# parameters of a dictionary learner that are passed on
_SHARED = (
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
)


# alpha="auto" of a task, as a share of the search's penalty, since a task needs less sparse codes.
# Of 1, 1/2 and 1/4 it had the smallest errors in cross-validation (128 atoms,
# benchmarks/bench_classifiers.py).
_ALPHA_SHARE = 0.5

# parameters that `transform` reads, in addition to fitted attributes
_OF_THE_ENCODER = "alpha", "n_unfoldings", "positive_code", "split_sign", "device"


@dataclass(frozen=True, kw_only=True)
class TaskPlan(DensePlan):
    """The plan of a fit for a task: a dictionary learner's, and joint training after it."""

    @classmethod
    def of(cls, learner):
        """Return the plan for the parameters of a learner."""
        names = "supervision", "early_stopping", "validation_fraction"
        own = {name: getattr(learner, name) for name in names}
        plan = super().of(learner, alpha_share=_ALPHA_SHARE, **own)
        # Neither codes that predict held-out features nor units of the noise of features suit a
        # task: columns that are nearly sums of columns have a noise near zero, and would dominate
        # the atoms.
        plan = replace(
            plan,
            codes_follow_data=False,
            noise="outliers" if plan.learns_noise else plan.noise,
            asks_for_training="a setting that trains after the search, such as supervision=0.5",
        )
        if not learner.supervision:
            return plan
        return replace(plan, name="supervised", trains=True, auto_epochs=_AUTO_EPOCHS)

    def trains_in_parts(self, learner):
        """Return True: decisions are trained by gradients."""
        return True

    def without_effect(self, data):  # yields names, setting
        """Yield parameters that have no effect in this fit, and a setting that would use them."""
        yield from super().without_effect(data)
        if not self.given.supervision:
            yield ("early_stopping", "validation_fraction"), "a positive supervision"
        elif not self.given.early_stopping:
            yield ("validation_fraction",), "early_stopping=True"


class _TaskPhases(RowPhases):
    """The phases of a fit for a task: training begins with the best head for the atoms."""

    def train(self, fitted):
        """Train atoms and head; without supervision the head is fitted last."""
        learner, data = self.learner, self.data
        if learner.supervision:
            fitted = learner.with_head(fitted, data, learner.best_head(fitted, data))
        return super().train(fitted)


class TaskLearner(DenseLearner):
    """A learner for a task, which `PUDLEClassifier` and `PUDLERegressor` define.

    It finds atoms as a dictionary learner does, and adds the task.
    A subclass has ``_task(y, weights, known, classes)``, which returns the task and its fitted
    attributes, and ``_task_kind``, whose ``check`` reads ``y``.
    """

    _parameter_constraints = {
        name: PUDLEDictionaryLearning._parameter_constraints[name] for name in _SHARED
    } | {
        "supervision": [Interval(Real, 0, 1, closed="both")],
        "C": [Interval(Real, 0, None, closed="neither")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    }

    @explain_names
    def __init__(
        self,
        n_components: int | None = None,
        *,
        alpha: float | Literal["auto"] = "auto",
        supervision: float = 0.5,
        C: float = 0.1,
        n_unfoldings: int | Literal["auto"] | None = "auto",
        positive_code: bool = False,
        split_sign: bool = True,
        learning_rate: float = 1e-3,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 1e-4,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        dict_init: Any = "search",
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.alpha = alpha
        self.supervision = supervision
        self.C = C
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

    @fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def fit(
        self,
        X: ArrayLike | Tensor,
        y: ArrayLike | Tensor | None = None,  # a default, to raise our own error without it
        sample_weight: ArrayLike | None = None,
    ) -> Self:
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
            If data, targets or parameters are unfit, such as a single class, which leaves the
            estimator unchanged; or if training diverges twice.

        Warns
        -----
        ConvergenceWarning
            If ``max_iter`` is a number, and training ended before the objective had stalled.
        """
        return self._fit(X, y, sample_weight=sample_weight)

    def transform(self, X: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """Encode data with the learned dictionary.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data. NaN marks missing entries.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            Codes, in the dtype of ``X``; a tensor, on the same device, if ``X`` is one. With
            ``split_sign=True`` positive parts come first, then negative parts.
        """
        return self._transform(X)

    def fit_transform(
        self, X: Any, y: Any = None, sample_weight: Any = None
    ) -> np.ndarray | Tensor:
        """Learn a dictionary and the decisions from its codes, and return the codes.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            Codes, as of `transform`.
        """
        return self.fit(X, y, sample_weight=sample_weight).transform(X)

    def transform_sparse(self, X: Any) -> csr_array:
        """Encode data part by part, and return only the codes that are not zero.

        Parameters
        ----------
        X : array-like, Tensor, memory map, dataset or iterable of batches
            Data, as for `transform`, of any size.

        Returns
        -------
        scipy.sparse.csr_array of shape (n_samples, n_features_out)
            Codes.
        """
        return self._transform_sparse(X)

    @classmethod
    def from_components(cls, components: Any, **params: Any) -> Self:
        """Refuse atoms alone: decisions are learned from data.

        Parameters
        ----------
        components : array-like of shape (n_components, n_features), Tensor or learner
            Atoms as rows.
        **params : dict
            Parameters of the learner.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError(
            f"{cls.__name__} learns the weights of its decisions from data, and got none. Pass the "
            "atoms as dict_init, and fit."
        )

    def to_module(self) -> EncoderModule:
        """Return the fitted encoder and decoder as a module of torch.

        See `PUDLEDictionaryLearning.to_module`.

        Returns
        -------
        skpudle.encoding.EncoderModule
            ``module(x)`` returns codes, ``module.decode(codes)`` rows, both as tensors.

        Raises
        ------
        ValueError
            If codes are solved for, which is no fixed graph.
        """
        check_is_fitted(self)
        self._validate_params(*_OF_THE_ENCODER)
        return module_of(self, CodePlan.of(self))

    def _plan(self):
        return TaskPlan.of(self)

    def _encoder(self):
        self._validate_params(*_OF_THE_ENCODER)  # they may have been set since `fit`
        options = dict(step_size=self.step_size_, lambda_decay=self.lambda_decay_, warn=True)
        return CodePlan.of(self).encoder.at(self.alpha_, **options)

    def _check_head(self):
        """Raise ValueError unless the weights fit the present number of features of codes."""
        known, now = np.shape(self.coef_)[-1], self._n_features_out
        if known != now:
            raise ValueError(
                f"split_sign={self.split_sign}, but coef_ has weights for {known} features of "
                f"codes where {len(self.components_)} atoms have {now} now. Set split_sign and "
                "components_ as they were, or fit again."
            )

    def _read(self, plan, X, y, *, known=False, part=False, classes=None, sample_weight=None):
        name = type(self).__name__
        if y is None:
            raise ValueError(
                f"{name} requires y to be passed, but the target y is None. Pass one target for "
                "each row, fit(X, y), or learn without targets by PUDLEDictionaryLearning."
            )
        refuse_several(name)
        given = open_source(X, self)
        if isinstance(given, Positions | Stream):
            raise TypeError(
                f"{name} learns from arrays and tensors; pass parts of the data to partial_fit."
            )
        X, device = given.array(), resolve_device(self.device, given.data)
        if known:
            _check_feature_names(self, X, reset=False)
        x = to_tensor(check_rows(X, estimator=self, allow_nan=True), device)
        x, mask = split_missing(x)
        if known:
            _check_n_features(self, X, reset=False)
            if np.shape(self.components_)[1:] != (x.shape[1],):
                raise wrong_atoms(self, x.shape[1])
            dtype = to_tensor(self.components_).dtype
            x, mask = x.to(dtype), None if mask is None else mask.to(dtype)
        y = self._task_kind.check(host_array(y), self)
        check_consistent_length(x, y)
        weights = _check_sample_weight(host_array(sample_weight), y, ensure_non_negative=True)
        check_weights(weights, name)  # scikit-learn accepts a single number
        task, inputs = self._task(y, weights, known, classes)
        target = to_tensor(task.target(y, weights), x.device).to(x.dtype)
        check_weights(target[:, -1], name)
        if not part:
            task.check_target(target, name)
        samples = Samples(x, mask, target=target)
        if self.supervision or sample_weight is not None:
            samples = distinct(samples)
            samples = known_samples(samples) if part else samples
        held_out = None
        if not part and self.early_stopping and self.supervision:
            random_state = check_random_state(self.random_state)
            share, strata = self.validation_fraction, task.strata(samples.target)
            samples, held_out = hold_out(samples, share, random_state, strata)
        trained = samples if self.supervision or part else replace(samples, target=None)
        inputs = {} if known else input_attributes(X) | inputs
        return Data(Rows(trained), samples, device, inputs, held_out, task)

    def _phases(self, plan, data, run):  # -> RowPhases
        return _TaskPhases(self, plan, data, run)

    def _begin(self, plan, data, generator):  # -> Fitted
        fitted = super()._begin(plan, data, generator)
        if hasattr(self, "coef_"):  # earlier data were zero
            return self._with_known_head(fitted, data)
        blank = self._layout(fitted, data).blank_head(fitted.rows)
        return self.with_head(fitted, data, blank)  # later calls may have new targets

    def _resume(self, plan, data):  # -> Fitted, None
        self._check_head()
        state, fitted = self._training_state, resume_rows(plan, data, vars(self))
        weights = state["mean_weight"], state["total_weight"]
        return self._with_known_head(fitted, data, *weights), None

    def _layout(self, fitted, data):  # FittedRows with atoms alone -> TaskLayout
        n_components, n_features = fitted.rows.shape
        unit = sqrt(fitted.model.data_scale / n_components) or 1.0
        return TaskLayout(n_features, data.task.n_outputs, 2 if self.split_sign else 1, unit)

    def _with_known_head(self, fitted, data, *weights):  # -> Fitted
        coef = self.coef_ / self._gains(fitted.noise, self.components_)
        given, unit = data.task.head(coef, self.intercept_), self._layout(fitted, data).unit
        head = Head((given[0] * unit).to(fitted.rows), given[1].to(fitted.rows))
        return self.with_head(fitted, data, head, *weights)

    def with_head(self, fitted, data, head, mean_weight=None, total_weight=0.0):  # -> Fitted
        """Add a head, and the task, to atoms."""
        model, target = fitted.model, data.samples.target
        here = float(data.task.weights(target).sum())
        known = {field.name: getattr(model, field.name) for field in fields(model)}
        model = TaskModel(
            **known | {"rule": joint},
            layout=self._layout(fitted, data),
            task=data.task,
            supervision=float(self.supervision),
            mean_weight=here / len(target) if mean_weight is None else mean_weight,
            total_weight=total_weight + here,
            strength=float(self.C),
        )
        return replace(fitted, model=model, rows=model.layout.pack(fitted.rows, head))

    @torch.no_grad()
    def best_head(self, fitted, data):  # -> Head
        """Return the best head for codes of the atoms."""
        dictionary, encoder, _ = fitted.model.network(fitted.rows, 0)
        samples = fitted.in_units(data.samples)
        codes = encoder(dictionary, samples.x, mask=samples.mask)
        features = self._layout(fitted, data).features(codes)
        return data.task.solve(features, samples.target, self.C)

    def _attributes(self, plan, data, fitted, unused=None):
        if not isinstance(fitted.model, TaskModel):
            fitted = self.with_head(fitted, data, self.best_head(fitted, data))
        course, scores = fitted.training.get("stopping"), None
        if data.held_out is not None and course:
            scores = np.array(course[3])
        attributes = super()._attributes(plan, data, fitted, unused)
        attributes["coef_"] = attributes["coef_"] * self._gains(
            fitted.noise, attributes["components_"]
        )
        return attributes | {"validation_scores_": scores}

    def _gains(self, noise, components):  # -> ndarray of shape (n_sides * n_components,)
        """Return the ratio of codes in units of the noise to the features of `transform`."""
        gains = to_numpy(noise.gains(to_tensor(components)))
        return np.tile(gains, 2 if self.split_sign else 1)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags

    def _decisions(self, X):  # -> (n, n_outputs)
        check_is_fitted(self, "coef_")
        self._check_head()
        codes = to_tensor(self.transform(X))
        coef, intercept = (
            to_tensor(part).to(codes)
            for part in (np.atleast_2d(self.coef_), np.atleast_1d(self.intercept_))
        )
        with own_precision():
            return codes @ coef.mT + intercept
