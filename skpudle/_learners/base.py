"""Learners that are trained by gradients: `fit`, `partial_fit`, and the attributes they leave.

A learner reads its data, and *has* a model (see `skpudle._training.loop`), which it makes of its
parameters and of the data, or of its fitted attributes. The rest is here.
"""

from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.callback import CallbackSupportMixin
from sklearn.utils._param_validation import Interval, StrOptions

from skpudle._data.arrays import make_generator, tensors_of, to_numpy, to_tensor
from skpudle._data.batches import count_batches
from skpudle._learners.coding import choose_coding
from skpudle._learners.counts import objectives
from skpudle._learners.models import Decay
from skpudle._precision import training_mode
from skpudle._training.checkpoint import Recorder
from skpudle._training.fit import FitRun
from skpudle._training.identity import plain, task_of
from skpudle._training.interrupts import Interrupts
from skpudle._training.loop import Diverged, Interrupted, Trainer
from skpudle._training.messages import (
    divergence,
    warn_of_early_end,
    warn_of_rise,
    warn_of_unused,
)
from skpudle._training.stopping import HeldOut, Stopping
from skpudle._training.team import current_team
from skpudle.optimizers import make_optimizer

__all__ = ["Data", "GradientLearner", "train", "update"]

# An atom with its share of the codes, at least one in so many samples as there are atoms, is left
# out by ten times as many with the probability exp(-10).
_IDLE_SAMPLES_PER_ATOM = 10

# The surrogate's matrix of so many atoms takes 128 MiB in float64.
_SURROGATE_ATOMS = 4096

_OF_TRAINING = (
    "optimizer",
    "learning_rate",
    "optimizer_params",
    "batch_size",
    "max_iter",
    "tol",
    "n_iter_no_change",
)


class Data(NamedTuple):
    """What a learner makes of its input.

    Attributes
    ----------
    source : object
        With ``for_training(batch_size, generator, shuffle)``, which returns a source of batches.
    sample : Tensor or iterable of Tensor
        What an initial model is made of, and data are recognised by.
    mask : Tensor or None
        0 where the sample is missing.
    device : torch.device
        Where to compute.
    inputs : dict
        What scikit-learn wants an estimator to know of its input.
    offset : Tensor of shape (n_samples, 1) or None
        What samples add to what a dictionary makes of their codes.
    target : Tensor or None
        What a learner for a task maps the sample to.
    held_out : Batch or None
        Samples that are not trained on, but tell when to stop.
    task : object or None
        What is decided of the target.
    """

    source: object
    sample: object
    mask: torch.Tensor | None
    device: torch.device
    inputs: dict
    offset: torch.Tensor | None = None
    target: torch.Tensor | None = None
    held_out: object = None
    task: object = None


def _stopping(learner, trainer, data, n_updates):
    """Return what tells when training has come to its end."""
    if data.held_out is not None:
        return HeldOut(
            partial(trainer.model.score, data.held_out),
            trainer.optimizer.atoms.detach,
            len(data.sample),
            learner.tol,
            learner.n_iter_no_change,
            n_updates=n_updates,
        )
    return Stopping(
        learner.tol,
        learner.n_iter_no_change,
        first_update=n_updates * 9 // 10 if isinstance(learner.lambda_decay, tuple) else 0,
        n_updates=n_updates,
    )


