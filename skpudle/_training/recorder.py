"""The checkpoint of a fit: when it is written, and what goes on from it."""

import time
import warnings

import torch

from skpudle._data.callers import users_level
from skpudle._training.archive import named_checkpoint, pack
from skpudle._training.held_file import Checkpoint, HeldFile
from skpudle._training.identity import check_same, data_of, identity_of, rule_of
from skpudle._training.state import TrainingState
from skpudle.initialization import SearchState

__all__ = ["Recorder"]


def _moved(tree, device):
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {name: _moved(value, device) for name, value in tree.items()}
    return [_moved(value, device) for value in tree] if isinstance(tree, list) else tree


def _check(state, trainer, source, stopping):
    """Raise ValueError if a state, by names, is none that training of these samples comes to."""
    atoms, finite, progress = trainer.optimizer.atoms, state["finite"], state["progress"]
    starts = [(state["atoms"], state["moments"], state["n_updates"])]
    starts += [] if finite is None else [finite]
    for found, moments, _ in starts:
        if not torch.isfinite(found).all() or any(map(_has_nan, moments.values())):
            raise ValueError("its atoms, or what its optimiser remembers of them, are not finite")
        if found.shape != atoms.shape or (misfit := trainer.optimizer.misfit(moments)):
            raise ValueError(f"it is of other atoms: {misfit or tuple(found.shape)}")
    counters, generators = [n for *_, n in starts], [state["generator"]]
    numbers = [*state["loss_curve"], *state["searched"]]
    if progress is not None:  # there was an epoch
        counters += progress["n_batches"], progress["n_samples"]
        generators.append(progress["plan_state"])
        numbers.append(progress["loss"])
        unused, losses, keys = (progress[name] for name in ("unused", "losses", "keys"))
        if unused.shape != atoms.shape[:1] or unused.dtype != torch.bool:
            raise ValueError(f"it counts the use of {len(unused)} of {len(atoms)} atoms")
        if losses.shape != keys.shape[:1] or not torch.isfinite(losses).all():
            raise ValueError(f"it has {len(losses)} losses of {len(keys)} samples")
        if len(keys) and not source.has(keys):
            raise ValueError("it has losses of samples that are not there")
    if not all(type(n) is int and n >= 0 for n in counters):
        raise ValueError(f"its counters {counters} are not all natural numbers")
    if not torch.isfinite(torch.tensor(numbers)).all():
        raise ValueError("its losses are not finite")
    if not stopping.accepts(state["stopping"], atoms):
        raise ValueError(f"its rule of stopping is at {state['stopping']!r:.50}")
    for generator in generators:
        if generator is not None:
            torch.Generator().set_state(generator)


def _has_nan(value):  # one that is infinite is what large gradients come to
    return isinstance(value, torch.Tensor) and bool(torch.isnan(value).any())


class _Clock:
    """When to write: after so many updates or so many seconds."""

    def __init__(self, settings):
        self._n_updates, self._seconds = settings.every_n_updates, settings.every_seconds
        self.strike(0)

    def strike(self, n_updates):
        """Begin anew."""
        self._last = n_updates, time.monotonic()

    def is_due(self, n_updates):
        """Return whether it is time; divergence takes updates back."""
        last_update, last_time = self._last
        if self._n_updates is not None and abs(n_updates - last_update) >= self._n_updates:
            return True
        return self._seconds is not None and time.monotonic() - last_time >= self._seconds


