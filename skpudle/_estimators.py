"""Find the fitted learner in a pipeline or search, and read and encode data as the learner does.

Metrics, plots, reports and inspection call these functions, so that they accept any estimator:
learners of this package or of scikit-learn, alone, in a pipeline, or in a search.
"""

from contextlib import suppress
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skpudle._data.arrays import (
    check_rows,
    dictionary_of,
    host_array,
    to_numpy,
    to_tensor,
)
from skpudle._data.images import read_images
from skpudle._data.sources import open_source


class FoundLearner(NamedTuple):
    """A fitted learner, and the fitted transformers before it in a pipeline, see `find_learner`.

    ``steps`` are these transformers in their order; without a pipeline there are none. The methods
    translate between the user's data, which are the input of the pipeline, and the learner's data,
    which are the output of the last of these steps.
    """

    learner: object
    steps: tuple

    def prepare(self, X):
        """Return the user's data as the learner gets them: transformed by all steps before it."""
        for step in self.steps:
            X = step.transform(X)
        return X

    def encode(self, X):
        """Return signed codes of the user's data, (n_codes, n_components), by `encode_samples`.

        The second result, (n_codes,), has the index of the sample of each row of codes.
        """
        return encode_samples(self.learner, self.prepare(X))

    def to_data(self, rows):
        """Return atoms, or any differences of rows, in the features of the user's data.

        ``rows`` are (n, n_features of the learner), and the result (n, n_features of the data). An
        offset of a step, such as the mean of `StandardScaler`, does not shift differences. So
        only the linear part of the inverse of the steps is applied to ``rows``. If the steps have
        no affine inverse, or the learner's atoms are images, ``rows`` are returned unchanged.
        """
        if not self.steps or hasattr(self.learner, "atom_shape"):
            return rows
        undone = np.concatenate([0 * rows, rows, 2 * rows])
        try:
            with np.errstate(all="ignore"):
                for step in reversed(self.steps):
                    undone = step.inverse_transform(undone)
        # A step has no inverse, or refuses the rows.
        except (AttributeError, ValueError):
            return rows
        # An affine inverse maps 0, r and 2 r to b, A r + b and 2 A r + b: so A r is the second less
        # the first, and the third shows whether the inverse is affine.
        origin, once, twice = np.split(np.asarray(undone), 3)
        once = once - origin
        twice = twice - origin
        # The tolerance is well above rounding errors of float32.
        tolerance = 1e-3 * np.abs(twice).max(initial=0)
        return once if np.allclose(twice, 2 * once, rtol=0, atol=tolerance) else rows

    def atoms(self):  # -> (n_components, ...)
        """Return the learner's atoms, mapped by `to_data` to the features of the user's data."""
        return self.to_data(self.learner.components_)


def find_learner(estimator, attribute="components_"):  # -> FoundLearner
    """Return the fitted learner in an estimator, with the steps before it in a pipeline.

    The learner is the estimator itself, the best estimator of a `GridSearchCV`, or the last step of
    a pipeline that has ``attribute``. Steps after the learner are ignored.

    Raises
    ------
    NotFittedError
        If no estimator in ``estimator`` has the attribute.
    """
    estimator = getattr(estimator, "best_estimator_", estimator)
    if not isinstance(estimator, Pipeline):
        check_is_fitted(estimator, attribute)
        return FoundLearner(estimator, ())
    steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
    for i in reversed(range(len(steps))):
        with suppress(NotFittedError):
            inner = find_learner(steps[i], attribute)
            return FoundLearner(inner.learner, (*steps[:i], *inner.steps))
    raise NotFittedError(f"No step of the pipeline has {attribute}: {steps!r:.200}.")


