"""Learners of rows: read data, search, and build the model of data and parameters."""

from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.validation import _check_feature_names, _check_n_features

from skpudle._data.arrays import (
    check_no_picture,
    check_rows,
    host_array,
    input_attributes,
    is_array,
    mean_square,
    resolve_device,
    split_missing,
    to_numpy,
    to_tensor,
    unit_of,
)
from skpudle._data.batches import Rows, Samples, count_batches
from skpudle._data.foreign import dictionary_of, given_atoms
from skpudle._data.sources import accepts, check_exposure, open_source
from skpudle._data.tables import loaded
from skpudle._initialization import INITIALIZATIONS, initial_atoms
from skpudle._learners.base import Data, GradientLearner
from skpudle._learners.coder import DictionaryTransformer
from skpudle._learners.counts import settle, smaller_penalty, stabilised
from skpudle._learners.models import directions, noise_of
from skpudle._learners.online import go_on, preferred
from skpudle._learners.plan import default_optimizer, refining_updates
from skpudle._learners.score import hidden_deviance
from skpudle._learners.units import SourceInUnits, in_units
from skpudle._losses import loss_named
from skpudle._operators import DenseDictionary, project_atoms
from skpudle._training.fit import Training
from skpudle._training.loop import Trainer
from skpudle._training.messages import (
    nothing_known,
    warn_of_few_samples,
    warn_of_unknown_features,
    wrong_atoms,
)
from skpudle._training.state import Outcome
from skpudle._training.stopping import Stopping
from skpudle._training.team import ALONE, current_team
from skpudle.encoding._unfold import default_step
from skpudle.search import Problem, auto_alpha
from skpudle.search._coding import choose_coding
from skpudle.search._descent import refit_atoms
from skpudle.search._epoch import spread_rows
from skpudle.search._held_out import hold_out, match_equal_rows
from skpudle.search._noise import CENTRED, Noise, learn_noise, refine_noise
from skpudle.search._penalty import penalty_of_mixtures, penalty_path
from skpudle.search._search import is_done, searched
from skpudle.search._size import try_sizes

__all__ = [
    "DICT_INIT",
    "DenseLearner",
    "choose_atoms",
    "known_model",
    "read_rows",
    "start",
]

# samples that choose the penalty for codes of counts
_JUDGES = 200

# Atoms for each feature, and rows for each atom, that tell the noise before their number is chosen.
_MOST_OF_AUTO, _ROWS_OF_AUTO = 4, 8

# least number of samples that show whether training has raised its objective
_SAMPLES = 1024

DICT_INIT = [
    StrOptions(set(INITIALIZATIONS)),
    "array-like",
    HasMethods("transform"),  # a fitted learner
    HasMethods("getdict"),  # one of SPORCO
]


def choose_atoms(dict_init, n_components, x, generator, *, atom_norm="unit", positive=False):
    """Return initial atoms, by name or given ones, within the constraints."""
    if isinstance(dict_init, str):
        n_components = x.shape[1] if n_components is None else n_components
        atoms = initial_atoms(x, n_components, dict_init, generator)
        atoms = directions(atoms, positive=positive)
    else:
        atoms = given_atoms(dict_init, n_components, x)
    return project_atoms(atoms, atom_norm=atom_norm, positive=positive)


def _with_intercept(atoms, intercept, loss):  # -> rows of parameters
    """Return given atoms, and the given baseline as the last row, if training learns it."""
    if intercept is None and loss != "gaussian":
        raise ValueError(
            f"loss={loss!r} has a baseline, and got none: pass it as intercept, or pass the atoms "
            "as dict_init and fit, which learns it from data."
        )
    if loss == "gaussian":
        return atoms
    return torch.cat([atoms, to_tensor(_of_features(intercept, atoms)[None])])


def _of_features(values, atoms):  # -> ndarray of shape (n_features,), in the atoms' dtype
    """Check numbers for each feature."""
    known = np.asarray(host_array(values))
    numbers = known.dtype.kind in "iuf" and np.isfinite(known).all()
    if known.shape != atoms.shape[1:] or not numbers:
        raise ValueError(
            f"intercept has shape {known.shape} and dtype {known.dtype}, or is not finite; pass "
            f"{atoms.shape[1]} numbers, one for each feature."
        )
    return known.astype(to_numpy(atoms[:0]).dtype)


