"""Learners of rows: the phases of their fit, from the units of rows to the penalty of codes.

`RowPhases` lists the phases, the stages of a fit; `skpudle._fit.run` runs them. A phase is a method
that takes a record, the results of the fit so far (`Fitted`), and yields new records. A record has
all that later phases need, so that a fit can resume from a record in a checkpoint; only codes of
the data are then computed again. The units of rows are a baseline to subtract and scales to divide
by, so that noise is equal in all entries (`skpudle.search.learn_units`). A problem is the data and
the objective of a search (`skpudle.search.problem`).
"""

from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from sklearn.utils import Bunch

from skpudle._data import arrays, sources
from skpudle._fit import messages
from skpudle._fit.encoders import (
    Converged,
    EncoderPlan,
    InUnits,
    learned_encoder,
    units_of,
)
from skpudle._fit.estimator import Data, PhasedLearner
from skpudle._fit.partial import alternate, train
from skpudle._fit.plan import Plan, train_encoder
from skpudle._fit.run import Fitted, Interrupts, Phase, Run, take
from skpudle._fit.train import Diverged, Stopping, Trainer
from skpudle._learners.factors import compare_factors
from skpudle._learners.parameters import fits
from skpudle._learners.transformer import DictionaryTransformer
from skpudle._operators._atoms import project_atoms
from skpudle._rows import spread_rows
from skpudle._units import CENTRED, Units
from skpudle.encoding._learned import LearnedEncoder
from skpudle.search import choose, descend, find, held_out, stream
from skpudle.search import learn_units as unit_search

# Number of epochs (of coordinate descent over all codes) that compute the codes of the data again
# for atoms that stay fixed, after a search or a pass over all rows. The first epoch starts from
# zero codes, each later epoch from the codes of the one before. On rows with 60 planted atoms the
# objective is 28, 0.7 and 0.01 % above its minimum over the codes after 1, 2 and 3 epochs, and on
# digits 55, 20 and 8 % (benchmarks/constants.py repeats-of-codes).
REPEATS = 3
# Parameters by which a user of `partial_fit` asks for training by gradients.
_OF_GRADIENT_STEPS = "optimizer", "learning_rate", "batch_size"


