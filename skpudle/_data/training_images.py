"""Train convolutions on images: initial atoms, random crops, fresh noise in every update."""

from copy import copy
from functools import partial
from math import log, pi, prod
from typing import NamedTuple

import numpy as np
import torch

from skpudle._data.arrays import check_range
from skpudle._data.batches import Indexed, Samples
from skpudle._data.images import extend, split_gaps
from skpudle._data.noise import with_photons
from skpudle._operators._atoms import atom_norms

# Most patches to draw from an image, which may be mostly black, until one is not zero.
_N_TRIES = 8

# The largest default crop, in pixels: many positions, but far smaller than a photograph.
_CROP = 129


class Crops(Indexed):
    """Random crops of images, one of each image per epoch.

    Parameters
    ----------
    given : TrainingImages
        Images and masks, the size of crops, and the noise to add to crops without separate targets:
        for a pair of deviations each crop draws a level between the two, uniform on a logarithmic
        scale. The error of denoising is nearly a line there, so all levels weigh alike in decibels.
        "poisson" draws counts from expected counts, where images hold stabilised counts.
    batch_size : int
        Number of crops in a batch; the last one of an epoch may be smaller.
    shuffle : bool, default=True
        Whether images come in a new order every epoch.
    generator : torch.Generator
        Random numbers.
    """

    n_judged = 256  # the objective of few random crops is too noisy

    def __init__(self, given, batch_size, *, generator, shuffle=True):
        super().__init__(min(batch_size, len(given)), generator, shuffle=shuffle)
        self.images, self.targets, self.masks = given.images, given.targets, given.masks
        self.crop, self.atom, self.margin = given.crop, given.kernel, given.margin
        self.noise_std, self.flip = given.noise_std, given.flip

    def __len__(self):
        return len(self.images)

    def read(self, parts):
        """Yield a batch for each part: one crop of each image with these numbers."""
        return map(self._batch, parts)

    def samples(self, keys):
        """Return a random patch of each of these images, if possible not zero."""
        return torch.stack([self._patch(self.images[i]) for i in keys.tolist()])

    def _batch(self, indices):
        crops = []
        for i in indices.tolist():
            alike = [images[i] for images in self._alike if images is not None]
            crops.append(self._mirror(self._cut(alike, self.crop)))
        x, *rest = (torch.stack(images) for images in zip(*crops, strict=True))
        target = x if self.targets is None else rest.pop(0)
        mask = rest.pop() if rest else None
        noise_std = None
        if self.noise_std and self.targets is None:
            x, noise_std = self._with_noise(x)
        inside = (slice(m, n - m) for m, n in zip(self.margin, self.crop, strict=True))
        of_samples = dict(target=target[(..., *inside)], noise_std=noise_std)
        return Samples(x, mask, **of_samples, keys=indices.to(x.device))

    @property
    def _alike(self):  # -> images, targets, masks, which are cut and mirrored alike
        return self.images, self.targets, self.masks

    def _with_noise(self, x):  # -> noisy crops, and their noise level where it varies
        options = dict(generator=self.generator, dtype=x.dtype, device="cpu")
        if self.noise_std == "poisson":
            return with_photons(x, self.generator), None
        if not isinstance(self.noise_std, tuple):
            return x + self.noise_std * torch.randn(x.shape, **options).to(x.device), None
        low, high = map(log, self.noise_std)
        noise_std = torch.exp(low + (high - low) * torch.rand(len(x), **options)).to(x.device)
        noise = torch.randn(x.shape, **options).to(x.device)
        return x + noise_std.reshape(-1, *[1] * (x.ndim - 1)) * noise, noise_std

    def _patch(self, image):
        for _ in range(_N_TRIES):
            (patch,) = self._cut([image], self.atom)
            if patch.any():
                break
        return patch

    def _draw(self, n):  # -> an integer below n
        if n == 1:
            return 0
        return int(torch.randint(n, (), generator=self.generator, device="cpu"))

    def _cut(self, images, size):
        starts = [self._draw(n - k + 1) for n, k in zip(images[0].shape[1:], size, strict=True)]
        inside = (..., *(slice(a, a + k) for a, k in zip(starts, size, strict=True)))
        return [image[inside] for image in images]

    def _mirror(self, images):
        if not self.flip:
            return images
        n_axes = len(self.crop)
        axes = [-1 - axis for axis in range(n_axes) if self._draw(2)]
        images = [image.flip(axes) for image in images]
        if n_axes == 2 and self.crop[0] == self.crop[1] and self._draw(2):
            images = [image.mT for image in images]
        return images


