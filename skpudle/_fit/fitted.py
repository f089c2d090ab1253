"""The record of a fit: the results of its phases, from the first atoms to the last encoder.

A phase, one stage of a fit, takes the record and yields new records with its results.
`Fitted.attributes` makes the fitted attributes of a record. The learner keeps the rest of the
record, `Fitted.kept`, so that `partial_fit` can go on. A checkpoint holds the whole record.
"""

import io
from dataclasses import dataclass, field, replace
from pickle import UnpicklingError

import numpy as np
import torch
from sklearn.utils import Bunch

from skpudle._data.arrays import to_numpy
from skpudle._data.batches import Samples
from skpudle._fit.encoders import OF_LEARNED
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


def _arrays_of(learned):  # LearnedEncoder or None -> fitted attributes
    if learned is None:
        return dict.fromkeys(OF_LEARNED)
    parts = learned.analysis, learned.synthesis, learned.thresholds
    if learned.shares_atoms:
        parts = learned.analysis[0], None, learned.thresholds
    arrays = [None if part is None else to_numpy(part) for part in parts]
    return dict(zip(OF_LEARNED, arrays, strict=True))


@dataclass(frozen=True, eq=False, kw_only=True)
class Fitted:
    """The record of a fit: all results so far. Atoms are in units of the noise.

    A record does not change; a phase makes a new one by `dataclasses.replace`. "Rows of parameters"
    are what training updates: the atoms, and for some learners further parameters beside them.

    Parameters
    ----------
    model : object
        The model that is trained, see `skpudle._fit.train`, with its penalty.
    rows : Tensor of shape (n_components, ...)
        The rows of parameters of the model.
    noise : Units, default=CENTRED
        The units that rows are learned in.
    search_alpha : float, default=None
        The penalty of the search, if there is one.
    searched : Found, default=None
        The search, if there was one, without its coded data.
    penalty : float, default=None
        The penalty that the search begins with, in the units of the data, if the choice of the
        number of atoms has found one.
    passed : Stream, default=None
        The state of a pass over all rows that has not ended.
    coding : tuple of float, default=None
        Penalty, share of the bias to remove and noise of codes for `transform`, if the data have
        chosen them.
    size_path : SizePath, default=None
        The numbers of atoms that were tried, if one was chosen from the data.
    penalty_path : PenaltyPath, default=None
        The penalties that the search tried.
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
    recent : tuple of Tensor, default=None
        Rows, with NaN for gaps, and weights that wait for the rest of a block.
    young : Samples, default=None
        All rows so far of `partial_fit`, while they are too few to decide on their units.
    learned : LearnedEncoder, default=None
        The encoder that was trained after the dictionary.
    later : dict of str to int, default={}
        Names of phases after training, and their numbers of epochs.
    done : tuple of str, default=()
        Names of the phases that need not be made any more.
    is_done : bool, default=True
        Whether the phase that made the record has ended.
    ended_by : str, default=None
        The cause of the end of the fit, None before the end.
    note : str, default=""
        A line of progress, which ``verbose`` prints.
    """

    model: object
    rows: torch.Tensor
    noise: units.Units = units.CENTRED
    search_alpha: float | None = None
    searched: find.Found | None = None
    penalty: float | None = None
    passed: Stream | None = None
    coding: tuple | None = None
    size_path: choose.SizePath | None = None
    penalty_path: find.PenaltyPath | None = None
    losses: tuple = ()
    loss_curve: tuple = ()
    n_steps: int = 0
    n_codes: float | None = None
    training: dict = field(default_factory=dict)
    outliers: torch.Tensor | None = None
    stream: Stream | None = None
    recent: tuple | None = None
    young: Samples | None = None
    learned: LearnedEncoder | None = None
    later: dict = field(default_factory=dict)
    done: tuple = ()
    is_done: bool = True
    ended_by: str | None = None
    note: str = ""

    @property
    def atoms(self):
        """The atoms in the rows."""
        return self.model.atoms(self.rows)

    def with_model(self, **values):  # -> Fitted
        """Return the record with new values in its model."""
        return replace(self, model=replace(self.model, **values))

    def with_atoms(self, atoms, **changes):  # -> Fitted
        """Return the record with other atoms, the same number of them, and other changes."""
        rows = torch.cat([atoms.to(self.rows), self.rows[len(atoms) :]])
        return replace(self, rows=rows, **changes)

    def attributes(self):
        """Return the fitted attributes that do not depend on the history of the fit."""
        found, noise, rows = self.model.attributes(self.rows), self.noise, self.rows
        alpha, debias, noise_std = self.coding or (found["alpha_"], found["debias_"], None)
        if noise.intercept is not None:
            found[self.model.name_of_baseline] = to_numpy(noise.intercept.to(rows))
        if noise.scale is not None:
            found["components_"] = to_numpy(noise.to_user(self.atoms))
            noise_std = None if noise_std is None else noise_std * to_numpy(noise.scale)
        found |= dict(alpha_=alpha, debias_=debias, noise_std_=noise_std)
        found |= dict(search_alpha_=self.search_alpha, size_path_=as_arrays(self.size_path))
        return found | _arrays_of(self.learned) | dict(penalty_path_=as_arrays(self.penalty_path))

    def pack(self):  # -> Fitted
        """Return the record with the numbers that data have decided in place of its model."""
        return replace(self, model={name: getattr(self.model, name) for name in self.model.decided})

    def restore(self, packed):  # -> Fitted
        """Return a record of `pack` with the model of this one, on its device."""
        model, rows = replace(self.model, **packed.model), packed.rows.to(self.rows.device)
        return replace(packed, model=model, rows=rows)

    def kept(self):  # -> Fitted
        """Return what the fitted attributes do not hold, for a later `partial_fit`."""
        names = "search_alpha", "coding", "stream", "recent", "young"
        kept = Fitted(
            model=self.pack().model,
            rows=None,
            noise=replace(self.noise, atoms=None),  # the fitted atoms replace them
            training={n: self.training[n] for n in ("moments", "unused") if n in self.training},
            **{name: getattr(self, name) for name in names},
        )
        return kept if self.rows.device.type == "cpu" else unpack(pack(kept))  # on the host


# What a checkpoint holds beside tensors, numbers and texts: it is read without executing any code.
torch.serialization.add_safe_globals(
    [
        *(Fitted, LearnedEncoder, choose.SizePath, held_out.Prediction, Held, Stream, Samples),
        *(find.Found, find.PenaltyPath, find.Trial, units.Units),
    ]
)
