"""Checkpoints: the callback, its file, the lock on the file, and when to write.

One fit at a time holds a file. An empty file next to it has a lock of the operating system, which
ends with its process: a process that was killed never blocks the next. Processes in other
containers share the lock if they share the file. Over NFS it holds between machines too, if the
server keeps locks; a machine that died loses its locks with its lease there.
"""

import os
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from math import isfinite
from numbers import Integral, Real
from os import PathLike
from typing import Any

import torch
from filelock import FileLock, Timeout
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    validate_parameter_constraints,
)

from skpudle._data.arrays import shortened
from skpudle._data.callers import users_level
from skpudle._data.files import remove_parts
from skpudle._training.archive import (
    named_checkpoint,
    pack,
    read_checkpoint,
    unpack,
    write_checkpoint,
)
from skpudle._training.identity import check_same, data_of, identity_of, plain, rule_of
from skpudle._training.state import TrainingState
from skpudle._training.team import ALONE
from skpudle.search._search import SearchState

__all__ = ["Checkpoint", "Recorder"]

_CONSTRAINTS = {
    "path": [str, os.PathLike],
    "every_n_updates": [Interval(Integral, 1, None, closed="left"), None],
    "every_seconds": [Interval(Real, 0, None, closed="left"), None],
    "resume": ["boolean"],
}
_ENDS = [None, "tol", "callback"]  # causes of an early end
_STORED = {"identity", "seed", "ended_by", "rule", "shared", "own", "end"}
_OF_THE_END = {"max_iter", "later", "model"}


def _is_rule(rule):  # tol, n_iter_no_change
    if not (isinstance(rule, list) and len(rule) == 2):
        return False
    tol, n_iter_no_change = rule
    return isinstance(tol, int | float | None) and isinstance(n_iter_no_change, int)


def _is_end(end):  # the end of a complete fit, None before
    if end is None:
        return True
    if not (isinstance(end, dict) and end.keys() == _OF_THE_END):
        return False
    later = end["later"]
    if type(end["max_iter"]) not in (int, str):
        return False
    counts = later.values() if isinstance(later, dict) else [None]
    return all(type(n) is int and n >= 0 for n in counts) and isinstance(end["model"], dict)


class Checkpoint:
    """Write the state of training to a file, and resume from it.

    A callback for ``learner.set_callbacks(Checkpoint("fit.npz"))``. If the file exists, `fit`
    resumes from it, to the same bits as a fit that was never interrupted; if the fit in the file is
    complete, `fit` returns its result without training.

    Parameters
    ----------
    path : str or path-like
        The file, in a directory that exists. A link is followed, and a mode is kept.
    every_n_updates : int, default=None
        Write after this number of updates; rounded up to rounds of training, of ten updates.
    every_seconds : float, default=60.0
        Write after this number of seconds. Whichever is first counts; None is never.
    resume : bool, default=True
        Whether `fit` resumes from an existing file. Otherwise it replaces it.

    Raises
    ------
    ValueError
        If a parameter is invalid.

    Notes
    -----
    The file is refused, with a ValueError that names it, if it is damaged, or if it belongs to
    another learner, other parameters or other data. ``max_iter``, ``tol`` and ``n_iter_no_change``
    may change, to train longer, and so may parameters that do not affect training. The file stores
    a checksum of the data and their missing-value mask: of a whole array, else of the search's
    sample; for streams also the size of the first batch. An interrupted pass over all rows begins
    again. An array, a memory map, a dataset and a stream of the same rows count as different data,
    and so do the data of another number of processes; each process compares its own.

    A fit has one file: a second `Checkpoint` is refused. A file has one fit at a time: while it
    trains, another fit that is given the file is refused before it trains. The operating system
    releases the lock when a process ends, however it ends; over NFS this needs a server that keeps
    locks. A search makes many fits, with other parameters or other data, and its second one is
    refused: search without a `Checkpoint`.

    With several processes only the first process needs a `Checkpoint`.

    Learners that write no checkpoints, such as SPORCO's, refuse this callback.

    The file is written once more at the end, and after Ctrl-C. If it cannot be written, because the
    disk is full for example, a warning is issued, the last file stays, and training continues.

    Reading the file executes no code: it holds arrays and JSON, and no pickled objects.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import Checkpoint, PUDLEDictionaryLearning
    >>> X = load_digits().data
    >>> learner = PUDLEDictionaryLearning(32, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = Checkpoint(os.path.join(folder, "digits.npz"), every_n_updates=10)
    ...     learner = learner.set_callbacks(checkpoint).fit(X)
    ...     sorted(os.listdir(folder))
    ['digits.npz']
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        every_n_updates: int | None = None,
        every_seconds: float = 60.0,
        resume: bool = True,
    ) -> None:
        self.path, self.resume = path, resume
        self.every_n_updates, self.every_seconds = every_n_updates, every_seconds
        try:
            validate_parameter_constraints(_CONSTRAINTS, vars(self), type(self).__name__)
        except InvalidParameterError as error:
            raise InvalidParameterError(shortened(str(error))) from None

    # scikit-learn's protocol of callbacks, which has hooks for epochs, but not for updates
    def setup(self, estimator: Any, context: Any) -> None:
        """Refuse estimators that write no checkpoints."""
        if not getattr(estimator, "_writes_checkpoints", False):
            raise ValueError(
                f"{type(estimator).__name__} writes no checkpoints. Give the callback to a learner "
                "of skpudle, in a pipeline to the learner inside; SPORCO's has none, and the many "
                "fits of a search cannot share a file."
            )

    def teardown(self, estimator: Any, context: Any) -> None:
        """Do nothing."""

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Do nothing."""

    def on_fit_task_end(self, estimator: Any, context: Any) -> None:
        """Do nothing."""