class GradientLearner(CallbackSupportMixin):
    """A learner whose model is trained by gradients; see the subclasses for its parameters."""

    _parameter_constraints = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "step_size": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "optimizer": [StrOptions({"adam", "sgd", "surrogate"}), type],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "optimizer_params": [dict, None],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left"), None],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    _writes_checkpoints = True
    _default_batch_size = 256

    # What a learner without this parameter does.
    lambda_decay = 1.0

    # ------------------------------------------------------------------ what a learner adds

    def _read(self, X, y, *, known=False):  # -> Data
        """Check parameters and input, of a learner that is known against what it was fitted on."""
        raise NotImplementedError

    def _new_model(self, data, generator, run=None):  # -> model, rows
        """Return the model that data and parameters ask for, and its initial rows.

        What takes long to find belongs to a ``run``, and is not to be looked for without.
        """
        raise NotImplementedError

    def _known_model(self, data, generator):  # -> model, rows
        """Return the model and the rows that the fitted attributes hold."""
        raise NotImplementedError

    def _codes_follow_data(self, model):
        """Return whether the penalty of codes is chosen, not only the search's: of the lasso's."""
        return False

    def _coding_problem(self, model, rows, data, run):
        """Return the problem whose codes are chosen, and its atoms; see `choose_coding`."""
        raise NotImplementedError

    def _coded(self, model, rows, data, run, *, seed):  # -> model
        """Return the model with the codes of `transform`: their penalty, if that follows data."""
        if model.coding is not None or not self._codes_follow_data(model):
            return model
        problem, atoms = self._coding_problem(model, rows, data, run)
        path = choose_coding(problem, atoms, debias=self._given_debias)
        return replace(model, coding=path.summary(problem.unit))

    def _followed(self, model, rows, data):  # -> model
        """Return the model after one pass of `partial_fit` has changed its rows."""
        return model

    def _some_samples(self, data):  # -> Batch
        """Return samples that tell whether training has done any good."""
        raise NotImplementedError

    @property
    def _rule_name(self):
        """What users call the training: its gradient."""
        raise NotImplementedError

    def _trains(self):
        """Return whether there is training, or only a search."""
        return True

    # What makes training follow a search.
    _asks_for_training = "what trains after the search, such as gradient='ae-ls'"

    def _without_effect(self, data):  # yields names, what would use them
        """Yield parameters that have no effect in this fit, and what would use them."""
        if not self._trains():
            yield _OF_TRAINING, self._asks_for_training
        elif self.tol is None:
            yield ("n_iter_no_change",), "a number for tol"

    @property
    def _given_debias(self):  # -> float, or None for one that follows the data
        return None if self.debias == "auto" else float(self.debias)

    # ------------------------------------------------------------------ fitting

    @_fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def fit(self, X, y=None):
        """Learn a dictionary.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data of shape (n_samples, n_features), or what yields rows of them and can be iterated
            again (a list is an array); float32 and float64 are computed in as they are, everything
            else in float64. NaN marks missing entries, which then count for nothing.
        y : None
            Ignored.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data or parameters are unfit, which leaves the estimator as it was; or if
            training diverges twice: it then holds the last finite dictionary.
        TypeError
            If ``X`` can be iterated only once.

        Warns
        -----
        ConvergenceWarning
            If ``max_iter`` is a number, and training ended before the objective stalled; or if
            training raised the objective above that of no dictionary at all.
        RuntimeWarning
            If ``step_size`` is too large for the dictionary.
        UserWarning
            If there are fewer samples than atoms, or features without a known value.
        """
        return train(self, X, y)

    def _fit(self, data, generator, source, n_updates, run):
        """Choose a model, train it, take what it is; return what ended training."""
        model, rows = self._new_model(data, generator, run)
        model = replace(model, decay=Decay.of(self.lambda_decay).over(n_updates))
        trainer = Trainer(
            model,
            self._make_optimizer(model, rows),
            searched=run.losses,
            team=run.team,
            interrupts=run.interrupts,
            at_round=run.recorder.at_round,
        )
        stopping = _stopping(self, trainer, data, n_updates)
        run.recorder.begin(trainer, source, stopping)

        def fitted():
            return self._attributes(trainer, data)

        ended_by = run.train(trainer, source, stopping, fitted)
        found = trainer.optimizer.atoms.detach()
        coded = self._coded(trainer.model, found, data, run, seed=generator.initial_seed())
        if coded is not trainer.model:
            trainer.model = coded
            run.take(trainer, fitted, ended_by)
        model.warn_of_step(rows, found)
        if trainer.n_steps and data.task is None:  # a task has an objective of its own
            how = self._some_samples(data), trainer.n_steps - 1
            ended, baseline = objectives(model, found, *how)
            if not ended <= baseline:
                began, _ = objectives(model, rows, *how)
                warn_of_rise(self, began, ended, baseline, trainer.optimizer)
        return ended_by

    @_fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def partial_fit(self, X, y=None):
        """Update the dictionary by one pass over the data, in their order.

        The first call chooses the initial dictionary and ``alpha_``; the state of the optimiser is
        kept from call to call, also through pickling, and after `fit`, unless you change the
        optimiser, or ``components_`` in shape. ``lambda_decay`` is at its last value throughout.
        Atoms that no code has used for ten
        samples per atom are replaced by the samples that were reconstructed worst.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data as for `fit`, cut into batches of ``batch_size``.
        y : None
            Ignored.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            If the data are unfit or of another number of features than before, which leaves the
            estimator as it was; or if training diverges twice.
        """
        return update(self, X, y)

    def _later_generator(self):
        """Return what draws in a `partial_fit` that is not the first; None if nothing does."""

    # ------------------------------------------------------------------ parameters

    def _fixed_step(self):  # -> float, or None for one that follows the atoms
        return None if self.step_size == "auto" else float(self.step_size)

    def _batch_size(self, n_samples=None):
        """Return the size of a batch; of so many samples in a fit, where their number is known."""
        return self._default_batch_size if self.batch_size == "auto" else int(self.batch_size)

    def _n_updates(self, n_batches, batch_size, data):
        """Return the number of updates that training may take."""
        return self.max_iter * n_batches

    def _make_optimizer(self, model, rows, name=None):
        return make_optimizer(
            name or self._optimizer_for(rows),
            rows,
            model.project,
            learning_rate=self.learning_rate,
            data_scale=model.data_scale,
            curvature=model.curvature,
            params=self.optimizer_params if name is None else None,
            asked=self.optimizer if name is None else "auto",
        )

    def _optimizer_for(self, rows):
        """Return what "auto" stands for: the surrogate as long as its matrix is small."""
        if self.optimizer != "auto":
            return self.optimizer
        return "surrogate" if len(rows) <= _SURROGATE_ATOMS else "adam"

    def _optimizer_name(self, rows):
        """Say whose state it is; the surrogate's is one with all parameters."""
        optimizer = self._optimizer_for(rows)
        params = None if optimizer == "surrogate" else plain(self.optimizer_params)
        return f"{optimizer} {params}"

    # ------------------------------------------------------------------ what is learned

    def _attributes_of(self, model, rows, data, update=0):
        """Return the fitted attributes that do not depend on how training went."""
        return (
            data.inputs
            | model.attributes(rows)
            | {
                "lambda_decay_": model.decay(update),
                "device_": str(data.device),
            }
        )

    def _attributes(self, trainer, data, idle=None):
        """Return the fitted attributes, of arrays and numbers of Python."""
        rows, model = trainer.optimizer.atoms.detach(), trainer.model
        curve = [*trainer.searched, *trainer.loss_curve]
        moments = trainer.optimizer.state().items()
        memory = model.memory() | {
            "data_scale": model.data_scale,
            "optimizer_name": self._optimizer_name(rows),
            "optimizer": {
                name: to_numpy(value) if isinstance(value, torch.Tensor) else value
                for name, value in moments
            },
            "idle": np.zeros(len(rows)) if idle is None else to_numpy(idle),
        }
        return self._attributes_of(model, rows, data, max(trainer.n_steps - 1, 0)) | {
            "n_iter_": max(len(curve), 1),
            "n_steps_": trainer.n_steps,
            "loss_curve_": np.array(curve, dtype=np.float64),
            "_training_state": memory,
            "ended_by_": None,  # but in a `fit` that has ended
            "phases_": None,
        }


