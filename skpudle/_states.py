"""What fits keep of a search or of a stream: plain values that need no module of the search.

Fitted learners and checkpoints hold them: predictions of held-out data, the penalties and numbers
of atoms that were tried, the chosen penalty of codes, and the states of a search and of a stream.
"""

from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Prediction(NamedTuple):
    """The errors of a prediction of hidden entries, from codes at one penalty.

    Attributes
    ----------
    errors : Tensor of shape (n_parts,)
        The sum of squared errors of the hidden entries in each part (row, or tile of an image) of
        the data of this process, times the weight of the row.
    total : float
        The sum of the errors over all parts of all processes.
    index : int
        Index of the penalty of the codes: the penalty is ``2 ** (index / 2)`` times the penalty of
        the search, ``HeldOut.alpha``.
    debias : float
        The part of the lasso's bias that is removed from the codes, from 0 to 1.
    """

    errors: Tensor
    total: float
    index: int = 0
    debias: float = 0.0


class Trial(NamedTuple):
    """Atoms of a search at one penalty, and how well they predict held-out data.

    Attributes
    ----------
    alpha : float
        Penalty of the search, in the units of its problem.
    unbiased : bool
        Whether the prediction is by atoms that have been freed of the lasso's bias.
    prediction : Prediction
        The prediction of held-out data by ``judged``.
    atoms : Tensor of shape (n_components, ...), default=None
        The atoms of the search, which minimise the lasso's objective.
    judged : Tensor of shape (n_components, ...), default=None
        The atoms that predict: ``atoms``, or ``atoms`` freed of the lasso's bias.
    """

    alpha: float
    unbiased: bool
    prediction: Prediction
    atoms: Tensor | None = None
    judged: Tensor | None = None


class PenaltyPath(NamedTuple):
    """The penalties that a search tried, in the order of the trials, for users to inspect.

    Attributes
    ----------
    alpha : Tensor of shape (n_trials,)
        Penalties.
    score : Tensor of shape (n_trials,)
        R^2 against zeros: the fraction of the energy (the sum of squares) of the hidden entries
        that the prediction explains.
    unbiased : Tensor of shape (n_trials,), bool
        Whether the prediction is by atoms that have been freed of the lasso's bias.
    tolerance : Tensor of shape (n_trials,)
        Two standard errors of the score. A smaller score may be due to chance.
    """

    alpha: Tensor
    score: Tensor
    unbiased: Tensor
    tolerance: Tensor


class SizePath(NamedTuple):
    """The numbers of atoms that were tried, with their predictions, for users to inspect.

    Attributes
    ----------
    n_components : Tensor of shape (n_sizes,)
        Numbers of atoms, in increasing order.
    score : Tensor of shape (n_sizes,)
        R^2 of the predicted hidden entries of held-out data, against column means for rows and
        against zeros for images.
    objective : Tensor of shape (n_sizes,)
        Mean lasso objective of a row of the training data, in the user's units.
    tolerance : Tensor of shape (n_sizes,)
        The difference from the best score that counts as chance: its standard error, at least
        0.001.
    """

    n_components: Tensor
    score: Tensor
    objective: Tensor
    tolerance: Tensor


class FactorScore(NamedTuple):
    """How well a factor model predicts the hidden entries by which a search judged its atoms.

    Attributes
    ----------
    n_factors : int
        The number of factors: one for an atom, but at most one for two features.
    score, atoms_score, dense_score : float
        R^2 against zeros of the predictions by these factors, by atoms, and by one factor for two
        features: the fraction of the energy of the hidden entries that is explained.
    is_better : bool
        Whether factors predict better than atoms by more than two standard errors.
    """

    n_factors: int
    score: float
    atoms_score: float
    dense_score: float
    is_better: bool


class Coding(NamedTuple):
    """The penalty of codes that `transform` uses, and what codes at this penalty are like.

    Attributes
    ----------
    alpha : float
        Penalty of the lasso, in the units of the problem or, after `in_units`, of the user.
    debias : float
        Part of the lasso's bias to remove, from 0 to 1: codes move by this part of the way from
        the lasso's codes towards least squares on their support.
    n_entries : float
        Mean number of nonzero codes in a row; None unless the user has asked for a number.
    noise_std : float
        Standard deviation of the noise, estimated from residuals; None if it is unknown.
    """

    alpha: float
    debias: float
    n_entries: float | None = None
    noise_std: float | None = None

    def in_units(self, unit):  # -> Coding
        """Return the coding in the user's units, for data that were divided by ``unit``."""
        return self._replace(alpha=self.alpha * unit, noise_std=self.noise_std * unit)


