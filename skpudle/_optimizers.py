"""Optimisers: change atoms along a gradient, inside the constraints on atoms.

An optimiser owns the atoms during training. `update` changes the atoms by the gradient of a rule
(`skpudle._gradients`) and the codes of a batch. `replace` overwrites some atoms by new atoms, and
resets the optimiser's state of the old atoms. Both methods project the atoms onto the constraints.
`state` and `load` save and restore what training needs to go on.

Below the atoms there may be further rows of parameters, such as the baseline of counts, which have
no constraints: the last ``n_free`` rows.
"""

from copy import deepcopy
from functools import partial

import torch

# Number of atoms that `SurrogateOptimizer` changes together, as a block.
_ATOMS_AT_ONCE = 128
_NAMED = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class Optimizer:
    """Base class: atoms with constraints, and the state by which a later fit goes on.

    ``project(atoms)`` returns the nearest atoms inside the constraints, which the last ``n_free``
    rows of ``atoms`` do not have.

    A subclass (`GradientOptimizer`, `SurrogateOptimizer`) has its state, tensors and numbers, in
    the dict ``_state``. `replace` relies on this: a tensor of the state that has the shape of the
    atoms has one row for each atom.
    """

    def __init__(self, atoms, project, n_free=0):
        self._project = project
        self._n_free = n_free
        # The atoms must be in row-major order, as gradients and state are: fused optimisers of
        # torch ignore strides, and would mix up the entries of tensors in different orders.
        atoms = self._constrain(atoms.contiguous())
        self.atoms = torch.nn.Parameter(atoms.contiguous())

    def _constrain(self, block, n_after=0):
        """Project a block of successive rows of the atoms, after which ``n_after`` rows follow.

        Return the block, projected. Its rows that are among the last ``n_free`` of all rows stay as
        they are.
        """
        n = len(block) - max(self._n_free - n_after, 0)
        return torch.cat([self._project(block[:n]), block[n:]])

    @torch.no_grad()
    def replace(self, rows, atoms):  # (n_rows,) integers, (n_rows, ...)
        """Overwrite some ``rows`` by ``atoms``, projected, and set the state of these rows to zero.

        Training replaces atoms that no code uses. ``rows`` must not be among the last ``n_free``
        rows, which have no constraints.
        """
        self.atoms[rows] = self._project(atoms)
        for value in self._state.values():
            if isinstance(value, torch.Tensor) and value.shape == self.atoms.shape:
                value[rows] = 0

    def state(self):  # -> dict
        """Return a copy of the state, for `load`: what the next update needs beside the atoms."""
        return deepcopy(self._state)


class GradientOptimizer(Optimizer):
    """An optimiser of `torch.optim`, with a projection onto the constraints after each step.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, ...)
        Initial atoms; they are projected and copied.
    make : callable
        ``make(parameters, lr=..., **params)`` returns an optimiser of torch, whose ``step`` can be
        called without a closure.
    project : callable
        ``project(atoms)`` returns the nearest atoms inside the constraints.
    learning_rate : float
        The optimiser's ``lr``.
    n_free : int, default=0
        Number of rows at the end of ``atoms`` without constraints.
    unit : float, default=1.0
        The optimiser of torch gets gradients divided by this number, so that their squares, which
        Adam computes, stay in range.
    **params
        Further keyword arguments of ``make``.
    """

    def __init__(
        self, atoms, make, project, n_free=0, *, learning_rate, unit=1.0, **params
    ):
        super().__init__(atoms, project, n_free)
        self._unit = unit
        self._optimizer = make([self.atoms], lr=learning_rate, **params)
        # Most optimisers of torch make their state in the first step, but some, such as Adagrad,
        # make it at once. If `load` gets an empty state, it loads this one.
        self._first_state = self.state()

    @property
    def _state(self):
        return self._optimizer.state[self.atoms]

    @torch.no_grad()
    def load(self, atoms, state):
        """Go on where an earlier fit ended: copy its ``atoms``, and the ``state`` from its `state`.

        With an empty dict as the state the next step is a first step.
        """
        self.atoms.copy_(atoms)
        # only the state of the atoms, parameter number 0, changes; the learning rate and so on stay
        state = {"state": {0: deepcopy(state or self._first_state)}}
        self._optimizer.load_state_dict(self._optimizer.state_dict() | state)

    @torch.no_grad()
    def update(self, gradient, *_, **of_surrogates):
        """Change the atoms by one step of torch's optimiser, and project them.

        ``gradient`` has the shape of the atoms. The other arguments, those of
        `SurrogateOptimizer.update`, have no effect.
        """
        self.atoms.grad = (gradient / self._unit).contiguous()
        self._optimizer.step()
        self.atoms.grad = None
        self.atoms.copy_(self._constrain(self.atoms))