class HeldFile:
    """The file of a checkpoint, held by one fit, in one process or several.

    Parameters
    ----------
    settings : Checkpoint or None
        The user's callback; with several processes the first one's counts.
    """

    def __init__(self, settings):
        self.settings = settings
        self.team, self._lock, self._stored = ALONE, None, None

    @property
    def name(self):
        """The path as the user gave it."""
        return self.settings.path

    def release(self):
        """Release the file."""
        if self._lock is not None and self._lock.is_locked:
            with suppress(OSError):  # Windows removes no open file
                os.unlink(self._lock.lock_file)
            self._lock.release()

    def open(self, team):
        """Take hold of the file; return the state in it, or None without a state to resume from.

        Raises
        ------
        ValueError
            If the file is damaged, cannot be written, or belongs to a fit that is training.
        """
        self.team, error = team, None
        if self.settings is not None and team.rank == 0:
            self._path = os.path.realpath(self.name)
            try:
                self._stored = self._take_hold()
            except (ValueError, OSError) as caught:
                error = caught
        if not team.is_alone:
            error = self._share(error)
        if error is not None:
            raise error
        return self._stored

    def write(self, state, own):
        """Write the shared state and the state of each process; return the error if that fails."""
        everyone = [own]
        if not self.team.is_alone:
            packed = self.team.gather_bytes(pack(own))
            everyone = [unpack(part, self.name) for part in packed]
        if self.team.rank > 0:
            return None
        try:
            write_checkpoint(self._path, state | {"own": everyone})
        except (OSError, ValueError) as error:
            return error

    def _take_hold(self):  # -> the state in the file, None if there is none to resume from
        path = self.name
        if os.path.isdir(self._path):
            raise ValueError(
                f"The checkpoint {path} is a directory. Pass the path of a file, such as "
                f"{os.path.join(path, 'fit.npz')}."
            )
        self._lock = FileLock(f"{self._path}.lock", timeout=0, thread_local=False)
        try:
            os.stat(os.path.dirname(self._path))  # raises: filelock would make a directory
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"The checkpoint {path} is that of another fit, which is training. Wait for its "
                "end, stop it, or pass another path."
            ) from None
        except OSError as error:
            raise ValueError(
                f"The checkpoint {path} cannot be written: {error.strerror}. Make its directory, "
                "or pass another path."
            ) from error
        remove_parts(self._path)
        if not (self.settings.resume and os.path.exists(self._path)):
            return None
        stored = read_checkpoint(path)
        with named_checkpoint(path):
            if stored.keys() != _STORED:
                raise ValueError(f"it holds {sorted(stored)}, expected {sorted(_STORED)}")
            if not isinstance(stored["identity"], dict):
                raise ValueError("it does not name its fit")
            if not (isinstance(stored["shared"], dict) and isinstance(stored["own"], list)):
                raise ValueError("it holds no state")
            if stored["ended_by"] not in _ENDS:
                raise ValueError(f"it was ended by {stored['ended_by']!r:.50}")
            if not _is_rule(stored["rule"]):
                raise ValueError(f"its rule of ending is {stored['rule']!r:.50}")
            if not _is_end(stored["end"]):
                raise ValueError(f"its end is {stored['end']!r:.50}")
            if not (isinstance(stored["seed"], int) and 0 <= stored["seed"] < 2**63):
                raise ValueError(f"its seed is {stored['seed']!r:.50}")
        return stored

    def _share(self, error):  # -> the first process's error
        """Take over the first process's settings, and the state or the error that it read."""
        has_one = self.settings is not None
        mine = []
        if has_one and self.team.rank == 0:
            settings = vars(self.settings) | {"path": str(self.name)}
            text = None if error is None else str(error)
            mine = [pack({"settings": settings, "stored": self._stored, "error": text})]
        (someone,) = self.team.any(has_one)
        first = self.team.first(mine)
        if not first:
            text = "Give the Checkpoint to the first of the processes, which writes it."
            return ValueError(text) if someone else None
        first = unpack(first[0], "message of the first process")
        self.settings, self._stored = Checkpoint(**first["settings"]), first["stored"]
        return error or (first["error"] and ValueError(first["error"]))


