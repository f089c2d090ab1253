"""Train convolutional dictionaries on random crops of images."""

from copy import copy
from math import prod
from typing import NamedTuple

import torch

from skpudle._data.arrays import check_range
from skpudle._data.batches import Batches, Samples, draw_order
from skpudle._data.images import split_gaps

# Most patches to draw from an image, which may be mostly black, until one is not zero.
_N_TRIES = 8

# The largest crop, in pixels: many positions, but far smaller than a photograph.
_CROP = 129


def draw_corner(image, size, generator):  # (n_channels, *image size) -> index of a random part
    """Return the index of a random part of an image, drawn axis by axis."""
    starts = []
    for n, k in zip(image.shape[1:], size, strict=True):
        last, draw = n - k + 1, torch.randint
        starts.append(0 if last == 1 else int(draw(last, (), generator=generator, device="cpu")))
    return (..., *(slice(a, a + k) for a, k in zip(starts, size, strict=True)))


class Crops(Batches):
    """Random crops of images, one of each image per epoch.

    Parameters
    ----------
    given : TrainingImages
        Images and masks, and the size of crops.
    batch_size : int
        Number of crops in a batch; the last one of an epoch may be smaller.
    shuffle : bool, default=True
        Whether images come in a new order every epoch.
    generator : torch.Generator
        Random numbers.
    """

    n_judged = 256  # the objective of few random crops is too noisy

    def __init__(self, given, batch_size, *, generator, shuffle=True):
        super().__init__(given, batch_size, generator)
        self._shuffle = shuffle

    def batches(self):
        """Draw the order of an epoch, and return an iterator over its batches."""
        shuffle = self._shuffle and self.batch_size < len(self.source)
        order = draw_order(len(self.source), self.generator if shuffle else None)
        return map(self._batch, order.split(self.batch_size))

    def samples(self, keys):
        """Return a random patch of each of these images, if possible not zero."""
        return torch.stack([self._patch(self.source.images[i]) for i in keys.tolist()])

    def _batch(self, indices):
        images, masks, crops = self.source.images, self.source.masks, []
        for i in indices.tolist():
            corner = draw_corner(images[i], self.source.crop, self.generator)
            alike = [images[i]] if masks is None else [images[i], masks[i]]
            crops.append([image[corner] for image in alike])
        x, *rest = (torch.stack(part) for part in zip(*crops, strict=True))
        return Samples(x, rest[0] if rest else None, keys=indices.to(x.device))

    def _patch(self, image):
        for _ in range(_N_TRIES):
            patch = image[draw_corner(image, self.source.kernel, self.generator)]
            if patch.any():
                break
        return patch


class Geometry(NamedTuple):
    """Shape of the training images that a learner keeps: common size, if any, and channels.

    ``channel_noise``, of shape (n_channels,), has the units of channels, in which images are.
    """

    image_size: tuple[int, ...] | None
    channel_axis: bool
    channel_noise: torch.Tensor | None = None


class TrainingImages:
    """Images large enough for crops, and the size of crops.

    Parameters
    ----------
    images : list of Tensor of shape (n_channels, *size)
        Images; NaN pixels are missing.
    geometry : Geometry
        Shape of results.
    kernel, stride : tuple of int
        Size and distance of atoms.
    whole : bool
        Whether to take images, all of one size, whole.
    """

    def __init__(self, images, geometry, kernel, stride, *, whole):
        self.kernel, self.stride, self.geometry, self.crop = kernel, stride, geometry, []
        for axis, (k, s) in enumerate(zip(kernel, stride, strict=True)):
            n = min(image.shape[axis + 1] for image in images)
            steps = -(-(n - k) // s) if whole else (min(n, _CROP) - k) // s
            self.crop.append(k + s * max(steps, 0))
        images, masks = zip(*(split_gaps(image, len(kernel)) for image in images), strict=True)
        self.images, self.masks = [self._enlarge(image) for image in images], None
        if any(mask is not None for mask in masks):
            pairs = zip(images, masks, strict=True)
            known = (torch.ones_like(x) if mask is None else mask for x, mask in pairs)
            self.masks = [self._enlarge(mask, end=1.0) for mask in known]

    weight = None

    def __len__(self):
        return len(self.images)

    n_samples = property(__len__)

    def __iter__(self):
        """Yield the images and their masks, to recognise the data by."""
        yield from self.images
        yield from self.masks or []

    def _enlarge(self, image, end=0.0):
        missing = [max(crop - n, 0) for n, crop in zip(image.shape[1:], self.crop, strict=True)]
        ends = [n for m in reversed(missing) for n in (0, m)]
        return torch.nn.functional.pad(image, ends, value=end)

    def mapped(self, function):
        """Return the images with a function applied to each image."""
        mapped = copy(self)
        mapped.images = [function(image) for image in self.images]
        return mapped

    def covered(self, image):  # (n_channels, *size) -> (n_channels, *size)
        """Crop an image to a size that copies of an atom cover exactly."""
        axes = zip(image.shape[1:], self.kernel, self.stride, strict=True)
        return image[(..., *(slice(n - (n - k) % s) for n, k, s in axes))]

    def mean_square(self):
        """Return the squared norm of a crop of mean energy, checked to be in training's range."""
        squares = torch.stack([image.square().mean() for image in self.images])
        square = float(squares.mean()) * len(self.images[0]) * prod(self.crop)
        return check_range(square, self.images)

    def for_training(self, batch_size, generator, *, shuffle):
        """Return a source of random crops; see `Crops`."""
        return Crops(self, batch_size, generator=generator, shuffle=shuffle)
