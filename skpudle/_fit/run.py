"""Run the phases of a fit: callbacks, Ctrl-C, the checkpoint, progress, seconds, other processes.

A phase is a generator function of records: ``steps(record)`` yields a record for each epoch, and
each of them is a usable learner. `Run.through` is the only driver of phases.

The phases of a fit are an object with ``first()``, the record before all phases, and
``table(record)``, all phases in their order, as they are due for a record.
"""

import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from skpudle._data.arrays import make_generator
from skpudle._data.batches import Batches
from skpudle._fit.checkpoint import Checkpoint, Recorder
from skpudle._fit.team import current_team, refuse_several


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


class Phase(NamedTuple):
    """An entry of the table of phases of a fit.

    Attributes
    ----------
    name : str
        Its name, for callbacks, seconds and progress. The epochs of "training" are tasks of the
        whole fit.
    steps : callable
        ``steps(record)`` yields records.
    is_due : bool, default=True
        Whether the fit needs the phase, if it is not ``done``.
    unit : str, default="step"
        The callbacks' name of an epoch.
    ends_search : bool, default=False
        Whether it makes atoms of a search usable, also after Ctrl-C.
    """

    name: str
    steps: Callable
    is_due: bool = True
    unit: str = "step"
    ends_search: bool = False


class Run(AbstractContextManager):
    """One call of `fit`: its hooks, and their data.

    As a context manager it tells callbacks of the end.

    Parameters
    ----------
    learner : estimator
        The learner to fit.
    X, y : object
        Its input, for callbacks.

    Attributes
    ----------
    recorders : list of Recorder
        The checkpoints among the callbacks.
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
    record : Fitted
        The last record.
    seconds : dict of str to float
        Seconds of the "reading" of the data, of each phase, of the "result" after the phases, and
        of the whole "fit".
    """

    def __init__(self, learner, X, y):
        self._started, self.seconds = time.perf_counter(), {}
        self.learner, self.team, self.interrupts = learner, current_team(), Interrupts()
        self.given = {"estimator": learner, "X": X, "y": y}
        callbacks = getattr(learner, "_skl_callbacks", [])
        self._checkpoints = [one for one in callbacks if isinstance(one, Checkpoint)]
        if self._checkpoints:
            refuse_several("A fit with a Checkpoint")

    def __exit__(self, kind, error, traceback):
        if kind is None:
            now = time.perf_counter()
            self.seconds |= {"result": now - self._ended, "fit": now - self._started}
            self.root.call_on_fit_task_end(**self.given, reconstruction_attributes=dict)

    def open(self, data, plan):
        """Seed the fit, compare it with its checkpoint, and count its updates.

        Parameters
        ----------
        data : Data
            The learner's data.
        plan : object
            With ``batch_size(n_samples)``, and ``n_updates(n_batches, batch_size, data)``, the
            largest number of updates.
        """
        self._ended = time.perf_counter()
        self.seconds["reading"] = self._ended - self._started
        team, generator = self.team, make_generator(self.learner.random_state)
        self.recorders = [Recorder(one, self.learner, data) for one in self._checkpoints]
        self._stored = next((one.stored for one in self.recorders if one.stored), None)
        seed = team.largest((self._stored or {}).get("seed", generator.initial_seed()))
        self.generator = self.own = generator.manual_seed(seed)
        if team.rank > 0:
            self.own = torch.Generator().manual_seed(seed + team.rank)
        size = plan.batch_size(data.source.n_samples)
        self.source = Batches(data.source, size, self.own)
        n_batches = team.largest(self.source.n_batches)
        self.n_updates = team.largest(plan.n_updates(n_batches, self.source.batch_size, data))
        self.max_iter = -(-self.n_updates // n_batches)

    def through(self, phases, attributes_of):
        """Make the first phase that is due, again and again, until none is.

        After Ctrl-C only phases that end a search follow. If a checkpoint has a record, the fit
        goes on from there.

        Parameters
        ----------
        phases : object
            The phases.
        attributes_of : callable
            ``attributes_of(record)`` returns the fitted attributes, for callbacks.
        """
        n_tasks = self.max_iter + len(phases.table(self.record)) - 1  # epochs of training are tasks
        self.root = self.learner._init_callback_context(max_subtasks=n_tasks)
        self.root.call_on_fit_task_begin(**self.given)
        if self._stored is not None:
            found = self.record.restore(self._stored["record"])
            # rules that ended training may be others now
            stays = "callback" if found.ended_by == "callback" else None
            self.record = replace(found, ended_by=stays)
            self.generator.set_state(self._stored["generator"])
        while (phase := next(filter(self._is_due, phases.table(self.record)), None)) is not None:
            self._make(phase, attributes_of)

    def _is_due(self, phase):
        is_next = phase.is_due and phase.name not in self.record.done
        return is_next and (phase.ends_search or not self.interrupts.pending)

    def _make(self, phase, attributes_of):
        """Make the epochs of a phase with all hooks."""
        began, trains, task = time.perf_counter(), phase.name == "training", self.root
        if not trains:
            task = self.root.subcontext(task_name=phase.name, max_subtasks=None)
            task.call_on_fit_task_begin(**self.given)
        steps = phase.steps(replace(self.record, note=f"{phase.name}, done", is_done=True))
        recorders, done = [] if self.interrupts.pending else self.recorders, False
        while not done:
            epoch = task.subcontext(task_name=phase.unit)
            epoch.call_on_fit_task_begin(**self.given)
            self.record = next(steps)
            if self.learner.verbose and self.team.rank == 0:
                print(self.record.note or f"{phase.name}, done", flush=True)
            hooks = {"reconstruction_attributes": partial(attributes_of, self.record)}
            stopped = bool(epoch.call_on_fit_task_end(**self.given | hooks))
            stopped, pressed = self.team.any(stopped, self.interrupts.pending)
            done = stopped or pressed or self.record.is_done
            if not self.record.is_done and done:
                ended_by = "interrupt" if pressed else "callback"
                self.record = replace(self.record, ended_by=ended_by, is_done=not pressed)
            names = (*self.record.done, phase.name)
            if self.record.is_done and not trains:  # a file can train on
                self.record = replace(self.record, done=names)
            for recorder in recorders:
                recorder.note(self.record.pack(), self.generator, ends=done)
        self.record = replace(self.record, done=names)
        if not trains:
            task.call_on_fit_task_end(**self.given, reconstruction_attributes=dict)
        else:  # the file of the last epoch can train on
            self.recorders = []
        self._ended = time.perf_counter()
        self.seconds[phase.name] = self.seconds.get(phase.name, 0.0) + self._ended - began