def _moved(tree, device):
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {name: _moved(value, device) for name, value in tree.items()}
    return [_moved(value, device) for value in tree] if isinstance(tree, list) else tree


def _check(state, trainer, source, stopping, n_now):
    """Raise ValueError unless training of these samples can reach this state.

    ``n_now`` is the number of samples that the source has counted; None if the source does not
    count.
    """
    atoms, finite, progress = trainer.optimizer.atoms, state["finite"], state["progress"]
    starts = [(state["atoms"], state["moments"], state["n_updates"])]
    starts += [] if finite is None else [finite]
    for found, moments, _ in starts:
        if not torch.isfinite(found).all() or any(map(_has_nan, moments.values())):
            raise ValueError("its atoms, or its optimiser's state, are not finite")
        if found.shape != atoms.shape or (misfit := trainer.optimizer.misfit(moments)):
            raise ValueError(f"it is of other atoms: {misfit or tuple(found.shape)}")
    counters, generators = [n for *_, n in starts], [state["generator"]]
    numbers = [*state["loss_curve"], *state["searched"]]
    if progress is not None:  # after the first epoch began
        counters.append(progress["n_batches"])
        generators.append(progress["plan_state"])
        numbers += progress["loss"], progress["n_samples"]
        if progress["n_samples"] < 0:
            raise ValueError(f"it has seen {progress['n_samples']!r:.50} samples")
        unused, losses, keys = (progress[name] for name in ("unused", "losses", "keys"))
        if unused.shape != atoms.shape[:1] or unused.dtype != torch.bool:
            raise ValueError(f"it counts the use of {len(unused)} of {len(atoms)} atoms")
        if losses.shape != keys.shape[:1] or not torch.isfinite(losses).all():
            raise ValueError(f"it has {len(losses)} losses of {len(keys)} samples")
        if len(keys) and not source.has(keys):
            raise ValueError("it has losses of samples that are not there")
    if not all(type(n) is int and n >= 0 for n in counters):
        raise ValueError(f"its counters {counters} are not all natural numbers")
    n_batches = trainer.team.largest(source.n_batches or 0)  # 0 for a stream of unknown length
    if progress is not None and 0 < n_batches < progress["n_batches"]:
        raise ValueError(f"it is at batch {progress['n_batches']} of {n_batches}")
    if not all(isinstance(n, int | float) and isfinite(n) for n in numbers):
        raise ValueError("its losses are not finite")
    if not stopping.accepts(state["stopping"], atoms):
        raise ValueError(f"its rule of stopping is at {state['stopping']!r:.50}")
    n_seen = state["n_seen"]
    if (n_seen is None) != (n_now is None) or (n_seen and not 0 <= n_seen < 2**63):
        raise ValueError(f"it counts {n_seen!r:.50} samples")
    for generator in generators:
        if (generator is None) != (source.generator is None):
            raise ValueError("its generator is missing, or one of other data")
        if generator is not None:
            torch.Generator().set_state(generator)


