"""What holds for the atoms of every dictionary."""

import torch

__all__ = ["atom_norms", "project_atoms"]


def atom_norms(atoms):  # (n_components, ...) -> (n_components, 1, ...)
    """Return the Euclidean norm of each atom, shaped to broadcast against the atoms."""
    norms = torch.linalg.vector_norm(atoms.flatten(1), dim=1)
    return norms.reshape(-1, *[1] * (atoms.ndim - 1))


def project_atoms(atoms, *, atom_norm="unit", positive=False):
    """Return the nearest atoms that satisfy the constraints.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, ...)
        Atoms, one per entry of the first axis.
    atom_norm : {"unit", "ball", None}, default="unit"
        ``"unit"`` scales every atom to norm 1, ``"ball"`` only longer ones, ``None`` none.
        Atoms that are zero stay zero.
    positive : bool, default=False
        Whether atoms are restricted to non-negative entries.

    Returns
    -------
    Tensor of shape (n_components, ...)
        The projected atoms; projecting twice is projecting once.
    """
    free = atoms
    if positive:
        atoms = atoms.clamp_min(0)
    if atom_norm is None:
        return atoms
    norms = atom_norms(atoms)
    if atom_norm == "ball":
        return atoms / norms.clamp_min(1)
    if positive:
        # the nearest non-negative unit vector of an atom without positive entries is an axis
        axis = torch.zeros_like(atoms).flatten(1)
        axis.scatter_(1, free.flatten(1).argmax(1, keepdim=True), 1)
        vanished = (norms == 0) & (atom_norms(free) > 0)
        atoms = torch.where(vanished, axis.view_as(atoms), atoms)
        norms = torch.where(vanished, torch.ones_like(norms), norms)
    return torch.where(norms > 0, atoms / norms, atoms)
