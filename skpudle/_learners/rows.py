"""Learners of rows: the phases of their fit, from the units of rows to the penalty of codes.

`RowPhases` lists the phases, the stages of a fit; `skpudle._fit.run` runs them. A phase is a method
that takes a record, the results of the fit so far (`Fitted`), and yields new records. A record has
all that later phases need, so that a fit can resume from a record in a checkpoint; only codes of
the data are then computed again. The units of rows are a baseline to subtract and scales to divide
by, so that noise is equal in all entries (`skpudle.search.units`). A problem is the data and the
objective of a search (`skpudle.search.problem`).
"""

from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike

from skpudle._data import arrays, sources
from skpudle._fit import messages
from skpudle._fit.estimator import Data, GradientLearner
from skpudle._fit.plan import InUnits, Plan, train_encoder, units_of
from skpudle._fit.run import Fitted, Phase, Run, take
from skpudle._fit.train import Stopping, Trainer
from skpudle._learners.parameters import fits
from skpudle._learners.transformer import DictionaryTransformer
from skpudle.encoding._learned import LearnedEncoder
from skpudle.search import _epoch, choose, descend, find, held_out, stream
from skpudle.search import units as unit_search
from skpudle.search.units import CENTRED, Units

# Number of epochs (of coordinate descent over all codes) that compute the codes of the data again
# for atoms that stay fixed, after a search or a pass over all rows. The first epoch starts from
# zero codes, each later epoch from the codes of the one before. On rows with 60 planted atoms the
# objective is 35, 2.2 and .08 % above its minimum over the codes after 1, 2 and 3 epochs.
REPEATS = 3