def check_learner_of_rows(learner):
    """Return a fitted learner of rows, for functions that cannot take learners of images.

    Of a `ConsensusDictionary` its ``estimator_`` is returned.

    Raises
    ------
    NotFittedError
        If the learner is not fitted.
    ValueError
        If it is a learner of images.
    """
    check_is_fitted(learner, "components_")
    learner = getattr(learner, "estimator_", learner)
    if np.ndim(learner.components_) != 2 or hasattr(learner, "atom_shape"):
        raise ValueError(
            f"Atoms of {type(learner).__name__} have positions. Pass a learner of rows."
        )
    return learner


def read_samples(learner, X):
    """Return the samples ``X`` as arrays, checked as a fitted learner checks them.

    The result is a matrix for a learner of rows, and a list of images or signals, channels first,
    for a convolutional learner. Missing entries are NaN.
    """
    if not hasattr(learner, "atom_shape"):
        return to_numpy(to_tensor(check_rows(open_source(X).array(), allow_nan=True)))
    n_axes = np.size(learner.atom_shape)
    shape = learner.components_.shape[1:]
    images = read_images(
        X,
        n_axes,
        n_channels=shape[-1] if len(shape) > n_axes else 1,
        channels_first=learner.channels_first,
        allow_nan=True,
    )
    return [to_numpy(image) for image in images.singles()]


def encode_samples(learner, X, exposure=None):
    """Return the codes of any fitted learner as one signed matrix, and the sample of each row.

    Each sample has one row of codes or, for a learner of images or signals, one for each position.
    The first array is (n_codes, n_components). The second, (n_codes,), has for each row the index
    of its sample. Codes that ``split_sign`` has split are joined again. ``exposure`` (n_samples,)
    are the exposures of samples of a learner of counts.
    """
    if exposure is None:
        codes = learner.transform(X)
    else:
        codes = learner.transform(X, exposure=exposure)
    learner = getattr(learner, "estimator_", learner)  # the learner of a consensus
    n_atoms = len(learner.components_)
    if isinstance(codes, list):  # images of different sizes have a list of code maps
        maps = [to_numpy(to_tensor(of_one)).reshape(-1, n_atoms) for of_one in codes]
    else:
        codes = to_numpy(to_tensor(codes))
        if getattr(learner, "split_sign", False):
            codes = codes[:, :n_atoms] - codes[:, n_atoms:]
        codes_rows = getattr(learner, "n_features_in_", None) is not None
        # For a single image or signal `transform` returns codes without an axis of images.
        n_axes = np.size(getattr(learner, "atom_shape", ()))
        is_single = not codes_rows and codes.ndim == 1 + n_axes
        maps = codes.reshape(1 if is_single else len(codes), -1, n_atoms)
    lengths = [len(of_one) for of_one in maps]
    return np.concatenate(maps), np.repeat(np.arange(len(maps)), lengths)


def encode_parts(
    learner,
    X,
    n_rows=8192,
    *,
    exposure=None,
    allow_nan=False,
):
    """Yield rows (n, n_features) and their signed codes (n, n_components), part by part.

    Both are arrays of float64, and a part has at most ``n_rows`` rows, so that data need not fit
    into memory. ``exposure`` (n_samples,) are the exposures of all rows of a learner of counts.
    Missing entries, NaN, raise ValueError unless ``allow_nan``.
    """
    for part in open_source(X).parts(n_rows):
        rows = host_array(check_rows(part, allow_nan=allow_nan))
        rows = rows.astype(np.float64, copy=False)
        of_part = None
        if exposure is not None:
            of_part, exposure = np.split(exposure, [len(rows)])
        codes, _ = encode_samples(learner, part, of_part)
        yield rows, codes.astype(np.float64, copy=False)


def code_and_reconstruct(estimator, X):
    """Return codes (n, n_features_out) and reconstructions (n, n_features) of rows ``X``.

    Both are arrays, or tensors if ``X`` is a tensor. A learner of scikit-learn without
    `inverse_transform` reconstructs by codes times atoms.
    """
    code = estimator.transform(X)
    if hasattr(estimator, "inverse_transform"):
        return code, estimator.inverse_transform(code)
    return code, code @ dictionary_of(estimator)