class Recorder:
    """The checkpoint of one fit, if its estimator has one among its callbacks.

    To be used as a context, which keeps the file from other fits.

    Parameters
    ----------
    estimator : estimator
        Asked for its callbacks and parameters.
    """

    def __init__(self, estimator):
        found = [c for c in getattr(estimator, "_skl_callbacks", []) if isinstance(c, Checkpoint)]
        if len(found) > 1:
            paths = ", ".join(str(checkpoint.path) for checkpoint in found)
            raise ValueError(
                f"A fit writes one checkpoint, but got {len(found)}: {paths:.300}. Pass one."
            )
        self._estimator, self._file = estimator, HeldFile(found[0] if found else None)
        self._stored = self._clock = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.release()

    def open(self, generator, team=None):
        """Take hold of the file, and seed the generator as the fit in it did, if there is one.

        Parameters
        ----------
        generator : torch.Generator
            What the fit draws from.
        team : Team, default=None
            Processes that train together; the first of them reads and writes.

        Raises
        ------
        ValueError
            If the file is damaged, cannot be written, or is that of a fit which is training.
        """
        self._stored = self._file.open(team)
        if self._stored is not None:
            generator.manual_seed(self._stored["seed"])

    @property
    def ended_by(self):
        """What had stopped the fit that goes on, before its time by a rule that still holds."""
        stored = self._stored
        holds = stored is not None and stored["rule"] == rule_of(self._estimator)
        return stored["ended_by"] if holds else None

    def recognise(self, source, sample, mask=None, *, seed):
        """Compare the fit in the file with this one.

        Parameters
        ----------
        source : source of batches
            This process's data.
        sample : Tensor of shape (n_samples, n_features), or iterable of Tensor
            The same, or what stands for them.
        mask : Tensor of shape (n_samples, n_features), default=None
            0 where they are missing.
        seed : int
            Seed of this fit's generator.

        Raises
        ------
        ValueError
            If the file belongs to a fit of something else.
        """
        if self._file.settings is None:
            return
        self._clock = _Clock(self._file.settings)
        self._seed = seed
        data = data_of(source, sample, mask)
        self._identity = identity_of(self._estimator, data, self._file.team)
        if self._stored is not None:
            check_same(self._stored["identity"], self._identity, self._file.name)

    def found_search(self, problem, atoms):
        """Return the state of the search in the file; None if there is none, or it has ended.

        Parameters
        ----------
        problem : Problem
            Data and objective of the search.
        atoms : Tensor of shape (n_components, ...)
            Its initial atoms.

        Raises
        ------
        ValueError
            If no such search can be at that state.
        """
        if self._stored is None or "search" not in self._stored["shared"]:
            return None
        with named_checkpoint(self._file.name):
            own = self._stored["own"][self._file.rank]
            state = SearchState.from_dict(self._stored["shared"]["search"] | own["codes"])
            state.check(problem, atoms)
        return state

    def in_training(self):
        """Return whether the file is that of a fit whose search, if it has one, has ended."""
        return self._stored is not None and "search" not in self._stored["shared"]

    def begin(self, trainer, source, stopping):
        """Bring training to where the file left it.

        Raises
        ------
        ValueError
            If the file was made by somebody else.
        """
        if self._file.settings is None:
            return
        if self.in_training():
            with named_checkpoint(self._file.name):
                atoms = trainer.optimizer.atoms
                state = self._stored["shared"] | self._stored["own"][self._file.rank]
                _check(state, trainer, source, stopping)
                state = TrainingState.from_dict(_moved(state, atoms.device))
                trainer.load(state, source, stopping)
            if self._stored["rule"] != rule_of(self._estimator):
                stopping.forgive()
        try:
            pack(trainer.optimizer.fresh_state())
        except ValueError as error:
            raise ValueError(
                f"No checkpoint can be written of optimizer={self._estimator.optimizer!r}: {error}."
            ) from error
        self._clock.strike(trainer.n_steps)

    def at_round(self, trainer):
        """Write the state of the last round of training if it is time."""
        if self._is_due(trainer.n_steps):
            self.end(trainer)

    def at_search_epoch(self, state):
        """Write the state of a search if it is time; an epoch of it counts for a round."""
        if self._is_due(10 * state.epoch):
            self.end_search(state)

    def end(self, trainer, *, ended_by=None):
        """Write the state of the last round of training, and what stopped it before its time."""
        if self._file.settings is None:
            return
        shared = trainer.state.as_dict()
        own = {name: shared.pop(name) for name in ("progress", "generator")}
        self._write(shared, own, trainer.n_steps, ended_by)

    def end_search(self, state):
        """Write the state of a search."""
        if self._file.settings is None:
            return
        search = state.as_dict()
        codes = {name: search.pop(name) for name in ("codes", "best_codes")}
        self._write({"search": search}, {"codes": codes}, 10 * state.epoch)

    def _is_due(self, n_updates):
        if self._clock is None:
            return False
        due, team = self._clock.is_due(n_updates), self._file.team
        return due if team is None else team.any(due)[0]

    def _write(self, shared, own, n_updates, ended_by=None):
        state = {"identity": self._identity, "seed": self._seed, "ended_by": ended_by}
        state |= {"rule": rule_of(self._estimator), "shared": shared}
        self._clock.strike(n_updates)
        if error := self._file.write(state, own):
            warnings.warn(
                f"The checkpoint of update {n_updates} could not be written: {error}. "
                "Training goes on; an older checkpoint is as it was.",
                RuntimeWarning,
                stacklevel=users_level(),
            )
