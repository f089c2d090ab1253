"""The plan of a fit of rows: what the parameters decide before any data are read.

A `Plan` decides whether the fit searches and trains, and makes the model, the optimiser and the
batches of training. A parameter that the user names has its effect; "auto" leaves the decision to
the plan or to the data. A `skpudle._fit.fitted.Fitted` holds the numbers that the data decide.
"""

from dataclasses import replace
from math import ceil

import numpy as np
import torch

from skpudle._data.arrays import mean_square, to_numpy, unit_of
from skpudle._data.foreign import given_atoms
from skpudle._fit.encoders import Codes, arrays_of, refuse
from skpudle._fit.fitted import Fitted, as_arrays
from skpudle._gradients import GRADIENT_RULES
from skpudle._initialization import initial_atoms
from skpudle._operators._atoms import DenseDictionary, atom_norms, project_atoms
from skpudle._optimizers import make_optimizer
from skpudle.encoding._unfold import default_step
from skpudle.search import Problem, auto_alpha

_OF_TRAINING = "optimizer", "learning_rate", "batch_size", "max_iter", "tol", "n_iter_no_change"
_OF_GRADIENTS = *_OF_TRAINING[:2], *_OF_TRAINING[4:], "step_size", "lambda_decay"
_TRAINS = "a setting that trains after the search, such as gradient='ae-ls' or supervision=0.5"

# Training by the surrogate optimiser after a search, with max_iter="auto": the least and the
# largest number of rows that count as an epoch, and the number of batches of an epoch. A batch has
# 64 to 256 rows.
_LEAST_ROWS, _MOST_ROWS, _BATCHES = 1024, 4096, 16


def directions(samples, *, positive):  # (n, n_features) -> the same
    """Return samples divided by their norms, with absolute values if ``positive``.

    A sample of zeros stays zero.
    """
    norms = atom_norms(samples)
    samples = samples / torch.where(norms > 0, norms, 1.0)
    return samples.abs() if positive else samples  # equal for x and -x


def choose_atoms(dict_init, n_components, x, generator, *, positive=False, weight=None):
    """Return initial atoms (n_components, n_features) within the constraints.

    ``dict_init`` is the name of an initialisation, or the atoms themselves. ``x`` (n_samples,
    n_features) are the data.
    """
    if isinstance(dict_init, str):
        n_components = x.shape[1] if n_components is None else n_components
        atoms = initial_atoms(x, n_components, dict_init, generator, weight=weight)
        atoms = directions(atoms, positive=positive)
    else:
        atoms = given_atoms(dict_init, n_components, x)
    return project_atoms(atoms, positive=positive)