def learn_units(plan, samples):  # -> Units
    """Learn the units of the rows: baseline, limits of outliers, and the noise of entries.

    `fit` calls this function in its first phase, and `partial_fit` in its first call. ``samples``
    are rows in the units of the user. ``plan`` says which of the three are learned and which the
    user has set. It warns if one column has nearly all of the variance.
    """
    if plan.noise in ("auto", "outliers"):
        messages.warn_of_units(samples[_epoch.spread_rows(len(samples), 1024)])
    n_features = samples.x.shape[1]
    noise = plan.noise
    # The user's standard deviations are divided by their geometric mean, since only their ratios
    # matter.
    if not isinstance(noise, str):
        noise = arrays.check_numbers(noise, "noise", n_features, positive=True)
        noise = noise / np.exp(np.log(arrays.to_numpy(noise)).mean())
    asked = dict(intercept=plan.fit_intercept, noise=noise)
    n_components = plan.n_components or n_features
    if plan.given.n_components == "auto":
        # The number of atoms is chosen later. Here too few atoms would leave signal in residuals,
        # which would count as noise. So the noise is estimated with one atom for each 16 rows, but
        # at least 1 and at most 4 atoms per feature.
        n_components = max(n_features, min(4 * n_features, len(samples) // 16))
    if (
        not (plan.solves or plan.given.separate_atoms)
        and plan.given.shrinkage == "soft"
    ):
        asked["n_unfoldings"] = plan.n_unfoldings
    return unit_search.learn_units(plan.problem(samples), n_components, **asked)


class RowPhases(Run):
    """One fit of rows: the phases, as methods, and the data that they share.

    A phase is one stage of the fit. It takes the results of the fit so far, a `Fitted`, and yields
    a new `Fitted` for each of its epochs; `Run.make_phases` runs the phases that `table` lists.
    The arguments are those of `Run`.

    Attributes
    ----------
    own : torch.Generator
        Random numbers of this process alone, for draws from its own samples; ``generator`` draws
        the same in all processes.
    samples : Samples
        Rows from which first atoms, units and first penalties are chosen, the same in all
        processes. With several processes they are some rows of each process, while
        ``data.samples`` are rows of this process.
    source : Batches
        Rows to train on, batch by batch.
    n_updates, max_iter : int
        Largest numbers of updates and of epochs of training; 0 if nothing trains.
    """

    def __init__(self, learner, X, y, began, plan, data):
        super().__init__(learner, X, y, began, plan, data)
        samples = data.samples
        team = self.team
        self.own = self.generator
        self.samples = samples
        self._problem = None
        self._coded = None
        if team.rank > 0:
            self.own = torch.Generator().manual_seed(
                self.own.initial_seed() + team.rank
            )
        self.source = sources.Batches(
            data.source, plan.batch_size(data.source.n_samples), self.own
        )
        n_batches = team.largest(self.source.n_batches)
        self.n_updates = team.largest(
            plan.n_updates(n_batches, self.source.batch_size, data)
        )
        self.max_iter = -(-self.n_updates // n_batches)
        if not team.is_alone:
            # First atoms, units and penalties must be the same in all processes, so at most 2**14
            # rows of each process are gathered. All processes must gather the same tensors, and
            # perhaps only some have missing entries, so masks are left out. Weights need no such
            # care: `Data.scaled` leaves them to all processes or to none.
            some = replace(samples, mask=None)[_epoch.spread_rows(len(samples), 2**14)]
            self.samples = some.map(team.gather)
        # True if the search sees only a sample of the rows; a pass over all rows then follows it
        in_parts = not plan.counts_events and data.source is not samples
        self._in_parts = team.largest(in_parts and data.source.n_samples > len(samples))
        # ``_enter(units)`` returns the rows in the ``units``, and a record without atoms. The
        # last result is kept, because several phases ask for the same units.
        self._enter = lru_cache(1)(partial(plan.enter, self.samples))

    def table(self, fitted):  # -> tuple of Phase
        """Return all phases in their order, each with a mark whether this fit needs the phase.

        `Run.make_phases` runs the first phase that is due and not done, and asks again with the new
        record. Phases of equal names, "penalty of codes", are alternatives: once one is done, the
        other is skipped.
        """
        plan = self.plan
        units = fitted.units
        trial = fitted.searched and fitted.searched.trial
        # False if a callback or Ctrl-C has ended the search early: some phases need a whole search
        is_whole = plan.searches and fitted.ended_by is None
        follows = plan.codes_follow_data
        learns = is_whole and plan.learns_noise
        finds_units = units.intercept is not None or units.looks_at_rows
        # Data have no noise if the search has predicted hidden entries up to rounding.
        has_noise = (
            trial is None
            or float(fitted.searched.path.score.max()) < 1 - find.NOTHING_LEFT
        )
        # Learners of counts choose the penalty of codes after training, by the likelihood, and not
        # by the rows that the search held out.
        is_judged = (
            trial is not None
            and fitted.searched.stage == "done"
            and not plan.counts_events
        )
        learns_encoder = bool(plan.given.separate_atoms)
        decides = plan.given.n_components == "auto"
        return (
            Phase("units", self.find_units, plan.learns_noise),
            Phase("size", self.choose_size, decides, "number of atoms"),
            Phase("search", self.search, plan.searches, "epoch of the search"),
            Phase("pass", self.pass_over, is_whole and self._in_parts, "block"),
            Phase(
                "unbiased atoms", self.refit, trial and trial.unbiased, ends_search=True
            ),
            Phase("penalty of codes", self.choose_unseen_coding, follows and is_judged),
            Phase(
                "noise",
                self.learn_scales,
                learns and has_noise and plan.noise == "auto",
            ),
            Phase("units again", self.refine_units, learns and finds_units),
            Phase(
                "training", self.train, self.n_updates > 0, "epoch", most=self.max_iter
            ),
            Phase("penalty of codes", self.choose_coding, follows),
            Phase("encoder", self.train_encoder, learns_encoder, ends_search=True),
        )

    # ------------------------------------------------------------------ the first atoms

    def first(self):  # -> Fitted
        """Return the `Fitted` before all phases, with first atoms for rows in the user's units.

        `skpudle._fit.estimator.GradientLearner._fit` runs the phases from it. Warn of features
        without known values, and of fewer rows than atoms.
        """
        fitted = self.plan.begin(*self._enter(CENTRED), self.generator)
        known = self.samples.known
        # without a mask all entries are known, and one column tells as much as all
        known = known[:, :1] if self.samples.mask is None else known
        unknown = (~known.any(0)).nonzero().flatten().tolist()
        messages.warn_of_unknown_features(
            unknown, self.data.inputs["feature_names_in_"]
        )
        # Atoms that the user gives need no samples, so there is no warning of few samples.
        if isinstance(self.plan.given.dict_init, str):
            has_values = known.any(1)
            places = self.data.places
            # Equal rows were merged, and are counted one by one here, as the user knows them.
            if places is not None and self.team.is_alone:
                has_values = has_values[places[places >= 0].to(known.device)]
            n_components = (
                0 if self.plan.given.n_components == "auto" else len(fitted.atoms)
            )
            messages.warn_of_few_samples(int(has_values.sum()), n_components)
        return fitted

    def find_units(self, fitted):
        """Learn the units of the rows, baseline and noise: a phase, which yields one `Fitted`.

        If the units change the rows, first atoms are chosen again, in these units.
        """
        units = learn_units(self.plan, self.samples)
        if not units.changes_nothing:
            fitted = self.plan.begin(*self._enter(units), self.generator)
        yield fitted

    def choose_size(self, fitted):
        """Choose the number of atoms: a phase, which yields a `Fitted` for each number tried.

        The last one has the atoms of the chosen number. See `skpudle.search.choose`.
        """
        plan, (samples, _) = self.plan, self._enter(fitted.units)
        problem = plan.problem(samples, plan.search_penalty(fitted), fitted.data_scale)
        fixed = plan.given.alpha != "auto"
        generator = self.generator.manual_seed(self.generator.initial_seed())
        for trial in choose.try_sizes(problem, generator, fixed=fixed):
            n_tried = len(trial.path.n_components)
            n = len(trial.atoms)
            is_last = trial.is_last
            note = f"size, {n_tried} numbers of atoms tried  {n} atoms so far"
            if is_last:
                fitted = replace(
                    fitted, penalty=fitted.penalty * trial.alpha / problem.alpha
                )
            now = plan.with_atoms(fitted, trial.atoms.to(samples.x))
            yield replace(now, size_path=trial.path, is_done=is_last, note=note)

    # ------------------------------------------------------------------ the search

    def make_problem(self, fitted):  # -> Problem
        """Return the data and the objective of the search, with rows that are held out.

        The problem follows from the record, the data and the plan alone, with no further random
        numbers, so that a fit that resumes from a checkpoint makes the same problem again. Of
        several processes each takes its own rows, ``self.data.samples``, while ``self.samples``
        (from all processes) gives only first atoms and first penalties.
        """
        plan = self.plan
        alone = self.team.is_alone
        units = fitted.units
        samples = self._enter(units)[0] if alone else self.data.samples.in_units(units)
        how = dict(penalty=plan.search_penalty(fitted), square=fitted.data_scale)
        has_baseline = units.intercept is not None and units.rows is None
        total = _epoch.own if alone else self.team.sum
        problem = plan.problem(samples, **how, total=total, has_baseline=has_baseline)
        fixed = plan.given.alpha != "auto"
        mixes = plan.mixes_few(*fitted.atoms.shape) and problem.mask is None and alone
        if mixes and not fixed:
            problem = replace(
                problem, alpha=find.penalty_of_mixtures(problem, len(fitted.atoms))
            )
        how = dict(fixed=fixed, mixes=mixes, learn=not self._in_parts)
        if (
            units.norm is not None
        ):  # some rows have so large a norm that they may be outliers
            # A few long rows would have most of the held-out error, so rows of more than twice the
            # median norm are not held out. In data where 5 % of the rows have 3.5 times the norm of
            # the rest, this lowers the error of the fitted rows from .60 to .26 times the noise, in
            # the mean of six data sets.
            how["largest"] = (2 * units.norm / problem.unit) ** 2
        return held_out.hold_out(problem, **how)

    def search(self, fitted):
        """Search for atoms: a phase, which yields a `Fitted` for each epoch.

        The algorithm is `skpudle.search.find`. If a fit resumes from a checkpoint, the search
        begins again with the atoms of the checkpoint.
        """
        plan, units, (samples, begun) = (
            self.plan,
            fitted.units,
            self._enter(fitted.units),
        )
        # The surrogate optimiser, which trains after the search, needs the curvature of the loss.
        # With the gradient "ae-ls" codes follow a change of the atoms, which lowers the curvature,
        # the more so the more unfoldings there are. The exponent -0.22 was measured: with -0.25
        # hard-thresholded codes became denser, and with 0 training took twice as long.
        share = plan.n_unfoldings**-0.22 if plan.gradient == "ae-ls" else 1.0
        fitted = replace(fitted, curvature=share * begun.curvature)
        if self.n_updates:
            # The optimiser is made here, and not used, only so that wrong parameters raise an error
            # before the search instead of after it.
            plan.make_optimizer(fitted)
        if not (units.limit is units.norm is None) and self.data.places is not None:
            # `Samples.in_units` makes outliers missing entries. So outliers are the entries that
            # are known in the data, but missing in ``samples``.
            missed = self.data.samples.known > samples.known
            fitted = replace(fitted, outliers=missed.nonzero().cpu())
        problem = self.make_problem(fitted)
        begins = fitted.searched or fitted
        for found in find.find_atoms(problem, begins.atoms):
            self._problem = problem
            self._coded = found.coded
            now = units
            if (baseline := found.coded.problem.baseline) is not None:
                self._problem = problem.around(baseline)
                shift = baseline.to(units.intercept) * problem.unit
                now = replace(units, intercept=units.intercept + shift)
            yield replace(
                fitted,
                atoms=found.atoms.to(fitted.atoms),
                units=now,
                searched=replace(found, coded=None, problem=None, losses=()),
                search_alpha=found.alpha * problem.unit,
                losses=(*fitted.losses, *found.losses),
                n_codes=found.coded.n_entries,
                stream=stream.after_search(found.coded, float(self.data.n_seen)),
                is_done=found.stage == "done",
                note=f"search, epoch {len(found.losses)}  {found.stage}  loss {found.losses[-1]:g}",
            )

    def found(self, fitted):  # -> Problem, Epoch
        """Return the problem of the search, and its data with codes for the atoms that were found.

        The phases after the search begin with both. They are kept from the search or, if that was
        made before the fit resumed from a checkpoint, computed again.
        """
        if (
            self._problem is None
        ):  # this fit resumes from a checkpoint written after the search
            searched = fitted.searched
            self._problem = self.make_problem(fitted)
            part = self._problem.thinned(searched.stride, alpha=searched.alpha)
            self._coded = descend.solve_codes(part, searched.atoms, REPEATS)
        return self._problem, self._coded

    def pass_over(self, fitted):
        """Adapt the atoms of a search in a sample to all rows: a phase, a `Fitted` for each block.

        The algorithm is `skpudle.search.stream`. At the end the atoms of the search and of the pass
        are compared on held-out rows, and the better ones are kept. A pass may take hours, so each
        block is an epoch, after which a checkpoint can be written. A pass that resumes from a
        checkpoint reads the earlier blocks again without learning from them.
        """
        problem, coded = self.found(fitted)
        alpha = fitted.searched.alpha
        unit = problem.unit
        begun = stream.after_search(coded)
        size = stream.block_rows(coded.n_entries / begun.n_rows, *begun.atoms.shape)
        source = self.data.source
        n_blocks = self.team.largest(-(-source.n_samples // size))
        state = begun
        losses = fitted.losses
        loss = 0.0
        if fitted.passed is not None:  # this fit resumes in the middle of the pass
            state, losses, loss = fitted.passed, losses[:-1], losses[-1]
        blocks = source.blocks(
            size, torch.Generator().manual_seed(self.own.initial_seed())
        )
        blocks = islice(blocks, state.n_blocks, None)
        while state.n_blocks < n_blocks:
            # Processes add up their sums for each block, so all need the same number of blocks. A
            # process that has run out of rows takes part with an empty block.
            block = next(blocks, self.data.samples[:0])
            block = block.in_units(fitted.units)
            others = dict(total=self.team.sum, baseline=problem.baseline)
            part = self.plan.problem(block, alpha * unit, fitted.data_scale, **others)
            before, (state, _) = state, stream.advance_stream(part, state, final=True)
            n_rows = state.n_rows - begun.n_rows
            n_more = state.n_rows - before.n_rows
            loss += (state.loss * unit**2 - loss) * n_more / max(n_rows, 1)
            atoms = state.atoms
            is_last = state.n_blocks >= n_blocks
            now = replace(fitted, losses=(*losses, loss), is_done=is_last, passed=state)
            if is_last:
                if problem.held_out is not None:
                    judges = replace(problem.held_out.problem, alpha=alpha)
                    atoms = min(
                        begun.atoms, atoms, key=partial(stream.objective, judges)
                    )
                if atoms is not begun.atoms:
                    self._coded = descend.solve_codes(coded.problem, atoms, REPEATS)
                searched = replace(fitted.searched, atoms=atoms)
                rest = stream.after_search(self._coded, float(self.data.n_seen))
                now = replace(now, searched=searched, stream=rest, passed=None)
            note = f"pass, block {state.n_blocks}/{n_blocks}  mean objective {state.mean:.6g}"
            yield replace(now, atoms=atoms.to(fitted.atoms), note=note)

    def refit(self, fitted):
        """Free the atoms of the search of the lasso's bias: a phase, which yields one `Fitted`.

        Lasso codes are too small, and atoms of a search make up for it. The new atoms minimise the
        squared error with unbiased codes. After a pass over all rows they are kept only if they
        have a smaller error in held-out rows.
        """
        problem, coded = self.found(fitted)
        if (
            fitted.passed is not None
        ):  # a callback has ended the pass before its last block
            coded = self._coded = descend.solve_codes(
                coded.problem, fitted.passed.atoms, REPEATS
            )
        atoms = descend.refit_atoms(coded.problem, coded.atoms, coded.codes)
        if self._in_parts:
            # The atoms before the refit were learned from all rows, the refitted atoms only from a
            # sample, so they may be worse. Held-out rows decide: with a sample of 1,843 rows of
            # 4,096 features refitted atoms have an objective that is 0.4 % larger.
            error = partial(stream.objective, problem.held_out.problem, unbiased=True)
            atoms = min(atoms, coded.atoms, key=error)
        yield replace(fitted, atoms=atoms.to(fitted.atoms))

    def choose_unseen_coding(self, fitted):
        """Choose penalty and debiasing of codes by held-out rows: a phase, yielding one `Fitted`.

        The codes are those of `transform`. They predict hidden entries of the rows that the search
        held out. `choose_coding` is for fits without such rows.
        """
        (problem, _), trial = self.found(fitted), fitted.searched.trial
        how = dict(debias=self.plan.debias, place=trial.prediction.place)
        coding = choose.best_coding(problem.held_out, trial.judged, **how)
        yield replace(fitted, coding=coding.in_units(problem.unit))

    # ------------------------------------------------------------------ after the search

    def _of_residuals(self, fitted):
        """Return the arguments of `unit_search.learn_scales` and `unit_search.refine_units`.

        The arguments are the present units, the problem of the rows in the user's units, the atoms
        and the penalty of codes.
        """
        alpha = fitted.coding.alpha if fitted.coding else fitted.search_alpha
        return fitted.units, self.plan.problem(self.samples), fitted.atoms, float(alpha)

    def learn_scales(self, fitted):
        """Learn the noise of features from errors of hidden entries: a phase, yielding a `Fitted`.

        ``fitted`` is the record after a search. If the noise differs between features, the new
        record has new units, and only the phases "units" and "size" are left in ``done``. So a
        second search follows, in the new units. Otherwise ``fitted`` itself is yielded.
        """
        units = unit_search.learn_scales(*self._of_residuals(fitted))
        if units is not fitted.units:
            atoms = units.from_user(fitted.units.to_user(fitted.atoms))
            kept = dict(
                size_path=fitted.size_path, losses=fitted.losses, done=("units", "size")
            )
            fitted = replace(self.plan.with_atoms(self._enter(units)[1], atoms), **kept)
        yield fitted

    def refine_units(self, fitted):
        """Estimate baseline, limits of outliers and the noise of rows again, from residuals.

        This phase yields one `Fitted`; the atoms stay as they are.
        """
        yield replace(
            fitted, units=unit_search.refine_units(*self._of_residuals(fitted))
        )

    # ------------------------------------------------------------------ training and codes

    def train(self, fitted):
        """Train atoms by gradients: a phase, which yields a `Fitted` for each epoch.

        If ``fitted`` comes from a checkpoint with the state of a training, training goes on from
        this state, and the first `Fitted` that is yielded is the state itself.
        """
        plan = self.plan
        given = self.plan.given
        known = fitted.training
        source = self.source
        ended_by = fitted.ended_by if known else None
        most = self.n_updates
        fitted = replace(fitted, n_updates=most, ended_by=None)
        optimizer = plan.make_optimizer(fitted)
        trainer = Trainer(plan, fitted, optimizer, team=self.team, interrupts=self)
        # A pair for lambda_decay is annealed over ten equal parts of training, so training may end
        # early only in the last part.
        first = most * 9 // 10 * isinstance(given.lambda_decay, tuple)
        stopping = Stopping(given.tol, given.n_iter_no_change, first, most)
        if known:
            optimizer.load(plan.join(fitted), known["moments"])
            stopping.course = known["stopping"]
            if source.generator is not None:
                source.generator.set_state(known["generator"])
        ended_by = ended_by or ("tol" if stopping.is_over else None)
        # `Run._make` asks for no more records after one with ``is_done``, which ends the loop.
        while True:
            n_epochs = len(trainer.loss_curve)
            if ended_by is None and (
                trainer.n_steps >= most or n_epochs >= self.max_iter
            ):
                ended_by = "max_iter"
            if n_epochs:
                now = trainer.fitted
                done = ended_by is not None
                note = f"{plan.name}, epoch {n_epochs}/{self.max_iter}"
                how = dict(
                    note=f"{note}  loss {now.loss_curve[-1]:.6g}", ended_by=ended_by
                )
                how["n_codes"] = len(now.atoms) - int(trainer.epoch["unused"].sum())
                drawn = source.generator and source.generator.get_state()
                state = now.training | {"stopping": stopping.course, "generator": drawn}
                yield replace(now, training=state, is_done=done, **how)
            trainer.replace_unused()
            if trainer.run_epoch(source, stopping):
                ended_by = "tol"

    def choose_coding(self, fitted):
        """Choose penalty and debiasing of codes by training rows: a phase, yielding one `Fitted`.

        The codes are those of `transform`. They predict entries of the training rows, which are
        hidden in turn. This is for fits that held no rows out, as without a search.
        """
        samples = self.data.samples.in_units(fitted.units)
        how = dict(total=self.team.sum)
        problem = self.plan.problem(samples, fitted.alpha, fitted.data_scale, **how)
        coding = choose.best_coding(
            choose.judged(problem), fitted.atoms, debias=self.plan.debias
        )
        yield replace(fitted, coding=coding.in_units(problem.unit))

    def train_encoder(self, fitted):
        """Train the encoder of ``separate_atoms`` for the atoms: a phase, yielding one `Fitted`.

        It has the encoder in ``learned``. The phase runs even after Ctrl-C in an earlier
        phase, since the learner is not usable without an encoder: it then makes no updates, and the
        encoder is the initial one. Ctrl-C in this phase ends it with the updates made so far. In
        both cases ``is_done`` is False, so that a resumed fit repeats the phase.
        """
        plan = self.plan
        seed = self.generator.initial_seed()
        given = (
            plan,
            fitted,
            self.samples.in_units(fitted.units),
            self,
            plan.given.max_iter,
        )
        generator = torch.Generator(fitted.atoms.device).manual_seed(seed)
        yield replace(
            train_encoder(*given, generator=generator), is_done=not self.pending
        )


# ------------------------------------------------------------------ the learner


class DenseLearner(GradientLearner, DictionaryTransformer):
    """Base of the learners of rows that are trained by gradients or found by a search.

    It adds `fit`, `partial_fit` and `from_components` to `GradientLearner`, and the encoder that
    codes rows in units of their noise to `DictionaryTransformer`. Subclasses document parameters.
    """

    _penalty = "alpha"  # name of the parameter that sets ``alpha_``
    _phases = RowPhases

    @classmethod
    def from_components(
        cls, components: Any, *, intercept: ArrayLike | None = None, **params: Any
    ) -> Self:
        """Return a learner that is fitted to given atoms, without data.

        Parameters
        ----------
        components : array-like of shape (n_components, n_features), Tensor or learner
            Atoms as rows, or a fitted learner of this package, scikit-learn or SPORCO. They are
            not projected on the constraints.
        intercept : array-like of shape (n_features,) or 0, default=None
            The baseline of rows, such as ``intercept_`` of a learner; None and 0 are no baseline.
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
            If the atoms are no matrix of finite numbers, if the penalty, or the baseline of counts,
            is missing, or if the learner learns more than atoms, such as the weights of a task.

        Examples
        --------
        >>> import numpy as np
        >>> from skpudle import PUDLEDictionaryLearning
        >>> learner = PUDLEDictionaryLearning.from_components(np.eye(3), alpha=0.5)
        >>> learner.transform([[1.0, -0.25, 0.0]])
        array([[0.5, 0. , 0. ]])
        """
        messages.refuse(
            hasattr(cls, "predict") or params.get("separate_atoms"),
            f"{cls.__name__} learns more than atoms. Pass the atoms as dict_init, and fit.",
        )
        atoms = arrays.to_tensor(arrays.check_rows(arrays.dictionary_of(components)))
        learner = cls(len(atoms), **params)
        learner._validate_params()
        plan = learner._plan()
        more = learner._intercept_of(atoms, intercept)
        alpha = getattr(learner, cls._penalty)
        messages.refuse(
            alpha == "auto" and plan.given.transform_algorithm != "omp",
            f"{cls._penalty}='auto' needs data, and there are none: pass a number.",
        )
        data = Data(
            None,
            sources.Samples(atoms),
            arrays.input_attributes(arrays.to_numpy(atoms)),
        )
        fitted = Fitted(
            atoms=atoms, alpha=None if alpha == "auto" else float(alpha), **more
        )
        take(learner, learner._attributes(plan, data, fitted))
        return learner

    def _intercept_of(self, atoms, intercept):  # -> dict
        """Return the fields of a `Fitted` that hold the user's baseline, for `from_components`.

        ``atoms`` are (n_components, n_features), and ``intercept`` is (n_features,), 0 or None.
        Learners of counts override this method, since their baseline is another field.
        """
        if intercept is None or (isinstance(intercept, float | int) and intercept == 0):
            return {}
        intercept = arrays.check_numbers(intercept, "intercept", atoms.shape[1])
        return dict(units=Units(intercept=intercept.to(atoms)))

    @fits()
    def fit(
        self, X: Any, y: None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Learn a dictionary.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data of shape (n_samples, n_features), in memory or not: whatever has a shape and
            slices, such as arrays of h5py, zarr and dask; a dataset whose items are rows, or
            dictionaries with one array; an iterable of batches of rows that can be iterated again
            (a list is an array); or a sparse array, which becomes dense a batch at a time.
            Computations are in float32 for float32, otherwise in float64. NaN marks missing
            entries, which are ignored. Large data outside memory are read once for a sample of
            them (a stream completely), and once more for all rows.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts in sums over rows; the codes of a row do not depend on its
            weight. Weights equal repetitions, and a weight of zero equals absence. Only ratios of
            weights matter. By default all rows count the same.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data or parameters are invalid, which leaves the estimator unchanged; or if
            training diverges: the estimator then holds the last finite dictionary.
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
            If named parameters have no effect in this fit, if there are fewer samples than atoms,
            or features without a known value.
        """
        return self._fit(X, y, sample_weight=sample_weight)

    @fits()
    def partial_fit(
        self, X: Any, y: None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Update the dictionary by one pass over the data, in their order.

        The first call with data that are not all zero chooses the initial dictionary, ``alpha_``
        and the baseline. As long as fewer than 60 rows, or fewer than four for each atom, have been
        read, the next call begins again with all rows so far, so that enough rows decide on the
        baseline. A number that you set later as the penalty replaces ``alpha_``. If you edit or
        replace ``components_``, learning continues from your atoms. By default each block of rows
        is solved for codes of the lasso and then changes the atoms. Atoms are also added and
        removed as in a search, so that populations that are new in a stream are learned, too. Rows
        that are too few for a block wait for the next call.

        If you set a gradient, an encoder or a parameter of training, each batch is an update by
        gradients. The state of the optimiser persists from call to call, also through pickling, and
        from a `fit` before, unless you change the optimiser or ``components_``. ``lambda_decay``
        has its last value throughout. Atoms that no code has used for ten samples per atom are
        replaced by the samples that were reconstructed worst.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data of shape (n_samples, n_features) as for `fit`, cut into batches of ``batch_size``.
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
            If the data are invalid or have another number of features than before, or if
            ``n_components`` was set to another value since, which leaves the estimator unchanged;
            or if training diverges.
        """
        return self._partial_fit(X, y, sample_weight=sample_weight)

    def _plan(self):  # -> Plan
        return Plan(self)

    def _begin(self, plan, data):  # -> Fitted
        """Return the `Fitted` that a first `partial_fit` updates: first atoms, without a search.

        `GradientLearner._partial_fit` calls it, again while the rows of all calls are too few or
        zero. ``plan`` is the learner's `Plan`, and ``data`` are the `Data` of these rows.
        """
        units = learn_units(plan, data.samples) if plan.learns_noise else CENTRED
        generator = arrays.make_generator(self.random_state)
        fitted = plan.begin(*plan.enter(data.samples, units), generator)
        return replace(fitted, from_samples=plan.searches)

    def _encoder(self):
        """Return the encoder of `transform` for rows that are in units of their noise."""
        self._validate_params()  # the user may have set parameters since `fit`
        how = dict(
            step_size=self.step_size_, lambda_decay=self.lambda_decay_, warn=True
        )
        return self._plan().encoder(self.alpha_, **how)

    def _transform_encoder(self):
        """Return the encoder of `transform` for rows in the user's units, less their baseline.

        Codes are in the user's units, too. `DictionaryTransformer` calls it for each `transform`.
        """
        encoder = self._encoder()
        units = replace(units_of(self), norm=None, intercept=None)
        if isinstance(
            encoder, LearnedEncoder
        ):  # it clips residuals at its own limit of outliers
            units = replace(units, limit=None)
        gains = units.gains(arrays.to_tensor(self.components_))
        return encoder if units.changes_nothing else InUnits(encoder, units, gains)

    def _resume(self, plan, data):  # -> Fitted
        """Return the `Fitted` that a later `partial_fit` updates.

        It is the `Fitted` that the last call kept, with the changes that the user has made since,
        to ``components_``, to the penalty, and to ``debias``. ``plan`` is the learner's `Plan`, and
        ``data`` are the `Data` of the new call.
        """
        kept = self._fitted
        given = plan.given.alpha
        known = dict(alpha=kept.alpha, coding=kept.coding)
        if given not in (
            "auto",
            self._fit_given["alpha"],
        ):  # the user has set a penalty since
            known = dict(alpha=float(given), coding=None)
        elif kept.coding is not None and plan.debias is not None:
            known["coding"] = kept.coding._replace(debias=plan.debias)
        if (
            kept.data_scale == 0
        ):  # all rows so far were zero, and no penalty was chosen from them
            known["coding"] = None
        atoms = kept.units.from_user(
            arrays.to_tensor(self.components_, data.samples.x.device)
        )
        units = replace(kept.units, atoms=atoms)
        if (
            not kept.data_scale
        ):  # these are the first rows after `from_components` or after zeros
            _, begun = plan.enter(data.samples, units)
            # if these rows are zero, too, None leaves the choice to the next call
            known["data_scale"] = begun.data_scale or None
            if given == "auto":
                known["alpha"] = plan.code_penalty(begun, atoms)
        return replace(kept, atoms=atoms, units=units, **known)
