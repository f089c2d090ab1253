"""The denoising networks of published comparisons: one dictionary, with parts that may be learned.

`skpudle.ConvDenoiser` has atoms and thresholds of each unfolding. The network of table 1 of the
paper, and those of CSCNet's kind, have one dictionary for all: fixed or learned thresholds, a fixed
or learned step, perhaps separate atoms for the analysis or the decoder. Several grids of positions
may be averaged, in training too.
"""

from itertools import product

import numpy as np
import torch
from scipy.fft import dct
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d, pad

STEP_UNIT = 0.03  # of a learned step: learning rates for atoms change it slowly
SMALLEST_STEP = 1e-6
POWER_STEPS = 30


def cosines(n, size):  # -> (n, 1, size, size), the slowest first
    waves = dct(np.eye(size), norm="ortho", axis=0)
    speeds = np.add.outer(np.arange(size), np.arange(size)).ravel()
    order = np.argsort(speeds, kind="stable")[:n]
    return torch.tensor(np.kron(waves, waves)[order].reshape(-1, 1, size, size)).float()


def initial_atoms(n, size, method, generator):
    atoms = torch.randn(n, 1, size, size, generator=generator)
    if method == "dct":
        atoms[: size**2] = cosines(n, size)
    return atoms / atoms.flatten(1).norm(dim=1)[:, None, None, None]


class PublishedNetwork(nn.Module):
    """An encoder of unfoldings of one dictionary, and a decoder.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, 1, size, size)
        Initial dictionary.
    stride, n_unfoldings : int
        Distance of atoms, and number of unfoldings.
    alpha : float
        Penalty, or threshold of hard shrinkage.
    step : float or None
        Step; None is 1 over the squared norm of the dictionary.
    shrinkage : {"soft", "hard"}
        The shrinkage.
    atom_norm : {"unit", "ball", "none"}
        Constraint of the dictionary.
    learn_threshold : {"one", "atom", "unfolding"} or None
        Thresholds to learn.
    learn_step : bool
        Whether the step is learned.
    separate_atoms : {"analysis", "decoder", "both"} or None
        Free atoms beside the dictionary.
    """

    def __init__(
        self, atoms, *, stride, n_unfoldings, alpha, step, shrinkage, atom_norm,
        learn_threshold, learn_step, separate_atoms,
    ):  # fmt: skip
        super().__init__()
        self.stride, self.n_unfoldings, self.shrinkage = stride, n_unfoldings, shrinkage
        self.atom_norm = atom_norm
        self.atoms = nn.Parameter(atoms)
        for name in ("analysis", "decoder"):
            own = separate_atoms in (name, "both")
            self.register_parameter(name, nn.Parameter(atoms.clone()) if own else None)
        shape = {"atom": (1, len(atoms)), "unfolding": (n_unfoldings, len(atoms))}
        shape = shape.get(learn_threshold, (1, 1))
        self.alpha = nn.Parameter(torch.full(shape, alpha), learn_threshold is not None)
        self.is_automatic = step is None and not learn_step  # follows the dictionary
        step = float(self.automatic_step()) if step is None else step
        self.step = nn.Parameter(torch.tensor(step / STEP_UNIT), learn_step)

    @torch.no_grad()
    def automatic_step(self):
        """Return 1 over the squared norm, by power iterations on an image of eight atoms."""
        size = self.atoms.shape[-1]
        x = torch.ones(1, 1, *[size + 7 * self.stride] * 2) + 0.1 * self.atoms[0, 0, 0, 0]
        for _ in range(POWER_STEPS):
            z = conv2d(x / x.norm(), self.atoms, stride=self.stride)
            x = conv_transpose2d(z, self.atoms, stride=self.stride)
        return 0.9 / x.norm()

    @property
    def step_size(self):
        return self.automatic_step() if self.is_automatic else self.step * STEP_UNIT

    def encode(self, x):  # (n, 1, height, width) -> (n, n_components, *positions)
        step, atoms = self.step_size, self.atoms
        analysis = atoms if self.analysis is None else self.analysis
        z = 0.0
        for t in range(self.n_unfoldings):
            residual = x if t == 0 else x - conv_transpose2d(z, atoms, stride=self.stride)
            z = z + step * conv2d(residual, analysis, stride=self.stride)
            level = self.alpha[min(t, len(self.alpha) - 1)][:, None, None]
            if self.shrinkage == "hard":
                z = z * (z.abs() > level)
            else:
                level = level * step
                z = z - z.clamp(-level, level)
        return z

    def decode(self, z):
        atoms = self.atoms if self.decoder is None else self.decoder
        return conv_transpose2d(z, atoms, stride=self.stride)

    def reconstruct(self, x, shifts, *, through):
        """Return the mean of the grids, its first pixel in the image, and codes.

        ``through`` is whether gradients pass through the encoder.
        """
        size = self.atoms.shape[-1]
        if len(shifts) == 1:
            rows, columns = (n - (n - size) % self.stride for n in x.shape[2:])
            codes = self.encode(x[..., :rows, :columns])
            codes = codes if through else codes.detach()
            return self.decode(codes), 0, codes
        room, margin = self.stride - 1, size - 1
        rows, columns = (n - room - (n - room - size) % self.stride for n in x.shape[2:])
        codes = self.encode(torch.cat([x[..., i : i + rows, j : j + columns] for i, j in shifts]))
        codes = codes if through else codes.detach()
        total, ends = 0.0, (rows + room - margin, columns + room - margin)
        for shift, image in zip(shifts, self.decode(codes).split(len(x)), strict=True):
            inside = (slice(margin - a, end - a) for a, end in zip(shift, ends, strict=True))
            total = total + image[(..., *inside)]
        return total / len(shifts), margin, codes

    @torch.no_grad()
    def project(self):
        """Bring parameters into their constraints."""
        norms = self.atoms.flatten(1).norm(dim=1)[:, None, None, None]
        if self.atom_norm != "none":
            least = 1e-12 if self.atom_norm == "unit" else 1.0
            self.atoms.div_(norms.clamp_min(least))
        self.alpha.clamp_min_(0)
        self.step.clamp_min_(SMALLEST_STEP / STEP_UNIT)

    @torch.no_grad()
    def denoise(self, image, *, shift_average):  # (height, width) -> the same
        size, margin = image.shape, self.atoms.shape[-1] - 1
        ends = [-(n + margin) % self.stride + 2 * self.stride for n in reversed(size)]
        ends = [n for end in ends for n in (margin, margin + end)]
        x = pad(torch.as_tensor(image)[None, None], ends, mode="reflect")
        total, shifts = 0.0, [(0, 0)]
        if shift_average:
            shifts = list(product(range(self.stride), repeat=2))
        for i, j in shifts:
            part = x[..., i:, j:]
            n, m = (k - (k - margin - 1) % self.stride for k in part.shape[2:])
            decoded = self.decode(self.encode(part[..., :n, :m]))
            rows, columns = (slice(margin - a, margin - a + n) for a, n in zip((i, j), size))
            total = total + decoded[0, 0, rows, columns]
        return (total / len(shifts)).numpy()


