"""Run the phases of a fit: callbacks, Ctrl-C, the checkpoint, progress, seconds, other processes.

A `Record` holds the results of a fit so far; that of rows or images is a `Fitted`, from first atoms
to the last encoder. A phase is one stage of a fit, such as a search or training. It is a generator
function: ``steps(record)`` yields a new record for each epoch, and each record makes a usable
learner. Phases are run by `Run.make_phases` alone, so that callbacks, Ctrl-C and checkpoints work
in all phases. A subclass of `Run` has the phases of a kind of learners, as methods; `FollowedFit`
is for estimators whose fit is a single phase.

`skpudle._fit.plan.Plan.attributes` makes the fitted attributes of a record. The learner keeps what
these attributes lack and `partial_fit` needs, see `Fitted.kept`.

A checkpoint is a file with a dictionary of records, tensors, numbers and texts, written by
`torch.save`, and read with ``weights_only=True``, which executes nothing of what it reads. A new
file is written next to the old one, forced to disk, and then renamed: a complete file exists at
every moment.
"""

import io
import os
import signal
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from os import PathLike
from pathlib import Path
from pickle import PicklingError, UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import Bunch

from skpudle._data import arrays
from skpudle._data.sources import Samples
from skpudle._fit.callbacks import CallbackSupportMixin, FitCallback
from skpudle._fit.messages import describe, refuse, refuse_several
from skpudle._fit.train import Diverged, current_team
from skpudle._states import (
    Coding,
    FactorScore,
    Held,
    PenaltyPath,
    Prediction,
    SearchState,
    SizePath,
    StreamState,
    Trial,
)
from skpudle._units import CENTRED, RowNoise, Units
from skpudle.encoding._learned import LearnedEncoder

# Parameters that may differ between an interrupted fit and the fit that resumes it, since they have
# no effect on training, or only on its end.
_FREE = {
    "device", "max_iter", "n_iter_no_change", "split_sign", "tol", "transform_algorithm",
    "transform_alpha", "transform_min_gain", "transform_n_nonzero_coefs", "verbose",
}  # fmt: skip


# ------------------------------------------------------------------ Ctrl-C


class Interrupts:
    """A context in which Ctrl-C only sets ``pending``; a second Ctrl-C interrupts at once.

    Training reads ``pending`` after each update, and then ends in a usable state. Only Python's own
    handler of the signal, in the main thread, is replaced, and it is restored at the end; a handler
    that other code installed stays in place. At the end of the context KeyboardInterrupt is raised
    after a Ctrl-C, unless another error has ended the context.
    """

    pending = False

    def __enter__(self):
        self._installed = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._installed:
            signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number, frame):  # the handler of a first Ctrl-C
        self.pending = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, kind, error, traceback):
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.pending and kind is None:
            raise KeyboardInterrupt


def take(estimator, attributes):
    """Set the fitted attributes in the dict ``attributes`` on an estimator, at the end of a fit.

    What a fit did not decide is None. Only what scikit-learn reads of the input, its number and
    names of features, is absent instead of None, as in scikit-learn.
    """
    vars(estimator).update(attributes)
    # `get` returns the estimator, which is not None, for a name that is not in ``attributes``
    for name in ("n_features_in_", "feature_names_in_"):
        if attributes.get(name, estimator) is None:
            delattr(estimator, name)


# ------------------------------------------------------------------ records


