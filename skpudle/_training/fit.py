"""Run the phases of a fit, with its hooks: callbacks, Ctrl-C, checkpoints, progress, processes.

A phase is a state that advances by epochs, until it is done. It has

* ``begin(recorder)``, which starts or resumes it, and ``advance()``, one more epoch;
* ``is_done``;
* ``attributes()``, the fitted attributes of a learner with the present state;
* ``report(max_iter)``, which prints a line about the last epoch;
* ``names``: the names of the phase (or None) and of its epochs for callbacks;
* ``stages``: for callbacks, the largest number of epochs of each stage of a search, by name; empty
  without stages;
* ``stops_at_interrupts``: whether it leaves Ctrl-C to the driver.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from math import inf

import torch

from skpudle._data.arrays import make_generator
from skpudle._data.batches import count_batches
from skpudle._training.checkpoint import Recorder
from skpudle._training.messages import (
    print_noise,
    print_pass,
    print_progress,
    print_search,
    print_size,
)
from skpudle._training.team import current_team
from skpudle.search._search import SearchState, advance, begin, is_done
from skpudle.search._stream import advance_stream

__all__ = ["FitRun", "Interrupts", "Pass", "Search", "Step", "Training", "Trials"]

# Largest number of steps of a fit that are tasks for callbacks, besides search, pass and training:
# the noise, the number of atoms, the level of the noise, atoms without bias or of rank one, the
# penalty of codes, and the noise of rows.
_STEPS = 6


class Interrupts:
    """Delay Ctrl-C until an update is complete; a second one interrupts at once.

    Only Python's own handler of the main thread is replaced, and restored at the end: a handler of
    other code stays in place. A delayed Ctrl-C that no phase has acted on is raised at the end.
    """

    pending = False

    def __enter__(self):
        self._installed = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._installed:
            signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number, frame):
        self.pending = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, kind, error, traceback):
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.pending and kind is None:
            raise KeyboardInterrupt


@dataclass
class Search:
    """The search for a dictionary, see `skpudle.search`.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective.
    atoms : Tensor of shape (n_components, ...)
        Initial atoms.
    attributes_of : callable
        ``attributes_of(state)`` returns the fitted attributes for the best atoms of a state.
    """

    problem: object
    atoms: object
    attributes_of: Callable
    stages: dict = field(default_factory=dict)
    best: float = inf  # objective of a sample
    share_done: float = 0.0

    names, n_tasks = ("search", "epoch of the search"), len(SearchState.stages)
    stops_at_interrupts = True

    def begin(self, recorder):
        """Start from the atoms, or from the checkpoint."""
        found = recorder.found_search(self.problem, self.atoms)
        self.state = found or begin(self.problem, self.atoms)
        (n,) = self.problem.total(torch.tensor([self.problem.n_samples], dtype=torch.float64))
        self.n_samples = int(n)  # samples of all processes
        factor = self.state.stride.bit_length()
        limited = self.problem.n_positions == 1  # moves of atoms in images know no limit
        self.stages = {
            name: factor * most if limited and most else None
            for name, most in self.state.stages.items()
        }

    @property
    def is_done(self):
        return is_done(self.state)

    def advance(self):
        """Make one more epoch."""
        self.state = advance(self.problem, self.state)

    def attributes(self):
        """Return the fitted attributes."""
        return self.attributes_of(self.state)

    def report(self, max_iter):
        """Print a line about the last epoch.

        The best objective, of dictionaries of the wanted size, never rises; the share never falls.
        """
        state, n = self.state, -(-self.n_samples // self.state.stride)
        if state.best_objective < inf:
            self.best = min(self.best, state.best_objective * self.problem.unit**2 / n)
        self.share_done = max(self.share_done, state.share_done)
        print_search(state, self.best, self.share_done)


@dataclass
class Trials:
    """Trials one after the other: of baseline and noise, or of numbers of atoms.

    Parameters
    ----------
    names : tuple of str
        The callbacks' names of the phase and of a trial.
    trials : iterator
        Its trials; the last one says so by ``is_last``.
    attributes_of : callable
        ``attributes_of(trial)`` returns the fitted attributes for a trial.
    print_trial : callable
        ``print_trial(trial)`` prints a line about it.
    """

    names: tuple
    trials: Iterator
    attributes_of: Callable
    print_trial: Callable
    trial: object = None

    stages, n_tasks = {}, None
    stops_at_interrupts = True

    def begin(self, recorder):
        """Begin anew: a checkpoint holds no trials."""

    @property
    def is_done(self):
        return self.trial is not None and self.trial.is_last

    def advance(self):
        """Make one more trial."""
        self.trial = next(self.trials)

    def attributes(self):
        """Return the fitted attributes."""
        return self.attributes_of(self.trial)

    def report(self, max_iter):
        """Print a line about the last trial."""
        self.print_trial(self.trial)


@dataclass
class Step:
    """A part of a fit that has no epochs, such as the choice of the penalty of codes.

    Parameters
    ----------
    name : str
        Its name.
    compute : callable
        Makes the step; called without arguments.
    attributes : callable
        Returns the fitted attributes before it.
    """

    name: str
    compute: Callable
    attributes: Callable
    result: object = None
    is_done: bool = False

    stages, n_tasks = {}, 1
    stops_at_interrupts = True

    @property
    def names(self):
        """The callbacks' names of the step, and of its only epoch."""
        return self.name, "step"

    def begin(self, recorder):
        """Do nothing."""

    def advance(self):
        """Make the step."""
        self.result, self.is_done = self.compute(), True

    def report(self, max_iter):
        """Print a line about the step."""
        print(f"{self.name}, done", flush=True)


