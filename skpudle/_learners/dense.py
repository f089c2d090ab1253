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
    mean_square,
    resolve_device,
    split_missing,
    to_numpy,
    to_tensor,
    unit_of,
)
from skpudle._data.batches import Rows, Samples, count_batches
from skpudle._data.foreign import dictionary_of, given_atoms
from skpudle._data.names import fit_context
from skpudle._data.sources import Reader, check_exposure, open_source
from skpudle._data.weights import (
    check_sample_weight,
    known_samples,
    merge_samples,
)
from skpudle._initialization import INITIALIZATIONS, initial_atoms
from skpudle._learners.base import Data, GradientLearner
from skpudle._learners.coder import DictionaryTransformer, hidden_deviance
from skpudle._learners.counts import settle, smaller_penalty, stabilised
from skpudle._learners.models import Learned, directions
from skpudle._learners.online import go_on, preferred
from skpudle._learners.plan import default_optimizer, refining_updates
from skpudle._learners.record import FittedRows
from skpudle._learners.units import InUnits, in_units, restore_noise, units_of
from skpudle._operators._atoms import DenseDictionary, project_atoms
from skpudle._precision import training_mode
from skpudle._training.fit import Training
from skpudle._training.loop import Stopping, Trainer
from skpudle._training.messages import (
    nothing_known,
    warn_of_few_samples,
    warn_of_units,
    warn_of_unknown_features,
    wrong_atoms,
)
from skpudle._training.team import ALONE, current_team
from skpudle.encoding._unfold import default_step
from skpudle.search import Problem, auto_alpha
from skpudle.search._epoch import draw_rows, spread_rows
from skpudle.search.choose import try_sizes
from skpudle.search.find import penalty_of_mixtures, penalty_path
from skpudle.search.held_out import hold_out, match_equal_rows
from skpudle.search.units import CENTRED, Units, learn_scales, learn_units, refine_units

# samples that choose the penalty for codes of counts
_JUDGES = 200

# Most atoms per feature, and least rows per atom, of the dictionary that estimates the noise before
# the number of atoms is chosen.
_MOST_OF_AUTO, _ROWS_OF_AUTO = 4, 16

# samples of each process, at most, to choose initial atoms and alpha from
_COLLECTED = 2**14

# Share of the variance from which on a column has a unit of its own, and least number of columns.
# It is .72 and .998 for raw cancer and wine, at most .68 for iris, digits, patches and diabetes.
_ONE_COLUMN, _FEW_COLUMNS = 0.7, 4

# least number of samples that show whether training has raised its objective
_SAMPLES = 1024

DICT_INIT = [
    StrOptions(set(INITIALIZATIONS)),
    "array-like",
    HasMethods("transform"),  # fitted learners
    HasMethods("getdict"),  # SPORCO's learners
]


def choose_atoms(
    dict_init, n_components, x, generator, *, atom_norm="unit", positive=False, weight=None
):
    """Return initial atoms, by name or given ones, within the constraints."""
    if isinstance(dict_init, str):
        n_components = x.shape[1] if n_components is None else n_components
        atoms = initial_atoms(x, n_components, dict_init, generator, weight=weight)
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
def _held_out_deviance(fitted, samples, team, alpha):  # -> float
    """Return the deviance of held-out entries of some samples, for codes with a penalty."""
    model = fitted.model
    atoms, intercept = model.parts(fitted.rows)
    drawn, weight = draw_rows(len(samples), _JUDGES, samples.weight)
    some = replace(samples[drawn], weight=weight)
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
    # With the penalty b^2 / (2 s) per nonzero code an atom enters if its correlation exceeds b /
    # sqrt(s); with the lasso's if it exceeds alpha.
    quadratic = model.encoder.loss.is_quadratic
    step = model.step(atoms) if quadratic else default_step(DenseDictionary(atoms))
    return penalty * float(step) ** 0.5


def _problem(model, samples, penalty, unit, team=ALONE):  # -> Problem
    """Return the problem of a search in rows, divided by a unit."""
    return Problem.in_unit(
        samples.x,
        penalty,
        unit,
        positive_code=bool(model.encoder.positive_code),
        positive_atoms=model.positive,
        mask=samples.mask,
        total=team.sum,
        weight=samples.weight,
    )


