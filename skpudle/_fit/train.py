"""Train a model by gradients, epoch by epoch.

`Trainer` turns batches into updates of the rows of parameters, which are the atoms and, for some
models, further parameters. It knows neither estimators nor kinds of sources. A round is up to ten
updates. After a round the host waits for the device once, reads whether training is still finite,
and decides by `Stopping` whether to stop.

If training diverges in a round, it returns to the last parameters that were finite, and goes on
with half the learning rate. `Trainer.state` returns the state between two epochs, from which
training resumes with the same bits.

A model has

* ``with_rows(fitted, rows)``: a record with these rows of parameters;
* ``network(fitted, update)``: a rule, as of `skpudle._gradients.GRADIENT_RULES`, the dictionary of
  the record, and a dict with its encoder and the penalty, in that update, counted from 0;
* ``replacements(fitted, samples)``: rows for samples that become atoms, next to the present ones.
"""

from dataclasses import replace
from itertools import chain, islice, repeat
from math import inf
from types import SimpleNamespace

import torch

from skpudle._compilation import threads_for
from skpudle._data.arrays import with_gaps
from skpudle._data.batches import Samples
from skpudle._fit.team import ALONE
from skpudle._gradients import differentiate

_UNDISTURBED = SimpleNamespace(pending=False)
# Attributes of `Trainer` that `Trainer.state` stores, beside the atoms and the states of the
# optimiser, the stopping rule and the source.
_OF_TRAINER = "n_steps", "loss_curve", "epoch", "halved", "finite"


class Diverged(ValueError):
    """Training diverged again after the learning rate was halved; ``fitted`` is the last record."""

    def __init__(self, update, fitted=None):
        super().__init__(
            "Training diverged, also with smaller steps: it stopped being finite at update "
            f"{update}. Pass a smaller step (learning_rate, step_size, or the rate of an optimizer "
            "of your own), or scale the data."
        )
        self.fitted = fitted


# ---------------------------------------------------------------------------- rules that end it


class Stopping:
    """Stop when the smoothed objective has not improved for some checks in a row.

    Parameters
    ----------
    tol : float or None
        Relative improvement that counts; None never stops.
    patience : int
        Number of checks without improvement.
    first_update : int, default=0
        Updates before this one do not count.
    n_updates : int, default=inf
        Stop after this number in any case, in the middle of an epoch if need be.
    n_judged : int, default=1
        Least number of new samples in a check.
    """

    def __init__(self, tol, patience, first_update=0, n_updates=inf, n_judged=1):
        self.tol, self.patience, self.first_update = tol, patience, first_update
        self.n_updates, self.n_judged = n_updates, n_judged
        # Number of checks in a row without an improvement; smoothed objective; its least value; sum
        # of objectives, and number of samples, since the last check.
        self.course = 0, None, None, 0.0, 0

    @property
    def is_over(self):
        """Whether the objective has stalled for long enough."""
        return self.tol is not None and self.course[0] >= self.patience

    def check(self, total, n_samples, update):
        """Note the objective of new samples, summed over them; return whether to stop."""
        if self.tol is None or update < self.first_update:
            return False
        stalled, smoothed, best, *waiting = self.course
        total, n_samples = total + waiting[0], n_samples + waiting[1]
        if n_samples < self.n_judged:
            self.course = stalled, smoothed, best, total, n_samples
            return False
        objective = total / n_samples
        # Each check averages the objective with the smoothed objective before. After a few checks
        # this lowers the variance that comes from the choice of samples to a third.
        smoothed = objective if smoothed is None else (smoothed + objective) / 2
        stalled = 0 if best is None or smoothed < best - self.tol * abs(best) else stalled + 1
        best = smoothed if best is None else min(best, smoothed)
        self.course = stalled, smoothed, best, 0.0, 0
        return self.is_over


def _worst(losses, samples, n):  # -> (k,), (k, ...)
    """Return the n largest losses, and their samples with NaN for missing entries."""
    losses, order = losses.topk(min(n, len(losses)))
    chosen = samples[order]
    return losses, with_gaps(chosen.x, chosen.mask)


# ---------------------------------------------------------------------------- the trainer


