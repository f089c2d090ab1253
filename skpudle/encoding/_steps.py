r"""Gradient steps of the encoder for each kind of dictionary, their adjoints, and iterations.

A *step* from the codes ``z`` of data ``x`` is ``z + s A^T M (x - D z)``, with the step size ``s``
and the mask ``M`` of known entries. ``A``, the *analysis*, is the dictionary ``D`` unless the
encoder has separate atoms for the correlations with the residual. An *iteration* is a step and a
shrinkage. `run_iterations` runs the encoder, and a record of each iteration holds what its adjoint
needs.

The *adjoint* of a step takes ``u``, the derivative of the loss in the result of the step. It adds
``s outer(u, M (x - D z))`` to the derivative in ``A`` and ``- s outer(z, M A u)`` to the derivative
in ``D``, and returns the derivative in ``z``.

With a dense dictionary a step multiplies by ``D`` and by its transpose, or by the matrix ``H``, the
unit matrix minus ``s D^T D``, which saves time if there are many steps. If most codes are zero,
`SparseIterations` run in compiled loops, which read only the rows of ``H`` of the atoms with
nonzero codes.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skpudle._compilation import blocks_of_rows, in_parts
from skpudle._operators._conv import ConvLayers
from skpudle._shrinkage import shrink
from skpudle.encoding._compiled import is_compiled, loops, multiply

# If an iteration takes at most this number of multiplications, compiled loops run it even if codes
# are dense: with torch an iteration makes four calls, and a call takes 4 microseconds even for few
# numbers. An iteration of 2**17 multiplications takes 12 microseconds compiled and 33 by torch, and
# one of 2**20 takes 57 and 47 (benchmarks/constants.py compiled-steps).
_FEW_PRODUCTS = 2**17
# Steps may use the matrix ``H``, the unit matrix minus ``s D^T D``. If the product ``D^T D`` takes
# at most this number of multiplications (half a millisecond), ``H`` is made even where the steps do
# not save half a millisecond, and then compiled loops can run the steps.
_CHEAP_PRODUCT = 2**24
# Number of rows of a Gram matrix that `_gram_matrix` computes by one product.
_ROWS_OF_GRAM = 256
# Compiled loops run iterations if less than this fraction of the codes is nonzero. With 1/5 instead
# of 1/9 an update with 1,500 atoms and 50 rows takes 10 % longer.
_SPARSE_CODES = 1 / 9
# Steps with ``H`` add their terms ``u^T z`` to the sum P of `DenseSteps` for at least this number
# of rows at a time, since a product of 50 rows takes twice the time per row.
_ROWS_OF_PAIRS = 1024


def _gram_matrix(atoms):  # (n_components, n_features) -> (n_components, n_components)
    """Return the inner products of all pairs of atoms: the upper half is a copy of the lower half.

    For 1,500 atoms this takes 35 % less time than the product of the atoms and their transpose.
    """
    gram = atoms.new_empty(len(atoms), len(atoms))
    for rows in blocks_of_rows(len(atoms), 1, _ROWS_OF_GRAM):
        torch.mm(atoms[rows], atoms[: rows.stop].mT, out=gram[rows, : rows.stop])
        gram[: rows.start, rows] = gram[rows, : rows.start].mT
    return gram


class Steps:
    """Base class: gradient steps of the encoder for one kind of dictionary, and their adjoints.

    `run_iterations` takes the steps. A backward pass calls ``clear``, then ``pull`` for each step
    from the last to the first, then ``gradients``. A subclass has four methods:

    * ``push(z, out=None)`` takes a step from the codes ``z``, or from zero if ``z`` is None. It
      returns the codes after the step, and the residual ``M (x - D z)``, or None if it was not
      computed. The codes may use the memory ``out``.
    * ``clear()`` sets all derivatives to zero.
    * ``pull(u, z, residual, out=None)`` takes the derivative ``u`` of the loss in the result of a
      step from ``z``, and the ``residual`` that ``push`` returned. It adds the step's terms to the
      derivatives in atoms, data and step size. It returns the derivative in ``z``, or None if ``z``
      is None.
    * ``gradients()`` returns the derivatives in the atoms, in the atoms of the analysis (None if
      the analysis has the same atoms), in the data and in the step size.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
        Data.
    size : Tensor of shape ()
        Step size.
    mask : Tensor that broadcasts against the data, default=None
        1 where an entry of ``x`` is known, 0 where it is missing.
    """

    t = 0  # the current iteration, which chooses a dictionary of `ConvLayers`; callers set it
    n_first = 8  # number of iterations in the first call of compiled loops; see `run_iterations`

    def __init__(self, x, size, *, mask=None):
        self.size = size
        self._mask = mask
        self.x = self.hide(x)

    def hide(self, data):  # -> the same shape
        """Return ``data``, of the shape of ``x``, with zeros where entries of ``x`` are missing."""
        return data if self._mask is None else data * self._mask

    def are_sparse(self, z):
        """Return whether `SparseIterations` are faster from the codes ``z`` on: here never."""
        return False


class Iteration(NamedTuple):
    """Record of one iteration that torch has run, from which `pull` computes its adjoint."""

    t: int  # number of the iteration
    z: Tensor | None  # codes before the iteration; None are zeros
    code: Tensor  # codes after the iteration
    residual: Tensor | None  # residual of `z`; None if the step did not compute it

    def pull(
        self,
        steps,
        delta,
        by_level,
        scratch,
    ):  # -> (n, n_components) or None
        """Run the adjoint: return the derivatives of the loss in the codes before this iteration.

        ``delta`` has the derivatives in the codes after the iteration, and is overwritten. The
        object ``steps`` took the step of the iteration; it adds up the derivatives in atoms, data
        and step size. The derivatives in the levels are added to ``by_level`` (n_unfoldings, ...),
        unless it is None. ``scratch`` is memory of the shape of ``delta``.
        """
        # u, the derivative in the values before the shrinkage, is delta where the code is not zero,
        # and 0 elsewhere: only this function of torch computes it in a single pass through memory
        masked = torch.ops.aten.hardshrink_backward.grad_input
        u = masked(delta, self.code, 0.0, grad_input=scratch)
        if by_level is not None:
            by_level[self.t] -= (self.code.sign() * u).sum_to_size(by_level.shape[1:])
        steps.t = self.t
        return steps.pull(u, self.z, self.residual, out=delta)


class SparseIterations:
    """Record of successive iterations that compiled loops have run, for sparse or few codes.

    The constructor runs the iterations.

    Parameters
    ----------
    steps : DenseSteps
        The steps, which have the matrix ``H``.
    z : Tensor of shape (n, n_components) or None
        Codes before the first iteration; None are zeros.
    start : int
        Number of the first iteration.
    levels : Tensor of shape (n_iterations, 1) or (n_iterations, n_components)
        Level of the shrinkage in each of these iterations.
    shrinkage : {"soft", "hard"}
        The shrinkage.
    positive : bool
        Whether codes are restricted to non-negative values.
    keep : bool
        Whether to keep the codes of all iterations, for `pull`, and not the last codes alone.

    Attributes
    ----------
    codes : Tensor of shape (n_iterations + 1, n, n_components) or (1, n, n_components)
        With ``keep``, the codes before the first iteration and after each; otherwise the last
        codes.
    """

    def __init__(
        self,
        steps,
        z,
        start,
        levels,
        shrinkage,
        positive,
        keep,
    ):
        self._start = start
        n, n_components = steps.correlation.shape
        n_kept = len(levels) * keep
        self.codes = steps.correlation.new_empty(n_kept + 1, n, n_components)
        self.codes[0] = 0.0 if z is None else z
        # the loops read a level for each atom, even if all atoms have the same one
        levels = levels.expand(len(levels), n_components).contiguous()
        iterate = partial(
            loops.iterate,
            transition=np.asarray(steps.transition),
            correlation=np.asarray(steps.correlation),
            levels=np.asarray(levels),
            codes=np.asarray(self.codes),
            hard=shrinkage == "hard",
            positive=bool(positive),
            keep=int(keep),
        )
        # A thread gets at least this number of rows, of which it computes half a million codes,
        # counted over all iterations, in about a millisecond. With less work a thread would cost
        # more time than it saves.
        least_rows = max(1, 2**19 // (len(levels) * n_components))
        in_parts(iterate, n, least_rows)

    def pull(
        self,
        steps,
        delta,
        by_level,
        scratch,
    ):  # (n, n_components) -> the same
        """Run the adjoint: return the derivatives of the loss in the codes before all iterations.

        ``delta`` has the derivatives in the last codes; the result overwrites it. The terms of the
        iterations are added to the sums ``total`` and ``products`` of ``steps``, a `DenseSteps`,
        and the derivatives in the levels to ``by_level`` (n_unfoldings, ...), unless it is None.
        ``scratch`` has no effect.
        """
        n_iterations = len(self.codes) - 1
        finfo = torch.finfo(delta.dtype)
        if by_level is None:
            by_level = delta.new_zeros(n_iterations, 1)
        else:
            by_level = by_level[self._start : self._start + n_iterations]
        # a view: if there is one level for all atoms, the loops add all derivatives to one number
        by_level = by_level.expand(n_iterations, delta.shape[1])
        loops.pull(
            np.asarray(steps.transition),
            np.asarray(self.codes),
            np.asarray(delta),
            np.asarray(steps.total),
            np.asarray(steps.products),
            np.asarray(by_level),
            finfo.tiny / finfo.eps,  # derivatives up to this size count as zero
        )
        return delta


def run_iterations(
    steps,
    z,
    levels,
    shrinkage,
    positive,
    keep,
):
    """Run the encoder for least squares: one iteration, a step and a shrinkage, for each level.

    Parameters
    ----------
    steps : Steps
        Takes the steps, for the data and the dictionary that it has.
    z : Tensor of shape (n, n_components, ...) or None
        Codes to begin with; None are zeros.
    levels : Tensor of shape (n_unfoldings, ...)
        Level of the shrinkage in each iteration, which broadcasts against codes.
    shrinkage : {"soft", "hard"}
        The shrinkage.
    positive : bool
        Whether codes are restricted to non-negative values.
    keep : bool
        Whether to return records for a backward pass.

    Returns
    -------
    codes : Tensor of shape (n, n_components, ...)
        The codes after the last iteration.
    records : list of Iteration and SparseIterations
        The records of all iterations in their order; empty without ``keep``.
    """
    shrink_ = partial(shrink, name=shrinkage, positive=positive)
    records = []
    t = 0
    n_next = steps.n_first
    scratch = None
    spare = None
    while t < len(levels):
        if levels.ndim == 2 and steps.are_sparse(z):
            # Codes may become dense, for which the loops are slow. So the first call runs `n_first`
            # iterations, each next call 4 times more, and `are_sparse` checks the codes in between.
            some = levels[t : t + n_next]
            spare = None
            record = SparseIterations(steps, z, t, some, shrinkage, positive, keep)
            z = record.codes[-1]
            t = t + len(some)
            n_next = 4 * n_next
        else:
            steps.t = t
            v, residual = steps.push(z, out=spare)
            scratch = torch.empty_like(v) if scratch is None else scratch
            # If no record needs the codes `z`, the next step overwrites `z` instead of allocating
            # memory. But at t == 0 the codes belong to the caller.
            spare = None if keep or t == 0 else z
            code = shrink_(v, levels[t], scratch=scratch)
            record = Iteration(t, z, code, residual)
            z = code
            t = t + 1
            n_next = steps.n_first
        if keep:
            records.append(record)
    return z, records


class DenseSteps(Steps):
    r"""`Steps` of a `DenseDictionary`, by products with its atoms or with the matrix ``H``.

    Steps with ``H`` compute ``s D^T x + H z`` and need no residuals. Let ``u`` be the derivatives
    of the loss in the result of a step from ``z``. With the sums over steps ``q = sum u`` (n,
    n_components) and ``P = sum u^T z`` (n_components, n_components), the derivative in ``atoms`` is
    :math:`s (q^T x - (P + P^T)\,\text{atoms})`.

    Parameters
    ----------
    dictionary : DenseDictionary
        The dictionary, without a graph of autograd.
    x, size, mask
        Data, step size and mask of known entries, as in `Steps`. With a mask there is no ``H``.
    n_steps : int
        Number of steps that will be taken; it decides whether the matrix ``H`` saves time.
    """

    def __init__(
        self,
        dictionary,
        x,
        size,
        *,
        mask=None,
        n_steps,
    ):
        super().__init__(x, size, mask=mask)
        self.atoms = dictionary.atoms
        n_components, n_features = self.atoms.shape
        self.correlation = (self.x * size) @ self.atoms.mT  # s D^T x
        self.transition = None  # the matrix H, the unit matrix minus s D^T D
        # ``H`` costs a product of the dictionary with each atom, and each step with ``H`` saves
        # such a product for each row of the data. So ``H`` pays for at most n_steps * n_rows atoms.
        pays = (
            n_components <= n_steps * len(x)
            or n_components * self.atoms.numel() <= _CHEAP_PRODUCT
        )
        if mask is None and pays:
            self.transition = _gram_matrix(self.atoms).mul_(-size)
            self.transition.diagonal().add_(1)
        # a step with `H` takes n_components multiplications a code, and 2 * n_features without
        self._uses_transition = (
            self.transition is not None and n_components < 2 * n_features
        )
        self._is_compiled = self.transition is not None and is_compiled(x)
        self._are_few = self.correlation.numel() * n_components <= _FEW_PRODUCTS
        if self._are_few:  # a single call of compiled loops runs all iterations
            self.n_first = n_steps

    def are_sparse(self, z):
        """Return whether `SparseIterations` are faster from the codes ``z`` on.

        With few multiplications in a step they always are. Otherwise they are if few codes are
        nonzero; but from zeros, a ``z`` of None, a step only copies the correlations.
        """
        if not self._is_compiled or self._are_few or z is None:
            return self._is_compiled and self._are_few
        return np.count_nonzero(np.asarray(z) != 0) < _SPARSE_CODES * z.numel()

    def push(self, z, *, out=None):  # -> (n, n_components), residual or None
        """Return the codes after a step from ``z``, and the residual, or None with ``H``."""
        if z is None:
            residual = self.x if self.transition is None else None
            return self.correlation.clone(), residual
        if self._uses_transition:
            return torch.addmm(self.correlation, z, self.transition, out=out), None
        residual = self.hide(multiply(self.x, z, self.atoms, scale=-1))
        return torch.addmm(z, residual * self.size, self.atoms.mT, out=out), residual

    def clear(self):
        """Set all derivatives and sums of the backward pass to zero."""
        self._by_atoms = torch.zeros_like(self.atoms)
        self._by_x = torch.zeros_like(self.x)
        self._by_size = torch.zeros_like(self.size)
        if self.transition is not None:
            self.total = torch.zeros_like(self.correlation)  # q, see the class
            self.products = torch.zeros_like(self.transition)  # P, see the class
            self._pairs = []  # u and z of steps that P does not have yet

    def pull(
        self,
        u,
        z,
        residual,
        *,
        out=None,
    ):  # -> (n, n_components) or None
        """Run the adjoint of the step from ``z``, see `Steps`: return the derivatives in ``z``.

        ``u`` are the derivatives in the result of the step. ``residual`` is None for a step with
        ``H``, whose terms go to the sums q and P of the class.
        """
        if residual is None:
            self.total += u
            if z is None:
                return None
            self._pairs.append((u.clone(), z))
            if len(self._pairs) * len(u) >= _ROWS_OF_PAIRS:
                self._add_pairs()
            return torch.mm(u, self.transition, out=out)
        decoded = self.hide(  # M D u
            multiply(torch.zeros_like(residual), u, self.atoms, in_place=True)
        )
        multiply(self._by_atoms, u.mT, residual, in_place=True)
        self._by_x += decoded
        self._by_size += (decoded * residual).sum()
        if z is None:
            return None
        multiply(self._by_atoms, z.mT, decoded, scale=-1, in_place=True)
        return torch.addmm(u, decoded * -self.size, self.atoms.mT, out=out)

    def _add_pairs(self):
        """Add the terms ``u^T z`` of the steps in ``_pairs`` to the sum P, by one product."""
        if self._pairs:
            u, z = map(torch.cat, zip(*self._pairs, strict=True))
            self.products.addmm_(u.mT, z)
        self._pairs = []

    def gradients(self):
        """Return the derivatives in the atoms, None, and those in the data and the step size.

        The derivatives have the shapes of atoms, data and step size. None stands for the analysis,
        which has the same atoms. Call the method once, after the last `pull`: it adds the terms of
        the sums q and P to the derivatives.
        """
        if self.transition is not None:
            self._add_pairs()
            self._by_atoms.addmm_(self.total.mT, self.x)
            self._by_atoms.addmm_(
                self.products + self.products.mT, self.atoms, alpha=-1
            )
            self._by_x.addmm_(self.total, self.atoms)
            # The derivative in the step size s is <q, D^T x> - <P, G>, where the Gram matrix G is
            # the unit matrix minus H, divided by s. `scaled` is the derivative times s.
            scaled = (self.total * self.correlation).sum() - self.products.trace()
            scaled += torch.dot(self.products.flatten(), self.transition.flatten())
            self._by_size += scaled / self.size
        by_atoms = self._by_atoms.mul_(self.size)
        return by_atoms, None, self._by_x.mul_(self.size), self._by_size


class ConvSteps(Steps):
    """`Steps` of a `ConvDictionary`, or of `ConvLayers`, with a dictionary for each iteration.

    ``dictionary`` reconstructs the data, and ``analysis`` correlates with the residual. They may be
    the same, and have no graph of autograd. The data ``x``, the step size ``size`` and the ``mask``
    of known entries are those of `Steps`.
    """

    def __init__(
        self,
        dictionary,
        analysis,
        x,
        size,
        *,
        mask=None,
    ):
        super().__init__(x, size, mask=mask)
        self._dictionary = dictionary
        self._analysis = analysis

    def layer(self, dictionary, t):  # -> index, ConvDictionary
        """Return the dictionary of iteration ``t``, after its index in ``dictionary.atoms``.

        The index is ``...`` if all iterations share the dictionary. In `ConvLayers` the analysis
        of iteration ``t`` takes layer ``t``. The synthesis takes layer ``t - 1``, to which the
        codes before iteration ``t`` belong.
        """
        if isinstance(dictionary, ConvLayers):
            return t, dictionary[t]
        return ..., dictionary

    def push(self, z, *, out=None):  # -> (n, n_components, *positions), residual
        """Return the codes after a step from ``z`` in iteration ``t``, and the residual."""
        _, dictionary = self.layer(self._dictionary, self.t - 1)
        _, analysis = self.layer(self._analysis, self.t)
        residual = self.x if z is None else self.x - self.hide(dictionary.synthesis(z))
        pushed = replace(analysis, atoms=analysis.atoms * self.size).analysis(
            residual, out=out
        )
        return pushed if z is None else pushed.add_(z), residual

    def clear(self):
        """Set all derivatives of the backward pass to zero."""
        self._by_atoms = torch.zeros_like(self._dictionary.atoms)
        self._by_analysis = torch.zeros_like(self._analysis.atoms)
        self._by_x = torch.zeros_like(self.x)
        self._by_size = torch.zeros_like(self.size)

    def pull(
        self,
        u,
        z,
        residual,
        *,
        out=None,
    ):  # -> the shape of u, or None
        """Run the adjoint of the step from ``z`` in iteration ``t``: return derivatives in ``z``.

        ``u`` are the derivatives in the result of the step, and ``residual`` is that of ``z``;
        ``out`` has no effect.
        """
        index_before, dictionary = self.layer(self._dictionary, self.t - 1)
        index_now, analysis = self.layer(self._analysis, self.t)
        decoded = self.hide(analysis.synthesis(u))
        self._by_x += decoded
        self._by_size += (decoded * residual).sum()
        self._by_analysis[index_now] += analysis.outer(u, residual)
        if z is None:
            return None
        self._by_atoms[index_before] -= dictionary.outer(z, decoded)
        return u - self.size * dictionary.analysis(decoded)

    def gradients(self):
        """Return the derivatives in the atoms, the analysis, the data and the step size.

        The derivatives have the shapes of these tensors. Derivatives in the atoms and in the
        analysis are separate even if both have the same atoms; the caller then adds them up.
        """
        of_atoms = self.size * self._by_atoms
        of_analysis = self.size * self._by_analysis
        return of_atoms, of_analysis, self.size * self._by_x, self._by_size