def learn_units(plan, samples):  # -> Units
    """Learn the units of the rows: baseline, limits of outliers, and the noise of entries.

    `fit` calls this function in its first phase, and `partial_fit` in its first call. ``samples``
    are rows in the units of the user. ``plan`` says which of the three are learned and which the
    user has set. Warn if one column has nearly all of the variance.
    """
    if plan.noise in ("auto", "outliers"):
        messages.warn_of_units(samples[spread_rows(len(samples), 1024)])
    n_features = samples.x.shape[1]
    noise = plan.noise
    # The user's standard deviations are divided by their geometric mean, since only their ratios
    # matter.
    if not isinstance(noise, str):
        noise = arrays.check_numbers(noise, "noise", n_features, positive=True)
        noise = noise / np.exp(np.log(arrays.to_numpy(noise)).mean())
    n_components = plan.n_components or n_features
    if plan.params.n_components == "auto":
        # The number of atoms is chosen later. Here too few atoms would leave signal in residuals,
        # which would count as noise. So the noise is estimated with one atom for each 16 rows, but
        # at least 1 and at most 4 atoms per feature.
        n_components = max(n_features, min(4 * n_features, len(samples) // 16))
    # Rows also get a baseline if an unfolded encoder reconstructs much better with one. This is
    # tried only for soft thresholds, and for an encoder without matrices of its own.
    unfolds = not (plan.solves or plan.params.separate_atoms)
    is_soft = plan.params.shrinkage == "soft"
    return unit_search.learn_units(
        plan.problem(samples),
        n_components,
        intercept=plan.fit_intercept,
        noise=noise,
        n_unfoldings=plan.n_unfoldings if unfolds and is_soft else None,
    )


def _outliers_of_rows(
    data, fitted
):  # -> csr_array (n_samples, n_features), bool, or None
    """Return the outliers of a record for the user's rows; None if there are none.

    `fit` merged equal rows: ``fitted.outliers`` (n_outliers, 2) has the merged row and the feature
    of each outlier, and ``data.merged_index`` has for each row of the user the index of its merged
    row, or -1 for a row of weight 0. The index -1 selects the last row, which is added here, empty.
    """
    if fitted.outliers is None or not len(fitted.outliers):
        return None
    shape = len(data.samples) + 1, data.samples.x.shape[1]
    marks = np.ones(len(fitted.outliers), bool)
    outliers = csr_array((marks, arrays.to_numpy(fitted.outliers).T), shape=shape)
    return outliers[arrays.to_numpy(data.merged_index)]


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

    # False for counts: a pass over all rows minimises the squared error of all rows
    makes_pass = True

    def __init__(
        self,
        learner,
        X,
        y,
        began,
        plan,
        data,
    ):
        # For a learner with targets `for_data` makes a plan with the task that the targets pose.
        super().__init__(learner, X, y, began, plan.for_data(data), data)
        plan = self.plan
        samples = data.samples
        team = self.team
        self.own = self.generator
        self.samples = samples
        # The problem of the search, and its data with codes: `search` or `searched_rows` sets both.
        self._problem = None
        self._coded = None
        if team.rank > 0:
            seed = self.own.initial_seed() + team.rank
            self.own = torch.Generator().manual_seed(seed)
        batch_size = plan.batch_size(data.source.n_samples)
        self.source = sources.Batches(data.source, batch_size, self.own)
        n_batches = team.largest(self.source.n_batches)
        n_updates = plan.n_updates(n_batches, self.source.batch_size, data)
        self.n_updates = team.largest(n_updates)
        self.max_iter = -(-self.n_updates // n_batches)
        if not team.is_alone:
            # First atoms, units and penalties must be the same in all processes, so at most 2**14
            # rows of each process are gathered. All processes must gather the same tensors, and
            # perhaps only some have missing entries, so masks are left out. Weights need no such
            # care: after `Data.scaled` either all processes have weights or none has.
            some = replace(samples, mask=None)[spread_rows(len(samples), 2**14)]
            self.samples = some.map(team.gather)
        # True if the search sees only a sample of the rows; a pass over all rows then follows it
        is_sample = data.source is not samples and data.source.n_samples > len(samples)
        self._in_parts = team.largest(is_sample and self.makes_pass)
        # ``_enter(units)`` returns the rows as a search in the ``units`` sees them. The last result
        # is kept, because several phases ask for the same units.
        self._enter = lru_cache(1)(partial(plan.enter, self.samples))

    def table(self, fitted):  # -> tuple of Phase
        """Return all phases in their order, each with a flag: whether this fit needs the phase.

        `Run.make_phases` runs the first phase that is needed and not done, and then asks for the
        table of the new record. By default all phases are needed but "size", "training" and
        "encoder"; "pass", "unbiased atoms" and "noise" depend on the data. The penalty of codes is
        chosen before the noise, if held-out rows can choose it, and otherwise after training.
        """
        plan = self.plan
        units = fitted.units
        # False if a callback or Ctrl-C has ended the search early: some phases need a whole search
        is_whole = plan.searches and fitted.ended_by is None
        # whether the noise is learned anew from the atoms of the search
        relearns = is_whole and plan.learns_noise
        learns_scales = relearns and plan.noise == "auto" and self._has_noise(fitted)
        # whether units have what residuals improve: a baseline, limits of outliers or row noise
        can_improve = units.intercept is not None or units.looks_at_rows
        # The atoms at the chosen penalty, and their prediction of held-out rows. They are to be
        # freed of the lasso's bias if they then predict better (``trial.unbiased``).
        trial = fitted.searched and fitted.searched.trial
        # ``codes_follow_data``: the data choose the penalty of the lasso's codes, not the user
        coding = Phase("penalty of codes", self.choose_coding, plan.codes_follow_data)
        early, late = ((coding,), ()) if self._is_judged(fitted) else ((), (coding,))
        chooses_size = plan.params.n_components == "auto"
        trains = self.n_updates > 0
        learns_encoder = bool(plan.params.separate_atoms)
        return (
            Phase("units", self.find_units, plan.learns_noise),
            Phase("size", self.choose_size, chooses_size, "number of atoms"),
            Phase("search", self.search, plan.searches, "epoch of the search"),
            Phase("pass", self.pass_over, is_whole and self._in_parts, "block"),
            Phase(
                "unbiased atoms", self.refit, trial and trial.unbiased, ends_search=True
            ),
            *early,
            Phase("noise", self.learn_scales, learns_scales),
            Phase("units again", self.refine_units, relearns and can_improve),
            Phase("training", self.train, trains, "epoch", most=self.max_iter),
            *late,
            Phase("encoder", self.train_encoder, learns_encoder, ends_search=True),
        )

    def _has_noise(self, fitted):  # -> bool
        """Return whether rows have noise: False if a search predicts hidden entries to rounding.

        ``path.score`` has for each penalty of the search the R^2 of hidden entries.
        """
        searched = fitted.searched
        if searched is None or searched.trial is None:
            return True
        return float(searched.path.score.max()) < 1 - find.NOTHING_LEFT

    def _is_judged(self, fitted):  # -> bool
        """Return whether the rows that the search held out can choose the penalty of codes.

        They cannot if no rows were held out, so that there is no trial, or if the search has been
        ended early.
        """
        searched = fitted.searched
        if searched is None or searched.trial is None:
            return False
        return searched.stage == "done"

    # ------------------------------------------------------------------ the first atoms

    def first(self):  # -> Fitted
        """Return the `Fitted` before all phases, with first atoms for rows in the user's units.

        Warn of parameters without effect, of features without known values, and of fewer rows than
        atoms.
        """
        plan = self.plan
        samples = self.samples
        messages.warn_of_unused(self.learner, plan.without_effect(self.data))
        fitted = self.begin(CENTRED)  # units that leave the rows as they are
        observed = samples.observed
        # without a mask all entries are known, and one column tells as much as all
        observed = observed[:, :1] if samples.mask is None else observed
        empty = (~observed.any(0)).nonzero().flatten().tolist()
        messages.warn_of_unknown_features(empty, self.data.inputs["feature_names_in_"])
        # Atoms that the user gives need no samples, so there is no warning of few samples.
        if isinstance(plan.params.dict_init, str):
            has_values = observed.any(1)
            index = self.data.merged_index
            # Equal rows were merged, and are counted one by one here, as the user knows them.
            if index is not None and self.team.is_alone:
                has_values = has_values[index[index >= 0].to(observed.device)]
            # A number of atoms that the data choose causes no warning, so 0 atoms are reported.
            is_chosen = plan.params.n_components == "auto"
            n_components = 0 if is_chosen else len(fitted.atoms)
            messages.warn_of_few_samples(int(has_values.sum()), n_components)
        return fitted

    def begin(self, units):  # -> Fitted
        """Return the first record, with first atoms, for rows in the ``units``."""
        return self.plan.begin(self.samples, self._enter(units), units, self.generator)

    def find_units(self, fitted):
        """Learn the units of the rows, baseline and noise: a phase, which yields one `Fitted`.

        If the units change the rows, first atoms are chosen again, in these units.
        """
        units = learn_units(self.plan, self.samples)
        if not units.changes_nothing:
            fitted = self.begin(units)
        yield fitted

    def choose_size(self, fitted):
        """Choose the number of atoms by predictions of held-out rows: a phase.

        It yields a `Fitted` for each number tried; the last one has the atoms of the chosen number.
        """
        plan = self.plan
        rows = self._enter(fitted.units)
        problem = plan.problem(rows, plan.search_penalty(fitted), fitted.data_scale)
        # The generator is set back, so that atoms do not depend on numbers that were drawn before.
        generator = self.generator.manual_seed(self.generator.initial_seed())
        has_own_penalty = plan.params.alpha != "auto"
        for trial in choose.try_sizes(problem, generator, fixed=has_own_penalty):
            n_tried = len(trial.path.n_components)
            n_atoms = len(trial.atoms)
            yield replace(
                plan.with_atoms(fitted, trial.atoms.to(rows.x)),
                size_path=trial.path,
                is_done=trial.is_last,
                note=f"size, {n_tried} numbers of atoms tried  {n_atoms} atoms so far",
            )

    # ------------------------------------------------------------------ the search

    def make_problem(self, fitted):  # -> Problem
        """Return the data and the objective of the search, with rows that are held out.

        The problem follows from the record, the data and the plan alone, with no further random
        numbers, so that a fit that resumes from a checkpoint makes the same problem again. Of
        several processes each takes its own rows, ``self.data.samples``, while ``self.samples``
        (from all processes) gives only first atoms and first penalties.
        """
        plan = self.plan
        is_alone = self.team.is_alone
        units = fitted.units
        rows = self._enter(units) if is_alone else self.data.samples.in_units(units)
        problem = plan.problem(
            rows,
            plan.search_penalty(fitted),
            fitted.data_scale,
            total=self.team.sum,
            # whether the last stage of the search improves the baseline
            has_baseline=units.intercept is not None and units.row_noise is None,
        )
        n_components = len(fitted.atoms)
        if plan.params.alpha == "auto" and self.mixes_few(problem, n_components):
            penalty = find.penalty_of_mixtures(problem, n_components)
            problem = replace(problem, alpha=penalty)
        largest = None
        if units.median_norm is not None:
            # Some rows are so long that they may be outliers. A few long rows would have most of
            # the held-out error, so rows of more than twice the median norm are not held out. In
            # data where 5 % of the rows have 3.5 times the norm of the rest, this lowers the error
            # of the fitted rows from 0.60 to 0.26 times the noise, in the mean of six data sets.
            # ``largest`` is the largest mean square of the entries of a row that may be held out.
            largest = (2 * units.median_norm / problem.unit) ** 2
        # At its end a search learns from the held-out rows, too. It does not if a pass over all
        # rows follows, which the held-out rows have to judge.
        return held_out.hold_out(problem, learn=not self._in_parts, largest=largest)

    def mixes_few(self, problem, n_components):  # -> bool
        """Return whether rows are mixtures of few non-negative atoms, as spectra of substances.

        The penalty for mixtures needs rows without missing entries, in one process.
        """
        is_complete = problem.mask is None and self.team.is_alone
        return is_complete and self.plan.mixes_few(n_components, problem.x.shape[1])

    def _has_few_rows(self, problem):  # -> bool
        """Return whether rows are so few that the penalty would depend on the initial atoms.

        Then a first search, which is the same for all initial atoms, chooses the penalty.
        """
        # In standardised tables three seeds take penalties within a factor of 2 in 0.99 of 72 cases
        # below 1,000 rows, and in 0.58 without the first search. With a limit of 2,000 rows, fits
        # of 1,500 planted rows take 1.6 times as long, and of 15 planted data sets one loses atoms
        # (fraction found: 0.99 to 0.95) and one gains some (0.95 to 0.99).
        is_small = len(problem.x) < 1000
        return is_small and problem.held_out is not None and self.team.is_alone

    def search(self, fitted):
        """Search for atoms: a phase, which yields a `Fitted` for each epoch.

        The algorithm is `skpudle.search.find`. If a fit resumes from a checkpoint, the search
        begins again with the atoms of the checkpoint.
        """
        units = fitted.units
        finds_outliers = not (units.limit is units.median_norm is None)
        if finds_outliers and self.data.merged_index is not None:
            # `Samples.in_units` makes outliers missing entries. So outliers are the entries that
            # are known in the data, but missing in the rows that are searched.
            missed = self.data.samples.observed > self._enter(units).observed
            fitted = replace(fitted, outliers=missed.nonzero().cpu())
        problem = self.make_problem(fitted)
        start = (fitted.searched or fitted).atoms
        penalties = find.ONE_PENALTY
        if self.plan.params.alpha == "auto":
            mixes = self.mixes_few(problem, len(fitted.atoms))
            penalties = find.PenaltyRange(mixes=mixes)
        steps = find.find_atoms(problem, start, penalties=penalties)
        # the range is the default one if the user has set no penalty, and rows are no mixtures
        if self._has_few_rows(problem) and penalties == find.PenaltyRange():
            steps = find.find_atoms_of_few(problem, start, penalties)
        for state in steps:
            self._problem = problem
            self._coded = state.coded
            new_units = units
            # The last stage of a search moves the baseline by this shift, in units of the problem.
            baseline = state.coded.problem.baseline
            if baseline is not None:
                self._problem = problem.around(baseline)
                shift = baseline.to(units.intercept) * problem.unit
                new_units = replace(units, intercept=units.intercept + shift)
            loss = state.losses[-1]
            yield replace(
                fitted,
                atoms=state.atoms.to(fitted.atoms),
                units=new_units,
                searched=replace(state, coded=None, problem=None, losses=()),
                search_alpha=state.alpha * problem.unit,
                losses=(*fitted.losses, *state.losses),
                has_codes=state.coded.n_entries > 0,
                stream=stream.after_search(state.coded, float(self.data.n_seen)),
                is_done=state.stage == "done",
                note=f"search, epoch {len(state.losses)}  {state.stage}  loss {loss:g}",
            )

    def searched_rows(self, fitted):  # -> Problem, Epoch
        """Return the problem of the search, and its data with codes for the atoms of the search.

        The phases after the search begin with both. Both are kept from the search. If the search
        was made before the fit resumed from a checkpoint, both are computed again, the codes for
        one in ``searched.stride`` rows.
        """
        if self._problem is None:  # the fit resumes after the search
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
        problem, coded = self.searched_rows(fitted)
        alpha = fitted.searched.alpha
        unit = problem.unit
        begun = stream.after_search(coded)
        # mean number of nonzero codes in a row, on which the number of rows in a block depends
        n_used = coded.n_entries / begun.n_rows
        size = stream.block_rows(n_used, *begun.atoms.shape)
        source = self.data.source
        n_blocks = self.team.largest(-(-source.n_samples // size))
        state = begun
        losses = fitted.losses
        loss = 0.0
        if fitted.pass_state is not None:  # this fit resumes in the middle of the pass
            state = fitted.pass_state
            # the last loss is the mean over the rows of the pass so far
            *losses, loss = losses
        order = torch.Generator().manual_seed(self.own.initial_seed())
        blocks = islice(source.blocks(size, order), state.n_blocks, None)
        while state.n_blocks < n_blocks:
            # Processes add up their sums for each block, so all need the same number of blocks. A
            # process that has run out of rows takes part with an empty block.
            block = next(blocks, self.data.samples[:0])
            part = self.plan.problem(
                block.in_units(fitted.units),
                alpha * unit,
                fitted.data_scale,
                total=self.team.sum,
                baseline=problem.baseline,
            )
            n_before = state.n_rows
            state, _ = stream.advance_stream(part, state, final=True)
            n_rows = state.n_rows - begun.n_rows
            n_new = state.n_rows - n_before
            loss += (state.loss * unit**2 - loss) * n_new / max(n_rows, 1)
            record = replace(
                fitted,
                atoms=state.atoms.to(fitted.atoms),
                losses=(*losses, loss),
                pass_state=state,
                is_done=state.n_blocks >= n_blocks,
                note=f"pass, block {state.n_blocks}/{n_blocks}  mean objective {state.mean:.6g}",
            )
            if record.is_done:
                record = self._end_pass(record, begun.atoms, state.atoms)
            yield record

    def _end_pass(self, record, before, after):  # -> Fitted
        """Return the last record of a pass over all rows, with the better atoms for held-out rows.

        ``record`` is the record, and ``before`` and ``after`` (n_components, n_features) are the
        atoms before and after the pass.
        """
        problem = self._problem
        coded = self._coded
        searched = record.searched
        atoms = after
        if problem.held_out is not None:
            judges = replace(problem.held_out.problem, alpha=searched.alpha)
            atoms = min(before, after, key=partial(stream.objective, judges))
        if atoms is not before:
            self._coded = descend.solve_codes(coded.problem, atoms, REPEATS)
        return replace(
            record,
            atoms=atoms.to(record.atoms),
            searched=replace(searched, atoms=atoms),
            stream=stream.after_search(self._coded, float(self.data.n_seen)),
            pass_state=None,
        )

    def refit(self, fitted):
        """Free the atoms of the search of the lasso's bias: a phase, which yields one `Fitted`.

        Lasso codes are too small, and atoms of a search make up for it. The new atoms minimise the
        squared error with unbiased codes. After a pass over all rows they are kept only if they
        have a smaller error in held-out rows.
        """
        problem, coded = self.searched_rows(fitted)
        if fitted.pass_state is not None:  # a callback has ended the pass early
            atoms = fitted.pass_state.atoms
            coded = descend.solve_codes(coded.problem, atoms, REPEATS)
            self._coded = coded
        atoms = descend.refit_atoms(coded.problem, coded.atoms, coded.codes)
        if self._in_parts:
            # The atoms before the refit were learned from all rows, the refitted atoms only from a
            # sample, so they may be worse. Held-out rows decide: with a sample of 1,843 rows of
            # 4,096 features refitted atoms have an objective that is 0.4 % larger.
            error = partial(stream.objective, problem.held_out.problem, unbiased=True)
            atoms = min(atoms, coded.atoms, key=error)
        yield replace(fitted, atoms=atoms.to(fitted.atoms))

    def choose_coding(self, fitted):
        """Choose penalty and debiasing of codes of `transform`: a phase, which yields one `Fitted`.

        The codes predict hidden entries of the rows that the search held out. A fit that held no
        rows out, as without a search, hides entries of the training rows in turn. The record also
        gets the prediction of the held-out rows by factor analysis, for `summary`.
        """
        debias = self.plan.debias
        if self._is_judged(fitted):
            problem, _ = self.searched_rows(fitted)
            # ``trial.judged`` are the atoms before the polish, the last stage of the search, which
            # also learns from the held-out rows. Predictions of held-out rows can judge only atoms
            # that have not learned from these rows. ``index`` is the number of the penalty of codes
            # at which the search predicted the held-out rows best.
            judges = problem.held_out
            trial = fitted.searched.trial
            index = trial.prediction.index
            coding = choose.best_coding(
                judges, trial.judged, debias=debias, index=index
            )
            # ``fitted.atoms`` are polished. If they predict the held-out rows worse although they
            # have learned from these rows, the atoms before the polish are better: 29 of 106 fits
            # of raw tables of numbers go back to them, and the error of new rows falls by over 0.02
            # variances in 13 of the 29 fits and rises in 3.
            after = judges.at(fitted.atoms, index)
            if judges.worse(after, trial.prediction, held_out.SURE):
                fitted = replace(fitted, atoms=trial.judged.to(fitted.atoms))
            score = compare_factors(problem, trial)
            fitted = replace(fitted, factor_score=score)
        else:
            samples = self.data.samples.in_units(fitted.units)
            problem = self.plan.problem(
                samples, fitted.alpha, fitted.data_scale, total=self.team.sum
            )
            judges = choose.judged(problem)
            coding = choose.best_coding(judges, fitted.atoms, debias=debias)
        yield replace(fitted, coding=coding.in_units(problem.unit))

    # ------------------------------------------------------------------ after the search

    def learn_scales(self, fitted):
        """Learn the noise of features from errors of hidden entries: a phase, yielding a `Fitted`.

        ``fitted`` is the record after a search. If the noise differs between features, the new
        record has new units, and by ``again`` asks to repeat the search and the phases after it.
        Otherwise ``fitted`` itself is yielded.
        """
        units = unit_search.learn_scales(
            fitted.units,
            self.plan.problem(self.samples),
            fitted.atoms,
            self._residual_penalty(fitted),
        )
        if units is not fitted.units:
            atoms = units.from_user(fitted.units.to_user(fitted.atoms))
            record = self.plan.first_record(self.samples, self._enter(units), units)
            fitted = replace(
                self.plan.with_atoms(record, atoms),
                size_path=fitted.size_path,
                losses=fitted.losses,
                done=fitted.done,
                again="search",
            )
        yield fitted

    def refine_units(self, fitted):
        """Estimate baseline, limits of outliers and the noise of rows again, from residuals.

        This phase yields one `Fitted`; the atoms stay as they are.
        """
        units = unit_search.refine_units(
            fitted.units,
            self.plan.problem(self.samples),
            fitted.atoms,
            self._residual_penalty(fitted),
        )
        yield replace(fitted, units=units)

    def _residual_penalty(self, fitted):  # -> float
        """Return the penalty of the codes from whose residuals noise is estimated after a search.

        It is the penalty of the codes of `transform`, if chosen already, else that of the search.
        """
        return float(fitted.coding.alpha if fitted.coding else fitted.search_alpha)

    # ------------------------------------------------------------------ training and codes

    def train(self, fitted):
        """Train atoms by gradients: a phase, which yields a `Fitted` for each epoch.

        If ``fitted`` comes from a checkpoint with the state of a training, training goes on from
        this state, and the first `Fitted` that is yielded is the state itself.
        """
        plan = self.plan
        params = plan.params
        source = self.source
        most = self.n_updates
        state = fitted.training
        ended_by = fitted.ended_by if state else None
        fitted = replace(fitted, n_updates=most, ended_by=None)
        optimizer = plan.make_optimizer(fitted)
        trainer = Trainer(plan, fitted, optimizer, team=self.team, interrupts=self)
        # A pair for lambda_decay is annealed over ten equal parts of training, so training may end
        # early only in the last part.
        first_check = most * 9 // 10 if isinstance(params.lambda_decay, tuple) else 0
        stopping = Stopping(params.tol, params.n_iter_no_change, first_check, most)
        # The state has the "moments" of the optimiser, the course of `stopping`, and the state of
        # the generator that draws batches.
        if state:
            optimizer.load(plan.join(fitted), state["moments"])
            stopping.course = state["stopping"]
            if source.generator is not None:
                source.generator.set_state(state["generator"])
        if ended_by is None and stopping.is_over:
            ended_by = "tol"
        # `Run._make` asks for no more records after one with ``is_done``, which ends the loop.
        while True:
            n_epochs = len(trainer.loss_curve)
            is_at_limit = trainer.n_steps >= most or n_epochs >= self.max_iter
            if ended_by is None and is_at_limit:
                ended_by = "max_iter"
            if n_epochs:
                record = trainer.fitted
                generator_state = source.generator and source.generator.get_state()
                state = {"stopping": stopping.course, "generator": generator_state}
                note = f"{plan.name}, epoch {n_epochs}/{self.max_iter}"
                yield replace(
                    record,
                    training=record.training | state,
                    is_done=ended_by is not None,
                    ended_by=ended_by,
                    has_codes=not trainer.epoch["unused"].all(),
                    note=f"{note}  loss {record.loss_curve[-1]:.6g}",
                )
            trainer.replace_unused()
            if trainer.run_epoch(source, stopping):
                ended_by = "tol"

    def train_encoder(self, fitted):
        """Train the encoder of ``separate_atoms`` for the atoms: a phase, yielding one `Fitted`.

        It has the encoder in ``learned_encoder``. The phase runs even after Ctrl-C in an earlier
        phase, since the learner is not usable without an encoder: it then makes no updates, and the
        encoder is the initial one. Ctrl-C in this phase ends it with the updates made so far. In
        both cases ``is_done`` is False, so that a resumed fit repeats the phase.
        """
        seed = self.generator.initial_seed()
        fitted = train_encoder(
            self.plan,
            fitted,
            self.samples.in_units(fitted.units),
            self,
            self.plan.params.max_iter,
            generator=torch.Generator(fitted.atoms.device).manual_seed(seed),
        )
        yield replace(fitted, is_done=not self.pending)

    # ------------------------------------------------------------------ the result

    def warn_of_result(self):
        """Warn of a step that is too large, of a loss that rose, and of codes that are all zero."""
        fitted = self.record
        if self.plan.step_size is not None:
            messages.warn_of_step(self.plan.step_size, fitted.atoms)
        if fitted.n_steps:
            self.warn_of_rise(fitted)
        x = self.data.samples.x
        if fitted.has_codes or not x.any():
            return
        if len(x) == 1 or (x != x[0]).any():  # rows that are all equal need no codes
            messages.warn_of_zero_codes(self.learner)

    def warn_of_rise(self, fitted):
        """Warn if training has made the error of the reconstruction larger."""
        curve = fitted.loss_curve
        baseline = self.loss_of_baseline(fitted)
        messages.warn_of_rise(self.learner, curve[0], curve[-1], baseline)

    def loss_of_baseline(self, fitted):  # -> float
        """Return the mean loss of a row if all codes are zero, to compare training with.

        It is half of ``data_scale``, the mean squared norm of a row.
        """
        return 0.5 * fitted.data_scale


# ------------------------------------------------------------------ the learner


class DenseLearner(PhasedLearner, DictionaryTransformer):
    """Base of the learners of rows that are trained by gradients or found by a search.

    It adds `fit`, `partial_fit` and `from_components` to `PhasedLearner`, and the encoder that
    codes rows in units of their noise to `DictionaryTransformer`. Subclasses document parameters. A
    fitted learner has in ``_fitted`` the part of the record that `partial_fit` needs, and in
    ``_at_fit`` what the user had set at the time of the fit, so that later changes are noticed.
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
            If the atoms are not a matrix of finite numbers, if the penalty, or the baseline of
            counts, is missing, or if the learner learns more than atoms, such as the weights of a
            task.

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
        baseline = learner._baseline_fields(atoms, intercept)
        alpha = getattr(learner, cls._penalty)
        messages.refuse(
            alpha == "auto" and plan.params.transform_algorithm != "omp",
            f"{cls._penalty}='auto' needs data, and there are none: pass a number.",
        )
        fitted = Fitted(
            atoms=atoms, alpha=None if alpha == "auto" else float(alpha), **baseline
        )
        inputs = arrays.input_attributes(arrays.to_numpy(atoms))
        # There are no rows. `_attributes` reads only the device of the samples, so atoms will do.
        data = Data(None, sources.Samples(atoms), inputs)
        take(learner, learner._attributes(plan, data, fitted))
        return learner

    def _baseline_fields(self, atoms, intercept):  # -> dict
        """Return the fields of a `Fitted` that hold the user's baseline, for `from_components`.

        ``atoms`` are (n_components, n_features), and ``intercept`` is (n_features,), 0 or None.
        Learners of counts override this method, since their baseline is another field.
        """
        if intercept is None or (isinstance(intercept, float | int) and intercept == 0):
            return {}
        intercept = arrays.check_numbers(intercept, "intercept", atoms.shape[1])
        return {"units": Units(intercept=intercept.to(atoms))}

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
        has its last value throughout. Atoms that no code has used for ``10 * n_components`` samples
        are replaced by the samples that were reconstructed worst.

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

    def _partial_fit(self, X, y, **of_rows):
        """Update the model by one pass over the data: `partial_fit` of all subclasses calls it.

        ``of_rows`` are keyword arguments of `_read` with an entry for each row. Return the
        estimator.
        """
        messages.refuse_several("partial_fit")
        is_fitted = hasattr(self, "components_")
        if is_fitted:  # the decorator `fits` checks the parameters in a first call only
            self._validate_params()
            self._refuse_new_size()
        plan = self._plan()
        new_data = self._read(X, y, is_fitted=is_fitted, part=True, **of_rows)
        plan = plan.for_data(new_data)
        n_before = 0
        if not is_fitted:
            fitted, data = self._begin_with_rows(plan, new_data)
        else:
            fitted, data = self._begin_again(plan, new_data)
            curve = tuple(self.loss_curve_)
            fitted = replace(fitted, n_steps=self.n_steps_, loss_curve=curve)
            n_before = self.n_samples_seen_ or 0
        # `alternate` solves for codes of the lasso and for atoms in turn. It is not used if the
        # user has set an encoder, a gradient or another parameter of training by gradients.
        alternates = plan.alternates and not messages.any_named(
            self, _OF_GRADIENT_STEPS
        )
        learn = alternate if alternates else train
        error = None
        with Interrupts() as interrupts:
            try:
                fitted = learn(plan, fitted, data, interrupts)
            except Diverged as diverged:
                fitted = diverged.fitted
                error = diverged
            if plan.params.separate_atoms and error is None:
                fitted = self._train_encoder(plan, fitted, data, interrupts)
            attributes = self._attributes(plan, data, fitted)
            # a stream knows its number of rows when it has been read
            attributes["n_samples_seen_"] = n_before + new_data.n_seen
            take(self, attributes)
            if error is not None:
                raise error
        return self

    def _refuse_new_size(self):
        """Raise ValueError if the user has set another number of atoms since the last call."""
        n_atoms = len(self.components_)
        now = self.n_components
        messages.refuse(
            now not in (None, "auto", self._at_fit["n_components"], n_atoms),
            f"n_components={now} was set after fit, and components_ has {n_atoms} atoms, which "
            "partial_fit keeps. Set it back, fit again, or replace components_, too.",
        )

    def _begin_again(self, plan, data):  # -> Fitted, Data
        """Return the record that a later call updates, and the rows that the call learns from.

        If all rows so far are too few to learn units from (``first_rows``), the call begins anew
        with all rows. If all rows so far were zero, it begins anew with its own rows. Otherwise, or
        if the user has edited the atoms, it goes on from the last record.
        """
        last = self._fitted
        is_edited = self._at_fit["atoms"] != messages.describe(self.components_)
        if last.first_rows is not None and not is_edited:
            return self._begin_with_gathered_rows(plan, data)
        if last.data_scale == 0 and not is_edited:  # all rows so far were zero
            return self._begin_with_rows(plan, data)
        return self._go_on(plan, data, is_edited)

    def _begin_with_rows(self, plan, data):  # -> Fitted, Data
        """Begin with the rows ``data``: choose first atoms, the penalty and the units of rows.

        If the rows are too few to learn units from, the record keeps a copy as ``first_rows``, so
        that the next call begins again with all rows.
        """
        fitted = self._begin(plan, data)
        samples = data.samples
        least = unit_search.least_rows(plan.n_components or samples.x.shape[1])
        if plan.learns_noise and len(samples) == data.source.n_samples < least:
            fitted = replace(fitted, first_rows=samples.map(torch.clone))
        return fitted, data

    def _begin_with_gathered_rows(self, plan, data):  # -> Fitted, Data
        """Begin with the rows of all calls so far, which were too few to learn units from."""
        samples = data.samples.after(self._fitted.first_rows)
        data = data._replace(source=samples, samples=samples)
        return self._begin_with_rows(plan, data)

    def _go_on(self, plan, data, is_edited):  # -> Fitted, Data
        """Go on from the last record; ``is_edited`` is whether the user has changed the atoms."""
        fitted = self._resume(plan, data)
        if is_edited:
            positive = plan.params.positive_dict
            atoms = project_atoms(fitted.atoms.contiguous(), positive=positive)
            fitted = replace(fitted, atoms=atoms, training={})
        optimizer = messages.describe(plan.optimizer_for(len(fitted.atoms)))
        if self._at_fit["optimizer"] != optimizer:
            fitted = replace(fitted, training=fitted.training | {"moments": {}})
        return fitted, data

    def _train_encoder(
        self,
        plan,
        fitted,
        data,
        interrupts,
    ):  # -> Fitted
        """Train the encoder of ``separate_atoms`` for one epoch, starting from the present encoder.

        In a first call there is no present encoder.
        """
        is_first = getattr(self, "thresholds_", None) is None
        start = None if is_first else learned_encoder(self, fitted.atoms)
        samples = data.samples.in_units(fitted.units)
        return train_encoder(plan, fitted, samples, interrupts, 1, start=start)

    def _begin(self, plan, data):  # -> Fitted
        """Return the `Fitted` that a first `partial_fit` updates: first atoms, without a search.

        `_partial_fit` calls it, again while the rows of all calls are too few or zero.
        ``plan`` is the learner's `Plan`, and ``data`` are the `Data` of these rows.
        """
        samples = data.samples
        units = learn_units(plan, samples) if plan.learns_noise else CENTRED
        generator = arrays.make_generator(self.random_state)
        fitted = plan.begin(samples, plan.enter(samples, units), units, generator)
        # No search improves these samples, so training takes the gradient that finds atoms from
        # samples: "dec", the squared error through the decoder, with codes as constants.
        return replace(fitted, from_samples=plan.searches)

    def _encoder(self):
        """Return the encoder of `transform` for rows that are in units of their noise."""
        self._validate_params()  # the user may have set parameters since `fit`
        return EncoderPlan(self).encoder(
            self.alpha_, step_size=self.step_size_, lambda_decay=self.lambda_decay_
        )

    def _transform_encoder(self):
        """Return the encoder of `transform` for rows in the user's units.

        Codes are in the user's units, too. `DictionaryTransformer` calls it for each `transform`.
        """
        encoder = self._encoder()
        # A fit leaves out very long rows, by ``median_norm``. `transform` has to code all rows.
        units = replace(units_of(self), median_norm=None)
        if isinstance(encoder, Converged):
            encoder = replace(encoder, warns=True)
        elif isinstance(encoder, LearnedEncoder):  # it clips residuals at its own limit
            units = replace(units, limit=None)
        if units.changes_nothing:
            return encoder
        return InUnits(encoder, units, units.gains(arrays.to_tensor(self.components_)))

    def _resume(self, plan, data):  # -> Fitted
        """Return the `Fitted` that a later `partial_fit` updates.

        It is the `Fitted` that the last call kept, with the changes that the user has made since,
        to ``components_``, to the penalty, and to ``debias``. Its ``coding`` has the penalty and
        the debiasing that data have chosen. ``plan`` is the learner's `Plan`, and ``data`` are the
        `Data` of the new call.
        """
        last = self._fitted
        alpha = last.alpha
        coding = last.coding
        data_scale = last.data_scale
        asked = plan.params.alpha
        if asked not in ("auto", self._at_fit["alpha"]):
            # the user has set a penalty since
            alpha = float(asked)
            coding = None
        elif coding is not None and plan.debias is not None:
            coding = coding._replace(debias=plan.debias)
        components = arrays.to_tensor(self.components_, data.samples.x.device)
        atoms = last.units.from_user(components)
        units = replace(last.units, atoms=atoms)
        if data_scale == 0:  # all rows so far were zero, and chose no penalty
            coding = None
        if not data_scale:  # the first rows after `from_components` or after zeros
            rows = plan.enter(data.samples, units)
            first = plan.first_record(data.samples, rows, units)
            # if these rows are zero, too, None leaves the choice to the next call
            data_scale = first.data_scale or None
            if asked == "auto":
                alpha = plan.code_penalty(first, atoms)
        return replace(
            last,
            atoms=atoms,
            units=units,
            alpha=alpha,
            coding=coding,
            data_scale=data_scale,
        )

    def _attributes(self, plan, data, fitted):
        """Return all fitted attributes as a dict, with what a later `partial_fit` needs.

        Keys are names of attributes; `skpudle._fit.run.take` sets them on the learner. Callbacks
        get the same dict after each epoch.
        """
        curve = [*fitted.losses, *fitted.loss_curve]
        phases = None
        if fitted.ended_by is not None:  # the end of a `fit`, not of `partial_fit`
            # ``fitted.later`` has the numbers of epochs of phases after training.
            epochs = {"search": len(fitted.losses), plan.name: len(fitted.loss_curve)}
            phases = {name: n for name, n in (epochs | fitted.later).items() if n}
        attributes = data.inputs | plan.attributes(fitted)
        score = fitted.factor_score
        return attributes | {
            "lambda_decay_": plan.decay_of(fitted, max(fitted.n_steps - 1, 0)),
            "device_": str(data.samples.x.device),
            "n_iter_": max(len(curve), 1),
            "n_steps_": fitted.n_steps,
            "n_samples_seen_": data.n_seen,
            "loss_curve_": np.array(curve, dtype=np.float64),
            "outliers_": _outliers_of_rows(data, fitted),
            "factor_score_": score and Bunch(**score._asdict()),
            "ended_by_": fitted.ended_by,
            "phases_": phases,
            "fit_seconds_": None,  # `_fit` sets it when all callbacks have run
            "_fitted": fitted.kept(),
            "_at_fit": {
                "alpha": plan.params.alpha,
                "n_components": plan.params.n_components,
                "optimizer": messages.describe(plan.optimizer_for(len(fitted.atoms))),
                "atoms": messages.describe(attributes["components_"]),
            },
        }