class Plan(Codes):
    """The plan of a fit of a dictionary of rows, and the model that it trains.

    "Rows of parameters" are what training updates: the atoms, joined with what a subclass learns
    beside them: further rows (``axis`` 0), or columns (1).

    Attributes
    ----------
    gradient, name : str
        Name of the gradient of training, and that of training for users.
    searches, trains : bool
        Whether `fit` searches for the initial dictionary, and whether it then trains.
    alternates : bool
        Whether `partial_fit` alternates between codes and atoms, unless training is asked for.
    codes_follow_data : bool
        Whether the data choose the penalty of codes, as for converged ones.
    n_components : int or None
        Number of atoms, None where data decide.
    fit_intercept : bool or "auto"
        Whether rows have a baseline; "auto" lets the data decide.
    noise : str or list
        The noise of rows and features, see `skpudle.search.units`, or that of each feature.
    learns_noise : bool
        Whether a baseline or noise is learned or given.

    Raises
    ------
    ValueError
        If parameters contradict each other.
    """

    counts_events = False  # whether weights of rows are numbers of events, and have a unit
    alpha_share = 1.0  # alpha="auto", as a share of the search's penalty
    name_of_baseline = "intercept_"
    task, axis = None, 0

    def __init__(self, learner, **constants):
        super().__init__(learner, **constants)
        given = self.given
        self.searches = isinstance(given.dict_init, str) and given.dict_init == "search"
        noise, baseline = given.noise, given.fit_intercept
        baseline = baseline if baseline == "auto" else bool(baseline)  # numpy's booleans, too
        noise = noise if isinstance(noise, str) else [*noise]  # compares as a whole
        refuse(
            given.n_components == "auto" and not self.searches,
            "n_components='auto' needs a search. Pass dict_init='search', or a number of atoms.",
        )
        # The search is for the lasso's codes, which need no training.
        self.alternates = self.searches and given.gradient == "auto" and self.of_lasso
        # partial_fit trains by "dec", and then the encoder of separate_atoms for the atoms
        named = "dec" if given.separate_atoms else given.gradient
        usual = "dec" if self.alternates else "ae-ls"
        self.gradient = self.name = usual if named == "auto" else named
        if not self.searches:  # without a search "auto" means equal noise, and no baseline
            noise, baseline = "equal" if noise == "auto" else noise, baseline is True
        self.trains = not (self.alternates or given.separate_atoms)
        self.codes_follow_data = given.alpha == "auto" and self.of_lasso
        self.n_components = None if given.n_components == "auto" else given.n_components
        self.fit_intercept, self.noise = baseline, noise
        self.learns_noise = not (noise == "equal" and baseline is False)

    # ------------------------------------------------------------------ the model

    def join(self, fitted):  # -> Tensor
        """Return the rows of parameters of a record."""
        atoms, more = fitted.atoms, fitted.more
        return atoms if more is None else torch.cat([atoms, more], self.axis)

    def with_rows(self, fitted, rows):  # -> Fitted
        """Return the record with other rows of parameters."""
        if fitted.more is None:
            return replace(fitted, atoms=rows)
        n, n_more = rows.shape[self.axis], fitted.more.shape[self.axis]
        atoms, more = rows.split([n - n_more, n_more], self.axis)
        return replace(fitted, atoms=atoms, more=more)

    def decay_of(self, fitted, update):  # -> float
        """Return the decay of penalties in an update: a staircase of ten equal parts (figure 5)."""
        (first, last), n = self.decay, fitted.n_updates
        steps = np.linspace(last, first, min(10, n))[::-1]
        return float(steps[min(len(steps) * update // n, len(steps) - 1)])

    def network(self, fitted, update=0):  # -> rule, dictionary, options
        """Return the gradient rule, the dictionary, encoder and penalty of an update."""
        decay = self.decay_of(fitted, update)
        encoder = self.encoder(fitted.alpha, step_size=self.step_size, lambda_decay=decay)
        # The penalty of the last unfolding. That of hard thresholds has the derivative 0.
        is_hard = self.given.shrinkage == "hard"
        penalty = 0.0 if is_hard else fitted.alpha * decay ** (self.n_unfoldings - 1)
        # Other gradients than "dec" find no good atoms if training begins with samples as atoms.
        rule = GRADIENT_RULES["dec" if fitted.from_samples else self.gradient]
        return rule, DenseDictionary(fitted.atoms), dict(encoder=encoder, penalty=penalty)

    def replacements(self, fitted, samples):
        """Return rows of parameters for samples; missing entries, NaN, become zero."""
        return directions(samples.nan_to_num(), positive=self.given.positive_dict)

    def step(self, atoms):  # -> float
        """Return the step for these atoms."""
        known = self.step_size
        return float(default_step(DenseDictionary(atoms))) if known is None else known

    def attributes(self, fitted):  # -> dict
        """Return the fitted attributes that do not depend on the history of the fit."""
        noise, atoms, baseline = fitted.noise, fitted.atoms, 0.0
        alpha, debias, noise_std = fitted.coding or (fitted.alpha, self.debias or 0.0, None)
        if noise.intercept is not None:
            baseline = to_numpy(noise.intercept.to(atoms))
        if noise_std is not None and noise.scale is not None:
            noise_std = noise_std * to_numpy(noise.scale)
        return arrays_of(fitted.learned) | {
            "components_": to_numpy(noise.to_user(atoms)),
            self.name_of_baseline: baseline,
            "n_components_": len(atoms),
            "alpha_": alpha,
            "debias_": debias,
            "noise_std_": noise_std,
            "step_size_": self.step(atoms),
            "search_alpha_": fitted.search_alpha,
            "size_path_": as_arrays(fitted.size_path),
            "penalty_path_": as_arrays(fitted.searched and fitted.searched.path),
        }

    # ------------------------------------------------------------------ the first record

    def enter(self, samples, noise):  # -> Samples, Fitted
        """Return rows in units of their noise, and a record of them that has no atoms yet."""
        samples = samples.in_units(noise)
        x, mask, weight = samples.x, samples.mask, samples.weight
        scale, penalty = mean_square(x, weight), auto_alpha(x, mask=mask, weight=weight)
        return samples, Fitted(atoms=None, data_scale=scale, noise=noise, penalty=penalty)

    def begin(self, samples, fitted, generator):  # -> Fitted
        """Return the record of `enter` with initial atoms, and the penalty of codes for them.

        The atoms are the user's, samples, or the purest samples if samples are mixtures of few.
        """
        start, x = self.given.dict_init, samples.x
        if self.searches:
            start = "vertices" if self.mixes_few(self.n_components, x.shape[1]) else "data"
        generator.manual_seed(generator.initial_seed())  # rows in all units draw the same atoms
        how = dict(positive=self.given.positive_dict, weight=samples.weight)
        atoms = choose_atoms(start, self.n_components, x, generator, **how)
        return self.with_atoms(fitted, atoms)

    def with_atoms(self, fitted, atoms):  # -> Fitted
        """Return the record with other atoms, and the penalty of codes for them."""
        return replace(fitted, atoms=atoms, alpha=self.code_penalty(fitted, atoms))

    def code_penalty(self, fitted, atoms=None):  # -> float
        """Return the penalty or threshold of codes; "auto" follows from the search's."""
        if self.given.alpha != "auto":
            return float(self.given.alpha)
        if self.given.shrinkage != "hard":
            return self.alpha_share * fitted.penalty * fitted.unit
        # With the penalty b^2 / (2 s) per nonzero code an atom enters if its correlation exceeds b
        # / sqrt(s); with the lasso's if it exceeds alpha.
        return fitted.penalty * self.step(atoms) ** 0.5

    def search_penalty(self, fitted):  # -> float
        """Return the penalty of the search: the penalty of codes, if they are codes of a lasso."""
        of_lasso = self.given.shrinkage == "soft" and self.code_penalty(fitted)
        return of_lasso / fitted.unit or float(fitted.penalty)

    # ------------------------------------------------------------------ search and training

    def problem(self, samples, penalty=None, square=None, **others):  # -> Problem
        """Return the problem of a search in rows, divided by a unit.

        ``samples`` are rows in units of their noise. The unit follows from ``square``, by default
        the mean squared norm of the rows. ``penalty`` is in units of the rows; None is for problems
        whose penalty nobody reads.
        """
        unit = unit_of(mean_square(samples.x, samples.weight) if square is None else square)
        penalty = unit if penalty is None else penalty
        others |= dict(mask=samples.mask, weight=samples.weight)
        others |= dict(positive_atoms=self.given.positive_dict)
        others |= dict(positive_code=bool(self.given.positive_code))
        return Problem.in_unit(samples.x, penalty, unit, **others)

    def optimizer_for(self, n_rows):
        """Return the name or maker of the optimiser for a number of rows of parameters.

        "auto" is the surrogate while its matrix (n_rows, n_rows) is small.
        """
        # The surrogate's matrix of 4096 x 4096 entries takes 128 MiB in float64.
        default = "surrogate" if n_rows <= 4096 else "adam"
        return default if self.given.optimizer == "auto" else self.given.optimizer

    def make_optimizer(self, fitted):
        """Return the optimiser of the rows of parameters of a record."""
        rows, how = self.join(fitted), dict(learning_rate=self.given.learning_rate)
        how |= dict(data_scale=fitted.data_scale, curvature=fitted.curvature)
        how["n_free"] = len(rows) - len(fitted.atoms)
        n_features, positive = fitted.atoms.shape[1], self.given.positive_dict

        def project(rows):
            if rows.shape[1] == n_features:
                return project_atoms(rows, positive=positive)
            atoms, more = rows.tensor_split([n_features], 1)
            return torch.cat([project_atoms(atoms, positive=positive), more], 1)

        return make_optimizer(self.optimizer_for(len(rows)), rows, project, **how)

    def mixes_few(self, n_components, n_features):
        """Return whether rows are mixtures of few non-negative atoms, as spectra are."""
        # The purest rows of such mixtures are near the atoms, and make good initial atoms.
        positive = self.given.positive_code and self.given.positive_dict
        return positive and (n_components or n_features) <= 0.25 * n_features

    def adapts(self, n_components):
        """Return whether the surrogate trains this number of atoms after a search."""
        return self.searches and self.trains and self.optimizer_for(n_components) == "surrogate"

    def batch_size(self, n_samples=None):
        """Return the size of a batch, in a fit for a number of samples, if it is known."""
        if self.given.batch_size != "auto":
            return int(self.given.batch_size)
        if n_samples and self.adapts(self.n_components or 1):
            return min(max(n_samples // _BATCHES, _LEAST_ROWS // _BATCHES), _MOST_ROWS // _BATCHES)
        return _MOST_ROWS // _BATCHES

    def n_updates(self, n_batches, batch_size, data):
        """Return the number of updates that training may take."""
        n_features = data.samples.x.shape[1]
        n_components = self.n_components or n_features
        if self.given.max_iter != "auto" or not self.trains:
            return self.given.max_iter * n_batches if self.trains else 0
        if self.adapts(n_components):
            # The number of epochs is n_components over the cost of an update: its unfoldings, and
            # 9 for the rest of the update, in the time of an unfolding. Compared with 20 epochs, R2
            # of codes of held-out rows differs by at most .002 (digits and patches, 3 to 100
            # unfoldings), in 0.3 to 0.8 of the time.
            n_epochs = n_components / (self.n_unfoldings * (not self.of_lasso) + 9)
            n_rows = min(max(n_batches * batch_size, _LEAST_ROWS), _MOST_ROWS)
            return ceil(max(n_epochs, 2) * n_rows / batch_size)
        push = 2 * batch_size * n_components * min(n_components, 2 * n_features)
        # Matrix products in an unfolding: the adjoint of the encoder has two more.
        n_products = 1 if self.gradient == "dec" else 3
        # Without a search: at most 100 epochs, at most 1.2e12 operations of encoders, and at least
        # 200 updates.
        affordable = 1.2e12 / (self.n_unfoldings * n_products * push)
        return max(200, min(100 * n_batches, int(affordable)))

    def without_effect(self, data):  # -> list of (names, setting)
        """Return parameters without effect in this fit, each with a setting that uses them."""
        given, n_components = self.given, self.n_components or data.samples.x.shape[1]
        trains, learns, of_lasso = self.trains, bool(given.separate_atoms), self.of_lasso
        is_surrogate = trains and self.optimizer_for(n_components) == "surrogate"
        unfolds = not (of_lasso or learns or given.transform_algorithm == "lasso")
        has_no_penalty = not learns and (given.shrinkage == "hard" or given.alpha == 0)
        rules = (
            (learns, _OF_GRADIENTS, "separate_atoms=False"),
            (not (trains or learns), _OF_TRAINING, _TRAINS),
            (trains and given.tol is None, ["n_iter_no_change"], "a number for tol"),
            (is_surrogate, ["learning_rate"], "optimizer='adam' or 'sgd'"),
            (of_lasso, ["step_size"], "a number for n_unfoldings"),
            (unfolds and self.debias, ["debias"], "codes of the lasso, n_unfoldings='auto'"),
            (has_no_penalty, ["lambda_decay"], "shrinkage='soft', and a positive alpha"),
        )
        return self.unused_by_codes() + [rule for is_due, *rule in rules if is_due]