@torch.no_grad()
def _held_out_deviance(model, rows, samples, team, alpha):  # -> float
    """Return the deviance of held-out entries of some samples, for codes with a penalty."""
    atoms, intercept = model.parts(rows)
    some = samples[spread_rows(len(samples), _JUDGES)]
    options = dict(step_size=model.step(atoms), lambda_decay=model.decay(0))
    encoder = model.encoder.at(alpha, **options)
    deviance = hidden_deviance(
        model.encoder.loss,
        lambda features: encoder,
        DenseDictionary(atoms),
        lambda part: intercept if part.offset is None else intercept + part.offset,
        match_equal_rows(some.x.mT, None if some.mask is None else some.mask.mT),
    )(some)
    return float(*team.sum(torch.tensor(deviance, dtype=torch.float64)))


def _chosen_alpha(plan, model, atoms, penalty, noise=1.0):  # -> float
    """Return the penalty or threshold; "auto" follows from a penalty for stabilised data."""
    alpha = plan.given.alpha
    if alpha != "auto":
        return float(alpha)
    if model.encoder.shrinkage != "hard":
        return plan.alpha_share * penalty * noise
    # With the penalty b^2 / (2 s) of a nonzero code atoms enter if their correlation is above
    # b / sqrt(s); with the lasso's if it is above alpha.
    quadratic = model.encoder.loss.is_quadratic
    step = model.step(atoms) if quadratic else default_step(DenseDictionary(atoms))
    return penalty * float(step) ** 0.5


def _search_penalty(plan, model, penalty, noise):  # -> float
    """Return the penalty of the search: that of codes, where they are those of a lasso."""
    if model.encoder.shrinkage != "soft":
        return float(penalty)
    alpha = float(_chosen_alpha(plan, model, None, penalty, noise))
    return alpha / noise if alpha > 0 else float(penalty)


def _problem(model, x, mask, penalty, unit, team=ALONE):  # -> Problem
    """Return the search's problem for stabilised data, divided by a unit."""
    return Problem(
        x if unit == 1 else x.double() / unit,
        penalty / unit,
        positive_code=bool(model.encoder.positive_code),
        positive_atoms=model.positive,
        mask=mask,
        total=team.sum,
        unit=unit,
    )


def _energies(problem, state):
    """Return how a search ended, for a later `partial_fit`.

    Parameters
    ----------
    problem : Problem
        Data and objective of the search.
    state : SearchState
        The search.

    Returns
    -------
    dict
        The mean square of the codes of each atom, and the mean objective of a row.
    """
    problem, (atoms, codes) = searched(problem, state), state.found
    places = torch.arange(codes.index.shape[1], device=codes.index.device)
    used = places < codes.count[:, None]
    energy = codes.value.new_zeros(len(atoms))
    energy.index_add_(0, codes.index[used].long(), codes.value[used].square())
    energy, n = problem.total(energy.cpu().double(), atoms.new_tensor([problem.n_samples]))
    mean = state.best_objective / float(n)
    return {"energy": to_numpy(energy / n), "mean": mean}


def _search(plan, model, problem, rows_of, atoms, data, run):
    """Return the model, and rows with the atoms of a search."""
    if run.trains:
        plan.make_optimizer(model, atoms)  # refuses wrong parameters before the search

    def fitted(state):
        return run.fitted(model, rows_of(state.found[0].to(atoms)), state.losses)

    goes_on = plan.encoder.loss.is_quadratic and not isinstance(data.source, Rows)
    goes_on = goes_on and data.source.n_samples > len(problem.x)
    (goes_on,) = run.team.any(goes_on)
    fixed = plan.given.alpha != "auto"
    mixes = plan.mixes_few(*atoms.shape) and problem.mask is None and run.team.is_alone
    if mixes and not fixed:
        problem = replace(problem, alpha=penalty_of_mixtures(problem, len(atoms)))
    problem = hold_out(problem, fixed=fixed, mixes=mixes, learn=not goes_on)
    state = run.search(problem, atoms, fitted)
    held_out = problem.held_out
    if goes_on and is_done(state):
        source = (
            data.source if model.noise.changes_nothing else SourceInUnits(data.source, model.noise)
        )
        state = go_on(run, problem, state, source, fitted)
    model = replace(
        model,
        stream=_energies(problem, state),
        search_alpha=state.alpha * problem.unit,
        penalty_path=penalty_path(problem, state.path, problem.unit),
    )
    found = state.found[0]
    if state.is_unbiased:
        refit = partial(refit_atoms, searched(problem, state), *state.found)
        found = run.make_step("unbiased atoms", refit, partial(fitted, state))
        if goes_on:
            found = preferred(held_out.problem, found, state.found[0])
    chooses = plan.codes_follow_data and plan.encoder.loss.is_quadratic
    if chooses and is_done(state) and held_out is not None:
        options = dict(debias=plan.debias, place=state.trials[0].prediction.place)
        choose = partial(choose_coding, held_out, state.unseen, **options)
        path = run.make_step("penalty of codes", choose, partial(fitted, state))
        model = replace(model, coding=path.summary(problem.unit))
    return model, rows_of(found.to(atoms))


