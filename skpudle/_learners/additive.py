"""Fit and encode counts of sources that add: ``loss="kullback-leibler"``.

It is a path of its own. Codes and atoms alternate as convex problems (`skpudle.additive`); there
are no unfoldings, gradients or penalties of codes.
"""

from dataclasses import dataclass, field
from math import inf
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import torch

from skpudle._data.arrays import make_generator, to_numpy, to_tensor
from skpudle._data.batches import Samples
from skpudle._training.messages import (
    nothing_known,
    warn_of_few_samples,
    warn_of_unknown_features,
)
from skpudle.additive import (
    Events,
    Progress,
    advance,
    atoms_of_events,
    begin,
    choose_smoothing,
    expected_events,
    solve_codes,
    spectral_start,
    start_from,
)

__all__ = [
    "ADDITIVE",
    "AdditiveEncoder",
    "AdditivePlan",
    "additive_fit",
    "additive_update",
    "attributes_of_atoms",
]

# The prior of given atoms, and without events: pseudo-events a feature. For planted spectra
# (benchmarks/bench_additive.py) the best number is 0.4 to 13, and 0.5 is never worse than none.
_SMOOTHING = 0.5
# max_iter="auto"
_STEPS = 200
# `partial_fit` forgets: the share of the statistics before batch t is (1 - 1 / t) ** _FORGETTING.
_FORGETTING = 2.0
# rows read at a time
_ROWS = 4096

ADDITIVE = "kullback-leibler"  # the loss
_CURVES = "losses", "objectives"
_OF_OTHER_CODES = "transform_n_nonzero_coefs", "transform_tol", "transform_alpha"
# parameters with another meaning for other losses, and their only values here
_OF_OTHERS = (
    "gradient",
    "n_trials",
    "n_unfoldings",
    "step_size",
    "lambda_decay",
    "shrinkage",
    "debias",
    "atom_norm",
    "optimizer",
    "learning_rate",
    "optimizer_params",
    "batch_size",
)


@dataclass(frozen=True)
class AdditivePlan:
    """The plan of a fit; see `skpudle._learners.plan`.

    Parameters
    ----------
    given : SimpleNamespace
        The parameters.
    """

    given: SimpleNamespace

    solves = True  # codes are no fixed graph of products

    @classmethod
    def of(cls, learner):
        """Return the plan for the parameters of a learner.

        Raises
        ------
        ValueError
            If parameters ask for more than the loss has.
        """
        given = SimpleNamespace(**learner.get_params(deep=False))
        if isinstance(given.n_components, str):
            raise ValueError(
                f"n_components={given.n_components!r} is for other losses than {ADDITIVE!r}. Pass "
                "a number of atoms, or compare the scores of several numbers by GridSearchCV."
            )
        if given.separate_atoms or given.transform_algorithm != "unfolded":
            raise ValueError(
                f"loss={ADDITIVE!r} solves for its codes, got "
                f"separate_atoms={given.separate_atoms!r} and "
                f"transform_algorithm={given.transform_algorithm!r}. Leave both at their defaults."
            )
        return cls(given)

    @property
    def n_components(self):  # -> int, or None for the number of features
        """The number of atoms."""
        return self.given.n_components

    @property
    def most_steps(self):
        """The largest number of steps of a fit."""
        return _STEPS if self.given.max_iter == "auto" else self.given.max_iter

    def batch_size(self, n_samples=None):
        """Return the number of rows in an update of `partial_fit`."""
        return 256 if self.given.batch_size == "auto" else int(self.given.batch_size)

    def n_updates(self, n_batches, batch_size, data):
        """Return the number of updates, for the number of epochs that callbacks are told."""
        return n_batches * self.most_steps

    def without_effect(self, data=None):  # yields names, setting
        """Yield parameters that have no effect in a fit, and a setting that would use them.

        Without data yield those without effect on the codes of `transform`.
        """
        yield _OF_OTHER_CODES, "another loss"
        if data is None:
            return
        yield _OF_OTHERS, "another loss"
        if self.given.tol is None:
            yield ("n_iter_no_change",), "a number for tol"


