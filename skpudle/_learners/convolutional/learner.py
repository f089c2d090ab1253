"""The base of convolutional learners: read images, encode, decode, and train on crops."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.utils.validation import _check_feature_names, _check_n_features, check_is_fitted
from torch import Tensor

from skpudle._data.arrays import input_attributes, make_generator, resolve_device, to_tensor
from skpudle._data.images import (
    check_atoms_fit,
    check_axes,
    check_gaps,
    covering_positions,
    read_images,
    sizes,
    split_gaps,
)
from skpudle._data.names import fit_context
from skpudle._data.sources import open_source
from skpudle._data.training_images import Geometry
from skpudle._learners.base import Data, GradientLearner
from skpudle._learners.coder import DictionaryTransformer, decode_parts
from skpudle._learners.convolutional.model import ConvNetwork
from skpudle._learners.convolutional.parameters import stride_of
from skpudle._learners.convolutional.values import known_parameters
from skpudle._learners.record import Fitted
from skpudle._operators._conv import ConvDictionary
from skpudle._precision import training_mode
from skpudle._training.messages import nothing_known
from skpudle._training.team import refuse_several

# pixels encoded at a time: few enough for their codes to stay in a cache
_PIXELS = 2**17


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


def _first(X):  # X or its first image, to find the device
    return X[0] if isinstance(X, list) and len(X) else X


def _wrong_channels(learner, found, expected):
    if np.size(learner.atom_shape) == 2 and expected in (1, 3) and found == 4:
        return ValueError(
            "Images have 4 channels: colours and transparency? Pass the colours, "
            "image[..., :3], and join the fourth channel to the result: "
            "np.dstack([result, image[..., 3]])."
        )
    return ValueError(
        f"Images have {found} channels, but {type(learner).__name__} was fitted on {expected}; "
        f"channels are the {'first' if learner.channels_first else 'last'} axis of an image. Pass "
        "images with the same channels; if it was fitted on 1, the channels as a list of grey "
        "images, list(np.moveaxis(image, -1, 0))."
    )


class ConvLearner(GradientLearner, DictionaryTransformer):
    """A learner of convolved atoms; a subclass has parameters and a plan.

    `_to_network` and `_training_images` convert images to the network's units, `_to_images` back.
    """

    # ------------------------------------------------------------------ for subclasses

    def _to_network(self, images):  # -> Images
        """Return images of users in the units of the fitted network."""
        return images

    def _to_images(self, x):  # (..., n_channels, *size) -> the same
        """Return images of users from reconstructions of the network."""
        return x

    def _known_choices(self, plan, images, alpha):  # -> ConvParameters, dict, dict
        """Return the parameters that `partial_fit` goes on from, and fields of model and record.

        ``alpha`` is a penalty that was set after the fit, None otherwise.
        """
        raise NotImplementedError

    def _training_images(self, plan, images, y, geometry, *, known):  # -> TrainingImages
        """Return images to train on, in the network's units; ``known`` images are in them."""
        raise NotImplementedError

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
        device = self._transform_device(_first(X))
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
            raise _wrong_channels(self, images.n_channels, n_channels)
        return self._to_network(images)

    def _check_known(self):  # -> Plan
        """Raise an error unless it is fitted, with atoms of the present parameters."""
        check_is_fitted(self)
        self._validate_params()  # they may have been set since `fit`
        plan = self._plan()
        found = self.components_.shape[1 : 1 + len(self._kernel)]
        if found != self._kernel:
            raise ValueError(
                f"atom_shape={self.atom_shape!r:.80}, but the atoms in components_ have the shape "
                f"{found}. Set the parameter as it was, or fit again."
            )
        return plan

    # ------------------------------------------------------------------ codes

    def _parameters(self, plan, like):  # -> ConvParameters of the fitted attributes
        attributes = vars(self) | {"n_unfoldings": plan.encoder.n_unfoldings}
        return known_parameters(attributes, len(self._kernel), like)

    def _network(self, plan, like):  # -> ConvNetwork of the dtype and on the device of a tensor
        parameters, decay = self._parameters(plan, like), self.lambda_decay_
        return ConvNetwork(parameters, stride_of(self), plan.encoder, lambda_decay=decay)

    def _read_and_build(self, X, *, colours=False, **checks):  # -> Images, ConvNetwork
        plan = self._check_known()
        images = self._read_known(X, colours=colours, **checks)
        return images, self._network(plan, images.tensors[0])

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
        images, network = self._read_and_build(X, allow_nan=self._allows_nan)
        codes = [self._encode(network, x) for x in images.tensors]
        return images.hand_back(codes, channels=True)

    def _encode(self, network, x):  # (n, n_channels, *size) -> (n, n_components, *positions)
        cover = partial(covered, kernel=self._kernel, stride=stride_of(self))
        x, mask = split_gaps(x, len(self._kernel))
        if mask is not None:
            pairs = zip(
                parts_of_images(cover(x)), parts_of_images(cover(mask, end=1.0)), strict=True
            )
            return torch.cat([network.encode(part, mask=known) for part, known in pairs])
        return torch.cat([self._encode_complete(network, part) for part in parts_of_images(x)])

    def _encode_complete(self, network, x):  # (n, n_channels, *size) -> (n, n_components, ...)
        noise_std = network.noise_of(x)  # before padding with zeros
        return network.encode(covered(x, self._kernel, stride_of(self)), noise_std=noise_std)

    @torch.no_grad()
    def inverse_transform(self, X: ArrayLike | Tensor | list) -> np.ndarray | Tensor | list:
        """Return images from code maps.

        Parameters
        ----------
        X : array-like, Tensor or list of them
            Codes, as `transform` returns them, or a sparse array of `transform_sparse`.

        Returns
        -------
        ndarray, Tensor or list of them
            Images, of the size seen in `fit` if the codes have the positions of this size, and else
            of the size that the copies of the atoms cover.
        """
        plan = self._check_known()
        if sparse.issparse(X):
            return decode_parts(self, open_source(X))
        device, size = self._transform_device(_first(X)), self._training_state["image_size"]
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
        network = self._network(plan, codes.tensors[0])
        images = []
        for z in codes.tensors:
            x = torch.cat([network.synthesis(part) for part in parts_of_images(z)])
            if size and tuple(z.shape[2:]) == positions:
                x = x[(..., *(slice(n) for n in size))]
            images.append(self._to_images(x))
        channels = self.components_.ndim == len(self._kernel) + 2
        first = self.channels_first
        return codes.hand_back(images, channels=channels, channels_first=first)

    @property
    def _n_features_out(self):
        self._check_known()
        size = self._training_state["image_size"]
        positions = covering_positions(size, self._kernel, stride_of(self)) if size else ()
        return len(self.components_) * prod(positions)

    # ------------------------------------------------------------------ training

    @fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Train by one random crop of each image.

        The state of the optimiser persists between calls, also through pickling, and after `fit`;
        parameters such as ``batch_size`` may change in between.

        Parameters
        ----------
        X, y
            As in `fit`.

        Returns
        -------
        self
            The estimator.
        """
        return self._partial_fit(X, y)

    def _read(self, plan, X, y, *, known=False, part=False):  # -> Data
        refuse_several(type(self).__name__)
        gaps = {"allow_nan": self._allows_nan}
        if known:
            self._check_known()
            dtype = to_tensor(self.components_).dtype
            images = self._read_known(X, **gaps).map(lambda x: x.to(dtype))
        else:
            images = self._read_new(X, resolve_device(self.device, _first(X)), **gaps)
            check_atoms_fit(images, self._kernel, channels_first=self.channels_first)
        check_gaps(images.tensors, self._kernel, stride_of(self))
        same = images.kind != "list"
        image_size = tuple(images.tensors[0].shape[2:]) if same else None
        geometry = Geometry(image_size, images.channel_axis)
        sample = self._training_images(plan, images, y, geometry, known=known)
        device = images.tensors[0].device
        if known:
            return Data(sample, sample, device, {})
        if sample.masks and not any(mask.any() for mask in sample.masks):
            raise nothing_known(self)
        inputs = input_attributes(X if images.kind == "rows" else None)
        return Data(sample, sample, device, inputs)

    def _some_samples(self, data):  # -> Samples
        own = make_generator(0)  # leave the generator of training's crops as it is
        source = data.source.for_training(self._plan().batch_size(), own, shuffle=False)
        return next(iter(source.batches()))

    def _has_codes(self, data):
        pictures = [data.samples.covered(image)[None] for image in data.samples.images]
        if all((x == x.flatten()[0]).all() for x in pictures):
            return True  # a baseline explains constant pictures
        plan = self._plan()
        network = self._network(plan, pictures[0])
        if plan.encoder.n_unfoldings is not None:
            return any(network.encode(x).any() for x in pictures)
        # codes of the lasso are zero where no correlation is above the penalty
        dictionary = ConvDictionary(network.parameters.atoms, stride_of(self))
        found = (dictionary.analysis(x) for x in pictures)
        alpha = network.parameters.alpha
        return any(((z if self.positive_code else z.abs()) > alpha).any() for z in found)

    def _resume(self, plan, data):  # -> Fitted, generator
        generator = make_generator(self.random_state)
        generator.manual_seed(generator.initial_seed() + self.n_steps_)  # new crops
        images, state = data.samples, self._training_state
        given, before = plan.given.alpha, state["given"]["alpha"]
        alpha = None if given in ("auto", before) else float(given)
        parameters, own, found = self._known_choices(plan, images, alpha)
        geometry = images.geometry._replace(image_size=state["image_size"])
        unit = state["threshold_unit"] if state["data_scale"] else None  # unknown after zeros alone
        own |= dict(threshold_unit=unit, alpha=state["alpha"] if alpha is None else alpha)
        model, rows = plan.model(parameters, images, geometry, **own)
        model = replace(model, data_scale=state["data_scale"] or model.data_scale)
        return Fitted(model=model, rows=rows, **found), generator

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags
