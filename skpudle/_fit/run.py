"""Run the phases of a fit: callbacks, Ctrl-C, the checkpoint, progress, seconds, other processes.

A phase is a generator function of records: ``steps(record)`` yields a record for each epoch, and
each of them is a usable learner. `Run.through` is the only driver of phases.
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
    is_due : callable
        ``is_due(record)`` returns whether the fit needs the phase, if it is not ``done``.
    unit : str, default="step"
        The callbacks' name of an epoch.
    ends_search : bool, default=False
        Whether it makes atoms of a search usable, also after Ctrl-C.
    """

    name: str
    steps: Callable
    is_due: Callable = lambda record: True
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
    recorder : Recorder or None
        The checkpoint, if there is one among the callbacks.
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
        found = [c for c in getattr(learner, "_skl_callbacks", []) if isinstance(c, Checkpoint)]
        if found:
            refuse_several("A fit with a Checkpoint")
        if len(found) > 1:
            paths = ", ".join(str(checkpoint.path) for checkpoint in found)
            raise ValueError(
                f"A fit writes one checkpoint, but got {len(found)}: {paths:.300}. Pass one."
            )
        self._checkpoints, self.recorder, self.record = found, None, None

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
        if self._checkpoints:
            self.recorder = Recorder(*self._checkpoints, self.learner, data)
            if (stored := self.recorder.stored) is not None:
                generator.manual_seed(stored["seed"])
        seed = team.largest(generator.initial_seed())
        self.generator = self.own = generator.manual_seed(seed)
        if team.rank > 0:
            self.own = torch.Generator().manual_seed(seed + team.rank)
        size = plan.batch_size(data.source.n_samples)
        self.source = Batches(data.source, size, self.own)
        n_batches = team.largest(self.source.n_batches)
        self.n_updates = team.largest(plan.n_updates(n_batches, self.source.batch_size, data))
        self.max_iter = -(-self.n_updates // n_batches)

    def through(self, phases, record, attributes_of):
        """Make the first phase that is due, again and again; return the last record.

        After Ctrl-C only phases that end a search follow.

        Parameters
        ----------
        phases : sequence of Phase
            All phases that the fit may need.
        record : Fitted
            The record to begin with; if the checkpoint has a record, the fit goes on from there.
        attributes_of : callable
            ``attributes_of(record)`` returns the fitted attributes, for callbacks.
        """
        n_before = sum(phase.name != "training" for phase in phases)
        self.root = self.learner._init_callback_context(max_subtasks=self.max_iter + n_before)
        self.root.call_on_fit_task_begin(**self.given)
        self.record = record
        if self.recorder is not None and (stored := self.recorder.stored) is not None:
            found, last = record.restore(stored["record"]), stored["phase"]
            # rules that ended training may be others now
            stays = "callback" if found.ended_by == "callback" else None
            ended = found.is_done and last != "training"
            done = (*found.done, last) if ended else found.done
            self.record = replace(found, ended_by=stays, done=done)
            self.generator.set_state(stored["generator"])
        while (phase := next(filter(self._is_due, phases), None)) is not None:
            self._make(phase, attributes_of)
        return self.record

    def _is_due(self, phase):
        if phase.name in self.record.done or not phase.is_due(self.record):
            return False
        return phase.ends_search or not self.interrupts.pending

    def _make(self, phase, attributes_of):
        """Make the epochs of a phase with all hooks."""
        began, trains, task = time.perf_counter(), phase.name == "training", self.root
        if not trains:
            task = self.root.subcontext(task_name=phase.name, max_subtasks=None)
            task.call_on_fit_task_begin(**self.given)
        steps = phase.steps(replace(self.record, note=f"{phase.name}, done", is_done=True))
        notes, done = self.recorder is not None and not self.interrupts.pending, False
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
            if notes:
                self.recorder.note(phase.name, self.record, self.generator, ends=done)
        self.record = replace(self.record, done=(*self.record.done, phase.name))
        if not trains:
            task.call_on_fit_task_end(**self.given, reconstruction_attributes=dict)
        else:  # the file of the last epoch can train on
            self.recorder = None
        self._ended = time.perf_counter()
        self.seconds[phase.name] = self.seconds.get(phase.name, 0.0) + self._ended - began
