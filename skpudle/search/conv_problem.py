"""The input of a search for atoms of images, and codes of images at a given penalty.

`ConvProblem` is `skpudle.search.problem.Problem` for images.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch

from skpudle._operators._atoms import project_atoms
from skpudle.search._conv_epoch import MOST_EFFORT, SOLVED, ConvEpoch
from skpudle.search.held_out import HeldTiles
from skpudle.search.problem import Problem


@dataclass(frozen=True, eq=False)
class ConvProblem(Problem):
    """The images of a search, all of one size, and the objective.

    Parameters
    ----------
    x : Tensor of shape (n_images, n_channels, *size)
        Data, with any number in missing pixels; ``size`` has one axis for signals, two for pictures
        and three for volumes. Data become float64 on the CPU, for compiled loops.
    alpha, positive_code, mask, unit, held_out, held_rows
        As in `skpudle.search.Problem`, with images for rows: the penalty, whether codes are
        non-negative, 1 for known pixels, the number by which the user's data have been divided,
        held-out images, and the mask of the held-out images.
    kernel, stride : tuple of int
        Size of an atom, and distance of neighbouring positions of an atom, in pixels, each with a
        number for each axis of ``size``.
    rank : {1, None}, default=None
        1: each atom is an outer product of a map, one number for each channel, and one waveform.
        None: atoms have any shape.
    """

    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    rank: int | None = None

    def __post_init__(self):
        """Convert images to float64 on the CPU, with 0 in missing pixels."""
        object.__setattr__(self, "x", self.x.to("cpu", torch.float64))
        super().__post_init__()

    @cached_property
    def positions(self):  # -> tuple of int
        """The numbers of positions of an atom along the axes of an image."""
        axes = zip(self.x.shape[2:], self.kernel, self.stride, strict=True)
        return tuple((n - k) // s + 1 for n, k, s in axes)

    @property
    def n_positions(self):  # -> int
        """The number of positions of an atom in an image."""
        return prod(self.positions)

    def first_codes(self, atoms):  # -> Codes
        """Return the codes that descent starts from: zeros, for any atoms."""
        return self.no_codes()

    def epoch(self, atoms, codes, *, turn=None, **options):  # -> ConvEpoch
        """Improve the codes of given atoms, the first half of an epoch; return data with codes.

        ``atoms`` (n_components, n_channels, *kernel), the `Codes` to start from and the
        ``options`` go to `ConvEpoch`. ``turn`` has no effect: it saves time for rows, see
        `Problem.epoch`.
        """
        return ConvEpoch(self, atoms, codes, **options)

    def hide(self):  # -> HeldTiles
        """Return crops of the images as held-out data, whose pixels are hidden in turn."""
        return HeldTiles(self)

    def project(self, atoms):  # (p, n_channels, *kernel) -> the same
        """Return the nearest atoms of norm 1, and of rank one if ``rank`` is 1."""
        return project_atoms(atoms, rank=self.rank)


def conv_codes(dictionary, x, *, alpha, positive_code=False, debias=0.0, mask=None,
               tolerance=SOLVED):  # fmt: skip
    """Solve the lasso for the codes of images, as `transform` needs them.

    Parameters
    ----------
    dictionary : ConvDictionary
        Atoms of any norm, for signals, pictures or volumes.
    x : Tensor of shape (n, n_channels, *size)
        Data; the positions of atoms must reach the last pixel of each axis.
    alpha : float
        Penalty, more than 0.
    positive_code : bool, default=False
        Whether codes are non-negative.
    debias : float, default=0.0
        Part of the lasso's bias to remove, from 0 to 1, as in `skpudle.lasso.solve_lasso`: codes
        move by this part of the way to least squares on their support, among codes of the same
        signs.
    mask : Tensor of the shape of ``x``, default=None
        1 for known pixels, 0 for missing ones.
    tolerance : float, default=1e-8
        The largest violation of the optimality conditions, as a fraction of ``alpha``.

    Returns
    -------
    codes : Tensor of shape (n, n_components, *positions)
        The codes at all positions, with the dtype and on the device of the data.
    solved : ndarray of bool of shape (n,)
        True where the lasso's codes of an image meet the optimality conditions to the tolerance.

    Raises
    ------
    ValueError
        If the positions of atoms leave out the last pixels of an axis.
    """
    atoms = dictionary.atoms.detach().to("cpu", torch.float64)
    problem = ConvProblem(
        x,
        alpha,
        positive_code,
        mask=None if mask is None else mask.expand_as(x),
        kernel=tuple(atoms.shape[2:]),
        stride=dictionary.strides,
    )
    epoch = problem.epoch(
        atoms, problem.no_codes(), effort=MOST_EFFORT, tolerance=tolerance
    )
    shape = (len(atoms), *dictionary.positions(x.shape[2:]))
    z = epoch.codes.dense(prod(shape))
    if debias:
        refits = epoch.refit_codes(tolerance)
        z = torch.lerp(z, refits.dense(prod(shape)), debias)
    return z.unflatten(1, shape).to(x), epoch.solved
