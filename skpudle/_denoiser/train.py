"""Train a denoising network by an optimiser of torch, on random crops of clean or noisy images."""

from copy import deepcopy
from math import isfinite, prod

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from skpudle._compilation import threads_for
from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.images import extend
from skpudle._learners.convolutional.crops import draw_corner
from skpudle._learners.convolutional.start import penalty_of_correlations
from skpudle._operators._atoms import project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle.encoding._unfold import default_step

# The largest default crop, in pixels: many positions, but far smaller than a photograph.
_CROP = 129

# Pixels of a part of a batch: large enough for efficient products, small enough for the codes of
# all unfoldings.
_PIXELS = 2**16

# Crops whose mean loss decides if training has stalled.
_JUDGED = 256

# alpha="auto": a multiple of the noise, as in the paper's denoiser (0.16 for 25 / 255)
_ALPHA = 1.6

_NAMED = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def crop_shape(images, kernel, stride, size, *, whole):  # -> list of int
    """Return the size of crops: that of images, or ``size``, rounded down to what atoms cover.

    Crops have at least one pixel that all atoms reach, beside a margin.
    """
    shape = []
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=1):
        n, margin = min(image.shape[axis] for image in images), k - 1
        if whole:
            steps = -(-(n + 2 * margin - k) // s)
        else:
            n = min(n, _CROP) if size == "auto" else size
            steps = max((n - k) // s, -(-(2 * margin + 1 - k) // s))
        shape.append(k + s * max(steps, 0))
    return shape


class Crops(Dataset):
    """Random crops of images, with their clean targets; the same tensor if targets are None.

    Parameters
    ----------
    images, targets : list of Tensor of shape (n_channels, *size), or None
        Images, which are continued by reflection if they are smaller than a crop.
    shape, kernel : sequence of int
        Size of a crop and of an atom.
    flip : bool
        Whether to mirror and transpose crops at random.
    generator : torch.Generator
        Random numbers.
    """

    def __init__(self, images, targets, shape, kernel, *, flip, generator):
        self.shape, self.margin = tuple(shape), tuple(k - 1 for k in kernel)
        self.flip, self.generator = flip, generator
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
        corner = draw_corner(alike[0], self.shape, self.generator)
        crops = [image[corner] for image in alike]
        if self.flip:
            flips = torch.randint(2, (3,), generator=self.generator, device="cpu").tolist()
            axes = [axis for axis, flip in zip((-1, -2), flips) if flip]
            crops = [crop.flip(axes) for crop in crops]
            if flips[2] and self.shape[0] == self.shape[1]:
                crops = [crop.mT for crop in crops]
        return crops[0].contiguous(), crops[-1].contiguous()


def covered_parts(images, network):  # yields (n_channels, *size)
    """Yield images, cut to sizes that copies of an atom cover."""
    for image in images:
        axes = zip(image.shape[1:], network.kernel, network.stride, strict=True)
        yield image[(..., *(slice(n - (n - k) % s) for n, k, s in axes))]


def _converted(state, function):
    """Return nested dictionaries with tensors, or arrays, changed by a function."""
    if isinstance(state, dict):
        return {name: _converted(value, function) for name, value in state.items()}
    return function(state) if isinstance(state, torch.Tensor | np.ndarray) else state


@torch.no_grad()
def initialise(network, atoms, alpha, images):
    """Begin with one dictionary in all unfoldings, and thresholds of a penalty.

    The root of the step is a part of the atoms of analysis and of synthesis, so that both have
    entries of equal size.
    """
    atoms = project_atoms(atoms.contiguous())
    dictionary = ConvDictionary(atoms, network.stride)
    step, noise = float(default_step(dictionary)), network.noise
    if alpha == "auto" and noise.high:
        alpha = _ALPHA * (noise.typical if noise.is_range else noise.high)
    elif alpha == "auto":
        parts = covered_parts(images, network)
        alpha = penalty_of_correlations(parts, atoms, network.stride)
    for layers in (network.analysis, network.synthesis):
        layers.copy_(atoms * step**0.5)
    (network.thresholds if network.slopes is None else network.slopes).fill_(alpha * step**0.5)


class Diverged(ArithmeticError):
    """Training diverged, also after the learning rate was halved; the network is finite again."""


class Training:
    """A network in training, with the optimiser; thresholds are in ``unit`` meanwhile.

    Parameters
    ----------
    network : DenoisingNetwork
        The network, which changes.
    crops : Crops
        Images. Without targets, updates add noise.
    optimizer : {"adam", "sgd"} or callable
        Takes a list of parameters, and ``lr``.
    learning_rate, batch_size : float, int
        Of the optimiser, and crops in an update.
    unit : float
        Divides images, a power of two: a learning rate has no unit.
    n_steps : int
        Updates so far.
    state : dict
        State of an optimiser, which goes on if it is of this class.
    """

    def __init__(
        self, network, crops, optimizer, *, learning_rate, batch_size, unit, n_steps, state
    ):
        self.network, self.unit, self.n_steps, self._halved = network, unit, n_steps, False
        self.loader = DataLoader(crops, batch_size, shuffle=True, generator=crops.generator)
        make = _NAMED[optimizer] if isinstance(optimizer, str) else optimizer
        self._scale_thresholds(1 / unit)
        self.optimizer = make(list(network.parameters()), lr=learning_rate)
        self._name = str(getattr(self.optimizer, "func", type(self.optimizer)))
        if state.get("name") == self._name:
            known = self.optimizer.state_dict() | {"state": _converted(state["state"], to_tensor)}
            self.optimizer.load_state_dict(known)
        self.losses = []  # of each epoch
        self.tol_course = None, None, 0, 0.0, 0  # smoothed loss, the least, checks; sums since then

    @torch.no_grad()
    def _scale_thresholds(self, factor):
        for levels in (self.network.thresholds, self.network.slopes):
            if levels is not None:
                levels.mul_(factor)

    def finished(self):
        """Return a copy of the network, with thresholds in the units of the data."""
        was, self.network = self.network, deepcopy(self.network)
        self._scale_thresholds(self.unit)
        self.network, finished = was, self.network
        return finished

    def optimizer_state(self):
        """Return the state of the optimiser, arrays and numbers, with its name."""
        state = self.optimizer.state_dict()["state"]
        return {"name": self._name, "state": _converted(state, to_numpy)}

    @torch.no_grad()
    def has_codes(self):
        """Return whether some image has nonzero codes, or all are constant."""
        images, network = self.loader.dataset.images, self.finished()
        if all((image == image.flatten()[0]).all() for image in images):
            return True
        return any(network.encode(x[None]).any() for x in covered_parts(images, network))

    def _state(self):
        return deepcopy((self.network.state_dict(), self.optimizer.state_dict()))

    def _update(self, images, targets):  # -> summed loss of the crops
        network, margin = self.network, self.loader.dataset.margin
        inside = (..., *(slice(m, -m or None) for m in margin))
        sigma, total = None, 0.0
        if self.loader.dataset.targets is None:
            images, sigma = network.noise.added_to(images, self.loader.dataset.generator)
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
            self.unchanged += 0.5 * (x[inside] - target[inside]).square().sum().item()
        self.optimizer.step()
        with torch.no_grad():
            for levels in (network.thresholds, network.slopes):
                if levels is not None:
                    levels.clamp_min_(0)
        self.n_steps += 1
        return total

    def run_epoch(self, interrupts):
        """Update by one crop of each image; note the mean loss, in the units of the images.

        Raises
        ------
        Diverged
            If training diverged for the second time.
        KeyboardInterrupt
            After a complete update.
        """
        before, total, n, self.unchanged = self._state(), 0.0, 0, 0.0
        with torch.enable_grad(), torch.device("cpu"):  # of the loader's random numbers
            for images, targets in self.loader:
                total, n = total + self._update(images, targets), n + len(images)
                if interrupts.pending:
                    raise KeyboardInterrupt(f"training was interrupted after update {self.n_steps}")
                if not isfinite(total):
                    break
        finite = all(bool(value.isfinite().all()) for value in self.network.parameters())
        if isfinite(total) and finite:
            self.losses.append(total / n * self.unit**2)
            self.unchanged *= self.unit**2 / n  # the loss of images as they are
            return
        self.network.load_state_dict(before[0])
        self.optimizer.load_state_dict(before[1])
        if self._halved:
            raise Diverged(f"training diverged at update {self.n_steps}")
        self._halved = True
        for group in self.optimizer.param_groups:
            group["lr"] /= 2
        self.run_epoch(interrupts)

    def has_stalled(self, tol, patience):
        """Return whether the smoothed loss has not fallen for some checks, of 256 crops or more."""
        smoothed, best, stalled, total, n = self.tol_course
        n_crops = len(self.loader.dataset)
        total, n = total + self.losses[-1] * n_crops, n + n_crops
        if tol is not None and n >= _JUDGED:
            # the mean with its own past halves the variance of a minibatch loss in a few checks
            smoothed = total / n if smoothed is None else (smoothed + total / n) / 2
            stalled = 0 if best is None or smoothed < best * (1 - tol) else stalled + 1
            best, total, n = min(smoothed, smoothed if best is None else best), 0.0, 0
        self.tol_course = smoothed, best, stalled, total, n
        return tol is not None and stalled >= patience
