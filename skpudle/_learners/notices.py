"""What training tells its user: progress, warnings, and how it failed."""

import time
import warnings

from sklearn.exceptions import ConvergenceWarning

from skpudle._data.callers import users_level
from skpudle.optimizers import SurrogateOptimizer

__all__ = [
    "divergence",
    "print_progress",
    "print_search",
    "warn_of_early_end",
    "warn_of_rise",
    "warn_of_step",
]

# What an objective may rise by, relative to itself: the last steps of a stochastic gradient do not
# all go down.
_CHANCE = 1e-2


def print_progress(trainer, max_iter, n_updates, start_time, n_before=0):
    """Print a line about the epoch that has ended, ``n_before`` updates being older than the start.

    A training that goes on where another one ended has made those in no time of its own.
    """
    n_done = max(trainer.n_steps - n_before, 1)
    rate = n_done / (time.perf_counter() - start_time)
    n_left = max(n_updates - trainer.n_steps, 0)
    print(
        f"epoch {len(trainer.loss_curve)}/{max_iter}  loss {trainer.loss_curve[-1]:.6g}  "
        f"{rate:.3g} updates/s  at most {n_left / rate:.0f} s left",
        flush=True,
    )


def print_search(state):
    """Print a line about an epoch of the search."""
    objective = f"{state.curve[-1]:.6g}" if state.curve else "--"
    print(f"search, epoch {state.epoch}  {state.phase}  objective {objective}", flush=True)


def warn_of_step(step_size, dictionaries, curvature=1.0):
    """Warn once if the encoder may diverge with the given step and one of the dictionaries."""
    bound = curvature * max(float(dictionary.squared_norm_bound()) for dictionary in dictionaries)
    if step_size * bound > 2:
        warnings.warn(
            f"step_size={step_size} is beyond 2 / L = {2 / bound:.3g}, where L = {bound:.4g} is a "
            "bound of the squared spectral norm of the dictionary: the encoder may diverge. Pass a "
            "smaller step_size, or 'auto' for 1 / L.",
            RuntimeWarning,
            stacklevel=users_level(),
        )


def warn_of_early_end(learner):
    """Warn that training ended too early to tell."""
    has_rate = learner._optimizer_for(learner.components_) != "surrogate"
    warnings.warn(
        f"Training of {type(learner).__name__} ended after {learner.n_steps_} updates "
        f"(max_iter={learner.max_iter!r}), before its objective had stalled for "
        f"{learner.n_iter_no_change} checks in a row. Increase max_iter"
        f"{' or learning_rate' if has_rate else ''}, or raise tol (now {learner.tol}); tol=None "
        "trains as long without this warning.",
        ConvergenceWarning,
        stacklevel=users_level(),
    )


def _smaller_steps(learner, optimizer):
    """Say what of the parameters that act makes updates smaller."""
    has_rate = not isinstance(optimizer, SurrogateOptimizer)
    rate = f"lower learning_rate (now {learner.learning_rate})"
    return rate if has_rate else "larger anchor in optimizer_params"


def divergence(learner, update, optimizer):
    """Return the error for training that stopped being finite."""
    return ValueError(
        f"Training of {type(learner).__name__} stopped being finite at update {update}, "
        "also after a second try with smaller steps; the last finite dictionary is in "
        f"components_. Try a {_smaller_steps(learner, optimizer)}, a "
        f"lower step_size (now {learner.step_size}), or scale the data."
    )


def warn_of_rise(learner, began, ended, baseline, optimizer):
    """Warn if training has raised what it minimises above its value without a dictionary."""
    if not ended <= max(began, baseline) * (1 + _CHANCE):
        warnings.warn(
            f"Training of {type(learner).__name__} raised its objective above that of no "
            f"dictionary at all: {ended:.4g} a sample, and {baseline:.4g} with the baseline "
            f"alone. Try a {_smaller_steps(learner, optimizer)}, a lower step_size (now "
            f"{learner.step_size}), or scale the data.",
            ConvergenceWarning,
            stacklevel=users_level(),
        )