def take_parameters(network, stored):
    """Take the parameters of another network of this size; one threshold becomes several."""
    known = dict(network.named_parameters())
    for name, value in stored.items():
        if name in known:
            known[name].data.copy_(value.expand_as(known[name]))


def epoch(network, optimizer, images, generator, *, sigma, batch_size, gradient, alpha, n_shifts):
    """Make one pass through clean crops, with new noise; return the mean loss of a crop."""
    shifts, losses = list(product(range(network.stride), repeat=2)), []
    for clean in torch.as_tensor(images)[:, None].split(batch_size):
        flips = torch.randint(2, (3,), generator=generator).tolist()
        axes = [axis for axis, flip in zip((2, 3), flips) if flip]
        clean = clean.flip(axes).mT if flips[2] else clean.flip(axes)
        noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
        order = torch.randperm(len(shifts), generator=generator)[:n_shifts].tolist()
        grids = [shifts[i] for i in order] if n_shifts > 1 else [(0, 0)]
        found, first, codes = network.reconstruct(noisy, grids, through=gradient != "dec")
        inside = (..., *(slice(first, first + n) for n in found.shape[2:]))
        loss = 0.5 * (found - clean[inside]).square().sum() / len(clean)
        losses.append(loss.item())
        if gradient == "ae-lasso":
            loss = loss + alpha * codes.abs().sum() / len(codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        network.project()
    return float(np.mean(losses))
