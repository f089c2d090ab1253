"""What optimisers remember: copies of it, and what tells whether it is another's."""

from copy import deepcopy

import torch

__all__ = ["Optimizer", "check_load", "copy_of", "kinds", "misfit_of", "row_major"]


def copy_of(state):  # tensors by name, and whatever else an optimiser counts with
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else deepcopy(value)
        for name, value in state.items()
    }


def _kind(value):
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    # of a single number the dtype follows torch's default, and whoever reads it converts it
    return f"{value.dtype} of shape {tuple(value.shape)}" if value.ndim else "a tensor of shape ()"


def kinds(state):  # of its tensors; what else an optimiser keeps is its own business
    return {name: _kind(v) for name, v in state.items() if isinstance(v, torch.Tensor)}


def misfit_of(state, kinds):
    """Return what of a state is of another kind than expected, in words, or None."""
    for name, kind in kinds.items():
        found = _kind(state[name]) if name in state else "missing"
        if found != kind:
            return f"{name} is {found}, expected {kind}"
    return None


def check_load(optimizer, atoms, state):
    found, expected = _kind(atoms), _kind(optimizer.atoms)
    misfit = f"atoms are {found}, expected {expected}" if found != expected else None
    if misfit := misfit or optimizer.misfit(state):
        raise ValueError(f"This is not the state of training of these atoms: {misfit}.")


class Optimizer:
    """What both optimisers do with a state that may be another's."""

    def resume(self, atoms, state):
        """Go on from the given atoms and `state`, or without a memory if that is of others."""
        self.load(atoms, {} if self.misfit(state) else state)


def row_major(atoms):  # -> a copy
    # fused optimisers of torch walk through memory, whatever the strides of gradient and moments
    return atoms.clone(memory_format=torch.contiguous_format)
