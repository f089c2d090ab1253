"""Checkpoints: the state of training on disk, so that a killed fit goes on where it was.

A file is an npz archive without pickled objects: arrays, and a header in JSON that says where they
belong. The last 40 bytes are a mark and the SHA-256 of all before, so that a file that was cut off
or changed in a single bit is refused. It is written beside the old one, forced to disk, and then
renamed, so that there is a whole one at every moment.
"""

import hashlib
import io
import json
import os
import time
import warnings
import zipfile
import zlib
from numbers import Integral
from pathlib import Path

import numpy as np
import torch

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.foreign import dictionary_of
from skpudle._training.state import TrainingState

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]

_MARK = b"skpudle1"
_ARRAY = "array"  # the key of a reference to an array inside the header

# Parameters that may change between an interrupted fit and the one that goes on.
_FREE = {
    "device",
    "max_iter",
    "n_iter_no_change",
    "random_state",  # is compared where it is a number, by its first process
    "split_sign",
    "tol",
    "transform_algorithm",
    "transform_alpha",
    "verbose",
}


def _take_out(tree, arrays, path="state"):
    """Return the tree with references in place of its tensors, which go to ``arrays``."""
    if isinstance(tree, torch.Tensor):
        arrays[path] = to_numpy(tree)
        return {_ARRAY: path}
    if isinstance(tree, dict):
        return {key: _take_out(value, arrays, f"{path}.{key}") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_take_out(value, arrays, f"{path}.{i}") for i, value in enumerate(tree)]
    return tree


def _put_back(tree, arrays, device):
    if isinstance(tree, dict):
        if tree.keys() == {_ARRAY}:
            return to_tensor(arrays[tree[_ARRAY]], device)
        return {key: _put_back(value, arrays, device) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_put_back(value, arrays, device) for value in tree]
    return tree


def _moved(tree, device):
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {name: _moved(value, device) for name, value in tree.items()}
    return [_moved(value, device) for value in tree] if isinstance(tree, list) else tree


def _pack(state):  # -> bytes-like
    arrays = {}
    header = json.dumps(_take_out(state, arrays)).encode()
    archive = io.BytesIO()
    np.savez(archive, header=np.frombuffer(header, np.uint8), **arrays)
    archive.write(_MARK + hashlib.sha256(archive.getbuffer()).digest())
    return archive.getbuffer()


def _unpack(content, path, device):  # bytes -> state
    archive, mark, digest = content[:-40], content[-40:-32], content[-32:]
    reason = "its checksum is wrong, so it was cut off or changed, or is something else"
    if mark == _MARK and hashlib.sha256(archive).digest() == digest:
        try:
            with np.load(io.BytesIO(archive), allow_pickle=False) as stored:
                arrays = dict(stored)
            return _put_back(json.loads(arrays["header"].tobytes()), arrays, device)
        except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            reason = f"somebody else made it ({error})"
    raise ValueError(
        f"{path} is no whole checkpoint: {reason}. Restore it, or remove it to train from the "
        "start."
    )