def _raw_problem(plan, samples):  # -> Problem
    """Return the problem of the rows of a fit as they are, with a penalty of one unit."""
    unit = unit_of(mean_square(samples.x, samples.weight))
    return _problem(plan.model(), samples, unit, unit)


# ------------------------------------------------------------------ the first atoms


class _Beginning:
    """Rows that a fit begins with, in units of their noise, and with counts stabilised.

    Parameters
    ----------
    plan : DensePlan
        The plan.
    samples : Samples
        The rows, of all processes.
    noise : Noise
        Their units.
    """

    def __init__(self, plan, samples, noise):
        samples = in_units(noise, samples)
        # gradients of the loss are gradients for stabilised data times the noise
        x, self.intercept, self.noise, least, curvature = stabilised(plan.encoder.loss, samples)
        self.samples, self.units = replace(samples, x=x), noise
        square = mean_square(x, samples.weight)
        self.unit = unit_of(square)
        # without a penalty
        self.model = plan.model(data_scale=self.noise**2 * square, curvature=curvature)
        penalty = auto_alpha(x, mask=samples.mask, weight=samples.weight)
        self.penalty = max(penalty, least / self.noise)
        self._plan = plan

    def first_atoms(self, n_components, generator):
        """Return initial atoms: given ones, or for a search samples or the vertices of mixtures."""
        plan, given, samples = self._plan, self._plan.given, self.samples
        start = given.dict_init
        if plan.searches:
            mixes = n_components and plan.mixes_few(n_components, samples.x.shape[1])
            start = "vertices" if mixes else "data"
        inside = dict(atom_norm=given.atom_norm, positive=given.positive_dict)
        how = inside | {"weight": samples.weight}
        return choose_atoms(start, n_components, samples.x, generator, **how)

    def fitted(self, atoms, **found):  # -> FittedRows
        """Return the record of a fit with these atoms, and the penalty for them."""
        alpha = _chosen_alpha(self._plan, self.model, atoms, self.penalty, self.noise)
        model = replace(self.model, alpha=alpha)
        return FittedRows(model=model, rows=self.rows_of(atoms), noise=self.units, **found)

    def rows_of(self, atoms):
        """Return the rows of parameters of atoms."""
        return atoms if self.intercept is None else torch.cat([atoms, self.intercept[None]])

    def search_penalty(self):  # -> float
        """Return the penalty of the search: the penalty of codes, if they are codes of a lasso."""
        if self.model.encoder.shrinkage != "soft":
            return float(self.penalty)
        alpha = float(_chosen_alpha(self._plan, self.model, None, self.penalty, self.noise))
        return alpha / self.noise if alpha > 0 else float(self.penalty)


def collect(samples):  # -> Samples
    """Return samples of all processes, at most 2**14 of each; of several without marks of gaps."""
    team = current_team()
    if team.is_alone:
        return samples
    if any(team.any(samples.weight is not None)):
        samples = replace(samples, weight=samples.weigh(torch.ones_like(samples.x[:, 0])))
    return replace(samples, mask=None)[spread_rows(len(samples), _COLLECTED)].map(team.gather)


def _warn_of_samples(plan, begun, data, n_components):
    x, mask = begun.samples.x, begun.samples.mask
    known = x.new_ones(len(x), 1) if mask is None else mask
    unknown = (~known.any(0)).nonzero().flatten().tolist()
    warn_of_unknown_features(unknown, data.inputs.get("feature_names_in_"))
    if isinstance(plan.given.dict_init, str):  # given atoms need fewer samples
        has_values = known.any(1)
        if data.places is not None and current_team().is_alone:  # with copies
            has_values = has_values[data.places[data.places >= 0].to(x.device)]
        warn_of_few_samples(int(has_values.sum()), n_components)


# ------------------------------------------------------------------ phases before training


def _first_attributes(plan, samples, run):
    """Return the fitted attributes of the first atoms, for callbacks before there are units."""
    begun = _Beginning(plan, samples, CENTRED)
    generator = torch.Generator().manual_seed(run.generator.initial_seed())
    return run.attributes_of(begun.fitted(begun.first_atoms(plan.n_components, generator)))


