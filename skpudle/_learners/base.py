"""What every learner that is trained by gradients shares.

`BaseDictionaryLearner` validates, crosses the boundary to torch, trains, and stores NumPy arrays
and Python numbers. A learner adds its parameters, its gradient rule and its encoder.
"""

import time
from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.callback import CallbackSupportMixin
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import _check_feature_names, validate_data

from skpudle._data.arrays import (
    check_rows,
    input_attributes,
    make_generator,
    resolve_device,
    split_missing,
    tensors_of,
    to_numpy,
    to_tensor,
)
from skpudle._data.batches import Rows, count_batches
from skpudle._data.foreign import given_atoms
from skpudle._data.sources import open_source
from skpudle._learners.coder import DictionaryTransformer
from skpudle._learners.notices import divergence, print_progress, warn_of_early_end, warn_of_step
from skpudle._precision import training_mode
from skpudle._training.checkpoint import Recorder
from skpudle._training.choose_optimizer import make_optimizer
from skpudle._training.identity import plain, task_of
from skpudle._training.interrupts import Interrupts
from skpudle._training.loop import Diverged, Interrupted, Trainer
from skpudle._training.stopping import Stopping
from skpudle._training.team import current_team
from skpudle.encoding import default_step
from skpudle.initialization import INITIALIZATIONS, initial_atoms
from skpudle.operators import DenseDictionary, atom_norms, project_atoms

__all__ = ["AUTO_ALPHA", "DICT_INIT", "BaseDictionaryLearner"]

# alpha="auto" is this fraction of the median over samples of the alpha that would silence a sample.
AUTO_ALPHA = 0.1

DICT_INIT = [
    StrOptions(set(INITIALIZATIONS)),
    "array-like",
    HasMethods("transform"),  # a fitted learner
    HasMethods("getdict"),  # one of SPORCO
]


