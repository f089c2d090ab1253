"""What a convolutional learner trains on: initial atoms, crops of images, noise in their units."""

from functools import partial
from math import pi, prod
from typing import NamedTuple

import torch

from skpudle._data.arrays import check_range
from skpudle._data.crops import Crops
from skpudle._data.images import extend, split_gaps
from skpudle.operators import atom_norms

__all__ = ["Geometry", "TrainingImages", "initial_kernels"]

# The largest crop by default, in pixels: many positions, and still far smaller than a photograph.
_CROP = 129


def _constant_and_patches(images, shape, n_components, generator):
    """Return a constant atom, then random patches without their mean."""
    patches, seen = [], set()
    for _ in range(4 * n_components):  # patches without structure, or seen before, make no atoms
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
    """Return the products of cosines along all axes, channels too, the slowest ones first."""
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
        a discrete cosine transform, the slowest ones first. Any more of them are random.
    generator : torch.Generator
        Random numbers, on the CPU, so that every device starts from the same atoms.

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


class Geometry(NamedTuple):
    """What a learner keeps of the shape of its images: their size if all have one, channels."""

    image_size: tuple[int, ...] | None
    channel_axis: bool


class TrainingImages:
    """Images that are large enough for crops, and the crops' size.

    Parameters
    ----------
    images, targets : list of Tensor of shape (n_channels, *size), or None
        Noisy and clean images; without targets images are their own. Pixels of the former that are
        NaN are missing.
    kernel, stride : tuple of int
        Size and distance of atoms.
    geometry : Geometry
        What results look like.
    crop_size : int or "auto"
        Size of a crop along each axis, which is rounded down to what atoms cover; "auto" is the
        smallest image, and at most 129.
    whole : bool
        Whether images, which are of one size, are taken whole.
    shifted : bool
        Whether crops need room for several grids.
    margin : bool
        Whether the loss leaves out the pixels of a crop that some atoms do not reach.
    noise_std : float, tuple (low, high) or "poisson", default=0.0
        The noise that crops get.
    flip : bool, default=False
        Whether crops are mirrored and transposed at random.
    """

    def __init__(
        self,
        images,
        targets,
        kernel,
        stride,
        geometry,
        *,
        crop_size,
        whole,
        shifted,
        margin,
        noise_std=0.0,
        flip=False,
    ):
        self.kernel, self.stride, self.geometry = kernel, stride, geometry
        self.noise_std, self.flip = noise_std, flip
        self.room = tuple(s - 1 if shifted else 0 for s in stride)
        self.margin = tuple(k - 1 if margin else 0 for k in kernel)
        self.crop = []
        for axis, (k, s) in enumerate(zip(kernel, stride, strict=True)):
            n = min(image.shape[axis + 1] for image in images)
            least, margin = k + self.room[axis], self.margin[axis]
            if whole:
                steps = -(-(n + 2 * margin - least) // s)
            else:
                n = min(n, _CROP) if crop_size == "auto" else crop_size
                steps = max((n - least) // s, -(-(2 * margin + 1 - least) // s))
            self.crop.append(least + s * max(steps, 0))
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
        """Yield the images, their targets and masks, by which data are recognised."""
        yield from self.images
        yield from self.targets or []
        yield from self.masks or []

    def _enlarge(self, image, end=0.0):
        missing = [max(crop - n, 0) for n, crop in zip(image.shape[1:], self.crop, strict=True)]
        if any(self.margin):  # what the margin shows should look like the image
            before = [min(pair) for pair in zip(self.margin, missing, strict=True)]
            after = [m - b for m, b in zip(missing, before, strict=True)]
            return extend(image[None], before, after)[0]
        ends = [n for m in reversed(missing) for n in (0, m)]
        return torch.nn.functional.pad(image, ends, value=end)

    def covered(self, image):  # (n_channels, *size) -> (n_channels, *size)
        """Return as much of an image as copies of an atom cover exactly."""
        axes = zip(image.shape[1:], self.kernel, self.stride, strict=True)
        return image[(..., *(slice(n - (n - k) % s) for n, k, s in axes))]

    def mean_square(self):
        """Return the squared norm of a crop of mean energy, as a number that training can use."""
        squares = torch.stack([image.square().mean() for image in self.images])
        square = float(squares.mean()) * len(self.images[0]) * prod(self.crop)
        return check_range(square, self.images)

    def peak(self):
        """Return the largest magnitude of a pixel, of clean images where there are pairs."""
        images = self.targets or self.images
        return max(float(image.abs().max()) for image in images) or 1.0

    def for_training(self, batch_size, generator, *, shuffle):
        """Return a source of random crops, by a generator; see `Crops`."""
        return Crops(
            self.images,
            self.targets,
            self.masks,
            batch_size,
            self.crop,
            self.kernel,
            margin=self.margin,
            noise_std=self.noise_std,
            flip=self.flip,
            shuffle=shuffle,
            generator=generator,
        )
