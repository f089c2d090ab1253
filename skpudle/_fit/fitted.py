"""The record of a fit: what all phases so far have found, from first atoms to the last encoder.

A phase, one stage of a fit such as a search, takes a record and yields new records with its
results. `skpudle._fit.plan.Plan.attributes` makes the fitted attributes of a record. The learner
keeps what these attributes lack and `partial_fit` needs, see `Fitted.kept`. A checkpoint holds the
whole record.
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
    """Read what `torch.save` has written to a path or open file, onto the CPU.

    Only the types that are registered at the end of this module, tensors, numbers and texts are
    read, so that a file from elsewhere cannot run code.

    Raises
    ------
    ValueError
        If the file holds other objects.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:  # torch's message advises to load the file without this safety
        raise ValueError("it holds more than records, tensors, numbers and texts") from None


def pack(record):  # -> ndarray of uint8
    """Return a record as the bytes that `torch.save` writes, for pickle and for checkpoints."""
    content = io.BytesIO()
    torch.save(record, content)
    return np.frombuffer(content.getvalue(), np.uint8)


def unpack(content):  # ndarray of uint8 -> record
    """Return the record whose bytes `pack` returned; raise ValueError as `load_record` does."""
    return load_record(io.BytesIO(content.tobytes()))


def as_arrays(path):  # NamedTuple of Tensor (n_tried,) -> Bunch of ndarray (n_tried,)
    """Return ``size_path_`` or ``penalty_path_``: what was tried, and how well it predicts.

    ``path`` is a `SizePath` or `PenaltyPath`; None stays None.
    """
    return path and Bunch(**{name: to_numpy(values) for name, values in path._asdict().items()})


@dataclass(frozen=True, eq=False, kw_only=True)
class Record:
    """The results of a fit so far, in the part that all kinds of learners share.

    `Run` reads and sets these fields. A record does not change; a phase makes a new one by
    `dataclasses.replace`.

    Parameters
    ----------
    done : tuple of str, default=()
        Names of the phases that need not be run any more.
    is_done : bool, default=True
        Whether the phase that made the record has ended.
    ended_by : str, default=None
        The cause of the end of the fit, as in ``ended_by_``; None before the end.
    note : str, default=""
        A line of progress, which ``verbose`` prints.
    """

    done: tuple = ()
    is_done: bool = True
    ended_by: str | None = None
    note: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Fitted(Record):
    """The results of a fit of rows so far.

    Atoms and penalties belong to rows in the units ``noise``: less the baseline, over the noise.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, ...)
        The atoms.
    more : Tensor, default=None
        What is trained beside the atoms, such as weights of a task, see
        `skpudle._fit.plan.Plan.join`.
    alpha : float, default=None
        The penalty or threshold of codes in training; None before data are seen.
    data_scale : float, default=None
        Mean squared norm of a sample; None before data are seen.
    curvature : float, default=1.0
        The second derivative of the loss in the reconstruction, on average; 1 for least squares.
    from_samples : bool, default=False
        Whether training began with samples as atoms instead of a search.
    n_updates : int, default=1
        Number of updates over which ``lambda_decay`` is annealed; with 1 it has its last value.
    noise : Units, default=CENTRED
        The units in which rows are learned: baseline, limits of outliers, and scales of noise.
    search_alpha : float, default=None
        The penalty that the search ended with; None without a search.
    searched : Found, default=None
        The state or result of the search, without its coded data; None without a search.
    penalty : float, default=None
        The penalty that a search with ``alpha="auto"`` tries first.
    unit : float, default=1.0
        Factor from penalties of the search to penalties of training. It differs from 1 for counts,
        whose search is in rows that are scaled to a standard deviation of 1.
    passed : Stream, default=None
        The state of a pass over all rows that has not ended.
    coding : tuple of float, default=None
        For `transform`, if the data have chosen them: penalty of codes, share of the lasso's bias
        to remove, and standard deviation of the noise.
    size_path : SizePath, default=None
        The numbers of atoms that were tried, if one was chosen from the data.
    losses : tuple of float, default=()
        Mean losses of the epochs of the search, and of the pass over all rows.
    loss_curve : tuple of float, default=()
        Mean losses of the epochs of training.
    n_steps : int, default=0
        Number of updates by gradients.
    n_codes : float, default=None
        Number of nonzero codes of all rows in the last epoch of a search; or number of atoms with
        nonzero codes in the last epoch of training. Only whether it is 0 matters: `fit` then warns.
    training : dict, default={}
        In a fit the state of training between epochs, see `Trainer.state`. After `partial_fit` the
        optimiser's state "moments", and "unused", for how many samples each atom has been unused.
        Empty without training.
    outliers : Tensor of shape (n_outliers, 2), default=None
        Row and feature of each entry that the fit treated as missing.
    stream : Stream, default=None
        What `partial_fit` by blocks of rows needs to know of earlier rows.
    recent : Samples, default=None
        Rows of `partial_fit` that are too few for a block, and wait for the next call.
    young : Samples, default=None
        All rows so far of `partial_fit`, while they are too few to learn units from.
    learned : LearnedEncoder, default=None
        The encoder of ``separate_atoms``, trained after the dictionary.
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
        """Return the record that a fitted learner keeps as ``_fitted``, on the CPU.

        `partial_fit` goes on from it and from the fitted attributes, which the record leaves out.
        """
        names = "alpha", "data_scale", "curvature", "from_samples"
        names += "search_alpha", "coding", "stream", "recent", "young"
        kept = Fitted(
            atoms=None,
            noise=replace(self.noise, atoms=None),  # these are made of ``components_`` again
            training={n: self.training[n] for n in ("moments", "unused") if n in self.training},
            **{name: getattr(self, name) for name in names},
        )
        return kept if self.atoms.device.type == "cpu" else unpack(pack(kept))  # to the CPU


# Types that `load_record` may read. A new type in a record has to be added here, or checkpoints
# that hold it cannot be read.
torch.serialization.add_safe_globals(
    [
        *(Fitted, LearnedEncoder, choose.SizePath, held_out.Prediction, Held, Stream, Samples),
        *(find.Found, find.PenaltyPath, find.Trial, units.Units),
    ]
)