def _refined(plan, model, rows, data, generator, run):  # -> rows
    """Return rows that "dec" has adapted to the likelihood, for training by another gradient.

    Callbacks and the checkpoint see the phases before and after it.
    """
    own = run.team.own(generator)
    source = data.source.for_training(plan.batch_size(), own, shuffle=True)
    # a named optimizer is for the training that follows
    name = default_optimizer(len(rows)) if plan.given.optimizer == "auto" else None
    trainer = Trainer(
        replace(model, rule=plan.rule("dec")),
        plan.make_optimizer(model, rows, name),
        team=run.team,
    )
    n_updates = refining_updates(run.team.largest(count_batches(source)))
    stopping = Stopping(plan.given.tol, plan.given.n_iter_no_change, n_updates=n_updates)
    run.refine(Training(plan.name, trainer, source, stopping))
    return trainer.optimizer.atoms.detach()


def _raw_problem(plan, samples):  # -> Problem
    """Return the rows of a fit as they are, with the signs of codes and atoms."""
    signs = dict(positive_code=bool(plan.encoder.positive_code))
    signs["positive_atoms"] = bool(plan.given.positive_dict)
    unit = unit_of(mean_square(samples.x))
    x = samples.x if unit == 1 else samples.x.double() / unit
    return Problem(x, 1.0, mask=samples.mask, unit=unit, **signs)


