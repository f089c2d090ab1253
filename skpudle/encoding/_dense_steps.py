r"""Gradient steps of a dense dictionary, and their adjoint.

The gradient ``D^T (D z - x)`` of the squared error takes ``D`` and its transpose in turn, or the
Gram matrix ``G``. The cheaper way depends on the number of steps, which an encoder with working
sets does not know in advance. So `DenseSteps` begins without ``G`` and builds it once it would have
paid. `DenseSums` adds up derivatives of steps with and without ``G``.
"""

import torch

from skpudle._compilation import blocks_of_rows
from skpudle.encoding._products import may_leave_out, multiply
from skpudle.encoding._steps import Steps

# Rows of a Gram matrix per product.
_ROWS_OF_GRAM = 256


def _gram(atoms):  # -> (n_components, n_components)
    """Return ``D^T D``; with a copied upper triangle, in 0.6 of the time for 1500 atoms."""
    gram = atoms.new_empty(len(atoms), len(atoms))
    for first in range(0, len(atoms), _ROWS_OF_GRAM):
        rows = slice(first, first + _ROWS_OF_GRAM)
        torch.mm(atoms[rows], atoms[: rows.stop].mT, out=gram[rows, : rows.stop])
        gram[:first, rows] = gram[rows, :first].mT
    return gram


class DenseSteps(Steps):
    """`Steps` of a `DenseDictionary`, and blocks of ``- s G``.

    The matrix is built as soon as it would have saved its cost. That is never more than twice as
    slow as the best choice in hindsight. Prices are in operations divided by the number of atoms.

    Parameters
    ----------
    dictionary : DenseDictionary
        The dictionary, detached.
    x, size, mask
        As in `Steps`; with a mask there is no Gram matrix.
    n_steps : float
        Expected number of steps; there may be more.
    adjoint : bool
        Whether a backward pass follows.
    """

    def __init__(self, dictionary, x, size, *, mask=None, n_steps, adjoint):
        super().__init__(x, size, mask=mask)
        self.atoms = dictionary.atoms
        n_atoms, n_features = self.atoms.shape
        self.correlation = (self.x * size) @ self.atoms.mT  # s D^T x
        self.transition = None  # H = 1 - s G
        # operations of a sample, per atom: with ``G``, and with ``D`` and its transpose in turn
        gram, direct = (6 * n_atoms, 8 * n_features) if adjoint else (2 * n_atoms, 2 * n_features)
        others = (4 if adjoint else 2) * n_features
        # Products that skip the zeros of codes and derivatives take 0.35 to 0.4 of the time in
        # updates with n = 50, m = 1000, p = 1500 and decay, or n = 256, m = 256, p = 512.
        share = 0.4 if may_leave_out(x, len(x) * n_atoms * n_features) else 1
        self._saving = share * (direct - gram) + others  # operations per sample and atom
        # with an adjoint, ``G`` also needs a product for the derivative in the atoms
        self._price = (4 if adjoint else 2) * n_features * n_atoms
        if mask is not None:
            self._price = float("inf")
        self._spent = 0
        self._spend(n_steps * len(x) * self._saving)
        self._spent = 0

    def _spend(self, price):
        self._spent += price
        if self.transition is None and self._spent > self._price:
            self.transition = _gram(self.atoms).mul_(-self.size)
            self._diagonal = self.transition.diagonal().clone()
            self.transition.diagonal().add_(1)

    def push(self, z, *, out=None, apart=False):
        """See `Steps.push`; if ``apart``, return the step without the codes and their rounding."""
        if z is None:
            return (
                self.correlation.clone() if out is None else out.copy_(self.correlation)
            ), self.x
        self._spend(len(z) * self._saving)
        if self.transition is not None:
            pushed = multiply(self.correlation, z, self.transition, out=out)
            return (pushed.sub_(z) if apart else pushed), None
        residual = self.hide(multiply(self.x, z, self.atoms, scale=-1))
        pushed = torch.mm(residual * self.size, self.atoms.mT, out=out)
        return (pushed if apart else pushed.add_(z)), residual

    def sums(self):
        return DenseSums(self)

    def block(self, indices):  # (n, k) -> (n, k, k)
        """Return the entries of ``- s G`` between the chosen atoms of each sample."""
        (n, k), (n_atoms, n_features) = indices.shape, self.atoms.shape
        self._spend(4 * n * k * k * n_features / n_atoms)  # including the product in `add_block`
        if self.transition is not None:
            block = self.transition.take(self.pairs(indices))
            block.diagonal(dim1=1, dim2=2).copy_(self._diagonal[indices])
            return block
        block = self.atoms.new_empty(n, k, k)
        for rows in self.few(indices):
            chosen = self.choose(indices[rows])
            torch.bmm(chosen, chosen.mT, out=block[rows])
        return block.mul_(-self.size)

    def few(self, indices):
        """Return slices of samples with chosen atoms that fit into a cache."""
        return blocks_of_rows(len(indices), indices.shape[1] * self.atoms.shape[1], 2**19)

    def choose(self, indices):  # (n, k) -> (n, k, n_features)
        """Return the chosen atoms of each sample."""
        chosen = self.atoms.index_select(0, indices.flatten())
        return chosen.view(*indices.shape, self.atoms.shape[1])

    def pairs(self, indices):  # (n, k) -> (n, k, k)
        """Return the places of pairs of the chosen atoms in the flattened matrix."""
        return indices[:, :, None] * len(self.atoms) + indices[:, None, :]


