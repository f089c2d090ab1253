"""Gradient steps of a convolution, on codes with an entry for every block of pixels.

An encoder stays in the form of `skpudle._operators._conv.Phases` from its first iteration to its
last. Every product writes its image and patches into the same memory.
"""

import torch

from skpudle._operators._conv import ConvLayers
from skpudle.encoding._steps import Steps


class ConvSteps(Steps):
    """`Steps` of a `ConvDictionary`, or of `ConvLayers` in turn; images are in phases."""

    def __init__(self, dictionary, analysis, x, size, *, mask=None, adjoint=True):
        first = dictionary[0] if isinstance(dictionary, ConvLayers) else dictionary
        self.phases = first.phases(first.positions(x.shape[2:]))
        mask = None if mask is None else self.phases.split(mask.expand_as(x))
        self._adjoint = adjoint
        super().__init__(self.phases.split(x), size, mask=mask)
        self.shapes = dictionary.atoms.shape, analysis.atoms.shape
        shape = -1, *first.atoms.shape  # (n_unfoldings or 1, n_components, n_channels * n_pixels)
        self.matrices = (
            dictionary.atoms.view(shape).flatten(2),
            analysis.atoms.view(shape).flatten(2),
        )
        self.image = torch.empty_like(self.x)
        self._patches = self.phases.empty_patches(self.x)
        self._pieces = self.phases.pieces(self._patches, self.image)

    def layers(self):
        """Return the layers that synthesise and that correlate in iteration ``t``."""
        atoms, correlators = self.matrices
        return (self.t - 1) % len(atoms), self.t % len(correlators)

    def enter(self, z):
        return self.phases.widen(z)

    def leave(self, z):
        return self.phases.narrow(z)

    def synthesize(self, atoms, z, start, alpha):
        """Set the image to ``M (start + alpha * atoms z)``."""
        torch.mm(atoms.mT, self.phases.columns(z), out=self._patches)
        self.image.copy_(start)
        for patch, pixels in self._pieces:
            pixels.add_(patch, alpha=alpha)
        if self._mask is not None:
            self.image.mul_(self._mask)

    def gather(self):
        """Return the patches of the image."""
        for patch, pixels in self._pieces:
            patch.copy_(pixels)
        return self._patches

    def correlate(self, atoms, z, out=None):
        """Return ``z + atoms^T image`` from the gathered patches."""
        if out is None:
            shape = len(atoms), self.x.shape[-1 - len(self.phases.kernel)], *self.phases.blocks
            out = atoms.new_empty(shape)
            # clear beyond the last column: new memory may hold NaN, which times zero is NaN
            out.flatten(1)[:, self._patches.shape[1] :] = 0
            out = out.transpose(0, 1)
        columns = self.phases.columns(out)
        if z is None:
            torch.mm(atoms, self._patches, out=columns)
        else:
            torch.addmm(self.phases.columns(z), atoms, self._patches, out=columns)
        return out

    def push(self, z, *, out=None):
        (atoms, correlators), (before, now) = self.matrices, self.layers()
        if z is None:
            self.image.copy_(self.x)
        else:
            self.synthesize(atoms[before], z, self.x, -1)
        residual = self.image.clone() if self._adjoint else None
        self.gather()
        return self.phases.wipe_(self.correlate(correlators[now] * self.size, z, out)), residual

    def sums(self):
        return _ConvSums(self)


class _ConvSums:
    def __init__(self, steps):
        self.steps = steps
        given = *steps.matrices, steps.x, steps.size
        self._atoms, self._analysis, self._x, self._size = map(torch.zeros_like, given)

    def pull(self, u, z, residual, *, out=None):
        steps, pulled = self.steps, None
        (atoms, correlators), (before, now) = steps.matrices, steps.layers()
        columns = steps.phases.columns
        steps.synthesize(correlators[now], u, torch.zeros_like(residual), 1)
        self._x += steps.image
        self._size += torch.dot(steps.image.flatten(), residual.flatten())
        if z is not None:
            self._atoms[before].addmm_(columns(z), steps.gather().mT, alpha=-1)
            pulled = steps.correlate(atoms[before] * -steps.size, u, out)
        steps.image.copy_(residual)
        self._analysis[now].addmm_(columns(u), steps.gather().mT)
        return pulled

    def gradients(self, *, of_x=True, of_step=True):
        steps, size = self.steps, self.steps.size
        sums = self._atoms, self._analysis
        atoms, analysis = (size * part.view(shape) for part, shape in zip(sums, steps.shapes))
        return atoms, analysis, size * steps.phases.join(self._x), self._size