@dataclass(frozen=True)
class AdditiveEncoder:
    """The encoder of most likely rates; every row is solved alone.

    Parameters
    ----------
    least : float, default=0.0
        Codes of rows without any event have this many events in all. A rate of 0 excludes events,
        so predictions of further entries need some.
    """

    least: float = 0.0

    def of_features(self, features):
        """Return the encoder of some features, to predict others."""
        return AdditiveEncoder(0.5)

    def __call__(self, dictionary, x, *, mask=None, offset=None):  # -> (n, n_components)
        """Return codes; ``offset`` holds the logarithms of exposures."""
        if x.requires_grad:
            raise ValueError(f"Codes of loss={ADDITIVE!r} have no derivatives. Pass another loss.")
        exposure = None if offset is None else to_numpy(offset[:, 0].double().exp())
        known = None if mask is None else to_numpy(mask)
        events = Events.of(to_numpy(x.double()), known, exposure)
        atoms = to_numpy(dictionary.atoms.double())
        codes = solve_codes(events, atoms)
        empty = ~codes.any(1)
        if self.least and empty.any():
            loads = events.loads(atoms)[empty]
            size = np.maximum(loads.sum(1, keepdims=True), 1e-300)
            codes[empty] = np.where(loads.sum(1, keepdims=True) > 0, self.least / size, 0.0)
        return to_tensor(codes).to(x)


def _read_events(source, exposure):  # -> Events of all rows
    parts, start = [], 0
    source = source.for_training(_ROWS, None, shuffle=False)
    for batch in source.batches(source.plan()):
        stop = start + len(batch.x)
        given = None if exposure is None else exposure[start:stop]
        mask = None if batch.mask is None else to_numpy(batch.mask)
        parts.append(Events.of(to_numpy(batch.x.double()), mask, given))
        start = stop
    return Events.joined(parts)


def _first_atoms(plan, data, events, choose, generator):
    """Return initial atoms; ``choose`` is `skpudle._learners.dense.choose_atoms`."""
    samples, n_components = data.samples, plan.n_components
    x = samples.x.double().cpu()
    start = plan.given.dict_init
    if isinstance(start, str) and start == "search":
        mask = None if samples.mask is None else to_numpy(samples.mask)
        atoms = spectral_start(to_numpy(x), n_components or x.shape[1], mask)
    else:
        how = dict(atom_norm=None, positive=True)
        atoms = to_numpy(choose(start, n_components, x, generator, **how))
    return start_from(events, atoms)


def _smoothed(alpha, events, atoms, generator):  # -> float, (n_components, n_features)
    """Return the prior, which events choose if it is "auto", and initial atoms for it."""
    if alpha != "auto" or not events.counts.nnz:
        return _SMOOTHING if alpha == "auto" else float(alpha), atoms
    return choose_smoothing(events, atoms, np.random.default_rng(generator.initial_seed()))


def _check_data(plan, events, data, atoms):
    unknown = []
    n_samples = events.counts.shape[0]
    if events.missing is not None:
        unknown = np.flatnonzero(events.missing.sum(0) == n_samples).tolist()
    warn_of_unknown_features(unknown)
    if isinstance(plan.given.dict_init, str):
        warn_of_few_samples(n_samples, len(atoms))


def _attributes(data, atoms, alpha, state, n_components=None, **known):
    """Return the fitted attributes; None removes one of another loss."""
    dtype = to_numpy(data.samples.x[:0]).dtype
    of_others = ("intercept_", "size_path_", "penalty_path_", "noise_std_", "search_alpha_",
                 "step_size_", "analysis_components_", "synthesis_components_", "thresholds_",
                 "ended_by_", "phases_", "fit_seconds_", "debias_", "lambda_decay_", "mean_",
                 "n_samples_seen_")  # fmt: skip
    return (
        dict.fromkeys(of_others)
        | data.inputs
        | {
            "components_": atoms.astype(dtype),
            "n_components_": len(atoms),
            "alpha_": float(alpha),
            "device_": "cpu",
            "_training_state": state
            | {
                "atoms": crc32(np.ascontiguousarray(atoms.astype(dtype))),
                "given": {"loss": ADDITIVE, "n_components": n_components},
            },
        }
        | known
    )


def attributes_of_atoms(atoms, alpha):  # -> dict
    """Return the fitted attributes for given atoms, without data."""
    inputs = {"n_features_in_": atoms.shape[1]}
    data = SimpleNamespace(samples=Samples(torch.tensor(atoms)), inputs=inputs)
    alpha = _SMOOTHING if alpha == "auto" else alpha
    given = dict(n_iter_=1, n_steps_=0, loss_curve_=np.zeros(0))
    return {k: v for k, v in _attributes(data, atoms, alpha, {}, **given).items() if v is not None}


