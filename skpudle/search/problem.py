"""Rows of data with an objective: what a search computes with.

A `Problem` has rows, a `skpudle.search._conv_epoch.ConvProblem` has images. The functions of
`skpudle.search` use only members that both have: ``epoch`` returns the data with codes for given
atoms, ``first_codes`` and ``no_codes`` the codes to begin with, ``thinned`` a sample of the rows at
a penalty, ``of_rows`` some of the rows, ``project`` the nearest atoms that satisfy the constraints,
and ``total`` adds up sums of all processes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from skpudle._operators._atoms import project_atoms
from skpudle.lasso import solve_lasso
from skpudle.search._device_epoch import DeviceEpoch
from skpudle.search._epoch import MANY, Codes, Epoch, draw_rows, own

# The usual penalty is this number times the root mean square norm of the samples that are not zero.
# With it the search finds all atoms of seven synthetic problems, and on real data at most 0.15 of
# the entries of codes are nonzero (benchmarks/choose_search.py). A penalty in proportion to the
# median correlation of samples would tolerate outliers. But in patches few samples hold the energy,
# and with a penalty from the median 0.34 of the entries would be nonzero.
_ALPHA = 0.07
# Types of devices that can run a `DeviceEpoch`. ROCm counts as "cuda". MPS cannot solve batches of
# linear systems.
_DEVICES = {"cuda"}


@dataclass(frozen=True, eq=False)
class Problem:
    """Rows of data in the form that epochs compute with, and the objective.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data, with any number in missing entries. Data on a CUDA device are searched there, in their
        own dtype. Otherwise data are on the CPU, where compiled loops compute in float64 and
        convert data as they read them.
    alpha : float
        Penalty.
    positive_code, positive_atoms : bool
        Whether codes and atoms are non-negative.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 for known entries, 0 for missing ones.
    total : callable, default=own
        ``total(*tensors)`` returns their sums over processes that have other samples.
    unit : float, default=1.0
        The user's data and penalty have been divided by this number. The losses that a search
        reports are in the user's units.
    held_out : HeldOut, default=None
        Held-out rows, by which a search chooses its penalty and whether atoms are freed of the
        lasso's bias; see `hold_out`. ``alpha`` is then the first penalty that the search tries.
    held_rows : Tensor of shape (n_samples,), bool, default=None
        True for the rows of ``x`` that are held out; at the end of a search the atoms adapt to
        these rows, too.
    weight : Tensor of shape (n_samples,), default=None
        How often each sample counts in sums over samples; None is once. A weight multiplies the
        whole objective of its sample, so it does not change the codes.
    has_baseline : bool, default=False
        Whether a baseline, the same for all rows, has been subtracted from the data. The polish at
        the end of a search then improves the baseline.
    baseline : Tensor of shape (n_features,), default=None
        What the polish has subtracted from the data in addition. Each epoch of descent changes it
        by the mean residual.
    """

    x: Tensor
    alpha: float
    positive_code: bool = False
    positive_atoms: bool = False
    mask: Tensor | None = None
    total: Callable = own
    unit: float = 1.0
    held_out: Any = None
    held_rows: Tensor | None = None
    weight: Tensor | None = None
    has_baseline: bool = False
    baseline: Tensor | None = None
    # the last problem that `thinned` has made, by its stride and ``whole``
    _thinned: dict = field(default_factory=dict, init=False, repr=False)

    n_positions = 1  # an atom has one position in a row, and many in an image

    def __post_init__(self):
        """Bring data, mask and weights to the devices and dtypes of epochs, with 0 in gaps."""
        x = self.x.detach()
        x = x if x.device.type in _DEVICES else x.cpu()
        x = x if x.dtype in (torch.float32, torch.float64) else x.double()
        dtype = torch.float64 if x.device.type == "cpu" else x.dtype
        for name in ("mask", "weight"):
            if (given := getattr(self, name)) is not None:
                given = given.detach().to(x.device).to(dtype).contiguous()
                object.__setattr__(self, name, given)
        x = x if self.mask is None else torch.where(self.mask > 0, x, 0.0)
        object.__setattr__(self, "x", x.contiguous())

    @classmethod
    def in_unit(cls, x: Tensor, alpha: float, unit: float, **options: Any) -> Self:
        """Return the problem of data and a penalty divided by ``unit``, a power of two.

        ``options`` are further arguments of the class.
        """
        x = x if unit == 1 else x.double() / unit
        return cls(x, alpha / unit, unit=unit, **options)

    def thinned(
        self, stride: int | tuple[int, ...], *, whole: bool = True, alpha: float | None = None
    ) -> Self:
        """Return the problem of one in ``stride`` samples, with the penalty ``alpha`` if given.

        `draw_rows` draws the samples: from all samples if ``whole``, and otherwise from the samples
        that are not held out. Only this problem itself, for a stride of 1 and its own penalty,
        keeps its held-out samples.
        """
        whole, alpha = whole or self.held_rows is None, self.alpha if alpha is None else alpha
        if whole and stride == 1:
            part = self
        elif (part := self._thinned.get((stride, whole))) is None:
            rows = torch.arange(len(self.x)) if whole else (~self.held_rows).nonzero().flatten()
            weight = None if self.weight is None else self.weight[rows]
            drawn, weight = draw_rows(len(rows), -(-len(rows) // stride), weight)
            part = replace(self.of_rows(rows[drawn]), weight=weight)
            self._thinned.clear()
            self._thinned[stride, whole] = part
        if alpha == part.alpha:
            return part
        return replace(part, alpha=alpha, held_out=None, held_rows=None)

    def of_rows(self, rows: Tensor) -> Self:  # a mask, indices or a slice
        """Return the problem of the chosen samples, which holds out no samples."""
        parts = {name: getattr(self, name) for name in ("mask", "weight")}
        parts = {name: part if part is None else part[rows] for name, part in parts.items()}
        return replace(self, x=self.x[rows], **parts, held_out=None, held_rows=None)

    def around(self, baseline: Tensor) -> Self:  # (n_features,)
        """Return the problem after a baseline has been subtracted from ``x``.

        ``held_out`` has data of its own, which do not change.
        """
        before = torch.zeros_like(baseline) if self.baseline is None else self.baseline
        return replace(self, x=self.x - baseline.to(self.x), baseline=before + baseline)

    @property
    def known(self) -> Tensor:  # of the shape of the data
        """A mask of 1 for known entries and 0 for missing ones, also if no entry is missing."""
        return self.x.new_ones(()).expand_as(self.x) if self.mask is None else self.mask

    @property
    def total_weight(self) -> float:
        """The sum of the weights of this process's samples."""
        return float(len(self.x) if self.weight is None else self.weight.sum())

    def weighted(self, values: Tensor) -> Tensor:  # (n_samples, ...) -> the same
        """Return values times the weights of their samples."""
        if self.weight is None:
            return values
        return values * self.weight.to(values).view(-1, *[1] * (values.ndim - 1))

    def no_codes(self) -> Codes:
        """Return codes that are zero for all samples."""
        return Codes.none(len(self.x))

    def first_codes(self, atoms: Tensor) -> Codes:
        """Return codes to begin with: the lasso's solution for few atoms, otherwise zeros.

        Atoms are few if they are at most a quarter of the number of features. Few atoms may be
        nearly collinear, for example the sources of mixtures. Codes that are not solved would lead
        descent away from collinear atoms: in mixtures the angle between true and found atoms grew
        from 0.3 to 31 degrees in three epochs.
        """
        is_small = 4 * len(atoms) <= self.x.shape[1] and self.x.device.type == "cpu"
        if not is_small or not len(self.x):
            return self.no_codes()
        options = dict(positive=self.positive_code, mask=self.mask, certify=False)
        return Codes.of_dense(solve_lasso(atoms, self.x.double(), self.alpha, **options)[0])

    def epoch(
        self, atoms: Tensor, codes: Codes, *, refit: bool = False, turn: int | None = None
    ) -> Epoch | DeviceEpoch:
        """Solve for the codes of given atoms, starting from ``codes``; return the coded data.

        On a CPU, with 1,024 atoms or more, a ``turn`` of 0 or 1 lets new atoms enter the codes of
        one half of the rows only. New atoms are selected by the product of residuals with atoms,
        which takes half the time of an epoch, and turns save half of the product. A search for
        2,048 atoms of 128 features takes 0.84 of the time that it takes without turns.
        """
        if self.x.device.type != "cpu":
            return DeviceEpoch(self, atoms, codes, refit=refit)
        return Epoch(self, atoms, codes, refit=refit, turn=turn if len(atoms) >= MANY else None)

    @cached_property
    def squares(self) -> Tensor:  # (n_samples,)
        """The sum of squares of each sample."""
        dtype = torch.float64 if self.x.device.type == "cpu" else self.x.dtype
        return torch.linalg.vector_norm(self.x, dim=1, dtype=dtype).cpu().double().square()

    def project(self, atoms: Tensor) -> Tensor:  # (p, n_features) -> the same
        """Return the nearest atoms of norm 1, non-negative if ``positive_atoms``."""
        return project_atoms(atoms, positive=self.positive_atoms)


def auto_alpha(
    x: Tensor, *, mask: Tensor | None = None, total: Callable = own, weight: Tensor | None = None
) -> float:
    """Return a penalty that gives sparse codes and loses no atoms.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 for known entries, 0 for missing ones.
    total : callable, default=own
        ``total(*tensors)`` returns their sums over processes that have other samples.
    weight : Tensor of shape (n_samples,), default=None
        How often each sample counts; None is once.

    Returns
    -------
    float
        0.07 times the root mean square norm of the samples that are not zero. If all samples are
        zero, any penalty will do, and it is 1.
    """
    problem = Problem(x, 0.0, mask=mask, weight=weight)
    squares = problem.squares
    sums = (problem.weighted(part).sum() for part in (squares, (squares > 0).double()))
    squares, n = total(*(part.reshape(1) for part in sums))
    return _ALPHA * float(squares / n) ** 0.5 if n > 0 else 1.0
