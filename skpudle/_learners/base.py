"""What every learner that is trained by gradients shares: `fit`, `partial_fit`, what they leave.

A learner reads its data, and *has* a model (see `skpudle._training.loop`), which it makes of its
parameters and of the data, or of its fitted attributes. The rest is here.
"""

import time
from dataclasses import replace
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.callback import CallbackSupportMixin
from sklearn.utils._param_validation import Interval, StrOptions

from skpudle._data.arrays import make_generator, tensors_of, to_numpy, to_tensor
from skpudle._data.batches import count_batches
from skpudle._learners.encoder import Decay
from skpudle._learners.notices import divergence, print_progress, warn_of_early_end
from skpudle._precision import training_mode
from skpudle._training.checkpoint import Recorder
from skpudle._training.interrupts import Interrupts
from skpudle._training.loop import Diverged, Interrupted, Trainer
from skpudle._training.stopping import Stopping
from skpudle._training.team import current_team
from skpudle.optimizers import make_optimizer

__all__ = ["Data", "GradientLearner"]

# An atom with its share of the codes, at least one in so many samples as there are atoms, is left
# out by ten times as many with the probability exp(-10).
_IDLE_SAMPLES_PER_ATOM = 10


class Data(NamedTuple):
    """What a learner makes of its input.

    Attributes
    ----------
    source : object
        With ``for_training(batch_size, generator, shuffle)``, which returns a source of batches.
    sample : Tensor or iterable of Tensor
        What an initial model is made of, and data are recognised by.
    device : torch.device
        Where to compute.
    inputs : dict
        What scikit-learn wants an estimator to know of its input.
    """

    source: object
    sample: object
    device: torch.device
    inputs: dict