@dataclass
class Pass:
    """One pass over all rows after a search in a sample of them, see `skpudle.search`.

    A checkpoint holds the end of the search, from which the pass begins again.

    Parameters
    ----------
    blocks : iterable of Samples
        All rows of this process.
    n_blocks : int
        The number of blocks, the same in all processes.
    problem_of : callable
        ``problem_of(batch)`` returns the problem of a block, and of no rows for None.
    state : StreamState
        State before the first block.
    attributes_of : callable
        ``attributes_of(state)`` returns the fitted attributes for a state.
    """

    blocks: object
    n_blocks: int
    problem_of: Callable
    state: object
    attributes_of: Callable

    names, stages = ("pass", "block"), {}
    stops_at_interrupts = True

    @property
    def n_tasks(self):
        """The number of blocks."""
        return self.n_blocks

    def begin(self, recorder):
        """Start with the first block."""
        self._blocks, self._first, self.loss = iter(self.blocks), self.state.n_rows, 0.0

    @property
    def is_done(self):
        return self.state.n_blocks >= self.n_blocks

    def advance(self):
        """Adapt the atoms to one more block."""
        before, problem = self.state, self.problem_of(next(self._blocks, None))
        self.state, _ = advance_stream(problem, before, final=True)
        n_rows, n_more = self.state.n_rows - self._first, self.state.n_rows - before.n_rows
        loss = self.state.loss * problem.unit**2
        self.loss += (loss - self.loss) * n_more / max(n_rows, 1)

    def attributes(self):
        """Return the fitted attributes."""
        return self.attributes_of(self.state)

    def report(self, max_iter):
        """Print a line about the last block."""
        print_pass(self.state, self.n_blocks)


