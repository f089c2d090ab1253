"""Checkpoints: the callback, its file, the lock on the file, and when to write.

A file is a dictionary of tensors, numbers and texts, written by `torch.save`, and the SHA-256 of
all before in its last 32 bytes. It is read with ``weights_only=True``, which executes nothing of
what it reads. A new file is written next to the old one, forced to disk, and then renamed: a
complete file exists at every moment.

One fit at a time holds a file. An empty file next to it has a lock of the operating system, which
ends with its process: a process that was killed never blocks the next. Processes in other
containers share the lock if they share the file. Over NFS it holds between machines too, if the
server keeps locks; a machine that died loses its locks with its lease there.
"""

import hashlib
import io
import os
import time
import warnings
import zlib
from contextlib import suppress
from dataclasses import is_dataclass, replace
from functools import partial
from numbers import Real
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from sklearn.utils._param_validation import (
    Interval,
    validate_parameter_constraints,
)

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.batches import Samples
from skpudle._data.files import named_errors, replace_file
from skpudle._data.foreign import dictionary_of
from skpudle._data.names import users_level
from skpudle._fit.team import refuse_several

_CONSTRAINTS = {
    "path": [str, os.PathLike],
    "every_seconds": [Interval(Real, 0, None, closed="left"), None],
    "resume": ["boolean"],
}
# parameters that may differ between processes that train one dictionary
_OWN = {"device", "random_state", "verbose"}
# parameters that may change between an interrupted fit and the resumed one; random_state is
# compared if it is a number
_FREE = _OWN | {
    "max_iter", "n_iter_no_change", "split_sign", "tol", "transform_algorithm", "transform_alpha",
    "transform_min_gain", "transform_n_nonzero_coefs", "transform_tol",
}  # fmt: skip


# ------------------------------------------------------------------ which fit a file belongs to


def _checksum(tensors):
    checksum = 0
    for tensor in tensors:
        array = np.ascontiguousarray(to_numpy(tensor))
        checksum = zlib.crc32(f"{array.shape} {array.dtype}".encode(), checksum)
        checksum = zlib.crc32(array.reshape(-1).view(np.uint8), checksum)
    return f"{checksum:08x}"


def describe(value):  # -> str
    """Return a parameter as a short text: the same for equal values, whatever their order."""
    if isinstance(value, partial):
        return " ".join(map(describe, (value.func, value.args, value.keywords)))
    if isinstance(value, dict):
        return str({name: describe(value[name]) for name in sorted(value, key=str)})
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))})"
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if hasattr(value, "__array__") or isinstance(value, torch.Tensor | list):
        return f"{np.shape(value)} {_checksum([to_tensor(value)])}"
    return getattr(value, "__qualname__", type(value).__qualname__)


def _parameters_of(estimator):  # -> dict of str to str
    parameters = estimator.get_params(deep=False)
    if "dict_init" in parameters:
        parameters["dict_init"] = dictionary_of(parameters["dict_init"])
    return {name: describe(value) for name, value in parameters.items()}


def _data_of(source, samples):  # -> str
    """Return a fingerprint of data: their kind, their size, and a checksum of the first and last.

    Parameters
    ----------
    source : source of batches
        See `skpudle._data.batches`.
    samples : Samples, or sequence of Tensor
        The data, or a part that identifies them.
    """
    kind = type(source).__name__
    if not isinstance(samples, Samples):
        n, images = len(samples), list(samples)  # and their masks
        return f"{n} images in {kind}, checksum {_checksum([*images[::n], images[-1]])}"
    parts = samples.x, samples.mask, samples.offset, samples.target, samples.weight
    ends = [part[end] for part in parts if part is not None for end in (0, -1)]
    shape = f"{source.n_samples} rows of {samples.x.shape[1]} features in {kind}"
    return f"{shape}, checksum of the first and last {_checksum(ends)}"


