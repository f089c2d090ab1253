"""The plan of a fit of rows: what an estimator's parameters decide about search and training.

A `Plan` checks the parameters before any data are read, and decides whether the fit searches for
atoms and whether it trains atoms by gradients. It is also the model that
`skpudle._fit.train.Trainer` trains: it makes the encoder, the optimiser, the batch size and the
number of updates. The plan holds no results. The results of a fit so far are in a record,
`skpudle._fit.run.Fitted`, which methods of the plan take as ``fitted``; records do not change,
so these methods return new records. `skpudle._fit.encoders` has what parameters decide about
codes, and explains encoders and units of rows.
"""

from dataclasses import replace
from math import ceil

import numpy as np
import torch

from skpudle._data import arrays
from skpudle._data.arrays import mean_square, to_numpy, unit_of
from skpudle._fit.encoders import OF_LEARNED, EncoderPlan, fixed
from skpudle._fit.messages import refuse
from skpudle._fit.run import Fitted
from skpudle._gradients import GRADIENT_RULES
from skpudle._initialization import initial_atoms
from skpudle._operators._atoms import DenseDictionary, atom_norms, project_atoms
from skpudle._optimizers import make_optimizer
from skpudle.encoding import learn_encoder
from skpudle.encoding._learned import LEARNED
from skpudle.encoding._unfold import default_step
from skpudle.search import Problem, auto_alpha

# For the warnings of `Plan.without_effect`. _OF_TRAINING: parameters that only training reads.
# _OF_GRADIENTS: parameters without effect if a learned encoder (``separate_atoms``) is trained,
# whose training has an optimiser and steps of its own, but reads batch_size and max_iter. _TRAINS:
# what the warning tells the user to set if atoms shall be trained.
_OF_TRAINING = (
    "optimizer",
    "learning_rate",
    "batch_size",
    "max_iter",
    "tol",
    "n_iter_no_change",
)
_OF_GRADIENTS = *_OF_TRAINING[:2], *_OF_TRAINING[4:], "step_size", "lambda_decay"
_TRAINS = "a setting that trains after the search, such as gradient='ae-ls' or supervision=0.5"

# For max_iter="auto" and batch_size="auto", if the surrogate optimiser trains after a search. An
# epoch is counted as _LEAST_ROWS to _MOST_ROWS rows, also if the data have fewer or more rows, and
# has _BATCHES batches. So a batch has 1024 / 16 = 64 to 4096 / 16 = 256 rows.
_LEAST_ROWS = 1024
_MOST_ROWS = 4096
_BATCHES = 16


