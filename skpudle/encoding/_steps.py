r"""Gradient steps of the encoder for each kind of dictionary, their adjoints, and iterations.

A *step* is ``z + s A^T M (x - D z)`` with the step size ``s`` and the mask ``M`` of known entries.
``A`` is the dictionary ``D``, unless separate atoms correlate with the residual. An *iteration* is
a step and a shrinkage.

The *adjoint* of a step takes ``u``, the derivative of the loss in the result of the step. It adds
``s outer(u, M (x - D z))`` to the derivative in ``A`` and ``- s outer(z, M A u)`` to the derivative
in ``D``, and returns the derivative in ``z``. A record of each iteration holds what the adjoint
needs.

In a dense dictionary a step multiplies by ``D`` and by its transpose, or by the Gram matrix
``G = D^T D``. Which way is cheaper depends on the number of steps, which is not known in advance
for an encoder with working sets. So `DenseSteps` begins without ``G``, and builds it once the steps
so far would have paid for it. `DenseSums` adds up derivatives of steps of both kinds.

Codes of a convolution stay in the form of `skpudle._operators._conv.Phases`, with an entry for
every block of pixels, from the first iteration to the last. All products reuse the same memory for
images and patches.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from skpudle._compilation import blocks_of_rows
from skpudle._operators._conv import ConvLayers
from skpudle._shrinkage import shrinkage_function
from skpudle.encoding._compiled import may_leave_out, multiply

# Rows of a Gram matrix per product.
_ROWS_OF_GRAM = 256


class Steps:
    """Steps of the encoder for one kind of dictionary.

    A subclass has two methods:

    * ``push(z, out=None)`` takes a step from ``z``, or from zero if ``z`` is None. It returns the
      codes after the step, and the residual ``M (x - D z)``, or None if it was not computed. The
      result may use the memory ``out``.
    * ``sums()`` returns a new object that adds up the derivatives of the steps of a backward pass.
      (A graph may be differentiated twice.) Its method ``pull(u, z, residual, out=None)`` takes the
      derivative ``u`` in the result of a step from ``z``, adds the contribution of the step to the
      sums, and returns the derivative in ``z``, or None if ``z`` is None. Its method
      ``gradients(of_x=True, of_step=True)`` returns the derivatives in the atoms, the atoms of the
      analysis, the data and the step size.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
        Data.
    size : Tensor of shape ()
        Step size.
    mask : Tensor that broadcasts against the data, default=None
        1 where an entry of ``x`` is known, 0 where it is missing.
    """

    t = 0  # the current iteration, which selects a layer of `ConvLayers`

    def __init__(self, x, size, *, mask=None):
        self.size, self._mask = size, mask
        self.x = self.hide(x)

    def hide(self, data):  # -> the same shape
        """Return the data with zeros for missing entries."""
        return data if self._mask is None else data * self._mask

    def enter(self, z):
        """Return codes of a caller in the form that steps work with: unchanged, for dense atoms."""
        return z

    def leave(self, z):
        """Return codes of steps in the form of a caller: the inverse of `enter`."""
        return z


def mask_by(code, delta, out):  # (n, n_components) each -> out
    """Set ``out`` to ``[code != 0] * delta`` in one pass, the derivative of a hard shrinkage."""
    return torch.ops.aten.hardshrink_backward.grad_input(delta, code, 0.0, grad_input=out)


class Iteration(NamedTuple):
    """Record of iteration ``t``: codes before it (None: zeros), codes after it, and residual.

    The residual is that before the iteration; None if the step did not compute it.
    """

    t: int
    z: Tensor | None
    code: Tensor
    residual: Tensor | None

    def pull(self, delta, sums, level_gradient, scratch):  # (n, n_components) -> the same, or None
        """Return the derivatives in the codes before this iteration.

        ``delta`` are the derivatives in the codes after it, and are overwritten. ``sums`` is the
        result of ``Steps.sums``. The derivatives in the levels are added to ``level_gradient``,
        unless it is None. ``scratch`` is memory of the shape of ``delta``.
        """
        u = mask_by(self.code, delta, scratch)
        if level_gradient is not None:
            by_entry = self.code.sign() * u
            level_gradient[self.t] -= by_entry.sum_to_size(level_gradient.shape[1:])
        sums.steps.t = self.t
        return sums.pull(u, self.z, self.residual, out=delta)


class Iterations:
    """Run the iterations of the encoder, and keep their records for a backward pass.

    Parameters
    ----------
    steps : Steps
        The steps.
    levels : Tensor of shape (n_unfoldings, ...)
        Level of the shrinkage in each iteration.
    shrinkage : str
        Name of the shrinkage.
    positive : bool
        Whether codes are non-negative.
    keep : bool
        Whether to keep `records` for a backward pass.
    """

    def __init__(self, steps, levels, shrinkage, positive, *, keep):
        self.steps, self.levels, self.positive, self.keep = steps, levels, positive, keep
        self.shrink_ = shrinkage_function(shrinkage, positive=positive)
        self.records, self._scratch = [], None

    def run(self, z, start, stop, *, pushed=None):  # codes or None -> codes
        """Return the codes after the iterations ``start`` to ``stop - 1``, from the codes ``z``.

        ``pushed`` is the result of the first step, ``steps.push(z)``, if it is known already.
        """
        given, spare = z, None
        for t in range(start, stop):
            self.steps.t = t
            v, residual = pushed or self.steps.push(z, out=spare)
            if self._scratch is None:  # one allocation serves all iterations
                self._scratch = torch.empty_like(v)
            code = self.shrink_(v, self.levels[t], self._scratch)
            if self.keep:
                self.records.append(Iteration(t, z, code, residual))
            elif z is not given:  # without records two buffers take turns
                spare = z
            z, pushed = code, None
        return z


def _gram(atoms):  # -> (n_components, n_components)
    """Return ``D^T D``, whose upper triangle is copied: 0.6 of the time, for 1500 atoms."""
    gram = atoms.new_empty(len(atoms), len(atoms))
    for first in range(0, len(atoms), _ROWS_OF_GRAM):
        rows = slice(first, first + _ROWS_OF_GRAM)
        torch.mm(atoms[rows], atoms[: rows.stop].mT, out=gram[rows, : rows.stop])
        gram[:first, rows] = gram[rows, :first].mT
    return gram


class DenseSteps(Steps):
    """`Steps` of a `DenseDictionary`, and blocks of ``- s G`` for working sets.

    The Gram matrix ``G`` is built when the operations that it would have saved so far reach the
    operations that it costs. So the time is at most twice that of the best choice in hindsight.
    Savings and costs are numbers of operations divided by the number of atoms.

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
        # Operations for one sample and one atom. A step through ``G`` has products with codes and
        # derivatives alone, which have zeros; a step without ``G`` also has products with
        # residuals, which are dense.
        gram, direct = (6 * n_atoms, 8 * n_features) if adjoint else (2 * n_atoms, 2 * n_features)
        dense = (4 if adjoint else 2) * n_features
        # Products that skip zeros of codes and derivatives take 0.35 to 0.4 of the time of dense
        # products, in updates of 50 samples with 1500 atoms of 1000 features and lambda decay, and
        # of 256 samples with 512 atoms of 256 features.
        share = 0.4 if may_leave_out(x, len(x) * n_atoms * n_features) else 1
        self._saving = share * (direct - gram) + dense  # operations per sample and atom
        # operations for ``G``; an adjoint has one more product, for the derivative in the atoms
        self._price = (4 if adjoint else 2) * n_features * n_atoms
        if mask is not None:
            self._price = float("inf")
        self._spent = 0
        self._spend(n_steps * len(x) * self._saving)
        self._spent = 0

    def _spend(self, price):
        """Add ``price`` to the operations that ``G`` would have saved; build ``G`` if it pays.

        Operations are divided by the number of atoms.
        """
        self._spent += price
        if self.transition is None and self._spent > self._price:
            self.transition = _gram(self.atoms).mul_(-self.size)
            self._diagonal = self.transition.diagonal().clone()
            self.transition.diagonal().add_(1)

    def push(self, z, *, out=None, apart=False):  # -> (n, n_components), residual or None
        """Take a step, see `Steps.push`; with ``apart`` return the step minus ``z``.

        The difference alone has smaller rounding errors than the sum.
        """
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
        """Return a new `DenseSums`, see `Steps`."""
        return DenseSums(self)

    def block(self, indices):  # (n, k) -> (n, k, k)
        """Return the entries of ``- s G`` between the atoms ``indices`` of each sample."""
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

    def few(self, indices):  # (n, k) -> list of slices
        """Return slices of the samples. The chosen atoms of one slice fit into a cache."""
        return blocks_of_rows(len(indices), indices.shape[1] * self.atoms.shape[1], 2**19)

    def choose(self, indices):  # (n, k) -> (n, k, n_features)
        """Return the atoms that ``indices`` choose for each sample."""
        chosen = self.atoms.index_select(0, indices.flatten())
        return chosen.view(*indices.shape, self.atoms.shape[1])

    def pairs(self, indices):  # (n, k) -> (n, k, k)
        """Return where pairs of chosen atoms stand in a flattened matrix of atoms by atoms."""
        return indices[:, :, None] * len(self.atoms) + indices[:, None, :]