@dataclass
class _Alternation:
    """The phase of a fit; see `skpudle._training.fit`."""

    plan: AdditivePlan
    data: object
    events: Events
    state: object
    smoothing: float
    ended_by: str | None = None
    n_stalled: int = field(default=0)

    names, stages = (None, "epoch"), {}
    stops_at_interrupts = True

    def begin(self, recorder):
        """Resume from the checkpoint, if there is one."""
        self._recorder = recorder
        stored = recorder.found_steps(self._check)
        if stored is None:
            return
        atoms, codes = (to_numpy(stored[name]) for name in ("atoms", "codes"))
        self.state = Progress(atoms, codes, *(tuple(stored[name]) for name in _CURVES))
        self.ended_by, self.n_stalled = recorder.ended_by, stored["n_stalled"]
        if recorder.has_another_rule:
            self.n_stalled = 0
        elif self.n_stalled >= self.plan.given.n_iter_no_change:  # killed as it ended
            self.ended_by = "tol"
        if self.ended_by is None and len(self.state.losses) >= self.plan.most_steps:
            self.ended_by = "max_iter"

    def _check(self, stored):
        """Raise ValueError unless the alternation can reach a state."""
        n_steps, shapes = len(stored["losses"]), [a.shape for a in self.state[:2]]
        for name, shape in zip(("atoms", "codes"), shapes, strict=True):
            array = stored[name]
            if tuple(array.shape) != shape or array.dtype != torch.float64:
                raise ValueError(f"its {name} have the shape {tuple(array.shape)}, not {shape}")
            if not (torch.isfinite(array) & (array >= 0)).all():
                raise ValueError(f"its {name} are negative or not finite")
        numbers = [number for name in _CURVES for number in stored[name]]
        if len(numbers) != 2 * n_steps or not np.isfinite(np.array(numbers, float)).all():
            raise ValueError("its objectives are not finite, or not those of its steps")
        if type(stored["n_stalled"]) is not int or not 0 <= stored["n_stalled"] <= n_steps:
            raise ValueError(f"it has stalled for {stored['n_stalled']!r:.50} steps")

    def pack(self):
        """Return the state for a checkpoint."""
        state = self.state
        arrays = {"atoms": to_tensor(state.atoms), "codes": to_tensor(state.codes)}
        return (
            arrays
            | {name: getattr(state, name) for name in _CURVES}
            | {"n_stalled": self.n_stalled}
        )

    @property
    def is_done(self):
        return self.ended_by is not None

    def advance(self):
        """Make one step, and decide whether it is the last."""
        given = self.plan.given
        self.state = advance(self.events, self.state, self.smoothing)
        objectives = self.state.objectives
        before, now = objectives[-2] if len(objectives) > 1 else inf, objectives[-1]
        tol = -1.0 if given.tol is None else given.tol
        stalled = before - now <= tol * abs(self.state.losses[-1])
        self.n_stalled = self.n_stalled + 1 if stalled else 0
        if self.n_stalled >= given.n_iter_no_change:
            self.ended_by = "tol"
        elif len(objectives) >= self.plan.most_steps:
            self.ended_by = "max_iter"
        if self._recorder.is_active:
            self._recorder.at_step(self.pack(), len(objectives))

    def attributes(self):
        """Return the fitted attributes."""
        state = self.state
        found, visible = expected_events(self.events, state.atoms, state.codes)
        n_samples = self.events.counts.shape[0]
        memory = dict(found=found, visible=visible, mean=self.events.mean, n_batches=1)
        return _attributes(
            self.data,
            state.atoms,
            self.smoothing,
            memory | {"n_rows": n_samples},
            n_components=self.plan.n_components,
            n_iter_=len(state.losses),
            n_steps_=len(state.losses),
            loss_curve_=np.array(state.losses),
            ended_by_=self.ended_by or "callback",
            phases_={ADDITIVE: len(state.losses)},
        )

    def report(self, max_iter):
        """Print a line about the last step."""
        n, loss = len(self.state.losses), self.state.losses[-1]
        print(f"{ADDITIVE}, epoch {n}/{self.plan.most_steps}  loss {loss:.6g}", flush=True)


