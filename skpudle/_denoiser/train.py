"""Train a denoising network by an optimiser of torch, on random crops of clean or noisy images."""

from copy import deepcopy
from dataclasses import dataclass
from math import ceil, log2, pi

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from skpudle._compilation import threads_for
from skpudle._data.images import extend
from skpudle._denoiser.network import DenoisingNetwork
from skpudle._learners.convolutional.learn import penalty_of_correlations
from skpudle._operators._atoms import project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle.encoding._unfold import default_step


def draw_cosines(shape, generator):  # (n, n_channels, *kernel) -> Tensor of the shape
    """Return atoms of norm 1: products of cosines along all axes, channels too, the slowest first.

    Random directions follow if there are too few.
    """
    options = dict(dtype=torch.float64, device="cpu")
    sizes = torch.tensor(shape[1:], **options)
    places = torch.cartesian_prod(*(torch.arange(n, **options) for n in shape[1:]))
    slowest = places[(places / sizes).sum(1).argsort(stable=True)][: shape[0]]
    cosines = torch.cos(pi * slowest[:, None] * (places + 0.5) / sizes).prod(2)
    atoms = torch.randn(shape, generator=generator, **options)
    atoms[: len(cosines)] = cosines.unflatten(1, shape[1:])
    return project_atoms(atoms)


