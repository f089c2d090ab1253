"""Dense dictionaries."""

from dataclasses import dataclass, replace

from torch import Tensor

from skpudle._precision import own_precision
from skpudle.operators._norms import largest_eigenvalue_bound, scaled, smaller_gram

__all__ = ["DenseDictionary"]


@dataclass(frozen=True, eq=False)
class DenseDictionary:
    """The trilinear form ``<z @ atoms, x>`` and its three partial derivatives.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        One atom per row.
    """

    atoms: Tensor

    @own_precision()
    def synthesis(self, z):  # (n, n_components) -> (n, n_features)
        """Return the data that the codes ``z`` stand for, ``D z``."""
        return z @ self.atoms

    @own_precision()
    def analysis(self, x):  # (n, n_features) -> (n, n_components)
        """Return the correlations of the data with the atoms, ``D^T x``."""
        return x @ self.atoms.mT

    @own_precision()
    def outer(self, z, x):  # -> (n_components, n_features)
        """Return the derivative of ``<D z, x>`` in the atoms, summed over samples."""
        return z.mT @ x

    def detach(self):
        """Return the same dictionary, cut off from automatic differentiation."""
        return replace(self, atoms=self.atoms.detach())

    @own_precision()
    def squared_norm_bound(self):  # -> scalar tensor
        """Bound the squared spectral norm from above, by at most 5 %."""
        atoms, scale = scaled(self.atoms.detach())
        return largest_eigenvalue_bound(smaller_gram(atoms)) * scale
