"""Learn a dictionary for a task: read data and targets, and build a joint model."""

from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from skpudle._data.arrays import host_array, to_numpy, to_tensor
from skpudle._data.batches import check_sample_weight
from skpudle._data.sources import open_source
from skpudle._fit.encoders import refuse
from skpudle._fit.plan import Plan
from skpudle._fit.team import refuse_several
from skpudle._learners.parameters import fits, sets_parameters
from skpudle._learners.rows import DenseLearner, RowPhases
from skpudle._learners.supervised.tasks import TaskModel
from skpudle._precision import own_precision


class TaskPlan(Plan):
    """The plan of a fit for a task: a dictionary learner's, and joint training after it."""

    # alpha="auto" of a task, as a share of the search's penalty, since a task needs less sparse
    # codes. Of 1, 1/2 and 1/4 it had the smallest errors in cross-validation (128 atoms,
    # benchmarks/bench_classifiers.py).
    alpha_share = 0.5

    def __init__(self, learner):
        most = {"max_iter": 100} if learner.supervision and learner.max_iter == "auto" else {}
        super().__init__(learner, **most)
        # Neither codes that predict held-out features nor units of the noise of features suit a
        # task: columns that are nearly sums of columns have a noise near zero, and would dominate
        # the atoms.
        self.noise = "outliers" if self.learns_noise else self.noise
        self.codes_follow_data, self.trains = False, self.trains or learner.supervision > 0
        self.name = "supervised" if learner.supervision else self.gradient

    def trains_in_parts(self, learner):
        """Return True: decisions are trained by gradients."""
        return True


def add_head(learner, fitted, data, head=None):  # -> Fitted
    """Add a head to atoms, by default the best for them, and the task."""
    of_task = dict(task=data.task, supervision=float(learner.supervision), C=float(learner.C))
    model = TaskModel(**vars(fitted.model), **of_task, n_sides=1 + learner.split_sign)
    head = model.solve(fitted.rows, fitted.in_units(data.samples)) if head is None else head
    return replace(fitted, model=model, rows=model.join(fitted.rows, *head))


class _TaskPhases(RowPhases):
    """The phases of a fit for a task: training begins with the best head for the atoms."""

    def train(self, fitted):
        """Train atoms and head; without supervision the head is fitted last."""
        if self.run.learner.supervision:
            atoms = fitted.rows[:, : self.data.samples.x.shape[1]]  # a checkpoint's rows have heads
            fitted = replace(fitted, rows=atoms)
            fitted = add_head(self.run.learner, fitted, self.data)
        return super().train(fitted)


OfRows = ArrayLike | None  # one number for each row


@sets_parameters()
class TaskLearner(DenseLearner):
    """A learner for a task, which `PUDLEClassifier` and `PUDLERegressor` define.

    It finds atoms as a dictionary learner does, and adds the task. A subclass has
    ``_check_target(y)``, which checks targets, and ``_task(y, weight, part)``, which returns the
    task.
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
        """Set the parameters."""

    @fits()
    def fit(self, X: Any, y: Any, sample_weight: OfRows = None) -> Self:
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

    _phases = _TaskPhases

    def _plan(self):
        return TaskPlan(self)

    def _class_weights(self, y, weight, part):  # -> (n,)
        """Return the factors of the weights of samples by their targets."""
        return np.ones(len(y))

    def _read(self, plan, X, y, *, known=False, part=False, sample_weight=None):
        name = type(self).__name__
        refuse(y is None, f"{name} requires y to be passed, but the target y is None.")
        refuse_several(name)
        X, y = open_source(X, self).array(), self._check_target(host_array(y))
        check_consistent_length(X, y)
        given = 1.0 if sample_weight is None else sample_weight
        weight = to_numpy(check_sample_weight(given, len(y)))
        used = weight > 0
        weight[used] *= self._class_weights(y[used], weight[used], part)
        used = to_numpy(check_sample_weight(weight, len(y))) > 0  # the rest may have other labels
        task = self._fitted_task if known else self._task(y[used], weight[used], part)
        encoded = task.encode(y[used])
        target = np.zeros((len(y), encoded.shape[1]))
        target[used] = encoded
        of_rows = dict(sample_weight=weight, target=to_tensor(target))
        data = super()._read(plan, X, known=known, part=part, **of_rows)
        samples = data.source
        task = replace(task, total_weight=task.total_weight + samples.total_weight)
        return data._replace(source=samples, samples=samples, task=task, places=None)

    def _begin(self, plan, data):  # -> Fitted
        fitted = super()._begin(plan, data)
        n_weights = len(fitted.rows) * (1 + self.split_sign)
        blank = fitted.rows.new_zeros(data.task.n_outputs, n_weights + 1)
        return add_head(self, fitted, data, (blank[:, 1:], blank[:, 0]))

    def _resume(self, plan, data):  # -> Fitted
        fitted, task = super()._resume(plan, data), data.task
        unit = TaskModel.unit(fitted.model, len(fitted.rows))
        weights = np.atleast_2d(self.coef_) * unit / task.scale[:, None]
        intercept = (np.atleast_1d(self.intercept_) - task.mean) / task.scale
        head = [to_tensor(part).to(fitted.rows) for part in (weights, intercept)]
        return add_head(self, fitted, data, head)

    def _attributes(self, plan, data, fitted):
        if not isinstance(fitted.model, TaskModel):
            fitted = add_head(self, fitted, data)
        return super()._attributes(plan, data, fitted)

    def _decisions(self, X):  # -> (n, n_outputs)
        check_is_fitted(self, "coef_")
        codes, head = to_tensor(self.transform(X)), (self.coef_, self.intercept_)
        coef, intercept = (to_tensor(np.atleast_1d(part)).to(codes) for part in head)
        with own_precision():
            return codes @ torch.atleast_2d(coef).mT + intercept
