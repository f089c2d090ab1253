"""Run a fit: callbacks, Ctrl-C, checkpoints, progress."""

import time

from skpudle._training.interrupts import Interrupts
from skpudle._training.loop import Diverged, Interrupted
from skpudle._training.messages import divergence, print_progress, print_search
from skpudle.search import advance, begin, is_done

__all__ = ["FitRun"]


class FitRun:
    """One call of `fit`, phase by phase.

    Parameters
    ----------
    learner : estimator
        The learner to fit.
    recorder : Recorder
        Its checkpoint.
    team : Team or None
        The processes that train together.
    given : dict
        Arguments of callbacks: the estimator and its input.
    max_iter : int
        Largest number of epochs of training.

    Attributes
    ----------
    losses : tuple of float
        Objective of each epoch of the search.
    search_was_stopped : bool
        Whether a search was stopped before it ended by itself.
    later : dict of str to int
        Epochs of the phases after training, by name.
    """

    def __init__(self, learner, recorder, team, *, given, max_iter):
        self.learner, self.recorder, self.team = learner, recorder, team
        self.given, self.max_iter = given, max_iter
        self.interrupts, self.losses, self.search_was_stopped = Interrupts(), (), False
        self.later = {}
        # one task more, for the search
        self.root = learner._init_callback_context(max_subtasks=max_iter + 1)
        self.root.call_on_fit_task_begin(**given)

    def end(self):
        """Tell callbacks that the fit has ended."""
        self.root.call_on_fit_task_end(**self.given, reconstruction_attributes=dict)

    def search(self, problem, atoms, fitted):
        """Search for atoms, from given ones or from the checkpoint.

        ``fitted(state)`` returns the attributes of a learner with the best atoms of a state.
        """
        state = self.recorder.found_search(problem, atoms) or begin(problem, atoms)
        task = self.root.subcontext(task_name="search", max_subtasks=None)
        task.call_on_fit_task_begin(**self.given)
        stopped = False
        while not (stopped or is_done(state)):
            epoch = task.subcontext(task_name="epoch of the search")
            epoch.call_on_fit_task_begin(**self.given)
            state = advance(problem, state)
            if self.learner.verbose:
                print_search(state)
            stopped = epoch.call_on_fit_task_end(
                **self.given, reconstruction_attributes=lambda state=state: fitted(state)
            )
            stopped = self._agreed(stopped or self.interrupts.pending)
            self.recorder.at_search_epoch(state)
        task.call_on_fit_task_end(**self.given, reconstruction_attributes=dict)
        self.losses, self.search_was_stopped = state.losses, not is_done(state)
        if self.interrupts.pending:
            self.recorder.end_search(state)
        return state

    def train(self, trainer, source, stopping, fitted):
        """Train epoch by epoch, and return the cause of the end.

        ``fitted()`` returns the attributes of the learner as it is.
        """
        if self.interrupts.pending:  # during the search
            self.take(trainer, fitted, "interrupt")
            raise KeyboardInterrupt(f"the search was interrupted after epoch {len(self.losses)}")
        started = time.perf_counter(), trainer.n_steps
        ended_by = self.recorder.ended_by
        # the second condition, since a stream may have more batches than before
        while (
            len(trainer.loss_curve) < self.max_iter
            and trainer.n_steps < stopping.n_updates
            and not ended_by
        ):
            task = self.root.subcontext(task_name="epoch")
            task.call_on_fit_task_begin(**self.given)
            try:
                trainer.replace_unused(source)
                converged = trainer.run_epoch(source, stopping).converged
            except (Diverged, Interrupted) as error:
                self.leave(error, trainer, fitted)
            if self.learner.verbose:
                phase = self.learner._rule_name
                print_progress(phase, trainer, self.max_iter, stopping.n_updates, *started)
            stopped = task.call_on_fit_task_end(**self.given, reconstruction_attributes=fitted)
            stopped = self._agreed(stopped)
            ended_by = "tol" if converged else "callback" if stopped else None
        trainer.mark(source, stopping)
        self.recorder.end(trainer, ended_by=ended_by)
        stopping.settle(trainer.optimizer)  # training that resumes needs the last epoch
        if not ended_by and stopping.n_updates:
            ended_by = "max_iter"
        elif not ended_by:
            ended_by = "callback" if self.search_was_stopped else "search"
        self.take(trainer, fitted, ended_by)
        return ended_by

    def leave(self, error, trainer, fitted):
        """Leave training that diverged or was interrupted, and keep its result."""
        diverged = isinstance(error, Diverged)
        self.take(trainer, fitted, "divergence" if diverged else "interrupt")
        if diverged:
            raise divergence(self.learner, error.update, trainer.optimizer) from error
        self.recorder.end(trainer)
        raise error

    def take(self, trainer, fitted, ended_by):
        """Give the learner the result of training, and record which phases ran."""
        epochs = {"search": len(trainer.searched)}
        epochs[self.learner._rule_name] = len(trainer.loss_curve)
        epochs |= self.later
        phases = {name: n_epochs for name, n_epochs in epochs.items() if n_epochs}
        self.learner._take(fitted() | {"ended_by_": ended_by, "phases_": phases})

    def _agreed(self, flag):
        return bool(flag) if self.team is None else self.team.any(bool(flag))[0]
