"""The plan of a fit: its phases, and the gradient, encoder, optimiser and batches of training.

A `Plan` is made once from the parameters, before any data are read. One rule decides which phases
run: a parameter that is named asks for its phase.
"""

from dataclasses import dataclass
from math import ceil
from numbers import Integral
from types import SimpleNamespace

import numpy as np

from skpudle._data.arrays import host_array, to_tensor
from skpudle._fit.checkpoint import describe
from skpudle._fit.messages import any_named
from skpudle._fit.models import Decay, DenseModel, Encoder, fixed
from skpudle._gradients import GRADIENT_RULES
from skpudle._optimizers._make import make_optimizer

# Most atoms for which the surrogate is the default: its matrix takes 128 MiB in float64.
_SURROGATE_ATOMS = 4096

_OF_TRAINING = (
    "optimizer",
    "learning_rate",
    "batch_size",
    "max_iter",
    "tol",
    "n_iter_no_change",
)


def default_optimizer(n_rows):
    """Return the name of the default optimiser: the surrogate while its matrix is small."""
    return "surrogate" if n_rows <= _SURROGATE_ATOMS else "adam"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a fit.

    Parameters
    ----------
    given : SimpleNamespace
        The parameters.
    encoder : Encoder
        The encoder.
    gradient : str
        Name of the gradient of training.
    name : str
        Name of training for users, its gradient for most learners.
    searches, trains : bool
        Whether `fit` searches for the initial dictionary, and whether it then trains.
    decay : Decay
        The decay of penalties over training.
    step_size, debias : float or None
        Numbers of these parameters; None where atoms and data decide.
    codes_follow_data : bool, default=False
        Whether the data choose the penalty of codes, as for converged ones.
    auto_epochs, auto_batch_size : int
        Values of ``max_iter`` and ``batch_size`` for "auto".
    asks_for_training : str
        A setting that makes training follow a search.
    """

    given: SimpleNamespace
    encoder: Encoder
    gradient: str
    name: str
    searches: bool
    trains: bool
    decay: Decay
    step_size: float | None
    debias: float | None
    codes_follow_data: bool = False
    auto_epochs: int | None = 100
    auto_batch_size: int = 256
    counts_events = False  # whether weights of rows are numbers of events, and have a unit

    asks_for_training: str = "a setting that trains after the search, such as gradient='ae-ls'"

    def rule(self, name):
        """Return the gradient rule with this name."""
        return GRADIENT_RULES[name]

    def batch_size(self, n_samples=None):
        """Return the size of a batch, in a fit for a number of samples, if it is known."""
        size = self.given.batch_size
        return self.auto_batch_size if size == "auto" else int(size)

    def n_updates(self, n_batches, batch_size, data):
        """Return the number of updates that training may take."""
        if not self.trains:
            return 0
        max_iter = self.given.max_iter
        return (self.auto_epochs if max_iter == "auto" else max_iter) * n_batches

    def trains_in_parts(self, learner):
        """Return whether `partial_fit` of the learner trains by gradients.

        Otherwise it alternates between codes and atoms.
        """
        return True

    def optimizer_for(self, n_rows):
        """Return the optimiser for this number of rows of parameters."""
        return self.given.optimizer

    def optimizer_name(self, n_rows):
        """Name the owner of a state; the surrogate has the same state with all parameters."""
        return describe(self.optimizer_for(n_rows))

    def make_optimizer(self, model, rows, name=None):
        """Return the optimiser of rows of parameters, or one with another name."""
        return make_optimizer(
            name or self.optimizer_for(len(rows)),
            rows,
            model.project,
            learning_rate=self.given.learning_rate,
            data_scale=model.data_scale,
            curvature=model.curvature,
        )

    def without_effect(self, data):  # yields names, setting
        """Yield parameters that have no effect in this fit, and a setting that would use them."""
        if not self.trains:
            yield _OF_TRAINING, self.asks_for_training
        elif self.given.tol is None:
            yield ("n_iter_no_change",), "a number for tol"


# ------------------------------------------------------------------ learners of rows

# Values of parameters that a learner of rows lacks.
_DEFAULTS = dict(
    n_components=None,
    alpha="auto",
    gradient="auto",
    fit_intercept="auto",
    noise="auto",
    n_unfoldings="auto",
    step_size="auto",
    lambda_decay=1.0,
    shrinkage="soft",
    initial_threshold=None,
    debias=0.0,
    separate_atoms=False,
    positive_code=False,
    positive_dict=False,
    atom_norm="unit",
    optimizer="adam",
    learning_rate=1e-3,
    batch_size="auto",
    max_iter="auto",
    tol=1e-4,
    n_iter_no_change=5,
    dict_init="search",
    transform_algorithm="unfolded",
    transform_n_nonzero_coefs=None,
    transform_tol=None,
    transform_alpha=None,
)

# parameters of training by batches, and of its atoms; `partial_fit` trains if one is named
_OF_BATCHES = "optimizer", "learning_rate", "batch_size", "atom_norm"

# max_iter="auto": the largest number of epochs, the largest number of operations of encoders, and
# the least number of updates.
_AUTO_EPOCHS = 100
_AUTO_OPERATIONS = 1.2e12
_AUTO_UPDATES = 200

# max_iter="auto" of the surrogate after a search: unfoldings that take the time of the rest of an
# update, and the least number of epochs. R2 of codes of held-out rows is within .002 of that of 20
# epochs (digits and patches, 3 to 100 unfoldings), in 0.3 to 0.8 of the time.
_REST_OF_AN_UPDATE, _LEAST_EPOCHS = 9, 2
# The surrogate after a search: least and most rows of an epoch of max_iter="auto", and number of
# batches of an epoch, of 64 to 256 rows each.
_LEAST_ROWS, _MOST_ROWS, _BATCHES = 1024, 4096, 16
# Exponent of the number of unfoldings in the surrogate's curvature, which falls because codes
# respond to a change of atoms. With -0.25 hard codes became denser; with 0 training took twice as
# long.
_CURVATURE_EXPONENT = -0.22

# Most non-negative atoms per feature for which rows are mixtures, whose purest rows are near the
# atoms.
_FEW_OF_MIXTURES = 0.25

# n_unfoldings="auto" of unfolded codes, as in the paper, and of learned encoders, where 3
# unfoldings equal 20 with the dictionary's matrices
_UNFOLDINGS, _LEARNED_UNFOLDINGS = 100, 3


def _noise_of_features(values):  # -> Tensor of shape (n_features,), of geometric mean 1
    """Check the standard deviations of features.

    Raises
    ------
    ValueError
        If they are not positive numbers.
    """
    try:
        numbers = np.asarray(host_array(values), dtype=np.float64)
    except (TypeError, ValueError):  # not numbers
        numbers = np.empty((0, 0))
    if numbers.ndim != 1 or not len(numbers) or not (np.isfinite(numbers) & (numbers > 0)).all():
        raise ValueError(
            f"noise={' '.join(f'{values!r:.60}'.split())} is no array of positive standard "
            "deviations. Pass one for each feature, or noise='auto'."
        )
    return to_tensor(numbers / np.exp(np.log(numbers).mean()))


def _check_learned_encoder(given):
    """Raise ValueError if parameters contradict ``separate_atoms``."""
    separate = f"separate_atoms={given.separate_atoms!r}"
    if given.shrinkage != "soft":
        raise ValueError(
            f"{separate} is for soft shrinkage, got shrinkage={given.shrinkage!r}. Pass "
            "separate_atoms=False."
        )
    if given.n_unfoldings is None:
        raise ValueError(
            f"Codes that are solved for (n_unfoldings=None) need no {separate}; pass a number of "
            "unfoldings."
        )
    if given.gradient == "dec":
        raise ValueError(
            "gradient='dec' does not go through the encoder, so that it cannot train "
            f"{separate}; pass gradient='ae-lasso' or 'auto'."
        )


def _check_codes(given, *, decays, converges):
    """Raise ValueError if parameters of codes contradict each other."""
    if given.separate_atoms:
        _check_learned_encoder(given)
    if converges and (given.shrinkage == "hard" or decays):
        raise ValueError(
            "Converged codes (n_unfoldings=None or transform_algorithm='lasso') exist for soft "
            f"shrinkage without decay, got shrinkage={given.shrinkage!r} and "
            f"lambda_decay={given.lambda_decay!r}. Pass shrinkage='soft' and lambda_decay=1, or "
            "a number of unfoldings and transform_algorithm='unfolded'."
        )
    if converges and 0 in (given.alpha, given.transform_alpha):
        raise ValueError(
            "The lasso needs a positive alpha, got 0; pass a number of unfoldings and "
            "transform_algorithm='unfolded' for codes without a penalty."
        )


def _check_fit(given, *, searches):
    """Raise ValueError if parameters of a fit contradict each other."""
    if given.n_components == "auto" and not searches:
        raise ValueError(
            "n_components='auto' is chosen by a search, but dict_init is given. Pass "
            "dict_init='search', or a number of atoms or None."
        )


@dataclass(frozen=True, kw_only=True)
class CodePlan:
    """The encoder's part of the parameters, all that `transform` needs.

    Parameters
    ----------
    given : SimpleNamespace
        The parameters.
    encoder : Encoder
        The encoder.
    decay : Decay
        The decay of penalties over training.
    debias : float or None
        Share of the lasso's bias to remove; None where data decide.
    of_lasso : bool
        Whether codes are those of the lasso.
    converges : bool
        Whether `transform` is asked for converged codes.
    n_unfoldings : int
        Number of unfoldings where codes are not solved for.
    """

    given: SimpleNamespace
    encoder: Encoder
    decay: Decay
    debias: float | None
    of_lasso: bool
    converges: bool
    n_unfoldings: int

    @classmethod
    def of(cls, learner, **constants):
        """Return the plan for the parameters of a learner, with defaults for those it lacks.

        Raises
        ------
        ValueError
            If parameters of codes contradict each other.
        """
        named = {name: value for name, value in vars(learner).items() if name in _DEFAULTS}
        given = SimpleNamespace(**_DEFAULTS | named | constants)
        decay, debias = Decay.of(given.lambda_decay), fixed(given.debias)
        decays = decay != (1, 1)
        converges = given.n_unfoldings is None or given.transform_algorithm == "lasso"
        _check_codes(given, decays=decays, converges=converges)
        lasso = given.shrinkage == "soft" and not decays and given.alpha != 0
        n_unfoldings = given.n_unfoldings
        if not isinstance(n_unfoldings, Integral):
            learns = given.separate_atoms and n_unfoldings == "auto"
            n_unfoldings = _LEARNED_UNFOLDINGS if learns else _UNFOLDINGS
        encoder = Encoder(
            None if given.separate_atoms and given.alpha else given.n_unfoldings,
            given.shrinkage,
            given.positive_code,
            initial_threshold=given.initial_threshold,
            debias=debias or 0.0,
        )
        return cls(
            given=given,
            encoder=encoder,
            decay=decay,
            debias=debias,
            of_lasso=lasso and given.n_unfoldings in ("auto", None) and not given.separate_atoms,
            converges=converges,
            n_unfoldings=n_unfoldings,
        )

    @property
    def follow_data(self):
        """Whether the data choose the penalty of codes."""
        return self.given.alpha == "auto" and self.of_lasso

    def without_effect(self):  # yields names, setting
        """Yield parameters that have no effect on codes, and a setting that would use them."""
        given, debiases = self.given, bool(self.debias)  # 0 removes no bias
        of_lasso = ("transform_alpha", "debias") if debiases else ("transform_alpha",)
        if given.transform_algorithm == "omp":
            yield of_lasso, "transform_algorithm='unfolded' or 'lasso'"
            if given.transform_tol is not None:
                yield ("transform_n_nonzero_coefs",), "transform_tol=None"
        else:
            yield ("transform_n_nonzero_coefs", "transform_tol"), "transform_algorithm='omp'"
            if given.separate_atoms and given.transform_algorithm == "unfolded":
                yield of_lasso, "transform_algorithm='lasso'"


@dataclass(frozen=True, kw_only=True)
class DensePlan(Plan):
    """The plan of a fit of a dictionary of rows.

    Parameters
    ----------
    codes : CodePlan
        How rows are coded.
    n_components : int or None
        Number of atoms, None where data decide.
    curvature_share : float
        The curvature for the surrogate after a search, as a share of the loss's.
    alpha_share : float, default=1.0
        ``alpha="auto"``, as a share of the search's penalty.
    fit_intercept : bool or "auto", default=False
        Whether rows have a baseline; "auto" lets the data decide.
    noise : str or Tensor, default="equal"
        The noise of rows and features, see `skpudle.search.units`, or that of each feature.
    """

    codes: CodePlan
    n_components: int | None
    curvature_share: float
    alpha_share: float = 1.0
    fit_intercept: bool | str = False
    noise: object = "equal"
    auto_epochs: int | None = None

    @classmethod
    def of(cls, learner, *, alpha_share=1.0, **constants):
        """Return the plan for the parameters of a learner, with defaults for those it lacks.

        Raises
        ------
        ValueError
            If parameters contradict each other.
        """
        codes = CodePlan.of(learner, **constants)
        given = codes.given
        searches = isinstance(given.dict_init, str) and given.dict_init == "search"
        _check_fit(given, searches=searches)
        # The search is for the lasso's codes, which need no training.
        ends_with_search = searches and given.gradient == "auto" and codes.of_lasso
        if given.separate_atoms:  # in `partial_fit`: the encoder follows the lasso's dictionary
            gradient = "dec"
        elif given.gradient != "auto":
            gradient = given.gradient
        else:
            gradient = "dec" if ends_with_search else "ae-ls"
        through = gradient == "ae-ls"
        noise = given.noise if isinstance(given.noise, str) else _noise_of_features(given.noise)
        return cls(
            given=given,
            encoder=codes.encoder,
            gradient=gradient,
            name=gradient,
            searches=searches,
            trains=not (ends_with_search or given.separate_atoms),
            decay=codes.decay,
            step_size=fixed(given.step_size),
            debias=codes.debias,
            codes_follow_data=codes.follow_data,
            codes=codes,
            n_components=None if given.n_components == "auto" else given.n_components,
            curvature_share=codes.n_unfoldings**_CURVATURE_EXPONENT if through else 1.0,
            alpha_share=alpha_share,
            fit_intercept=given.fit_intercept if searches or given.fit_intercept is True else False,
            noise=noise if searches or not isinstance(noise, str) or noise != "auto" else "equal",
        )

    @property
    def learns_noise(self):
        """Whether a baseline or noise is learned or given."""
        equal = isinstance(self.noise, str) and self.noise == "equal"
        return not (equal and self.fit_intercept is False)

    def model(self, **known):
        """Return the model of the parameters, with values that data decide."""
        return DenseModel(
            self.rule(self.gradient),
            self.encoder,
            self.step_size,
            self.decay.at_last,
            self.given.atom_norm,
            self.given.positive_dict,
            **known,
        )

    def optimizer_for(self, n_rows):
        """Return the optimiser for this number of rows of parameters."""
        if self.given.optimizer != "auto":
            return self.given.optimizer
        return default_optimizer(n_rows)

    def mixes_few(self, n_components, n_features):
        """Return whether rows are mixtures of few non-negative atoms, as spectra are."""
        positive = self.given.positive_code and self.given.positive_dict
        return positive and n_components <= _FEW_OF_MIXTURES * n_features

    def trains_in_parts(self, learner):
        """Return whether `partial_fit` of the learner trains by gradients."""
        alternates = self.codes.of_lasso and self.searches and self.given.gradient == "auto"
        return not alternates or any_named(learner, _OF_BATCHES)

    def adapts(self, n_components):
        """Return whether the surrogate trains this number of atoms after a search."""
        return self.searches and self.trains and self.optimizer_for(n_components) == "surrogate"

    def batch_size(self, n_samples=None):
        """Return the size of a batch, in a fit for a number of samples, if it is known."""
        auto = self.given.batch_size == "auto"
        if auto and n_samples and self.adapts(self.n_components or 1):
            return min(max(n_samples // _BATCHES, _LEAST_ROWS // _BATCHES), _MOST_ROWS // _BATCHES)
        return super().batch_size()

    def n_updates(self, n_batches, batch_size, data):
        """Return the number of updates that training may take."""
        auto = self.given.max_iter == "auto" and self.auto_epochs is None
        if not (self.trains and auto):
            return super().n_updates(n_batches, batch_size, data)
        n_features = data.samples.x.shape[1]
        n_components = self.n_components or n_features
        if self.adapts(n_components):
            n_unfoldings = 0 if self.codes.of_lasso else self.codes.n_unfoldings
            n_epochs = n_components / (n_unfoldings + _REST_OF_AN_UPDATE)
            n_rows = min(max(n_batches * batch_size, _LEAST_ROWS), _MOST_ROWS)
            return ceil(max(n_epochs, _LEAST_EPOCHS) * n_rows / batch_size)
        push = 2 * batch_size * n_components * min(n_components, 2 * n_features)
        n_products = 1 if self.gradient == "dec" else 3  # the adjoint has two more
        affordable = _AUTO_OPERATIONS / (self.codes.n_unfoldings * n_products * push)
        return max(_AUTO_UPDATES, min(_AUTO_EPOCHS * n_batches, int(affordable)))

    def without_effect(self, data):  # yields names, setting
        """Yield parameters that have no effect in this fit, and a setting that would use them."""
        given, codes = self.given, self.codes
        yield from codes.without_effect()
        if given.separate_atoms:
            unused = "optimizer", "learning_rate", "tol", "n_iter_no_change"
            yield (*unused, "step_size", "lambda_decay"), "separate_atoms=False"
            if self.searches:
                yield ("atom_norm",), "a dict_init other than 'search'"
        else:
            yield from super().without_effect(data)
            n_components = self.n_components or data.samples.x.shape[1]
            if not self.trains:
                # atoms of a search have norm 1
                yield ("atom_norm",), self.asks_for_training
            elif self.optimizer_for(n_components) == "surrogate":
                yield ("learning_rate",), "optimizer='adam' or 'sgd'"
            if codes.of_lasso:
                yield ("step_size",), "a number for n_unfoldings"
            elif given.transform_algorithm != "lasso" and codes.debias:  # 0 removes no bias
                yield ("debias",), "codes of the lasso, n_unfoldings='auto'"
            if given.shrinkage == "hard":
                yield ("lambda_decay",), "shrinkage='soft'"
            elif given.alpha == 0:
                yield ("lambda_decay",), "a positive alpha"