def as_arrays(path):  # NamedTuple of Tensor (n_tried,) -> Bunch of ndarray (n_tried,)
    """Return ``size_path_`` or ``penalty_path_``: what was tried, and how well it predicts.

    ``path`` is a `SizePath` or `PenaltyPath`; None stays None.
    """
    if path is None:
        return None
    return Bunch(
        **{name: arrays.to_numpy(part) for name, part in path._asdict().items()}
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Record:
    """The results of a fit so far, in the part that all kinds of learners share.

    `Run` reads and sets these fields. A record does not change; a phase makes a new one by
    `dataclasses.replace`.

    Parameters
    ----------
    done : tuple of str, default=()
        Names of the phases that need not be run any more.
    again : str, default=None
        Name of a phase that has been done, and from which the phases have to be run again.
    is_done : bool, default=True
        Whether the phase that made the record has ended.
    ended_by : str, default=None
        The cause of the end of the fit, as in ``ended_by_``; None before the end.
    note : str, default=""
        A line of progress, which ``verbose`` prints.
    """

    done: tuple = ()
    again: str | None = None
    is_done: bool = True
    ended_by: str | None = None
    note: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Fitted(Record):
    """The results of a fit so far, of rows or of images.

    Atoms and penalties belong to rows in the ``units``: the baseline is subtracted, and the
    difference is divided by the noise. Of images they belong to channels in the units of
    `skpudle._learners.convolutional.phases.Channels`.

    A fit has several penalties. ``penalty`` follows from the size of the data alone. ``alpha`` is
    the user's number or, with alpha="auto", follows from ``penalty``. A search begins with one of
    the two, see `skpudle._fit.plan.Plan.search_penalty`. With alpha="auto" it tries others, and it
    ends with ``search_alpha``; ``searched.alpha`` is the same penalty, divided by the unit of the
    search's `Problem`. Training and `partial_fit` keep ``alpha``. `transform` uses
    ``coding.alpha``, which predictions of hidden entries have chosen, or ``alpha`` if ``coding`` is
    None.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, ...)
        The atoms.
    extra : Tensor, default=None
        What is trained beside the atoms, such as weights of a task, see
        `skpudle._fit.plan.Plan.join`.
    alpha : float, default=None
        The penalty of soft codes in training, or the threshold of hard codes; None before data are
        seen.
    data_scale : float, default=None
        Mean squared norm of a sample; None before data are seen.
    curvature : float, default=1.0
        The second derivative of the loss in the reconstruction, on average; 1 for least squares.
    from_samples : bool, default=False
        Whether training began with samples as atoms instead of a search.
    n_updates : int, default=1
        Number of updates over which ``lambda_decay`` is annealed; with 1 it has its last value.
    units : Units, default=CENTRED
        The units in which rows are learned: baseline, limits of outliers, and scales of noise.
    search_alpha : float, default=None
        The penalty that the search has reached or ended with; None without a search.
    searched : SearchState, default=None
        The state or result of the search, without its coded data; None without a search.
    penalty : float, default=None
        The default penalty for data of this size, by which a search with ``alpha="auto"`` begins.
    penalty_factor : float, default=1.0
        Factor from penalties of the search to penalties of training. It differs from 1 for counts,
        whose search is in rows that are scaled to a standard deviation of 1.
    pass_state : StreamState, default=None
        The state of a pass over all rows that has not ended.
    coding : Coding, default=None
        For `transform`, if the data have chosen it: penalty of codes, share of the lasso's bias to
        remove, and standard deviation of the noise. Otherwise None.
    factor_score : FactorScore, default=None
        How well factor analysis predicts hidden entries; None if they were not predicted.
    size_path : SizePath, default=None
        The numbers of atoms that were tried, if one was chosen from the data.
    losses : tuple of float, default=()
        Mean losses of the epochs of the search, and of the pass over all rows.
    loss_curve : tuple of float, default=()
        Mean losses of the epochs of training.
    n_steps : int, default=0
        Number of updates by gradients.
    has_codes : bool, default=True
        Whether a code was not zero in the last epoch of a search or of training. If none was, `fit`
        warns.
    training : dict, default={}
        The state of training: "moments", the state of the optimiser. In a fit also "epoch", see
        `Trainer`, "stopping", the course of `Stopping`, and the state of the "generator" of
        batches. After `partial_fit` also "unused", for how many samples each atom has been unused.
        Empty without training.
    outliers : Tensor of shape (n_outliers, 2), default=None
        Row and feature of each entry that the fit treated as missing.
    stream : StreamState, default=None
        What `partial_fit` by blocks of rows needs to know of earlier rows.
    buffer : Samples, default=None
        Rows of `partial_fit` that are too few for a block, and wait for the next call.
    first_rows : Samples, default=None
        All rows so far of `partial_fit`, while they are too few to learn units from.
    learned_encoder : LearnedEncoder, default=None
        The encoder of ``separate_atoms``, trained after the dictionary.
    later : dict of str to int, default={}
        Names of phases after training, and their numbers of epochs.
    """

    atoms: torch.Tensor
    extra: torch.Tensor | None = None
    alpha: float | None = None
    data_scale: float | None = None
    curvature: float = 1.0
    from_samples: bool = False
    n_updates: int = 1
    units: Units = CENTRED
    search_alpha: float | None = None
    searched: SearchState | None = None
    penalty: float | None = None
    penalty_factor: float = 1.0
    pass_state: StreamState | None = None
    coding: Coding | None = None
    factor_score: FactorScore | None = None
    size_path: SizePath | None = None
    losses: tuple = ()
    loss_curve: tuple = ()
    n_steps: int = 0
    has_codes: bool = True
    training: dict = field(default_factory=dict)
    outliers: torch.Tensor | None = None
    stream: StreamState | None = None
    buffer: Samples | None = None
    first_rows: Samples | None = None
    learned_encoder: LearnedEncoder | None = None
    later: dict = field(default_factory=dict)

    def penalties(self, debias):  # -> dict
        """Return the fitted attributes of penalties, noise, and what was tried.

        Without a ``coding`` chosen from the data, codes of `transform` have the penalty ``alpha``.
        ``debias`` is the share of the lasso's bias, from 0 to 1, that the user has asked to remove;
        None if the data choose it.
        """
        coding = self.coding or Coding(self.alpha, debias or 0.0)
        return {
            "alpha_": coding.alpha,
            "debias_": coding.debias,
            "noise_std_": coding.noise_std,
            "search_alpha_": self.search_alpha,
            "size_path_": as_arrays(self.size_path),
            "penalty_path_": as_arrays(self.searched and self.searched.path),
        }

    def kept(self):  # -> Fitted
        """Return the record that a fitted learner keeps as ``_fitted``, on the CPU.

        `partial_fit` goes on from it and from the fitted attributes, which the record leaves out. A
        field that a later call needs, and no fitted attribute has, must be named here.
        """
        kept = Fitted(
            atoms=None,
            alpha=self.alpha,
            data_scale=self.data_scale,
            curvature=self.curvature,
            from_samples=self.from_samples,
            # `units_of` makes the atoms of the units from ``components_``
            units=replace(self.units, atoms=None),
            search_alpha=self.search_alpha,
            coding=self.coding,
            training={
                name: state
                for name, state in self.training.items()
                if name in ("moments", "unused")
            },
            stream=self.stream,
            buffer=self.buffer,
            first_rows=self.first_rows,
        )
        # `unpack` reads all tensors onto the CPU
        return kept if self.atoms.device.type == "cpu" else unpack(pack(kept))


# Types that `load_record` may read. A new type in a record has to be added here, or checkpoints
# that hold it cannot be read.
torch.serialization.add_safe_globals(
    [
        Coding,
        FactorScore,
        Fitted,
        Held,
        LearnedEncoder,
        PenaltyPath,
        Prediction,
        RowNoise,
        Samples,
        SearchState,
        SizePath,
        StreamState,
        Trial,
        Units,
    ]
)


# ------------------------------------------------------------------ files of records


@contextmanager
def named_errors(file, what, advice):
    """Turn every error of a ``with`` block that reads a file of unknown origin into a ValueError.

    Parameters
    ----------
    file : str or path-like
        The file's name.
    what : str
        Kind of file expected: the message says that the file "is not a" file of this kind.
    advice : str
        Sentence that says how to get a file of this kind.

    Raises
    ------
    ValueError
        If the block raises any `Exception`. The message has the name of the file and the advice.
    """
    try:
        yield
    except Exception as error:  # which errors a damaged file causes is not documented
        reason = str(error)
        if not isinstance(error, ValueError):
            reason = f"{type(error).__name__}: {reason}"
        raise ValueError(
            f"{file} is not a {what}: {reason.rstrip('.'):.500}. {advice}"
        ) from error


def replace_file(path, content):
    """Write a file atomically, so that no reader and no crash finds half of its content.

    The content goes to the file ``path.part``, which then takes the name ``path``.

    Parameters
    ----------
    path : str or path-like
        Path of the file. An older file is replaced at the very end; a link is followed.
    content : bytes-like
        Content of the file.

    Raises
    ------
    OSError
        If the file cannot be written; an older one then stays.
    """
    path = Path(os.path.realpath(path))
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_record(file):
    """Read what `torch.save` has written to a path or open file, onto the CPU.

    Only tensors, numbers, texts and the types in the list below the class `Fitted` are read, so
    that a file from elsewhere cannot run code.

    Raises
    ------
    ValueError
        If the file holds other objects.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:  # torch's message advises to set weights_only=False
        raise ValueError(
            "it holds more than records, tensors, numbers and texts"
        ) from None


def pack(record):  # -> ndarray of uint8
    """Return a record as the bytes that `torch.save` writes, for pickle and for checkpoints."""
    content = io.BytesIO()
    torch.save(record, content)
    return np.frombuffer(content.getvalue(), np.uint8)


def unpack(content):  # ndarray of uint8 -> record
    """Return the record whose bytes `pack` returned; raise ValueError as `load_record` does."""
    return load_record(io.BytesIO(content.tobytes()))


# ------------------------------------------------------------------ checkpoints


class Checkpoint(FitCallback):
    """Write the state of a fit between two epochs to a file, and resume from it.

    A callback for ``learner.set_callbacks(Checkpoint("fit.npz"))``. If the file exists, `fit`
    resumes from it. Training that resumes ends with the same bits as without the interruption, and
    a search that resumes ends with atoms that are as good. If the fit in the file is complete,
    `fit` returns its result without training.

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

    `ConvDenoiser` and `SporcoDictionaryLearning`, which write no checkpoints, refuse this callback.

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
    ...     checkpoint = Checkpoint(
    ...         os.path.join(folder, "digits.npz"), every_seconds=10
    ...     )
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
        self.path = path
        self.every_seconds = every_seconds
        self.resume = resume

    # scikit-learn calls setup once before each fit
    def setup(self, estimator: Any, context: Any) -> None:
        """Refuse estimators that write no checkpoints."""
        refuse(
            not hasattr(estimator, "_phases"),
            f"{type(estimator).__name__} writes no checkpoints. Give the callback to a learner "
            "of skpudle with phases, in a pipeline to the learner inside.",
        )


def identity_of(estimator, data):  # -> dict of str to str
    """Describe a fit by texts, so that a checkpoint of another fit is refused.

    The texts, by name, are the class of the learner, its parameters except those in `_FREE`, which
    may change, the shape of the data, and a checksum of the first and last rows in memory.
    Checkpoints store these texts: if they change from one release to the next, fits cannot resume
    from older files.
    """
    params = estimator.get_params(deep=False)
    source = data.source
    params["dict_init"] = arrays.dictionary_of(params["dict_init"])
    # A generator, or None, has no text of its own: the file has the seed that was drawn from it.
    if not isinstance(params["random_state"], Integral):
        del params["random_state"]
    # the data, mask, targets and weights of the first and last rows
    ends = vars(data.samples[[0, -1]]).values()
    checksum = describe([arrays.to_numpy(part) for part in ends if part is not None])
    shape = f"{source.n_samples} rows of {data.samples.x.shape[1]} features"
    kind = type(source).__name__
    return {
        **{
            name: describe(value) for name, value in params.items() if name not in _FREE
        },
        "learner": type(estimator).__name__,
        "data": f"{shape} in {kind}, checksum of the first and last {checksum}",
    }


def stored_state(checkpoint, identity):  # -> dict or None
    """Read the file of a checkpoint, if a fit shall resume from it and the file exists.

    ``identity`` is what `identity_of` returns. The state is the dict that `Run._write` stored.

    Raises
    ------
    ValueError
        If the file is damaged, or belongs to a fit of another identity.
    """
    path = checkpoint.path
    advice = "Restore it, or remove it to train from the start."
    if not (checkpoint.resume and Path(path).exists()):
        return None
    with named_errors(path, "whole checkpoint", advice):
        with zipfile.ZipFile(path) as file:
            refuse(file.testzip() is not None, "its checksum is wrong")
        state = load_record(path)
    differences = [
        f"{name}: {state['identity'].get(name)}, now {now}"
        for name, now in identity.items()
        if state["identity"].get(name) != now
    ]
    if differences:
        raise ValueError(
            f"The checkpoint {path} belongs to another fit ({'; '.join(differences)}). Use "
            "another path, or pass resume=False to replace the file."
        )
    return state


# ------------------------------------------------------------------ the driver


class Phase(NamedTuple):
    """One phase in the list of all phases of a fit, which ``table(record)`` returns.

    Attributes
    ----------
    name : str
        Name of the phase, for callbacks, seconds and progress.
    steps : callable
        ``steps(record)`` yields a new record for each epoch; the last one has ``is_done``.
    is_due : bool, default=True
        Whether the fit needs the phase; phases in ``record.done`` are skipped anyway.
    epoch_name : str, default="step"
        What callbacks call one epoch of the phase.
    ends_search : bool, default=False
        Whether the phase makes atoms of a search usable, so that it runs even after Ctrl-C.
    most : int, default=None
        The largest number of epochs, if it is known, for progress bars.
    """

    name: str
    steps: Callable
    is_due: bool = True
    epoch_name: str = "step"
    ends_search: bool = False
    most: int | None = None


class Run(Interrupts):
    """One call of `fit`: it runs the phases, with callbacks, Ctrl-C, checkpoints and seconds.

    It is a context manager: inside, Ctrl-C only ends the present epoch (`Interrupts`), and at the
    end callbacks are told that the fit has ended, unless an error was raised. A subclass adds
    ``table(record)``, which returns all phases, each with a mark whether it is due, and
    ``first()``, the record before them.

    Parameters
    ----------
    learner : estimator
        The estimator that is fitted.
    X, y : object
        The user's input, which callbacks get.
    began : float
        The time when `fit` was called, of `time.perf_counter`.
    plan : Plan, default=None
        What the learner has decided from its parameters.
    data : Data, default=None
        What the learner has read of the input; estimators without it write no checkpoints.

    Attributes
    ----------
    checkpoints : dict of Checkpoint to float
        The checkpoints among the callbacks, with the times of their last files. Training empties
        the dict when it ends, so that the last file is one from which training can go on.
    team : Team
        The processes that train together.
    generator : torch.Generator
        Random numbers of the fit, the same in all processes.
    record : Record
        The last record.
    seconds : dict of str to float
        Seconds of the "reading" of the data, of each phase, of the "result" after the phases, and
        of the whole "fit".
    """

    def __init__(
        self,
        learner,
        X,
        y,
        began,
        plan=None,
        data=None,
    ):
        self._began = began
        # when the reading of the data ended, and later when the last phase so far ended
        self._ended = time.perf_counter()
        self.seconds = {"reading": self._ended - began}
        self.learner = learner
        self.plan = plan
        self.data = data
        self._call = {"estimator": learner, "X": X, "y": y}  # what callbacks get
        self.team = current_team()
        self.checkpoints = {}
        self._stored = None
        if data is None:  # a `FollowedFit`, which writes no checkpoints
            return
        now = time.monotonic()
        callbacks = getattr(learner, "_skl_callbacks", [])
        self.checkpoints = {
            callback: now for callback in callbacks if isinstance(callback, Checkpoint)
        }
        if self.checkpoints:
            refuse_several("A fit with a Checkpoint")
            self._identity = identity_of(learner, data)
            files = [stored_state(one, self._identity) for one in self.checkpoints]
            self._stored = next(filter(None, files), None)  # the first that exists
        generator = arrays.make_generator(learner.random_state)
        # A resumed fit takes its seed from the file. Processes that fit together take the largest
        # of their seeds, so that all draw the same numbers.
        seed = (self._stored or {}).get("seed", generator.initial_seed())
        self.generator = generator.manual_seed(self.team.largest(seed))

    def __exit__(self, kind, error, traceback):
        super().__exit__(kind, error, traceback)
        if kind is None:
            now = time.perf_counter()
            self.seconds |= {"result": now - self._ended, "fit": now - self._began}
            # the learner has its attributes already, so `dict` makes none
            self.root.call_on_fit_task_end(**self._call, reconstruction_attributes=dict)

    def attributes(self, record):  # -> dict
        """Return the fitted attributes of a record, for the learner and for callbacks."""
        return self.learner._attributes(self.plan, self.data, record)

    def warn_of_result(self):
        """Warn if the last record may be wrong; subclasses override this method."""

    def make_phases(self):  # -> the last record
        """Run the phases until none is left, and set the fitted attributes of the last record.

        The table of phases is made again after every phase, since a result may make another phase
        due. The record of a checkpoint replaces the first record.

        Returns
        -------
        Record
            The last record, with the cause of the end in ``ended_by``.

        Raises
        ------
        Diverged, KeyboardInterrupt
            If training diverges, or after Ctrl-C; in both cases the attributes have been set. After
            Ctrl-C only phases with ``ends_search`` are still run.
        """
        first = self.first()
        self.record = first
        error = None
        self.root = self.learner._init_callback_context(
            max_subtasks=len(self.table(first))
        )
        self.root.call_on_fit_task_begin(**self._call)
        if self._stored is not None:
            self._resume(first.atoms.device)
        try:
            while phase := self._next_phase():
                self._make(phase)
        except Diverged as diverged:
            error = diverged
            # The error has the last finite record of training. Without one (None) the fit keeps the
            # record of its last epoch.
            is_record = isinstance(diverged.fitted, type(self.record))
            last = diverged.fitted if is_record else self.record
            self.record = replace(last, ended_by="divergence")
        except KeyboardInterrupt:  # a second Ctrl-C: `Interrupts` only notes the first
            self.pending = True
        # A record without a cause is that of a fit without training: it has ended with its search.
        ended_by = self.record.ended_by or "search"
        if self.pending:
            ended_by = "interrupt"
            said = f"the fit was interrupted after: {self.record.note}"
            error = error or KeyboardInterrupt(said)
        self.record = replace(self.record, ended_by=ended_by)
        take(self.learner, self.attributes(self.record))
        if error:
            raise error
        return self.record

    def _resume(self, device):
        """Take the record, onto ``device``, and the random numbers that a checkpoint has stored."""
        record = self._stored["record"]
        self.record = replace(
            record,
            atoms=record.atoms.to(device),
            extra=None if record.extra is None else record.extra.to(device),
            # The user may have changed tol or max_iter since the file was written. So training
            # decides again whether to end, unless a callback has ended it.
            ended_by="callback" if record.ended_by == "callback" else None,
        )
        self.generator.set_state(self._stored["generator"])

    def _next_phase(self):  # -> Phase or None
        """Return the first phase that is due and not done, or None if there is none.

        After Ctrl-C only phases with ``ends_search`` count.
        """
        for phase in self.table(self.record):
            is_left = phase.is_due and phase.name not in self.record.done
            if is_left and (phase.ends_search or not self.pending):
                return phase
        return None

    def _record_after(self, phase):  # -> Record
        """Return the last record with a phase that has ended among the phases that are ``done``.

        A phase may ask, by the field ``again`` of its record, to run an earlier phase and all
        phases after that one again. They are then no longer among ``done``. The phase that asks is,
        so it does not run a second time, and phases cannot be repeated for ever.
        """
        done = self.record.done
        if self.record.again is not None:
            done = done[: done.index(self.record.again)]
        return replace(self.record, done=(*done, phase.name), again=None)

    def _make(self, phase):
        """Run a phase to its end, and leave its last record in ``self.record``.

        After every epoch it prints progress, calls callbacks and writes checkpoints. A callback or
        Ctrl-C, in any process, ends the phase early.
        """
        began = time.perf_counter()
        trains = phase.name == "training"
        task = self.root.subcontext(task_name=phase.name, max_subtasks=phase.most)
        task.call_on_fit_task_begin(**self._call)
        # After Ctrl-C a phase with ``ends_search`` is still run, but writes no checkpoint: the file
        # keeps the state at the interruption. The note stays, too: it names the interrupted epoch,
        # for the message of KeyboardInterrupt.
        is_uninterrupted = not self.pending
        has_ended = False
        note = f"{phase.name}, done" if is_uninterrupted else self.record.note
        steps = phase.steps(replace(self.record, note=note, is_done=True))
        while not has_ended:
            epoch = task.subcontext(task_name=phase.epoch_name)
            epoch.call_on_fit_task_begin(**self._call)
            before = self.record
            self.record = next(steps)
            if self.learner.verbose and self.team.rank == 0:
                print(self.record.note, flush=True)
            stopped = bool(epoch.call_on_fit_task_end(**self._hooks()))
            stopped, pressed = map(self.team.largest, (stopped, self.pending))
            has_ended = stopped or pressed or self.record.is_done
            # A callback or Ctrl-C has ended the phase early. After Ctrl-C the phase is not done, so
            # that a resumed fit goes on with it.
            if not self.record.is_done and has_ended:
                ended_by = "interrupt" if pressed else "callback"
                self.record = replace(
                    self.record, ended_by=ended_by, is_done=not pressed
                )
            record_after = self._record_after(phase)
            # A checkpoint at the end of training does not list training as done, so that a fit with
            # a larger max_iter can resume from the file and train on.
            if self.record.is_done and not trains:
                self.record = record_after
            if is_uninterrupted:
                # If Ctrl-C has cut the epoch off, the file gets the record before the epoch, and a
                # resumed fit repeats the epoch.
                is_cut = pressed and (trains or not self.record.is_done)
                self._write(before if is_cut else self.record, ends=has_ended)
        self.record = record_after
        if trains:
            self.checkpoints = {}
        task.call_on_fit_task_end(**self._hooks())
        self._ended = time.perf_counter()
        self.seconds[phase.name] = (
            self.seconds.get(phase.name, 0.0) + self._ended - began
        )

    def _hooks(self):  # -> dict
        """Return the keyword arguments that callbacks of scikit-learn get after an epoch or phase.

        They are the estimator and the input of `fit`, and a function that makes the fitted
        attributes of the last record, which is called only if a callback needs them.
        """
        return self._call | {
            "reconstruction_attributes": partial(self.attributes, self.record)
        }

    def _write(self, record, *, ends):
        """Write a record to all checkpoints that are due, each to its own file.

        If the phase ``ends`` all are due, otherwise the ones whose last file is ``every_seconds``
        old. An error of writing becomes a warning, and the fit goes on.
        """
        for checkpoint, written_at in self.checkpoints.items():
            now = time.monotonic()
            every = checkpoint.every_seconds
            if not (ends or (every is not None and now - written_at >= every)):
                continue
            self.checkpoints[checkpoint] = now
            state = {
                "identity": self._identity,
                "record": record,
                "seed": self.generator.initial_seed(),
                "generator": self.generator.get_state(),
            }
            try:
                # Content that could not be read again raises an error before it replaces the file.
                unpack(content := pack(state))
                replace_file(checkpoint.path, content.data)
            except (OSError, PicklingError, ValueError) as error:
                said = f"The checkpoint could not be written: {error}. Training goes on; an older "
                arrays.warn(f"{said}checkpoint is unchanged.", RuntimeWarning)


# ------------------------------------------------------------------ fits of one phase


@dataclass(frozen=True, eq=False, kw_only=True)
class EpochRecord(Record):
    """The record of one epoch of a `FollowedFit`.

    ``attributes()`` returns the fitted attributes as a dict, empty before the first epoch. It is
    called only when a callback or the end of the fit needs them.
    """

    attributes: Callable


class _SinglePhase(Run):
    """The fit of a `FollowedFit`: its only phase yields an `EpochRecord` for each epoch.

    ``epochs(run)`` is a generator of these records, and ``n_epochs`` the largest number of epochs,
    or None.
    """

    def __init__(
        self,
        learner,
        X,
        y,
        epochs,
        n_epochs,
    ):
        super().__init__(learner, X, y, time.perf_counter())
        self._training = Phase(
            "training", lambda _: epochs(self), epoch_name="epoch", most=n_epochs
        )

    def first(self):
        """Return the record before the first epoch, which has no attributes: the fit sets none."""
        return EpochRecord(attributes=dict, note="no epoch")

    def table(self, record):
        """Return the phase."""
        return (self._training,)

    def attributes(self, record):
        """Return the fitted attributes of an epoch, with the cause of the end."""
        attributes = record.attributes()
        return attributes and attributes | {"ended_by_": record.ended_by}


class FollowedFit(CallbackSupportMixin):
    """Base of estimators whose fit is one phase, so that callbacks and Ctrl-C work in them, too."""

    def _follow(
        self,
        epochs,
        X,
        y,
        n_epochs=None,
    ):
        """Run the epochs of a fit with callbacks and Ctrl-C, and set the attributes of the last.

        Parameters
        ----------
        epochs : callable
            ``epochs(interrupts)`` yields an `EpochRecord` for each epoch;
            ``interrupts.pending`` is True after Ctrl-C.
        X, y : object
            The user's input, for callbacks.
        n_epochs : int, default=None
            Largest number of epochs, if it is known.

        Raises
        ------
        ValueError
            If several processes fit together.
        KeyboardInterrupt
            After Ctrl-C, when the attributes of the last epoch have been taken.
        """
        refuse_several(type(self).__name__)
        with _SinglePhase(self, X, y, epochs, n_epochs) as run:
            run.make_phases()
