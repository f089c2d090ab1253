"""The record of a fit: the results of its phases, from the first atoms to the last encoder.

A phase takes the record and returns it with its results. The record is inverse to the fitted
attributes: `Fitted.attributes` makes them, and `partial_fit` begins with the record of them. A
checkpoint holds the record of the phases that have ended, by `Fitted.pack`.
"""

from dataclasses import dataclass, field, fields, replace

from sklearn.utils import Bunch
from torch import Tensor

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._learners.units import SourceInUnits, in_units
from skpudle.encoding._learned import LearnedEncoder
from skpudle.search.choose import SizePath
from skpudle.search.find import PenaltyPath
from skpudle.search.units import CENTRED, Units

# Values that the state of training has.
_OF_TRAINING = "moments", "stopping"

# Values that are records of their own.
_RECORDS = {
    "size_path": SizePath, "penalty_path": PenaltyPath, "noise": Units, "learned": LearnedEncoder
}  # fmt: skip

# Attributes that hold a learned encoder.
_LEARNED = "analysis_components_", "synthesis_components_", "thresholds_"


def _as_arrays(path):  # -> Bunch of ndarray, None for None
    """Return the tried numbers of atoms, or penalties, as arrays for users."""
    return path and Bunch(**{name: to_numpy(values) for name, values in path._asdict().items()})


@dataclass(frozen=True, eq=False, kw_only=True)
class Fitted:
    """A fit so far.

    Parameters
    ----------
    model : object
        The model that is trained, see `skpudle._training.loop`, with its penalty.
    rows : Tensor of shape (n_components, ...)
        Its rows of parameters.
    search_alpha : float, default=None
        The penalty of the search, if there was one.
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
    moments : dict, default={}
        The optimiser's own state; empty without training.
    stopping : tuple, default=()
        The state of the rule of stopping after the last round.
    later : dict of str to int, default={}
        Names of phases after training, and their numbers of epochs.
    ended_by : str, default=None
        The cause of the end.
    """

    model: object
    rows: Tensor
    search_alpha: float | None = None
    coding: tuple | None = None
    size_path: SizePath | None = None
    penalty_path: PenaltyPath | None = None
    losses: tuple = ()
    loss_curve: tuple = ()
    n_steps: int = 0
    moments: dict = field(default_factory=dict)
    stopping: tuple = ()
    later: dict = field(default_factory=dict)
    ended_by: str | None = None

    def with_model(self, **values):  # -> Fitted
        """Return the record with new values in its model."""
        return replace(self, model=replace(self.model, **values))

    def attributes(self):
        """Return the fitted attributes that do not depend on the history of the fit."""
        found = self.model.attributes(self.rows)
        alpha, debias, noise_std = self.coding or (found["alpha_"], found["debias_"], None)
        return found | {
            "alpha_": alpha,
            "debias_": debias,
            "noise_std_": noise_std,
            "search_alpha_": self.search_alpha,
            "size_path_": _as_arrays(self.size_path),
            "penalty_path_": _as_arrays(self.penalty_path),
        }

    def in_units(self, samples):  # -> Samples
        """Return samples in the units that the model is trained in."""
        return samples

    def source_in_units(self, source):  # -> source
        """Return a source of samples in the units that the model is trained in."""
        return source

    def memory(self):
        """Return the private attributes that a later `partial_fit` needs."""
        known = {"search_alpha": self.search_alpha, "coding": self.coding}
        known = {name: value for name, value in known.items() if value is not None}
        return self.model.memory() | known

    def pack(self):
        """Return the values of the record for a checkpoint.

        Returns
        -------
        dict
            All values except `_OF_TRAINING`, and the numbers of the model that data have decided.
        """
        names = [one.name for one in fields(self) if one.name not in _OF_TRAINING]
        return {name: getattr(self, name) for name in names} | {"model": self.model.pack()}

    def restore(self, values):
        """Return the record with the values of `pack`.

        Raises
        ------
        ValueError
            If they belong to rows of another kind.
        """
        rows = values["rows"]
        if (rows.shape[1:], rows.dtype) != (self.rows.shape[1:], self.rows.dtype):
            raise ValueError(f"it is of rows of shape {tuple(rows.shape)} and {rows.dtype}")
        kinds = {name: kind for name, kind in _RECORDS.items() if values.get(name) is not None}
        records = {name: kind(**values[name]) for name, kind in kinds.items()}
        records["model"] = self.model.restore(values["model"])
        return replace(self, **values | records | {"rows": rows.to(self.rows.device)})