@dataclass
class Training:
    """Training by gradients.

    Parameters
    ----------
    name : str
        Name of the gradient, for progress.
    trainer : Trainer
        Atoms in training.
    source : source of batches
        See `skpudle._data.batches`.
    stopping : Stopping
        The rule that ends training; its ``n_updates`` is the largest number of updates.
    max_iter : int or float, default=inf
        Largest number of epochs.
    attributes : callable, default=None
        Returns the fitted attributes; not needed without hooks.
    ended_by : str, default=None
        The cause of an early end.
    """

    name: str
    trainer: object
    source: object
    stopping: object
    max_iter: float = inf
    attributes: Callable | None = None
    ended_by: str | None = None

    names, stages = (None, "epoch"), {}
    stops_at_interrupts = False  # the trainer stops within an epoch

    def begin(self, recorder):
        """Start, or resume from the checkpoint."""
        recorder.begin(self.trainer, self.source, self.stopping)
        self.ended_by = recorder.ended_by
        self._started = time.perf_counter(), self.trainer.n_steps

    @property
    def is_done(self):
        # a stream may have more batches than before, and reach n_updates in fewer epochs
        full = self.trainer.n_steps >= self.stopping.n_updates
        return full or len(self.trainer.loss_curve) >= self.max_iter or self.ended_by is not None

    def advance(self):
        """Replace unused atoms, and make one more epoch."""
        self.trainer.replace_unused(self.source)
        if self.trainer.run_epoch(self.source, self.stopping).converged:
            self.ended_by = "tol"

    def report(self, max_iter):
        """Print a line about the last epoch."""
        print_progress(self.name, self.trainer, max_iter, self.stopping.n_updates, *self._started)