class Trainer:
    """Atoms in training.

    Parameters
    ----------
    model : object
        What is trained, see above.
    fitted : Fitted
        The record of the fit, with its losses and its number of updates so far.
    optimizer : GradientOptimizer or SurrogateOptimizer
        Owns the rows of parameters.
    team : Team, default=ALONE
        The processes that train one dictionary, each with samples of its own.
    interrupts : Interrupts, optional
        Its ``pending`` is read after every update, by a team after every round.
    """

    def __init__(self, model, fitted, optimizer, *, team=ALONE, interrupts=_UNDISTURBED):
        self._begun, self.model, self.optimizer = fitted, model, optimizer
        self.n_steps, self.loss_curve = fitted.n_steps, fitted.loss_curve
        self.team, self._interrupts = team, interrupts
        # About the current or latest epoch: sums of samples and losses, a mask of atoms that no
        # code has used, and the samples with the largest losses, at most one per unused atom.
        self.epoch = None
        self.halved = False
        self.finite = None  # the latest finite (atoms, optimiser's state, number of updates)

    # ------------------------------------------------------------------ an epoch

    def run_epoch(self, source, stopping):  # -> bool
        """Go through the source once, or until ``stopping`` or Ctrl-C ends it.

        Return whether the objective has stalled.

        Raises
        ------
        Diverged
            If training diverged for the second time; the optimiser then holds the last finite
            atoms.
        """
        batches, converged = self._begin(source), False
        # A round has 10 updates: enough that a GPU does not idle, and few enough that training can
        # stop within a first epoch of a hundred thousand samples.
        while length := min(10, stopping.n_updates - self.n_steps):
            start = self.optimizer.atoms.detach().clone(), self.optimizer.state(), self.n_steps
            sums, unused, seen = self._round(islice(batches, length))
            if not sums:
                break
            atoms = self.optimizer.atoms.detach()
            rest = torch.stack([unused.sum(), torch.isfinite(atoms).all()]).to(sums[0])
            found = torch.cat([*sums, rest]).cpu()  # one transfer: here alone the host waits
            sums, n_unused, atoms_are_finite = found[:-2].view(-1, 3), *found[-2:].int().tolist()
            interrupted = self.team.largest(self._interrupts.pending)
            finite = torch.isfinite(sums).all(1)
            if finite[0] or self.finite is None:
                self.finite = start  # the first loss of the round shows that its start was finite
            if not (finite.all() and atoms_are_finite):
                first_bad = start[-1] + min(int(finite.sum()) + 1, len(sums))
                *start, self.n_steps = self.finite  # return to it, once, with smaller steps
                self.optimizer.load(*start)
                if self.halved:
                    raise Diverged(first_bad, self.fitted)
                self.halved = True
                self.optimizer.halve_learning_rate()
                return self.run_epoch(source, stopping)
            loss, objective, n_samples = sums.double().sum(0).tolist()
            self._commit(n_samples, loss, unused, n_unused, seen)
            if interrupted:
                break
            converged = stopping.check(objective, n_samples, self.n_steps)
            if converged or len(sums) < length:
                break
        self.loss_curve = *self.loss_curve, self.epoch["loss"] / self.epoch["n_samples"]
        return converged

    def _round(self, batches):  # -> sums of each update (3,), unused atoms, losses and samples
        sums, unused, seen = [], self.epoch["unused"], []
        for batch in batches:
            total, used, losses = self._update(batch)
            sums.append(total)
            unused = unused & ~used
            if batch is not None:
                seen.append(_worst(losses, batch, len(unused)))
            if self.team.is_alone and self._interrupts.pending:
                break
        return sums, unused, seen

    def _begin(self, source):  # -> the batches of the epoch
        atoms = self.optimizer.atoms.detach()
        unused = torch.ones(len(atoms), dtype=torch.bool, device=atoms.device)
        self.epoch = dict(unused=unused, losses=atoms.new_zeros(0), samples=atoms.new_zeros(0))
        self.epoch |= dict(n_samples=0.0, loss=0.0)
        batches = (batch.in_units(self._begun.noise) for batch in source.batches())
        if self.team.is_alone:  # the number of batches of a stream need not be known
            return batches
        # All processes take part in every update: a process without a batch adds None.
        n_batches = self.team.largest(source.n_batches)
        return islice(chain(batches, repeat(None)), n_batches)

    def _update(self, batch):  # -> summed loss, objective and samples; used atoms; losses
        rows, model, team = self.optimizer.atoms, self.model, self.team
        if batch is None:  # other processes still have samples
            gradient, codes = torch.zeros_like(rows), rows.detach().new_zeros(0, len(rows))
            losses, total = codes.new_zeros(0), codes.new_zeros(3)
        else:
            with torch.enable_grad():  # whichever mode the caller set
                now = model.with_rows(self._begun, rows)
                rule, dictionary, options = model.network(now, self.n_steps)
                with threads_for(dictionary.atoms, batch.x):
                    gradient, found = differentiate(rule, dictionary, rows, batch, **options)
            codes, losses = found.codes, found.losses
            weight = batch.weigh(torch.ones_like(losses))
            size = weight.sum()
            total = torch.stack([(weight * losses).sum(), found.objective * size, size])
        if not team.is_alone:  # alone the gradient is the batch's as it is
            gradient, total = team.sum(gradient * total[2], total)
        how = dict(weight=None if batch is None else batch.weight)
        if not team.is_alone:
            gradient = gradient / total[2].clamp_min(torch.finfo(total.dtype).tiny)
            how["total"] = team.sum
        with threads_for(rows, rows):
            self.optimizer.update(gradient, codes, **how)
        self.n_steps += 1
        # a sum of moduli is several times as fast as any()
        used = codes.abs().sum([axis for axis in range(codes.ndim) if axis != 1]) != 0
        return total, used, losses

    def _commit(self, n_samples, loss, unused, n_unused, seen):
        """Add a finite round to the epoch.

        ``seen`` has for each batch of the round the largest losses and their samples.
        """
        epoch = self.epoch
        if n_unused and seen:
            pairs = [(epoch["losses"], epoch["samples"]), *seen] if len(epoch["losses"]) else seen
            losses, samples = (torch.cat(part) for part in zip(*pairs))
            epoch["losses"], epoch["samples"] = _worst(losses, Samples(samples), n_unused)
        epoch |= {name: epoch[name][:n_unused] for name in ("losses", "samples")}
        epoch |= dict(unused=unused, n_samples=epoch["n_samples"] + n_samples)
        epoch["loss"] += loss

    def replace_unused(self, *, among=None):
        """Replace atoms unused in the last epoch by the worst reconstructed samples.

        ``among``, (n_components,) bool on the host, marks the atoms that may be replaced.
        """
        if self.epoch is None:
            return
        atoms, names = self.optimizer.atoms.detach(), ("unused", "losses", "samples")
        unused, losses, samples = (self.epoch[name].to(atoms.device) for name in names)
        if not self.team.largest(len(losses)):  # all atoms are used
            return
        (used,) = self.team.sum((~unused).int())
        unused = used == 0 if among is None else (used == 0) & among.to(used.device)
        unused = unused.nonzero().squeeze(1)
        losses = losses[: len(unused)]
        losses = losses[losses > 0]
        samples = samples[: len(losses)] if len(losses) else atoms[:0]
        losses, samples = map(self.team.gather, (losses, samples))
        samples = samples[losses.topk(min(len(unused), len(losses))).indices]
        samples = samples[samples.nan_to_num().flatten(1).any(1)]  # a zero sample makes no atom
        if len(samples):
            rows = self.model.replacements(self.model.with_rows(self._begun, atoms), samples)
            rows = rows[rows.flatten(1).any(1)]  # a sample equal to its baseline makes none
            self.optimizer.replace(unused[: len(rows)], rows)

    # ------------------------------------------------------------------ the state of training

    @property
    def fitted(self):
        """The record of the fit at present."""
        training = self._begun.training | {"moments": self.optimizer.state()}
        known = dict(loss_curve=self.loss_curve, n_steps=self.n_steps, training=training)
        return replace(self.model.with_rows(self._begun, self.optimizer.atoms.detach()), **known)

    def state(self, source, stopping):  # -> dict
        """Return the state between two epochs, which includes the source's generator."""
        return {name: getattr(self, name) for name in _OF_TRAINER} | {
            "atoms": self.optimizer.atoms.detach().clone(),
            "moments": self.optimizer.state(),
            "stopping": stopping.course,
            "generator": None if source.generator is None else source.generator.get_state(),
        }

    def load(self, state, source, stopping):
        """Return to a state."""
        for name in _OF_TRAINER:
            setattr(self, name, state[name])
        if self.halved:
            self.optimizer.halve_learning_rate()
        self.optimizer.load(state["atoms"], state["moments"])
        stopping.course = state["stopping"]
        if source.generator is not None:
            source.generator.set_state(state["generator"])