def _constant_and_patches(images, shape, n_components, generator):
    """Return a constant atom, then random patches without their mean."""
    patches, seen = [], set()
    for _ in range(4 * n_components):  # constant and repeated patches make no atoms
        if len(patches) >= n_components - 1:
            break
        index = int(torch.randint(len(images), (), generator=generator, device="cpu"))
        sizes = zip(images[index].shape[1:], shape[1:], strict=True)
        draw = partial(torch.randint, size=(), generator=generator, device="cpu")
        starts = [int(draw(n - k + 1)) for n, k in sizes]
        inside = (slice(a, a + k) for a, k in zip(starts, shape[1:], strict=True))
        patch = images[index][(..., *inside)]
        patch = patch - patch.mean()
        if patch.abs().max() > 0 and (index, *starts) not in seen:
            patches.append(patch)
        seen.add((index, *starts))
    constant = images[0].new_ones(1, *shape)
    return torch.cat([constant, *(patch[None] for patch in patches)])[:n_components]


def _cosines(shape):  # -> (prod(shape), *shape)
    """Return products of cosines along all axes, channels too, the slowest first."""
    options = dict(dtype=torch.float64, device="cpu")
    cosines, speeds = torch.ones((), **options), torch.zeros((), **options)
    for n in shape:
        frequency = torch.arange(n, **options)
        wave = torch.cos(pi * frequency[:, None] * (frequency + 0.5) / n)
        cosines = torch.tensordot(cosines, wave, dims=0)
        speeds = speeds[..., None] + frequency / n
    n_axes = len(shape)  # axes alternate between frequency and place
    cosines = cosines.permute(*range(0, 2 * n_axes, 2), *range(1, 2 * n_axes, 2))
    return cosines.flatten(0, n_axes - 1)[speeds.flatten().argsort(stable=True)]


def initial_kernels(images, shape, n_components, method, generator):
    """Return initial atoms of norm 1.

    Parameters
    ----------
    images : list of Tensor of shape (n_channels, *size)
        Images at least as large as an atom.
    shape : tuple of int
        (n_channels, *kernel).
    n_components : int
        Number of atoms.
    method : {"random", "data", "dct"}
        Random directions; a constant atom and random patches without their mean; or the cosines of
        a discrete cosine transform, the slowest first. Further atoms are random.
    generator : torch.Generator
        Random numbers, on the CPU, so that all devices start from the same atoms.

    Returns
    -------
    Tensor of shape (n_components, *shape)
        The atoms.
    """
    options = dict(dtype=torch.float64, device="cpu")
    atoms = torch.randn(n_components, *shape, generator=generator, **options).to(images[0])
    if method == "data":
        patches = _constant_and_patches(images, shape, n_components, generator)
        atoms[: len(patches)] = patches
    elif method == "dct":
        cosines = _cosines(shape)[:n_components]
        atoms[: len(cosines)] = cosines.to(atoms)
    return atoms / atom_norms(atoms)


def patches_by_energy(images, shape, n_components, generator):
    """Return random patches of norm 1, more often those of more energy.

    Parameters
    ----------
    images : list of Tensor of shape (n_channels, *size)
        Images at least as large as an atom.
    shape : tuple of int
        (n_channels, *kernel).
    n_components : int
        Number of patches; if too few are not zero, random directions complete it.
    generator : torch.Generator
        Random numbers, on the CPU.

    Returns
    -------
    Tensor of shape (n_components, *shape)
        The patches, of the dtype and on the device of the images.
    """
    kernel, energies = shape[1:], []
    for image in images:
        squares = image.detach().double().square().sum(0)
        for axis, k in enumerate(kernel):
            squares = squares.unfold(axis, k, 1).sum(-1)
        energies.append(squares.cpu())
    options = dict(generator=generator, dtype=torch.float64, device="cpu")
    atoms = torch.randn(n_components, *shape, **options).to(images[0])
    total = torch.cat([energy.flatten() for energy in energies]).cumsum(0)
    drawn = torch.rand(4 * n_components, **options) * total[-1]
    places = torch.searchsorted(total, drawn, right=True).clamp_max(len(total) - 1)
    places = list(dict.fromkeys(places.tolist()))[:n_components] if total[-1] > 0 else []
    for k, place in enumerate(places):
        i = 0
        while place >= energies[i].numel():
            place, i = place - energies[i].numel(), i + 1
        starts = np.unravel_index(place, energies[i].shape)
        window = (slice(a, a + n) for a, n in zip(starts, kernel, strict=True))
        atoms[k] = images[i][(..., *window)]
    norms = atom_norms(atoms)
    return atoms / torch.where(norms > 0, norms, 1.0)