def _warn_of_units(samples):
    """Warn of a column that has nearly all of the variance: its unit differs from the others'."""
    x, m = samples.x, samples.x.shape[1]
    known = torch.ones_like(x[:1]) if samples.mask is None else samples.mask
    weight = samples.weigh(known.expand_as(x))
    n = weight.sum(0).clamp_min(1)
    mean = (weight * x).sum(0) / n
    variances = (weight * (x - mean).square()).sum(0) / n
    column = int(variances.argmax())
    if m >= _FEW_COLUMNS and variances[column] > _ONE_COLUMN * variances.sum():
        warn_of_units(column, float(variances[column] / variances.sum()))


def _learn_units(plan, samples):  # -> Units
    """Learn the units of the data: baseline, outliers, and the noise that is named."""
    if isinstance(plan.noise, str) and plan.noise in ("auto", "outliers"):
        _warn_of_units(samples[spread_rows(len(samples), _SAMPLES)])
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
    return learn_units(_raw_problem(plan, samples), n_components, **asked)


def _choose_size(plan, begun, run):  # -> FittedRows
    """Choose the number of atoms, see `skpudle.search.choose`."""
    problem = _problem(begun.model, begun.samples, begun.search_penalty(), begun.unit)

    def fitted(trial):
        return begun.fitted(trial.atoms.to(begun.samples.x), size_path=trial.path)

    trials = try_sizes(problem, run.generator, fixed=plan.given.alpha != "auto")
    trial = run.make_trials(trials, lambda trial: run.attributes_of(fitted(trial)))
    begun.penalty *= trial.alpha / problem.alpha
    return fitted(trial)


def _outliers(given, samples):  # -> Tensor of shape (n_outliers, 2)
    """Return the places of known entries that do not count in the units of the data."""
    known = torch.ones_like(given.x) if given.mask is None else given.mask
    counts = known if samples.mask is None else samples.mask
    return ((known > 0) & (counts == 0)).nonzero().cpu()


def _energies(found):
    """Return the energies of atoms at the end of a search, for a later `partial_fit`.

    Parameters
    ----------
    found : Found
        The search.

    Returns
    -------
    dict
        The mean square of the codes of each atom, and the mean objective of a row.
    """
    coded, problem = found.coded, found.coded.problem
    (n,) = problem.total(torch.tensor([problem.total_weight], dtype=torch.float64))
    return {"energy": to_numpy(coded.energies() / n), "mean": coded.objective / float(n)}


def _search(plan, begun, fitted, data, run):  # -> FittedRows
    """Search for atoms, in a sample and in all rows; take the lasso's bias from them.

    Held-out rows choose the penalty of the codes.
    """
    penalty = begun.search_penalty()
    curvature = plan.curvature_share * begun.model.curvature
    fitted = replace(fitted.with_model(curvature=curvature), search_alpha=penalty)
    atoms, _ = fitted.model.parts(fitted.rows)
    samples, noise = begun.samples, fitted.noise
    if not run.team.is_alone:  # initial values are from samples of all processes
        own = fitted.in_units(data.samples)
        x = stabilised(plan.encoder.loss, replace(own, mask=None)).x
        samples = replace(own, x=x)
    problem = _problem(fitted.model, samples, penalty, begun.unit, run.team)
    problem = replace(problem, has_baseline=noise.intercept is not None and noise.rows is None)
    if not (noise.limit is noise.norm is None) and data.places is not None:
        fitted = replace(fitted, outliers=_outliers(data.samples, samples))
    if run.n_updates:
        plan.make_optimizer(fitted.model, atoms)  # refuses wrong parameters before the search

    def attributes_of(found):
        rows = begun.rows_of(found.atoms.to(atoms))
        return run.attributes_of(replace(fitted, rows=rows, losses=found.losses))

    in_parts = plan.encoder.loss.is_quadratic and not isinstance(data.source, Rows)
    (in_parts,) = run.team.any(in_parts and data.source.n_samples > len(problem.x))
    fixed = plan.given.alpha != "auto"
    mixes = plan.mixes_few(*atoms.shape) and problem.mask is None and run.team.is_alone
    if mixes and not fixed:
        problem = replace(problem, alpha=penalty_of_mixtures(problem, len(atoms)))
    problem = hold_out(problem, fixed=fixed, mixes=mixes, learn=not in_parts)
    found = run.search(problem, atoms, attributes_of)
    baseline = found.coded.problem.baseline
    if baseline is not None:
        problem = problem.around(baseline)
        intercept = noise.intercept + baseline.to(noise.intercept) * problem.unit
        fitted = replace(fitted, noise=replace(noise, intercept=intercept))
    if in_parts and found.is_done:
        source = fitted.source_in_units(data.source)
        found = go_on(run, problem, found, source, attributes_of)
    fitted = replace(
        fitted,
        stream=_energies(found),
        search_alpha=found.alpha * problem.unit,
        penalty_path=penalty_path(problem, found.path, problem.unit),
    )
    held_out, now = problem.held_out, partial(attributes_of, found)
    refitted = run.refit(found, now)
    if in_parts and found.is_unbiased:
        refitted = preferred(held_out.problem, refitted, found.atoms)
    fitted = replace(fitted, rows=begun.rows_of(refitted.to(atoms)))
    chooses = plan.codes_follow_data and plan.encoder.loss.is_quadratic
    if not (chooses and found.is_done and held_out is not None):
        return fitted
    options = dict(debias=plan.debias, place=found.trial.prediction.place)
    coding = run.choose_coding(held_out, found.trial.judged, problem.unit, now, **options)
    return replace(fitted, coding=coding)