@dataclass(frozen=True, eq=False)
class SearchState:
    r"""The state of a search after an epoch, or its result.

    Attributes
    ----------
    stage : str
        Name of the present stage: "settle", "split and remove", "penalty", "polish" or "done".
    coded : Epoch, DeviceEpoch or ConvEpoch
        Data with codes from the last epoch that had ``n_components`` atoms. For a finished search:
        from the epoch of the polish with the least objective.
    atoms : Tensor of shape (n_components, ...)
        The atoms of ``coded``, of norm 1.
    alpha : float
        The penalty at which the atoms were found, in the units of the problem.
    losses : tuple of float
        The mean over samples of :math:`\frac12 \|x - z D\|^2` in every epoch, in the user's units.
    path : PenaltyPath, default=None
        All penalties that were tried so far, in the user's units. None without trials.
    trial : Trial, default=None
        From the polish on: the trial of the chosen penalty. None without held-out rows.
    stride : int, default=1
        From the polish on: the atoms adapt to one in ``stride`` samples.
    problem : Problem or ConvProblem
        Data and objective of the search, with the held-out rows.
    """

    stage: str
    coded: Any
    atoms: Tensor
    alpha: float
    losses: tuple = ()
    path: PenaltyPath | None = None
    trial: Trial | None = None
    stride: int = 1
    problem: Any = None


class Held(NamedTuple):
    """What a stream remembers of earlier rows: the atoms, and how much earlier rows need each atom.

    It acts on the next block as a penalty on steps away from ``atoms``: for each atom half of its
    ``energy`` times the squared step.

    Attributes
    ----------
    atoms : Tensor of shape (n_atoms, n_features)
        Unit atoms after the earlier rows.
    energy : Tensor of shape (n_atoms,)
        For each atom the weighted sum of its squared codes in earlier rows.
    cost : Tensor of shape (n_atoms,)
        For each atom the weighted sum, over earlier blocks, of the rise of the objective if the
        atom were removed.
    """

    atoms: Tensor
    energy: Tensor
    cost: Tensor

    def penalty_sums(self, atoms, part):  # -> (n, n_features), (n, n)
        """Return what the penalty on steps adds to the sums by which a block of atoms improves.

        `Epoch.improved_atoms` calls it. The block is the slice ``part`` of ``n`` of the ``atoms``
        (n_atoms, n_features), called ``D``. A sweep over the block (`_compiled.sweep`) minimises by
        means of ``B - A D`` and ``A``, where ``A = Z^T Z`` and ``B = Z^T X`` for rows ``X`` with
        codes ``Z``. The first result (n, n_features) is added to the block's rows of ``B - A D``,
        the second (n, n) to the block's diagonal block of ``A``.
        """
        energy = self.energy[part]
        step = self.atoms[part] - torch.as_tensor(atoms[part])
        return energy[:, None] * step, energy.diag()

    def penalty_of_step(self, atoms):  # (n_atoms, n_features) -> float
        """Return the penalty for the step from the earlier atoms to ``atoms``.

        The penalty estimates by how much the objective of earlier rows rises. `_play_round`
        subtracts the rise from the gain of a round, so that earlier rows do not lose more by the
        round than the block gains.
        """
        return float(0.5 * (self.energy * (atoms - self.atoms).square().sum(1)).sum())

    def extended(self, atoms):  # (n, n_features) -> Held
        """Return a `Held` with new ``atoms`` appended, whose steps cost nothing.

        Earlier rows have not used the new atoms, so their energies and costs are zero.
        """
        zeros = self.energy.new_zeros(len(atoms))
        return Held(
            atoms=torch.cat([self.atoms, atoms]),
            energy=torch.cat([self.energy, zeros]),
            cost=torch.cat([self.cost, zeros]),
        )

    def of_atoms(self, kept):  # (n_atoms,) bool -> Held
        """Return a `Held` of the atoms that ``kept`` marks, with their energies and costs."""
        return Held(self.atoms[kept], self.energy[kept], self.cost[kept])


class StreamState(NamedTuple):
    """State of a stream between two blocks, which `advance_stream` takes and returns.

    Attributes
    ----------
    held : Held
        The atoms, and how much earlier rows need each of them.
    weight : float
        Sum of the present weights of the rows so far; a row loses weight when later rows come.
    n_rows : float
        Number of rows so far in all processes, each as often as its sample weight says.
    mean : float
        Mean objective of a row, over all rows so far, each taken before the atoms adapted to its
        block.
    n_splits : int
        Rounds add new atoms to leave local minima, and remove as many. This is the largest number
        that the next round adds; 0 if rounds have ended, until the objective of a block is well
        above that of earlier blocks.
    n_blocks : int
        Number of blocks so far.
    loss : float
        Mean over the rows of the last block of half the squared residual.
    """

    held: Held
    weight: float = 0.0
    n_rows: float = 0.0
    mean: float = inf
    n_splits: int = 1
    n_blocks: int = 0
    loss: float = 0.0

    @property
    def atoms(self):
        """The atoms after the last block, of shape (n_atoms, n_features)."""
        return self.held.atoms