def _learn_noise(plan, samples, generator, run):  # -> Noise
    """Return the units of the data: baseline and noise."""
    n_features = samples.x.shape[1]
    if not isinstance(plan.noise, str) and len(plan.noise) != n_features:
        raise ValueError(
            f"noise has {len(plan.noise)} standard deviations, but X has {n_features} features. "
            "Pass one for each feature."
        )
    asked = dict(intercept=plan.fit_intercept, noise=plan.noise)
    n_components = plan.n_components or n_features
    if plan.given.n_components == "auto":  # too few atoms would make rows look noisy
        n_components = max(
            n_features, min(_MOST_OF_AUTO * n_features, len(samples) // _ROWS_OF_AUTO)
        )
    trials = learn_noise(_raw_problem(plan, samples), n_components, generator, **asked)
    if run is None:
        *_, last = trials
        return last.noise

    def fitted(trial):
        model = plan.model(alpha=trial.alpha, data_scale=mean_square(samples.x), noise=trial.noise)
        return run.fitted(model, trial.atoms.to(samples.x))

    return run.learn_noise(trials, fitted).noise


def _outliers(known, counts):  # -> Tensor of shape (n_outliers, 2) or None
    """Return the places of known entries that do not count."""
    if counts is None:
        return None
    known = torch.ones_like(counts) if known is None else known
    return ((known > 0) & (counts == 0)).nonzero().cpu()


def _refined_noise(plan, model, problem, rows, samples, run):  # -> model
    """Return the model with the baseline and the noise of rows that its atoms leave."""
    if model.noise.intercept is None and model.noise.rows is None:
        return model
    alpha = model.coding[0] if model.coding else model.search_alpha
    given = model.noise, _raw_problem(plan, samples), rows, float(alpha)
    refine = partial(refine_noise, *given)
    noise = run.make_step("noise of rows", refine, partial(run.fitted, model, rows))
    return replace(model, noise=noise)


def start(plan, data, generator, run=None):  # -> model, rows
    """Return the model for data and parameters, and its rows after a search.

    Without a ``run`` nothing is searched: `partial_fit` begins with the initial rows.
    """
    team = current_team()
    samples = samples_given = team.collect(data.samples)
    resumes = run is not None and run.recorder.in_training
    units = CENTRED
    if plan.learns_noise and not resumes:
        units = _learn_noise(plan, samples, generator, run)
        samples = in_units(units, samples)
    # gradients of the loss are gradients for stabilised data times the noise
    x, intercept, noise, least, curvature = stabilised(plan.encoder.loss, samples)
    mask = samples.mask
    square = mean_square(x)
    model = plan.model(data_scale=noise**2 * square, curvature=curvature, noise=units)
    penalty, unit = max(auto_alpha(x, mask=mask), least / noise), unit_of(square)
    decides = plan.given.n_components == "auto" and run is not None

    def rows_of(atoms):
        return atoms if intercept is None else torch.cat([atoms, intercept[None]])

    if decides and not resumes:
        problem = _problem(model, x, mask, _search_penalty(plan, model, penalty, noise), unit)

        def fitted(trial):
            atoms = trial.atoms.to(x)
            alpha = _chosen_alpha(plan, model, atoms, penalty, noise)
            found = replace(model, alpha=alpha, size_path=trial.path)
            return run.fitted(found, rows_of(atoms))

        trials = try_sizes(problem, generator, fixed=plan.given.alpha != "auto")
        trial = run.choose_size(trials, fitted)
        penalty *= trial.alpha / problem.alpha
        atoms, model = trial.atoms.to(x), replace(model, size_path=trial.path)
    else:
        mixes = plan.n_components and plan.mixes_few(plan.n_components, x.shape[1])
        first = ("vertices" if mixes else "data") if plan.searches else plan.given.dict_init
        inside = dict(atom_norm=model.atom_norm, positive=model.positive)
        n_components = plan.n_components
        if decides:
            n_components = run.recorder.n_rows - model.n_constant_codes
        atoms = choose_atoms(first, n_components, x, generator, **inside)
    if run is not None:  # partial_fit may see any number of samples
        known = x.new_ones(len(x), 1) if mask is None else mask
        unknown = (~known.any(0)).nonzero().flatten().tolist()
        warn_of_unknown_features(unknown, data.inputs.get("feature_names_in_"))
        if isinstance(plan.given.dict_init, str):  # few samples can adapt given atoms
            warn_of_few_samples(int(known.any(1).sum()), len(atoms))
    model = replace(model, alpha=_chosen_alpha(plan, model, atoms, penalty, noise))
    if resumes:
        return run.recorder.restore_model(model, rows_of(atoms)), rows_of(atoms)
    if not plan.searches:
        return model, rows_of(atoms)
    if run is None:  # no search in a part of the data; from samples only "dec" finds atoms
        return replace(model, rule=plan.rule("dec"), from_samples=True), rows_of(atoms)
    penalty = _search_penalty(plan, model, penalty, noise)
    model = replace(model, curvature=plan.curvature_share * curvature, search_alpha=penalty)
    if not team.is_alone:  # initial values are from samples of all, and the search sums over all
        own = in_units(units, data.samples)
        x, mask = stabilised(plan.encoder.loss, replace(own, mask=None)).x, own.mask
    problem = _problem(model, x, mask, penalty, unit, run.team)
    if units.spread is not None and isinstance(data.source, Rows):
        model = replace(model, outliers=_outliers(data.samples.mask, mask))
    model, found = _search(plan, model, problem, rows_of, atoms, data, run)
    if plan.learns_noise:
        model = _refined_noise(plan, model, problem, found, samples_given, run)
    if intercept is None:
        return model, found
    found = settle(model, found, data.samples, run.team)
    return model, found if plan.refines else _refined(plan, model, found, data, generator, run)


def known_model(plan, data, fitted, intercept=None):  # -> model, rows
    """Return the model and the rows of fitted attributes, by name."""
    state, given = fitted["_training_state"], plan.given.alpha
    names = "data_scale", "curvature", "search_alpha", "stream"
    alpha, coding, seen = fitted.get("alpha_"), None, state["data_scale"]
    # from zeros alone `fit` has no penalty but the search's
    is_chosen = "coding" in state and (seen or alpha != state["alpha"])
    if given not in ("auto", state["given"]["alpha"]):  # was set after fit
        alpha = float(given)
    elif is_chosen or (plan.codes_follow_data and alpha is not None and seen):
        debias = fitted["debias_"] if plan.debias is None else plan.debias
        alpha, coding = state["alpha"], (alpha, debias, fitted.get("noise_std_"))
    known = {name: state[name] for name in names if name in state}
    model = plan.model(alpha=alpha, coding=coding, **known)
    if state["from_samples"]:
        model = replace(model, rule=plan.rule("dec"), from_samples=True)
    noise = noise_of(state["noise"])
    atoms = noise.from_user(to_tensor(fitted["components_"], data.device))
    model = replace(model, noise=noise)
    if not seen:  # the first data after `from_components`, or after zeros
        samples = in_units(noise, current_team().collect(data.samples))
        model = replace(model, data_scale=mean_square(samples.x))
        if given == "auto":
            penalty = auto_alpha(samples.x, mask=samples.mask)
            alpha = _chosen_alpha(plan, model, atoms, penalty)
            model = replace(model, alpha=alpha)
    if intercept is None:
        return model, atoms
    return model, torch.cat([atoms, to_tensor(intercept, data.device)[None]])


def read_rows(learner, plan, X, y=None, *, known=False, part=False, exposure=None):  # -> Data
    """Check the rows of a learner, with ``known`` against its fitted attributes.

    ``part`` says that they are one part of several, of `partial_fit`.
    """
    device, in_memory = resolve_device(learner.device, X), is_array(X)
    X = X if in_memory else loaded(X)
    if not known:
        check_no_picture(X)
    largest = loss_named(learner.loss, learner.n_trials).largest
    options = dict(allow_nan=True, largest=largest)
    source = offset = None
    if exposure is not None:
        offset = to_tensor(check_exposure(exposure, X, learner.loss), device).log()[:, None]
    if not in_memory:
        sparse = accepts(learner, X)
        reading = dict(accept_sparse=sparse, offset=offset, learner=learner, known=known)
        source = open_source(X, device, batch_size=plan.batch_size(), **reading, **options)
    if source is None:
        if known:
            _check_feature_names(learner, X, reset=False)
        rows = check_rows(X, estimator=learner, **options)
        x, mask = split_missing(to_tensor(rows, device))
        samples = Samples(x, mask, None if offset is None else offset.to(x.dtype))
        source, seen = Rows(samples), X
    else:
        if part:
            seen = source.first(plan.n_components)
        else:
            seed = learner.random_state if isinstance(learner.random_state, Integral) else 0
            seen = source.sample(plan.n_components, int(seed))
        if offset is not None:
            offset = offset[source.sampled_positions(plan.n_components)].to(seen.dtype)
        samples = Samples(*split_missing(seen), offset)
    if not known:
        inputs = input_attributes(seen)
        if not isinstance(source, Rows):
            inputs["feature_names_in_"] = source.reader.names
        return Data(source, samples, device, inputs)
    _check_n_features(learner, seen, reset=False)
    if np.shape(learner.components_)[1:] != (samples.x.shape[1],):
        raise wrong_atoms(learner, samples.x.shape[1])
    source = source.to(to_tensor(learner.components_).dtype)
    return Data(source, samples, device, {})


class DenseLearner(GradientLearner, DictionaryTransformer):
    """A learner of rows; see the subclasses for its parameters."""

    _parameter_constraints = GradientLearner._parameter_constraints | {
        "dict_init": [StrOptions({"search"}), *DICT_INIT]
    }

    _penalty = "alpha"  # name of the parameter for `alpha_`

    @classmethod
    def from_components(
        cls,
        components: Any,
        *,
        intercept: ArrayLike | None = None,
        **params: Any,
    ) -> Self:
        """Return a learner that is fitted to given atoms, without data.

        Parameters
        ----------
        components : array-like of shape (n_components, n_features), Tensor or learner
            Atoms as rows, or a fitted learner of this package, scikit-learn or SPORCO. They are
            not projected on the constraints.
        intercept : array-like of shape (n_features,), default=None
            The baseline of rows, ``intercept_``; for ``loss="gaussian"`` by default none.
        **params : dict
            Parameters of the learner. Without data the penalty or threshold must be a number, not
            "auto", unless ``transform_algorithm="omp"`` needs none.

        Returns
        -------
        estimator
            Ready for `transform`, and for `partial_fit`, whose first data choose values for
            "auto".

        Raises
        ------
        ValueError
            If the atoms are no matrix of finite numbers, if the penalty or the baseline is missing,
            or if the learner learns more than atoms, such as the weights of a task.

        Examples
        --------
        >>> import numpy as np
        >>> from skpudle import PUDLEDictionaryLearning
        >>> learner = PUDLEDictionaryLearning.from_components(np.eye(3), alpha=0.5)
        >>> learner.transform([[1.0, -0.25, 0.0]])
        array([[0.5, 0. , 0. ]])
        """
        atoms = to_tensor(check_rows(dictionary_of(components)))
        learner = cls(len(atoms), **params)
        learner._validate_params()
        plan = learner._plan()
        if plan.given.separate_atoms:
            raise ValueError(
                f"{cls.__name__} learns the encoder of separate_atoms from data, and got none. "
                "Pass the atoms as dict_init, and fit."
            )
        rows = _with_intercept(atoms, intercept, learner.loss)
        noise = CENTRED
        if intercept is not None and learner.loss == "gaussian":
            noise = Noise(intercept=to_tensor(_of_features(intercept, atoms)))
        alpha = getattr(learner, cls._penalty)
        if alpha == "auto" and getattr(learner, "transform_algorithm", None) != "omp":
            pursuit = "" if cls._penalty != "alpha" else ", or transform_algorithm='omp'"
            raise ValueError(
                f"{cls._penalty}='auto' needs data, and there are none: pass a number{pursuit}."
            )
        model = plan.model(alpha=None if alpha == "auto" else float(alpha), noise=noise)
        data = Data(None, None, atoms.device, input_attributes(to_numpy(atoms)))
        learner._take(learner._attributes(plan, Outcome(model, rows), data))
        return learner

    _read = read_rows

    def _some_samples(self, data):  # -> Samples
        return data.samples[spread_rows(len(data.samples), _SAMPLES)]

    def _new_model(self, plan, data, generator, run=None):  # -> model, rows
        mask = data.samples.mask
        (known,) = current_team().any(mask is None or mask.any())
        if not known:
            raise nothing_known(self)
        return start(plan, data, generator, run)

    def _known_model(self, plan, data):  # -> model, rows, None
        baseline = None if self.loss == "gaussian" else self.intercept_
        return *known_model(plan, data, vars(self), baseline), None

    def _attributes(self, plan, outcome, data, unused=None):
        fitted = super()._attributes(plan, outcome, data, unused) | {"outliers_": None}
        outliers = getattr(outcome.model, "outliers", None)
        if outliers is not None and len(outliers):
            shape, places = (len(data.samples), outcome.rows.shape[1]), to_numpy(outliers).T
            values = np.ones(places.shape[1], bool)
            fitted["outliers_"] = csr_array((values, places), shape=shape)
        return fitted

    def _in_units(self, plan, model, data, run=None):  # -> Data
        if model.noise.changes_nothing:
            return data
        if run is not None and run.trains:
            run.source = SourceInUnits(run.source, model.noise)
        # rows of their own noise are coded for it, only if somebody asks for them
        asks = run is None or run.trains or model.coding is None or plan.given.separate_atoms
        samples = in_units(model.noise, data.samples) if asks else data.samples
        return data._replace(source=SourceInUnits(data.source, model.noise), samples=samples)

    def _coded(self, plan, outcome, data, interrupts, run=None):
        model = outcome.model
        decides = run is not None and outcome.ended_by != "interrupt"
        counts = decides and not plan.encoder.loss.is_quadratic
        if counts and model.coding is None and plan.codes_follow_data:
            deviance = partial(_held_out_deviance, model, outcome.rows, data.samples, run.team)
            choose = partial(smaller_penalty, deviance, float(model.alpha))
            fitted = partial(self._attributes, plan, outcome, data)
            coding = run.make_step("penalty of codes", choose, fitted), 0.0, None
            return replace(outcome, model=replace(model, coding=coding))
        return super()._coded(plan, outcome, data, interrupts, run)

    def _coding_problem(self, outcome, data, run):  # -> Problem, atoms
        model = outcome.model
        unit = unit_of(model.data_scale)
        x, mask = data.samples.x, data.samples.mask
        return _problem(model, x, mask, model.alpha, unit, run.team), outcome.rows
