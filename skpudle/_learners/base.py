"""Learners with a model that phases fit: `fit`, `partial_fit` and their attributes.

`GradientLearner._fit` reads the data, runs the phases and sets the attributes, from top to bottom.
A subclass reads its kind of data, and makes the model (see `skpudle._training.loop`) from data and
parameters, or from fitted attributes.
"""

from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple, Self
from zlib import crc32

import numpy as np
import torch
from sklearn.callback import CallbackSupportMixin
from sklearn.utils._param_validation import Interval, StrOptions

from skpudle._data.arrays import make_generator, tensors_of, to_numpy, to_tensor
from skpudle._data.validation import fit_context
from skpudle._learners.coder import check_loss, check_number
from skpudle._learners.counts import objectives
from skpudle._learners.online import learn_blocks
from skpudle._precision import training_mode
from skpudle._training.fit import FitRun, Interrupts, Training
from skpudle._training.identity import task_of
from skpudle._training.loop import Diverged, Interrupted, Trainer
from skpudle._training.messages import (
    divergence,
    warn_of_early_end,
    warn_of_rise,
    warn_of_unused,
    warn_of_zero_codes,
)
from skpudle._training.state import Outcome
from skpudle._training.stopping import HeldOut, Stopping
from skpudle._training.team import current_team
from skpudle.search._coding import choose_coding, judged_rows

__all__ = ["KEPT", "Data", "GradientLearner", "attributes_of"]

# parameters that attributes depend on, remembered to notice their change
KEPT = "loss", "alpha", "n_components"

# An atom with its share of the codes, at least one in as many samples as there are atoms, stays
# unused in ten times as many samples with the probability exp(-10).
_UNUSED_SAMPLES_PER_ATOM = 10


class Data(NamedTuple):
    """Input that a learner has read.

    Attributes
    ----------
    source : object
        With ``for_training(batch_size, generator, shuffle)``, which returns a source of batches.
    samples : Samples or TrainingImages
        Samples that choose the initial model and identify the data: all, or a sample of all rows.
    device : torch.device
        Device of the fit.
    inputs : dict
        Attributes that scikit-learn asks for: the number of features, and their names.
    held_out : Samples or None
        Samples for early stopping, which are not trained on.
    task : object or None
        The task.
    """

    source: object
    samples: object
    device: torch.device
    inputs: dict
    held_out: object = None
    task: object = None


