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
from numbers import Real
from os import PathLike
from typing import Any

from filelock import FileLock, Timeout
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    validate_parameter_constraints,
)

from skpudle._data.arrays import shortened
from skpudle._data.files import remove_parts
from skpudle._data.names import users_level
from skpudle._training.archive import (
    named_checkpoint,
    pack,
    read_checkpoint,
    write_checkpoint,
)
from skpudle._training.identity import check_same, data_of, identity_of, plain, rule_of
from skpudle._training.team import refuse_several

_CONSTRAINTS = {
    "path": [str, os.PathLike],
    "every_seconds": [Interval(Real, 0, None, closed="left"), None],
    "resume": ["boolean"],
}
# parts of a file
_STORED = {"identity", "seed", "rule", "fitted", "end", "own"}


class Checkpoint:
    """Write the state of a fit between two epochs to a file, and resume from it.

    A callback for ``learner.set_callbacks(Checkpoint("fit.npz"))``. If the file exists, `fit`
    resumes from it: training ends with the bits of a fit that was never interrupted, a search as
    good. If the fit in the file is complete, `fit` returns its result without training.

    Parameters
    ----------
    path : str or path-like
        The file, in a directory that exists. A link is followed, and a mode is kept.
    every_seconds : float, default=60.0
        Write after an epoch if the last writing is this number of seconds ago; 0 writes after every
        epoch, None only at the end of a phase.
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
    may change, to train longer, and so may parameters that do not affect training. Data are
    compared by their shape and a checksum of two rows, the first and the last that `fit` keeps in
    memory; of a stream by the size of its first batch, too. An array, a memory map, a dataset and a
    stream of the same rows count as different data.

    A fit has one file: a second `Checkpoint` is refused. A file has one fit at a time: while it
    trains, another fit that is given the file is refused before it trains. The operating system
    releases the lock when a process ends, however it ends; over NFS this needs a server that keeps
    locks. A search makes many fits, with other parameters or other data, and its second one is
    refused: search without a `Checkpoint`.

    Fits of several processes, see `data_parallel`, refuse this callback.

    Learners that write no checkpoints, such as SPORCO's, refuse this callback.

    The file holds what the phases that have ended found, and the state of the running phase between
    two epochs: a resumed fit repeats the epoch that was cut off. An epoch is an epoch of a search
    or of training, a block of rows of the pass over all rows, or a step of `PoissonNMF`; other
    phases, such as the choice of the penalty, begin again.

    The file is written at the end of a phase too, and after Ctrl-C. If it cannot be written,
    because the disk is full for example, a warning says so, the last file stays, and training
    continues.

    Reading the file executes no code: it holds arrays and JSON, and no pickled objects.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import Checkpoint, PUDLEDictionaryLearning
    >>> X = load_digits().data
    >>> learner = PUDLEDictionaryLearning(32, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = Checkpoint(os.path.join(folder, "digits.npz"), every_seconds=10)
    ...     learner = learner.set_callbacks(checkpoint).fit(X)
    ...     sorted(os.listdir(folder))
    ['digits.npz']
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        every_seconds: float = 60.0,
        resume: bool = True,
    ) -> None:
        self.path, self.every_seconds, self.resume = path, every_seconds, resume
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
    """The file of a checkpoint, held by one fit.

    Parameters
    ----------
    settings : Checkpoint or None
        The user's callback.
    """

    def __init__(self, settings):
        self.settings, self._lock = settings, None

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

    def write(self, state):
        """Write the state; return the error if that fails."""
        try:
            write_checkpoint(self._path, state)
        except (OSError, ValueError) as error:
            return error

    def open(self):
        """Take hold of the file; return the state in it, or None without a state to resume from.

        Raises
        ------
        ValueError
            If the file is damaged, cannot be written, or belongs to a fit that is training.
        """
        path = self.name
        self._path = os.path.realpath(path)
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
            if not (isinstance(stored["seed"], int) and 0 <= stored["seed"] < 2**63):
                raise ValueError(f"its seed is {stored['seed']!r:.50}")
        return stored


class Recorder:
    """The checkpoint of one fit, if its estimator has one among its callbacks.

    It holds the file, against other fits, until it is released. The file has the record of the
    phases before training once they have ended. Until then it has their states, one for each phase
    that `FitRun.run` ran, and later the state of training.

    Parameters
    ----------
    estimator : estimator
        The estimator that fits, with its callbacks and parameters.

    Attributes
    ----------
    is_active : bool
        Whether there is a checkpoint to write.
    has_record : bool
        Whether the file holds the record of the phases before training.
    """

    def __init__(self, estimator):
        found = [c for c in getattr(estimator, "_skl_callbacks", []) if isinstance(c, Checkpoint)]
        if len(found) > 1:
            paths = ", ".join(str(checkpoint.path) for checkpoint in found)
            raise ValueError(
                f"A fit writes one checkpoint, but got {len(found)}: {paths:.300}. Pass one."
            )
        if found:
            refuse_several("A fit with a Checkpoint")
        self._estimator, self._file = estimator, HeldFile(found[0] if found else None)
        self._stored, self._own = None, {}  # the file's content, and its states of phases
        self._fitted, self._states = None, {}  # to write: a packed record, states by phase
        self.is_active, self.has_record = bool(found), False
        self.release = self._file.release

    def open(self, generator):
        """Take hold of the file; if it holds a fit, seed the generator as that fit did.

        Parameters
        ----------
        generator : torch.Generator
            Generator of the fit.

        Raises
        ------
        ValueError
            If the file is damaged, cannot be written, or belongs to a fit that is training.
        """
        self._stored = self._file.open() if self.is_active else None
        if self._stored is not None:
            generator.manual_seed(self._stored["seed"])
            self.has_record = self._stored["fitted"] is not None

    def recognise(self, source, samples, *, seed):
        """Compare the fit in the file with this one.

        Parameters
        ----------
        source : source of batches
            The data.
        samples : Samples, or iterable of Tensor
            The same data, or a part that identifies them.
        seed : int
            Seed of this fit's generator.

        Raises
        ------
        ValueError
            If the file belongs to another fit.
        """
        self._seed, self._source, self._written_at = seed, source, time.monotonic()
        self._identity = identity_of(self._estimator, data_of(source, samples))
        if self._stored is not None:
            check_same(self._stored["identity"], self._identity, self._file.name)
            with self._named():
                self._own = self._stored["own"]
                self._states = dict(self._own)
                if (n_seen := self._states.pop("n_seen")) is not None:
                    source.count(n_seen)

    def _named(self):
        return named_checkpoint(self._file.name)

    # ------------------------------------------------------------------ the running phase

    def resume(self, phase):
        """Let a phase go on from its state in the file, if there is one.

        Raises
        ------
        ValueError
            If the phase cannot reach the state.
        """
        if phase.key in self._own:
            same_rule = self._stored["rule"] == rule_of(self._estimator)
            with self._named():
                phase.resume(self._own[phase.key], same_rule=same_rule)

    def note(self, phase, *, ends=False):
        """Keep the state of a phase between two epochs; write it at its end, or if it is time."""
        if (state := phase.pack()) is None:
            return
        self._states[phase.key] = state
        waited, most = time.monotonic() - self._written_at, self._file.settings.every_seconds
        if ends or (most is not None and waited >= most):
            self.write()

    def refuse(self, optimizer):
        """Raise ValueError if no file holds the state of an optimiser, before its first update."""
        try:
            pack(optimizer.fresh_state())
        except ValueError as error:
            raise ValueError(
                f"optimizer={self._estimator.optimizer!r} fits into no checkpoint: {error}."
            ) from error

    # ------------------------------------------------------------------ the record of a fit

    def note_record(self, fitted, generator):
        """Keep and write the record of the phases before training, in place of their states."""
        self._fitted = {"record": fitted.pack(), "generator": generator.get_state()}
        self._states = {}
        self.write()

    @property
    def n_rows(self):
        """The number of rows of parameters of the record in the file."""
        with self._named():
            return len(self._stored["fitted"]["record"]["rows"])

    def restore(self, fitted, generator):  # -> Fitted
        """Return the record in the file, and set the generator to the end of its phases.

        Parameters
        ----------
        fitted : Fitted
            A record with the model of this fit, and with first atoms.
        generator : torch.Generator
            Generator of the fit.

        Raises
        ------
        ValueError
            If the record is of other rows.
        """
        self._fitted = self._stored["fitted"]
        with self._named():
            generator.set_state(self._fitted["generator"])
            return fitted.restore(self._fitted["record"])

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
            If the record is of other rows.
        """
        end = self._stored and self._stored["end"]
        if not end:
            return None
        with self._named():
            known = end["max_iter"], end["fitted"]["n_steps"]
            if known != (plain(self._estimator.max_iter), fitted.n_steps):
                return None
            return replace(fitted.restore(end["fitted"]), ended_by=fitted.ended_by)

    def complete(self, fitted):
        """Write the state of the last epoch once more, with the record of the whole fit."""
        self.write({"max_iter": plain(self._estimator.max_iter), "fitted": fitted.pack()})

    def write(self, end=None):
        """Write the record and the states that were noted last."""
        self._written_at = time.monotonic()
        state = {"identity": self._identity, "seed": self._seed, "end": end}
        state |= {"rule": rule_of(self._estimator), "fitted": self._fitted}
        n_seen = getattr(self._source, "n_seen", None)
        if error := self._file.write(state | {"own": self._states | {"n_seen": n_seen}}):
            warnings.warn(
                f"The checkpoint could not be written: {error}. Training goes on; an older "
                "checkpoint is unchanged.",
                RuntimeWarning,
                stacklevel=users_level(),
            )
