"""The record of a fit: the results of its phases, from the first atoms to the last encoder.

A phase takes the record and returns it with its results. The record is inverse to the fitted
attributes: `Fitted.attributes` makes them, and `partial_fit` begins with the record of them. A
checkpoint holds the values of `Fitted.pack`.
"""

from dataclasses import dataclass, field, replace
from math import inf

import torch
from sklearn.utils import Bunch
from torch import Tensor

from skpudle._data.arrays import tensors_of, to_numpy, to_tensor
from skpudle.encoding._learned import LearnedEncoder
from skpudle.search._noise import CENTRED, Noise
from skpudle.search._penalty import PenaltyPath
from skpudle.search._size import SizePath

__all__ = ["Fitted", "FittedRows", "check_numbers", "learned_encoder"]

# Attributes that hold a learned encoder.
_LEARNED = "analysis_components_", "synthesis_components_", "thresholds_"


def check_numbers(values, *, limit=inf):
    """Raise ValueError unless values are numbers from 0 to a limit, or None."""
    for value in values:
        known = isinstance(value, int | float) and 0 <= value <= limit and value < inf
        if not (known or value is None):
            raise ValueError(f"one of its numbers is {value!r:.50}")


def _check_tensors(tensors, shape):
    """Raise ValueError unless tensors have a shape and finite floating-point numbers."""
    for tensor in tensors:
        if tuple(tensor.shape) != tuple(shape) or not tensor.dtype.is_floating_point:
            raise ValueError(f"one of its arrays has shape {tuple(tensor.shape)}, not {shape}")
        if not torch.isfinite(tensor).all():
            raise ValueError("one of its arrays is not finite")


def _check_path(values, kind, error):  # dict or None -> kind or None
    if values is None:
        return None
    path = kind(**values)
    if len({len(tried) for tried in path}) > 1 or path.score.ndim != 1:
        raise ValueError(error)
    return path


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
        The progress of the rule of stopping, as of the last round.
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

    def memory(self):
        """Return the private attributes that a later `partial_fit` needs."""
        known = {"search_alpha": self.search_alpha, "coding": self.coding}
        known = {name: value for name, value in known.items() if value is not None}
        return self.model.memory() | known

    def pack(self):
        """Return the values that data have decided, for a checkpoint.

        Returns
        -------
        dict
            Numbers, tensors, and lists and dicts of them.
        """
        paths = {name: getattr(self, name) for name in ("size_path", "penalty_path")}
        values = {"search_alpha": self.search_alpha, "coding": self.coding}
        values |= {name: path and path._asdict() for name, path in paths.items()}
        return self.model.pack() | values

    def restore(self, values):
        """Return the record with the values of `pack`.

        Raises
        ------
        ValueError
            If no fit decides these values.
        """
        coding = values["coding"]
        check_numbers([values["alpha"], values["search_alpha"]])
        if values["alpha"] is None:
            raise ValueError("its model has no penalty")
        if coding is not None:
            penalty, share, noise_std = coding = tuple(coding)
            check_numbers([float(penalty), noise_std])
            check_numbers([float(share)], limit=1.0)
        error = "its {} have no scores"
        return replace(
            self,
            model=self.model.restore(values),
            search_alpha=values["search_alpha"],
            coding=coding,
            size_path=_check_path(values["size_path"], SizePath, error.format("numbers of atoms")),
            penalty_path=_check_path(
                values["penalty_path"], PenaltyPath, error.format("penalties")
            ),
        )


def _to_arrays(values):
    """Return nested values with arrays for tensors."""
    if isinstance(values, dict):
        return {name: _to_arrays(value) for name, value in values.items()}
    return to_numpy(values) if isinstance(values, Tensor) else values


def _check_noise(values, n_features):  # dict -> Noise
    noise = Noise.from_dict(values)
    parts = [part for part in (noise.intercept, noise.scale) if part is not None]
    _check_tensors(parts, (n_features,))
    if noise.scale is not None and not (noise.scale > 0).all():
        raise ValueError("its scales of features are not positive")
    check_numbers([] if noise.rows is None else noise.rows[1:])
    return noise


def _check_memory(stream, n_components):  # dict of tensors or None -> dict of arrays or None
    if stream is None:
        return None
    _check_tensors([stream["energy"]], (n_components,))  # written after a search
    if not (isinstance(stream["mean"], float) and stream["mean"] >= 0):
        raise ValueError(f"its mean objective is {stream['mean']!r:.50}")
    return {"energy": to_numpy(stream["energy"]), "mean": stream["mean"]}


def _check_encoder(learned, atoms):  # dict or None -> LearnedEncoder or None
    if learned is None:
        return None
    learned = LearnedEncoder(**learned)
    shape, depth = atoms.shape, len(learned.thresholds)
    _check_tensors([learned.thresholds], (depth, shape[0]))
    for matrices, lengths in (
        (learned.analysis, {1, depth}),
        (learned.synthesis, {1, depth - 1}),
    ):
        _check_tensors(matrices, shape)
        if len(matrices) not in lengths or matrices.dtype != atoms.dtype:
            raise ValueError(f"its encoder has {len(matrices)} matrices, and {depth} unfoldings")
    return learned


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
    noise : Noise, default=CENTRED
        The units that rows are learned in.
    outliers : Tensor of shape (n_outliers, 2), default=None
        Places of entries that were treated as missing.
    stream : dict, default=None
        The memory of rows for a later `partial_fit`, arrays and numbers.
    learned : LearnedEncoder, default=None
        The encoder that was trained after the dictionary.
    """

    noise: Noise = CENTRED
    outliers: Tensor | None = None
    stream: dict | None = None
    learned: LearnedEncoder | None = None

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
        return memory if self.stream is None else memory | {"stream": self.stream}

    def pack(self):
        """Return the values that data have decided, for a checkpoint."""
        return super().pack() | {
            "stream": self.stream and tensors_of(self.stream),
            "learned": self.learned and vars(self.learned),
            "noise": self.noise.as_dict(),
            "outliers": self.outliers,
        }

    def restore(self, values):
        """Return the record with the values of `pack`.

        Raises
        ------
        ValueError
            If no fit decides these values.
        """
        atoms, _ = self.model.parts(self.rows)
        return replace(
            super().restore(values),
            stream=_check_memory(values["stream"], len(atoms)),
            learned=_check_encoder(values["learned"], self.rows),
            outliers=values["outliers"],
            noise=_check_noise(values["noise"], atoms.shape[1]),
        )