def additive_fit(plan, data, run, choose, exposure=None):
    """Alternate codes and atoms of all rows, in a fit with its hooks.

    Parameters
    ----------
    plan : AdditivePlan
        The plan.
    data : Data
        Its data.
    run : FitRun
        The fit.
    choose : callable
        `skpudle._learners.dense.choose_atoms`.
    exposure : ndarray of shape (n_samples,), default=None
        Exposures of the samples.

    Returns
    -------
    dict
        The fitted attributes.
    """
    if not run.team.is_alone:
        raise ValueError(f"loss={ADDITIVE!r} is fitted in one process. Leave out data_parallel.")
    if data.samples.mask is not None and not data.samples.mask.any():
        raise nothing_known(run.learner)
    events = _read_events(data.source, exposure)
    atoms = _first_atoms(plan, data, events, choose, run.generator)
    _check_data(plan, events, data, atoms)
    alpha, atoms = _smoothed(plan.given.alpha, events, atoms, run.generator)
    phase = _Alternation(plan, data, events, begin(events, atoms), float(alpha))
    stopped = run.run(phase)
    if stopped and phase.ended_by is None:
        phase.ended_by = "interrupt" if run.interrupts.pending else "callback"
    if run.recorder.is_active:
        early = phase.ended_by if phase.ended_by in ("tol", "callback") else None
        run.recorder.end_steps(phase.pack(), len(phase.state.losses), ended_by=early)
    return phase.attributes()


def additive_update(plan, data, fitted, choose, exposure=None):
    """Update atoms by one pass over the data: statistics of batches, older ones forgotten.

    Parameters
    ----------
    plan, data, choose, exposure
        As in `additive_fit`.
    fitted : dict
        The attributes of a fitted learner, to go on from; empty at first.

    Returns
    -------
    dict
        The fitted attributes.

    References
    ----------
    O. Cappe and E. Moulines, "On-line expectation-maximization algorithm for latent data models",
    JRSS B 71, 2009.
    """
    losses, n_rows, smoothing = [], 0, plan.given.alpha
    everything = _read_events(data.source, exposure)
    memory = fitted.get("_training_state", {})
    replaced = fitted and memory["atoms"] != crc32(np.ascontiguousarray(fitted["components_"]))
    if fitted and (replaced or memory.get("visible", np.ones(1)).any()):
        atoms = np.asarray(fitted["components_"], dtype=np.float64)
        smoothing = fitted["alpha_"] if smoothing == "auto" else smoothing
    else:  # at first, and before the first event
        memory, generator = {}, make_generator(plan.given.random_state)
        atoms = _first_atoms(plan, data, everything, choose, generator)
        smoothing, atoms = _smoothed(smoothing, everything, atoms, generator)
    if replaced:  # the events of the atoms before hold these atoms, if there are as many
        atoms, found = start_from(everything, atoms), memory.get("found", np.empty((0, 0)))
        same = found.shape == atoms.shape
        memory = memory | {"found": atoms * found.sum(1, keepdims=True)} if same else {}
    if "found" not in memory:
        zeros = np.zeros_like(atoms)
        memory = dict(found=zeros, visible=zeros, mean=everything.mean, n_batches=0, n_rows=0.0)
    for part in everything.parts(plan.batch_size()):
        n = part.counts.shape[0]
        t = memory["n_batches"] + 1
        kept = (1 - 1 / t) ** _FORGETTING if t > 1 else 0.0
        codes = solve_codes(part, atoms)
        losses.append(part.half_deviance(atoms, codes))
        found, visible = expected_events(part, atoms, codes)
        share = n / (kept * memory["n_rows"] + n)
        memory = dict(
            found=kept * memory["found"] + found,
            visible=kept * memory["visible"] + visible,
            mean=(1 - share) * memory["mean"] + share * part.mean,
            n_batches=t,
            n_rows=kept * memory["n_rows"] + n,
        )
        n_rows += n
        atoms = atoms_of_events(memory["found"], memory["visible"], memory["mean"], smoothing)
    curve = [*fitted.get("loss_curve_", ()), float(np.sum(losses)) / n_rows]
    return _attributes(
        data,
        atoms,
        smoothing,
        memory,
        n_components=plan.n_components,
        n_iter_=len(curve),
        n_steps_=fitted.get("n_steps_", 0) + len(losses),
        loss_curve_=np.array(curve),
    )
