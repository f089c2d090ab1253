"""The callback that asks for a checkpoint, and its file, which one fit at a time holds."""

import os
from numbers import Integral, Real

from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    validate_parameter_constraints,
)

from skpudle._data.arrays import shortened
from skpudle._data.files import remove_parts
from skpudle._training.archive import (
    named_checkpoint,
    pack,
    read_checkpoint,
    unpack,
    write_checkpoint,
)
from skpudle._training.lock import FileLock

__all__ = ["Checkpoint", "HeldFile"]

_CONSTRAINTS = {
    "path": [str, os.PathLike],
    "every_n_updates": [Interval(Integral, 1, None, closed="left"), None],
    "every_seconds": [Interval(Real, 0, None, closed="left"), None],
    "resume": ["boolean"],
}
_ENDS = [None, "tol", "callback"]  # before its time
_STORED = {"identity", "seed", "ended_by", "rule", "shared", "own"}


class Checkpoint:
    """Write the state of training to a file, and go on from it.

    A callback for ``learner.set_callbacks(Checkpoint("fit.npz"))``. If the file exists, `fit` goes
    on from it, to the same bits as a fit that was never interrupted; after the end `fit` returns
    what was learned without training.

    Parameters
    ----------
    path : str or path-like
        The file, in a directory that exists. A link is followed, and a mode is kept.
    every_n_updates : int, default=None
        Write after at least so many updates; rounded up to rounds of training, which have ten.
    every_seconds : float, default=60.0
        Write after at least so many seconds. Whichever comes first counts; None is never.
    resume : bool, default=True
        Whether `fit` goes on from an existing file. Otherwise it replaces it.

    Raises
    ------
    ValueError
        If a parameter is none of these.

    Notes
    -----
    The file is refused, with a ValueError that names it, if it is damaged, or if it belongs to
    another learner, other parameters or other data. ``max_iter``, ``tol`` and ``n_iter_no_change``
    may change, to train longer, and so may what is no part of training. Data are compared by a
    checksum of their values and of which are missing: of an array, all; of a large memory map or a
    dataset, the rows, at most 16384 or 64 MiB, that initial atoms are chosen from; of a stream,
    the first batches up to that size, and the size of the first. An array, a memory map, a dataset
    and a stream of the same rows are different data. So are those of another number of processes;
    each compares its own.

    A fit has one file: a second `Checkpoint` is refused. A file is that of one fit at a time. While
    one is training, another that is given the same file is refused before it trains. The operating
    system lets the lock go when a process ends, however that ends; over NFS it needs a server that
    keeps locks. A search makes many fits, of other parameters or other data, so that its second one
    is refused: search without.

    Of several processes the first one's `Checkpoint` counts; the others need none.

    Learners that write no checkpoints, such as that of SPORCO, refuse this callback.

    It is written once more at the end, and after Ctrl-C. If it cannot be written, because the disk
    is full for example, there is a warning, the file before stays, and training goes on.

    Nothing in it is executed: it holds arrays and JSON, and no pickled objects.

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

    def __init__(self, path, *, every_n_updates=None, every_seconds=60.0, resume=True):
        self.path, self.resume = path, resume
        self.every_n_updates, self.every_seconds = every_n_updates, every_seconds
        try:
            validate_parameter_constraints(_CONSTRAINTS, vars(self), type(self).__name__)
        except InvalidParameterError as error:
            raise InvalidParameterError(shortened(str(error))) from None

    # scikit-learn's protocol of callbacks, which sees epochs; updates are between them
    def setup(self, estimator, context):
        """Refuse what would write nothing."""
        if not getattr(estimator, "_writes_checkpoints", False):
            raise ValueError(
                f"{type(estimator).__name__} writes no checkpoints. Give the callback to a learner "
                "of skpudle, in a pipeline to the learner inside; SPORCO's has none, and the many "
                "fits of a search cannot share a file."
            )

    def teardown(self, estimator, context):
        """Do nothing."""

    def on_fit_task_begin(self, estimator, context):
        """Do nothing."""

    def on_fit_task_end(self, estimator, context):
        """Do nothing."""


class HeldFile:
    """The file of a checkpoint, in the hands of one fit, of one process or of several.

    Parameters
    ----------
    settings : Checkpoint or None
        What the user asked for; of several processes the first one's counts.
    """

    def __init__(self, settings):
        self.settings = settings
        self.team = self._lock = self._stored = None

    @property
    def name(self):
        """The path as the user gave it."""
        return self.settings.path

    @property
    def rank(self):
        """The number of this process."""
        return 0 if self.team is None else self.team.rank

    def release(self):
        """Leave the file to others."""
        if self._lock is not None:
            self._lock.release()

    def open(self, team):
        """Take hold of the file, and return what is in it, None if there is nothing to go on from.

        Raises
        ------
        ValueError
            If the file is damaged, cannot be written, or is that of a fit which is training.
        """
        self.team, error = team, None
        if self.settings is not None and self.rank == 0:
            self._path = os.path.realpath(self.name)
            try:
                self._stored = self._take_hold()
            except (ValueError, OSError) as caught:
                error = caught
        if team is not None:
            error = self._share(error)
        if error is not None:
            raise error
        return self._stored

    def write(self, state, own):
        """Write a state, and what each process has of its own; return the error if that fails."""
        everyone = [own]
        if self.team is not None:
            packed = self.team.gather_bytes(pack(own))
            everyone = [unpack(part, self.name) for part in packed]
        if self.rank > 0:
            return None
        try:
            write_checkpoint(self._path, state | {"own": everyone})
        except (OSError, ValueError) as error:
            return error

    def _take_hold(self):  # -> the state in the file, None if there is none to go on from
        path = self.name
        if os.path.isdir(self._path):
            raise ValueError(
                f"The checkpoint {path} is a directory. Pass the path of a file, such as "
                f"{os.path.join(path, 'fit.npz')}."
            )
        self._lock = FileLock(self._path)
        try:
            free = self._lock.acquire()
        except OSError as error:
            raise ValueError(
                f"The checkpoint {path} cannot be written: {error.strerror}. Make its directory, "
                "or pass another path."
            ) from error
        if not free:
            raise ValueError(
                f"The checkpoint {path} is that of another fit, which is training. Wait for its "
                "end, stop it, or pass another path."
            )
        remove_parts(self._path)
        if not (self.settings.resume and os.path.exists(self._path)):
            return None
        stored = read_checkpoint(path)
        with named_checkpoint(path):
            if stored.keys() != _STORED:
                raise ValueError(f"it holds {sorted(stored)}, expected {sorted(_STORED)}")
            if not isinstance(stored["identity"], dict):
                raise ValueError("it does not say whose it is")
            if not (isinstance(stored["shared"], dict) and isinstance(stored["own"], list)):
                raise ValueError("it holds no state")
            if stored["ended_by"] not in _ENDS:
                raise ValueError(f"it was ended by {stored['ended_by']!r:.50}")
            if not (isinstance(stored["seed"], int) and 0 <= stored["seed"] < 2**63):
                raise ValueError(f"its seed is {stored['seed']!r:.50}")
        return stored

    def _share(self, error):  # -> the first process's error
        """Take over what the first process has: its settings, what it read, or its error."""
        has_one = self.settings is not None
        mine = []
        if has_one and self.rank == 0:
            settings = vars(self.settings) | {"path": str(self.name)}
            text = None if error is None else str(error)
            mine = [pack({"settings": settings, "stored": self._stored, "error": text})]
        (someone,) = self.team.any(has_one)
        first = self.team.first(mine)
        if not first:
            text = "Give the Checkpoint to the first of the processes, which writes it."
            return ValueError(text) if someone else None
        first = unpack(first[0], "what the first process sent")
        self.settings, self._stored = Checkpoint(**first["settings"]), first["stored"]
        return error or (first["error"] and ValueError(first["error"]))
