"""The record of a fit: the results of its phases, from the first atoms to the last encoder.

A phase takes the record and yields it with its results. The record is inverse to the fitted
attributes: `Fitted.attributes` makes them, and `partial_fit` begins with the record of them. A
checkpoint holds its values, by `Fitted.pack`.
"""

from dataclasses import dataclass, field, fields, replace

from sklearn.utils import Bunch
from torch import Tensor

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._fit.units import in_units
from skpudle.encoding._learned import LearnedEncoder
from skpudle.search._stream import Memory, StreamState
from skpudle.search.choose import SizePath
from skpudle.search.find import PenaltyPath, Trial
from skpudle.search.held_out import Prediction
from skpudle.search.units import CENTRED, Units

# Attributes that hold a learned encoder.
_LEARNED = "analysis_components_", "synthesis_components_", "thresholds_"


def _as_arrays(path):  # -> Bunch of ndarray, None for None
    """Return the tried numbers of atoms, or penalties, as arrays for users."""
    return path and Bunch(**{name: to_numpy(values) for name, values in path._asdict().items()})


def to_arrays(values):
    """Return nested values with arrays for tensors."""
    if isinstance(values, dict):
        return {name: to_arrays(value) for name, value in values.items()}
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


def _state(values):  # -> StreamState
    return StreamState(**values | {"memory": Memory(**values["memory"])})


def _searched(values):  # -> Searched
    if (trial := values["trial"]) is not None:
        trial = Trial(**trial | {"prediction": Prediction(**trial["prediction"])})
    return Searched(**values | {"trial": trial})


# Values of a record that are records of their own: how a checkpoint makes them of their values.
_RECORDS = {
    "size_path": lambda values: SizePath(**values),
    "penalty_path": lambda values: PenaltyPath(**values),
    "noise": lambda values: Units(**values),
    "learned": lambda values: LearnedEncoder(**values),
    "searched": _searched,
    "passed": _state,
}


@dataclass(frozen=True, eq=False)
class Searched:
    """A search so far: what the phases after it begin with.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, ...)
        Its atoms, in the units of its problem.
    penalty : float
        The penalty that the search begins with, in the units of the data.
    alpha : float, default=None
        The penalty of the atoms, in the units of its problem.
    is_done : bool, default=False
        Whether the search has ended by itself.
    trial : Trial, default=None
        The chosen penalty, and its atoms that have not seen held-out data.
    stride : int, default=1
        The atoms were polished on one in ``stride`` samples.
    number : int, default=1
        2 for the second search, in units of the noise of features.
    """

    atoms: Tensor
    penalty: float
    alpha: float | None = None
    is_done: bool = False
    trial: Trial | None = None
    stride: int = 1
    number: int = 1

    @property
    def is_predicted(self):
        """Whether held-out data have judged the atoms of the whole search."""
        return self.is_done and self.trial is not None

    @property
    def is_unbiased(self):
        """Whether the atoms without the lasso's bias predict held-out data better."""
        return self.trial is not None and self.trial.unbiased


@dataclass(frozen=True, eq=False, kw_only=True)
class Fitted:
    """A fit so far; atoms of rows are in units of the noise.

    Parameters
    ----------
    model : object
        The model that is trained, see `skpudle._fit.train`, with its penalty.
    rows : Tensor of shape (n_components, ...)
        Its rows of parameters.
    noise : Units, default=CENTRED
        The units that rows are learned in.
    search_alpha : float, default=None
        The penalty of the search, if there is one.
    searched : Searched, default=None
        The search, if there was one.
    passed : StreamState, default=None
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
    training : dict, default={}
        The state of training, see `Trainer.state`; empty without training.
    outliers : Tensor of shape (n_outliers, 2), default=None
        Places of entries that were treated as missing.
    stream : dict, default=None
        The memory of rows for a later `partial_fit`, tensors and numbers.
    learned : LearnedEncoder, default=None
        The encoder that was trained after the dictionary.
    later : dict of str to int, default={}
        Names of phases after training, and their numbers of epochs.
    is_done : bool, default=True
        Whether the phase that made the record has ended.
    ended_by : str, default=None
        The cause of the end.
    note : str, default=""
        A line of progress.
    """

    model: object
    rows: Tensor
    noise: Units = CENTRED
    search_alpha: float | None = None
    searched: Searched | None = None
    passed: StreamState | None = None
    coding: tuple | None = None
    size_path: SizePath | None = None
    penalty_path: PenaltyPath | None = None
    losses: tuple = ()
    loss_curve: tuple = ()
    n_steps: int = 0
    training: dict = field(default_factory=dict)
    outliers: Tensor | None = None
    stream: dict | None = None
    learned: LearnedEncoder | None = None
    later: dict = field(default_factory=dict)
    is_done: bool = True
    ended_by: str | None = None
    note: str = ""

    @property
    def moments(self):
        """The optimiser's own state; empty without training."""
        return self.training.get("moments", {})

    def with_model(self, **values):  # -> Fitted
        """Return the record with new values in its model."""
        return replace(self, model=replace(self.model, **values))

    def in_units(self, samples):  # -> Samples
        """Return samples in the units that the model is trained in."""
        return in_units(self.noise, samples)

    def attributes(self):
        """Return the fitted attributes that do not depend on the history of the fit."""
        found = self.model.attributes(self.rows)
        scale, baseline = self.noise.scale, self.noise.intercept
        alpha, debias, noise_std = self.coding or (found["alpha_"], found["debias_"], None)
        if baseline is not None:
            found[self.model.name_of_baseline] = to_numpy(baseline.to(self.rows))
        if scale is not None:
            found["components_"] = to_numpy(self.noise.to_user(self.model.parts(self.rows)[0]))
            noise_std = None if noise_std is None else noise_std * to_numpy(scale)
        return (
            found
            | _arrays_of(self.learned)
            | {
                "alpha_": alpha,
                "debias_": debias,
                "noise_std_": noise_std,
                "search_alpha_": self.search_alpha,
                "size_path_": _as_arrays(self.size_path),
                "penalty_path_": _as_arrays(self.penalty_path),
            }
        )

    def memory(self):
        """Return the private attributes that a later `partial_fit` needs."""
        noise = replace(self.noise, atoms=None)  # the fitted atoms replace them
        known = {"search_alpha": self.search_alpha, "coding": self.coding}
        known |= {"stream": None if self.stream is None else to_arrays(self.stream)}
        known = {name: value for name, value in known.items() if value is not None}
        return self.model.memory() | known | {"noise": to_arrays(noise.as_dict())}

    def pack(self):  # -> dict
        """Return all values, and the numbers of the model that data have decided."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return values | {"model": {name: getattr(self.model, name) for name in self.model.decided}}

    def restore(self, values):  # -> Fitted
        """Return the record with the values of `pack`.

        Raises
        ------
        ValueError
            If they belong to rows of another kind.
        """
        rows = values["rows"]
        if (rows.shape[1:], rows.dtype) != (self.rows.shape[1:], self.rows.dtype):
            raise ValueError(f"it is of rows of shape {tuple(rows.shape)} and {rows.dtype}")
        known = {name: values[name] for name in _RECORDS if values[name] is not None}
        records = {name: _RECORDS[name](value) for name, value in known.items()}
        records["model"] = replace(self.model, **values["model"])
        return replace(self, **values | records | {"rows": rows.to(self.rows.device)})