class SurrogateOptimizer(Optimizer):
    r"""Minimise a quadratic model of the loss in the atoms, which every batch refines.

    Let D be the atoms (n_components, n_features). A batch of n samples with the codes ``z`` (n,
    n_components) and the mean gradient ``g`` adds :math:`A_b = z^T z`, the curvature of the loss in
    the atoms, to a sum ``A``, and :math:`B_b = A_b D - n g` to a sum ``B``. The weight of earlier
    batches in both sums decays. An update lowers :math:`\frac12 \text{tr}(D^T A D) -
    \text{tr}(B^T D) + \frac\rho2 |D - D_\text{now}|^2` by some steps inside the constraints, where
    :math:`D_\text{now}` are the atoms before it. With the gradient ``dec`` and codes that solve the
    lasso, :math:`B_b` is :math:`z^T x`, and this is online dictionary learning.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Initial atoms; they are projected and copied.
    project : callable
        ``project(atoms)`` returns the nearest atoms inside the constraints; it must treat each atom
        on its own.
    n_free : int, default=0
        Number of rows at the end of ``atoms`` without constraints.
    curvature : float, default=1.0
        Largest second derivative of the loss in the reconstruction; 1 for least squares. In
        :math:`B_b` the gradient is divided by it.

    Attributes
    ----------
    forgetting : float
        The largest exponent of the decay: update k multiplies the sums of earlier batches by ``(1 -
        1/k)**exponent``. With 15 the sums consist mainly of the last 7 % of all samples. Older
        codes belong to worse atoms and would hold the atoms back. Early in training few samples are
        known, and the exponent is smaller: the number of samples so far over four times the number
        of atoms, at least 3.
    anchor : float
        :math:`\rho`, the weight that keeps atoms near their present values, as a multiple of the
        mean squared nonzero code. So atoms that had fewer nonzero codes than ``anchor`` so far move
        little.
    n_inner : int
        Number of projected gradient steps on the model for each block of 128 atoms in an update.
        The steps take little time compared with the product of the curvature and the atoms, which
        each block needs once.

    References
    ----------
    J. Mairal, F. Bach, J. Ponce and G. Sapiro, "Online Dictionary Learning for Sparse Coding", ICML
    2009, section 3.4 for the forgetting.
    """

    forgetting = 15.0
    anchor = 0.5
    n_inner = 3

    def __init__(
        self,
        atoms,
        project,
        n_free=0,
        *,
        curvature=1.0,
    ):
        super().__init__(atoms, project, n_free)
        self._inverse_curvature = 1 / curvature
        self._state = self._fresh_state()

    @torch.no_grad()
    def load(self, atoms, state):
        """Go on where an earlier fit ended: copy its ``atoms``, and the ``state`` from its `state`.

        With an empty dict as the state the model is empty.
        """
        self.atoms.copy_(atoms)
        # A state may come from another device. Each copy goes to the device of a fresh state: the
        # number of updates to the host, which reads it in each update, and the other tensors to the
        # device of the atoms.
        fresh = self._fresh_state()
        self._state = {
            name: state.get(name, value).to(value, copy=True)
            for name, value in fresh.items()
        }

    @torch.no_grad()
    def update(
        self,
        gradient,
        codes,
        *,
        weight=None,
        total=None,
    ):
        """Add a batch to the quadratic model of the loss, then change the atoms to lower its value.

        Parameters
        ----------
        gradient : Tensor of the shape of the atoms
            Derivative of the loss, averaged over the samples of the batch.
        codes : Tensor of shape (n_samples, n_components)
            Codes of the batch.
        weight : Tensor of shape (n_samples,), default=None
            How often each sample counts; None is once.
        total : callable, default=None
            ``total(*tensors)`` returns the sums of tensors over all processes, if several processes
            have a part of the batch each; ``gradient`` is then the mean over all samples of all
            processes.
        """
        atoms = self.atoms
        state = self._state
        n_samples = codes.new_full((), len(codes))
        n_nonzero = (codes != 0).sum()
        if weight is not None:
            n_samples = weight.sum()
            n_nonzero = (weight[:, None] * (codes != 0)).sum()
            codes = codes * weight[:, None].sqrt()
        curvature = codes.mT @ codes
        pull = codes.mT @ (codes @ atoms)
        energy = codes.square().sum()
        if total is not None:
            n_samples, n_nonzero, energy, curvature, pull = total(
                n_samples, n_nonzero, energy, curvature, pull
            )
        decay = self._age(n_samples)
        # sum of squares, and number, of the nonzero codes of all batches
        state["uses"] = decay * state["uses"] + torch.stack(
            [energy, n_nonzero.to(energy)]
        )
        state["curvature"].mul_(decay).add_(curvature)
        state["pull"].mul_(decay).add_(pull).sub_(
            n_samples * gradient, alpha=self._inverse_curvature
        )
        # 0 / 0 is NaN if there was no nonzero code so far
        mean_square = (state["uses"][0] / state["uses"][1]).nan_to_num(0.0)
        atoms.copy_(self._minimize(atoms, self.anchor * mean_square))

    def _age(self, n_samples):  # -> scalar tensor, from 0 to 1
        """Count a batch of ``n_samples``, a scalar tensor; return the decay of earlier batches.

        `update` multiplies the sums of earlier batches by this factor. The factor is closer to 1
        for a small batch, such as the last one of an epoch.
        """
        state = self._state
        state["n_updates"] += 1
        state["n_samples"] = state["n_samples"] + n_samples
        n_updates = int(state["n_updates"])
        relative_size = n_samples * n_updates / state["n_samples"]
        # The sums consist mainly of the last n_samples / exponent samples. This exponent makes them
        # four samples per atom, until it reaches its largest value, `forgetting`.
        exponent = state["n_samples"] / (4 * len(self.atoms))
        exponent = exponent.clamp(3.0, self.forgetting)
        return (1 - 1 / n_updates) ** (relative_size * exponent)

    def _minimize(self, now, rho):  # -> the shape of now
        """Return atoms with a lower value of the quadratic model, by one sweep over all atoms.

        The sweep takes block after block, and each block uses the new values of earlier blocks.
        ``now`` are the atoms before the update. ``rho``, a scalar tensor, is the weight of the term
        ``rho / 2 |atoms - now|^2`` of the model, which keeps atoms near ``now``.
        """
        atoms = now.clone()
        curvature = self._state["curvature"]
        pull = self._state["pull"]
        for first in range(0, len(atoms), _ATOMS_AT_ONCE):
            rows = slice(first, min(first + _ATOMS_AT_ONCE, len(atoms)))
            block_curvature = curvature[rows, rows].clone()
            block_curvature.diagonal().add_(rho)
            # minus the derivative of the model in the block; the term with rho has none at `now`
            slope = torch.addmm(pull[rows], curvature[rows], atoms, alpha=-1)
            # Let A be `block_curvature`, and c a bound of the largest eigenvalue of A after A is
            # scaled to unit diagonal. Then c diag(A) - A is positive semidefinite, so a gradient
            # step lowers the model if atom j has the step size 1 / (c A_jj). Each atom has one step
            # size for all its features: otherwise its projection would not minimise, inside the
            # constraints, the bound of the model that the step minimises. The largest row sum and
            # the Frobenius norm of the scaled matrix both bound the eigenvalue.
            diagonal = block_curvature.diagonal().clamp_min(torch.finfo(now.dtype).tiny)
            scale = diagonal.rsqrt()
            scaled = (scale[:, None] * block_curvature * scale).abs()
            bound = torch.minimum(scaled.sum(1).max(), torch.linalg.matrix_norm(scaled))
            # no bound is below 1, because the scaled diagonal is 1; only without codes it is 0
            bound = bound.clamp_min(1)
            steps = (1 / (bound * diagonal))[:, None]
            block = previous = atoms[rows]
            for i in range(self.n_inner):
                if i:
                    slope.addmm_(block_curvature, block - previous, alpha=-1)
                moved = torch.addcmul(block, steps, slope)
                previous = block
                block = self._constrain(moved, len(atoms) - rows.stop)
            atoms[rows] = block
        return atoms

    @torch.no_grad()
    def replace(self, rows, atoms):  # (n_rows,) integers, (n_rows, n_features)
        """Overwrite some ``rows`` by ``atoms``, projected; remove the old atoms from the model.

        An atom has a row of ``pull`` (B), and a row and a column of ``curvature`` (A); they become
        zero.
        """
        super().replace(rows, atoms)
        self._state["curvature"][rows] = 0
        self._state["curvature"][:, rows] = 0

    def _fresh_state(self):  # -> dict of Tensor
        """Return the state before the first update: the sums A and B, and what `_age` counts."""
        atoms = self.atoms.detach()
        return {
            "curvature": atoms.new_zeros(len(atoms), len(atoms)),
            "pull": torch.zeros_like(atoms),
            "n_updates": torch.tensor(0, device="cpu"),
            "n_samples": atoms.new_zeros(()),
            # Sum of squares, and number, of the nonzero codes of all batches. The weight of earlier
            # batches decays, as in "curvature" and "pull". If the latest batch alone counted, a
            # batch of small codes would weaken the anchor of all atoms.
            "uses": atoms.new_zeros(2),
        }