def _learn_scales(plan, fitted, samples, run):  # -> Units
    """Learn the noise of features that atoms leave; see `skpudle.search.units`."""
    alpha = fitted.coding[0] if fitted.coding else fitted.search_alpha
    given = fitted.noise, _raw_problem(plan, samples), fitted.rows, float(alpha)
    return run.make_step("noise", partial(learn_scales, *given), partial(run.attributes_of, fitted))


def _refine_units(plan, fitted, samples, run):
    """Estimate baseline, limits and the noise of rows anew, from residuals of the atoms."""
    noise = fitted.noise
    if noise.intercept is None and not noise.looks_at_rows:
        return fitted
    alpha = fitted.coding[0] if fitted.coding else fitted.search_alpha
    given = noise, _raw_problem(plan, samples), fitted.rows, float(alpha)
    refine = partial(refine_units, *given)
    refined = run.make_step("units again", refine, partial(run.attributes_of, fitted))
    return replace(fitted, noise=refined)


def _refine_atoms(plan, fitted, data, run):  # -> FittedRows
    """Adapt atoms of stabilised counts to the likelihood by "dec", before another gradient."""
    rows = fitted.rows
    source = data.source.for_training(plan.batch_size(), run.own, shuffle=True)
    # a named optimizer is for the later training
    name = default_optimizer(len(rows)) if plan.given.optimizer == "auto" else None
    trainer = Trainer(
        fitted.with_model(rule=plan.rule("dec")),
        plan.make_optimizer(fitted.model, rows, name),
        team=run.team,
    )
    n_updates = refining_updates(run.team.largest(count_batches(source)))
    stopping = Stopping(plan.given.tol, plan.given.n_iter_no_change, n_updates=n_updates)
    now = partial(run.attributes_of, fitted)
    run.refine(Training(plan.name, trainer, source, stopping, attributes=now))
    return replace(fitted, rows=trainer.optimizer.atoms.detach())


# ------------------------------------------------------------------ what was fitted before


