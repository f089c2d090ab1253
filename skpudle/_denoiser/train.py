"""Train a denoising network by an optimiser of torch, on random crops of clean or noisy images."""

from copy import deepcopy
from math import ceil, log2, pi, prod

import torch
from torch.utils.data import DataLoader, Dataset

from skpudle._compilation import threads_for
from skpudle._data.images import extend
from skpudle._learners.convolutional.learn import penalty_of_correlations
from skpudle._operators._atoms import project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle.encoding._unfold import default_step

# The largest default crops of signals and of pictures along an axis, in pixels: many positions, but
# far smaller than a photograph.
_CROPS = 129, 49

# Pixels of a part of a batch: large enough for efficient products, small enough for the codes of
# all unfoldings.
_PIXELS = 2**16

# alpha="auto": a multiple of the noise, as in the paper's denoiser (0.16 for 25 / 255)
_ALPHA = 1.6


def draw_cosines(shape, generator):  # (n, n_channels, *kernel) -> Tensor of the shape
    """Return atoms of norm 1: products of cosines along all axes, channels too, the slowest first.

    Random directions follow if there are too few.
    """
    options = dict(dtype=torch.float64, device="cpu")
    cosines, speeds = torch.ones((), **options), torch.zeros((), **options)
    for n in shape[1:]:
        frequency = torch.arange(n, **options)
        wave = torch.cos(pi * frequency[:, None] * (frequency + 0.5) / n)
        cosines = torch.tensordot(cosines, wave, dims=0)
        speeds = speeds[..., None] + frequency / n
    n_axes = len(shape) - 1  # axes alternate between frequency and place
    cosines = cosines.permute(*range(0, 2 * n_axes, 2), *range(1, 2 * n_axes, 2))
    cosines = cosines.flatten(0, n_axes - 1)[speeds.flatten().argsort(stable=True)][: shape[0]]
    atoms = torch.randn(shape, generator=generator, **options)
    atoms[: len(cosines)] = cosines
    return project_atoms(atoms)