def make_optimizer(
    name, atoms, project, *, learning_rate, data_scale, curvature=1.0, n_free=0
):
    """Return the optimiser that a learner's parameter ``optimizer`` names, for the given atoms.

    Parameters
    ----------
    name : {"adam", "sgd", "surrogate"} or callable
        A name, a subclass of `torch.optim.Optimizer`, or a callable that takes a list of parameters
        and ``lr`` and returns an optimiser. In a `partial` of Adam ``eps`` and ``weight_decay`` are
        in the units of the gradients.
    atoms : Tensor of shape (n_components, ...)
        Initial atoms.
    project : callable
        ``project(atoms)`` returns the nearest atoms inside the constraints.
    learning_rate : float or None
        Learning rate, which "surrogate" does not use. None: the ``lr`` of the callable, or 1e-3.
    data_scale : float
        Mean squared norm of a sample, to which gradients are proportional. Adam gets gradients
        divided by ``data_scale``, so training does not depend on the units of the data.
    curvature : float, default=1.0
        Largest second derivative of the loss in the reconstruction, for "surrogate".
    n_free : int, default=0
        Number of rows at the end of ``atoms`` without constraints.

    Returns
    -------
    GradientOptimizer or SurrogateOptimizer
        The optimiser.

    Raises
    ------
    ValueError
        If ``name`` is a `functools.partial` with an ``lr``, and ``learning_rate`` is not None.
    """
    if name == "surrogate":
        return SurrogateOptimizer(atoms, project, n_free, curvature=curvature)
    make = _NAMED[name] if isinstance(name, str) else name
    as_partial = make if isinstance(make, partial) else partial(make)
    params = as_partial.keywords
    if learning_rate is not None and "lr" in params:
        raise ValueError(
            f"optimizer={name!r:.200} has an lr. Pass it as the learner's learning_rate instead."
        )
    # None comes from learners without a parameter `learning_rate`; the callable's `lr` then counts
    rate = params.get("lr", 1e-3) if learning_rate is None else learning_rate
    of_adam = {}
    if as_partial.func is torch.optim.Adam:
        # Gradients are divided by `unit`, because Adam squares them, and squares could leave the
        # range of float32. Adam is fused, which is fastest, unless the user has chosen by `fused`
        # or `foreach`; torch raises an error if both are True.
        unit = data_scale or 1.0
        scaled = params.keys() & {"eps", "weight_decay"}
        of_adam = {"unit": unit} | {name: params[name] / unit for name in scaled}
        if "fused" not in params:
            of_adam["fused"] = "foreach" not in params
    return GradientOptimizer(
        atoms, make, project, n_free, learning_rate=rate, **of_adam
    )