class Geometry(NamedTuple):
    """Shape of the training images that a learner keeps: common size, if any, and channels.

    ``channel_noise``, of shape (n_channels,), has the units of channels, in which images are.
    """

    image_size: tuple[int, ...] | None
    channel_axis: bool
    channel_noise: torch.Tensor | None = None


class Cropping(NamedTuple):
    """Atoms, and the crops of images to train them on.

    Attributes
    ----------
    kernel, stride : tuple of int
        Size and distance of atoms.
    size : int or "auto"
        Size of a crop along each axis, rounded down to a size that atoms cover; "auto" is the
        smallest image, and at most 129.
    whole : bool
        Whether to take images, all of one size, whole.
    margin : bool
        Whether the loss leaves out pixels of a crop that some atoms do not reach.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    size: int | str
    whole: bool
    margin: bool


class TrainingImages:
    """Images large enough for crops, and the size of crops.

    Parameters
    ----------
    images, targets : list of Tensor of shape (n_channels, *size), or None
        Noisy and clean images; without targets images are their own. NaN pixels of images are
        missing.
    geometry : Geometry
        Shape of results.
    cropping : Cropping
        Atoms and crops.
    noise_std : float, tuple (low, high) or "poisson", default=0.0
        Noise to add to crops.
    flip : bool, default=False
        Whether to mirror and transpose crops at random.
    """

    def __init__(self, images, targets, geometry, cropping, *, noise_std=0.0, flip=False):
        kernel, stride, size, whole, margin = cropping
        self.kernel, self.stride, self.geometry = kernel, stride, geometry
        self.noise_std, self.flip = noise_std, flip
        self.margin = tuple(k - 1 if margin else 0 for k in kernel)
        self.crop = []
        for axis, (k, s) in enumerate(zip(kernel, stride, strict=True)):
            n = min(image.shape[axis + 1] for image in images)
            margin = self.margin[axis]
            if whole:
                steps = -(-(n + 2 * margin - k) // s)
            else:
                n = min(n, _CROP) if size == "auto" else size
                steps = max((n - k) // s, -(-(2 * margin + 1 - k) // s))
            self.crop.append(k + s * max(steps, 0))
        images, masks = zip(*(split_gaps(image, len(kernel)) for image in images), strict=True)
        self.images, self.masks = [self._enlarge(image) for image in images], None
        if any(mask is not None for mask in masks):
            pairs = zip(images, masks, strict=True)
            known = (torch.ones_like(x) if mask is None else mask for x, mask in pairs)
            self.masks = [self._enlarge(mask, end=1.0) for mask in known]
        self.targets = None if targets is None else [self._enlarge(image) for image in targets]

    def __len__(self):
        return len(self.images)

    def __iter__(self):
        """Yield the images, their targets and masks, to recognise the data by."""
        yield from self.images
        yield from self.targets or []
        yield from self.masks or []

    def _enlarge(self, image, end=0.0):
        missing = [max(crop - n, 0) for n, crop in zip(image.shape[1:], self.crop, strict=True)]
        if any(self.margin):  # the margin continues the image
            before = [min(pair) for pair in zip(self.margin, missing, strict=True)]
            after = [m - b for m, b in zip(missing, before, strict=True)]
            return extend(image[None], before, after)[0]
        ends = [n for m in reversed(missing) for n in (0, m)]
        return torch.nn.functional.pad(image, ends, value=end)

    def mapped(self, function):
        """Return the images with a function applied to each image and to each target."""
        mapped = copy(self)
        mapped.images = [function(image) for image in self.images]
        mapped.targets = self.targets and [function(image) for image in self.targets]
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

    def peak(self):
        """Return the largest magnitude of a pixel, in clean images if there are pairs."""
        images = self.targets or self.images
        return max(float(image.abs().max()) for image in images) or 1.0

    def for_training(self, batch_size, generator, *, shuffle):
        """Return a source of random crops; see `Crops`."""
        return Crops(self, batch_size, generator=generator, shuffle=shuffle)
