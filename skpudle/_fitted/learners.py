"""Find the fitted learner in a pipeline or search, and look at its codes of samples."""

from typing import NamedTuple

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skpudle._data.arrays import check_rows, host_array, to_numpy, to_tensor
from skpudle._data.images import read_images
from skpudle._data.sources import open_source, part_of
from skpudle._learners.units import centre


class Found(NamedTuple):
    """A fitted learner, and the fitted transformers before it."""

    learner: object
    steps: tuple

    def prepare(self, X):
        """Return data as the learner gets them."""
        for step in self.steps:
            X = step.transform(X)
        return X

    def codes(self, X):  # -> (n_codes, n_components)
        """Return the signed codes of data."""
        return signed_codes(self.learner, self.learner.transform(self.prepare(X)))

    def to_data(self, rows):  # (n, n_features of the learner) -> (n, n_features of the data)
        """Return atoms, or any differences of rows, in the features of the data.

        This applies the linear part of the inverse of the steps. If the steps have no affine
        inverse, or atoms are not rows, `rows` are returned unchanged.
        """
        if not self.steps or rows.ndim != 2 or hasattr(self.learner, "atom_shape"):
            return rows

        def undone(rows):
            for step in reversed(self.steps):
                rows = step.inverse_transform(rows)
            return np.asarray(rows)

        mixed = rows + 2 * np.roll(rows, 1, axis=0)
        try:
            with np.errstate(all="ignore"):
                origin = undone(np.zeros_like(rows[:1]))
                linear, of_mixed = undone(rows) - origin, undone(mixed) - origin
        except (AttributeError, ValueError):  # some steps have no inverse, or refuse it
            return rows
        expected = linear + 2 * np.roll(linear, 1, axis=0)
        tolerance = 1e-3 * np.abs(expected).max(initial=0)  # well above rounding in float32
        return linear if np.allclose(of_mixed, expected, rtol=0, atol=tolerance) else rows

    def atoms(self):  # -> (n_components, ...)
        """Return the atoms in the features of the data, if the steps have an affine inverse."""
        return self.to_data(self.learner.components_)


def find_learner(estimator, attribute="components_"):  # -> Found
    """Return the learner in an estimator: itself, the best of a search, a step of a pipeline.

    In a pipeline it is the last step with the attribute; steps after it are ignored.

    Parameters
    ----------
    estimator : estimator
        Fitted.
    attribute : str, default="components_"
        Attribute by which a learner is recognised.

    Returns
    -------
    Found
        The learner and the steps before it.

    Raises
    ------
    NotFittedError
        If there is none.
    ValueError
        If a search has not kept its best estimator.
    """
    if hasattr(estimator, "best_estimator_"):
        return find_learner(estimator.best_estimator_, attribute)
    if hasattr(estimator, "cv_results_"):
        raise ValueError(
            f"{type(estimator).__name__} has no best_estimator_, since refit={estimator.refit!r}; "
            "pass refit=True, or a learner that you have fitted."
        )
    if not isinstance(estimator, Pipeline):
        check_is_fitted(estimator, attribute)
        return Found(estimator, ())
    steps = [step for _, step in estimator.steps if step is not None and step != "passthrough"]
    for i in reversed(range(len(steps))):
        try:
            found = find_learner(steps[i], attribute)
        except NotFittedError:
            continue
        return Found(found.learner, (*steps[:i], *found.steps))
    names = ", ".join(type(step).__name__ for step in steps)
    raise NotFittedError(
        f"No step of the pipeline ({names}) has {attribute}: fit it, with a dictionary learner as "
        "one of its steps."
    )


def signed_codes(estimator, codes):  # -> (n_codes, n_components)
    """Return the result of `transform` as an array, a row per sample or per position of atoms."""
    if isinstance(codes, list):  # codes of images of different sizes
        return np.concatenate([signed_codes(estimator, maps) for maps in codes])
    estimator = getattr(estimator, "estimator_", estimator)  # the learner of a consensus
    codes, n_components = to_numpy(to_tensor(codes)), len(estimator.components_)
    if getattr(estimator, "split_sign", False):
        return codes[:, :n_components] - codes[:, n_components:]
    return codes.reshape(-1, n_components)


def find_peaks(waveforms):  # (n_atoms, length[, n_channels]) -> (n_atoms,)
    """Return where each waveform has its largest magnitude, which is the norm of its channels."""
    energy = np.square(waveforms).reshape(*np.shape(waveforms)[:2], -1).sum(axis=2)
    return energy.argmax(axis=1)


def as_samples(learner, X):
    """Return samples as they are, and one recording with channels first as the only sample."""
    channels_first = getattr(learner, "channels_first", False)
    return X[None] if channels_first and np.ndim(X) == np.size(learner.atom_shape) + 1 else X


def sample_numbers(learner, raw):  # -> (n_codes,) int, or None for rows
    """Return the sample of each row of `signed_codes`, where a sample has several positions."""
    if not hasattr(learner, "atom_shape"):
        return None
    n_positions = [np.prod(maps.shape) // len(learner.components_) for maps in raw]
    return np.repeat(np.arange(len(raw)), n_positions)


class Look(NamedTuple):
    """A learner, samples, and their codes.

    Attributes
    ----------
    learner : estimator
        The learner in the given estimator.
    X : object
        Samples as the learner gets them.
    samples : list of ndarray
        The same as a list of arrays.
    raw : object
        Codes of the samples, as `transform` returns them.
    codes : ndarray of shape (n_codes, n_components)
        Signed codes, a row per sample or per position of atoms.
    is_convolutional : bool
        Whether the learner's atoms have positions.
    """

    learner: object
    X: object
    samples: list
    raw: object
    codes: np.ndarray
    is_convolutional: bool


def _read(learner, X):  # -> samples, as the learner reads them
    if not hasattr(learner, "atom_shape"):
        return check_rows(open_source(X).array(), allow_nan=True)
    first = learner.channels_first
    images = read_images(X, np.size(learner.atom_shape), channels_first=first, allow_nan=True)
    return images.hand_back(images.tensors)


def look_at(estimator, X):  # -> Look
    """Find the learner of an estimator, and encode samples by it; a TypeError without samples."""
    found = find_learner(estimator)
    learner = found.learner
    if X is None:
        raise TypeError(
            f"{type(learner).__name__} came without samples to look at. Pass the learner "
            "first and the data second, as findings(learner, X)."
        )
    X = as_samples(learner, found.prepare(X))
    raw, samples = learner.transform(X), _read(learner, X)
    samples = samples if isinstance(samples, list) else to_tensor(samples)
    samples = [to_numpy(to_tensor(sample)) for sample in samples]
    return Look(
        learner, X, samples, raw, signed_codes(learner, raw), hasattr(learner, "atom_shape")
    )


def encode_parts(learner, X, n_rows=8192):
    """Yield rows (n, n_features) and their codes (n, n_components), in float64."""
    for where, part in open_source(X).parts(n_rows):
        with part_of(where):
            rows = host_array(check_rows(part)).astype(np.float64, copy=False)
        if rows.shape[1:] != learner.components_.shape[1:]:
            raise ValueError(
                f"{where.capitalize()} of X has {rows.shape[1]} features, but atoms have the shape "
                f"{learner.components_.shape[1:]}; pass rows with the features of the atoms."
            )
        codes = signed_codes(learner, learner.transform(part)).astype(np.float64, copy=False)
        yield centre(learner, rows), codes
