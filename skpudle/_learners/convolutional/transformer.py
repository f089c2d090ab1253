"""Read images and signals, convert them to code maps and back, and follow a fit of them."""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.callback import CallbackSupportMixin
from sklearn.utils import check_array
from sklearn.utils.validation import _check_feature_names, _check_n_features
from torch import Tensor

from skpudle._data.arrays import input_attributes, resolve_device, to_numpy, to_tensor
from skpudle._data.foreign import dictionary_of
from skpudle._data.images import (
    check_atoms_fit,
    check_axes,
    check_gaps,
    check_sizes,
    covering_positions,
    read_images,
    sizes,
)
from skpudle._fit.run import Interrupts
from skpudle._learners.coder import DictionaryTransformer

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


def atoms_outside(atoms, channel_axis):  # (n, n_channels, *kernel) -> components_
    """Return atoms with channels last, or without an axis of channels."""
    return to_numpy(atoms.movedim(1, -1) if channel_axis else atoms[:, 0])


def atoms_inside(atoms, n_axes, like):  # components_ -> (n, n_channels, *kernel)
    """Return atoms of the dtype and on the device of a tensor, the inverse of `atoms_outside`."""
    atoms = to_tensor(atoms).to(like)
    return (atoms if atoms.ndim == n_axes + 2 else atoms[..., None]).movedim(-1, 1).contiguous()


class ConvTransformer(CallbackSupportMixin, DictionaryTransformer):
    """A learner of convolved atoms.

    A subclass has ``_image_size``, of images of one size in a fit; ``_check_known()``, which raises
    an error unless it is fitted with the present parameters; and ``_coder(like)``, the object that
    encodes and decodes, of the dtype and on the device of a tensor, by ``_encode(coder, x)`` and
    ``coder.decode(z)``. `_to_coder` converts images to the coder's units, `_to_images` back.
    """

    _image_size = None

    # ------------------------------------------------------------------ for subclasses

    def _to_coder(self, images):  # -> Images
        """Return images of users in the units of the coder."""
        return images

    def _to_images(self, x):  # (..., n_channels, *size) -> the same
        """Return images of users from reconstructions of the coder."""
        return x

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
        device = self._transform_device(X[0] if isinstance(X, list) and X else X)
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
        kernel, stride, gaps = self._kernel, stride_of(self), {"allow_nan": self._allows_nan}
        check_sizes(kernel, stride)
        if known:
            dtype = to_tensor(self.components_).dtype
            images = self._read_known(X, **gaps).map(lambda x: x.to(dtype))
        else:
            device = resolve_device(self.device, X[0] if isinstance(X, list) and X else X)
            images = self._read_new(X, device, **gaps)
            check_atoms_fit(images, kernel, channels_first=self.channels_first)
        check_gaps(images.tensors, kernel, stride)
        return images

    def _read_and_build(self, X, *, colours=False, **checks):  # -> Images, coder
        self._check_known()
        images = self._read_known(X, colours=colours, **checks)
        return images, self._coder(images.tensors[0])

    def _given_atoms(self, n_components, images):  # -> (n_components, n_channels, *kernel)
        """Return the atoms of ``dict_init``, with the dtype of images.

        Raises
        ------
        ValueError
            If their shape is another one.
        """
        options = dict(dtype=np.float64, ensure_2d=False, allow_nd=True, input_name="dict_init")
        atoms, own = check_array(dictionary_of(self.dict_init), **options), images.channel_axis
        expected = (n_components, *self._kernel, *[images.n_channels][:own])
        if atoms.shape != expected:
            raise ValueError(
                f"dict_init has shape {atoms.shape}, expected (n_components, *atom_shape"
                f"{', n_channels' if own else ''}) = {expected}."
            )
        return atoms_inside(atoms, len(self._kernel), images.tensors[0])

    # ------------------------------------------------------------------ a fit

    def _attributes_of_input(self, X, images):
        """Return the attributes that tell of the form of the images of a fit."""
        same = images.kind != "list"
        size = tuple(images.tensors[0].shape[2:]) if same else None
        return input_attributes(X if images.kind == "rows" else None) | {"_image_size": size}

    def _follow(self, epochs, given, n_epochs=None):
        """Take the attributes of the last epoch of a fit, with all hooks.

        Parameters
        ----------
        epochs : callable
            ``epochs(interrupts)`` yields for each epoch a line of progress, and a function that
            returns the fitted attributes.
        given : dict
            The estimator and its input, for callbacks.
        n_epochs : int, default=None
            Largest number of epochs, if it is known.

        Raises
        ------
        KeyboardInterrupt
            After Ctrl-C, when the attributes of the last epoch have been taken.
        """
        root = self._init_callback_context(max_subtasks=n_epochs)
        root.call_on_fit_task_begin(**given)
        attributes, ended_by = None, None
        with Interrupts() as interrupts:
            try:
                for note, attributes in epochs(interrupts):
                    if interrupts.pending:
                        break
                    epoch = root.subcontext(task_name="epoch")
                    epoch.call_on_fit_task_begin(**given)
                    if self.verbose:
                        print(note, flush=True)
                    hooks = given | {"reconstruction_attributes": attributes}
                    if epoch.call_on_fit_task_end(**hooks):
                        ended_by = "callback"
                        break
            except KeyboardInterrupt:  # a second Ctrl-C
                interrupts.pending = True
            ended_by = "interrupt" if interrupts.pending else ended_by
            if attributes is not None:
                self._take(attributes() | ({"ended_by_": ended_by} if ended_by else {}))
            if interrupts.pending:
                raise KeyboardInterrupt(f"the fit was interrupted after: {note}")
        root.call_on_fit_task_end(**given, reconstruction_attributes=dict)

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
        codes = [
            torch.cat([self._encode(coder, part) for part in parts_of_images(x)])
            for x in images.tensors
        ]
        return images.hand_back(codes, channels=True)

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
        device = self._transform_device(X[0] if isinstance(X, list) and X else X)
        size, n_components = self._image_size, len(self.components_)
        positions = covering_positions(size, self._kernel, stride_of(self)) if size else None
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
