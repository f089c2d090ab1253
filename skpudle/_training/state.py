"""The state of training as one value: to roll back, to write to disk, to resume."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Progress", "TrainingState"]


@dataclass(frozen=True)
class Progress:
    """The progress of an epoch.

    Attributes
    ----------
    plan_state : Tensor or None
        The state of the source's generator, before it drew the plan.
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
    done : bool
        Whether the epoch has ended.
    """

    plan_state: Tensor | None
    unused: Tensor
    losses: Tensor
    keys: Tensor
    n_batches: int = 0
    n_samples: float = 0.0
    loss: float = 0.0
    done: bool = False

    @classmethod
    def begin(cls, atoms, plan_state):
        """Return the progress of an epoch that has not begun."""
        unused = torch.ones_like(atoms.flatten(1)[:, 0], dtype=torch.bool)
        return cls(plan_state, unused, losses=atoms.new_zeros(0), keys=atoms.new_zeros(0))


@dataclass(frozen=True)
class TrainingState:
    """The complete state of training, which resumes from it with the same bits.

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
    searched : tuple of float
        Losses of the epochs of an earlier search.
    stopping : tuple
        The progress of `skpudle._training.stopping.Stopping`.
    progress : Progress or None
        Of the current or the latest epoch.
    generator : Tensor or None
        The state of the source's generator.
    halved : bool
        Whether the learning rate was halved after a divergence.
    finite : tuple or None
        The latest ``start`` that is known to be finite.
    """

    atoms: Tensor
    moments: dict
    n_updates: int
    loss_curve: tuple
    searched: tuple
    stopping: tuple
    progress: Progress | None
    generator: Tensor | None
    halved: bool
    finite: tuple | None

    @property
    def start(self):
        """The state of an optimiser: atoms, its own state, the number of updates."""
        return self.atoms, self.moments, self.n_updates

    def as_dict(self):
        """Return the state as a dict of numbers, tensors, and lists and dicts of them."""
        return vars(self) | {"progress": self.progress and vars(self.progress)}

    @classmethod
    def from_dict(cls, state):
        """Return the state from `as_dict`, in which a list may replace a tuple."""
        progress, finite = state["progress"], state["finite"]
        return cls(
            **state
            | {
                "progress": progress and Progress(**progress),
                "finite": finite and tuple(finite),
                "stopping": tuple(state["stopping"]),
            }
        )