def _active_first(products, indices):  # symmetric (n, k, k), (n, k) -> the same, number of active
    """Sort the atoms of each sample, active atoms first, and samples by numbers of active atoms.

    Most atoms of a working set are never active.
    """
    inactive = ~products.any(2)
    inactive, order = inactive.sort(dim=1, stable=True)
    n_active, samples = (~inactive).sum(1).sort()
    order, products, indices = order[samples], products[samples], indices[samples]
    products = products.gather(1, order[:, :, None].expand_as(products))
    products = products.gather(2, order[:, None].expand_as(products))
    return products, indices.gather(1, order), n_active.tolist()


class DenseSums:
    r"""`Sums` of dense steps.

    Through the Gram matrix the derivative in the atoms is :math:`q^T x - (P + P^T) D`, so the sums
    are ``q = sum u`` and ``P = sum u^T z``.
    """

    def __init__(self, steps):
        self.steps = steps
        self._atoms = torch.zeros_like(steps.atoms)
        self._x, self._size = torch.zeros_like(steps.x), torch.zeros_like(steps.size)
        self._total = self._products = None  # q, P
        if steps.transition is not None:
            self._total = torch.zeros_like(steps.correlation)
            self._products = torch.zeros_like(steps.transition)

    def pull(self, u, z, residual, *, out=None):  # (n, n_components) -> the same
        steps, image = self.steps, self.add(u, z, residual)
        if z is None:
            return None
        if image is None:  # a step through the Gram matrix
            return multiply(None, u, steps.transition, out=out)
        return torch.mm(image * -steps.size, steps.atoms.mT, out=out).add_(u)

    def add(self, u, z, residual):  # -> M D u, of shape (n, n_features), or None
        """Add one or more steps from the same ``z``; ``u`` is the sum of their derivatives.

        Without a residual the steps used the Gram matrix.
        """
        if residual is None:
            self._total += u
            multiply(self._products, u.mT, z, out=self._products)
            return None
        image = self.steps.hide(multiply(None, u, self.steps.atoms))
        multiply(self._atoms, u.mT, residual, out=self._atoms)
        if z is not None:
            multiply(self._atoms, z.mT, image, scale=-1, out=self._atoms)
        self._x += image
        self._size += (image * residual).sum()
        return image

    def add_block(self, products, indices, block):  # (n, k, k), (n, k), (n, k, k)
        """Add the part of ``P`` between the chosen atoms of each sample; overwrite ``products``."""
        steps = self.steps
        if self._products is None:
            products += products.mT.clone()
            self._size += (products * block).sum() / (2 * steps.size)  # - <P, G>
            products, indices, n_active = _active_first(products, indices)
            for rows in steps.few(indices):
                first = slice(n_active[rows][-1])
                chosen = indices[rows, first]
                images = torch.bmm(products[rows, first, first], steps.choose(chosen))
                self._atoms.index_add_(0, chosen.flatten(), images.flatten(0, 1), alpha=-1)
        else:
            result = self._products.view(-1)
            result.scatter_add_(0, steps.pairs(indices).flatten(), products.flatten())

    def gradients(
        self, *, of_x=True, of_step=True
    ):  # -> shapes of the atoms, None, the data, the step
        """Return the derivatives, once; the atoms include the analysis."""
        steps, atoms = self.steps, self._atoms
        if self._products is not None:
            products = self._products
            atoms.addmm_(self._total.mT, steps.x)
            atoms.addmm_(products + products.mT, steps.atoms, alpha=-1)
            if of_x:
                self._x.addmm_(self._total, steps.atoms)
            if of_step:
                inner = (self._total * steps.correlation).sum()
                # <q, D^T x> - <P, G>, where s G = 1 - H
                inner += torch.dot(products.view(-1), steps.transition.view(-1)) - products.trace()
                self._size += inner / steps.size
        x = self._x.mul_(steps.size) if of_x else None
        return atoms.mul_(steps.size), None, x, self._size
