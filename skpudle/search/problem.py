"""The input of a search: the data, and the objective of the lasso with its options.

`Problem` holds rows of data. Its subclass `skpudle.search.conv_problem.ConvProblem` holds images.
The functions of `skpudle.search` work for both, because both classes have the same members:
``epoch`` solves for the codes of given atoms, ``first_codes`` and ``no_codes`` return codes to
start from, ``thinned`` draws a sample of the data, ``of_rows`` selects samples, ``hide`` makes
held-out data of them, ``project`` returns the nearest atoms that satisfy the constraints, and
``total`` adds up sums over processes. A *sample* is a row or an image.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from skpudle._operators._atoms import project_atoms
from skpudle._rows import Rows, draw_rows, own
from skpudle.lasso import solve_lasso
from skpudle.search._device_epoch import DeviceEpoch
from skpudle.search._epoch import Codes, Epoch
from skpudle.search.held_out import HeldOut, HeldRows

# The default penalty is this factor times the root mean square norm of the nonzero samples. With
# this factor the search finds all atoms of five synthetic problems, and on real data at most 14 %
# of the entries of codes are nonzero (benchmarks/constants.py default-penalty). With half of it the
# search finds 95 % of 60 atoms at 5 dB. A penalty proportional to the median correlation of samples
# would not depend on outliers. But among patches of images a few have most of the energy (the sum
# of squares), and with 0.1 times the median 26 % of the entries of their codes would be nonzero.
_ALPHA = 0.07
# Types of devices on which a `DeviceEpoch` can run; data on other devices are copied to the CPU.
# PyTorch calls AMD's ROCm "cuda", too. Apple's MPS is left out, because it cannot solve batches of
# linear systems.
_DEVICES = {"cuda"}


@dataclass(frozen=True, eq=False)
class Problem(Rows):
    """The rows of a search, in the dtype and on the device of its epochs, and the objective.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data, with any number in missing entries. Data on a CUDA device are searched there, in their
        own dtype. Otherwise data are on the CPU, where compiled loops compute in float64 and
        convert data as they read them.
    alpha : float
        Penalty of the lasso, in the units of ``x``.
    positive_code, positive_atoms : bool
        Whether codes and atoms are non-negative.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 for known entries, 0 for missing ones.
    total : callable, default=own
        ``total(*tensors)`` returns their sums over all processes, each of which has other samples.
        The default is for a single process.
    unit : float, default=1.0
        The user's data and penalty have been divided by this number. The losses that a search
        reports are in the user's units.
    held_out : HeldOut, default=None
        Rows that are not trained on; see `held_out.hold_out`. By them a search chooses its
        penalty, and whether to free atoms of the lasso's bias. ``alpha`` is then the first penalty
        that the search tries.
    held_rows : Tensor of shape (n_samples,), bool, default=None
        True for the rows of ``x`` that are held out. Only in the polish, the last stage of a
        search, atoms also adapt to these rows.
    weight : Tensor of shape (n_samples,), default=None
        The weight of each sample in sums over samples; None is 1. A weight multiplies the whole
        objective of its sample, so it does not change the codes.
    has_baseline : bool, default=False
        Whether a baseline, the same for all rows, has been subtracted from the data. The polish
        then improves the baseline.
    baseline : Tensor of shape (n_features,), default=None
        What the polish has subtracted from ``x`` in addition. Each epoch of descent adds the mean
        residual to it. None outside of the polish, or without a baseline.
    """

    x: Tensor
    alpha: float
    positive_code: bool = False
    positive_atoms: bool = False
    mask: Tensor | None = None
    total: Callable = own
    unit: float = 1.0
    held_out: HeldOut | None = None
    held_rows: Tensor | None = None
    weight: Tensor | None = None
    has_baseline: bool = False
    baseline: Tensor | None = None
    # The last sample that `thinned` has drawn, under the key (stride, takes_all), see `_draw`:
    # searches at several penalties take the same sample. The cache changes no result, so the class
    # is still frozen.
    _sample: dict = field(default_factory=dict, init=False, repr=False)

    n_positions = (
        1  # number of positions of an atom in a row; in an image there are more
    )

    def __post_init__(self):
        """Convert data, mask and weight for epochs, and set missing entries of ``x`` to 0.

        Data on the CPU keep float32 or float64, and their mask and weights become float64. Data on
        a CUDA device stay there, with mask and weights in the dtype of the data.
        """
        x = self.x.detach()
        x = x if x.device.type in _DEVICES else x.cpu()
        x = x if x.dtype in (torch.float32, torch.float64) else x.double()
        dtype = torch.float64 if x.device.type == "cpu" else x.dtype
        for name in ("mask", "weight"):
            tensor = getattr(self, name)
            if tensor is not None:
                tensor = tensor.detach().to(x.device).to(dtype).contiguous()
                object.__setattr__(self, name, tensor)
        x = x if self.mask is None else torch.where(self.mask > 0, x, 0.0)
        object.__setattr__(self, "x", x.contiguous())

    @classmethod
    def in_unit(cls, x: Tensor, alpha: float, unit: float, **options: Any) -> Self:
        """Return the problem of data and penalty divided by ``unit``, to keep squares in range.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)
            Data in the user's units.
        alpha : float
            Penalty in the user's units.
        unit : float
            A power of two near the size of the data, so that the division has no rounding errors.
        **options
            Further arguments of the class.

        Returns
        -------
        Problem
            The problem, with ``unit`` as its attribute; results are multiplied by it for the user.
        """
        x = x if unit == 1 else x.double() / unit
        return cls(x, alpha / unit, unit=unit, **options)

    def thinned(
        self,
        stride: int,
        *,
        with_held_rows: bool = True,
        alpha: float | None = None,
    ) -> Self:
        """Return the problem of a sample of the data, on which an epoch takes less time.

        Parameters
        ----------
        stride : int
            One in ``stride`` samples is drawn, by `draw_rows`, the same samples in every call.
        with_held_rows : bool, default=True
            Whether to draw from all samples. Otherwise only samples that are not held out are
            drawn.
        alpha : float, default=None
            Penalty of the result; None is the penalty of this problem.

        Returns
        -------
        Problem
            The problem of the sample. It has no held-out samples, unless it is this problem itself:
            for a stride of 1, all samples and the same penalty.
        """
        alpha = self.alpha if alpha is None else alpha
        takes_all = with_held_rows or self.held_rows is None
        if takes_all and stride == 1:
            part = self
        else:
            part = self._draw(stride, takes_all)
        if alpha == part.alpha:
            return part
        return replace(part, alpha=alpha, held_out=None, held_rows=None)

    def _draw(self, stride: int, takes_all: bool) -> Self:
        """Draw one in ``stride`` samples for `thinned`; the last sample drawn is kept.

        With ``takes_all`` samples are drawn from all, otherwise only from samples that are not held
        out. In a problem with weights the number of draws of a sample becomes its weight.
        """
        key = (stride, takes_all)
        if key not in self._sample:
            rows = torch.arange(len(self.x))
            if not takes_all:
                rows = rows[~self.held_rows]
            weight = None if self.weight is None else self.weight[rows]
            drawn, weight = draw_rows(len(rows), -(-len(rows) // stride), weight)
            part = replace(self.of_rows(rows[drawn]), weight=weight)
            self._sample.clear()
            self._sample[key] = part
        return self._sample[key]

    def of_rows(self, rows: Tensor) -> Self:
        """Return the problem of the chosen samples alone, without held-out samples.

        ``rows`` is a mask, numbers or a slice of samples.
        """
        return replace(
            self,
            x=self.x[rows],
            mask=None if self.mask is None else self.mask[rows],
            weight=None if self.weight is None else self.weight[rows],
            held_out=None,
            held_rows=None,
        )

    def hide(self, n_codings: int | None = None) -> HeldRows:
        """Return the rows as held-out data, whose entries are hidden in turn to judge atoms.

        ``n_codings`` is the least number of codings of a prediction, where a coding is a row with
        one group of features hidden; None chooses it from the data (`count_codings`).
        """
        return HeldRows(self, n_codings)

    def around(self, baseline: Tensor) -> Self:  # (n_features,)
        """Return the problem with a baseline subtracted from ``x``.

        In the polish, the last stage of a search, each epoch subtracts its mean residual in this
        way, so that the baseline improves. ``baseline`` is added to the attribute ``baseline``.
        ``held_out`` has data of its own, from which nothing is subtracted.
        """
        before = torch.zeros_like(baseline) if self.baseline is None else self.baseline
        return replace(self, x=self.x - baseline.to(self.x), baseline=before + baseline)

    def no_codes(self) -> Codes:
        """Return codes that are zero for all samples, to start an epoch from."""
        return Codes.none(len(self.x))

    def first_codes(self, atoms: Tensor) -> Codes:
        """Return the codes that descent starts from: solved for few atoms, zeros for many.

        Atoms (n_components, n_features) are few if they are at most a quarter of the number of
        features. Few atoms may be nearly collinear, such as the sources of mixtures, and from zero
        codes the first epochs move collinear atoms away from the sources: in mixtures the angle
        between true and found atoms grew from 0.3 to 31 degrees in three epochs.
        """
        are_few = 4 * len(atoms) <= self.x.shape[1] and self.x.device.type == "cpu"
        if not are_few or not len(self.x):
            return self.no_codes()
        codes, _ = solve_lasso(
            atoms,
            self.x.double(),
            self.alpha,
            positive=self.positive_code,
            mask=self.mask,
            certify=False,
        )
        return Codes.of_dense(codes)

    def epoch(
        self,
        atoms: Tensor,
        codes: Codes,
        *,
        refit: bool = False,
        turn: int | None = None,
    ) -> Epoch | DeviceEpoch:
        """Improve the codes of given atoms, the first half of an epoch.

        Parameters
        ----------
        atoms : Tensor of shape (n_components, n_features)
            Atoms of norm 1.
        codes : Codes
            Codes of the samples to start from.
        refit : bool, default=False
            Whether atoms adapt to least squares on the supports of the codes, instead of to the
            codes.
        turn : int, default=None
            0 or 1: on a CPU, new atoms enter the codes of one half of the rows only: of the one
            half with 0, of the other with 1. The product of all residuals with all atoms selects
            new atoms, and turns save half of this product and of the descent on new codes. The
            searches of benchmarks/bench_learners.py take 0.92 of the time without turns in the
            median, for the same errors, and a search for 2,048 atoms of 128 features 0.84.

        Returns
        -------
        Epoch or DeviceEpoch
            The data with the new codes; its `improved_atoms` is the second half of the epoch.
        """
        if self.x.device.type != "cpu":
            return DeviceEpoch(self, atoms, codes, refit=refit)
        return Epoch(self, atoms, codes, refit=refit, turn=turn)

    @cached_property
    def squares(self) -> Tensor:  # (n_samples,)
        """The sum of squares of each sample, in float64 on the CPU."""
        dtype = torch.float64 if self.x.device.type == "cpu" else self.x.dtype
        norms = torch.linalg.vector_norm(self.x, dim=1, dtype=dtype)
        return norms.cpu().double().square()

    def project(self, atoms: Tensor) -> Tensor:  # (p, n_features) -> the same
        """Return the nearest atoms of norm 1, non-negative with ``positive_atoms``."""
        return project_atoms(atoms, positive=self.positive_atoms)


def auto_alpha(
    x: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None
) -> float:
    """Return the default penalty of a search, which gives sparse codes and loses no atoms.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 for known entries, 0 for missing ones.
    weight : Tensor of shape (n_samples,), default=None
        The weight of each sample; None is 1.

    Returns
    -------
    float
        0.07 times the root mean square norm of the samples that are not zero, in the units of
        ``x``; 1 if all samples are zero.
    """
    # the penalty 0 has no effect: only the sums of squares and weights of the problem are used
    problem = Problem(x, 0.0, mask=mask, weight=weight)
    squares = problem.squares
    energy = problem.weigh(squares).sum()
    n = problem.weigh((squares > 0).double()).sum()
    return _ALPHA * float(energy / n) ** 0.5 if n > 0 else 1.0
