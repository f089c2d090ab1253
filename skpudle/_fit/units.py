"""Rows in units of their noise, and encoders of such rows for `transform`.

See `skpudle.search.units`.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from skpudle._data.arrays import to_tensor
from skpudle._operators._atoms import DenseDictionary
from skpudle.search.units import CENTRED, Units


def baseline_of(learner):  # -> ndarray of shape (n_features,) or None
    """Return the baseline that rows lose before least squares codes them, None without one.

    The ``intercept_`` of a learner with weights, ``coef_``, is the intercept of its decisions, and
    the baseline is ``baseline_``.
    """
    if getattr(learner, "loss", "gaussian") != "gaussian":
        return None
    baseline = getattr(learner, "baseline_" if hasattr(learner, "coef_") else "intercept_", 0.0)
    return baseline if np.ndim(baseline) else None


def centre(learner, rows):  # (n, n_features) -> the same
    """Return rows without the learner's baseline."""
    baseline = baseline_of(learner)
    return rows if baseline is None else rows - baseline


def restore_noise(values):  # dict of arrays and numbers -> Units
    """Return the noise in the private attributes of a learner."""
    parts = {name: part for name, part in values.items() if isinstance(part, np.ndarray)}
    return Units(**values | {name: to_tensor(part) for name, part in parts.items()})


def units_of(learner):  # -> Units
    """Return the units of a fitted learner's rows; equal noise if no noise was learned.

    New rows get their noise from codes of the learner's atoms.
    """
    state = getattr(learner, "_training_state", {})
    noise = restore_noise(state["noise"]) if "noise" in state else CENTRED
    baseline = baseline_of(learner)
    return replace(
        noise,
        intercept=None if baseline is None else to_tensor(baseline),
        atoms=noise.from_user(to_tensor(learner.components_)),
    )


def in_units(noise, samples):
    """Return samples in units of their noise; outliers are missing."""
    if noise.changes_nothing:
        return samples
    x, mask, _ = noise.enter(samples.x, samples.mask)
    return replace(samples, x=x, mask=mask)


@dataclass(frozen=True, eq=False)
class InUnits:
    """An encoder of rows in units of their noise, for a dictionary in the units of the data.

    Parameters
    ----------
    encoder : callable
        The encoder, ``encoder(dictionary, x, mask=None, offset=None)``.
    noise : Units
        The units, without a baseline, which data have lost before.
    gains : Tensor of shape (n_components,)
        By what codes in these units exceed the user's.
    """

    encoder: object
    noise: Units
    gains: Tensor

    def __call__(self, dictionary, x, mask=None, offset=None):
        """Return codes in the units of the data."""
        atoms, gains = dictionary.atoms, self.gains.to(dictionary.atoms)
        if self.noise.scale is not None:
            atoms = atoms / self.noise.scale.to(atoms) / gains[:, None]
        with torch.no_grad():
            x, mask, scale = replace(self.noise, atoms=atoms).enter(x, mask)
        codes = self.encoder(DenseDictionary(atoms), x, mask=mask, offset=offset) / gains
        return codes if scale is None else codes * scale

    def of_features(self, features):
        """Return the encoder for some of the features."""
        encoder = getattr(self.encoder, "of_features", lambda _: self.encoder)(features)
        return replace(self, encoder=encoder, noise=self.noise.of_features(features))
