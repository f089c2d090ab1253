"""The states of phases between two epochs, as values to write to disk and to resume from.

A state from a file was written by a fit with the same parameters and data, as a checksum and the
identity of the fit tell. Compiled loops trust shapes and indices, so these are checked, and no
more: a file that somebody made by hand gives wrong atoms, and harms no memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from skpudle.search._search import searched

__all__ = ["EpochTally", "TrainingState", "check_kind", "check_search"]


def _kinds(tree):  # -> shapes and dtypes of all arrays and tensors in nested records
    if hasattr(tree, "shape"):
        return [(tuple(tree.shape), tree.dtype)]
    parts = tree if isinstance(tree, tuple) else getattr(tree, "__dict__", {}).values()
    return [kind for part in parts for kind in _kinds(part)]


def check_kind(state, expected):
    """Raise ValueError unless two states have arrays of the same shapes and dtypes."""
    kinds = _kinds(state), _kinds(expected)
    if type(state) is not type(expected) or kinds[0] != kinds[1]:
        raise ValueError(f"its state has arrays {kinds[0]}, expected {kinds[1]}")


def _check_codes(codes, n_rows, n_places):
    """Raise ValueError unless codes are those of ``n_rows`` rows at ``n_places`` places.

    A place is an atom at a position.
    """
    count, index = codes.count, codes.index
    if (count.dtype, index.dtype) != (torch.int64, torch.int32):
        raise ValueError("its codes have other dtypes")
    if count.shape != (n_rows,) or index.shape != codes.value.shape or len(index) != n_rows:
        raise ValueError(f"its codes are not for {n_rows} samples")
    used = torch.arange(index.shape[1]) < count[:, None]
    if ((count < 0) | (count > index.shape[1])).any():
        raise ValueError("its codes have other numbers of entries than they state")
    if (used & ((index < 0) | (index >= n_places))).any():
        raise ValueError(f"its codes are not for {n_places} places")


def check_search(state, problem, atoms):
    """Raise ValueError unless the atoms and codes of a search belong to a problem.

    Parameters
    ----------
    state : SearchState
        The state of the search.
    problem : Problem or ConvProblem
        Data and objective.
    atoms : Tensor of shape (n_components, ...)
        Initial atoms.
    """
    (n, *shape), n_now = atoms.shape, len(state.atoms)
    found = (state.atoms, state.previous, state.best_atoms, state.unseen)
    sizes = n_now, n_now, n, n
    for part, size in zip(found, sizes, strict=True):
        if part is not None and (part.shape != (size, *shape) or part.dtype != torch.float64):
            raise ValueError(f"its atoms have shape {tuple(part.shape)}, expected {(size, *shape)}")
    n_rows = len(searched(problem, state).x)
    for codes, n_atoms in ((state.codes, n_now), (state.best_codes, n)):
        _check_codes(codes, n_rows, n_atoms * problem.n_positions)


@dataclass(frozen=True, eq=False)
class EpochTally:
    """What an epoch has summed up so far.

    Attributes
    ----------
    unused : Tensor of shape (n_components,)
        Whether no code of the epoch used the atom.
    losses : Tensor of shape (n,)
        The largest losses, in descending order, at most one per unused atom.
    keys : Tensor of shape (n, ...)
        Keys of the samples with these losses.
    n_batches : int
        Number of batches seen.
    n_samples : float
        Number of samples seen, a sum of weights.
    loss : float
        The sum of all losses.
    """

    unused: Tensor
    losses: Tensor
    keys: Tensor
    n_batches: int = 0
    n_samples: float = 0.0
    loss: float = 0.0

    @classmethod
    def begin(cls, atoms):
        """Return the tally of an epoch that has not begun."""
        unused = torch.ones_like(atoms.flatten(1)[:, 0], dtype=torch.bool)
        return cls(unused, losses=atoms.new_zeros(0), keys=atoms.new_zeros(0))


@dataclass(frozen=True, eq=False)
class TrainingState:
    """The state of training between two epochs, which resumes from it with the same bits.

    Attributes
    ----------
    atoms : Tensor of shape (n_components, ...)
        The rows of parameters.
    moments : dict
        The optimiser's own state.
    n_updates : int
        Number of updates made.
    loss_curve : tuple of float
        The mean losses of the epochs.
    stopping : tuple
        The progress of `skpudle._training.stopping.Stopping`.
    epoch : EpochTally or None
        Of the latest epoch, whose unused atoms the next one replaces.
    generator : Tensor or None
        The state of the source's generator.
    halved : bool
        Whether the learning rate was halved after a divergence.
    finite : tuple or None
        The latest atoms, optimiser's state and number of updates that are known to be finite.
    """

    atoms: Tensor
    moments: dict
    n_updates: int
    loss_curve: tuple
    stopping: tuple
    epoch: EpochTally | None
    generator: Tensor | None
    halved: bool
    finite: tuple | None
