"""The phases that all learners share: training, and the penalty of codes.

A phase is a generator function of records, see `skpudle._fit.run`. `Phases` has the phases of
one fit, and the data, parameters and random numbers that they share. A subclass finds the atoms.
"""

from dataclasses import replace

from skpudle._fit.run import Phase
from skpudle._fit.train import Stopping, Trainer
from skpudle.search.choose import best_coding, judged
from skpudle.search.descend import refit_atoms, solve_codes
from skpudle.search.find import find_atoms, penalty_path

# Epochs that solve the codes of atoms from zero.
REPEATS = 3


class Phases:
    """The phases of one fit.

    Parameters
    ----------
    learner : estimator
        The learner.
    plan : Plan
        Its plan.
    data : Data
        Its data.
    run : Run
        The fit.
    """

    def __init__(self, learner, plan, data, run):
        self.learner, self.plan, self.data, self.run = learner, plan, data, run
        self._problem = self._coded = None

    # ------------------------------------------------------------------ for subclasses

    def first(self):  # -> Fitted
        """Return the record before all phases, with initial atoms."""
        raise NotImplementedError

    def before_training(self):  # -> tuple of Phase
        """Return the phases that find the atoms."""
        raise NotImplementedError

    def make_problem(self, fitted):  # -> Problem or ConvProblem
        """Return the problem of the search of a record, with data that are held out."""
        raise NotImplementedError

    def rows_of(self, fitted, atoms):  # -> rows of parameters
        """Return the rows of the record with other atoms, those of its search's problem."""
        raise NotImplementedError

    def coding_problem(self, fitted):  # -> Problem or ConvProblem, atoms
        """Return the problem whose codes `best_coding` judges, and its atoms."""
        raise NotImplementedError

    def remember(self, fitted):  # -> Fitted
        """Return the last record with what `partial_fit` needs of it."""
        return fitted

    # ------------------------------------------------------------------ the phases

    def table(self):  # -> tuple of Phase
        """Return all phases, in their order."""
        n_updates, follows = self.run.n_updates, self.plan.codes_follow_data
        return (
            *self.before_training(),
            Phase("training", self.train, lambda fitted: n_updates > 0, "epoch"),
            Phase(
                "penalty of codes",
                self.choose_coding,
                lambda fitted: follows and fitted.coding is None,
            ),
        )

    def with_search(self, fitted, problem, found):  # -> Fitted
        """Return the record with what its search has found so far."""
        self._problem, self._coded = problem, found.coded
        known = dict(atoms=found.atoms, alpha=found.alpha, is_done=found.is_done)
        known |= dict(trial=found.trial, stride=found.stride)
        note = f"search, epoch {len(found.losses)}  {found.stage}  {found.n_atoms} atoms"
        return replace(
            fitted,
            rows=self.rows_of(fitted, found.atoms),
            searched=replace(fitted.searched, **known),
            search_alpha=found.alpha * problem.unit,
            penalty_path=penalty_path(problem, found.path, problem.unit),
            is_done=found.is_done,
            note=f"{note}  loss {found.losses[-1]:.6g}",
        )

    def follow_search(self, fitted, problem):
        """Search from the atoms of the record: yield a record for each epoch."""
        for found in find_atoms(problem, fitted.searched.atoms):
            losses = (*fitted.losses, *found.losses)
            yield replace(self.with_search(fitted, problem, found), losses=losses)

    def found(self, fitted):  # -> Problem, Epoch; or those of images
        """Return the problem of the search, and its data with codes for the atoms."""
        if self._problem is None:  # an earlier process has searched
            searched, self._problem = fitted.searched, self.make_problem(fitted)
            part = self._problem.thinned(searched.stride, alpha=searched.alpha)
            self._coded = solve_codes(part, searched.atoms, REPEATS)
        return self._problem, self._coded

    def follow_sizes(self, trials):
        """Yield the trials of a number of atoms, each with values of its record."""
        for trial in trials:
            n_tried, n = len(trial.path.n_components), len(trial.atoms)
            note = f"size, {n_tried} numbers of atoms tried  {n} atoms so far"
            yield trial, dict(size_path=trial.path, is_done=trial.is_last, note=note)

    def refit(self, fitted):
        """Free the atoms of a search of the lasso's bias."""
        _, coded = self.found(fitted)
        atoms = refit_atoms(coded.problem, coded.atoms, coded.codes)
        yield replace(fitted, rows=self.rows_of(fitted, atoms))

    def choose_unseen_coding(self, fitted):
        """Choose the penalty of codes by the data that the search has held out."""
        (problem, _), trial, plan = self.found(fitted), fitted.searched.trial, self.plan
        how = dict(debias=plan.debias, place=trial.prediction.place)
        coding = best_coding(problem.held_out, trial.judged, **how)
        yield replace(fitted, coding=coding.in_units(problem.unit))

    def train(self, fitted):
        """Train through the encoder: yield a record for each epoch.

        With a state of training the first record is that of the state.
        """
        plan, run, state = self.plan, self.run, fitted.training
        ended_by = fitted.ended_by if state else None
        fitted = replace(fitted.with_model(decay=plan.decay.over(run.n_updates)), ended_by=None)
        optimizer = plan.make_optimizer(fitted.model, fitted.rows)
        trainer = Trainer(fitted, optimizer, team=run.team, interrupts=run.interrupts)
        source, stopping = run.source.changed(fitted.in_units), self._stopping()
        if state:
            trainer.load(state, source, stopping)
            ended_by = ended_by or ("tol" if stopping.is_over else None)
        else:
            state = trainer.state(source, stopping)
        while True:
            n_epochs, full = len(trainer.loss_curve), trainer.n_steps >= run.n_updates
            if ended_by is None and (full or n_epochs >= run.max_iter):
                ended_by = "max_iter"
            if n_epochs:
                now, done = trainer.fitted, ended_by is not None
                note = (
                    f"{plan.name}, epoch {n_epochs}/{run.max_iter}  loss {now.loss_curve[-1]:.6g}"
                )
                how = dict(note=note, is_done=done, ended_by=ended_by)
                yield replace(now, training=state, **how)
            if ended_by is not None:
                return
            trainer.replace_unused()
            if trainer.run_epoch(source, stopping).converged:
                ended_by = "tol"
            if not run.interrupts.pending:  # a file repeats the epoch that Ctrl-C has cut off
                state = trainer.state(source, stopping)

    def _stopping(self):  # -> Stopping
        """Return the rule that ends training."""
        given, n_updates = self.plan.given, self.run.n_updates
        rule = given.tol, given.n_iter_no_change
        annealed = isinstance(given.lambda_decay, tuple)
        return Stopping(*rule, first_update=n_updates * 9 // 10 * annealed, n_updates=n_updates)

    def choose_coding(self, fitted):
        """Choose the penalty of the codes of `transform`, which follows the data."""
        problem, atoms = self.coding_problem(fitted)
        coding = best_coding(judged(problem), atoms, debias=self.plan.debias)
        yield replace(fitted, coding=coding.in_units(problem.unit))