class BaseDictionaryLearner(CallbackSupportMixin, DictionaryTransformer):
    """A dictionary learner trained by gradients; see the subclasses for its parameters."""

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
        "dict_init": DICT_INIT,
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    _writes_checkpoints = True
    _n_wrappers = 0  # calls between the user's `fit` and ours, for warnings

    # What a learner without these parameters does.
    atom_norm = "unit"
    positive_dict = False
    lambda_decay = 1.0

    # ------------------------------------------------------------------ what a learner adds

    def _rule(self):
        """Return the gradient rule."""
        raise NotImplementedError

    def _encoder(self, alpha, lambda_decay, step_size):
        """Return ``encoder(dictionary, x, mask=None)``; ``step_size=None`` follows the atoms."""
        raise NotImplementedError

    def _transform_encoder(self):
        return self._encoder(self.alpha_, self.lambda_decay_, self.step_size_)

    def _penalty(self, alpha, lambda_decay):
        """Return the penalty of the last unfolding."""
        raise NotImplementedError

    def _choose_alpha(self, correlation, step_size):
        """Return alpha, given the median over samples of the largest correlation."""
        raise NotImplementedError

    def _check_parameters(self):
        """Raise ValueError if parameters contradict each other."""

    def _check_lambda_decay(self):
        """Raise ValueError if a pair is none, or holds what one number must not be."""
        decay = self.lambda_decay
        if isinstance(decay, tuple) and not (
            len(decay) == 2 and all(isinstance(beta, Real) and 0 < beta <= 1 for beta in decay)
        ):
            raise ValueError(
                f"lambda_decay={decay!r} is not a pair (first, last) of numbers in (0, 1]; pass "
                "such a pair, or one number."
            )

    def _allows_nan(self):
        return True

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
        with Recorder(self) as recorder:
            x, trainer, start = self._start_training(X, y, recorder=recorder)
            source = self._source(x, start, shuffle=True)
            n_batches = trainer.largest(count_batches(source))
            atoms = trainer.optimizer.atoms
            n_updates = trainer.largest(self._n_updates(n_batches, source.batch_size, atoms.shape))
            max_iter = -(-n_updates // n_batches)
            alpha, decay_at = start["alpha"], partial(self._decay_at, n_updates=n_updates)
            trainer.schedule = partial(self._schedule, alpha, decay_at)
            first_update = n_updates * 9 // 10 if isinstance(self.lambda_decay, tuple) else 0
            stopping = Stopping(
                self.tol, self.n_iter_no_change, first_update=first_update, n_updates=n_updates
            )
            recorder.begin(trainer, source, stopping, seed=start["seed"], **start["data"])
            root = self._init_callback_context(max_subtasks=max_iter)
            root.call_on_fit_task_begin(estimator=self, X=X, y=y)
            started = time.perf_counter(), trainer.n_steps
            converged, stopped = recorder.finished, False

            def fitted():
                return self._fitted_attributes(trainer, start, decay_at, trainer.loss_curve)

            with Interrupts() as interrupts:
                trainer.interrupted = lambda: interrupts.pending
                while len(trainer.loss_curve) < max_iter and not (converged or stopped):
                    if trainer.n_steps >= n_updates:  # a stream may have more batches than before
                        break
                    task = root.subcontext(task_name="epoch")
                    task.call_on_fit_task_begin(estimator=self, X=X, y=y)
                    try:
                        trainer.replace_unused(source)
                        converged = trainer.run_epoch(source, stopping).converged
                    except (Diverged, Interrupted) as error:
                        self._leave(error, fitted(), recorder)
                    if self.verbose:
                        print_progress(trainer, max_iter, n_updates, *started)
                    stopped = task.call_on_fit_task_end(
                        estimator=self, X=X, y=y, reconstruction_attributes=fitted
                    )
                    stopped = bool(trainer.largest(int(stopped)))
                recorder.end(finished=converged or stopped)
                self._take(fitted())
            self._warn_of_step(trainer.optimizer.atoms, stacklevel=5)
            if not (converged or stopped or self.tol is None):
                warn_of_early_end(self, stacklevel=4 + self._n_wrappers)
            root.call_on_fit_task_end(estimator=self, X=X, y=y, reconstruction_attributes=dict)
            return self

    @_fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def partial_fit(self, X, y=None):
        """Update the dictionary by one pass over the data, in their order.

        The first call chooses the initial dictionary and ``alpha_``; the state of the optimiser is
        kept from call to call, also through pickling, and after `fit`, unless you change the
        optimiser, or ``components_`` in shape. ``lambda_decay`` is at its last value throughout.

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
        x, trainer, start = self._start_training(X, y, go_on=hasattr(self, "components_"))

        def decay_at(update):
            return self._last_decay()

        trainer.schedule = partial(self._schedule, start["alpha"], decay_at)
        source = self._source(x, start, shuffle=False)
        with Interrupts() as interrupts:
            trainer.interrupted = lambda: interrupts.pending
            try:
                trainer.run_epoch(source, Stopping(None, 1))
            except (Diverged, Interrupted) as error:
                self._leave(
                    error, self._fitted_attributes(trainer, start, decay_at, trainer.loss_curve)
                )
            self._take(self._fitted_attributes(trainer, start, decay_at, trainer.loss_curve))
        return self

    def _leave(self, error, fitted, recorder=None):
        """Leave training that diverged or was interrupted, with what has been learned."""
        self._take(fitted)
        if isinstance(error, Diverged):
            raise divergence(self, error.update) from error
        if recorder is not None:
            recorder.end(finished=None)
        raise error

    def _source(self, x, start, *, shuffle):
        generator = start["generator"] if shuffle else None
        if not isinstance(x, torch.Tensor):
            return x.for_training(self._batch_size(), generator)
        return Rows(x, self._batch_size(), generator=generator, mask=start["mask"])

    def _start_training(self, X, y, *, go_on=False, recorder=None):  # -> x, trainer, start
        """Check everything, and return what training needs; no attribute is written before it."""
        device, team = resolve_device(self.device, X), current_team()
        if go_on:
            _check_feature_names(self, X, reset=False)
        options = {"allow_nan": self._allows_nan()}
        x = source = open_source(X, device, batch_size=self._batch_size(), **options)
        if source is None:
            x, mask = split_missing(to_tensor(check_rows(X, estimator=self, **options), device))
            sample, known = x, mask
        else:
            (sample, known), mask = split_missing(source.head(self.n_components or 0)), None
        if team is not None:
            team.check_agreement(task_of(self, "fit" if recorder else "partial_fit", sample))
        self._check_parameters()
        if go_on:
            validate_data(self, X if source is None else sample, reset=False, skip_check_array=True)
            atoms = to_tensor(self.components_, device)
            if source is None:
                x, mask = x.to(atoms.dtype), None if mask is None else mask.to(atoms.dtype)
            else:
                source.reader.dtype = atoms.dtype
            start = {name: self._training_state[name] for name in ("alpha", "data_scale")}
            start |= {"loss_curve": self.loss_curve_, "n_steps": self.n_steps_}
            start["input"] = {}  # what it was
        else:
            generator, data = make_generator(self.random_state), {"sample": sample, "mask": known}
            if recorder is not None:
                recorder.open(generator, team)
            if team is not None:
                generator, sample = team.agree(generator), team.collect(sample)
            atoms = self._initial_atoms(sample, generator)
            start = {
                "alpha": self._initial_alpha(sample, atoms),
                "data_scale": float(sample.square().sum(1).mean()),
                "loss_curve": [],
                "n_steps": 0,
                "seed": generator.initial_seed(),
                "generator": generator if team is None else team.own(generator),
                "data": data,
                "input": input_attributes(X if source is None else sample),
            }
            self._warn_of_step(atoms, stacklevel=6)
        project = partial(project_atoms, atom_norm=self.atom_norm, positive=self.positive_dict)
        options = {"data_scale": start["data_scale"], "params": self.optimizer_params}
        optimizer = make_optimizer(
            self.optimizer, atoms, project, learning_rate=self.learning_rate, **options
        )
        if go_on:
            optimizer.resume(atoms, tensors_of(self._moments(), device))
        start |= {"device": device, "mask": mask}
        trainer = self._trainer(DenseDictionary, optimizer, start)
        trainer.new_rows = lambda atoms, samples: self._directions(samples)
        return x, trainer, start

    def _moments(self):  # what the optimiser remembers, nothing if it is another one now
        known = self._training_state["optimizer_name"] == self._optimizer_name()
        return self._training_state["optimizer"] if known else {}

    def _trainer(self, make_dictionary, optimizer, start):
        return Trainer(
            make_dictionary,
            self._rule(),
            None,
            optimizer,
            n_steps=start["n_steps"],
            loss_curve=start["loss_curve"],
            team=current_team(),
        )

    def _initial_atoms(self, x, generator):
        n_components = x.shape[1] if self.n_components is None else self.n_components
        if isinstance(self.dict_init, str):
            atoms = self._directions(initial_atoms(x, n_components, self.dict_init, generator))
        else:
            atoms = given_atoms(self.dict_init, self.n_components, x)
        return project_atoms(atoms, atom_norm=self.atom_norm, positive=self.positive_dict)

    def _directions(self, samples):
        """Return samples as atoms: their norm, which has units, is no measure for that of atoms."""
        samples = samples / atom_norms(samples)
        return samples.abs() if self.positive_dict else samples  # as good a direction of a line

    def _initial_alpha(self, x, atoms):
        largest = torch.cat([(rows @ atoms.mT).abs().amax(1) for rows in x.split(4096)])
        largest = largest[largest >= torch.finfo(x.dtype).tiny]  # below alpha may underflow
        correlation = float(largest.median()) if len(largest) else 1.0  # any will do for zeros
        step_size = self._step_size(DenseDictionary(atoms))
        return float(self._choose_alpha(correlation, step_size))

    def _step_size(self, dictionary):  # -> float
        return float(default_step(dictionary) if self.step_size == "auto" else self.step_size)

    def _warn_of_step(self, atoms, *, stacklevel):
        if self.step_size != "auto":
            warn_of_step(self.step_size, DenseDictionary(atoms), stacklevel=stacklevel)

    def _optimizer_name(self):  # whose state it is; the surrogate's is one with all parameters
        params = None if self.optimizer == "surrogate" else plain(self.optimizer_params)
        return f"{self.optimizer} {params}"

    def _batch_size(self):
        return 256 if self.batch_size == "auto" else int(self.batch_size)

    def _n_updates(self, n_batches, batch_size, shape):  # of the atoms
        """Return the number of updates that training may take."""
        return self.max_iter * n_batches

    def _decay_at(self, update, *, n_updates):
        """Return lambda_decay at an update: a pair is a staircase of ten equal parts (figure 5)."""
        if not isinstance(self.lambda_decay, tuple):
            return self.lambda_decay
        decays = np.linspace(*self.lambda_decay[::-1], min(10, n_updates))[::-1]
        return float(decays[min(len(decays) * update // n_updates, len(decays) - 1)])

    def _last_decay(self):
        return self.lambda_decay[1] if isinstance(self.lambda_decay, tuple) else self.lambda_decay

    def _schedule(self, alpha, decay_at, update):
        decay = decay_at(update)
        step_size = None if self.step_size == "auto" else self.step_size
        return {
            "encoder": self._encoder(alpha, decay, step_size),
            "penalty": self._penalty(alpha, decay),
        }

    def _fitted_attributes(self, trainer, start, decay_at, loss_curve):
        atoms = trainer.optimizer.atoms.detach()
        return self._course_of_training(trainer, start, decay_at, loss_curve) | {
            "components_": to_numpy(atoms),
            "n_components_": len(atoms),
            "alpha_": start["alpha"],
            "step_size_": self._step_size(DenseDictionary(atoms)),
        }

    def _course_of_training(self, trainer, start, decay_at, loss_curve):
        """Return the attributes that do not depend on what kind of dictionary was learned."""
        moments = trainer.optimizer.state().items()
        return start["input"] | {
            "lambda_decay_": decay_at(max(trainer.n_steps - 1, 0)),
            "n_iter_": max(len(loss_curve), 1),
            "n_steps_": trainer.n_steps,
            "loss_curve_": np.array(loss_curve, dtype=np.float64),
            "device_": str(start["device"]),
            "_training_state": {
                "alpha": start["alpha"],
                "data_scale": start["data_scale"],
                "optimizer_name": self._optimizer_name(),
                "optimizer": {
                    name: to_numpy(value) if isinstance(value, torch.Tensor) else value
                    for name, value in moments
                },
            },
        }