def resume_rows(plan, data, attributes, intercept=None):  # -> FittedRows
    """Return the record of fitted attributes, by name."""
    state, given = attributes["_training_state"], plan.given.alpha
    noise, noise_std = restore_noise(state["noise"]), attributes.get("noise_std_")
    if noise_std is not None and noise.scale is not None:
        noise_std = float((noise_std / to_numpy(noise.scale)).mean())  # in units of the noise
    alpha, coding, seen = attributes.get("alpha_"), None, state["data_scale"]
    # after zeros alone only the search's penalty exists
    is_chosen = "coding" in state and (seen or alpha != state["alpha"])
    if given not in ("auto", state["given"]["alpha"]):  # alpha was set after the fit
        alpha = float(given)
    elif is_chosen or (plan.codes_follow_data and alpha is not None and seen):
        debias = attributes["debias_"] if plan.debias is None else plan.debias
        alpha, coding = state["alpha"], (alpha, debias, noise_std)
    known = {name: state[name] for name in ("data_scale", "curvature") if name in state}
    model = plan.model(alpha=alpha, **known)
    if state["from_samples"]:
        model = replace(model, rule=plan.rule("dec"), from_samples=True)
    atoms = noise.from_user(to_tensor(attributes["components_"], data.device))
    noise = replace(noise, atoms=atoms)
    if not seen:  # first data after `from_components` or zeros
        samples = in_units(noise, data.samples)
        model = replace(model, data_scale=mean_square(samples.x, samples.weight))
        if given == "auto":
            penalty = auto_alpha(samples.x, mask=samples.mask, weight=samples.weight)
            model = replace(model, alpha=_chosen_alpha(plan, model, atoms, penalty))
    rows = atoms
    if intercept is not None:
        rows = torch.cat([atoms, to_tensor(intercept, data.device)[None]])
    known = {name: state[name] for name in ("search_alpha", "stream") if name in state}
    return FittedRows(model=model, rows=rows, noise=noise, coding=coding, **known)


# ------------------------------------------------------------------ learners


def read_rows(
    learner, plan, given, *, known=False, part=False, exposure=None, weight=None, target=None
):
    """Check the rows of a learner, with ``known`` against its fitted attributes.

    Parameters
    ----------
    learner : estimator
        The learner.
    plan : Plan
        Its plan.
    given : InMemory or source
        The user's X, see `skpudle._data.sources.open_source`.
    known : bool, default=False
        Whether the learner is fitted.
    part : bool, default=False
        Whether the rows are one part of several, of `partial_fit`.
    exposure : ndarray of shape (n_samples,), default=None
        Exposures, checked.
    weight : Tensor of shape (n_samples,), default=None
        How often each row counts, checked.
    target : Tensor of shape (n_samples, n_targets), default=None
        Targets of rows in memory, checked.

    Returns
    -------
    Data
        The rows.
    """
    device = resolve_device(learner.device, given.data)
    options = dict(allow_nan=True, largest=plan.encoder.loss.largest)
    offset = None if exposure is None else to_tensor(exposure, device).log()[:, None]
    if not given.in_parts:
        X = given.array()
        if known:
            _check_feature_names(learner, X, reset=False)
        else:
            check_no_picture(X)
        rows = check_rows(X, estimator=learner, **options)
        x, mask = split_missing(to_tensor(rows, device))
        samples = Samples(x, mask, None if offset is None else offset.to(x.dtype))
        if weight is not None:
            samples = replace(samples, weight=weight.to(x))
        if target is not None:
            samples = replace(samples, target=target.to(device))
        samples = known_samples(samples) if part else samples
        source, seen = Rows(samples, n_given=round(samples.total_weight)), X
    else:
        reader = Reader(device, learner=learner, known=known, **options)
        source = given.read_by(reader, plan.batch_size())
        if part:
            seed, seen = 0, source.first(plan.n_components)
        else:
            seed = learner.random_state if isinstance(learner.random_state, Integral) else 0
            seen = source.sample(plan.n_components, int(seed))
        source.weight, source.offset, at = weight, offset, slice(None)
        if offset is not None or weight is not None:
            at = source.sampled_positions(plan.n_components, int(seed))
        offset = None if offset is None else offset[at].to(seen.dtype)
        weight = None if weight is None else weight[at].to(seen)
        samples = known_samples(Samples(*split_missing(seen), offset, weight=weight))
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


def _check_known_entries(learner, data):
    mask = data.samples.mask
    (known,) = current_team().any(mask is None or mask.any())
    if not known:
        raise nothing_known(learner)


