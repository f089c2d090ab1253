"""Gradient steps of the encoder and their adjoint, for every kind of dictionary."""

from copy import copy

import torch

from skpudle.encoding._steps import Products
from skpudle.operators import ConvDictionary, DenseDictionary

__all__ = ["ConvMap", "GramMap", "NormalMap", "normal_map"]


class NormalMap:
    r"""Gradient steps of :math:`\frac12 |M (x - D z)|^2` and their adjoint, for any dictionary.

    ``push`` is one step, ``z + s D^T M (x - D z)``. What `adjoint` returns has the transpose,
    ``pull``, which also adds up what the step contributes to the derivatives in the atoms, the data
    and the step size: pull as often as you pushed, in reverse. ``z=None`` stands for zero codes and
    saves the products with them.
    """

    def __init__(self, dictionary, x, step, *, mask=None, adjoint=False):
        self._dictionary, self._step, self._mask = dictionary, step, mask
        self._x = self._hide(x)
        self._residuals = [] if adjoint else None

    def _hide(self, data):
        return data if self._mask is None else data * self._mask

    def enter(self, z):
        """Return codes in the form that the map takes."""
        return z

    def leave(self, z):
        """Return codes in the form that users see, the inverse of `enter`."""
        return z

    def push(self, z, out=None):  # `out` is a buffer that the map may use for its result
        residual = self._x if z is None else self._hide(self._x - self._dictionary.synthesis(z))
        if self._residuals is not None:
            self._residuals.append(residual)
        ascent = self._dictionary.analysis(residual * self._step)
        return ascent if z is None else ascent.add_(z)

    def adjoint(self):
        """Return a copy that pulls; its sums are its own, since a graph may be walked twice."""
        other = copy(self)
        other._residuals = list(self._residuals)
        other._sums = [0.0, 0.0, 0.0]  # derivatives in atoms / step, data / step, step
        return other

    def pull(self, u, z):
        image = self._hide(self._dictionary.synthesis(u))
        residual = self._residuals.pop()
        if z is None:
            contribution = self._dictionary.outer(u, residual)
        else:
            # outer(u, residual) - outer(z, image) in one product, since outer sums over samples
            contribution = self._dictionary.outer(
                torch.cat([u, z]), torch.cat([residual, image.neg()])
            )
        for i, term in enumerate((contribution, image, (image * residual).sum())):
            self._sums[i] = term + self._sums[i]
        if z is not None:
            return self._dictionary.analysis(image * -self._step).add_(u)

    def gradients(self):
        atoms, x, step = self._sums
        return self._step * atoms, self._step * x, step


class GramMap(NormalMap):
    """`NormalMap` of a dense dictionary through its Gram matrix G.

    With ``H = 1 - s G`` a step is ``z H + s D^T x``, and the sum over steps of
    ``outer(u, x - D z) - outer(z, D u)`` collapses to ``q^T x - (P + P^T) atoms`` with
    ``P = sum u^T z`` and ``q = sum u``.
    """

    def __init__(self, dictionary, x, step):
        self._x, self._step = x, step
        self._scaled_atoms = dictionary.atoms * step
        self._transition = self._scaled_atoms @ -dictionary.atoms.mT
        self._transition.diagonal().add_(1)
        self._correlation = x @ self._scaled_atoms.mT

    def push(self, z, out=None):
        if z is None:
            return self._correlation.clone()
        return torch.addmm(self._correlation, z, self._transition, out=out)

    def adjoint(self):
        other = copy(self)
        other._total = torch.zeros_like(self._correlation)
        other._products = Products(torch.zeros_like(self._transition))
        other._pulled = torch.empty_like(self._correlation)
        return other

    def pull(self, u, z):
        self._total += u
        if z is not None:
            self._products.add(u, z)
            return torch.mm(u, self._transition, out=self._pulled)

    def gradients(self):
        products = self._products.finish()
        atoms = self._total.mT @ (self._x * self._step)
        atoms.addmm_(products + products.mT, self._scaled_atoms, alpha=-1)
        # <q, D^T x> - <P, G>, where s G = 1 - H
        step = (self._total * self._correlation).sum() - products.trace()
        step = (step + (products * self._transition).sum()) / self._step
        return atoms, self._total @ self._scaled_atoms, step


