"""Checkpoints: the callback, which fit a file belongs to, and the file.

A file is a dictionary of records, tensors, numbers and texts, written by `torch.save`, and read
with ``weights_only=True``, which executes nothing of what it reads. A new file is written next to
the old one, forced to disk, and then renamed: a complete file exists at every moment.
"""

import io
import time
import zipfile
from numbers import Integral
from os import PathLike
from pathlib import Path
from pickle import PicklingError, UnpicklingError
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.callback import FitCallback

from skpudle._data.arrays import to_numpy
from skpudle._data.foreign import dictionary_of, named_errors, replace_file
from skpudle._fit.messages import describe, warn

# parameters that may change between an interrupted fit and the resumed one
_FREE = {
    "device", "max_iter", "n_iter_no_change", "split_sign", "tol", "transform_algorithm",
    "transform_alpha", "transform_min_gain", "transform_n_nonzero_coefs", "verbose",
}  # fmt: skip


# ------------------------------------------------------------------ which fit a file belongs to


def identity_of(estimator, data):  # -> dict of str to str
    """Return what a fit and a file must have in common: parameters, shape, first and last rows."""
    given, source = estimator.get_params(deep=False), data.source
    given["dict_init"] = dictionary_of(given["dict_init"])
    if not isinstance(given["random_state"], Integral):  # the file has the seed
        del given["random_state"]
    ends = vars(data.samples[[0, -1]]).values()
    checksum = joblib.hash([to_numpy(part) for part in ends if part is not None])
    shape = f"{source.n_samples} rows of {data.samples.x.shape[1]} features"
    shape = f"{shape} in {type(source).__name__}, checksum of the first and last {checksum}"
    about = {"learner": type(estimator).__name__, "data": shape}
    return {name: describe(value) for name, value in given.items() if name not in _FREE} | about


# ------------------------------------------------------------------ the callback and its file


class Checkpoint(FitCallback):
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

    Notes
    -----
    The file is refused, with a ValueError that names it, if it is damaged, or if it belongs to
    another learner, other parameters or other data. ``max_iter``, ``tol`` and ``n_iter_no_change``
    may change, to train longer, and so may parameters that do not affect training. Data are
    compared by their shape and a checksum of two rows, the first and the last that `fit` keeps in
    memory; of a stream by the number of its batches, too. An array, a memory map, a dataset and a
    stream of the same rows count as different data.

    A file is for one fit: two fits at a time would overwrite each other's file. A search over
    parameters makes many fits, and its second one is refused: search without a `Checkpoint`. A fit
    with several callbacks goes on from the first file that exists, and writes all.

    Fits of several processes, see `data_parallel`, refuse this callback.

    Learners that write no checkpoints, such as SPORCO's, refuse this callback.

    The file holds what the phases that have ended found, and what the running phase has found at
    the end of an epoch: a resumed fit repeats the epoch that was cut off. An epoch is an epoch of a
    search or of training, a block of rows of the pass over all rows, or a step of `PoissonNMF`;
    other phases, such as the choice of the penalty, begin again. What follows training is made
    again, too.

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
        self, path: str | PathLike[str], *, every_seconds: float = 60.0, resume: bool = True
    ) -> None:
        self.path, self.every_seconds, self.resume = path, every_seconds, resume

    # scikit-learn's protocol of callbacks, which has hooks for epochs, but not for updates
    def setup(self, estimator: Any, context: Any) -> None:
        """Refuse estimators that write no checkpoints."""
        if not getattr(estimator, "_writes_checkpoints", False):
            raise ValueError(
                f"{type(estimator).__name__} writes no checkpoints. Give the callback to a learner "
                "of skpudle, in a pipeline to the learner inside; SPORCO's has none, and the many "
                "fits of a search cannot share a file."
            )


def _load(file):
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:  # its text advises to execute the file
        raise ValueError("it holds more than records, tensors, numbers and texts") from None


def pack(record):  # -> ndarray of uint8
    """Return a record as the bytes of a file."""
    content = io.BytesIO()
    torch.save(record, content)
    return np.frombuffer(content.getvalue(), np.uint8)


def unpack(content):  # ndarray of uint8 -> record
    """Return the record of some bytes; nothing in them is executed."""
    return _load(io.BytesIO(content.tobytes()))


def write_checkpoint(path, state):
    """Write a state to a file, if it can be read again.

    Raises
    ------
    OSError
        If the file cannot be written; an older one then stays.
    ValueError
        If the state holds more than records, tensors, numbers and texts.
    """
    content = pack(state)
    unpack(content)
    replace_file(path, content.data)


def read_checkpoint(path):
    """Return the state in a file, its tensors on the CPU.

    Raises
    ------
    ValueError
        If it is no complete checkpoint; the message names it.
    """
    advice = "Restore it, or remove it to train from the start."
    with named_errors(path, "whole checkpoint", advice):
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                raise ValueError("its checksum is wrong")
        return _load(path)


class Recorder:
    """The checkpoint of one fit.

    Parameters
    ----------
    checkpoint : Checkpoint
        The callback.
    estimator, data : estimator, Data
        The fit.
    """

    def __init__(self, checkpoint, estimator, data):
        self._checkpoint, self._written_at = checkpoint, time.monotonic()
        self._identity, self.stored = identity_of(estimator, data), None
        if not (checkpoint.resume and Path(checkpoint.path).exists()):
            return
        self.stored = read_checkpoint(checkpoint.path)
        pairs = [(n, self.stored["identity"].get(n), now) for n, now in self._identity.items()]
        if differ := [f"{n}: {before}, now {now}" for n, before, now in pairs if before != now]:
            raise ValueError(
                f"The checkpoint {checkpoint.path} belongs to another fit ({'; '.join(differ)}). "
                "Use another path, remove the file to train from the start, or pass resume=False "
                "to replace it."
            )

    def note(self, record, generator, *, ends):
        """Write a record at the end of a phase, or if it is time.

        Parameters
        ----------
        record : record
            The record.
        generator : torch.Generator
            Random numbers of the fit.
        ends : bool
            Whether the phase ends.
        """
        now, every = time.monotonic(), self._checkpoint.every_seconds
        if not (ends or (every is not None and now - self._written_at >= every)):
            return
        self._written_at = now
        random = {"seed": generator.initial_seed(), "generator": generator.get_state()}
        state = {"identity": self._identity, "record": record, **random}
        try:
            write_checkpoint(self._checkpoint.path, state)
        except (OSError, PicklingError, ValueError) as error:
            said = f"The checkpoint could not be written: {error}. Training goes on; an older "
            warn(f"{said}checkpoint is unchanged.", RuntimeWarning)