def write_checkpoint(path, state):
    """Write a state to a file, atomically.

    Parameters
    ----------
    path : str or path-like
        Where to. A file of that name is replaced at the very end; ``path`` with ``.part`` added is
        written to before.
    state : dict
        Tensors, numbers, text, None, and lists and dictionaries of them.

    Raises
    ------
    OSError
        If the file cannot be written; an older one is then still there.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(_pack(state))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the new name itself is on disk once its directory is
        directory = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def read_checkpoint(path, device="cpu"):
    """Return the state in a file.

    Parameters
    ----------
    path : str or path-like
        A file that `write_checkpoint` wrote.
    device : str or torch.device, default="cpu"
        Where to put its tensors.

    Returns
    -------
    dict
        The state.

    Raises
    ------
    OSError
        If there is no such file, or it cannot be read.
    ValueError
        If it is no whole checkpoint; the message names it.
    """
    return _unpack(Path(path).read_bytes(), path, device)


def _plain(value):  # numbers of numpy as those of Python, which they equal
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _describe(value):  # of a parameter, the same in every process
    value = _plain(value)
    if hasattr(value, "__array__") or isinstance(value, torch.Tensor | list):
        return f"{np.shape(value)} {_checksum([to_tensor(value)])}"
    simple = value is None or isinstance(value, bool | int | float | str | tuple | dict)
    return repr(value) if simple else getattr(value, "__qualname__", type(value).__qualname__)


def _checksum(tensors):
    checksum = 0
    for tensor in tensors:
        array = np.ascontiguousarray(to_numpy(tensor))
        checksum = zlib.crc32(f"{array.shape} {array.dtype}".encode(), checksum)
        checksum = zlib.crc32(array.reshape(-1).view(np.uint8), checksum)
    return f"{checksum:08x}"


class Checkpoint:
    """Write the state of training to a file, and go on from it.

    A callback for ``learner.set_callbacks(Checkpoint("fit.npz"))``. If the file exists, `fit` goes
    on from it, to the same bits as a fit that was never interrupted; after the end `fit` returns
    what was learned without training.

    Parameters
    ----------
    path : str or path-like
        The file.
    every_n_updates : int, default=None
        Write after at least so many updates; rounded up to rounds of training, which have ten.
    every_seconds : float, default=60.0
        Write after at least so many seconds. Whichever comes first counts; None is never.
    resume : bool, default=True
        Whether `fit` goes on from an existing file. Otherwise it replaces it.

    Notes
    -----
    The file is refused, with a ValueError that names it, if it is damaged, or if it belongs to
    another learner, other parameters or other data (of a stream, another first batch; of several
    processes, at most 16384 rows of each are compared). ``max_iter``, ``tol`` and
    ``n_iter_no_change`` may change, to train longer, and so may what is no part of training.

    A file is that of one fit. A search makes many, which refuse one another's: search without.

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
    >>> learner = PUDLEDictionaryLearning(32, max_iter=2, tol=None, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = Checkpoint(os.path.join(folder, "digits.npz"), every_n_updates=10)
    ...     learner = learner.set_callbacks(checkpoint).fit(X)
    ...     sorted(os.listdir(folder))
    ['digits.npz']
    """

    def __init__(self, path, *, every_n_updates=None, every_seconds=60.0, resume=True):
        self.path, self.resume = path, resume
        self.every_n_updates, self.every_seconds = every_n_updates, every_seconds

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


class Recorder:
    """The checkpoint of one fit, if its estimator has one among its callbacks.

    Parameters
    ----------
    estimator : estimator
        Asked for its callbacks and parameters.
    team : Team, default=None
        Processes that train together; the first of them reads and writes.
    """

    def __init__(self, estimator, team=None):
        found = [c for c in getattr(estimator, "_skl_callbacks", []) if isinstance(c, Checkpoint)]
        self._checkpoint, self._team = found[0] if found else None, team
        self._estimator = estimator
        self._rule = [_plain(estimator.tol), int(estimator.n_iter_no_change)] if found else None
        self._stored = self._read() if found else None

    @property
    def seed(self):
        """The seed of the fit that goes on, or None."""
        return self._stored and self._stored["seed"]

    @property
    def finished(self):
        """Whether the fit that goes on had stopped by itself, by the rule that still holds."""
        return bool(self._stored and self._stored["finished"] and not self._rule_changed)

    @property
    def _rule_changed(self):
        return self._stored["rule"] != self._rule

    def begin(self, trainer, source, stopping, *, seed, sample):
        """Bring training to where the file left it, and watch it from there.

        Raises
        ------
        ValueError
            If the file belongs to a fit of something else.
        """
        if self._checkpoint is None:
            return
        self._trainer, self._source, self._stopping = trainer, source, stopping
        self._seed = seed
        rank = 0 if self._team is None else self._team.rank
        parameters = self._estimator.get_params(deep=False)
        if "dict_init" in parameters:
            parameters["dict_init"] = dictionary_of(parameters["dict_init"])
        self._identity = {k: _describe(v) for k, v in parameters.items() if k not in _FREE} | {
            "learner": type(self._estimator).__name__,
            "processes": 1 if self._team is None else self._team.size,
            "data": f"{len(sample)} samples, checksum {_checksum(sample.split(2**14))}"
            if isinstance(sample, torch.Tensor)
            else f"{len(sample)} images, checksum {_checksum(sample)}",
        }
        if rank == 0 and isinstance(self._estimator.random_state, Integral):
            self._identity["random_state"] = str(self._estimator.random_state)
        if self._stored is not None:
            self._compare()
            state = self._stored["shared"] | self._stored["own"][rank]
            state = _moved(state, trainer.optimizer.atoms.device)
            trainer.load(TrainingState.from_dict(state), stopping)
            if self._rule_changed:
                stopping.forgive()
        self._written = trainer.n_steps, time.monotonic()

    def end(self, *, finished):
        """Write the state at the end of training, or of the last round if it was interrupted."""
        if self._checkpoint is not None:
            if finished is not None:
                self._trainer.mark(self._source, self._stopping)
            self._write(finished=bool(finished))

    def at_round(self, trainer):
        """Write the state of the last round if it is time."""
        if self._checkpoint is None:
            return
        n_steps, (last_update, last_time) = trainer.n_steps, self._written
        n, seconds = self._checkpoint.every_n_updates, self._checkpoint.every_seconds
        due = n is not None and abs(n_steps - last_update) >= n  # divergence takes updates back
        due = due or (seconds is not None and time.monotonic() - last_time >= seconds)
        if self._team is not None:
            (due,) = self._team.any(due)
        if due:
            self._write(finished=False)

    def _write(self, *, finished):
        shared = self._trainer.state.as_dict()
        own = {name: shared.pop(name) for name in ("progress", "generator")}
        everyone = [own]
        if self._team is not None:
            packed = self._team.gather_bytes(_pack(own))
            everyone = [_unpack(part, self._checkpoint.path, "cpu") for part in packed]
        state = {"identity": self._identity, "seed": self._seed}
        state |= {"finished": finished, "rule": self._rule}
        self._written = self._trainer.n_steps, time.monotonic()
        if self._team is not None and self._team.rank > 0:
            return
        try:
            write_checkpoint(self._checkpoint.path, state | {"shared": shared, "own": everyone})
        except OSError as error:
            warnings.warn(
                f"The checkpoint of update {self._trainer.n_steps} could not be written: {error}. "
                "Training goes on; an older checkpoint is as it was.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _read(self):
        path, found = Path(self._checkpoint.path), []
        if self._checkpoint.resume and path.exists():
            found = [path.read_bytes()]
        if self._team is not None:
            found = self._team.first(found)
        return _unpack(found[0], path, "cpu") if found else None

    def _compare(self):
        stored, present = self._stored["identity"], self._identity
        differ = [name for name in present if present[name] != stored.get(name)]
        if differ:
            pairs = "; ".join(f"{name}: {stored.get(name)}, now {present[name]}" for name in differ)
            raise ValueError(
                f"The checkpoint {self._checkpoint.path} belongs to another fit ({pairs}). Use "
                "another path, remove the file to train from the start, or pass resume=False to "
                "replace it."
            )