def train_encoder(
    plan, fitted, samples, interrupts, most, *, generator=None, start=None
):  # -> Fitted
    """Train the encoder of ``separate_atoms`` for the atoms of a record, which stay as they are.

    The encoder has a few unfoldings (iterations) with learned matrices and thresholds. `fit` calls
    this function in its last phase, and `partial_fit` for one epoch.

    Parameters
    ----------
    plan : Plan
        The parameters.
    fitted : Fitted
        The record with the atoms and the penalty.
    samples : Samples
        The rows to encode, in units of their noise.
    interrupts : Interrupts
        After Ctrl-C, when its ``pending`` is true, no more updates are made.
    most : int or "auto"
        Largest number of epochs.
    generator : torch.Generator, default=None
        Random numbers of batches and noise; None begins with the seed 0.
    start : LearnedEncoder, default=None
        The encoder to begin with; None makes one from the atoms.

    Returns
    -------
    Fitted
        The record with the encoder in ``learned_encoder``. If updates were made, ``later`` has
        their number of epochs, rounded up, which ``phases_`` reports; otherwise ``later`` is empty.
    """
    params = plan.params
    n_made = 0
    batch_size = plan.batch_size(len(samples))
    n_batches = -(-len(samples) // batch_size)

    def stopped():  # `learn_encoder` calls it before each update, so it can count the updates
        nonlocal n_made
        n_made += not interrupts.pending
        return interrupts.pending

    encoder = learn_encoder(
        fitted.atoms,
        samples.x,
        float(fitted.alpha),
        n_unfoldings=plan.n_unfoldings,
        separate=params.separate_atoms == "unfolding",
        penalised=params.gradient != "ae-ls",
        positive_code=params.positive_code,
        mask=samples.mask,
        start=start,
        n_updates=most if most == "auto" else most * n_batches,
        batch_size=batch_size,
        generator=generator,
        stopped=stopped,
        weight=samples.weight,
    )
    later = {"encoder": -(-n_made // n_batches)} if n_made else {}
    return replace(fitted, learned_encoder=encoder, later=later)


# ------------------------------------------------------------------ the plan


def directions(samples, *, positive):  # (n, n_features) -> the same
    """Make atoms of norm 1 of samples, to begin with or to replace unused atoms.

    With ``positive`` their entries become absolute values. A sample of zeros stays zero, and is no
    valid atom.
    """
    norms = atom_norms(samples)
    samples = samples / torch.where(norms > 0, norms, 1.0)
    # with absolute values -x makes the same atom as x, instead of an atom without positive entries
    return samples.abs() if positive else samples


def choose_atoms(
    dict_init,
    n_components,
    x,
    generator,
    *,
    positive=False,
    weight=None,
):
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
        atoms = arrays.given_atoms(dict_init, n_components, x)
    return project_atoms(atoms, positive=positive)


class Plan(EncoderPlan):
    """The decisions of a fit of a dictionary of rows, and the model that `Trainer` trains.

    ``learner`` is the estimator, fitted or not. A *record*, the argument ``fitted`` of the methods,
    is a `Fitted`: the results of the fit so far.

    Training updates one tensor, the "rows of parameters". It consists of the atoms and, for a
    subclass that learns more than atoms, of the tensor ``fitted.extra``, concatenated to the atoms
    along ``axis``: a last row (axis 0, the baseline of counts) or further columns (axis 1, the
    weights of a task).

    Attributes
    ----------
    step_size : float or None
        The user's step of an unfolding; None if it follows from the atoms.
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
        Whether predictions of hidden entries choose the penalty of the codes of `transform`: with
        alpha="auto" and codes of the lasso. Otherwise the penalty is ``fitted.alpha``.
    n_components : int or None
        Number of atoms; None if ``dict_init``, the number of features or a search decides it.
    fit_intercept : bool or "auto"
        Whether rows have a baseline; "auto" lets the data decide.
    noise : str or list of float
        What the standard deviation of the noise differs between: "features", "rows", "both", or
        nothing ("equal"). "auto" and "outliers" look for outliers, and "auto" then decides between
        "features" and "equal". A list has the user's standard deviation for each feature.
    learns_noise : bool
        Whether the fit has a first phase that finds the units of rows, `Units`: a baseline,
        outliers, or noise that differs between entries.

    Raises
    ------
    ValueError
        If parameters contradict each other.
    """

    # with alpha="auto": the factor from the default penalty of a search, ``fitted.penalty``, to the
    # penalty of codes
    alpha_share = 1.0
    name_of_baseline = "intercept_"  # fitted attribute that holds the baseline
    axis = 0

    def __init__(self, learner):
        super().__init__(learner)
        params = self.params
        self.step_size = fixed(params.step_size)  # None if the user has set "auto"
        start = params.dict_init
        self.searches = isinstance(start, str) and start == "search"
        refuse(
            params.n_components == "auto" and not self.searches,
            "n_components='auto' needs a search. Pass dict_init='search', or a number of atoms.",
        )
        self.n_components = (
            None if params.n_components == "auto" else params.n_components
        )
        # If codes solve the lasso, the search already minimises the objective that gradients would
        # descend, so `fit` trains no more, and `partial_fit` alternates codes and atoms.
        self.alternates = self.searches and params.gradient == "auto" and self.of_lasso
        # With separate_atoms `partial_fit` first trains the atoms by the gradient "dec", and then
        # the matrices of the encoder for these atoms.
        gradient = "dec" if params.separate_atoms else params.gradient
        if gradient == "auto":
            gradient = "dec" if self.alternates else "ae-ls"
        self.gradient = gradient
        self.name = gradient
        self.trains = not (self.alternates or params.separate_atoms)
        self.codes_follow_data = params.alpha == "auto" and self.of_lasso
        # An array becomes a list, since ``array == "auto"`` would compare every entry, and flags of
        # NumPy become flags of Python, since ``np.True_ is True`` is False.
        noise = params.noise if isinstance(params.noise, str) else [*params.noise]
        baseline = params.fit_intercept
        baseline = baseline if baseline == "auto" else bool(baseline)
        if not self.searches:  # "auto" asks for nothing without a search
            noise = "equal" if noise == "auto" else noise
            baseline = baseline is True
        self.fit_intercept = baseline
        self.noise = noise
        self.learns_noise = not (noise == "equal" and baseline is False)
        if self.trains and callable(params.optimizer):
            self._try_optimizer()

    def _try_optimizer(self):
        """Make the user's optimiser for one number, so that a wrong one is refused before a fit.

        In place of a projection onto constraints it gets `torch.clone`, which changes nothing.
        """
        atoms = torch.ones(1, 1, device="cpu")
        rate = self.params.learning_rate
        make_optimizer(
            self.params.optimizer,
            atoms,
            torch.clone,
            learning_rate=rate,
            data_scale=1.0,
        )

    def for_data(self, data):  # -> Plan
        """Return the plan of a fit to `Data`; `TaskPlan` learns its task from their targets."""
        return self

    # ------------------------------------------------------------------ the model

    def join(self, fitted):  # -> Tensor
        """Return the tensor that training updates: the atoms of a record, joined with ``extra``."""
        atoms = fitted.atoms
        extra = fitted.extra
        return atoms if extra is None else torch.cat([atoms, extra], self.axis)

    def with_rows(self, fitted, rows):  # -> Fitted
        """Return the record with atoms and ``extra`` from the tensor ``rows``; undoes `join`."""
        if fitted.extra is None:
            return replace(fitted, atoms=rows)
        n_extra = fitted.extra.shape[self.axis]
        n_atoms = rows.shape[self.axis] - n_extra
        atoms, extra = rows.split([n_atoms, n_extra], self.axis)
        return replace(fitted, atoms=atoms, extra=extra)

    def decay_of(self, fitted, update):  # -> float
        """Return the factor between the penalties of successive unfoldings, in one update.

        A pair ``lambda_decay=(first, last)`` is annealed as in figure 5 of the PUDLE paper: in ten
        equal parts of training, the decay takes ten equally spaced values from ``first`` to
        ``last``. ``update`` counts from 0, up to ``fitted.n_updates`` - 1, the last of training.
        """
        first, last = self.decay
        n_updates = fitted.n_updates
        # in reverse order, so that with a single value this value is ``last``
        steps = np.linspace(last, first, min(10, n_updates))[::-1]
        return float(steps[min(len(steps) * update // n_updates, len(steps) - 1)])

    def network(self, fitted, update=0):  # -> rule, dictionary, settings
        """Return what `Trainer` needs to differentiate the loss in one update, counted from 0.

        The result is a rule of `skpudle._gradients.GRADIENT_RULES`, the dictionary of the record,
        and a dict with the ``encoder`` and the ``penalty``.
        """
        decay = self.decay_of(fitted, update)
        encoder = self.encoder(
            fitted.alpha, step_size=self.step_size, lambda_decay=decay
        )
        # The objective has the penalty of the last unfolding. Hard thresholds correspond to a
        # penalty on the number of nonzero codes; its derivative is 0, so it is left out.
        is_hard = self.params.shrinkage == "hard"
        penalty = 0.0 if is_hard else fitted.alpha * decay ** (self.n_unfoldings - 1)
        # If training begins with samples as atoms, without a search, only the gradient "dec" (codes
        # are constants) finds good atoms.
        rule = GRADIENT_RULES["dec" if fitted.from_samples else self.gradient]
        settings = {"encoder": encoder, "penalty": penalty}
        return rule, DenseDictionary(fitted.atoms), settings

    def replacements(self, fitted, samples):
        """Make atoms of samples, to replace atoms that no code uses; return the rows of parameters.

        ``samples`` (n, n_features) have NaN where an entry is missing; it becomes zero. The rows of
        parameters are (n, ...), in the form that training updates, see `Plan`.
        """
        return directions(samples.nan_to_num(), positive=self.params.positive_dict)

    def step(self, atoms):  # -> float
        """Return the step of an unfolding: the user's, or 1 / L for these atoms.

        ``atoms`` are (n_components, n_features), and L bounds their squared spectral norm.
        """
        return self.step_size or float(default_step(DenseDictionary(atoms)))

    def attributes(self, fitted):  # -> dict
        """Return the fitted attributes that follow from atoms, units and penalties of a record.

        `DenseLearner._attributes` adds the numbers of epochs, steps and samples. The keys are names
        of attributes.
        """
        units = fitted.units
        atoms = fitted.atoms
        baseline = 0.0
        if units.intercept is not None:
            baseline = to_numpy(units.intercept.to(atoms))
        attributes = {
            "components_": to_numpy(units.to_user(atoms)),
            self.name_of_baseline: baseline,
            "n_components_": len(atoms),
            "step_size_": self.step(atoms),
        }
        attributes |= dict.fromkeys(OF_LEARNED)
        encoder = fitted.learned_encoder
        if encoder is not None:
            parts = [to_numpy(getattr(encoder, name)) for name in LEARNED]
            # one analysis matrix for all unfoldings, and the atoms instead of synthesis matrices
            if encoder.shares_atoms:
                parts[:2] = parts[0][0], None
            attributes |= zip(OF_LEARNED, parts, strict=True)
        penalties = fitted.penalties(self.debias)
        # the user's units have another noise in each feature
        if penalties["noise_std_"] is not None and units.scale is not None:
            penalties["noise_std_"] *= to_numpy(units.scale)
        return attributes | penalties

    # ------------------------------------------------------------------ the first record

    def enter(self, samples, units):  # -> Samples
        """Return rows in the form in which a search sees them: in the ``units`` (`Units`)."""
        return samples.in_units(units)

    def first_record(self, samples, rows, units):  # -> Fitted
        """Return a record without atoms: mean squared norm and default penalty of the rows.

        ``rows`` are what `enter` makes of ``samples``, the rows in the user's units, which only the
        plan of counts needs.
        """
        x = rows.x
        weight = rows.weight
        return Fitted(
            atoms=None,
            data_scale=mean_square(x, weight),
            units=units,
            penalty=auto_alpha(x, mask=rows.mask, weight=weight),
        )

    def begin(
        self,
        samples,
        rows,
        units,
        generator,
    ):  # -> Fitted
        """Return the first record, with initial atoms and the penalty of codes for them.

        The arguments are those of `first_record`, and the generator of the fit. A search begins
        with rows as atoms or, if few non-negative atoms with non-negative codes are asked for, with
        the purest rows ("vertices"). Otherwise ``dict_init`` decides.
        """
        start = self.params.dict_init
        x = rows.x
        if self.searches:
            is_mixture = self.mixes_few(self.n_components, x.shape[1])
            start = "vertices" if is_mixture else "data"
        # A fit may begin again in other units, and then draws the same samples.
        generator.manual_seed(generator.initial_seed())
        positive = self.params.positive_dict
        atoms = choose_atoms(
            start,
            self.n_components,
            x,
            generator,
            positive=positive,
            weight=rows.weight,
        )
        return self.with_atoms(self.first_record(samples, rows, units), atoms)

    def with_atoms(self, fitted, atoms):  # -> Fitted
        """Return the record with other atoms, in the record's units, and their penalty of codes."""
        return replace(fitted, atoms=atoms, alpha=self.code_penalty(fitted, atoms))

    def code_penalty(self, fitted, atoms=None):  # -> float
        """Return the penalty of soft codes, or the threshold of hard codes.

        A number that the user has set stays. "auto" is the default penalty, ``fitted.penalty``,
        times `alpha_share` and ``fitted.penalty_factor``. For hard thresholds it is the default
        penalty times the root of the step for the ``atoms`` (n_components, n_features).
        """
        if self.params.alpha != "auto":
            return float(self.params.alpha)
        if self.params.shrinkage != "hard":
            return self.alpha_share * fitted.penalty * fitted.penalty_factor
        # Hard thresholds b with the step s minimise half the squared error plus b^2 / (2 s) for
        # each nonzero code. Then an atom enters a code if its correlation with the row exceeds
        # b / sqrt(s). In the lasso it enters if the correlation exceeds the penalty, so both are
        # sparse alike if b is the penalty times sqrt(s).
        return fitted.penalty * self.step(atoms) ** 0.5

    def search_penalty(self, fitted):  # -> float
        """Return the penalty that the search begins with, in units of the rows that are searched.

        It is the penalty of codes, if codes have soft thresholds and a positive penalty. Otherwise
        it is the default penalty of the data, ``fitted.penalty``.
        """
        # False for hard thresholds, and 0 if the user has set alpha=0
        soft_penalty = self.params.shrinkage == "soft" and self.code_penalty(fitted)
        return soft_penalty / fitted.penalty_factor or float(fitted.penalty)

    # ------------------------------------------------------------------ search and training

    def problem(self, samples, penalty=None, square=None, **settings):  # -> Problem
        """Return rows and objective in the form that `skpudle.search` computes with.

        The problem has the rows and the penalty divided by one number, ``problem.unit``, so that
        powers of very large or small data stay in the range of floats.

        Parameters
        ----------
        samples : Samples
            Rows in units of their noise.
        penalty : float, default=None
            Penalty of the lasso for these rows; None, for callers that do not use it, makes it 1.
        square : float, default=None
            A mean squared norm, which decides the unit; by default that of the rows. Problems
            whose atoms or penalties are compared need the same number.
        **settings : dict
            Further arguments of `Problem`.
        """
        x = samples.x
        weight = samples.weight
        unit = unit_of(mean_square(x, weight) if square is None else square)
        return Problem.in_unit(
            x,
            unit if penalty is None else penalty,
            unit,
            mask=samples.mask,
            weight=weight,
            positive_atoms=self.params.positive_dict,
            positive_code=bool(self.params.positive_code),
            **settings,
        )

    def optimizer_for(self, n_rows):
        """Return the optimiser of training: a name, or the user's callable.

        ``n_rows`` is the number of rows that training updates: the atoms, and a baseline of counts.
        "auto" is the surrogate while its matrix of n_rows x n_rows entries is small.
        """
        # The surrogate's matrix of 4096 x 4096 entries takes 128 MiB in float64.
        default = "surrogate" if n_rows <= 4096 else "adam"
        return default if self.params.optimizer == "auto" else self.params.optimizer

    def make_optimizer(self, fitted):
        """Return the optimiser of training, which begins with the atoms and ``extra`` of a record.

        After each update the optimiser projects the atoms onto the constraints. It leaves ``extra``
        unconstrained: the last rows (``n_free`` of them), or the columns after the features.
        """
        rows = self.join(fitted)
        n_features = fitted.atoms.shape[1]
        positive = self.params.positive_dict

        def project(rows):
            atoms, extra = rows.tensor_split([n_features], 1)
            return torch.cat([project_atoms(atoms, positive=positive), extra], 1)

        return make_optimizer(
            self.optimizer_for(len(rows)),
            rows,
            project,
            learning_rate=self.params.learning_rate,
            data_scale=fitted.data_scale,
            curvature=self.curvature(fitted),
            n_free=len(rows) - len(fitted.atoms),
        )

    def curvature(self, fitted):  # -> float
        """Return the curvature of the loss in the reconstruction, for the surrogate optimiser.

        It is ``fitted.curvature``, but less with the gradient "ae-ls" after a search.
        """
        # With the gradient "ae-ls" codes follow a change of the atoms, which lowers the curvature,
        # the more so the more unfoldings there are. The exponent -0.22 is a compromise, measured
        # after searches: with -0.25 hard-thresholded codes of digits have 2 % more entries, and
        # with 0 the error of new digits is 2.3 times as large; soft-thresholded codes are best with
        # 0, whose errors are 1 to 5 % smaller (benchmarks/constants.py curvature).
        follows = fitted.search_alpha is not None and self.gradient == "ae-ls"
        share = self.n_unfoldings**-0.22 if follows else 1.0
        return share * fitted.curvature

    def mixes_few(self, n_components, n_features):
        """Return whether the parameters ask for mixtures of few non-negative atoms, as for spectra.

        That is so if codes and atoms have to be non-negative, and there are at most a quarter as
        many atoms as features. If the number of atoms is not known (None), it is not so. A search
        of mixtures begins with the purest samples as atoms, and has a first penalty of its own, see
        `skpudle.search.find.penalty_of_mixtures`.
        """
        # Only with so few atoms the purest rows are near the atoms, and make good initial atoms.
        positive = self.params.positive_code and self.params.positive_dict
        return positive and (n_components or n_features) <= 0.25 * n_features

    def adapts(self, n_components):
        """Return whether the surrogate optimiser trains ``n_components`` atoms after a search.

        If so, batch size and number of updates adapt to the number of samples and of atoms.
        """
        return (
            self.searches
            and self.trains
            and self.optimizer_for(n_components) == "surrogate"
        )

    def batch_size(self, n_samples=None):
        """Return the number of samples in a batch.

        ``n_samples`` is the number of samples of a fit; None in `partial_fit`, and in the fit of a
        stream of unknown length.
        """
        if self.params.batch_size != "auto":
            return int(self.params.batch_size)
        # an unknown number of atoms counts as one, for which "auto" is the surrogate optimiser
        if n_samples and self.adapts(self.n_components or 1):
            return min(
                max(n_samples // _BATCHES, _LEAST_ROWS // _BATCHES),
                _MOST_ROWS // _BATCHES,
            )
        return _MOST_ROWS // _BATCHES

    def n_updates(self, n_batches, batch_size, data):
        """Return the largest number of updates of training; 0 if the fit does not train.

        ``n_batches`` is the number of batches of an epoch, and ``data`` are the `Data` that the
        learner has read.
        """
        n_features = data.samples.x.shape[1]
        n_components = self.n_components or n_features
        if self.params.max_iter != "auto" or not self.trains:
            return self.params.max_iter * n_batches if self.trains else 0
        if self.adapts(n_components):
            # Training shall take about as long as the search. So the number of epochs is
            # n_components divided by the time of an update, in which the unit is the time of one
            # unfolding: the unfoldings of the encoder (none if codes solve the lasso), and 9 for
            # all other work. An epoch counts as 1024 to 4096 rows. For digits and patches with 3 to
            # 100 unfoldings this training takes 20 to 70 % less time than 20 epochs, and the R^2 of
            # codes of held-out rows differs by at most 0.002. With 3 or 27 instead of 9, errors of
            # new rows differ by at most 2 % (benchmarks/constants.py updates).
            n_epochs = n_components / (self.n_unfoldings * (not self.of_lasso) + 9)
            n_rows = min(max(n_batches * batch_size, _LEAST_ROWS), _MOST_ROWS)
            return ceil(max(n_epochs, 2) * n_rows / batch_size)
        # Number of operations of one matrix product in an unfolding: codes times the Gram matrix of
        # the atoms or, if that takes fewer operations, codes times atoms and back.
        n_operations = 2 * batch_size * n_components * min(n_components, 2 * n_features)
        # Number of matrix products in an unfolding: a gradient through the encoder adds two, for
        # the backward pass.
        n_products = 1 if self.gradient == "dec" else 3
        # The time is bounded by 100 epochs and by 1.2e12 operations of the encoder in all updates
        # together; but at least 200 updates are allowed.
        affordable = 1.2e12 / (self.n_unfoldings * n_products * n_operations)
        return max(200, min(100 * n_batches, int(affordable)))

    def without_effect(self, data):  # -> list of (names, setting)
        """Return parameters without effect in a fit to `Data`, for `warn_of_unused`.

        Each entry has names of parameters, and the setting with which they would have an effect.
        """
        params = self.params
        has_encoder = bool(params.separate_atoms)
        trains = self.trains
        n_components = self.n_components or data.samples.x.shape[1]
        rules = super().without_effect()
        if has_encoder:
            rules.append((_OF_GRADIENTS, "separate_atoms=False"))
        elif not trains:
            rules.append((_OF_TRAINING, _TRAINS))
        if trains and params.tol is None:
            rules.append((["n_iter_no_change"], "a number for tol"))
        if trains and self.optimizer_for(n_components) == "surrogate":
            rules.append((["learning_rate"], "optimizer='adam' or 'sgd'"))
        if self.of_lasso:
            rules.append((["step_size"], "a number for n_unfoldings"))
        elif self.debias and not has_encoder and params.transform_algorithm != "lasso":
            rules.append((["debias"], "codes of the lasso, n_unfoldings='auto'"))
        if not has_encoder and (params.shrinkage == "hard" or params.alpha == 0):
            rules.append((["lambda_decay"], "shrinkage='soft', and a positive alpha"))
        return rules