def _stopping(plan, trainer, data, n_updates):  # -> Stopping
    """Return the rule that ends training."""
    rule = plan.given.tol, plan.given.n_iter_no_change
    if data.held_out is not None:
        score = partial(trainer.model.score, data.held_out)
        samples = trainer.optimizer.atoms.detach, len(data.samples)
        return HeldOut(score, *samples, *rule, n_updates=n_updates)
    annealed = isinstance(plan.given.lambda_decay, tuple)
    return Stopping(*rule, first_update=n_updates * 9 // 10 * annealed, n_updates=n_updates)


def _interruption(outcome):
    """Say what Ctrl-C interrupted."""
    if "encoder" in outcome.later:
        return f"the encoder was interrupted in epoch {outcome.later['encoder']}"
    return f"the search was interrupted after epoch {len(outcome.losses)}"


def attributes_of(model, rows, data, update=0):
    """Return the fitted attributes that do not depend on the course of training."""
    numbers = {"lambda_decay_": model.decay(update), "device_": str(data.device)}
    return data.inputs | model.attributes(rows) | numbers


class GradientLearner(CallbackSupportMixin):
    """A learner whose model is trained by gradients; see the subclasses for its parameters."""

    _parameter_constraints = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "step_size": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "optimizer": [StrOptions({"adam", "sgd", "surrogate"}), callable],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left"), None],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    _writes_checkpoints = True

    # ------------------------------------------------------------------ for subclasses

    def _plan(self):  # -> Plan
        """Return the plan of a fit; raise ValueError if parameters contradict each other."""
        raise NotImplementedError

    def _read(self, plan, X, y, *, known=False, part=False):  # -> Data
        """Check the input, with ``known`` against the fitted attributes.

        ``part`` says that the input is one of several, of `partial_fit`.
        """
        raise NotImplementedError

    def _new_model(self, plan, data, generator, run=None):  # -> model, rows
        """Return the model for data and parameters, and its rows after a search.

        Without a ``run`` nothing is searched: `partial_fit` begins with the initial rows.
        """
        raise NotImplementedError

    def _known_model(self, plan, data):  # -> model, rows, generator
        """Return the model and the rows of the fitted attributes, and a generator or None."""
        raise NotImplementedError

    def _coding_problem(self, outcome, data, run):  # -> Problem or ConvProblem, atoms
        """Return the problem whose codes `choose_coding` judges, and its atoms."""
        raise NotImplementedError

    def _coded(self, plan, outcome, data, interrupts, run=None):  # -> Outcome
        """Choose the penalty of the codes of `transform`, if it follows the data, in a `fit`.

        After Ctrl-C codes keep the penalty of the search, and an encoder is as initialised.
        """
        known = outcome.model.coding is not None or not plan.codes_follow_data
        if run is None or outcome.ended_by == "interrupt" or known:
            return outcome
        problem, atoms = self._coding_problem(outcome, data, run)
        choose = partial(choose_coding, judged_rows(problem), atoms, debias=plan.debias)
        fitted = partial(self._attributes, plan, outcome, data)
        coding = run.make_step("penalty of codes", choose, fitted)
        model = replace(outcome.model, coding=coding.summary(problem.unit))
        return replace(outcome, model=model)

    def _in_units(self, plan, model, data, run=None):  # -> Data
        """Return the data in the units that the model is trained in, also for a run."""
        return data

    def _some_samples(self, data):  # -> Samples
        """Return samples that show whether training has raised the objective."""
        raise NotImplementedError

    # ------------------------------------------------------------------ fitting

    @fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def fit(self, X: Any, y: None = None) -> Self:
        """Learn a dictionary.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data of shape (n_samples, n_features), or an iterable of rows that can be iterated
            again (a list is an array). Computations are in float32 for float32, otherwise in
            float64. NaN marks missing entries, which are ignored.
        y : None
            Ignored.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data or parameters are unfit, which leaves the estimator unchanged; or if
            training diverges twice: it then holds the last finite dictionary.
        TypeError
            If ``X`` can be iterated only once.

        Warns
        -----
        ConvergenceWarning
            If ``max_iter`` is a number, and training ended before the objective had stalled; or if
            training raised the objective above its value without a dictionary.
        RuntimeWarning
            If ``step_size`` is too large for the dictionary.
        UserWarning
            If there are fewer samples than atoms, features without a known value, or if all codes
            are zero.
        """
        return self._fit(X, y)

    def _fit(self, X, y, **of_samples):
        """Read the data, run the phases, set the attributes."""
        with FitRun(self, X, y) as run:
            plan = self._plan()
            data = given = self._read(plan, X, y, **of_samples)
            warn_of_unused(self, plan.without_effect(data))
            run.open(data, plan, partial(self._attributes, plan, data=data))
            with run.interrupts:
                try:
                    model, rows = self._new_model(plan, data, run.generator, run)  # search
                    data = self._in_units(plan, model, data, run)
                    outcome = self._train(plan, model, rows, data, run)
                except (Diverged, Interrupted) as error:
                    ended_by = "divergence" if isinstance(error, Diverged) else "interrupt"
                    self._leave(plan, error, data, run.interrupts, ended_by=ended_by)
                    run.recorder.end(error.trainer)
                    raise
                recorder = run.recorder
                try:  # penalty, learned encoder
                    known = recorder.is_active and recorder.restore_end(outcome)
                    outcome = known or self._coded(plan, outcome, data, run.interrupts, run)
                except KeyboardInterrupt:  # a second one
                    outcome = replace(outcome, ended_by="interrupt")
                    raise
                finally:
                    self._take(self._attributes(plan, outcome, data))
                if outcome.ended_by == "interrupt":
                    raise KeyboardInterrupt(_interruption(outcome))
                if recorder.is_active:
                    recorder.complete(outcome)
                has_rate = plan.optimizer_for(len(rows)) != "surrogate"
                outcome.model.warn_of_step(rows, outcome.rows)
                if outcome.n_steps and data.task is None:  # a task has an objective of its own
                    how = self._some_samples(data), outcome.n_steps - 1
                    ended, baseline = objectives(outcome.model, outcome.rows, *how)
                    if not ended <= baseline:
                        began, _ = objectives(outcome.model, rows, *how)
                        warn_of_rise(self, began, ended, baseline, has_rate=has_rate)
                if not any(run.team.any(self._has_codes(given))):
                    warn_of_zero_codes(self)
        self.fit_seconds_ = run.seconds
        # "auto" promises no other end
        if outcome.ended_by == "max_iter" and self.tol is not None and self.max_iter != "auto":
            warn_of_early_end(self, has_rate=has_rate)
        return self

    def _train(self, plan, model, rows, data, run):  # -> Outcome
        """Train from the given rows; without training return them."""
        model = replace(model, decay=plan.decay.over(run.n_updates))
        ended_by = "callback" if run.search_was_stopped else "search"
        if run.interrupts.pending or not run.trains:
            ended_by = "interrupt" if run.interrupts.pending else ended_by
            return Outcome(model, model.project(rows.contiguous()), run.losses, ended_by=ended_by)
        trainer = Trainer(
            model,
            plan.make_optimizer(model, rows),
            searched=run.losses,
            team=run.team,
            interrupts=run.interrupts,
            at_round=run.recorder.at_round if run.recorder.is_active else None,
        )
        stopping = _stopping(plan, trainer, data, run.n_updates)
        phase = Training(
            plan.name,
            trainer,
            run.source,
            stopping,
            run.max_iter,
            lambda: self._attributes(plan, trainer.outcome(), data),
        )
        ended_by = run.train(phase) or ("max_iter" if run.n_updates else ended_by)
        return replace(trainer.outcome(), ended_by=ended_by)

    def _leave(self, plan, error, data, interrupts, unused=None, ended_by=None):
        """Take the attributes of training that diverged or was interrupted; raise a divergence."""
        outcome = replace(error.trainer.outcome(), ended_by=ended_by)
        outcome = self._coded(plan, outcome, data, interrupts)
        self._take(self._attributes(plan, outcome, data, unused))
        if isinstance(error, Diverged):
            raise divergence(self, error.update, error.trainer.optimizer) from error

    @fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def partial_fit(self, X: Any, y: None = None) -> Self:
        """Update the dictionary by one pass over the data, in their order.

        The first call with data that are not all zero chooses the initial dictionary and
        ``alpha_``. A penalty that you set later, as a number, takes its place. The state of the
        optimiser persists from call to call, also through pickling, and after `fit`, unless you
        change the optimiser, or put other atoms into ``components_``, from which training goes on.
        ``lambda_decay`` has its last value throughout.
        Atoms that no code has used for ten samples per atom are replaced by the samples that were
        reconstructed worst.

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
            If the data are unfit or have another number of features than before, or if ``loss``, or
            ``n_components``, was set to another value since, which leaves the estimator unchanged;
            or if training diverges twice.
        """
        return self._partial_fit(X, y)

    def _partial_fit(self, X, y, **of_samples):
        """Read the data, train through them once, set the attributes."""
        team, interrupts = current_team(), Interrupts()
        known = hasattr(self, "components_")
        before = self._training_state if known else {}
        if known:  # scikit-learn's context checks parameters for a first call only
            self._validate_params()
            check_loss(self, before)
            check_number(self, before)
        plan = self._plan()
        data = self._read(plan, X, y, known=known, part=True, **of_samples)
        team.check_agreement(lambda: task_of(self, "partial_fit", data))
        replaced = known and before["atoms"] != crc32(np.ascontiguousarray(self.components_))
        if known and (replaced or not before["is_open"]):
            model, rows, generator = self._known_model(plan, data)
        else:  # at first, and after data that were all zero
            before = {}
            generator = team.agree(make_generator(self.random_state))
            model, rows = self._new_model(plan, data, generator)
        data = self._in_units(plan, model, data)
        if not plan.trains_in_parts(self):
            options = dict(losses=self.loss_curve_) if known else {}
            if before:
                n_seen = getattr(self, "n_samples_seen_", 0)
                options |= dict(n_seen=n_seen, replaced=replaced)
            with interrupts:
                learned, stopped = learn_blocks(model, rows, data, team, interrupts, **options)
                outcome = replace(learned, n_steps=self.n_steps_ if known else 0)
                self._take(self._attributes(plan, outcome, data, unused=()))
                self._training_state["is_open"] &= not before
            if stopped:
                raise KeyboardInterrupt("partial_fit was interrupted after a block of rows")
            return self
        optimizer = plan.make_optimizer(model, rows)
        unused = np.zeros(len(rows))
        if before and not replaced:
            same = before["optimizer_name"] == plan.optimizer_name(len(rows))
            optimizer.resume(rows, tensors_of(before["optimizer"]) if same else {})
            unused = before["idle"]
        unused = to_tensor(unused)
        trainer = Trainer(
            replace(model, decay=plan.decay.at_last),
            optimizer,
            n_steps=self.n_steps_ if known else 0,
            loss_curve=self.loss_curve_ if known else (),
            team=team,
            interrupts=interrupts,
        )
        source = data.source.for_training(plan.batch_size(), generator, shuffle=False)
        with interrupts:
            try:
                trainer.run_epoch(source, Stopping(None, 1))
            except (Diverged, Interrupted) as error:
                self._leave(plan, error, data, interrupts, unused)
                raise
            unused = trainer.idle(unused)
            often = unused >= _UNUSED_SAMPLES_PER_ATOM * len(unused)
            trainer.replace_unused(source, among=often)
            outcome = self._coded(plan, trainer.outcome(), data, interrupts)
            self._take(self._attributes(plan, outcome, data, unused))
            self._training_state["is_open"] &= not before
        return self

    def _attributes(self, plan, outcome, data, unused=None):
        """Return the fitted attributes, arrays and numbers of Python."""
        rows, model, phases = outcome.rows, outcome.model, None
        curve = [*outcome.losses, *outcome.loss_curve]
        if outcome.ended_by is not None:  # after a `fit`
            epochs = {"search": len(outcome.losses), plan.name: len(outcome.loss_curve)}
            phases = {name: n for name, n in (epochs | outcome.later).items() if n}
        fitted = attributes_of(model, rows, data, max(outcome.n_steps - 1, 0))
        memory = model.memory() | {
            "atoms": crc32(np.ascontiguousarray(fitted["components_"])),
            "given": {name: getattr(plan.given, name) for name in KEPT},
            "data_scale": model.data_scale,
            "is_open": model.data_scale == 0,  # whether atoms and penalty wait for data
            "optimizer_name": plan.optimizer_name(len(rows)) if outcome.moments else None,
            "optimizer": {
                name: to_numpy(value) if isinstance(value, torch.Tensor) else value
                for name, value in outcome.moments.items()
            },
            "idle": to_numpy(unused) if unused is not None and len(unused) else np.zeros(len(rows)),
        }
        n_seen = None  # without data
        if data.source is not None:
            n_seen = getattr(data.source, "n_seen", len(data.samples))
            n_seen += 0 if unused is None else getattr(self, "n_samples_seen_", 0)
        return fitted | {
            "n_iter_": max(len(curve), 1),
            "n_steps_": outcome.n_steps,
            "n_samples_seen_": n_seen,
            "loss_curve_": np.array(curve, dtype=np.float64),
            "_training_state": memory,
            "ended_by_": outcome.ended_by,
            "phases_": phases,
            "fit_seconds_": None,  # of a fit that ends, after its hooks
        }