class DenseLearner(GradientLearner, DictionaryTransformer):
    """A learner of rows in units of their noise; see the subclasses for its parameters."""

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
            noise = Units(intercept=to_tensor(_of_features(intercept, atoms)))
        alpha = getattr(learner, cls._penalty)
        if alpha == "auto" and getattr(learner, "transform_algorithm", None) != "omp":
            pursuit = "" if cls._penalty != "alpha" else ", or transform_algorithm='omp'"
            raise ValueError(
                f"{cls._penalty}='auto' needs data, and there are none: pass a number{pursuit}."
            )
        model = plan.model(alpha=None if alpha == "auto" else float(alpha))
        data = Data(None, None, atoms.device, input_attributes(to_numpy(atoms)))
        fitted = FittedRows(model=model, rows=rows, noise=noise)
        learner._take(learner._attributes(plan, data, fitted))
        return learner

    def _read(self, plan, X, y=None, *, part=False, exposure=None, sample_weight=None, **options):
        given, weight = open_source(X, self), None
        if sample_weight is not None:
            weight = check_sample_weight(sample_weight, given.n_rows)
        if exposure is not None:
            exposure = check_exposure(exposure, given.n_rows, self.loss)
        data = read_rows(self, plan, given, part=part, exposure=exposure, weight=weight, **options)
        if part or not isinstance(data.source, Rows):
            return data
        n_given = round(data.samples.total_weight)
        samples, places = merge_samples(data.samples)
        return data._replace(source=Rows(samples, n_given=n_given), samples=samples, places=places)

    @fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def fit(self, X: Any, y: None = None, sample_weight: ArrayLike | None = None) -> Self:
        """Learn a dictionary.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data of shape (n_samples, n_features), or an iterable of rows that can be iterated
            again (a list is an array). Computations are in float32 for float32, otherwise in
            float64. NaN marks missing entries, which are ignored.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts in sums over rows; its codes do not depend on it. Weights
            equal repetitions, and a weight of zero equals absence. Their unit does not matter. By
            default all rows count the same.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data or parameters are unfit, which leaves the estimator unchanged; or if
            training diverges twice: it then holds the last finite dictionary.
        TypeError
            If ``X`` can be iterated only once.

        Warns
        -----
        ConvergenceWarning
            If ``max_iter`` is a number, and training ended before the objective had stalled; or if
            training raised the objective above its value without a dictionary.
        RuntimeWarning
            If ``step_size`` is too large for the dictionary.
        UserWarning
            If there are fewer samples than atoms, or features without a known value.
        """
        return self._fit(X, y, sample_weight=sample_weight)

    @fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def partial_fit(self, X: Any, y: None = None, sample_weight: ArrayLike | None = None) -> Self:
        """Update the dictionary by one pass over the data, in their order.

        The first call with data that are not all zero chooses the initial dictionary and
        ``alpha_``. A number that you set later as the penalty replaces ``alpha_``. The state of the
        optimiser persists from call to call, also through pickling, and after `fit`, unless you
        change the optimiser, or put other atoms into ``components_``, from which training goes on.
        ``lambda_decay`` has its last value throughout. Atoms that no code has used for ten samples
        per atom are replaced by the samples that were reconstructed worst.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data as for `fit`, cut into batches of ``batch_size``.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            As for `fit`; a weight of 1 is one row in all calls.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            If the data are unfit or have another number of features than before, or if ``loss``, or
            ``n_components``, was set to another value since, which leaves the estimator unchanged;
            or if training diverges twice.
        """
        return self._partial_fit(X, y, sample_weight=sample_weight)

    def _some_samples(self, data):  # -> Samples
        return data.samples[spread_rows(len(data.samples), _SAMPLES)]

    def _find(self, plan, data, run):  # -> FittedRows
        """Return the record of a fit before training: of a search, or with the initial atoms."""
        _check_known_entries(self, data)
        samples, known, noise = collect(data.samples), run.recorder.has_record, CENTRED
        if plan.learns_noise and not known:
            now = partial(_first_attributes, plan, samples, run)
            noise = run.make_step("units", partial(_learn_units, plan, samples), now)
        begun = _Beginning(plan, samples, noise)
        decides = plan.given.n_components == "auto"
        if decides and not known:
            fitted = _choose_size(plan, begun, run)
        else:
            n_components = plan.n_components
            if decides:
                n_components = run.recorder.n_rows - begun.model.n_constant_codes
            fitted = begun.fitted(begun.first_atoms(n_components, run.generator))
        _warn_of_samples(plan, begun, data, len(fitted.model.parts(fitted.rows)[0]))
        if known:
            return run.recorder.restore(fitted, run.generator)
        if plan.searches:
            fitted = _search(plan, begun, fitted, data, run)
        if plan.searches and plan.learns_noise and not run.search_was_stopped:
            fitted = self._search_again(plan, fitted, data, run, samples)
            fitted = _refine_units(plan, fitted, samples, run)
        if plan.searches and begun.intercept is not None:
            find = partial(settle, fitted.model, fitted.rows, data.samples, run.team)
            rows = run.make_step("baseline", find, partial(run.attributes_of, fitted))
            fitted = replace(fitted, rows=rows)
            fitted = fitted if plan.refines else _refine_atoms(plan, fitted, data, run)
        return run.end_search(fitted)

    def _search_again(self, plan, fitted, data, run, samples):  # -> FittedRows
        """Search once more if the noise of features differs, from atoms in units of the noise."""
        if not (isinstance(plan.noise, str) and plan.noise == "auto"):
            return fitted
        noise = _learn_scales(plan, fitted, samples, run)
        if noise is fitted.noise:
            return fitted
        begun = _Beginning(plan, samples, noise)
        atoms = noise.from_user(fitted.noise.to_user(fitted.rows))
        again = begun.fitted(atoms, size_path=fitted.size_path)
        return _search(plan, begun, again, data, run)

    def _begin(self, plan, data, generator):  # -> FittedRows
        """Return the record of a first `partial_fit`, without a search."""
        _check_known_entries(self, data)
        samples, noise = data.samples, CENTRED
        if plan.learns_noise:
            noise = _learn_units(plan, samples)
        begun = _Beginning(plan, samples, noise)
        fitted = begun.fitted(begun.first_atoms(plan.n_components, generator))
        if plan.searches:  # "dec", since other gradients fail from samples
            return fitted.with_model(rule=plan.rule("dec"), from_samples=True)
        return fitted

    def _attributes(self, plan, data, fitted, unused=None):
        attributes = super()._attributes(plan, data, fitted, unused) | {"outliers_": None}
        if fitted.outliers is not None and len(fitted.outliers):
            shape = len(data.samples) + 1, data.samples.x.shape[1]  # one more: rows without weight
            values = np.ones(len(fitted.outliers), bool), to_numpy(fitted.outliers).T
            attributes["outliers_"] = csr_array(values, shape=shape)[to_numpy(data.places)]
        return attributes

    def _encoder(self):
        """Return the encoder of rows in units of their noise."""
        raise NotImplementedError

    def _transform_encoder(self):
        """Return the encoder of rows without their baseline."""
        encoder, noise = self._encoder(), units_of(self).of_new_rows()
        if isinstance(encoder, Learned):  # it limits residuals itself
            noise = replace(noise, limit=None)
        if noise.is_equal:
            return encoder
        noise = replace(noise, intercept=None)
        return InUnits(encoder, noise, noise.gains(to_tensor(self.components_)))

    def _resume(self, plan, data):  # -> FittedRows, None
        baseline = None if self.loss == "gaussian" else self.intercept_
        return resume_rows(plan, data, vars(self), baseline), None

    def _choose_penalty(self, plan, fitted, data, run):  # -> FittedRows
        if plan.encoder.loss.is_quadratic:
            return super()._choose_penalty(plan, fitted, data, run)
        deviance = partial(_held_out_deviance, fitted, data.samples, run.team)
        choose = partial(smaller_penalty, deviance, float(fitted.model.alpha))
        alpha = run.make_step("penalty of codes", choose, partial(run.attributes_of, fitted))
        return replace(fitted, coding=(alpha, 0.0, None))

    def _coding_problem(self, fitted, data, run):  # -> Problem, atoms
        model, samples = fitted.model, fitted.in_units(data.samples)
        unit = unit_of(model.data_scale)
        found = _problem(model, samples, model.alpha, unit, run.team)
        return found, fitted.rows
