"""The record of a fit: the results of its phases, from the first atoms to the last encoder.

A phase, one stage of a fit, takes the record and yields new records with its results.
`skpudle._fit.plan.Plan.attributes` makes the fitted attributes of a record. The learner keeps the
rest of the record, `Fitted.kept`, so that `partial_fit` can go on. A checkpoint holds the whole
record.
"""

import io
from dataclasses import dataclass, field, replace
from pickle import UnpicklingError

import numpy as np
import torch
from sklearn.utils import Bunch

from skpudle._data.arrays import to_numpy
from skpudle._data.batches import Samples
from skpudle.encoding._learned import LearnedEncoder
from skpudle.search import choose, find, held_out, units
from skpudle.search.stream import Held, Stream


def load_record(file):
    """Return the record in a file of `torch.save`; nothing in it is executed."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:  # its text advises to execute the file
        raise ValueError("it holds more than records, tensors, numbers and texts") from None


def pack(record):  # -> ndarray of uint8
    """Return a record as the bytes of a file of `torch.save`."""
    content = io.BytesIO()
    torch.save(record, content)
    return np.frombuffer(content.getvalue(), np.uint8)


def unpack(content):  # ndarray of uint8 -> record
    """Return the record in bytes that `pack` made."""
    return load_record(io.BytesIO(content.tobytes()))


def as_arrays(path):  # -> Bunch of ndarray, None for None
    """Return the tried numbers of atoms, or penalties, as arrays for users."""
    return path and Bunch(**{name: to_numpy(values) for name, values in path._asdict().items()})


@dataclass(frozen=True, eq=False, kw_only=True)
class Record:
    """The record of a fit: all results so far.

    A record does not change; a phase makes a new one by `dataclasses.replace`.

    Parameters
    ----------
    done : tuple of str, default=()
        Names of the phases that need not be made any more.
    is_done : bool, default=True
        Whether the phase that made the record has ended.
    ended_by : str, default=None
        The cause of the end of the fit, None before the end.
    note : str, default=""
        A line of progress, which ``verbose`` prints.
    """

    done: tuple = ()
    is_done: bool = True
    ended_by: str | None = None
    note: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Fitted(Record):
    """The record of a fit of rows. Atoms are in units of the noise.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, ...)
        The atoms.
    more : Tensor, default=None
        What is trained beside the atoms, see `skpudle._fit.plan.Plan.join`.
    alpha : float, default=None
        The penalty or threshold; None before data are seen.
    data_scale : float, default=None
        Mean squared norm of a sample; None before data are seen.
    curvature : float, default=1.0
        The mean curvature of the loss, 1 for least squares.
    from_samples : bool, default=False
        Whether training began with samples as atoms instead of a search.
    n_updates : int, default=1
        Updates over which penalties decay; with 1 they have decayed.
    noise : Units, default=CENTRED
        The units that rows are learned in.
    search_alpha : float, default=None
        The penalty of the search, if there is one.
    searched : Found, default=None
        The search, if there was one, without its coded data.
    penalty : float, default=None
        The penalty of a search with ``alpha="auto"``.
    unit : float, default=1.0
        The standard deviation of the data where that of the rows that are searched is 1.
    passed : Stream, default=None
        The state of a pass over all rows that has not ended.
    coding : tuple of float, default=None
        Penalty, share of the bias to remove and noise of codes for `transform`, if the data have
        chosen them.
    size_path : SizePath, default=None
        The numbers of atoms that were tried, if one was chosen from the data.
    losses : tuple of float, default=()
        Objectives of the epochs before training.
    loss_curve : tuple of float, default=()
        Mean losses of the epochs of training.
    n_steps : int, default=0
        Number of updates by gradients.
    n_codes : float, default=None
        Number of nonzero codes in the last epoch of a search; or number of atoms with nonzero codes
        in the last epoch of training.
    training : dict, default={}
        The state of training, see `Trainer.state`; empty without training.
    outliers : Tensor of shape (n_outliers, 2), default=None
        Places of entries that were treated as missing.
    stream : Stream, default=None
        What `partial_fit` by blocks needs of earlier rows.
    recent : Samples, default=None
        Rows that wait for the rest of a block.
    young : Samples, default=None
        All rows so far of `partial_fit`, while they are too few to decide on their units.
    learned : LearnedEncoder, default=None
        The encoder that was trained after the dictionary.
    later : dict of str to int, default={}
        Names of phases after training, and their numbers of epochs.
    """

    atoms: torch.Tensor
    more: torch.Tensor | None = None
    alpha: float | None = None
    data_scale: float | None = None
    curvature: float = 1.0
    from_samples: bool = False
    n_updates: int = 1
    noise: units.Units = units.CENTRED
    search_alpha: float | None = None
    searched: find.Found | None = None
    penalty: float | None = None
    unit: float = 1.0
    passed: Stream | None = None
    coding: tuple | None = None
    size_path: choose.SizePath | None = None
    losses: tuple = ()
    loss_curve: tuple = ()
    n_steps: int = 0
    n_codes: float | None = None
    training: dict = field(default_factory=dict)
    outliers: torch.Tensor | None = None
    stream: Stream | None = None
    recent: Samples | None = None
    young: Samples | None = None
    learned: LearnedEncoder | None = None
    later: dict = field(default_factory=dict)

    def kept(self):  # -> Fitted
        """Return what the fitted attributes do not hold, for a later `partial_fit`."""
        names = "alpha", "data_scale", "curvature", "from_samples"
        names += "search_alpha", "coding", "stream", "recent", "young"
        kept = Fitted(
            atoms=None,
            noise=replace(self.noise, atoms=None),  # the fitted atoms replace them
            training={n: self.training[n] for n in ("moments", "unused") if n in self.training},
            **{name: getattr(self, name) for name in names},
        )
        return kept if self.atoms.device.type == "cpu" else unpack(pack(kept))  # on the host


# What a checkpoint holds beside tensors, numbers and texts: it is read without executing any code.
torch.serialization.add_safe_globals(
    [
        *(Fitted, LearnedEncoder, choose.SizePath, held_out.Prediction, Held, Stream, Samples),
        *(find.Found, find.PenaltyPath, find.Trial, units.Units),
    ]
)
