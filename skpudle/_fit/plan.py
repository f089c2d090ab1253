"""The plan of a fit of rows: what an estimator's parameters decide before any data are read.

A `Plan` checks the parameters and decides whether the fit searches for atoms and whether it trains
atoms by gradients. It is also the model that `skpudle._fit.train.Trainer` trains: it makes the
encoder, the optimiser, the batch size and the number of updates. The plan holds no results. The
results of a fit so far are in a record, `skpudle._fit.fitted.Fitted`, which methods of the plan
take as ``fitted``; records do not change, so these methods return new records.
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

# For `Plan.without_effect`: names of parameters that only training reads, those among them that the
# training of a learned encoder (``separate_atoms``) does not read, and a setting that trains.
_OF_TRAINING = "optimizer", "learning_rate", "batch_size", "max_iter", "tol", "n_iter_no_change"
_OF_GRADIENTS = *_OF_TRAINING[:2], *_OF_TRAINING[4:], "step_size", "lambda_decay"
_TRAINS = "a setting that trains after the search, such as gradient='ae-ls' or supervision=0.5"

# For training by the surrogate optimiser after a search, with max_iter="auto" and
# batch_size="auto": the least and the largest number of rows that count as an epoch, and the number
# of batches of an epoch. So a batch has 1024 / 16 = 64 to 4096 / 16 = 256 rows.
_LEAST_ROWS, _MOST_ROWS, _BATCHES = 1024, 4096, 16


def directions(samples, *, positive):  # (n, n_features) -> the same
    """Make atoms of samples: divide them by their norms; take absolute values if ``positive``.

    A sample of zeros stays zero, and is no valid atom.
    """
    norms = atom_norms(samples)
    samples = samples / torch.where(norms > 0, norms, 1.0)
    return samples.abs() if positive else samples  # x and -x make the same atom


def choose_atoms(dict_init, n_components, x, generator, *, positive=False, weight=None):
    """Choose initial atoms of norm 1 for training or for a search.

    Parameters
    ----------
    dict_init : str, array-like or learner
        Name of an initialisation, such as "data", or the atoms themselves.
    n_components : int or None
        Number of atoms; None is the number of atoms in ``dict_init`` or, for a name, of features.
    x : Tensor of shape (n_samples, n_features)
        The data.
    generator : torch.Generator
        Random numbers of the initialisation.
    positive : bool, default=False
        Whether atoms are restricted to non-negative entries.
    weight : Tensor of shape (n_samples,), default=None
        How often each sample counts.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Atoms within the constraints.

    Raises
    ------
    ValueError
        If the atoms in ``dict_init`` have a wrong shape, or one of them is zero or not finite.
    """
    if isinstance(dict_init, str):
        n_components = x.shape[1] if n_components is None else n_components
        atoms = initial_atoms(x, n_components, dict_init, generator, weight=weight)
        atoms = directions(atoms, positive=positive)
    else:
        atoms = given_atoms(dict_init, n_components, x)
    return project_atoms(atoms, positive=positive)


class Plan(Codes):
    """The decisions of a fit of a dictionary of rows, and the model that `Trainer` trains.

    ``learner`` is the estimator. ``constants`` are values for parameters that its class lacks.

    Training updates one tensor, the "rows of parameters". It consists of the atoms and, for a
    subclass that learns more than atoms, of the tensor ``fitted.more``, concatenated to the atoms
    along ``axis``: a last row (axis 0, the baseline of counts) or further columns (axis 1, the
    weights of a task).

    Attributes
    ----------
    gradient : str
        Key of the gradient in `skpudle._gradients.GRADIENT_RULES`.
    name : str
        What ``phases_`` and progress lines call training; by default the gradient.
    searches, trains : bool
        Whether `fit` searches for the initial dictionary, and whether it then trains by gradients.
    alternates : bool
        Whether `partial_fit` solves for lasso codes and atoms in alternation, as long as the user
        sets no parameter of training; otherwise it trains by gradients.
    codes_follow_data : bool
        Whether the data choose the penalty of the codes of `transform`: with alpha="auto" and codes
        of the lasso.
    n_components : int or None
        Number of atoms; None if ``dict_init``, the number of features or a search decides it.
    fit_intercept : bool or "auto"
        Whether rows have a baseline; "auto" lets the data decide.
    noise : str or list of float
        What the noise of an entry depends on, see `skpudle.search.units`; a list has the user's
        standard deviation for each feature.
    learns_noise : bool
        Whether the fit has a first phase that finds the units of rows, `Units`: a baseline,
        outliers, or noise that differs between entries.

    Raises
    ------
    ValueError
        If parameters contradict each other.
    """

    # True for counts: sample weights count events, so `fit` keeps their unit, which is one row.
    # Otherwise only ratios of weights matter, and `fit` divides the weights by their mean.
    counts_events = False
    alpha_share = 1.0  # the penalty of codes for alpha="auto" is this number times the search's
    name_of_baseline = "intercept_"  # fitted attribute that holds the baseline
    task, axis = None, 0

    def __init__(self, learner, **constants):
        super().__init__(learner, **constants)
        given = self.given
        self.searches = isinstance(given.dict_init, str) and given.dict_init == "search"
        noise, baseline = given.noise, given.fit_intercept
        # `is True` below would be False for a boolean of numpy
        baseline = baseline if baseline == "auto" else bool(baseline)
        # a list, because comparing an array with a text compares each entry
        noise = noise if isinstance(noise, str) else [*noise]
        refuse(
            given.n_components == "auto" and not self.searches,
            "n_components='auto' needs a search. Pass dict_init='search', or a number of atoms.",
        )
        # A search already minimises the objective of the lasso, so gradients would add nothing.
        self.alternates = self.searches and given.gradient == "auto" and self.of_lasso
        # with separate_atoms partial_fit trains the atoms by "dec", and then the matrices of the
        # encoder for these atoms
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
        """Return the tensor that training updates: the atoms of a record, joined with ``more``."""
        atoms, more = fitted.atoms, fitted.more
        return atoms if more is None else torch.cat([atoms, more], self.axis)

    def with_rows(self, fitted, rows):  # -> Fitted
        """Return the record with atoms and ``more`` from the tensor ``rows``; undoes `join`."""
        if fitted.more is None:
            return replace(fitted, atoms=rows)
        n, n_more = rows.shape[self.axis], fitted.more.shape[self.axis]
        atoms, more = rows.split([n - n_more, n_more], self.axis)
        return replace(fitted, atoms=atoms, more=more)

    def decay_of(self, fitted, update):  # -> float
        """Return the factor between the penalties of successive unfoldings, in one update.

        A pair ``lambda_decay=(first, last)`` is annealed as in figure 5 of the PUDLE paper: in ten
        equal parts of training, the decay takes ten equally spaced values from ``first`` to
        ``last``. ``update`` counts from 0.
        """
        (first, last), n = self.decay, fitted.n_updates
        steps = np.linspace(last, first, min(10, n))[::-1]
        return float(steps[min(len(steps) * update // n, len(steps) - 1)])

    def network(self, fitted, update=0):  # -> rule, dictionary, options
        """Return what `Trainer` needs to differentiate the loss in one update, counted from 0.

        The result is a rule of `skpudle._gradients.GRADIENT_RULES`, the dictionary of the record,
        and a dict with the ``encoder`` and the ``penalty``.
        """
        decay = self.decay_of(fitted, update)
        encoder = self.encoder(fitted.alpha, step_size=self.step_size, lambda_decay=decay)
        # The rule differentiates the penalty of the last unfolding. The penalty that belongs to
        # hard thresholds is constant where it is differentiable, so it is left out.
        is_hard = self.given.shrinkage == "hard"
        penalty = 0.0 if is_hard else fitted.alpha * decay ** (self.n_unfoldings - 1)
        # If training begins with samples as atoms, only the gradient "dec" finds good atoms.
        rule = GRADIENT_RULES["dec" if fitted.from_samples else self.gradient]
        return rule, DenseDictionary(fitted.atoms), dict(encoder=encoder, penalty=penalty)

    def replacements(self, fitted, samples):
        """Return rows of parameters that replace unused atoms by samples.

        ``samples`` (n, n_features) have NaN where an entry is missing; it becomes zero.
        """
        return directions(samples.nan_to_num(), positive=self.given.positive_dict)

    def step(self, atoms):  # -> float
        """Return the step of an unfolding: the user's, or 1 / L for these atoms.

        ``atoms`` are (n_components, n_features), and L bounds their squared spectral norm.
        """
        known = self.step_size
        return float(default_step(DenseDictionary(atoms))) if known is None else known

    def attributes(self, fitted):  # -> dict
        """Return the fitted attributes that follow from atoms, units and penalties of a record.

        `GradientLearner._attributes` adds the numbers of epochs, steps and samples. The keys are
        names of attributes, and a value of None means that the learner gets no such attribute.
        """
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
        """Return rows in the units ``noise`` (`Units`), and a record of them that has no atoms yet.

        The record has the mean squared norm of the rows and the penalty of a search in them.
        """
        samples = samples.in_units(noise)
        x, mask, weight = samples.x, samples.mask, samples.weight
        scale, penalty = mean_square(x, weight), auto_alpha(x, mask=mask, weight=weight)
        return samples, Fitted(atoms=None, data_scale=scale, noise=noise, penalty=penalty)

    def begin(self, samples, fitted, generator):  # -> Fitted
        """Return the record of `enter` with initial atoms, and the penalty of codes for them.

        ``samples`` are rows in units of their noise. A search begins with samples as atoms or, if
        rows are mixtures of few non-negative atoms, with the purest samples. Otherwise
        ``dict_init`` decides.
        """
        start, x = self.given.dict_init, samples.x
        if self.searches:
            start = "vertices" if self.mixes_few(self.n_components, x.shape[1]) else "data"
        generator.manual_seed(generator.initial_seed())  # the same draws in whatever units
        how = dict(positive=self.given.positive_dict, weight=samples.weight)
        atoms = choose_atoms(start, self.n_components, x, generator, **how)
        return self.with_atoms(fitted, atoms)

    def with_atoms(self, fitted, atoms):  # -> Fitted
        """Return the record with other atoms, in the record's units, and their penalty of codes."""
        return replace(fitted, atoms=atoms, alpha=self.code_penalty(fitted, atoms))

    def code_penalty(self, fitted, atoms=None):  # -> float
        """Return the penalty of soft codes, or the threshold of hard codes.

        A number that the user has set stays. "auto" follows from the penalty of the search and, for
        hard thresholds, from the step for the ``atoms`` (n_components, n_features).
        """
        if self.given.alpha != "auto":
            return float(self.given.alpha)
        if self.given.shrinkage != "hard":
            return self.alpha_share * fitted.penalty * fitted.unit
        # Hard thresholds b with the step s minimise the squared error plus b^2 / (2 s) for each
        # nonzero code. Then an atom enters a code if its correlation with the row exceeds
        # b / sqrt(s). In the lasso it enters if the correlation exceeds alpha, so both are sparse
        # alike for b = alpha sqrt(s).
        return fitted.penalty * self.step(atoms) ** 0.5

    def search_penalty(self, fitted):  # -> float
        """Return the penalty of the search, in units of the rows that are searched.

        It is the penalty of codes, if codes have soft thresholds and a positive penalty. Otherwise
        the data have chosen it.
        """
        of_lasso = self.given.shrinkage == "soft" and self.code_penalty(fitted)
        return of_lasso / fitted.unit or float(fitted.penalty)

    # ------------------------------------------------------------------ search and training

    def problem(self, samples, penalty=None, square=None, **others):  # -> Problem
        """Return rows and objective in the form that `skpudle.search` computes with.

        The problem has the rows and the penalty divided by one number, ``problem.unit``, so that
        powers of very large or small data stay in the range of floats.

        Parameters
        ----------
        samples : Samples
            Rows in units of their noise.
        penalty : float, default=None
            Penalty of the lasso for these rows; None if the caller does not use the penalty.
        square : float, default=None
            The number that decides the unit; by default the mean squared norm of the rows. Problems
            whose atoms or penalties are compared need the same number.
        **others : dict
            Further arguments of `Problem`.
        """
        unit = unit_of(mean_square(samples.x, samples.weight) if square is None else square)
        penalty = unit if penalty is None else penalty
        others |= dict(mask=samples.mask, weight=samples.weight)
        others |= dict(positive_atoms=self.given.positive_dict)
        others |= dict(positive_code=bool(self.given.positive_code))
        return Problem.in_unit(samples.x, penalty, unit, **others)

    def optimizer_for(self, n_rows):
        """Return the optimiser of training: a name, or the user's callable.

        ``n_rows`` is the number of rows of parameters. "auto" is the surrogate while its matrix of
        n_rows x n_rows entries is small.
        """
        # The surrogate's matrix of 4096 x 4096 entries takes 128 MiB in float64.
        default = "surrogate" if n_rows <= 4096 else "adam"
        return default if self.given.optimizer == "auto" else self.given.optimizer

    def make_optimizer(self, fitted):
        """Return the optimiser that updates the rows of parameters, beginning with a record's.

        After each update the optimiser projects the atoms onto the constraints. It leaves ``more``
        unconstrained: the last rows (``n_free`` of them), or the columns after the features.
        """
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
        # The number of atoms has to be at most a quarter of the number of features: the purest rows
        # are then near the atoms, and make good initial atoms.
        positive = self.given.positive_code and self.given.positive_dict
        return positive and (n_components or n_features) <= 0.25 * n_features

    def adapts(self, n_components):
        """Return whether the surrogate optimiser trains ``n_components`` atoms after a search.

        If so, batch size and number of updates adapt to the number of samples and of atoms.
        """
        return self.searches and self.trains and self.optimizer_for(n_components) == "surrogate"

    def batch_size(self, n_samples=None):
        """Return the number of samples in a batch.

        ``n_samples`` is the number of samples of a fit; None in `partial_fit`, and in the fit of a
        stream of unknown length.
        """
        if self.given.batch_size != "auto":
            return int(self.given.batch_size)
        if n_samples and self.adapts(self.n_components or 1):
            return min(max(n_samples // _BATCHES, _LEAST_ROWS // _BATCHES), _MOST_ROWS // _BATCHES)
        return _MOST_ROWS // _BATCHES

    def n_updates(self, n_batches, batch_size, data):
        """Return the largest number of updates of training; 0 if the fit does not train.

        ``n_batches`` is the number of batches of an epoch, and ``data`` are the `Data` that the
        learner has read.
        """
        n_features = data.samples.x.shape[1]
        n_components = self.n_components or n_features
        if self.given.max_iter != "auto" or not self.trains:
            return self.given.max_iter * n_batches if self.trains else 0
        if self.adapts(n_components):
            # Training shall take about as long as the search. So the number of epochs is
            # n_components over the time of an update, measured in unfoldings: its own unfoldings,
            # and 9 for all the rest. Compared with 20 epochs, the R^2 of codes of held-out rows
            # differs by at most .002 (digits and patches, 3 to 100 unfoldings), in 0.3 to 0.8 of
            # the time.
            n_epochs = n_components / (self.n_unfoldings * (not self.of_lasso) + 9)
            n_rows = min(max(n_batches * batch_size, _LEAST_ROWS), _MOST_ROWS)
            return ceil(max(n_epochs, 2) * n_rows / batch_size)
        # Operations of one matrix product of an unfolding, of codes with the Gram matrix or, in two
        # steps, with the atoms.
        push = 2 * batch_size * n_components * min(n_components, 2 * n_features)
        # Matrix products in an unfolding: gradients through the encoder add two for its adjoint.
        n_products = 1 if self.gradient == "dec" else 3
        # In other fits at most 100 epochs and 1.2e12 operations of encoders, which bounds the time,
        # but at least 200 updates.
        affordable = 1.2e12 / (self.n_unfoldings * n_products * push)
        return max(200, min(100 * n_batches, int(affordable)))

    def without_effect(self, data):  # -> list of (names, setting)
        """Return parameters without effect in this fit, each with a setting that would use them.

        `warn_of_unused` warns of those that the user has set. The names are a sequence, and the
        setting ends the sentence "pass ...".
        """
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
