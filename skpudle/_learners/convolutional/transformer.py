"""Read images and signals, and convert them to code maps and back, by convolved atoms."""

from collections.abc import Sequence
from functools import partial
from math import prod

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import _check_feature_names, _check_n_features
from torch import Tensor

from skpudle._data.arrays import resolve_device, to_tensor
from skpudle._data.images import (
    check_atoms_fit,
    check_axes,
    check_gaps,
    covering_positions,
    read_images,
    sizes,
    split_gaps,
)
from skpudle._learners.transformer import DictionaryTransformer

# pixels encoded at a time: few enough for their codes to stay in a cache
_PIXELS = 2**17

# Pixels between neighbouring copies of an atom in pictures.
_STRIDE = 4


def stride_of(learner):  # -> tuple of int
    """Return the distance of neighbouring copies of an atom along each axis.

    Events of signals are at any sample. In pictures, copies at every pixel take 16 times as long as
    copies at every fourth pixel of both axes.
    """
    kernel = sizes(learner.atom_shape, 1)
    if isinstance(learner.stride, str):
        of_pictures = getattr(learner, "_stride_of_pictures", _STRIDE)
        return (1,) if len(kernel) == 1 else tuple(min(of_pictures, k) for k in kernel)
    return sizes(learner.stride, len(kernel))


