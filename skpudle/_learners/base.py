"""Learners with a model that phases fit: `fit`, `partial_fit` and their attributes.

`GradientLearner._fit` reads the data, runs the phases and sets the attributes, from top to bottom.
A subclass reads its kind of data, and makes the model (see `skpudle._fit.train`) from data and
parameters, or from fitted attributes.
"""

from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from sklearn.callback import CallbackSupportMixin
from sklearn.utils._param_validation import Interval, StrOptions

from skpudle._data.arrays import make_generator, tensors_of, to_numpy, to_tensor
from skpudle._data.weights import scale_weights
from skpudle._fit.checkpoint import task_of
from skpudle._fit.messages import (
    divergence,
    warn_of_early_end,
    warn_of_rise,
    warn_of_unused,
    warn_of_zero_codes,
)
from skpudle._fit.run import Interrupts, Run
from skpudle._fit.team import refuse_several
from skpudle._fit.train import Diverged, Stopping, Trainer
from skpudle._learners.coder import check_loss, check_number
from skpudle._learners.online import learn_blocks

# parameters that attributes depend on; a fit remembers them to detect changes
KEPT = "loss", "alpha", "n_components"

# Samples per atom after which an unused atom is replaced. An atom that one in n_components samples
# uses stays unused for 10 times n_components samples with the probability exp(-10).
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
    task : object or None
        The task.
    places : Tensor of shape (n_rows,) or None
        For each row of the input the place of its copy among ``samples``, -1 for none.
    n_given : int or None
        Number of samples in memory, a sum of weights; None if the source knows its own.
    """

    source: object
    samples: object
    device: torch.device
    inputs: dict
    task: object = None
    places: object = None
    n_given: int | None = None

    def scaled(self, total):  # -> Data
        """Return the data with weights of mean 1 over all processes, or without equal weights."""
        source, samples = self.source, self.samples
        weight, mean = scale_weights(source.weight, source.n_samples, total)
        if mean is None:
            return self
        if source is samples:
            samples = replace(samples, weight=weight)
            return self._replace(source=samples, samples=samples)
        source.weight = weight
        weight = None if weight is None else samples.weigh(torch.ones_like(samples.x[:, 0])) / mean
        return self._replace(samples=replace(samples, weight=weight))


def _interruption(fitted):
    """Return the message of an interrupted fit."""
    if "encoder" in fitted.later:
        return f"the encoder was interrupted in epoch {fitted.later['encoder']}"
    if fitted.n_steps:
        return f"training was interrupted after update {fitted.n_steps}"
    return f"the search was interrupted after epoch {len(fitted.losses)}"


@torch.no_grad()
def _objectives(model, rows, batch, update):  # -> float, float
    """Return the objective of a model's rule, with its dictionary and with the baseline alone.

    The baseline has no codes and, where the loss has an intercept, the mean rates of the batch.

    Parameters
    ----------
    model : object
        The model, see `skpudle._fit.train`.
    rows : Tensor of shape (n_rows, n_parameters)
        Its rows of parameters.
    batch : Samples
        Samples.
    update : int
        The update, counted from 0, with its decay.
    """
    loss, x = model.encoder.loss, batch.x
    dictionary, encoder, penalty = model.network(rows, update)
    fitted = model.rule(dictionary, batch, encoder=encoder, penalty=penalty)
    # The objective less the loss is the penalty, if the rule has one; an intercept has no penalty.
    n = batch.total_weight
    left = batch.weigh(fitted.losses).sum() / n
    penalties = fitted.objective - left
    penalties = (penalties - penalty * model.n_constant_codes).clamp_min(0)
    known = batch.weigh(torch.ones_like(x) if batch.mask is None else batch.mask)
    natural = x.new_zeros(())
    if loss.has_baseline:
        rest = [i for i in range(x.ndim) if i != 1]
        size = known if batch.offset is None else known * batch.offset.exp()
        rates = ((known * x).sum(rest, keepdim=True) + 0.5) / (size.sum(rest, keepdim=True) + 1)
        natural = loss.natural(rates)
        natural = natural if batch.offset is None else natural + batch.offset
    baseline = (known * loss.half_deviance(natural, x)).sum() / n
    return float(left + penalties), float(baseline)


def _warn_of_training(learner, fitted, begun, samples, *, has_rate):
    """Warn if training raised the objective above its value without a dictionary."""
    how = samples, fitted.n_steps - 1
    ended, baseline = _objectives(fitted.model, fitted.rows, *how)
    if not ended <= baseline:
        began, _ = _objectives(fitted.model, begun.rows, *how)
        warn_of_rise(learner, began, ended, baseline, has_rate=has_rate)


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

        ``part`` is whether the input is one of several parts, of `partial_fit`.
        """
        raise NotImplementedError

    def _phases(self, plan, data, run):  # -> Phases
        """Return the phases of a fit."""
        raise NotImplementedError

    def _begin(self, plan, data, generator):  # -> Fitted
        """Return the record before the first `partial_fit`, with initial atoms."""
        raise NotImplementedError

    def _resume(self, plan, data):  # -> Fitted, generator
        """Return the record of the fitted attributes, and a generator or None."""
        raise NotImplementedError

    def _finish_part(self, plan, fitted, data, interrupts):  # -> Fitted
        """Return the record after training in a `partial_fit`."""
        return fitted

    def _some_samples(self, data):  # -> Samples
        """Return samples that show whether training has raised the objective."""
        raise NotImplementedError

    # ------------------------------------------------------------------ fitting

    def _fit(self, X, y, **of_samples):
        """Read the data, run the phases, set the attributes."""
        with Run(self, X, y) as run:
            plan = self._plan()
            data = self._read(plan, X, y, **of_samples)
            warn_of_unused(self, plan.without_effect(data))
            run.team.check_same(partial(task_of, self, data))
            if plan.encoder.loss.is_quadratic:  # weights of counts are numbers of events
                data = data.scaled(run.team.sum)
            run.open(data, plan)
            attributes_of = partial(self._attributes, plan, data)
            with run.interrupts:
                phases = self._phases(plan, data, run)
                try:
                    fitted = run.through(phases.table(), phases.first(), attributes_of)
                except Diverged as error:
                    found = replace(error.trainer.fitted, ended_by="divergence")
                    self._take(attributes_of(found))
                    raise divergence(self, error.update, error.trainer.optimizer) from error
                except KeyboardInterrupt:  # a second Ctrl-C
                    if run.record is not None:
                        self._take(attributes_of(replace(run.record, ended_by="interrupt")))
                    raise
                pressed, ended_by = run.interrupts.pending, fitted.ended_by or "search"
                fitted = replace(fitted, ended_by="interrupt" if pressed else ended_by)
                self._take(attributes_of(fitted))
                if pressed:
                    raise KeyboardInterrupt(_interruption(fitted))
                begun = phases.begun or fitted
                has_rate = plan.optimizer_for(len(fitted.rows)) != "surrogate"
                fitted.model.warn_of_step(begun.rows, fitted.rows)
                if fitted.n_steps and data.task is None:  # a task has an objective of its own
                    samples = fitted.in_units(self._some_samples(data))
                    _warn_of_training(self, fitted, begun, samples, has_rate=has_rate)
                if not any(run.team.any(self._has_codes(data))):
                    warn_of_zero_codes(self)
        self.fit_seconds_ = run.seconds
        # with "auto" the limit is the expected end
        if fitted.ended_by == "max_iter" and self.tol is not None and self.max_iter != "auto":
            warn_of_early_end(self, has_rate=has_rate)
        return self

    def _partial_fit(self, X, y, **of_samples):
        """Read the data, train through them once, set the attributes."""
        refuse_several("partial_fit")
        interrupts = Interrupts()
        known = hasattr(self, "components_")
        before = self._training_state if known else {}
        if known:  # scikit-learn's context checks parameters for a first call only
            self._validate_params()
            check_loss(self, before)
            check_number(self, before)
        plan = self._plan()
        data = self._read(plan, X, y, known=known, part=True, **of_samples)
        replaced = known and before["atoms"] != crc32(np.ascontiguousarray(self.components_))
        if known and (replaced or not before["is_open"]):
            fitted, generator = self._resume(plan, data)
        else:  # the first call, or only zeros before
            before = {}
            generator = make_generator(self.random_state)
            fitted = self._begin(plan, data, generator)
        if known:
            fitted = replace(fitted, n_steps=self.n_steps_, loss_curve=tuple(self.loss_curve_))
        learn = self._train_part if plan.trains_in_parts(self) else self._alternate
        with interrupts:
            learn(plan, fitted, data, generator, interrupts, before=before, replaced=replaced)
        return self

    def _alternate(self, plan, fitted, data, generator, interrupts, *, before, replaced):
        """Alternate between codes of a block of rows and atoms, block by block."""
        n_seen = getattr(self, "n_samples_seen_", 0) if before else 0
        options = dict(n_seen=n_seen, replaced=bool(before) and replaced)
        found, stopped = learn_blocks(fitted, data.source, interrupts, **options)
        self._take_part(self._attributes(plan, data, found, unused=()), before)
        if stopped:
            raise KeyboardInterrupt("partial_fit was interrupted after a block of rows")

    def _train_part(self, plan, fitted, data, generator, interrupts, *, before, replaced):
        """Train by gradients, and replace atoms that no code has used for long."""
        rows = fitted.rows
        optimizer = plan.make_optimizer(fitted.model, rows)
        unused = np.zeros(len(rows))
        if before and not replaced:
            same = before["optimizer_name"] == plan.optimizer_name(len(rows))
            optimizer.resume(rows, tensors_of(before["optimizer"]) if same else {})
            unused = before["idle"]
        unused = to_tensor(unused)
        fitted = fitted.with_model(decay=plan.decay.at_last)
        trainer = Trainer(fitted, optimizer, interrupts=interrupts)
        source = data.source.for_training(plan.batch_size(), generator, shuffle=False)
        source = source.changed(fitted.in_units)
        try:
            trainer.run_epoch(source, Stopping(None, 1))
        except Diverged as error:
            found = self._finish_part(plan, trainer.fitted, data, interrupts)
            self._take(self._attributes(plan, data, found, unused))
            raise divergence(self, error.update, error.trainer.optimizer) from error
        if interrupts.pending:
            found = self._finish_part(plan, trainer.fitted, data, interrupts)
            self._take(self._attributes(plan, data, found, unused))
            raise KeyboardInterrupt(_interruption(found))
        unused = trainer.idle(unused)
        often = unused >= _UNUSED_SAMPLES_PER_ATOM * len(unused)
        trainer.replace_unused(source, among=often)
        found = self._finish_part(plan, trainer.fitted, data, interrupts)
        self._take_part(self._attributes(plan, data, found, unused), before)

    def _take_part(self, attributes, before):
        self._take(attributes)
        self._training_state["is_open"] &= not before

    def _take_coding(self, coding, unit):
        """Take a penalty of codes and the share of its bias to remove, for `partial_fit` too."""
        self.alpha_, self.debias_ = coding.alpha * unit, coding.debias
        chosen = self.alpha_, self.debias_, getattr(self, "noise_std_", None)
        self._training_state = self._training_state | {"coding": chosen, "is_open": False}
        return self

    def _attributes(self, plan, data, fitted, unused=None):
        """Return the fitted attributes, arrays and numbers of Python."""
        rows, phases = fitted.rows, None
        curve = [*fitted.losses, *fitted.loss_curve]
        if fitted.ended_by is not None:  # the end of a `fit`
            epochs = {"search": len(fitted.losses), plan.name: len(fitted.loss_curve)}
            phases = {name: n for name, n in (epochs | fitted.later).items() if n}
        attributes = data.inputs | fitted.attributes()
        memory = fitted.memory() | {
            "atoms": crc32(np.ascontiguousarray(attributes["components_"])),
            "given": {name: getattr(plan.given, name) for name in KEPT},
            "data_scale": fitted.model.data_scale,
            "is_open": fitted.model.data_scale == 0,  # whether atoms and penalty wait for data
            "optimizer_name": plan.optimizer_name(len(rows)) if fitted.moments else None,
            "optimizer": {
                name: to_numpy(value) if isinstance(value, torch.Tensor) else value
                for name, value in fitted.moments.items()
            },
            "idle": to_numpy(unused) if unused is not None and len(unused) else np.zeros(len(rows)),
        }
        n_seen = None  # unknown without data
        if data.source is not None:
            n_seen = data.source.n_seen if data.n_given is None else data.n_given
            n_seen += 0 if unused is None else getattr(self, "n_samples_seen_", 0)
        return attributes | {
            "lambda_decay_": fitted.model.decay(max(fitted.n_steps - 1, 0)),
            "device_": str(data.device),
            "n_iter_": max(len(curve), 1),
            "n_steps_": fitted.n_steps,
            "n_samples_seen_": n_seen,
            "loss_curve_": np.array(curve, dtype=np.float64),
            "_training_state": memory,
            "ended_by_": fitted.ended_by,
            "phases_": phases,
            "fit_seconds_": None,  # set at the end of a fit, after its hooks
        }