def task_of(estimator, data):  # -> str
    """Return what processes that fit one dictionary must have in common.

    Parameters
    ----------
    estimator : estimator
        The estimator of one of these processes.
    data : Data
        Its data: ``samples``, and names of features in ``inputs``.
    """
    x, names = data.samples.x, data.inputs.get("feature_names_in_")
    texts = {n: text for n, text in _parameters_of(estimator).items() if n not in _OWN}
    listed = "" if names is None else ", ".join(map(str, names))
    given = f"{x.shape[1]} features of {x.dtype} {listed}"
    return f"{type(estimator).__name__}({texts}) to {given}"


def _identity_of(estimator, source, samples):  # -> dict of str to str
    parameters = _parameters_of(estimator)
    identity = {name: text for name, text in parameters.items() if name not in _FREE}
    identity |= {"learner": type(estimator).__name__, "data": _data_of(source, samples)}
    if parameters["random_state"].isdigit():
        identity["random_state"] = parameters["random_state"]
    return identity


# ------------------------------------------------------------------ files


def plain(value):
    """Return records, and all that they hold, as dictionaries, tensors, numbers and texts.

    Raises
    ------
    ValueError
        If they hold another type.
    """
    if isinstance(value, np.ndarray):
        return to_tensor(value)
    if isinstance(value, np.generic):
        return value.item()
    if is_dataclass(value):
        value = vars(value)
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if value is None or isinstance(value, torch.Tensor | bool | int | float | str):
        return value
    raise ValueError(
        f"a checkpoint holds tensors, numbers and texts, and no {type(value).__name__}"
    )


def _named(path):
    """Return a context that names the file in errors of reading it."""
    advice = "Restore it, or remove it to train from the start."
    return named_errors(path, "whole checkpoint", advice)


def read_checkpoint(path):
    """Return the state in a file, its tensors on the CPU.

    Raises
    ------
    OSError
        If there is no such file, or it cannot be read.
    ValueError
        If it is no complete checkpoint; the message names it.
    """
    content = Path(path).read_bytes()
    with _named(path):
        state, digest = content[:-32], content[-32:]
        if hashlib.sha256(state).digest() != digest:
            raise ValueError(
                "its checksum is wrong, so it was cut off or changed, or is another kind of file"
            )
        try:
            return torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
        except UnpicklingError:  # its text advises to execute the file
            raise ValueError("it holds more than tensors, numbers and texts") from None


def write_checkpoint(path, state):
    """Write a state to a file: see `plain` for what it may hold, and `replace_file` for errors."""
    content = io.BytesIO()
    torch.save(plain(state), content)
    content.write(hashlib.sha256(content.getbuffer()).digest())
    replace_file(path, content.getbuffer())