def crop_shape(images, kernel, stride, size):  # -> list of int
    """Return the size of crops: that of images, or ``size``, rounded down to what atoms cover.

    Crops have at least one pixel that all atoms reach, beside a margin.
    """
    shape = []
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=1):
        n = min(image.shape[axis] for image in images)
        n = min(n, _CROPS[len(kernel) - 1]) if size == "auto" else size
        shape.append(k + s * max((n - k) // s, -(-(k - 1) // s)))
    return shape


class Crops(Dataset):
    """Random crops of images, with their clean targets; the same tensor if targets are None.

    Crops of pictures are mirrored and transposed at random.

    Parameters
    ----------
    images, targets : list of Tensor of shape (n_channels, *size), or None
        Images, which are continued by reflection if they are smaller than a crop.
    shape, kernel : sequence of int
        Size of a crop and of an atom.
    generator : torch.Generator
        Random numbers.
    """

    def __init__(self, images, targets, shape, kernel, generator):
        self.shape, self.margin = tuple(shape), tuple(k - 1 for k in kernel)
        self.generator = generator
        self.images = [self._enlarge(image) for image in images]
        self.targets = targets and [self._enlarge(image) for image in targets]

    def _enlarge(self, image):
        sizes = zip(image.shape[1:], self.shape, strict=True)
        missing = [max(crop - n, 0) for n, crop in sizes]
        before = [min(pair) for pair in zip(self.margin, missing, strict=True)]
        after = [m - b for m, b in zip(missing, before, strict=True)]
        return extend(image[None], before, after)[0]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        """Return a random crop of image ``i``, and that of its target."""
        alike = [self.images[i]] if self.targets is None else [self.images[i], self.targets[i]]
        corner, options = [], dict(generator=self.generator, device="cpu")
        for n, k in zip(alike[0].shape[1:], self.shape, strict=True):
            start = int(torch.randint(n - k + 1, (), **options)) if n > k else 0
            corner.append(slice(start, start + k))
        crops = [image[(..., *corner)] for image in alike]
        if len(self.shape) == 2:  # pictures
            flips = torch.randint(2, (3,), **options).tolist()
            axes = [axis for axis, flip in zip((-1, -2), flips) if flip]
            crops = [crop.flip(axes) for crop in crops]
            if flips[2] and self.shape[0] == self.shape[1]:
                crops = [crop.mT for crop in crops]
        return crops[0].contiguous(), crops[-1].contiguous()


@torch.no_grad()
def initialise(network, alpha, images, generator):
    """Begin with the slowest cosines in all unfoldings, and thresholds of a penalty.

    The root of the step is a part of the atoms of analysis and of synthesis, so that both have
    entries of equal size.
    """
    atoms = draw_cosines(network.analysis.shape[1:], generator).to(images[0])
    step, noise = float(default_step(ConvDictionary(atoms, network.stride))), network.noise
    if alpha == "auto":
        alpha = _ALPHA * (noise.typical if noise.is_range else noise.high)
        alpha = alpha or penalty_of_correlations(images, atoms, network.stride)
    for layers in (network.analysis, network.synthesis):
        layers.copy_(atoms * step**0.5)
    network.levels[-1].fill_(alpha * step**0.5)


class Training:
    """A network in training, with the optimiser.

    Parameters
    ----------
    network : DenoisingNetwork
        The network, which changes.
    crops : Crops
        Images. Without targets, updates add noise.
    optimizer : "adam" or callable
        Takes a list of parameters, and ``lr``.
    learning_rate, batch_size : float, int
        Of the optimiser, and crops in an update.
    n_steps, losses : int, list of float, default=0, ()
        Updates so far, and mean losses of epochs.
    state : dict, default=None
        State of an optimiser, which goes on if it is of this class.
    """

    def __init__(
        self,
        network,
        crops,
        optimizer,
        *,
        learning_rate,
        batch_size,
        n_steps=0,
        losses=(),
        state=None,
    ):
        self.network, self.n_steps, self.losses = network, n_steps, list(losses)
        # divides images and thresholds in updates: a learning rate has no unit
        self.unit = 2.0 ** ceil(log2(network.peak))
        self.loader = DataLoader(crops, batch_size, shuffle=True, generator=crops.generator)
        make = torch.optim.Adam if optimizer == "adam" else optimizer
        self.optimizer = make(list(network.parameters()), lr=learning_rate)
        self._name = str(getattr(self.optimizer, "func", type(self.optimizer)))
        if state and state["name"] == self._name:
            now = self.optimizer.state_dict()
            self.optimizer.load_state_dict(now | {"state": deepcopy(state["state"])})

    def optimizer_state(self):
        """Return the state of the optimiser, on the CPU, with its name."""
        known = deepcopy(self.optimizer.state_dict()["state"])
        for values in known.values():
            for name, value in values.items():
                values[name] = value.cpu() if isinstance(value, torch.Tensor) else value
        return {"name": self._name, "state": known}

    @torch.no_grad()
    def _scale_thresholds(self, factor):
        for levels in self.network.levels:
            levels.mul_(factor)

    def _update(self, images, targets):  # -> summed loss of the crops, and of images as they are
        network, crops = self.network, self.loader.dataset
        inside = (..., *(slice(m, -m or None) for m in crops.margin))
        sigma, total, unchanged = None, 0.0, 0.0
        if crops.targets is None:
            images, sigma = network.noise.added_to(images, crops.generator)
        elif network.slopes is not None:
            sigma = network.noise_of(images)
        self.optimizer.zero_grad()
        size = max(1, _PIXELS // prod(images.shape[2:]))
        for first in range(0, len(images), size):
            part = slice(first, first + size)
            x, target = images[part] / self.unit, targets[part] / self.unit
            with threads_for(network.analysis[0], x, network.stride):
                found = network.decode(network.encode(x, None if sigma is None else sigma[part]))
                loss = 0.5 * (found[inside] - target[inside]).square().sum()
                (loss / len(images)).backward()
            total += loss.item()
            unchanged += 0.5 * (x[inside] - target[inside]).square().sum().item()
        self.optimizer.step()
        with torch.no_grad():
            for levels in network.levels:
                levels.clamp_min_(0)
        self.n_steps += 1
        return torch.tensor([total, unchanged], dtype=torch.float64, device="cpu")

    def run_epoch(self, interrupts):
        """Update by one crop of each image; note the mean loss, in the units of the images.

        After Ctrl-C the epoch ends with the present update.

        Raises
        ------
        ArithmeticError
            If training diverged; the network is the last finite one.
        """
        before, total = deepcopy(self.network.state_dict()), 0.0
        self._scale_thresholds(1 / self.unit)
        with torch.enable_grad(), torch.device("cpu"):  # of the loader's random numbers
            for images, targets in self.loader:
                total = total + self._update(images, targets)
                if interrupts.pending or not total.isfinite().all():
                    break
        self._scale_thresholds(self.unit)
        parameters = [bool(value.isfinite().all()) for value in self.network.parameters()]
        if not (total.isfinite().all() and all(parameters)):
            self.network.load_state_dict(before)
            raise ArithmeticError(f"training diverged at update {self.n_steps}")
        if not interrupts.pending:
            loss, self.unchanged = (total * self.unit**2 / len(self.loader.dataset)).tolist()
            self.losses.append(loss)