def _has_nan(value):  # infinity is legitimate: large gradients overflow
    return isinstance(value, torch.Tensor) and bool(torch.isnan(value).any())


class _Clock:
    """Decide when to write: after some updates or some seconds."""

    def __init__(self, settings):
        self._n_updates, self._seconds = settings.every_n_updates, settings.every_seconds
        self.strike(0)

    def strike(self, n_updates):
        """Start the count again."""
        self._last = n_updates, time.monotonic()

    def is_due(self, n_updates):
        """Return whether it is time to write, even if divergence lowered the number of updates."""
        last_update, last_time = self._last
        if self._n_updates is not None and abs(n_updates - last_update) >= self._n_updates:
            return True
        return self._seconds is not None and time.monotonic() - last_time >= self._seconds


class Recorder:
    """The checkpoint of one fit, if its estimator has one among its callbacks.

    It holds the file, against other fits, until it is released.

    Parameters
    ----------
    estimator : estimator
        The estimator that fits, with its callbacks and parameters.
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
        self.is_active = False  # whether there is a checkpoint to write
        self.ended_by = None  # cause of an early end of the resumed fit, if its rule still holds
        self.in_training = False  # whether the file holds a fit after its search, or without one
        self.has_another_rule = False  # whether the rule of stopping differs from the file's
        self._source = self._written = None
        self.release = self._file.release

    def open(self, generator, team=ALONE):
        """Take hold of the file; if it holds a fit, seed the generator as that fit did.

        Parameters
        ----------
        generator : torch.Generator
            Generator of the fit.
        team : Team, default=ALONE
            Processes that train together; the first of them reads and writes.

        Raises
        ------
        ValueError
            If the file is damaged, cannot be written, or belongs to a fit that is training.
        """
        self._stored = self._file.open(team)
        self.is_active = self._file.settings is not None
        if self._stored is not None:
            generator.manual_seed(self._stored["seed"])
            self.in_training = "search" not in self._stored["shared"]
            self.has_another_rule = self._stored["rule"] != rule_of(self._estimator)
            if not self.has_another_rule:
                self.ended_by = self._stored["ended_by"]

    def recognise(self, source, samples, *, seed):
        """Compare the fit in the file with this one.

        Parameters
        ----------
        source : source of batches
            This process's data.
        samples : Samples, or iterable of Tensor
            The same data, or a part that identifies them.
        seed : int
            Seed of this fit's generator.

        Raises
        ------
        ValueError
            If the file belongs to another fit.
        """
        self._clock = _Clock(self._file.settings)
        self._seed, self._source = seed, source
        data = data_of(source, samples)
        self._identity = identity_of(self._estimator, data, self._file.team)
        if self._stored is not None:
            check_same(self._stored["identity"], self._identity, self._file.name)

    def found_search(self, problem, atoms):
        """Return the state of the search in the file; None without a search, or after its end.

        Parameters
        ----------
        problem : Problem
            Data and objective of the search.
        atoms : Tensor of shape (n_components, ...)
            Its initial atoms.

        Raises
        ------
        ValueError
            If this search cannot reach that state.
        """
        if self._stored is None or "search" not in self._stored["shared"]:
            return None
        with named_checkpoint(self._file.name):
            own = self._stored["own"][self._file.team.rank]
            state = SearchState.from_dict(self._stored["shared"]["search"] | own["search"])
            state.check(problem, atoms)
        return state

    @property
    def n_rows(self):
        """The number of rows of parameters of the training in the file."""
        with named_checkpoint(self._file.name):
            return len(self._stored["shared"]["atoms"])

    def restore(self, fitted):  # -> Fitted
        """Return the record of a fit with the values in the file that data decided before training.

        Parameters
        ----------
        fitted : Fitted
            The record with first atoms.

        Raises
        ------
        ValueError
            If no fit of the model decides these values.
        """
        with named_checkpoint(self._file.name):
            return fitted.restore(_moved(self._stored["shared"]["model"], fitted.rows.device))

    def restore_end(self, fitted):  # -> Fitted or None
        """Return the record of training with the values of the complete fit in the file.

        Parameters
        ----------
        fitted : Fitted
            The record after training.

        Returns
        -------
        Fitted or None
            None if the fit in the file is not complete, or if this fit is longer or shorter.

        Raises
        ------
        ValueError
            If no fit of the model decides these values.
        """
        end = self._stored and self._stored["end"]
        if not end or end["max_iter"] != plain(self._estimator.max_iter):
            return None
        if fitted.n_steps != self._stored["shared"]["n_updates"]:
            return None
        with named_checkpoint(self._file.name):
            found = fitted.restore(_moved(end["model"], fitted.rows.device))
        return replace(found, later=end["later"])

    def found_steps(self, check):  # -> dict or None
        """Return the state of a fit without search and updates; None without a file.

        Parameters
        ----------
        check : callable
            ``check(state)`` raises ValueError unless the fit can reach the state.

        Raises
        ------
        ValueError
            If it cannot.
        """
        if self._stored is None:
            return None
        with named_checkpoint(self._file.name):
            state = self._stored["shared"] | self._stored["own"][self._file.team.rank]
            check(state)
        return state

    def at_step(self, state, n_steps):
        """Write the state of a fit without search and updates if it is time."""
        if self._is_due(n_steps):
            self.end_steps(state, n_steps)

    def end_steps(self, state, n_steps, *, ended_by=None):
        """Write the state of a fit without search and updates, and the cause of an early end."""
        self._write(state, {}, n_steps, ended_by)

    def begin(self, trainer, source, stopping):
        """Restore training from the file.

        Raises
        ------
        ValueError
            If the file belongs to another fit.
        """
        if not self.is_active:
            return
        if self.in_training:
            with named_checkpoint(self._file.name):
                atoms = trainer.optimizer.atoms
                state = self._stored["shared"] | self._stored["own"][self._file.team.rank]
                _check(state, trainer, source, stopping, getattr(self._source, "n_seen", None))
                del state["model"]  # the trainer has its own
                if (n_seen := state.pop("n_seen")) is not None:
                    self._source.count(n_seen)
                state = TrainingState.from_dict(_moved(state, atoms.device))
                trainer.load(state, source, stopping)
            if self.has_another_rule:
                stopping.forgive()
        try:
            pack(trainer.optimizer.fresh_state())
        except ValueError as error:
            raise ValueError(
                f"optimizer={self._estimator.optimizer!r} fits into no checkpoint: {error}."
            ) from error
        self._clock.strike(trainer.n_steps)

    def at_round(self, trainer):
        """Write the state of the last round of training if it is time."""
        if self._is_due(trainer.n_steps):
            self.end(trainer)

    def at_search_epoch(self, state):
        """Write the state of a search if it is time; one epoch counts as a round."""
        if self._is_due(10 * state.epoch):
            self.end_search(state)

    def end(self, trainer, *, ended_by=None):
        """Write the state of the last round of training, and the cause of an early end."""
        if not self.is_active:
            return
        shared = trainer.state.as_dict()
        own = {name: shared.pop(name) for name in ("progress", "generator")}
        own["n_seen"] = getattr(self._source, "n_seen", None)
        shared["model"] = trainer.fitted.pack()
        self._written = shared, own, trainer.n_steps, ended_by
        self._write(*self._written)

    def complete(self, fitted):
        """Write the state of the last round once more, with all values that the fit has decided."""
        end = {"max_iter": plain(self._estimator.max_iter), "later": fitted.later}
        self._write(*self._written, end | {"model": fitted.pack()})

    def end_search(self, state):
        """Write the state of a search."""
        if not self.is_active:
            return
        search = state.as_dict()
        own = {name: search.pop(name) for name in ("codes", "best_codes", "trials")}
        self._write({"search": search}, {"search": own}, 10 * state.epoch)

    def _is_due(self, n_updates):
        return self._file.team.any(self._clock.is_due(n_updates))[0]

    def _write(self, shared, own, n_updates, ended_by=None, end=None):
        state = {"identity": self._identity, "seed": self._seed, "ended_by": ended_by}
        state |= {"rule": rule_of(self._estimator), "shared": shared, "end": end}
        self._clock.strike(n_updates)
        if error := self._file.write(state, own):
            warnings.warn(
                f"The checkpoint of update {n_updates} could not be written: {error}. "
                "Training goes on; an older checkpoint is unchanged.",
                RuntimeWarning,
                stacklevel=users_level(),
            )
