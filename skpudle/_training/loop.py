"""Training: the only epoch loop.

`Trainer` turns batches into updates and knows nothing of NumPy, of estimators or of where the
samples come from. It waits for the device once a round, some updates long, to learn whether
training is still finite and whether to stop.

A round is a transaction: all that training goes on from changes at its end, so that the state of
the last round, which `Trainer.state` returns at any time, is one to start again from, with the same
bits.
"""

from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle._data.batches import count_batches, once_only
from skpudle.gradients import differentiate

__all__ = ["Diverged", "EpochSummary", "Interrupted", "Progress", "Trainer"]

# Between two looks at the loss: rare enough that a GPU never idles, often enough that a first epoch
# of a hundred thousand samples need not be finished when nothing is left to gain.
_UPDATES_PER_ROUND = 10


class Diverged(ArithmeticError):
    """Training is not finite any more, also after the learning rate was halved."""

    def __init__(self, update):
        super().__init__(f"training diverged at update {update}")
        self.update = update


class Interrupted(KeyboardInterrupt):
    """Training was interrupted, and stopped after a whole update."""

    def __init__(self, update):
        super().__init__(f"training was interrupted after update {update}")


class EpochSummary(NamedTuple):
    """The mean reconstruction loss of an epoch, and whether the objective has stalled."""

    loss: float
    converged: bool


@dataclass
class Progress:
    """How far an epoch has come; its tensors are replaced, never changed."""

    plan_state: Tensor | None  # of the source's generator, before it drew the plan
    unused: Tensor  # (n_components,) bool: no code of the epoch used the atom
    losses: Tensor  # (at most as many as atoms are unused,), the largest, in descending order
    keys: Tensor  # (as many, ...), of the samples with these losses
    n_batches: int = 0
    n_samples: int = 0
    loss: float = 0.0
    done: bool = False


