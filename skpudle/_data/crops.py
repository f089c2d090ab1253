"""Batches of image crops, with fresh noise for every update."""

from math import log

import torch

from skpudle._data.batches import Batch, Indexed
from skpudle._data.noise import with_photons

__all__ = ["Crops"]

# Random patches of an image, much of which may be black, until one is not zero.
_N_TRIES = 8


class Crops(Indexed):
    """Random crops of images, one of each image an epoch.

    Parameters
    ----------
    images : list of Tensor of shape (n_channels, *size)
        Images, each at least as large as a crop.
    targets : list of Tensor or None
        What to reconstruct, of the same sizes; by default the images without noise.
    masks : list of Tensor or None
        1 where images are known and 0 where they are missing, of the same sizes; margins and grids
        do without.
    batch_size : int
        Number of crops in a batch; the last one of an epoch may be smaller.
    crop : tuple of int
        Size of a crop.
    atom : tuple of int
        Size of the patches that may replace atoms.
    margin : tuple of int, default=None
        Pixels on either side of each axis that belong to the crop but not to its target.
    noise_std : float, tuple (low, high) or "poisson", default=0.0
        Standard deviation of Gaussian noise that is added to crops that are their own targets. Of a
        pair each crop gets one in between, as likely as any other on a logarithmic scale, on which
        the error of denoising is nearly a line: all weigh alike in decibels. "poisson" draws counts
        of what is expected, where images hold the roots of both.
    flip : bool, default=False
        Whether crops are mirrored along random axes, and transposed where they are square.
    shuffle : bool, default=True
        Whether images come in a new order every epoch.
    generator : torch.Generator
        Random numbers.
    """

    n_judged = 256  # a few random crops say little about whether training has stalled

    def __init__(
        self,
        images,
        targets,
        masks,
        batch_size,
        crop,
        atom,
        *,
        margin=None,
        noise_std=0.0,
        flip=False,
        shuffle=True,
        generator,
    ):
        super().__init__(min(batch_size, len(images)), generator, shuffle=shuffle)
        self.images, self.targets, self.masks = images, targets, masks
        self.crop, self.atom, self.margin = crop, atom, margin or (0,) * len(crop)
        self.noise_std, self.flip = noise_std, flip

    def __len__(self):
        return len(self.images)

    def read(self, parts):
        """Yield a crop of each image with the numbers of each part."""
        return map(self._batch, parts)

    def samples(self, keys):
        """Return a random patch of each of the given images, if possible one that is not zero."""
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
        return Batch(indices.to(x.device), x, target[(..., *inside)], mask, noise_std=noise_std)

    @property
    def _alike(self):  # what is cut and mirrored in the same way
        return self.images, self.targets, self.masks

    def _with_noise(self, x):  # -> the same with noise, and how much where that varies
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