class ConvMap(NormalMap):
    """`NormalMap` of a convolution in phases, for codes with an entry for every block.

    Images and patches are written into the same memory by every product.
    """

    def __init__(self, dictionary, x, step, *, mask=None, adjoint=False):
        self._phases = dictionary.phases(dictionary.positions(x.shape[2:]))
        mask = None if mask is None else self._phases.split(mask.expand_as(x))
        super().__init__(dictionary, self._phases.split(x), step, mask=mask, adjoint=adjoint)
        self._synthesis, self._analysis = dictionary.matrices()
        self._image = torch.empty_like(self._x)
        self._patches = self._phases.empty_patches(self._x)
        self._pieces = self._phases.pieces(self._patches, self._image)

    def enter(self, z):
        return self._phases.widen(z)

    def leave(self, z):
        return self._phases.narrow(z)

    def _synthesize(self, atoms, codes, start, alpha):  # -> M (start + alpha * atoms codes)
        torch.mm(atoms.mT, codes, out=self._patches)
        self._image.copy_(start)
        for patch, pixels in self._pieces:
            pixels.add_(patch, alpha=alpha)
        if self._mask is not None:
            self._image.mul_(self._mask)

    def _gather(self):
        for patch, pixels in self._pieces:
            patch.copy_(pixels)
        return self._patches

    def _correlate(self, atoms, z, out=None):  # -> z + atoms^T image
        if out is None:
            shape = len(atoms), self._x.shape[-1 - len(self._phases.kernel)], *self._phases.blocks
            out = atoms.new_empty(shape)
            # beyond the last column, where new memory may hold NaN, which times zero is NaN
            out.flatten(1)[:, self._patches.shape[1] :] = 0
            out = out.transpose(0, 1)
        columns = self._phases.columns(out)
        if z is None:
            torch.mm(atoms, self._patches, out=columns)
        else:
            torch.addmm(self._phases.columns(z), atoms, self._patches, out=columns)
        return out

    def push(self, z, out=None):
        if z is None:
            self._image.copy_(self._x)
        else:
            self._synthesize(self._synthesis, self._phases.columns(z), self._x, -1)
        if self._residuals is not None:
            self._residuals.append(self._image.clone())
        self._gather()
        return self._phases.wipe_(self._correlate(self._analysis * self._step, z, out))

    def adjoint(self):
        other = copy(self)
        other._residuals = list(self._residuals)
        # derivatives in the atoms of synthesis and of analysis / step, data / step, step
        shapes = self._synthesis, self._analysis, self._x, self._x.new_empty(())
        other._sums = [torch.zeros_like(shape) for shape in shapes]
        return other

    def pull(self, u, z):
        columns, residual, pulled = self._phases.columns(u), self._residuals.pop(), None
        by_synthesis, by_analysis, by_data, by_step = self._sums
        self._synthesize(self._analysis, columns, torch.zeros_like(residual), 1)
        by_data += self._image
        by_step += torch.dot(self._image.flatten(), residual.flatten())
        if z is not None:
            by_synthesis.addmm_(self._phases.columns(z), self._gather().mT, alpha=-1)
            pulled = self._correlate(self._synthesis * -self._step, u)
        self._image.copy_(residual)
        by_analysis.addmm_(columns, self._gather().mT)
        return pulled

    def gradients(self):
        by_synthesis, by_analysis, by_data, by_step = self._sums
        atoms = self._dictionary.join(self._step * by_synthesis, self._step * by_analysis)
        return atoms, self._step * self._phases.join(by_data), by_step


def normal_map(dictionary, x, step, *, mask=None, n_steps=1, adjoint=False):
    """Return the cheapest map that computes ``n_steps`` gradient steps for the data ``x``.

    A step with the Gram matrix costs ``2 p^2`` operations a sample (with its adjoint ``6 p^2``)
    and the matrix itself ``2 m p^2``; a step without it ``4 m p`` (with its adjoint ``12 m p``).
    """
    if isinstance(dictionary, ConvDictionary):
        return ConvMap(dictionary, x, step, mask=mask, adjoint=adjoint)
    if isinstance(dictionary, DenseDictionary) and mask is None:
        p, m = dictionary.atoms.shape
        gram, direct = (6 * p, 12 * m) if adjoint else (2 * p, 4 * m)
        if (direct - gram) * len(x) * n_steps > 2 * m * p:
            return GramMap(dictionary, x, step)
    return NormalMap(dictionary, x, step, mask=mask, adjoint=adjoint)
