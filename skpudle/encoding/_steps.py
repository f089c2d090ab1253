r"""Gradient steps of the encoder and their adjoint, for any dictionary.

A step is ``z + s A^T M (x - D z)``, where ``A`` is ``D`` unless the atoms of the analysis are
separate, and ``M`` hides what is missing. Backwards it contributes ``outer(u, M (x - D z))`` to the
derivative in ``A`` and ``- outer(z, M A u)`` to that in ``D``, both times ``s``.
"""

import torch

__all__ = ["Steps", "Sums"]


class Steps:
    """Steps by the maps of a dictionary.

    Parameters
    ----------
    dictionary : DenseDictionary or ConvDictionary
        The dictionary, or any object with the same maps, detached.
    analysis : object of the same kind
        Whose ``analysis`` correlates, often the dictionary itself.
    x : Tensor of shape (n_samples, ...)
        Data.
    size : Tensor of shape ()
        Step size.
    mask : Tensor that broadcasts against the data, default=None
        1 where an entry of ``x`` is known, 0 where it is missing.
    """

    in_one_product = False  # whether `Stretch` takes many iterations together

    def __init__(self, dictionary, analysis, x, size, *, mask=None):
        self.dictionary, self.analysis, self.size, self._mask = dictionary, analysis, size, mask
        self.x = self.hide(x)

    def hide(self, data):
        """Return the data with zeros where entries are missing."""
        return data if self._mask is None else data * self._mask

    def turn_to(self, t):
        """Make the steps those of iteration ``t``; here all are the same."""

    def enter(self, z):
        """Return codes in the form that steps take."""
        return z

    def leave(self, z):
        """Return codes in the form that users see, the inverse of `enter`."""
        return z

    def push(self, z, *, out=None):
        """Return the codes after a step, and ``M (x - D z)`` if it was computed on the way.

        Without codes the step is from zero; ``out`` is memory that may be used for the result.
        """
        residual = self.x if z is None else self.hide(self.x - self.dictionary.synthesis(z))
        ascent = self.analysis.analysis(residual * self.size)
        return (ascent if z is None else ascent.add_(z)), residual

    def sums(self):
        """Return the adjoint, with sums of its own, since a graph may be walked twice."""
        return Sums(self)


class Sums:
    """The transpose of the steps, and the derivatives that it adds up."""

    def __init__(self, steps):
        self.steps = steps
        self._atoms = torch.zeros_like(steps.dictionary.atoms)
        self._analysis = torch.zeros_like(steps.analysis.atoms)
        self._x, self._size = torch.zeros_like(steps.x), torch.zeros_like(steps.size)

    def pull(self, u, z, residual, *, out=None, where=None):
        """Return the transpose of a step at ``u``, and add up what the step contributes.

        ``z`` is what it started from and ``residual`` what `push` returned. None for the first step
        from zero, of which nothing is asked; nor is it where ``where`` is zero.
        """
        steps = self.steps
        image = steps.hide(steps.analysis.synthesis(u))
        self._x += image
        self._size += (image * residual).sum()
        self._analysis += steps.analysis.outer(u, residual)
        if z is None:
            return None
        self._atoms -= steps.dictionary.outer(z, image)
        return steps.dictionary.analysis(image * -steps.size).add_(u)

    def gradients(self, *, of_x=True, of_step=True):
        """Return the derivatives in the atoms, those of the analysis, the data and the step.

        The last two may be None where they are not asked for.
        """
        size = self.steps.size
        return size * self._atoms, size * self._analysis, size * self._x, self._size