def _to_arrays(values):
    """Return nested values with arrays for tensors."""
    if isinstance(values, dict):
        return {name: _to_arrays(value) for name, value in values.items()}
    return to_numpy(values) if isinstance(values, Tensor) else values


def _arrays_of(learned):  # LearnedEncoder or None -> fitted attributes
    if learned is None:
        return dict.fromkeys(_LEARNED)
    parts = learned.analysis, learned.synthesis, learned.thresholds
    if learned.shares_atoms:
        parts = learned.analysis[0], None, learned.thresholds
    arrays = [None if part is None else to_numpy(part) for part in parts]
    return dict(zip(_LEARNED, arrays, strict=True))


def learned_encoder(learner, atoms):  # -> LearnedEncoder
    """Return the encoder in fitted attributes, in the dtype and on the device of the atoms.

    Raises
    ------
    ValueError
        If there is none, or one for another number of unfoldings or other atoms.
    """
    analysis, synthesis, thresholds = (getattr(learner, name, None) for name in _LEARNED)
    if analysis is None:
        raise ValueError(
            "The encoder of separate_atoms has not been trained: the parameter was set after fit, "
            "or fit has not come so far. Set transform_algorithm='lasso', or fit again."
        )
    if learner.n_unfoldings not in ("auto", len(thresholds)):
        raise ValueError(
            f"The encoder was trained for {len(thresholds)} unfoldings, and n_unfoldings is "
            f"{learner.n_unfoldings} now. Set it back, or fit again."
        )
    if analysis.shape[-2:] != atoms.shape:
        raise ValueError(
            f"The encoder was trained for atoms of shape {analysis.shape[-2:]}, and components_ "
            f"has the shape {tuple(atoms.shape)} now. Put atoms of the same shape there, or pass "
            "yours as dict_init, and fit again."
        )
    shares = analysis.ndim == 2
    if shares:
        analysis, synthesis = analysis[None], to_numpy(atoms)[None]
    parts = (to_tensor(part).to(atoms) for part in (analysis, synthesis, thresholds))
    return LearnedEncoder(*parts, bool(learner.positive_code), shares)


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedRows(Fitted):
    """A fit of rows so far; its atoms are in units of the noise.

    Parameters
    ----------
    noise : Units, default=CENTRED
        The units that rows are learned in.
    outliers : Tensor of shape (n_outliers, 2), default=None
        Places of entries that were treated as missing.
    stream : dict, default=None
        The memory of rows for a later `partial_fit`, arrays and numbers.
    learned : LearnedEncoder, default=None
        The encoder that was trained after the dictionary.
    """

    noise: Units = CENTRED
    outliers: Tensor | None = None
    stream: dict | None = None
    learned: LearnedEncoder | None = None

    def in_units(self, samples):  # -> Samples
        """Return samples in units of their noise."""
        return in_units(self.noise, samples)

    def source_in_units(self, source):  # -> source
        """Return a source of samples in units of their noise."""
        return source if self.noise.changes_nothing else SourceInUnits(source, self.noise)

    def attributes(self):
        """Return the fitted attributes, in the units of the data."""
        found, scale, baseline = super().attributes(), self.noise.scale, self.noise.intercept
        if baseline is not None:
            found[self.model.name_of_baseline] = to_numpy(baseline.to(self.rows))
        if scale is not None:
            found["components_"] = to_numpy(self.noise.to_user(self.model.parts(self.rows)[0]))
            if found["noise_std_"] is not None:
                found["noise_std_"] = found["noise_std_"] * to_numpy(scale)
        return found | _arrays_of(self.learned)

    def memory(self):
        """Return the private attributes that a later `partial_fit` needs."""
        noise = replace(self.noise, atoms=None)  # the fitted atoms replace them
        memory = super().memory() | {"noise": _to_arrays(noise.as_dict())}
        return memory if self.stream is None else memory | {"stream": _to_arrays(self.stream)}