class Trainer:
    """Atoms in training.

    Samples that replace atoms go through ``new_rows(atoms, samples)`` before, if it is set, which
    knows the current atoms.

    Parameters
    ----------
    make_dictionary : callable
        Returns a dictionary with the given atoms.
    rule : callable
        One of `skpudle.gradients.GRADIENT_RULES`.
    schedule : callable
        ``schedule(update)`` returns the keyword arguments ``encoder`` and ``penalty`` of the rule
        for that update, counted from 0.
    optimizer : GradientOptimizer or SurrogateOptimizer
        Owns the atoms.
    n_steps : int, default=0
        Number of updates made before.
    loss_curve : iterable of float, default=()
        Mean losses of the epochs before.
    part_size : int, default=None
        Samples of a batch that are evaluated at a time, which bounds memory; by default all.
    team : Team, default=None
        The processes that train one dictionary, each with samples of its own.
    """

    def __init__(
        self,
        make_dictionary,
        rule,
        schedule,
        optimizer,
        *,
        n_steps=0,
        loss_curve=(),
        part_size=None,
        team=None,
    ):
        self.make_dictionary, self.rule, self.schedule = make_dictionary, rule, schedule
        self.optimizer, self.n_steps, self.loss_curve = optimizer, n_steps, list(loss_curve)
        self.part_size, self.team = part_size, team
        self.progress = None  # of the current or latest epoch
        self.new_rows = lambda atoms, samples: samples
        self.interrupted = lambda: False  # asked after every update, by a team after every round
        self.at_round = lambda: None  # called before every round
        self._halved = False
        self._finite_state = None  # the latest (atoms, optimiser's state, number of updates)
        self._resume_state = None  # of the source's generator, at the point to go on from

    def largest(self, value):
        """Return the largest of the integers of all processes."""
        return value if self.team is None else self.team.largest(value)

    # ------------------------------------------------------------------ an epoch

    def run_epoch(self, source, stopping):
        """Go through the source once, or until ``stopping`` says that it is enough.

        Raises
        ------
        Diverged
            If training stopped being finite for the second time; the optimiser then holds the last
            finite atoms.
        Interrupted
            If it was interrupted.
        """
        batches = self._begin(source)
        while length := stopping.limit(_UPDATES_PER_ROUND, self.n_steps):
            start = self.mark(source, stopping)
            self.at_round()
            sums, unused, seen = [], self.progress.unused, []
            for batch in islice(batches, length):
                total, used, losses = self._update(batch)
                sums.append(total)
                unused = unused & ~used
                if batch is not None:
                    seen.append((losses, batch.keys))
                if self.team is None and self.interrupted():
                    break
            if not sums:
                break
            sums = torch.stack(sums).cpu()  # here the host waits for the round
            loss, objective, n_samples = sums.double().sum(0).tolist()
            interrupted = self.largest(int(self.interrupted()))
            finite = torch.isfinite(sums).all(1)
            if finite[0] or self._finite_state is None:
                self._finite_state = start  # that a state is finite is known from its next loss
            if not (finite.all() and torch.isfinite(self.optimizer.atoms).all()):
                first_bad = start[2] + min(int(finite.sum()) + 1, len(sums))
                *state, self.n_steps = self._finite_state
                self.optimizer.load(*state)
                if self._halved:
                    raise Diverged(first_bad)
                self._halved = True
                self.optimizer.halve_learning_rate()
                self.progress = None
                return self.run_epoch(source, stopping)
            self._commit(len(sums), n_samples, loss, unused, seen)
            if interrupted:
                self._end_epoch()
                raise Interrupted(self.n_steps)
            if stopping.check(objective, n_samples, self.n_steps, n_judged=source.n_judged):
                return self._end_epoch(converged=True)
            if len(sums) < length:
                break
        return self._end_epoch()

    def _begin(self, source):  # -> the batches of the epoch that are left
        generator, resume = source.generator, self._resume_state
        going_on = self.progress is not None and not self.progress.done
        self._resume_state = None
        if resume is not None:
            generator.set_state((self.progress.plan_state if going_on else resume).cpu())
        if not going_on:
            atoms = self.optimizer.atoms.detach()
            self.progress = Progress(
                plan_state=None if generator is None else generator.get_state(),
                unused=torch.ones_like(atoms.flatten(1)[:, 0], dtype=torch.bool),
                losses=atoms.new_zeros(0),
                keys=atoms.new_zeros(0),
            )
        done = self.progress.n_batches
        batches = source.batches(source.plan(), done)
        if going_on and resume is not None:
            generator.set_state(resume.cpu())
        if self.team is None:
            return batches
        n_batches = self.largest(count_batches(source))  # all take part in every update
        return islice(chain(batches, repeat(None)), n_batches - done)

    def _update(self, batch):  # -> summed loss, objective and samples; used atoms; losses
        atoms = self.optimizer.atoms
        if batch is None:  # others still have samples
            gradient, codes = torch.zeros_like(atoms), atoms.detach().new_zeros(0, len(atoms))
            losses, total = codes.new_zeros(0), codes.new_zeros(3)
        else:
            gradient, evaluation = self._differentiate(batch)
            codes, losses = evaluation.codes, evaluation.losses
            size = torch.full_like(evaluation.objective, len(batch.x))
            total = torch.stack([losses.sum(), evaluation.objective * size, size])
        if self.team is None:
            self.optimizer.update(gradient, codes, loss=total[0] / total[2])
        else:
            n_samples = 0 if batch is None else len(batch.x)
            gradient, total = self.team.sum(gradient * n_samples, total)
            loss = total[0] / total[2]
            self.optimizer.update(gradient / total[2], codes, loss=loss, total=self.team.sum)
        self.n_steps += 1
        return total, (codes != 0).transpose(0, 1).flatten(1).any(1), losses

    def _differentiate(self, batch):  # -> gradient in the atoms, Evaluation
        atoms = self.optimizer.atoms
        with torch.enable_grad():  # whatever the caller's mode is
            gradient, evaluation = differentiate(
                self.rule,
                self.make_dictionary(atoms),
                atoms,
                batch,
                part_size=self.part_size,
                **self.schedule(self.n_steps),
            )
        return gradient, evaluation

    def _commit(self, n_batches, n_samples, loss, unused, seen):
        """End a round; `seen` are pairs of losses and keys, one of each of its batches."""
        before, n_unused = self.progress, int(unused.sum())
        losses, keys = before.losses, before.keys
        if n_unused and seen:
            pairs = [(losses, keys), *seen] if len(losses) else seen
            losses, keys = (torch.cat(part) for part in zip(*pairs))
            losses, order = losses.topk(min(n_unused, len(losses)))
            keys = keys[order]
        self.progress = replace(
            before,
            unused=unused,
            losses=losses[:n_unused],
            keys=keys[:n_unused],
            n_batches=before.n_batches + n_batches,
            n_samples=before.n_samples + int(n_samples),
            loss=before.loss + loss,
        )

    def _end_epoch(self, *, converged=False):
        self.progress = replace(self.progress, done=True)
        if not self.progress.n_samples:
            raise once_only("X yields no samples in this epoch; it")
        summary = EpochSummary(self.progress.loss / self.progress.n_samples, converged)
        self.loss_curve.append(summary.loss)
        return summary

    def replace_unused(self, source):
        """Replace atoms that no code of the last epoch used by the worst reconstructed samples."""
        if self.progress is None or not self.progress.done:
            return
        unused, losses, keys = self.progress.unused, self.progress.losses, self.progress.keys
        if self.team is not None:
            unused = self.team.all(unused)
        unused = unused.nonzero().squeeze(1)
        losses = losses[: len(unused)]
        losses = losses[losses > 0]
        atoms = self.optimizer.atoms.detach()
        samples = source.samples(keys[: len(losses)]) if len(losses) else atoms[:0]
        if self.team is not None:
            losses, samples = (torch.cat(self.team.gather(part)) for part in (losses, samples))
            samples = samples[losses.topk(min(len(unused), len(losses))).indices]
        samples = samples[samples.flatten(1).any(1)]  # nothing makes no atom
        if len(samples):
            self.optimizer.replace(unused[: len(samples)], self.new_rows(atoms, samples))

    # ------------------------------------------------------------------ the state of training

    def mark(self, source, stopping):  # -> atoms, the optimiser's state, number of updates
        """Make the present what `state` returns."""
        start = self.optimizer.atoms.detach().clone(), self.optimizer.state(), self.n_steps
        self._marked = {
            "start": start,
            "finite": self._finite_state,
            "halved": self._halved,
            "loss_curve": tuple(self.loss_curve),
            "stopping": stopping.course,
            "progress": self.progress,
            "generator": None if source.generator is None else source.generator.get_state(),
        }
        return start

    def state(self):
        """Return what training goes on from, as of the last mark: numbers and tensors, by name."""
        return self._marked | {"progress": vars(self._marked["progress"])}

    def load(self, state, stopping):
        """Go back to a `state`; the source's generator follows when the epoch is run."""
        if state["halved"]:
            self._halved = True
            self.optimizer.halve_learning_rate()
        *start, self.n_steps = state["start"]
        self.optimizer.load(*start)
        self._finite_state = None if state["finite"] is None else tuple(state["finite"])
        self.loss_curve = list(state["loss_curve"])
        stopping.course = tuple(state["stopping"])
        self.progress = Progress(**state["progress"])
        self._resume_state = state["generator"]
