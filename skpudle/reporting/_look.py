"""A look at a fitted learner: what it makes of samples."""

from typing import NamedTuple

import numpy as np

from skpudle._data.arrays import check_rows, to_numpy, to_tensor
from skpudle._data.images import read_images
from skpudle._drawing.learners import Found, find_learner, signed_codes

__all__ = ["Look", "as_arrays", "look_at"]


class Look(NamedTuple):
    """A learner, samples, and their codes."""

    found: Found
    """The learner in what was passed, and the steps before it."""
    X: object
    """Samples as the learner gets them."""
    samples: list
    """The same one by one."""
    raw: object
    """What `transform` made of them."""
    codes: np.ndarray
    """(n_codes, n_components) The same with signs, a row per sample or per position of atoms."""

    @property
    def learner(self):
        """The learner."""
        return self.found.learner

    @property
    def is_convolutional(self):
        """Whether the learner's atoms have positions."""
        return hasattr(self.learner, "atom_shape")


def as_arrays(samples):
    """Return samples as a list of arrays, whatever they came in."""
    if isinstance(samples, list):
        return [to_numpy(to_tensor(sample)) for sample in samples]
    return list(to_numpy(to_tensor(samples)))


def _read(learner, X):
    """Return what the learner takes X for, as a list of arrays."""
    if not hasattr(learner, "atom_shape"):
        return as_arrays(check_rows(X, allow_nan=True))
    images = read_images(X, np.size(learner.atom_shape), image_shape=learner.image_shape)
    return as_arrays(images.hand_back(images.tensors))


def look_at(estimator, X):  # -> Look
    """Look at an estimator, by samples as its `transform` takes them."""
    found = find_learner(estimator)
    X = found.prepare(X)
    raw = found.learner.transform(X)
    return Look(found, X, _read(found.learner, X), raw, signed_codes(found.learner, raw))
