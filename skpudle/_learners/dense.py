"""Learners of rows: read data, search, and build the model of data and parameters."""

from dataclasses import replace
from functools import partial
from numbers import Integral

import numpy as np
import torch
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.validation import _check_feature_names, _check_n_features

from skpudle._data.arrays import (
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
from skpudle._data.batches import Batch, Rows, count_batches
from skpudle._data.foreign import dictionary_of, given_atoms
from skpudle._data.sources import accepts, check_exposure, open_source
from skpudle._data.tables import loaded
from skpudle._learners.base import Data, GradientLearner
from skpudle._learners.coder import DictionaryTransformer
from skpudle._learners.coding import adapt_atoms, smaller_penalty
from skpudle._learners.counts import settle, stabilised
from skpudle._learners.models import Decay, DenseModel, directions, fixed_debias, fixed_step
from skpudle._learners.online import go_on, held_back
from skpudle._learners.score import hidden_deviance
from skpudle._training.fit import Training
from skpudle._training.loop import Diverged, Trainer
from skpudle._training.messages import (
    nothing_known,
    warn_of_few_samples,
    warn_of_unknown_features,
)
from skpudle._training.state import Outcome
from skpudle._training.stopping import Stopping
from skpudle._training.team import current_team
from skpudle.encoding import default_step
from skpudle.gradients import GRADIENT_RULES
from skpudle.initialization import INITIALIZATIONS, initial_atoms
from skpudle.losses import Gaussian
from skpudle.operators import DenseDictionary, project_atoms
from skpudle.search import Problem, auto_alpha, choose_size, debias, is_done

__all__ = ["DICT_INIT", "DenseLearner", "choose_atoms", "refining_updates"]

# A search for the atoms of counts works on stabilised counts, an approximation of the likelihood;
# "dec" then continues with the likelihood itself. The explained share of the deviance of thinned
# data (benchmarks/bench_counts.py) rises from 0.406 to 0.433 for digits and from 0.146 to 0.203 for
# words.
_REFINING_EPOCHS, _REFINING_UPDATES = 6, 40

# samples that choose the penalty for codes of counts
_JUDGES = 200

# least number of samples that show whether training has raised its objective
_SAMPLES = 1024

DICT_INIT = [
    StrOptions(set(INITIALIZATIONS)),
    "array-like",
    HasMethods("transform"),  # a fitted learner
    HasMethods("getdict"),  # one of SPORCO
]


def refining_updates(n_batches):
    """Return the number of updates that adapt atoms of stabilised data to the likelihood."""
    return max(_REFINING_UPDATES, _REFINING_EPOCHS * n_batches)


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
    """Return given atoms, and the given baseline as the last row, if the loss has one."""
    if (intercept is None) != (loss == "gaussian"):
        if intercept is not None:
            raise ValueError(f"loss={loss!r} has no baseline; pass no intercept.")
        raise ValueError(
            f"loss={loss!r} has a baseline, and got none: pass it as intercept, or pass the atoms "
            "as dict_init and fit, which learns it from data."
        )
    if intercept is None:
        return atoms
    known = np.asarray(host_array(intercept))
    numbers = known.dtype.kind in "iuf" and np.isfinite(known).all()
    if known.shape != atoms.shape[1:] or not numbers:
        raise ValueError(
            f"intercept has shape {known.shape} and dtype {known.dtype}, or is not finite; pass "
            f"{atoms.shape[1]} numbers, one for each feature."
        )
    return torch.cat([atoms, to_tensor(known[None]).to(atoms)])


@torch.no_grad()
def _held_out_deviance(model, rows, data, team, alpha):  # -> float
    """Return the deviance of held-out entries of some samples, for codes with a penalty."""
    atoms, intercept = model.parts(rows)
    some = slice(None, None, max(1, len(data.sample) // _JUDGES))
    samples = (t if t is None else t[some] for t in (data.sample, data.mask, data.offset))
    options = dict(step_size=model.step(atoms), lambda_decay=model.decay(0))
    encoder = model.encoder.at(alpha, **options)
    deviance = hidden_deviance(
        model.encoder.loss,
        lambda features: encoder,
        DenseDictionary(atoms),
        lambda x, exposure: intercept if exposure is None else intercept + exposure,
    )(*samples)
    return deviance if team is None else float(team.sum(rows.new_tensor(deviance))[0])


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
    problem, (atoms, codes) = problem.thinned(state.stride), state.found
    used = torch.arange(codes.index.shape[1]) < codes.count[:, None]
    energy = atoms.new_zeros(len(atoms))
    energy.index_add_(0, codes.index[used].long(), codes.value[used].square())
    energy, n = problem.total(energy, energy.new_tensor([problem.n_samples]))
    mean = state.best_objective / float(n)
    return {"energy": to_numpy(energy / n), "mean": mean}


class DenseLearner(GradientLearner, DictionaryTransformer):
    """A learner of rows; see the subclasses for its parameters."""

    _parameter_constraints = GradientLearner._parameter_constraints | {
        "dict_init": [StrOptions({"search"}), *DICT_INIT]
    }

    # for learners without these parameters
    atom_norm = "unit"
    positive_dict = False
    _penalty = "alpha"  # name of the parameter for `alpha_`
    debias = 0.0
    separate_atoms = False
    _alpha_share = 1.0  # "auto", as a share of the search's penalty
    _refines = False  # whether training by default adapts atoms of a search to the likelihood
    _curvature_share = 1.0  # curvature for the surrogate after a search, as a share of the loss's

    @classmethod
    def from_components(cls, components, *, intercept=None, **params):
        """Return a learner that is fitted to given atoms, without data.

        Parameters
        ----------
        components : array-like of shape (n_components, n_features), Tensor or learner
            Atoms as rows, or any input of `skpudle.interoperability.dictionary_of`. They are not
            projected on the constraints.
        intercept : array-like of shape (n_features,), default=None
            The baseline of a ``loss`` other than "gaussian".
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
        learner._check_parameters()
        if beside := learner._beside_atoms():
            raise ValueError(
                f"{cls.__name__} learns {beside} from data, and got none. Pass the atoms as "
                "dict_init, and fit."
            )
        rows = _with_intercept(atoms, intercept, learner.loss)
        alpha = getattr(learner, cls._penalty)
        if alpha == "auto" and getattr(learner, "transform_algorithm", None) != "omp":
            pursuit = "" if cls._penalty != "alpha" else ", or transform_algorithm='omp'"
            raise ValueError(
                f"{cls._penalty}='auto' needs data, and there are none: pass a number{pursuit}."
            )
        model = learner._model(alpha=None if alpha == "auto" else float(alpha))
        data = Data(None, None, None, atoms.device, input_attributes(to_numpy(atoms)))
        learner._take(learner._attributes(Outcome(model, rows), data))
        return learner

    def _encoder(self):  # -> Encoder
        """Return the encoder that the parameters choose."""
        raise NotImplementedError

    @property
    def _gradient(self):
        """The name of the gradient rule."""
        raise NotImplementedError

    @property
    def _rule_name(self):
        return self._gradient

    def _beside_atoms(self):  # -> str or None
        """Name parameters that are learned in addition to atoms and baseline, if any."""

    def _check_parameters(self):
        """Raise ValueError if parameters contradict each other."""

    def _allows_nan(self):
        return True

    def _transform_encoder(self):
        self._validate_params()  # they may have been set since `fit`
        options = dict(step_size=getattr(self, "step_size_", None), lambda_decay=self.lambda_decay_)
        return self._encoder().at(self.alpha_, **options)

    def _read(self, X, y, *, known=False, part=False, exposure=None):  # -> Data
        device, X = resolve_device(self.device, X), X if is_array(X) else loaded(X)
        if known:
            _check_feature_names(self, X, reset=False)
        self._check_parameters()
        options = {"allow_nan": self._allows_nan(), "largest": self._loss().largest}
        exposure = check_exposure(exposure, X, self.loss)
        offset = None if exposure is None else to_tensor(exposure, device).log()[:, None]
        reading = dict(accept_sparse=not is_array(X) and accepts(self, X), offset=offset)
        source = open_source(X, device, batch_size=self._batch_size(), **reading, **options)
        if source is None:
            rows = check_rows(X, estimator=self, **options)
            sample, mask = split_missing(to_tensor(rows, device))
            offset = None if offset is None else offset.to(sample.dtype)
            source, seen = Rows(sample, mask=mask, offset=offset), X
        else:
            if part:
                sample = source.first(self._n_components)
            else:
                seed = self.random_state if isinstance(self.random_state, Integral) else 0
                sample = source.sample(self._n_components, int(seed))
            sample, mask = split_missing(sample)
            seen = sample
            if offset is not None:
                offset = offset[source.sampled_positions(self._n_components)].to(sample.dtype)
        if not known:
            return Data(source, sample, mask, device, input_attributes(seen), offset)
        _check_n_features(self, seen, reset=False)
        source = source.to(to_tensor(self.components_).dtype)
        return Data(source, sample, mask, device, {}, offset)

    def _some_samples(self, data):  # -> Batch
        samples = Batch(None, data.sample, mask=data.mask, offset=data.offset)
        return samples.part(slice(None, None, max(1, len(data.sample) // _SAMPLES)))

    def _rule(self, name):
        rule, loss = GRADIENT_RULES[name], self._loss()
        return rule if isinstance(loss, Gaussian) else partial(rule, loss=loss)

    def _model(self, **known):
        return DenseModel(
            self._rule(self._rule_name),
            self._encoder(),
            fixed_step(self.step_size),
            Decay.of(self.lambda_decay).at_last,
            self.atom_norm,
            self.positive_dict,
            **known,
        )

    def _new_model(self, data, generator, run=None):  # -> model, atoms
        team = current_team()
        x, offset = (
            t if t is None or team is None else team.collect(t) for t in (data.sample, data.offset)
        )
        mask = data.mask if team is None else None
        if mask is not None and not mask.any():
            raise nothing_known(self)
        # gradients of the loss are gradients for stabilised data times the noise
        x, intercept, noise, least, curvature = stabilised(self._loss(), x, mask, offset)
        square = mean_square(x)
        model = self._model(data_scale=noise**2 * square, curvature=curvature)
        penalty = max(auto_alpha(x, mask=mask), least / noise)
        if self.n_components == "auto" and run is not None:
            given = x, mask, self._search_penalty(model, penalty, noise), unit_of(square)
            atoms, size_path = self._choose_size(model, *given, generator, run)
            model = replace(model, size_path=size_path)
        else:
            start = "data" if self._searches() else self.dict_init
            inside = dict(atom_norm=self.atom_norm, positive=self.positive_dict)
            atoms = choose_atoms(start, self._n_components, x, generator, **inside)
        if run is not None:  # partial_fit may see any number of samples
            known = x.new_ones(len(x), 1) if mask is None else mask
            warn_of_unknown_features((~known.any(0)).nonzero().flatten().tolist())
            if isinstance(self.dict_init, str):  # few samples can adapt given atoms
                warn_of_few_samples(int(known.any(1).sum()), len(atoms))
        alpha = self._chosen_alpha(model, atoms, penalty, noise)
        model = replace(model, alpha=alpha)

        def rows(atoms):
            return atoms if intercept is None else torch.cat([atoms, intercept[None]])

        if not self._searches():
            return model, rows(atoms)
        if run is None:  # no search in a part of the data; from samples only "dec" finds atoms
            return replace(model, rule=self._rule("dec"), from_samples=True), rows(atoms)
        model = replace(model, curvature=self._curvature_share * curvature)
        penalty = self._search_penalty(model, penalty, noise)
        model = replace(model, search_alpha=penalty)
        if run.recorder.in_training:
            return model, rows(atoms)
        x = x if team is None else stabilised(self._loss(), data.sample, None, data.offset).x
        unit = unit_of(square)
        model, found = self._search(x, data, model, atoms, penalty, unit, run, rows)
        if intercept is None:
            return model, found
        found = settle(model, found, data, run.team)
        return model, found if self._refines else self._refined(model, found, data, generator, run)

    def _refined(self, model, rows, data, generator, run):
        """Return rows that "dec" has adapted to the likelihood, for training by another gradient.

        Callbacks and the checkpoint see the phases before and after it.
        """
        own = generator if run.team is None else run.team.own(generator)
        source = data.source.for_training(self._batch_size(), own, shuffle=True)
        # a named optimizer is for the training that follows
        name = super()._optimizer_for(rows) if self.optimizer == "auto" else None
        trainer = Trainer(
            replace(model, rule=self._rule("dec")),
            self._make_optimizer(model, rows, name),
            team=run.team,
        )
        n_updates = refining_updates(trainer.largest(count_batches(source)))
        stopping = Stopping(self.tol, self.n_iter_no_change, n_updates=n_updates)
        try:
            run.refine(Training(self._rule_name, trainer, source, stopping))
        except Diverged as error:
            self._leave(error, trainer, data)
        return trainer.optimizer.atoms.detach()

    @property
    def _n_components(self):  # -> int, or None where data decide
        return None if self.n_components == "auto" else self.n_components

    def _choose_size(self, model, x, mask, penalty, unit, generator, run):
        """Return atoms of the number that predicts held-out samples best, and what was tried."""
        problem = Problem(
            x if unit == 1 else x.double() / unit,
            penalty / unit,
            positive_code=model.encoder.positive_code,
            positive_atoms=model.positive,
            mask=mask,
            unit=unit,
        )
        interrupted = partial(getattr, run.interrupts, "pending")
        atoms, path = choose_size(problem, generator, stopped=interrupted)
        path = path._replace(objective=path.objective * unit**2)
        return atoms.to(x), path

    def _search_penalty(self, model, penalty, noise):  # -> float
        """Return the penalty of the search: that of codes, where they are those of a lasso."""
        if model.encoder.shrinkage != "soft":
            return float(penalty)
        alpha = float(self._chosen_alpha(model, None, penalty, noise))
        return alpha / noise if alpha > 0 else float(penalty)

    def _chosen_alpha(self, model, atoms, penalty, noise=1.0):  # -> float
        """Return the penalty or threshold; "auto" follows from a penalty for stabilised data."""
        alpha = getattr(self, self._penalty)
        if alpha != "auto":
            return float(alpha)
        if model.encoder.shrinkage != "hard":
            return self._alpha_share * penalty * noise
        # With the penalty b^2 / (2 s) of a nonzero code atoms enter if their correlation is above
        # b / sqrt(s); with the lasso's if it is above alpha.
        least_squares = isinstance(model.encoder.loss, Gaussian)
        step = model.step(atoms) if least_squares else default_step(DenseDictionary(atoms))
        return penalty * float(step) ** 0.5

    def _searches(self):
        return isinstance(self.dict_init, str) and self.dict_init == "search"

    def _search(self, x, data, model, atoms, penalty, unit, run, rows):
        """Return the model, and rows with the atoms of a search in stabilised data ``x``."""
        if run.trains:
            self._make_optimizer(model, atoms)  # refuses wrong parameters before the search
        problem = Problem(
            x if unit == 1 else x.double() / unit,
            penalty / unit,
            positive_code=model.encoder.positive_code,
            positive_atoms=model.positive,
            mask=data.mask,
            team=run.team,
            unit=unit,
        )

        def fitted(state):
            attributes = self._attributes_of(model, rows(state.found[0].to(atoms)), data)
            curve = np.array(state.losses)
            return attributes | {"n_iter_": len(curve), "n_steps_": 0, "loss_curve_": curve}

        goes_on = not isinstance(data.source, Rows) and isinstance(self._loss(), Gaussian)
        goes_on = goes_on and data.source.n_samples > len(x)
        if run.team is not None:
            (goes_on,) = run.team.any(goes_on)
        problem, judges = held_back(problem) if goes_on else (problem, None)
        state = run.search(problem, atoms, fitted)
        if goes_on and is_done(state):
            state = go_on(run, problem, judges, state, data.source, fitted)
        model = replace(model, stream=_energies(problem, state))
        found = debias(problem, state).to(atoms)
        follows = self._codes_follow_data() and isinstance(self._loss(), Gaussian)
        if is_done(state) and follows and not run.max_iter:
            interrupted = partial(getattr, run.interrupts, "pending")
            found, path = adapt_atoms(
                problem, state, found, debias=fixed_debias(self.debias), stopped=interrupted
            )
            model = replace(model, coding=path.summary(problem.unit))
        return model, rows(found.to(atoms))

    def _coded(self, outcome, data, run=None):
        model = outcome.model
        counts = run is not None and not isinstance(self._loss(), Gaussian)
        if counts and model.coding is None and self._codes_follow_data():
            deviance = partial(_held_out_deviance, model, outcome.rows, data, run.team)
            coding = smaller_penalty(deviance, float(model.alpha)), 0.0, None
            return replace(outcome, model=replace(model, coding=coding))
        return super()._coded(outcome, data, run)

    def _coding_problem(self, outcome, data, run):  # -> Problem, atoms
        model = outcome.model
        unit = unit_of(model.data_scale)
        problem = Problem(
            data.sample if unit == 1 else data.sample.double() / unit,
            model.alpha / unit,
            positive_code=bool(model.encoder.positive_code),
            mask=data.mask,
            team=run.team,
            unit=unit,
        )
        return problem, outcome.rows

    def _known_model(self, data):  # -> model, rows, None
        state = self._training_state
        names = "alpha", "data_scale", "curvature", "search_alpha", "coding", "stream"
        model = self._model(**{name: state[name] for name in names if name in state})
        if state["from_samples"]:
            model = replace(model, rule=self._rule("dec"), from_samples=True)
        atoms = to_tensor(self.components_, data.device)
        if model.data_scale is None:  # the first data after `from_components`
            team, x, mask = current_team(), data.sample, data.mask
            x, mask = (x, mask) if team is None else (team.collect(x), None)
            model = replace(model, data_scale=mean_square(x))
            if model.alpha is None:
                alpha = self._chosen_alpha(model, atoms, auto_alpha(x, mask=mask))
                model = replace(model, alpha=alpha)
        if self.loss == "gaussian":
            return model, atoms, None
        return model, torch.cat([atoms, to_tensor(self.intercept_, data.device)[None]]), None