class GradientLearner(CallbackSupportMixin):
    """A learner whose model is trained by gradients; see the subclasses for its parameters."""

    _parameter_constraints = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "step_size": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "optimizer": [StrOptions({"adam", "sgd", "surrogate"}), type],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "optimizer_params": [dict, None],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left"), None],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    _writes_checkpoints = True
    _default_batch_size = 256

    # What a learner without this parameter does.
    lambda_decay = 1.0

    # ------------------------------------------------------------------ what a learner adds

    def _read(self, X, y, *, known=False):  # -> Data
        """Check parameters and input, of a learner that is known against what it was fitted on."""
        raise NotImplementedError

    def _new_model(self, data, generator):  # -> model, rows
        """Return the model that data and parameters ask for, and its initial rows."""
        raise NotImplementedError

    def _known_model(self, data, generator):  # -> model, rows
        """Return the model and the rows that the fitted attributes hold."""
        raise NotImplementedError

    # ------------------------------------------------------------------ fitting

    @_fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def fit(self, X, y=None):
        """Learn a dictionary.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data of shape (n_samples, n_features), or what yields rows of them and can be iterated
            again (a list is an array); float32 and float64 are computed in as they are, everything
            else in float64. NaN marks missing entries, which then count for nothing.
        y : None
            Ignored.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data or parameters are unfit, which leaves the estimator as it was; or if
            training diverges twice: it then holds the last finite dictionary.
        TypeError
            If ``X`` can be iterated only once.

        Warns
        -----
        ConvergenceWarning
            If training ended before the objective stalled.
        RuntimeWarning
            If ``step_size`` is too large for the dictionary.
        """
        team, interrupts = current_team(), Interrupts()
        recorder, data = Recorder(self, team), self._read(X, y)
        data, generator = self._agree(data, team, recorder.seed)
        model, rows = self._new_model(data, generator)
        own = generator if team is None else team.own(generator)
        source = data.source.for_training(self._batch_size(), own, shuffle=True)
        trainer = Trainer(
            model,
            self._make_optimizer(model, rows),
            team=team,
            interrupts=interrupts,
            at_round=recorder.at_round,
        )
        n_batches = trainer.largest(count_batches(source))
        n_updates = trainer.largest(self._n_updates(n_batches, source.batch_size, rows.shape))
        trainer.model = model = replace(model, decay=Decay.of(self.lambda_decay).over(n_updates))
        stopping = Stopping(
            self.tol,
            self.n_iter_no_change,
            first_update=n_updates * 9 // 10 if isinstance(self.lambda_decay, tuple) else 0,
            n_updates=n_updates,
        )
        recorder.begin(trainer, source, stopping, seed=generator.initial_seed(), sample=data.sample)
        with interrupts:
            ended = self._train(trainer, source, stopping, recorder, data, n_batches, (X, y))
        model.warn_of_step(rows, trainer.optimizer.atoms.detach())
        if not (ended or self.tol is None):
            warn_of_early_end(self)
        return self

    def _train(self, trainer, source, stopping, recorder, data, n_batches, inputs):
        """Train epoch by epoch, and take what was learned; return whether it was enough."""
        n_updates = stopping.n_updates
        max_iter = -(-n_updates // n_batches)
        given = dict(zip("Xy", inputs), estimator=self)
        root = self._init_callback_context(max_subtasks=max_iter)
        root.call_on_fit_task_begin(**given)
        started = time.perf_counter(), trainer.n_steps
        converged, stopped = recorder.finished, False

        def fitted():
            return self._attributes(trainer, data)

        while len(trainer.loss_curve) < max_iter and not (converged or stopped):
            if trainer.n_steps >= n_updates:  # a stream may have more batches than before
                break
            task = root.subcontext(task_name="epoch")
            task.call_on_fit_task_begin(**given)
            try:
                trainer.replace_unused(source)
                converged = trainer.run_epoch(source, stopping).converged
            except (Diverged, Interrupted) as error:
                self._leave(error, fitted(), recorder)
            if self.verbose:
                print_progress(trainer, max_iter, n_updates, *started)
            stopped = task.call_on_fit_task_end(**given, reconstruction_attributes=fitted)
            stopped = bool(trainer.largest(int(stopped)))
        recorder.end(finished=converged or stopped)
        self._take(fitted())
        root.call_on_fit_task_end(**given, reconstruction_attributes=dict)
        return converged or stopped

    @_fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def partial_fit(self, X, y=None):
        """Update the dictionary by one pass over the data, in their order.

        The first call chooses the initial dictionary and ``alpha_``; the state of the optimiser is
        kept from call to call, also through pickling, and after `fit`. ``lambda_decay`` is at its
        last value throughout. Atoms that no code has used for ten samples per atom are replaced by
        the samples that were reconstructed worst.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data as for `fit`, cut into batches of ``batch_size``.
        y : None
            Ignored.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            If the data are unfit or of another number of features than before, which leaves the
            estimator as it was; or if training diverges twice.
        """
        team, interrupts = current_team(), Interrupts()
        known = hasattr(self, "components_")
        data = self._read(X, y, known=known)
        if known:
            generator = self._later_generator()
            model, rows = self._known_model(data, generator)
        else:
            data, generator = self._agree(data, team)
            model, rows = self._new_model(data, generator)
        optimizer = self._make_optimizer(model, rows)
        idle = torch.zeros(len(rows), dtype=torch.float64, device="cpu")
        state = self._training_state if known else {}
        if state.get("optimizer_name") == self._optimizer_name(rows):
            optimizer.load(rows, tensors_of(state["optimizer"], data.device))
            idle = to_tensor(state["idle"])
        trainer = Trainer(
            replace(model, decay=Decay.of(self.lambda_decay).at_last),
            optimizer,
            n_steps=self.n_steps_ if known else 0,
            loss_curve=self.loss_curve_ if known else (),
            team=team,
            interrupts=interrupts,
        )
        source = data.source.for_training(self._batch_size(), generator, shuffle=False)
        with interrupts:
            try:
                trainer.run_epoch(source, Stopping(None, 1))
            except (Diverged, Interrupted) as error:
                self._leave(error, self._attributes(trainer, data, idle))
            idle = trainer.idle(idle)
            trainer.replace_unused(source, among=idle >= _IDLE_SAMPLES_PER_ATOM * len(idle))
            self._take(self._attributes(trainer, data, idle))
        return self

    def _leave(self, error, fitted, recorder=None):
        """Leave training that diverged or was interrupted, with what has been learned."""
        self._take(fitted)
        if isinstance(error, Diverged):
            raise divergence(self, error.update) from error
        if recorder is not None:
            recorder.end(finished=None)
        raise error

    def _agree(self, data, team, seed=None):  # -> data with the samples of all, generator
        generator = make_generator(self.random_state)
        if seed is not None:
            generator.manual_seed(seed)
        if team is None:
            return data, generator
        return data._replace(sample=team.collect(data.sample)), team.agree(generator)

    def _later_generator(self):
        """Return what draws in a `partial_fit` that is not the first; None if nothing does."""

    # ------------------------------------------------------------------ parameters

    def _check_lambda_decay(self):
        """Raise ValueError if a pair is none, or holds what one number must not be."""
        decay = self.lambda_decay
        if isinstance(decay, tuple) and not (
            len(decay) == 2 and all(isinstance(beta, Real) and 0 < beta <= 1 for beta in decay)
        ):
            raise ValueError(
                f"lambda_decay={decay!r:.80} is not a pair (first, last) of numbers in (0, 1]; "
                "pass such a pair, or one number."
            )

    def _fixed_step(self):  # -> float, or None for one that follows the atoms
        return None if self.step_size == "auto" else float(self.step_size)

    def _batch_size(self):
        return self._default_batch_size if self.batch_size == "auto" else int(self.batch_size)

    def _n_updates(self, n_batches, batch_size, shape):  # of the atoms
        """Return the number of updates that training may take."""
        return self.max_iter * n_batches

    def _make_optimizer(self, model, rows):
        return make_optimizer(
            self.optimizer,
            rows,
            model.project,
            learning_rate=self.learning_rate,
            data_scale=model.data_scale,
            params=self.optimizer_params,
        )

    def _optimizer_name(self, rows):
        """Say whose state it is, and of what; the surrogate's is one with all parameters."""
        params = None if self.optimizer == "surrogate" else self.optimizer_params
        return f"{self.optimizer} {params} {tuple(rows.shape)}"

    # ------------------------------------------------------------------ what is learned

    def _attributes(self, trainer, data, idle=None):
        """Return the fitted attributes, of arrays and numbers of Python."""
        rows, model, curve = trainer.optimizer.atoms.detach(), trainer.model, trainer.loss_curve
        moments = trainer.optimizer.state().items()
        memory = model.memory() | {
            "data_scale": model.data_scale,
            "optimizer_name": self._optimizer_name(rows),
            "optimizer": {
                name: to_numpy(value) if isinstance(value, torch.Tensor) else value
                for name, value in moments
            },
            "idle": np.zeros(len(rows)) if idle is None else to_numpy(idle),
        }
        return (
            data.inputs
            | model.attributes(rows)
            | {
                "lambda_decay_": model.decay(max(trainer.n_steps - 1, 0)),
                "n_iter_": max(len(curve), 1),
                "n_steps_": trainer.n_steps,
                "loss_curve_": np.array(curve, dtype=np.float64),
                "device_": str(data.device),
                "_training_state": memory,
            }
        )