def train(learner, X, y, **of_samples):
    """Fit; what else belongs to the samples goes to `_read`."""
    team = current_team()
    with Recorder(learner) as recorder:
        data = learner._read(X, y, **of_samples)
        warn_of_unused(learner, learner._without_effect(data))
        if team is not None:
            team.check_agreement(task_of(learner, "fit", data.sample))
        generator = make_generator(learner.random_state)
        recorder.open(generator, team)
        generator = generator if team is None else team.agree(generator)
        own = generator if team is None else team.own(generator)
        n_samples = len(data.source) if hasattr(data.source, "__len__") else None
        source = data.source.for_training(learner._batch_size(n_samples), own, shuffle=True)
        recorder.recognise(data.source, data.sample, data.mask, seed=generator.initial_seed())
        largest = int if team is None else team.largest
        n_batches = largest(count_batches(source))
        n_updates = largest(learner._n_updates(n_batches, source.batch_size, data))
        given = {"estimator": learner, "X": X, "y": y}
        max_iter = -(-n_updates // n_batches)
        run = FitRun(learner, recorder, team, given=given, max_iter=max_iter)
        with run.interrupts:
            ended_by = learner._fit(data, generator, source, n_updates, run)
        run.end()
    # "auto" promises no other end
    if ended_by == "max_iter" and learner.tol is not None and learner.max_iter != "auto":
        warn_of_early_end(learner)
    return learner


def update(learner, X, y, **of_samples):
    """Go through data once; what else belongs to the samples goes to `_read`."""
    team, interrupts = current_team(), Interrupts()
    known = hasattr(learner, "components_")
    if known:  # scikit-learn's context checks parameters for a first call only
        learner._validate_params()
    data = learner._read(X, y, known=known, **of_samples)
    if team is not None:
        team.check_agreement(task_of(learner, "partial_fit", data.sample))
    if known:
        generator = learner._later_generator()
        model, rows = learner._known_model(data, generator)
    else:
        generator = make_generator(learner.random_state)
        generator = generator if team is None else team.agree(generator)
        model, rows = learner._new_model(data, generator)
    optimizer = learner._make_optimizer(model, rows)
    idle = np.zeros(len(rows))
    if known:
        state = learner._training_state
        same = state["optimizer_name"] == learner._optimizer_name(rows)
        optimizer.resume(rows, tensors_of(state["optimizer"]) if same else {})
        idle = state["idle"] if len(state["idle"]) == len(rows) else idle
    idle = to_tensor(idle)
    trainer = Trainer(
        replace(model, decay=Decay.of(learner.lambda_decay).at_last),
        optimizer,
        n_steps=learner.n_steps_ if known else 0,
        loss_curve=learner.loss_curve_ if known else (),
        team=team,
        interrupts=interrupts,
    )
    source = data.source.for_training(learner._batch_size(), generator, shuffle=False)
    with interrupts:
        try:
            trainer.run_epoch(source, Stopping(None, 1))
        except (Diverged, Interrupted) as error:
            learner._take(learner._attributes(trainer, data, idle))
            if isinstance(error, Diverged):
                raise divergence(learner, error.update, optimizer) from error
            raise
        idle = trainer.idle(idle)
        trainer.replace_unused(source, among=idle >= _IDLE_SAMPLES_PER_ATOM * len(idle))
        trainer.model = learner._followed(trainer.model, trainer.optimizer.atoms.detach(), data)
        learner._take(learner._attributes(trainer, data, idle))
    return learner