def crop_shape(images, kernel, stride, size):  # -> list of int
    """Return the size of crops: that of images, or ``size``, rounded down to what atoms cover.

    Crops have at least one pixel that all atoms reach, beside a margin.
    """
    shape = []
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=1):
        n = min(image.shape[axis] for image in images)
        # of signals and pictures: many positions, but far smaller than a photograph
        n = min(n, (129, 49)[len(kernel) - 1]) if size == "auto" else size
        shape.append(k + s * max((n - k) // s, -(-(k - 1) // s)))
    return shape


class Crops(Dataset):
    """Random crops of images, of all channels; those of pictures are mirrored and transposed.

    Parameters
    ----------
    images : list of Tensor of shape (n_channels, *size)
        Images, which are continued by reflection if they are smaller than a crop.
    shape, kernel : sequence of int
        Size of a crop and of an atom.
    generator : torch.Generator
        Random numbers.
    """

    def __init__(self, images, shape, kernel, generator):
        self.shape, self.margin = tuple(shape), tuple(k - 1 for k in kernel)
        self.generator, self.images = generator, list(map(self._enlarge, images))

    def _enlarge(self, image):
        missing = [max(crop - n, 0) for crop, n in zip(self.shape, image.shape[1:], strict=True)]
        before = list(map(min, self.margin, missing))
        after = [m - b for m, b in zip(missing, before, strict=True)]
        return extend(image[None], before, after)[0]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        """Return a random crop of image ``i``."""
        crop, options = self.images[i], dict(generator=self.generator, device="cpu")
        for axis, (n, k) in enumerate(zip(crop.shape[1:], self.shape, strict=True), start=1):
            if n > k:
                crop = crop.narrow(axis, int(torch.randint(n - k + 1, (), **options)), k)
        if len(self.shape) == 2:  # pictures
            *flips, transposed = torch.randint(2, (3,), **options).tolist()
            crop = crop.flip([axis for axis, flip in zip((-1, -2), flips, strict=True) if flip])
            if transposed and self.shape[0] == self.shape[1]:
                crop = crop.mT
        return crop.contiguous()


@torch.no_grad()
def initialise(network, alpha, images, generator):
    """Begin with the slowest cosines in all unfoldings, and thresholds of a penalty.

    The root of the step is a part of the atoms of analysis and of synthesis, so that both have
    entries of equal size.
    """
    atoms = draw_cosines(network.analysis.shape[1:], generator).to(images[0])
    step, noise = float(default_step(ConvDictionary(atoms, network.stride))), network.noise
    if alpha == "auto":
        # as in the paper's denoiser (0.16 for 25 / 255)
        alpha = 1.6 * (noise.typical if noise.is_range else noise.high)
        alpha = alpha or penalty_of_correlations([x[None] for x in images], atoms, network.stride)
    for layers in (network.analysis, network.synthesis):
        layers.copy_(atoms * step**0.5)
    network.levels[-1].fill_(alpha * step**0.5)


def make_optimizer(make, network, learning_rate, state=None):
    """Return the optimiser of a network, which goes on from a state if that is of its class.

    Parameters
    ----------
    make : "adam" or callable
        Takes a list of parameters, and ``lr``.
    network : DenoisingNetwork
        The network.
    learning_rate : float
        The first learning rate.
    state : dict, default=None
        From `Training.attributes`.
    """
    make = torch.optim.Adam if make == "adam" else make
    optimizer = make(list(network.parameters()), lr=learning_rate)
    if state and state["name"] == str(type(optimizer)):
        now = optimizer.state_dict()
        optimizer.load_state_dict(now | {"state": deepcopy(state["state"])})
    return optimizer


@dataclass(eq=False)
class Training:
    """A network in training.

    Attributes
    ----------
    network : DenoisingNetwork
        The network, which changes.
    loader : DataLoader
        Batches of `Crops`.
    optimizer : Optimizer
        From `make_optimizer`.
    pairs : bool
        Whether the second half of the channels of crops is the target; otherwise updates add noise.
    inputs : dict
        Attributes of the input.
    n_steps, losses : int, list of float
        Updates so far, and mean losses of epochs.
    """

    network: DenoisingNetwork
    loader: DataLoader
    optimizer: torch.optim.Optimizer
    pairs: bool
    inputs: dict
    n_steps: int
    losses: list

    @property
    def unit(self):
        """The divisor of images and thresholds in updates: a learning rate has no unit."""
        return 2.0 ** ceil(log2(self.network.peak))

    def attributes(self, ended_by=None):
        """Return the fitted attributes, on the CPU: for machines without the device of training."""
        state = deepcopy(self.optimizer.state_dict()["state"])
        for values in state.values():
            for name, value in values.items():
                values[name] = value.cpu() if isinstance(value, torch.Tensor) else value
        return self.inputs | {
            "network_": deepcopy(self.network).cpu(),
            "training_noise_std_": self.network.noise_std,
            "n_iter_": len(self.losses),
            "n_steps_": self.n_steps,
            "loss_curve_": np.array(self.losses, dtype=np.float64),
            "ended_by_": ended_by,
            "_optimizer_state": {"name": str(type(self.optimizer)), "state": state},
        }

    @torch.no_grad()
    def _scale_thresholds(self, factor):
        for levels in self.network.levels:
            levels.mul_(factor)

    def _update(self, images):  # -> summed loss of the crops, and of images as they are
        network, crops, sigma = self.network, self.loader.dataset, None
        images, targets = images.chunk(2, dim=1) if self.pairs else (images, images)
        if not self.pairs:
            images, sigma = network.noise.added_to(images, crops.generator)
        elif network.slopes is not None:
            sigma = network.noise_of(images)
        inside = (..., *(slice(m, -m or None) for m in crops.margin))
        x, target = images / self.unit, (targets / self.unit)[inside]
        self.optimizer.zero_grad()
        with threads_for(network.analysis[0], x, network.stride):
            found = network.decode(network.encode(x, sigma))
            loss = 0.5 * (found[inside] - target).square().sum()
            (loss / len(x)).backward()
        self.optimizer.step()
        with torch.no_grad():
            for levels in network.levels:
                levels.clamp_min_(0)
        self.n_steps += 1
        unchanged = 0.5 * (x[inside] - target).square().sum()
        return np.array([loss.item(), unchanged.item()])

    def run_epoch(self, interrupts):
        """Update by one crop of each image; note the mean loss, in the units of the images.

        After Ctrl-C the epoch ends with the present update. Return whether the network is finite;
        if training diverged, it is the last finite one.
        """
        before, total, n_crops = deepcopy(self.network.state_dict()), np.zeros(2), 0
        self._scale_thresholds(1 / self.unit)
        with torch.enable_grad(), torch.device("cpu"):  # of the loader's random numbers
            for images in self.loader:
                total, n_crops = total + self._update(images), n_crops + len(images)
                if interrupts.pending or not np.isfinite(total).all():
                    break
        self._scale_thresholds(self.unit)
        parameters = all(bool(value.isfinite().all()) for value in self.network.parameters())
        if not (parameters and np.isfinite(total).all()):
            self.network.load_state_dict(before)
            return False
        loss, self.unchanged = total * self.unit**2 / n_crops
        self.losses.append(loss)
        return True