class Checkpoint:
    """Write the state of a fit between two epochs to a file, and resume from it.

    A callback for ``learner.set_callbacks(Checkpoint("fit.npz"))``. If the file exists, `fit`
    resumes from it: training ends with the bits of a fit that was never interrupted, a search as
    good. If the fit in the file is complete, `fit` returns its result without training.

    Parameters
    ----------
    path : str or path-like
        The file, in a directory that exists. A link is followed.
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
    memory; of a stream by the number of its batches, too. An array, a memory map, a dataset and a
    stream of the same rows count as different data.

    A fit has one file: a second `Checkpoint` is refused. A file has one fit at a time: while it
    trains, another fit that is given the file is refused before it trains. The operating system
    releases the lock when a process ends, however it ends; over NFS this needs a server that keeps
    locks. A search makes many fits, with other parameters or other data, and its second one is
    refused: search without a `Checkpoint`.

    Fits of several processes, see `data_parallel`, refuse this callback.

    Learners that write no checkpoints, such as SPORCO's, refuse this callback.

    The file holds what the phases that have ended found, and what the running phase has found at
    the end of an epoch: a resumed fit repeats the epoch that was cut off. An epoch is an epoch of a
    search or of training, a block of rows of the pass over all rows, or a step of `PoissonNMF`;
    other phases, such as the choice of the penalty, begin again.

    The file is written at the end of a phase too, and after Ctrl-C. If it cannot be written,
    because the disk is full for example, a warning says so, the last file stays, and training
    continues.

    The file is one of `torch.save`, whose tensors, numbers and texts are read without executing any
    code.

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
        validate_parameter_constraints(_CONSTRAINTS, vars(self), type(self).__name__)

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


class Recorder:
    """The checkpoint of one fit, if its estimator has one among its callbacks.

    It holds the file, against other fits, until it is released. The file has the latest record of
    the fit with the place of its phase, and from training on the record that training began with.

    Parameters
    ----------
    estimator : estimator
        The estimator that fits, with its callbacks and parameters.

    Attributes
    ----------
    is_active : bool
        Whether there is a checkpoint to write.
    same_rule : bool
        Whether the rule that ends training is that of the file.
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
        self._estimator, self._settings = estimator, found[0] if found else None
        self._lock, self._stored, self._begun = None, None, None
        self.is_active, self.same_rule = bool(found), True

    def release(self):
        """Release the file."""
        if self._lock is not None and self._lock.is_locked:
            with suppress(OSError):  # Windows removes no open file
                os.unlink(self._lock.lock_file)
            self._lock.release()

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
        if not self.is_active:
            return
        path = self._settings.path
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
        if self._settings.resume and os.path.exists(self._path):
            self._stored = read_checkpoint(path)
            generator.manual_seed(self._stored["seed"])

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
        if not self.is_active:
            return
        estimator, identity = self._estimator, _identity_of(self._estimator, source, samples)
        rule = [estimator.max_iter, estimator.tol, estimator.n_iter_no_change]
        self._fit = {"seed": seed, "identity": identity, "rule": tuple(map(describe, rule))}
        self._written_at = time.monotonic()
        if self._stored is None:
            return
        stored = self._stored["identity"]
        if differ := [name for name in identity if identity[name] != stored.get(name)]:
            pairs = "; ".join(f"{n}: {stored.get(n)}, now {identity[n]}" for n in differ)
            raise ValueError(
                f"The checkpoint {self._settings.path} belongs to another fit ({pairs}). Use "
                "another path, remove the file to train from the start, or pass resume=False to "
                "replace it."
            )

    def resume(self, phases, record, generator):  # -> int, record
        """Return the place of the phase in the file, -1 without a file, and the record there.

        Training goes on from its first record and its state: so does a fit that has ended, if it
        may now be longer or shorter.

        Parameters
        ----------
        phases : sequence of Phase
            The phases of the fit.
        record : record
            A record of this fit, with first atoms.
        generator : torch.Generator
            The generator of the fit, whose state is set.
        """
        if self._stored is None:
            return -1, record
        with _named(self._settings.path):
            stored, rule = self._stored, self._fit["rule"]
            generator.set_state(stored["generator"])
            place, values, self._begun = stored["place"], stored["record"], stored["begun"]
            self.same_rule = stored["rule"][1:] == rule[1:]
            stays = self.same_rule and values["ended_by"] in ("tol", "callback")
            ended_by = values["ended_by"] if stays else None
            if self._begun is None:
                return place, replace(record.restore(values), ended_by=ended_by)
            training = next(i for i, phase in enumerate(phases) if phase.name == "training")
            if place > training and stored["rule"] == rule:
                return place, record.restore(values)
            known = dict(training=values["training"], ended_by=ended_by)
            return training, replace(record.restore(self._begun), **known)

    def begin_training(self, record):
        """Keep the record that training begins with."""
        if self.is_active and not record.training:
            self._begun = record.pack()

    def note(self, place, record, generator, *, ends):
        """Write a record at the end of a phase, or if it is time."""
        if not self.is_active:
            return
        waited, most = time.monotonic() - self._written_at, self._settings.every_seconds
        if not (ends or (most is not None and waited >= most)):
            return
        self._written_at = time.monotonic()
        state = {"place": place, "record": record.pack(), "begun": self._begun}
        state["generator"] = generator.get_state()
        try:
            write_checkpoint(self._path, self._fit | state)
        except (OSError, ValueError) as error:
            warnings.warn(
                f"The checkpoint could not be written: {error}. Training goes on; an older "
                "checkpoint is unchanged.",
                RuntimeWarning,
                stacklevel=users_level(),
            )