def _active_first(products, indices):  # symmetric (n, k, k), (n, k) -> the same, number of active
    """Sort the atoms of each sample, active atoms first, and samples by numbers of active atoms.

    An atom is active if its row of ``products`` has a nonzero entry. Most atoms of a working set
    are never active. Also return the number of active atoms of each sample, a list in increasing
    order.
    """
    inactive = ~products.any(2)
    inactive, order = inactive.sort(dim=1, stable=True)
    n_active, samples = (~inactive).sum(1).sort()
    order, products, indices = order[samples], products[samples], indices[samples]
    products = products.gather(1, order[:, :, None].expand_as(products))
    products = products.gather(2, order[:, None].expand_as(products))
    return products, indices.gather(1, order), n_active.tolist()


class DenseSums:
    r"""Derivatives of `DenseSteps`, added up over the steps of a backward pass; see `Steps`.

    For steps through the Gram matrix the derivative in the atoms is :math:`s (q^T x - (P + P^T) D)`
    with the sums ``q = sum u`` and ``P = sum u^T z`` over steps.
    """

    def __init__(self, steps):
        self.steps = steps
        self._atoms = torch.zeros_like(steps.atoms)
        self._x, self._size = torch.zeros_like(steps.x), torch.zeros_like(steps.size)
        self._total = self._products = None  # q, P
        if steps.transition is not None:
            self._total = torch.zeros_like(steps.correlation)
            self._products = torch.zeros_like(steps.transition)

    def pull(self, u, z, residual, *, out=None):  # (n, n_components) -> the same, or None
        """Add a step from ``z`` to the sums, and return the derivative in ``z``; see `Steps`."""
        steps, image = self.steps, self.add(u, z, residual)
        if z is None:
            return None
        if image is None:  # a step through the Gram matrix
            return multiply(None, u, steps.transition, out=out)
        return torch.mm(image * -steps.size, steps.atoms.mT, out=out).add_(u)

    def add(self, u, z, residual):  # -> M D u, of shape (n, n_features), or None
        """Add the derivatives of one or more steps from the same ``z`` to the sums.

        ``u`` is the sum of the derivatives in the results of the steps. ``residual`` is None if the
        steps used the Gram matrix.
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
        """Add entries of ``P`` between the atoms ``indices`` of each sample to the sums.

        ``products`` are these entries, and are overwritten. ``block`` are the entries of ``- s G``
        between the same atoms.
        """
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
        """Return the derivatives in the atoms, None, the data and the step size; call it once.

        The derivative in the atoms includes that of the analysis, which has the same atoms.
        """
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


class ConvSteps(Steps):
    """`Steps` of a `ConvDictionary`, or of `ConvLayers`, with a dictionary for each iteration.

    Images and codes are in the form of `Phases`. ``self.image`` and the patches are memory that
    every product overwrites.
    """

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

    def layers(self):  # -> int, int
        """Return the numbers of the layers that synthesise and that correlate in iteration ``t``.

        The codes before iteration ``t`` belong to the layer of iteration ``t - 1``.
        """
        atoms, correlators = self.matrices
        return (self.t - 1) % len(atoms), self.t % len(correlators)

    def enter(self, z):  # (n, n_components, *positions) -> (n, n_components, *blocks)
        return self.phases.widen(z)

    def leave(self, z):  # (n, n_components, *blocks) -> (n, n_components, *positions)
        return self.phases.narrow(z)

    def synthesize(self, atoms, z, start, alpha):
        """Set ``self.image`` to ``M (start + alpha D z)``, where ``D`` has the matrix ``atoms``."""
        torch.mm(atoms.mT, self.phases.columns(z), out=self._patches)
        self.image.copy_(start)
        for patch, pixels in self._pieces:
            pixels.add_(patch, alpha=alpha)
        if self._mask is not None:
            self.image.mul_(self._mask)

    def gather(self):  # -> (n_channels * n_pixels, n_columns)
        """Return the patches of ``self.image`` at all positions, one per column."""
        for patch, pixels in self._pieces:
            patch.copy_(pixels)
        return self._patches

    def correlate(self, atoms, z, out=None):  # -> (n, n_components, *blocks)
        """Return ``z`` (None: zeros) plus the products of ``atoms`` with the gathered patches.

        The result is in the memory ``out`` if it is given.
        """
        if out is None:
            shape = len(atoms), self.x.shape[-1 - len(self.phases.kernel)], *self.phases.blocks
            out = atoms.new_empty(shape)
            # new memory may hold NaN beyond the last column, and zero times NaN would be NaN
            out.flatten(1)[:, self._patches.shape[1] :] = 0
            out = out.transpose(0, 1)
        columns = self.phases.columns(out)
        if z is None:
            torch.mm(atoms, self._patches, out=columns)
        else:
            torch.addmm(self.phases.columns(z), atoms, self._patches, out=columns)
        return out

    def push(self, z, *, out=None):  # -> (n, n_components, *blocks), residual or None
        """Take a step, see `Steps`. The residual is None if no adjoint follows."""
        (atoms, correlators), (before, now) = self.matrices, self.layers()
        if z is None:
            self.image.copy_(self.x)
        else:
            self.synthesize(atoms[before], z, self.x, -1)
        residual = self.image.clone() if self._adjoint else None
        self.gather()
        return self.phases.wipe_(self.correlate(correlators[now] * self.size, z, out)), residual

    def sums(self):
        """Return new `_ConvSums`, see `Steps`."""
        return _ConvSums(self)


class _ConvSums:
    """Derivatives of `ConvSteps`, added up over the steps of a backward pass; see `Steps`."""

    def __init__(self, steps):
        self.steps = steps
        given = *steps.matrices, steps.x, steps.size
        self._atoms, self._analysis, self._x, self._size = map(torch.zeros_like, given)

    def pull(self, u, z, residual, *, out=None):  # (n, n_components, *blocks) -> the same, or None
        """Add a step from ``z`` to the sums, and return the derivative in ``z``; see `Steps`."""
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
        """Return the derivatives in atoms, analysis, data and step size; all of them always."""
        steps, size = self.steps, self.steps.size
        sums = self._atoms, self._analysis
        atoms, analysis = (size * part.view(shape) for part, shape in zip(sums, steps.shapes))
        return atoms, analysis, size * steps.phases.join(self._x), self._size