def parts_of_images(x):  # (n, ...) -> tensors of some images each
    """Cut images into parts that are encoded at a time."""
    return x.split(max(1, _PIXELS // prod(x.shape[2:])))


def covered(x, kernel, stride, end=0.0):  # (..., *size) -> (..., *larger size)
    """Extend images to a size that copies of an atom cover."""
    size = x.shape[-len(kernel) :]
    positions = covering_positions(size, kernel, stride)
    axes = zip(size, kernel, stride, positions, strict=True)
    missing = [k + s * (h - 1) - n for n, k, s, h in axes]
    ends = [n for m in reversed(missing) for n in (0, m)]
    return torch.nn.functional.pad(x, ends, value=end) if any(ends) else x


def first_image(X):  # X or its first image, to find the device
    return X[0] if isinstance(X, list) and len(X) else X


class ConvTransformer(DictionaryTransformer):
    """A learner of convolved atoms.

    A subclass has ``_image_size``, of images of one size in a fit; ``_check_known()``, which raises
    an error unless it is fitted with the present parameters; and ``_coder(like)``, the object that
    encodes and decodes, of the dtype and on the device of a tensor, by ``encode(x, mask=None)`` and
    ``decode(z)``. `_to_coder` converts images to the coder's units, `_to_images` back.
    """

    # ------------------------------------------------------------------ for subclasses

    def _to_coder(self, images):  # -> Images
        """Return images of users in the units of the coder."""
        return images

    def _to_images(self, x):  # (..., n_channels, *size) -> the same
        """Return images of users from reconstructions of the coder."""
        return x

    def _encode_complete(self, coder, x):  # (n, n_channels, *size) -> (n, n_components, ...)
        """Return the codes of images without gaps, which atoms need not cover."""
        return coder.encode(covered(x, self._kernel, stride_of(self)))

    # ------------------------------------------------------------------ images

    @property
    def _kernel(self):
        return sizes(self.atom_shape, 1)

    def _reading(self):
        return {"channels_first": self.channels_first, "estimator": self}

    def _read_new(self, X, device, **options):  # -> Images
        images = read_images(
            X, len(self._kernel), **self._reading() | dict(device=device) | options
        )
        check_axes(images)
        return images

    def _read_known(self, X, *, colours=False, **checks):  # -> Images, of the fitted kind
        _check_feature_names(self, X, reset=False)
        grey = self.components_.ndim == 1 + len(self._kernel)
        n_channels = 1 if grey else self.components_.shape[-1]
        device = self._transform_device(first_image(X))
        images = self._read_new(X, device, n_channels=n_channels, **checks)
        if images.kind == "rows":
            if getattr(self, "n_features_in_", None) is None:  # None during callbacks
                raise ValueError(
                    "Two-dimensional input means rows of pixels, but this "
                    f"{type(self).__name__} was fitted on images. Pass one image as [image], or as "
                    "image[np.newaxis]."
                )
            _check_n_features(self, X, reset=False)
        if images.n_channels != n_channels and not (colours and grey and images.n_channels == 3):
            raise ValueError(
                f"Images have {images.n_channels} channels, but {type(self).__name__} was fitted "
                f"on {n_channels}; channels are the {'first' if self.channels_first else 'last'} "
                "axis of an image. Pass the colours, image[..., :3], without transparency, or the "
                "channels as a list of grey images, list(np.moveaxis(image, -1, 0))."
            )
        return self._to_coder(images)

    def _read_training(self, X, *, known):  # -> Images to train on
        gaps = {"allow_nan": self._allows_nan}
        if known:
            dtype = to_tensor(self.components_).dtype
            images = self._read_known(X, **gaps).map(lambda x: x.to(dtype))
        else:
            images = self._read_new(X, resolve_device(self.device, first_image(X)), **gaps)
            check_atoms_fit(images, self._kernel, channels_first=self.channels_first)
        check_gaps(images.tensors, self._kernel, stride_of(self))
        return images

    def _read_and_build(self, X, *, colours=False, **checks):  # -> Images, coder
        self._check_known()
        images = self._read_known(X, colours=colours, **checks)
        return images, self._coder(images.tensors[0])

    # ------------------------------------------------------------------ codes

    @torch.no_grad()
    def transform(self, X: ArrayLike | Tensor | Sequence[ArrayLike]) -> np.ndarray | Tensor | list:
        """Return code maps.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Images, signals or rows. Images that copies of an atom do not cover exactly are extended
            by zeros at their ends.

        Returns
        -------
        ndarray, Tensor or list of them
            Codes of shape (n_images, [rows,] columns, n_components), flat ones (n_images,
            n_features_out) for rows, a list of maps for a list.
        """
        images, coder = self._read_and_build(X, allow_nan=self._allows_nan)
        codes = [self._encode(coder, x) for x in images.tensors]
        return images.hand_back(codes, channels=True)

    def _encode(self, coder, x):  # (n, n_channels, *size) -> (n, n_components, *positions)
        cover = partial(covered, kernel=self._kernel, stride=stride_of(self))
        x, mask = split_gaps(x, len(self._kernel))
        if mask is not None:
            pairs = zip(
                parts_of_images(cover(x)), parts_of_images(cover(mask, end=1.0)), strict=True
            )
            return torch.cat([coder.encode(part, mask=known) for part, known in pairs])
        return torch.cat([self._encode_complete(coder, part) for part in parts_of_images(x)])

    @torch.no_grad()
    def inverse_transform(self, X: ArrayLike | Tensor | list) -> np.ndarray | Tensor | list:
        """Return images from code maps.

        Parameters
        ----------
        X : array-like, Tensor or list of them
            Codes, as `transform` returns them.

        Returns
        -------
        ndarray, Tensor or list of them
            Images, of the size seen in `fit` if the codes have the positions of this size, and else
            of the size that the copies of the atoms cover.
        """
        self._check_known()
        device, size = self._transform_device(first_image(X)), self._image_size
        positions = covering_positions(size, self._kernel, stride_of(self)) if size else None
        n_components = len(self.components_)
        shape = (*positions, n_components) if size else None
        known = dict(image_shape=shape, n_channels=n_components)
        codes = read_images(X, len(self._kernel), **known, device=device)
        if codes.n_channels != n_components:
            raise ValueError(
                f"Codes have {codes.n_channels} maps, but {type(self).__name__} has "
                f"{n_components} components; pass codes as transform returns them."
            )
        coder = self._coder(codes.tensors[0])
        images = []
        for z in codes.tensors:
            x = torch.cat([coder.decode(part) for part in parts_of_images(z)])
            if size and tuple(z.shape[2:]) == positions:
                x = x[(..., *(slice(n) for n in size))]
            images.append(self._to_images(x))
        channels = self.components_.ndim == len(self._kernel) + 2
        first = self.channels_first
        return codes.hand_back(images, channels=channels, channels_first=first)

    @property
    def _n_features_out(self):
        self._check_known()
        size = self._image_size
        positions = covering_positions(size, self._kernel, stride_of(self)) if size else ()
        return len(self.components_) * prod(positions)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags
