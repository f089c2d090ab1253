"""What the estimators of images and signals share: sizes of atoms, and how users' data are read.

The estimators are `ConvPUDLEDictionaryLearning` and `ConvDenoiser`. ``kernel`` is the size of an
atom in pixels, a tuple with an int for each axis: one axis for signals, two for pictures, three for
volumes and films.
"""

from collections.abc import Sequence

from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_feature_names, _check_n_features

from skpudle._data.arrays import resolve_device, to_tensor
from skpudle._data.images import (
    check_atoms_fit,
    check_axes,
    check_sizes,
    read_images,
    sizes,
)
from skpudle._fit.callbacks import CallbackSupportMixin


def geometry_of(learner):  # -> kernel, stride, tuples of int
    """Return a learner's atom size and stride as tuples, with the default for ``stride="auto"``.

    The stride is the distance of neighbouring copies of an atom along each axis, in pixels. By
    default it is 1 for signals, whose events may be at any sample. For other images it is the class
    attribute ``_stride_of_pictures`` of the learner, or 4 without one: copies at every pixel would
    take 16 times as long as copies at every fourth pixel of both axes. The default is never larger
    than the atom, so that no pixels lie between the copies.
    """
    kernel = sizes(learner.atom_shape, 1)
    if not isinstance(learner.stride, str):
        return kernel, sizes(learner.stride, len(kernel))
    usual = 1 if len(kernel) == 1 else getattr(learner, "_stride_of_pictures", 4)
    return kernel, tuple(min(usual, k) for k in kernel)


def atoms_inside(atoms, n_axes, like):
    """Convert ``components_`` to the form in which the package computes: channels before pixels.

    ``atoms`` are (n, *kernel[, n_channels]), and ``n_axes`` is the number of axes of ``kernel``.
    The result, (n, n_channels, *kernel), has the dtype and the device of the tensor ``like``.
    """
    atoms = to_tensor(atoms).to(like)
    if atoms.ndim == n_axes + 1:
        atoms = atoms[..., None]
    return atoms.movedim(-1, 1).contiguous()


class ImageEstimator(CallbackSupportMixin, BaseEstimator):
    """The base of estimators of images, signals, or rows of pixels: it reads and checks their data.

    A subclass has the parameters ``atom_shape``, ``stride``, ``channels_first``, ``device`` and
    ``verbose``. After a fit it has ``_n_channels``, the number of channels of the data.
    """

    _allows_nan = True  # whether NaN marks missing pixels, for scikit-learn's tags

    # the size of an atom along each axis, a tuple of int
    @property
    def _kernel(self):
        return sizes(self.atom_shape, 1)

    def _read(
        self,
        X,
        *,
        n_channels=1,
        allow_nan=False,
        largest=None,
    ):  # -> Images
        # Read and check a user's images, signals or rows of pixels, on the learner's device.
        # ``n_channels`` is that of a fit before, ``allow_nan`` is whether NaN may mark missing
        # pixels, and ``largest`` is the largest valid count if images are counts.
        first = X[0] if isinstance(X, Sequence) and len(X) else X
        device = resolve_device(self.device, first, fitted=hasattr(self, "_n_channels"))
        images = read_images(
            X,
            len(self._kernel),
            n_channels=n_channels,
            channels_first=self.channels_first,
            device=device,
            largest=largest,
            estimator=self,
            allow_nan=allow_nan,
        )
        check_axes(images)
        return images

    def _read_known(self, X, *, colours=False, allow_nan=False):  # -> Images
        # Read and check data for a fitted estimator. ValueError is raised unless the numbers of
        # features and channels are those of the fit. With ``colours`` an estimator that was fitted
        # on one channel takes pictures of three channels, too.
        _check_feature_names(self, X, reset=False)
        n_channels = self._n_channels
        name = type(self).__name__
        images = self._read(X, n_channels=n_channels, allow_nan=allow_nan)
        if images.kind == "rows":
            # After a fit to images the attribute is absent, or None while callbacks still run.
            if getattr(self, "n_features_in_", None) is None:
                raise ValueError(
                    f"X holds rows of pixels, but {name} was fitted on images. Pass one image as "
                    "[image]."
                )
            _check_n_features(self, X, reset=False)
        if images.n_channels != n_channels and (
            not colours or (n_channels, images.n_channels) != (1, 3)
        ):
            raise ValueError(
                f"Images have {images.n_channels} channels, but {name} was fitted on {n_channels}; "
                f"channels are the {'first' if self.channels_first else 'last'} axis of an image. "
                "Pass the colours, image[..., :3], without transparency, or a list of grey images."
            )
        return images

    def _read_training(self, X, *, allow_nan=False):  # -> Images
        # Read data for `fit`. ValueError is raised if the stride exceeds the size of an atom, or an
        # atom is larger than an image.
        kernel, stride = geometry_of(self)
        check_sizes(kernel, stride)
        images = self._read(X, allow_nan=allow_nan)
        check_atoms_fit(images, kernel, channels_first=self.channels_first)
        return images

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._allows_nan
        if tags.transformer_tags:
            tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
