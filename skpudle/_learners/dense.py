"""Learners of rows: they read data, and build a model of them and their parameters."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.validation import _check_feature_names, _check_n_features

from skpudle._data.arrays import (
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
from skpudle._data.batches import Batch, Rows, count_batches
from skpudle._data.foreign import dictionary_of, given_atoms
from skpudle._data.sources import check_exposure, open_source
from skpudle._learners.base import Data, GradientLearner
from skpudle._learners.coder import DictionaryTransformer
from skpudle._learners.coding import adapt_atoms, smaller_penalty
from skpudle._learners.counts import settle, stabilised
from skpudle._learners.models import Decay, DenseModel, directions
from skpudle._learners.score import hidden_deviance
from skpudle._training.loop import Diverged, Trainer
from skpudle._training.messages import (
    nothing_known,
    warn_of_few_samples,
    warn_of_unknown_features,
)
from skpudle._training.stopping import Stopping
from skpudle._training.team import current_team
from skpudle.encoding import default_step
from skpudle.gradients import GRADIENT_RULES
from skpudle.initialization import INITIALIZATIONS, initial_atoms
from skpudle.losses import Gaussian
from skpudle.operators import DenseDictionary, project_atoms
from skpudle.search import Problem, auto_alpha, choose_size, debias, is_done

__all__ = ["DICT_INIT", "DenseLearner", "choose_atoms", "refining_updates"]

# A search for the atoms of counts works on what is close to the likelihood, and "dec" goes on from
# there with the likelihood itself. The deviance of thinned data (benchmarks/bench_counts.py) is
# explained to 0.433 instead of 0.406 for digits and 0.203 instead of 0.146 for words.
_REFINING_EPOCHS, _REFINING_UPDATES = 6, 40

# Samples that choose the penalty of codes of counts.
_JUDGES = 200

# Samples, at least, that tell whether training has raised its objective.
_SAMPLES = 1024

DICT_INIT = [
    StrOptions(set(INITIALIZATIONS)),
    "array-like",
    HasMethods("transform"),  # a fitted learner
    HasMethods("getdict"),  # one of SPORCO
]


def refining_updates(n_batches):
    """Return how many updates adapt what was found in stabilised data to the likelihood."""
    return max(_REFINING_UPDATES, _REFINING_EPOCHS * n_batches)


def choose_atoms(dict_init, n_components, x, generator, *, atom_norm="unit", positive=False):
    """Return initial atoms by name or as given, inside of the constraints."""
    if isinstance(dict_init, str):
        n_components = x.shape[1] if n_components is None else n_components
        atoms = initial_atoms(x, n_components, dict_init, generator)
        atoms = directions(atoms, positive=positive)
    else:
        atoms = given_atoms(dict_init, n_components, x)
    return project_atoms(atoms, atom_norm=atom_norm, positive=positive)


class DenseLearner(GradientLearner, DictionaryTransformer):
    """A learner of rows; see the subclasses for its parameters."""

    _parameter_constraints = GradientLearner._parameter_constraints | {
        "dict_init": [StrOptions({"search"}), *DICT_INIT]
    }

    # What a learner without these parameters does.
    atom_norm = "unit"
    positive_dict = False
    _penalty = "alpha"  # the parameter that `alpha_` is of
    debias = 0.0
    separate_atoms = False
    _alpha_share = 1.0  # what "auto" is, of the penalty that a dictionary is best found with
    _refines = False  # whether training is that of the likelihood after the search
    _curvature_share = 1.0  # of the loss's, for the surrogate after a search

    @classmethod
    def from_components(cls, components, *, intercept=None, **params):
        """Return a learner that is fitted to given atoms, without data.

        Parameters
        ----------
        components : array-like of shape (n_components, n_features), Tensor or learner
            Atoms as rows, or what `skpudle.interoperability.dictionary_of` takes. They stay as they
            are, whatever the constraints.
        intercept : array-like of shape (n_features,), default=None
            The baseline of a ``loss`` other than "gaussian".
        **params : dict
            Parameters of the learner. A penalty or threshold of "auto" is chosen from data, and has
            to be a number here, unless ``transform_algorithm="omp"`` does without.

        Returns
        -------
        estimator
            Ready for `transform`, and for `partial_fit`, which chooses from its first data what
            "auto" left open.

        Raises
        ------
        ValueError
            If the atoms are no matrix of finite numbers, the penalty or the baseline is missing, or
            the learner learns more than atoms, as the weights of a task.

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
                f"{cls.__name__} learns {beside} from data, and there are none here. Pass the "
                "atoms as dict_init, and fit."
            )
        rows = learner._rows_of(atoms, intercept)
        alpha = learner._penalty_or_threshold
        if alpha == "auto" and not learner._does_without_alpha():
            pursuit = "" if cls._penalty != "alpha" else ", or transform_algorithm='omp'"
            raise ValueError(
                f"{cls._penalty}='auto' is chosen from data, and there are none: pass a number"
                f"{pursuit}."
            )
        model = learner._model(alpha=None if alpha == "auto" else float(alpha))
        optimizer = learner._make_optimizer(model, rows)
        optimizer.load(rows, {})  # which would project them
        data = Data(None, None, None, atoms.device, input_attributes(to_numpy(atoms)))
        learner._take(learner._attributes(Trainer(model, optimizer), data))
        return learner

    def _rows_of(self, atoms, intercept):  # -> rows of parameters
        if (intercept is None) != (self.loss == "gaussian"):
            if intercept is not None:
                raise ValueError(f"loss={self.loss!r} has no baseline; pass no intercept.")
            raise ValueError(
                f"loss={self.loss!r} has a baseline, and there is none: pass it as intercept, or "
                "pass the atoms as dict_init and fit, which learns it from data."
            )
        if intercept is None:
            return atoms
        given = np.asarray(host_array(intercept))
        numbers = given.dtype.kind in "iuf" and np.isfinite(given).all()
        if given.shape != atoms.shape[1:] or not numbers:
            raise ValueError(
                f"intercept has shape {given.shape} and dtype {given.dtype}, or is not finite; "
                f"pass {atoms.shape[1]} numbers, one for each feature."
            )
        return torch.cat([atoms, to_tensor(given[None]).to(atoms)])

    def _encoder(self):  # -> Encoder
        """Return what the parameters say of the encoder."""
        raise NotImplementedError

    @property
    def _gradient(self):
        """The name of the gradient rule."""
        raise NotImplementedError

    @property
    def _penalty_or_threshold(self):  # -> float or "auto"
        return getattr(self, self._penalty)

    @property
    def _rule_name(self):
        return self._gradient

    def _beside_atoms(self):  # -> str or None
        """Name what is learned beside atoms and baseline, and decisions need."""

    def _does_without_alpha(self):
        """Return whether `transform` knows no penalty."""
        return False

    def _check_parameters(self):
        """Raise ValueError if parameters contradict each other."""

    def _allows_nan(self):
        return True

    def _transform_encoder(self):
        self._validate_params()  # they may have been set since `fit`
        return partial(
            self._encoder().encode,
            alpha=self.alpha_,
            step_size=getattr(self, "step_size_", None),
            lambda_decay=self.lambda_decay_,
        )

    def _read(self, X, y, *, known=False, exposure=None):  # -> Data
        device = resolve_device(self.device, X)
        if known:
            _check_feature_names(self, X, reset=False)
        self._check_parameters()
        options = {"allow_nan": self._allows_nan(), "largest": self._loss().largest}
        exposure = check_exposure(exposure, X, self.loss)
        offset = None if exposure is None else to_tensor(exposure, device).log()[:, None]
        reading = dict(accept_sparse=self.loss != "gaussian", offset=offset)
        source = open_source(X, device, batch_size=self._batch_size(), **reading, **options)
        if source is None:
            rows = check_rows(X, estimator=self, **options)
            sample, mask = split_missing(to_tensor(rows, device))
            offset = None if offset is None else offset.to(sample.dtype)
            source, seen = Rows(sample, mask=mask, offset=offset), X
        else:
            sample, mask = split_missing(source.head(self._n_components or 0))
            seen = sample
            if offset is not None:
                offset = offset[source.head_positions(self._n_components or 0)].to(sample.dtype)
        if not known:
            return Data(source, sample, mask, device, input_attributes(seen), offset)
        _check_n_features(self, seen, reset=False)
        source = source.to(to_tensor(self.components_).dtype)
        return Data(source, sample, mask, device, {}, offset)

    def _some_samples(self, data):  # -> Batch
        some = slice(None, None, max(1, len(data.sample) // _SAMPLES))
        x, mask, offset = (
            t if t is None else t[some] for t in (data.sample, data.mask, data.offset)
        )
        return Batch(None, x, mask=mask, offset=offset)

    def _rule(self, name):
        rule, loss = GRADIENT_RULES[name], self._loss()
        return rule if isinstance(loss, Gaussian) else partial(rule, loss=loss)

    def _model(self, **known):
        return DenseModel(
            self._rule(self._rule_name),
            self._encoder(),
            self._fixed_step(),
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
        # the gradient of the loss is that of the stabilised data, times the noise
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
        if run is not None:  # a part of the data may be of any size
            self._warn_of_samples(x, mask, len(atoms))
        alpha = self._chosen_alpha(model, atoms, penalty, noise)
        model = replace(model, alpha=alpha)

        def rows(atoms):
            return atoms if intercept is None else torch.cat([atoms, intercept[None]])

        if not self._searches():
            return model, rows(atoms)
        if run is None:  # too little to search; far from a dictionary only "dec" finds it
            return replace(model, rule=self._rule("dec"), from_samples=True), rows(atoms)
        model = replace(model, curvature=self._curvature_share * curvature)
        penalty = self._search_penalty(model, penalty, noise)
        model = replace(model, search_alpha=penalty)
        if run.recorder.in_training():
            return model, rows(atoms)
        x = x if team is None else stabilised(self._loss(), data.sample, None, data.offset).x
        unit = unit_of(square)
        model, found = self._search(x, data, model, atoms, penalty, unit, run, rows)
        if intercept is None:
            return model, found
        found = settle(model, found, data, run.team)
        return model, found if self._refines else self._refined(model, found, data, generator, run)

    def _refined(self, model, rows, data, generator, run):
        """Return rows with the likelihood's refinement, after which training is another's.

        Callbacks and the checkpoint see what comes before and after it.
        """
        own = generator if run.team is None else run.team.own(generator)
        source = data.source.for_training(self._batch_size(), own, shuffle=True)
        # as where nothing is trained after it; what is said of an optimizer is for that
        name = DenseLearner._optimizer_for(self, rows) if self.optimizer == "auto" else None
        trainer = Trainer(
            replace(model, rule=self._rule("dec")),
            self._make_optimizer(model, rows, name),
            team=run.team,
        )
        n_updates = refining_updates(trainer.largest(count_batches(source)))
        stopping, converged = Stopping(self.tol, self.n_iter_no_change, n_updates=n_updates), False
        try:
            while trainer.n_steps < n_updates and not (converged or run.interrupts.pending):
                trainer.replace_unused(source)
                converged = trainer.run_epoch(source, stopping).converged
        except Diverged as error:
            run.leave(error, trainer, partial(self._attributes, trainer, data))
        run.losses = (*run.losses, *trainer.loss_curve)
        return trainer.optimizer.atoms.detach()

    def _warn_of_samples(self, x, mask, n_atoms):
        known = x.new_ones(len(x), 1) if mask is None else mask
        warn_of_unknown_features((~known.any(0)).nonzero().flatten().tolist())
        if isinstance(self.dict_init, str):  # given atoms may need few samples to adapt
            warn_of_few_samples(int(known.any(1).sum()), n_atoms)

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
        """Return the parameter; for "auto" that of a penalty of stabilised data and their noise."""
        alpha = self._penalty_or_threshold
        if alpha != "auto":
            return float(alpha)
        if model.encoder.shrinkage != "hard":
            return self._alpha_share * penalty * noise
        # the penalty b^2 / (2 s) of a non-zero code lets atoms in whose correlation is above
        # b / sqrt(s), where the lasso lets in what is above alpha
        least_squares = isinstance(model.encoder.loss, Gaussian)
        step = model.step(atoms) if least_squares else default_step(DenseDictionary(atoms))
        return penalty * float(step) ** 0.5

    def _searches(self):
        return isinstance(self.dict_init, str) and self.dict_init == "search"

    def _search(self, x, data, model, atoms, penalty, unit, run, rows):
        """Return the model, and the rows that a search in the stabilised data ``x`` finds."""
        self._make_optimizer(model, atoms)  # refuses wrong parameters now, and not after it
        problem = Problem(
            x if unit == 1 else x.double() / unit,
            penalty / unit,
            positive_code=model.encoder.positive_code,
            positive_atoms=model.positive,
            mask=data.mask,
            team=run.team,
            unit=unit,
        )

        def inside(found):
            return rows(found.to(atoms))

        def fitted(state):
            attributes = self._attributes_of(model, inside(state.found[0]), data)
            curve = np.array(state.losses)
            return attributes | {"n_iter_": len(curve), "n_steps_": 0, "loss_curve_": curve}

        state = run.search(problem, atoms, fitted)
        found = debias(problem, state).to(atoms)
        follows = self._codes_follow_data(model) and isinstance(self._loss(), Gaussian)
        if is_done(state) and follows and not run.max_iter:
            interrupted = partial(getattr, run.interrupts, "pending")
            found, path = adapt_atoms(
                problem, state, found, debias=self._given_debias, stopped=interrupted
            )
            model = replace(model, coding=path.summary(problem.unit))
        return model, inside(found)

    def _coded(self, model, rows, data, run, *, seed):
        counts = not isinstance(self._loss(), Gaussian)
        if counts and model.coding is None and self._codes_follow_data(model):
            deviance = partial(self._hidden_deviance, model, rows, data, run.team)
            return replace(model, coding=(smaller_penalty(deviance, float(model.alpha)), 0.0, None))
        return super()._coded(model, rows, data, run, seed=seed)

    def _coding_problem(self, model, rows, data, run):  # -> Problem, atoms
        unit = unit_of(model.data_scale)
        problem = Problem(
            data.sample if unit == 1 else data.sample.double() / unit,
            model.alpha / unit,
            positive_code=bool(model.encoder.positive_code),
            mask=data.mask,
            team=run.team,
            unit=unit,
        )
        return problem, rows

    @torch.no_grad()
    def _hidden_deviance(self, model, rows, data, team, alpha):  # -> float
        """Return the deviance of entries of some samples, of codes that did not see them."""
        atoms, intercept = model.parts(rows)
        some = slice(None, None, max(1, len(data.sample) // _JUDGES))
        given = (t if t is None else t[some] for t in (data.sample, data.mask, data.offset))
        options = dict(alpha=alpha, step_size=model.step(atoms), lambda_decay=model.decay(0))
        encoder = partial(model.encoder.encode, **options)
        deviance = hidden_deviance(
            self._loss(),
            lambda features: encoder,
            DenseDictionary(atoms),
            lambda x, exposure: intercept if exposure is None else intercept + exposure,
        )(*given)
        return deviance if team is None else float(team.sum(rows.new_tensor(deviance))[0])

    def _known_model(self, data, generator):  # -> model, atoms
        state = self._training_state
        names = "alpha", "data_scale", "curvature", "search_alpha", "coding"
        model = self._model(**{name: state[name] for name in names if name in state})
        if state["from_samples"]:
            model = replace(model, rule=self._rule("dec"), from_samples=True)
        atoms = to_tensor(self.components_, data.device)
        if model.data_scale is None:  # the first data of given atoms, which are of least squares
            team, x, mask = current_team(), data.sample, data.mask
            x, mask = (x, mask) if team is None else (team.collect(x), None)
            model = replace(model, data_scale=mean_square(x))
            if model.alpha is None:
                alpha = self._chosen_alpha(model, atoms, auto_alpha(x, mask=mask))
                model = replace(model, alpha=alpha)
        if self.loss == "gaussian":
            return model, atoms
        return model, torch.cat([atoms, to_tensor(self.intercept_, data.device)[None]])
