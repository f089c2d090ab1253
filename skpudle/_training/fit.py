"""Run the phases of a fit, with its hooks: callbacks, Ctrl-C, checkpoints, progress, processes.

A phase is a state that advances by epochs, until it is done. It has

* ``begin()``, which starts it, and ``advance()``, one more epoch;
* ``is_done``, and ``ended_by``, the cause of an early end;
* ``pack()``, its state for a checkpoint, or None for a state that no file holds, and
  ``resume(state, same_rule)``, which goes on from there; ``same_rule`` tells whether the rule that
  ends training is the same;
* ``key``, the name of its state and of its seconds;
* ``attributes()``, the fitted attributes of a learner with the present state;
* ``report(max_iter)``, which prints a line about the last epoch;
* ``names``: the names of the phase (or None) and of its epochs for callbacks;
* ``stops_at_interrupts``: whether it leaves Ctrl-C to the driver.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import inf

import torch

from skpudle._data.arrays import make_generator
from skpudle._data.batches import count_batches
from skpudle._training.checkpoint import Recorder
from skpudle._training.messages import (
    print_pass,
    print_progress,
    print_search,
    print_size,
)
from skpudle._training.team import current_team
from skpudle.search._stream import Memory, StreamState, advance_stream
from skpudle.search.choose import SizePath, SizeTrial, best_coding
from skpudle.search.descend import refit_atoms
from skpudle.search.find import find_atoms

# Steps of a fit that are tasks of their own for callbacks, beside search, pass and training: the
# units, the number of atoms, the level of the noise, atoms without bias or of rank one, the penalty
# of codes, the noise of features, a second search and its two steps, units again, the baseline and
# the refinement of atoms of counts, and a learned encoder.
_STEPS = 13


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


class Phase:
    """A phase that does not mind its end, and whose state no file holds."""

    ended_by, n_tasks = None, None
    stops_at_interrupts = True

    @property
    def key(self):
        """The name of the state and of the seconds."""
        return self.names[0] or "training"

    def begin(self):
        """Begin with what the phase was made of."""

    def pack(self):
        """Return None: the phase begins again."""


@dataclass
class Search(Phase):
    """The search for a dictionary, see `skpudle.search.find`.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective.
    atoms : Tensor of shape (n_components, ...)
        Initial atoms.
    attributes_of : callable
        ``attributes_of(found)`` returns the fitted attributes for the atoms of a search.
    names : tuple of str
        The callbacks' names of the search and of an epoch.
    """

    problem: object
    atoms: object
    attributes_of: Callable
    names: tuple = ("search", "epoch of the search")
    found: object = None

    def begin(self):
        """Start from the atoms."""
        self._steps = find_atoms(self.problem, self.atoms)

    def pack(self):
        """Return the atoms, from which a killed search goes on."""
        return None if self.found is None else self.found.atoms

    def resume(self, state, *, same_rule):
        """Begin with the atoms of an earlier search."""
        if not isinstance(state, torch.Tensor) or state.shape != self.atoms.shape:
            shape = tuple(self.atoms.shape)
            raise ValueError(f"its atoms have shape {getattr(state, 'shape', None)}, not {shape}")
        self.atoms = state.double()
        self.begin()

    @property
    def is_done(self):
        return self.found is not None and self.found.is_done

    def advance(self):
        """Make one more epoch."""
        self.found = next(self._steps)

    def attributes(self):
        """Return the fitted attributes."""
        return self.attributes_of(self.found)

    def report(self, max_iter):
        """Print a line about the last epoch."""
        print_search(self.found)


@dataclass
class Trials(Phase):
    """The numbers of atoms that are tried in turn.

    Parameters
    ----------
    trials : iterator
        Its trials; the last one says so by ``is_last``.
    attributes_of : callable
        ``attributes_of(trial)`` returns the fitted attributes for a trial.
    generator : torch.Generator
        Its random numbers, which later phases draw from, too.
    """

    trials: Iterator
    attributes_of: Callable
    generator: torch.Generator
    trial: object = None

    names = "size", "number of atoms"

    def pack(self):
        """Return the last trial; before it None, since an iterator does not go on from a file."""
        return (self.trial, self.generator.get_state()) if self.is_done else None

    def resume(self, state, *, same_rule):
        """Take the last trial."""
        trial, numbers = state
        self.trial = SizeTrial(**trial | {"path": SizePath(**trial["path"])})
        self.generator.set_state(numbers)

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
        print_size(self.trial)


@dataclass
class Step(Phase):
    """A part of a fit that has no epochs, such as the choice of the penalty of codes.

    Parameters
    ----------
    names : tuple of str
        The callbacks' names of the step, and of its only epoch.
    compute : callable
        Makes the step; called without arguments.
    attributes : callable
        Returns the fitted attributes before it.
    """

    names: tuple
    compute: Callable
    attributes: Callable
    result: object = None
    is_done: bool = False

    n_tasks = 1

    def advance(self):
        """Make the step."""
        self.result, self.is_done = self.compute(), True

    def report(self, max_iter):
        """Print a line about the step."""
        print(f"{self.names[0]}, done", flush=True)


@dataclass
class Pass(Phase):
    """One pass over all rows after a search in a sample of them, see `skpudle.search`.

    Its epoch is a block of rows, since the only pass over a stream may take hours. A pass that goes
    on reads the earlier blocks again, which takes little of the time that learning takes.

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

    names = "pass", "block"

    @property
    def n_tasks(self):
        """The number of blocks."""
        return self.n_blocks

    def begin(self):
        """Start with the first block."""
        self._blocks, self._first, self.loss = iter(self.blocks), self.state.n_rows, 0.0

    def pack(self):
        """Return the state after the last block, and the mean loss."""
        return self.state, self.loss

    def resume(self, state, *, same_rule):
        """Go on after the block of a state."""
        found, self.loss = state
        self.state = StreamState(**found | {"memory": Memory(**found["memory"])})
        self._blocks = islice(self.blocks, self.state.n_blocks, None)

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
class Training(Phase):
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

    names = None, "epoch"
    stops_at_interrupts = False  # the trainer does, within an epoch

    def begin(self):
        """Start."""
        self._started = time.perf_counter(), self.trainer.n_steps

    def pack(self):
        """Return the state of the trainer, and the cause of an early end."""
        return self.trainer.state(self.source, self.stopping), self.ended_by

    def resume(self, state, *, same_rule):
        """Go on from a state; by another rule training that has ended goes on."""
        found, ended_by = state
        self.trainer.load(found, self.source, self.stopping)
        if not same_rule:
            self.stopping.forgive()
        elif ended_by != "interrupt":
            self.ended_by = ended_by
        self.begin()

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
    own : torch.Generator
        Random numbers of this process, for draws from its own samples.
    source : source of batches
        Samples to train on.
    n_updates, max_iter : int
        Largest numbers of updates and epochs of training; 0 if nothing trains.
    losses : tuple of float
        Objective of each epoch before training.
    search_was_stopped : bool
        Whether a callback or Ctrl-C stopped the search.
    seconds : dict of str to float
        Seconds of the "reading" of the data, of each phase, of the "result" after the phases, and
        of the whole "fit".
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
                now = time.perf_counter()
                self.seconds |= {"result": now - self._ended, "fit": now - self._started}
                self.root.call_on_fit_task_end(**self.given, reconstruction_attributes=dict)
        finally:
            self.recorder.release()

    def open(self, data, plan, attributes_of=None):
        """Seed the fit, compare it with its checkpoint, and count its updates.

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
        self._ended = time.perf_counter()
        self.seconds["reading"] = self._ended - self._started
        self.attributes_of = attributes_of
        team, generator = self.team, make_generator(self.learner.random_state)
        self.recorder.open(generator)
        seed = team.largest(generator.initial_seed())
        self.generator = self.own = generator.manual_seed(seed)
        if team.rank > 0:
            self.own = torch.Generator().manual_seed(seed + team.rank)
        n_samples = len(data.source) if hasattr(data.source, "__len__") else None
        size = plan.batch_size(n_samples)
        self.source = data.source.for_training(size, self.own, shuffle=True)
        if self.recorder.is_active:
            self.recorder.recognise(data.source, data.samples, seed=seed)
        n_batches = team.largest(count_batches(self.source))
        self.n_updates = team.largest(plan.n_updates(n_batches, self.source.batch_size, data))
        self.max_iter = -(-self.n_updates // n_batches)
        # more tasks: steps, the search, and the pass over all rows if the search has a sample of
        # them
        n_before = _STEPS + 1 + ((getattr(data.source, "n_samples", None) or 0) > len(data.samples))
        self.root = self.learner._init_callback_context(max_subtasks=self.max_iter + n_before)
        self.root.call_on_fit_task_begin(**self.given)

    def run(self, phase):
        """Run a phase with all hooks; return whether a callback or Ctrl-C stopped it."""
        began = time.perf_counter()
        phase.begin()
        if self.recorder.is_active:
            self.recorder.resume(phase)
            self.recorder.note(phase)
        task, (name, name_of_epochs), stopped = self.root, phase.names, False
        ended = self.given | {"reconstruction_attributes": dict}
        if name is not None:
            task = self.root.subcontext(task_name=name, max_subtasks=phase.n_tasks)
            task.call_on_fit_task_begin(**self.given)
        while not (stopped or phase.is_done):
            epoch = task.subcontext(task_name=name_of_epochs)
            epoch.call_on_fit_task_begin(**self.given)
            phase.advance()
            if self.learner.verbose and self.team.rank == 0:
                phase.report(self.max_iter)
            hooks = self.given | {"reconstruction_attributes": phase.attributes}
            stopped = bool(epoch.call_on_fit_task_end(**hooks))
            stopped |= phase.stops_at_interrupts and self.interrupts.pending
            (stopped,) = self.team.any(stopped)
            if self.recorder.is_active:
                self.recorder.note(phase)
        if stopped and phase.ended_by is None:
            phase.ended_by = "interrupt" if self.interrupts.pending else "callback"
        if self.recorder.is_active:
            self.recorder.note(phase, ends=True)
        if name is not None:
            task.call_on_fit_task_end(**ended)
        self._ended = time.perf_counter()
        self.seconds[phase.key] = self.seconds.get(phase.key, 0.0) + self._ended - began
        return stopped

    def make_trials(self, trials, attributes_of):  # -> SizeTrial
        """Try numbers of atoms, and return the last trial; see `Trials`."""
        phase = Trials(trials, attributes_of, self.generator)
        self.run(phase)
        return phase.trial

    def make_step(self, name, compute, attributes):
        """Make a part of the fit without epochs, and return its result; see `Step`."""
        phase = Step((name, "step"), compute, attributes)
        self.run(phase)
        return phase.result

    def search(self, problem, atoms, attributes_of):  # -> Found
        """Search for atoms, in the units of the noise in a second search; see `Search`."""
        names = "search in units of the noise" if self.losses else "search", "epoch of the search"
        phase = Search(problem, atoms, attributes_of, names)
        self.run(phase)
        self.losses = (*self.losses, *phase.found.losses)
        self.search_was_stopped = not phase.is_done
        return phase.found

    def refit(self, found, attributes):  # -> atoms
        """Return the atoms of a search, free of the lasso's bias if they then predict better."""
        if not found.is_unbiased:
            return found.atoms
        coded = found.coded
        refit = partial(refit_atoms, coded.problem, coded.atoms, coded.codes)
        return self.make_step("unbiased atoms", refit, attributes)

    def choose_coding(self, held_out, atoms, unit, attributes, *, debias, place=None):
        """Return penalty, share of the bias to remove and noise of codes, for data over a unit."""
        choose = partial(best_coding, held_out, atoms, debias=debias, place=place)
        return self.make_step("penalty of codes", choose, attributes).in_units(unit)

    def go_on(self, phase):
        """Pass over all rows after a search in a sample; see `Pass`."""
        self.search_was_stopped |= self.run(phase)
        self.losses = (*self.losses, phase.loss)

    def refine(self, training):
        """Train as a step of the search."""

        def train():
            while not (training.is_done or self.interrupts.pending):
                training.advance()

        self.make_step("refinement", train, training.attributes)
        self.losses = (*self.losses, *training.trainer.loss_curve)

    def end_search(self, fitted):  # -> Fitted
        """Return the record of the phases before training, and give it to the checkpoint."""
        ended_by = "callback" if self.search_was_stopped else "search"
        fitted = replace(fitted, losses=self.losses, ended_by=ended_by)
        if self.recorder.is_active and not self.interrupts.pending:
            self.recorder.note_record(fitted, self.generator)
        return fitted

    def train(self, training):  # -> cause of the end, None for the largest number of updates
        """Train; see `Training`."""
        if self.recorder.is_active:
            self.recorder.refuse(training.trainer.optimizer)
        self.run(training)
        # only now, because a later fit resumes from the last epoch
        training.stopping.settle(training.trainer.optimizer)
        return training.ended_by