class FitRun(AbstractContextManager):
    """One call of `fit`: its hooks, and their data.

    As a context manager it holds the file of the checkpoint, against other fits, and tells
    callbacks of the end.

    Parameters
    ----------
    learner : estimator
        The learner to fit.
    X, y : object
        Its input, for callbacks.

    Attributes
    ----------
    recorder : Recorder
        The checkpoint.
    team : Team
        The processes that train together.
    interrupts : Interrupts
        ``pending`` is whether Ctrl-C was pressed.
    generator : torch.Generator
        Random numbers of the fit, the same in all processes.
    source : source of batches
        Samples to train on.
    n_updates, max_iter : int
        Largest numbers of updates and epochs of training; 0 if nothing trains.
    trains : bool
        Whether there is a trainer: something trains, or a checkpoint holds its state.
    losses : tuple of float
        Objective of each epoch before training.
    search_was_stopped : bool
        Whether a callback or Ctrl-C stopped the search.
    seconds : dict of str to float
        Seconds of each phase, and at the end of the whole "fit".
    """

    def __init__(self, learner, X, y):
        self._started, self.seconds = time.perf_counter(), {}
        self.learner, self.team, self.interrupts = learner, current_team(), Interrupts()
        self.given = {"estimator": learner, "X": X, "y": y}
        self.recorder = Recorder(learner)
        self.losses, self.search_was_stopped = (), False

    def __exit__(self, kind, error, traceback):
        try:
            if kind is None:
                self.seconds["fit"] = time.perf_counter() - self._started
                self.root.call_on_fit_task_end(**self.given, reconstruction_attributes=dict)
        finally:
            self.recorder.release()

    def open(self, data, plan, attributes_of=None):
        """Seed the fit, compare it with its checkpoint and other processes, and count its updates.

        Parameters
        ----------
        data : Data
            The learner's data.
        plan : object
            With ``batch_size(n_samples)``, and ``n_updates(n_batches, batch_size, data)``, the
            largest number of updates.
        attributes_of : callable, default=None
            Returns the fitted attributes of the record of a fit, for callbacks.
        """
        self.attributes_of = attributes_of
        team, generator = self.team, make_generator(self.learner.random_state)
        self.recorder.open(generator, team)
        self.generator = team.agree(generator)
        n_samples = len(data.source) if hasattr(data.source, "__len__") else None
        own, size = team.own(self.generator), plan.batch_size(n_samples)
        self.source = data.source.for_training(size, own, shuffle=True)
        if self.recorder.is_active:
            seed = self.generator.initial_seed()
            self.recorder.recognise(data.source, data.samples, seed=seed)
        n_batches = team.largest(count_batches(self.source))
        self.n_updates = team.largest(plan.n_updates(n_batches, self.source.batch_size, data))
        self.max_iter = -(-self.n_updates // n_batches)
        self.trains = self.n_updates > 0 or self.recorder.is_active
        # more tasks: steps, the search, and a pass over all rows if the search has a sample
        n_before = _STEPS + 1 + ((getattr(data.source, "n_samples", None) or 0) > len(data.samples))
        self.root = self.learner._init_callback_context(max_subtasks=self.max_iter + n_before)
        self.root.call_on_fit_task_begin(**self.given)

    @contextmanager
    def timed(self, name):
        """Note the seconds of a phase that has no epochs of its own."""
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began

    def run(self, phase):
        """Run a phase with all hooks; return whether a callback or Ctrl-C stopped it."""
        began = time.perf_counter()
        phase.begin(self.recorder)
        task, (name, name_of_epochs), stopped = self.root, phase.names, False
        ended = self.given | {"reconstruction_attributes": dict}
        if name is not None:
            task = whole = self.root.subcontext(task_name=name, max_subtasks=phase.n_tasks)
            whole.call_on_fit_task_begin(**self.given)
        stage = None
        while not (stopped or phase.is_done):
            if phase.stages and phase.state.stage != stage:
                if stage is not None:
                    task.call_on_fit_task_end(**ended)
                stage = phase.state.stage
                task = whole.subcontext(task_name=stage, max_subtasks=phase.stages[stage])
                task.call_on_fit_task_begin(**self.given)
            epoch = task.subcontext(task_name=name_of_epochs)
            epoch.call_on_fit_task_begin(**self.given)
            phase.advance()
            if self.learner.verbose and self.team.rank == 0:
                phase.report(self.max_iter)
            hooks = self.given | {"reconstruction_attributes": phase.attributes}
            stopped = bool(epoch.call_on_fit_task_end(**hooks))
            stopped |= phase.stops_at_interrupts and self.interrupts.pending
            (stopped,) = self.team.any(stopped)
            # the trainer writes between rounds of updates
            if name == "search" and self.recorder.is_active:
                self.recorder.at_search_epoch(phase.state)
        if stage is not None:
            task.call_on_fit_task_end(**ended)
        if name is not None:
            whole.call_on_fit_task_end(**ended)
        self.seconds[name or "training"] = time.perf_counter() - began
        return stopped

    def learn_noise(self, trials, attributes_of):  # -> NoiseTrial
        """Learn baseline and noise; see `Trials`."""
        phase = Trials(("noise", "units of the data"), trials, attributes_of, print_noise)
        self.run(phase)
        return phase.trial

    def choose_size(self, trials, attributes_of):  # -> SizeTrial
        """Choose the number of atoms; see `Trials`."""
        phase = Trials(("size", "number of atoms"), trials, attributes_of, print_size)
        self.run(phase)
        return phase.trial

    def make_step(self, name, compute, attributes):
        """Make a part of the fit without epochs, and return its result; see `Step`."""
        phase = Step(name, compute, attributes)
        self.run(phase)
        return phase.result

    def search(self, problem, atoms, attributes_of):  # -> SearchState
        """Search for atoms; see `Search`."""
        phase = Search(problem, atoms, attributes_of)
        self.run(phase)
        self.losses, self.search_was_stopped = phase.state.losses, not phase.is_done
        self.searched = phase.state
        if self.interrupts.pending:
            self.recorder.end_search(phase.state)
        return phase.state

    def go_on(self, phase):
        """Pass over all rows after a search in a sample; see `Pass`."""
        self.recorder.end_search(self.searched)
        self.search_was_stopped |= self.run(phase)
        self.losses = (*self.losses, phase.loss)

    def refine(self, training):
        """Train without callbacks and checkpoints, as a part of the search."""
        with self.timed("refinement"):
            while not (training.is_done or self.interrupts.pending):
                training.advance()
        self.losses = (*self.losses, *training.trainer.loss_curve)

    def train(self, training):  # -> cause of the end, None for the largest number of updates
        """Train; see `Training`."""
        stopped, trainer = self.run(training), training.trainer
        if stopped and training.ended_by is None:
            training.ended_by = "callback"
        trainer.mark(training.source, training.stopping)
        stopped = not self.n_updates and self.search_was_stopped
        ended_by = training.ended_by or ("callback" if stopped else None)
        self.recorder.end(trainer, ended_by=ended_by)
        # only now, because a later fit resumes from the last epoch
        training.stopping.settle(trainer.optimizer)
        return training.ended_by
