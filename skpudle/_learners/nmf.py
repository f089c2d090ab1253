"""Counts of sources that add: `PoissonNMF`.

Codes and atoms alternate as convex problems (`skpudle._additive`); there are no unfoldings,
gradients or penalties of codes.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.callback import CallbackSupportMixin
from sklearn.utils import Bunch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from skpudle._additive._alternate import (
    Events,
    advance,
    begin,
    prune_codes,
    solve_codes,
    start_from,
)
from skpudle._additive._dispersion import converge_dispersed, solve_dispersed
from skpudle._additive._prior import choose_prior
from skpudle._additive._size import choose_size, first_atoms
from skpudle._data.arrays import (
    check_rows,
    input_attributes,
    to_numpy,
    to_tensor,
    with_gaps,
)
from skpudle._data.batches import Samples
from skpudle._data.foreign import dictionary_of
from skpudle._data.names import explain_names, fit_context
from skpudle._data.sources import check_exposure, open_source
from skpudle._data.weights import check_sample_weight, merge_copies, merge_samples
from skpudle._learners.coder import ExposedTransformer
from skpudle._learners.dense import DICT_INIT, choose_atoms, read_rows
from skpudle._precision import training_mode
from skpudle._training.archive import check_kind
from skpudle._training.fit import FitRun, Phase
from skpudle._training.messages import (
    nothing_known,
    warn_of_early_end,
    warn_of_few_samples,
    warn_of_unknown_features,
    warn_of_unused,
)
from skpudle._training.team import refuse_several
from skpudle.search.held_out import hash_rows

# The prior of given atoms, and of data without events, in pseudo-events per feature. For planted
# spectra (benchmarks/bench_additive.py) the best number is 0.4 to 13, and 0.5 is never worse than
# 0.
_SMOOTHING = 0.5
# max_iter="auto"
_STEPS = 1000
# n_components="auto": least number of rows; smoothing before alpha="auto" is chosen, and its
# largest share of the events of a feature. With an alpha chosen for 4 atoms instead 3 of 22 numbers
# are wrong, not 1.
_FEWEST, _SIZING, _SIZING_SHARE = 8, 2.0, 1e-3
# The number of atoms from which n_components="auto" goes on.
_FIRST = 4
# rows read at a time, and rows that choose the prior and the dispersion
_ROWS = 4096


@dataclass(frozen=True)
class _Plan:
    """Numbers that readers of data and a fit need; see `skpudle._training.fit`.

    Parameters
    ----------
    n_components : int or None
        Number of atoms.
    most_steps : int
        The largest number of steps of a fit.
    """

    n_components: int | None
    most_steps: int

    def batch_size(self, n_samples=None):
        """Return the number of rows to read at a time."""
        return _ROWS

    def n_updates(self, n_batches, batch_size, data):
        """Return the number of updates, which sets the number of epochs for callbacks."""
        return n_batches * self.most_steps


@dataclass(frozen=True)
class _Encoder:
    """The encoder of most likely rates; every row is solved alone.

    Parameters
    ----------
    least : float, default=0.0
        Codes of rows without any event have this many events in all. A rate of 0 excludes events,
        so predictions of further entries need some.
    min_gain : float, default=0.0
        An atom stays in a row if it improves the log-likelihood by this.
    dispersion : float, default=0.0
        The variance of a count of expectation ``mu`` is ``mu + dispersion * mu**2``.
    """

    least: float = 0.0
    min_gain: float = 0.0
    dispersion: float = 0.0

    def of_features(self, features):
        """Return the encoder of some features, to predict the rest."""
        return replace(self, least=0.5)

    def __call__(self, dictionary, x, *, mask=None, offset=None):  # -> (n, n_components)
        """Return codes; ``offset`` holds the logarithms of exposures."""
        if x.requires_grad:
            raise ValueError(
                "Codes of PoissonNMF have no derivatives. Pass a PUDLEDictionaryLearning, whose "
                "loss='poisson' is for counts too."
            )
        exposure = None if offset is None else to_numpy(offset[:, 0].double().exp())
        known = None if mask is None else to_numpy(mask)
        events = Events.of(to_numpy(x.double()), known, exposure)
        atoms = to_numpy(dictionary.atoms.double())
        codes, events = solve_dispersed(events, atoms, self.dispersion)
        if self.min_gain > 0:
            codes = prune_codes(events, atoms, codes, self.min_gain)
        empty = ~codes.any(1)
        if self.least and empty.any():
            loads = events.loads(atoms)[empty]
            size = np.maximum(loads.sum(1, keepdims=True), 1e-300)
            codes[empty] = np.where(loads.sum(1, keepdims=True) > 0, self.least / size, 0.0)
        return to_tensor(codes).to(x)


def _read_events(source, exposure):  # -> Events of rows that count, (n,) keys of their contents
    parts, keys, start = [], [], 0
    source = source.for_training(_ROWS, None, shuffle=False)
    for batch in source.batches():
        stop = start + len(batch.x)
        given = None if exposure is None else exposure[start:stop]
        x, mask, weight = batch.x.double(), batch.mask, batch.weight
        rows = with_gaps(x, mask)
        rows = rows if given is None else torch.cat([rows, to_tensor(given)[:, None]], 1)
        keys.append(hash_rows(rows))
        mask = None if mask is None else to_numpy(mask)
        weight = None if weight is None else to_numpy(weight.double())
        parts.append(Events.of(to_numpy(x), mask, given, weight))
        start = stop
    events, keys = Events.joined(parts), torch.cat(keys)
    if events.row_weight is not None:
        known = np.flatnonzero(events.row_weight)
        events, keys = events.take(known), keys[known]
    return _count_once(events), keys


def _count_once(events):  # -> Events, without weights if all are 1
    weight = events.row_weight
    return events if weight is None or (weight != 1).any() else replace(events, row_weight=None)


def _merge_copies(events, keys):  # -> Events of rows that differ
    """Merge equal rows into one row with the sum of their weights.

    So entries are hidden, and rows held out, for all copies at once: a visible copy would reveal
    the noise of a hidden copy.
    """
    weight = None if events.row_weight is None else to_tensor(events.row_weight)
    rows, sums, _ = merge_copies(keys, weight)
    if len(rows) == len(keys) and weight is None:
        return events
    return _count_once(replace(events.take(to_numpy(rows)), row_weight=to_numpy(sums)))


def _fixed_atoms(learner, n_features):  # -> (n_fixed, n_features), of sum 1
    """Check the fixed atoms of a learner."""
    given, n_components = learner.fixed_components, learner.n_components
    if given is None:
        return np.empty((0, n_features))
    atoms = to_numpy(to_tensor(check_rows(given))).astype(np.float64)
    if atoms.shape[1] != n_features or (atoms < 0).any() or not atoms.any(1).all():
        raise ValueError(
            f"fixed_components has the shape {atoms.shape} and the least entry {atoms.min():.3g}. "
            f"Pass rows of {n_features} entries that are not negative and not all 0."
        )
    if n_components != "auto" and (n_components or n_features) < len(atoms):
        raise ValueError(
            f"n_components={n_components!r} counts the {len(atoms)} fixed_components, too. Pass a "
            f"number from {len(atoms)} on."
        )
    return atoms / atoms.sum(1, keepdims=True)


def _first_atoms(learner, data, events, generator):  # -> (n_components, n_features), Bunch or None
    """Return initial atoms, the fixed ones first, and the numbers of atoms that were tried."""
    samples, start, n_components = data.samples, learner.dict_init, learner.n_components
    x = samples.x
    searches, fixed = (
        isinstance(start, str) and start == "search",
        _fixed_atoms(learner, x.shape[1]),
    )
    if n_components == "auto":
        if not searches:
            raise ValueError(
                f"n_components='auto' finds atoms itself, got dict_init={start!r:.50}. Pass a "
                "number, or dict_init='search'."
            )
        if events.counts.shape[0] < _FEWEST:
            raise ValueError(
                "n_components='auto' holds out a quarter of the rows, got "
                f"{events.counts.shape[0]}. Pass {_FEWEST} rows or more that differ, or a number."
            )
        rng = np.random.default_rng(generator.initial_seed())
        known = learner.dispersion or 0.0, fixed
        atoms, path = choose_size(events, _sizing(learner, events), rng, *known)
        return atoms, Bunch(**path._asdict())
    if len(fixed):
        n_components = (n_components or x.shape[1]) - len(fixed)
        if not n_components:
            return fixed, None
        events = events.unexplained(fixed, solve_codes(events, fixed))
    if searches:
        atoms = first_atoms(events, n_components or x.shape[1])
    else:
        samples, _ = merge_samples(replace(samples, offset=None))
        how = dict(atom_norm=None, positive=True, weight=samples.weight)
        atoms = choose_atoms(start, n_components, samples.x.double().cpu(), generator, **how)
        atoms = to_numpy(atoms)
    return np.concatenate([fixed, start_from(events, atoms)]), None


def _n_fixed(learner):
    return 0 if learner.fixed_components is None else len(learner.fixed_components)


def _sizing(learner, events):  # -> float, the prior until it is chosen
    alpha = learner.alpha
    if alpha in ("auto", 0):  # without a prior, zeros exclude held-out events
        share = _SIZING_SHARE * float(events.repeated.sum()) / events.counts.shape[1]
        alpha = min(_SIZING * events.typical_weight, share)
    return alpha


class _Chosen(NamedTuple):
    """The chosen values of parameters that may be "auto"."""

    alpha: float
    dispersion: float
    min_gain: float


def _choose(learner, events, atoms, generator):  # -> _Chosen, Events, Progress
    """Let events choose the parameters that are "auto", and begin with atoms for them."""
    chosen, atoms = _choose_parameters(learner, events, atoms, generator)
    return chosen, *_begin(learner, events, atoms, chosen)


def _choose_parameters(learner, events, atoms, generator):  # -> _Chosen, atoms for it
    given, n_fixed = [getattr(learner, name) or 0.0 for name in _Chosen._fields], _n_fixed(learner)
    if not events.counts.nnz:
        defaults = zip(given, (_SMOOTHING, 0.0, 0.0), strict=True)
        return _Chosen(*(d if value == "auto" else value for value, d in defaults)), atoms
    alpha, dispersion, min_gain = given
    if alpha == 0 and min_gain == "auto":  # without a prior, atoms of few rows exclude events
        min_gain = 0.0
    some = events.sample(_ROWS)
    if dispersion:
        state, alpha_now = begin(some, atoms, n_fixed), _sizing(learner, some)
        state, _, dispersion = converge_dispersed(some, some, state, alpha_now, dispersion)
        atoms = state.atoms
    rng = np.random.default_rng(generator.initial_seed())
    options = dict(smoothing=alpha, min_gain=min_gain, n_fixed=n_fixed, dispersion=dispersion)
    alpha, min_gain, atoms = choose_prior(some, atoms, rng, **options)
    return _Chosen(alpha, dispersion, min_gain), atoms


def _begin(learner, events, atoms, chosen):  # -> Events, Progress
    """Return events with weights, and the atoms that rows may have, and the first state."""
    if chosen.dispersion or chosen.min_gain:
        codes, events = solve_dispersed(events, atoms, chosen.dispersion)
    if chosen.min_gain:  # atoms were learned with pruned codes
        codes = prune_codes(events, atoms, codes, chosen.min_gain)
        events = replace(events, allowed=codes > 0)
    return events, begin(events, atoms, _n_fixed(learner))


def _check_data(learner, events, atoms, names):
    unknown = []
    n_samples = events.counts.shape[0]
    if events.missing is not None:
        unknown = np.flatnonzero(events.missing.sum(0) == n_samples).tolist()
    warn_of_unknown_features(unknown, names)
    if isinstance(learner.dict_init, str):
        warn_of_few_samples(n_samples, len(atoms))


def _attributes(learner, data, atoms, chosen, **known):  # -> dict
    """Return the fitted attributes; None removes one of a `fit`."""
    atoms = atoms.astype(to_numpy(data.samples.x[:0]).dtype)
    fitted = {"components_": atoms, "n_components_": len(atoms)}
    fitted |= {f"{name}_": float(value) for name, value in chosen._asdict().items()}
    of_fits = dict.fromkeys(("ended_by_", "phases_", "fit_seconds_", "size_path_"))
    return of_fits | data.inputs | fitted | known


def _first_attributes(learner, data, atoms):  # -> dict
    """Return the fitted attributes before the alternation."""
    chosen = _Chosen(_SMOOTHING, 0.0, 0.0)
    known = dict(n_iter_=0, n_steps_=0, loss_curve_=np.zeros(0))
    return _attributes(learner, data, atoms, chosen, **known)


@dataclass
class _Alternation(Phase):
    """The phase of a fit; see `skpudle._training.fit`."""

    learner: object
    most_steps: int
    data: object
    events: Events
    state: object
    chosen: _Chosen
    ended_by: str | None = None
    n_stalled: int = field(default=0)

    names = None, "epoch"

    def pack(self):
        """Return the state, the number of stalled steps, and the cause of an early end."""
        return self.state, self.n_stalled, self.ended_by

    def resume(self, state, *, same_rule):
        """Go on from a state; by another rule an alternation that has ended goes on."""
        found, n_stalled, ended_by = state
        check_kind(found, self.state)
        self.state = found
        if same_rule:
            self.n_stalled, self.ended_by = n_stalled, ended_by
        if self.ended_by in (None, "max_iter", "interrupt"):
            full = len(found.losses) >= self.most_steps
            self.ended_by = "max_iter" if full else None

    @property
    def is_done(self):
        return self.ended_by is not None

    def advance(self):
        """Make one step, and decide whether it is the last."""
        given = self.learner
        self.state = advance(self.events, self.state, self.chosen.alpha)
        objectives = self.state.objectives
        before, now = objectives[-2] if len(objectives) > 1 else inf, objectives[-1]
        tol = -1.0 if given.tol is None else given.tol
        stalled = before - now <= tol * abs(self.state.losses[-1])
        self.n_stalled = self.n_stalled + 1 if stalled else 0
        if self.n_stalled >= given.n_iter_no_change:
            self.ended_by = "tol"
        elif len(objectives) >= self.most_steps:
            self.ended_by = "max_iter"

    def attributes(self):
        """Return the fitted attributes."""
        state = self.state
        return _attributes(
            self.learner,
            self.data,
            state.atoms,
            self.chosen,
            n_iter_=len(state.losses),
            n_steps_=len(state.losses),
            loss_curve_=np.array(state.losses),
            ended_by_=self.ended_by or "callback",
            phases_={"alternation": len(state.losses)},
        )

    def report(self, max_iter):
        """Print a line about the last step."""
        n, loss = len(self.state.losses), self.state.losses[-1]
        print(f"alternation, epoch {n}/{self.most_steps}  loss {loss:.6g}", flush=True)


class PoissonNMF(CallbackSupportMixin, ExposedTransformer):
    r"""Non-negative matrix factorization of counts whose sources add.

    By default `fit` searches for the atoms, hidden counts choose how smooth they are, and residuals
    estimate the variation beyond Poisson's. `transform` returns how many events of a row come from
    each atom. Every entry is a count of events, with the expectation

    .. math:: \mu_{ij} = e_i \sum_k z_{ik} d_{kj}

    of an exposure, codes and atoms that are not negative. The negative log-likelihood is the
    generalised Kullback-Leibler divergence of expectations from counts, as for scikit-learn's
    ``NMF(beta_loss="kullback-leibler")``. Atoms sum to 1, so that codes are numbers of events.
    Atoms have a prior, which keeps them from excluding events that a few rows lack. See
    :doc:`/guide/counts`.

    Parameters
    ----------
    n_components : int or "auto", default=None
        Number of atoms; by default the number in ``dict_init`` if it is an array or a learner, else
        the number of features. "auto" is the smallest number whose atoms predict hidden entries of
        held-out samples nearly best (see the notes), with ``dict_init="search"``.

    alpha : float or "auto", default="auto"
        Smoothing of the atoms: the number of pseudo-events a feature, in the shape of the mean
        spectrum, that each atom begins with (a Dirichlet prior). With 0 atoms are those of the
        largest likelihood. "auto" predicts hidden entries best.

    dispersion : float, "auto" or None, default="auto"
        How much more than Poisson's counts vary: the variance of a count of expectation ``mu`` is
        ``mu + dispersion * mu**2``, as of a negative binomial distribution of size
        ``1 / dispersion``. Entries then have the weights ``1 / (1 + dispersion * mu)``, in `fit`,
        `transform`, `score` and the choice of numbers. "auto" estimates it from residuals, and is
        0 if they are Poisson's. None is Poisson's variance, as 0 is.

    min_gain : float or "auto", default="auto"
        In `fit` an atom has a code in a row only if it raises the log-likelihood of the row by
        this, in nats. Small codes by chance, in rows without the atom, would turn atoms into
        mixtures. With 0 rows may have all atoms; "auto" is 3 if the atoms then predict hidden
        entries at most 1 nat worse, and there is a prior (``alpha``), else 0.

    max_iter : int or "auto", default="auto"
        Largest number of steps of the alternation; "auto" is 1000.

    tol : float or None, default=1e-6
        Relative improvement of the objective that counts as one; None makes ``max_iter`` steps.

    n_iter_no_change : int, default=5
        The alternation ends after this many steps in a row without improvement.

    dict_init : str, array-like or learner, default="search"
        Initial atoms: rows of different shapes without most of their noise ("search"), or as in
        `PUDLEDictionaryLearning`.

    fixed_components : array-like of shape (n_fixed, n_features), default=None
        Known atoms, not negative: the first rows of ``components_``, divided by their sums, which
        do not change. ``n_components`` counts them, "auto" chooses the number of new ones, which
        may be 0, and ``dict_init`` has the remaining atoms.

    transform_min_gain : float, default=0.0
        An atom has a code in a row only if it raises the log-likelihood of the row by this, in
        nats; in `transform` and `score`. Atoms leave one by one, first the atom whose absence costs
        the row least. With 0, the largest likelihood, many small codes are chance; 6 suits
        assignments to known spectra.

    random_state : int, RandomState instance or None, default=None
        Determines the hidden entries of ``alpha="auto"``, and initial atoms that are drawn.

    verbose : int, default=0
        Whether to print a line per step.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        The atoms, one per row, each of sum 1.

    n_components_ : int
        Number of atoms.

    alpha_ : float
        The smoothing in use.

    dispersion_ : float
        The dispersion in use, 0 for Poisson's variance.

    min_gain_ : float
        The least gain in use, 0 if rows may have all atoms.

    size_path_ : Bunch
        With ``n_components="auto"``, the numbers of atoms that were tried: arrays ``n_components``,
        ``score`` (explained share of the deviance of hidden entries of held-out samples),
        ``objective`` (of the alternation) and ``tolerance`` (the loss against the best score that
        counts as chance: a standard error, at least .0005).

    n_features_in_ : int
        Number of features seen in `fit`.

    feature_names_in_ : ndarray of shape (n_features,)
        Names of features seen in `fit`, if ``X`` has names.

    n_iter_ : int
        Number of steps.

    n_steps_ : int
        Number of updates of the atoms.

    loss_curve_ : ndarray of shape (n_iter,)
        Half the deviance, mean over the samples with their weights, before each step.

    ended_by_ : str
        Cause of the end of `fit`: "tol" (the objective had stalled), "max_iter", "callback" or
        "interrupt" (Ctrl-C).

    phases_ : dict of str to int
        The number of steps of the "alternation".

    fit_seconds_ : dict of str to float
        Seconds of the last `fit` ("fit"), of the "reading" of the data, of the choice of the
        number of atoms ("size") and of the other parameters ("prior"), of the alternation
        ("training"), and of the "result" after it.

    See Also
    --------
    PUDLEDictionaryLearning : With ``loss="poisson"`` for effects that multiply.
    sklearn.decomposition.NMF : The same likelihood without a prior.

    Notes
    -----
    A step is one sweep of coordinate descent over the codes of all rows, and one over the atoms;
    each entry becomes the optimum for the remaining entries. Codes of `transform` are solved to a
    duality gap, row by row. A fit runs on the CPU, and holds all nonzero counts in memory.

    Equal rows of the same exposure are one row with the sum of their weights (``sample_weight`` of
    `fit`). Hidden and held-out entries are those of all copies of a row.

    With ``n_components="auto"`` a quarter of the samples, at most 2000, are held out, and groups of
    their features are hidden in turn. The number of atoms begins at 4 and grows by half, until two
    numbers in a row predict no better. Then the atoms leave whose absence costs the held-out
    samples least, at last one by one, and the remaining atoms adapt. The number is the smallest
    whose predictions are within a standard error of the best. From its atoms the fit of all samples
    begins. Until then ``alpha="auto"`` is 2, or a thousandth of the events of a feature if that is
    less.

    References
    ----------
    .. [1] D. D. Lee and H. S. Seung, "Learning the parts of objects by non-negative matrix
       factorization", Nature 401, 1999.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle import PoissonNMF
    >>> rng = np.random.default_rng(0)
    >>> spectra = rng.dirichlet(np.full(40, 0.2), size=3)
    >>> X = rng.poisson(100 * rng.gamma(1.0, 1.0, (200, 3)) @ spectra)
    >>> learner = PoissonNMF(3, random_state=0).fit(X)
    >>> events = learner.transform(X)
    >>> bool(np.allclose(events.sum(axis=1), X.sum(axis=1), rtol=1e-3, atol=1e-3))
    True
    """

    components_: np.ndarray
    n_components_: int
    alpha_: float
    dispersion_: float
    min_gain_: float
    size_path_: Bunch
    n_features_in_: int
    feature_names_in_: np.ndarray
    n_iter_: int
    n_steps_: int
    loss_curve_: np.ndarray
    ended_by_: str
    phases_: dict[str, int]
    fit_seconds_: dict[str, float]

    @explain_names
    def __init__(
        self,
        n_components: int | Literal["auto"] | None = None,
        *,
        alpha: float | Literal["auto"] = "auto",
        dispersion: float | Literal["auto"] | None = "auto",
        min_gain: float | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 1e-6,
        n_iter_no_change: int = 5,
        dict_init: Any = "search",
        fixed_components: ArrayLike | None = None,
        transform_min_gain: float = 0.0,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.alpha = alpha
        self.dispersion = dispersion
        self.min_gain = min_gain
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.dict_init = dict_init
        self.fixed_components = fixed_components
        self.transform_min_gain = transform_min_gain
        self.random_state = random_state
        self.verbose = verbose

    _parameter_constraints = {
        "n_components": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"}), None],
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "dispersion": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"}), None],
        "min_gain": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "tol": [Interval(Real, 0, None, closed="left"), None],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "dict_init": [StrOptions({"search"}), *DICT_INIT],
        "fixed_components": ["array-like", None],
        "transform_min_gain": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    # constants, not parameters: the name of its loss in `skpudle._losses`, and its device
    loss, device = "kullback-leibler", "cpu"
    _writes_checkpoints = True

    # ------------------------------------------------------------------ fit

    @fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def fit(
        self,
        X: Any,
        y: None = None,
        exposure: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Learn atoms.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Counts of shape (n_samples, n_features), or other numbers that are not negative, as for
            `PUDLEDictionaryLearning`. NaN marks missing entries, which are ignored.
        y : None
            Ignored.
        exposure : array-like of shape (n_samples,), default=None
            Factors of the expectations of each sample: times of observation, volumes or
            opportunities. By default 1 for all.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts in sums over rows; its codes do not depend on it. Weights
            equal repetitions, and a weight of zero equals absence. Their unit is one row, next to
            the pseudo-events of ``alpha``: twice the weights and the same number are a smaller
            prior. By default all rows count once.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data or parameters are unfit, which leaves the estimator unchanged.
        TypeError
            If ``X`` can be iterated only once.

        Warns
        -----
        ConvergenceWarning
            If ``max_iter`` is a number, and the fit ended before the objective had stalled.
        UserWarning
            If named parameters have no effect in this fit, if there are fewer samples than atoms,
            or features without a known value.
        """
        with FitRun(self, X, y) as run:
            refuse_several(type(self).__name__)
            plan = self._plan()
            data, exposure = self._read(plan, X, exposure, sample_weight)
            if self.tol is None:
                warn_of_unused(self, [(("n_iter_no_change",), "a number for tol")])
            run.open(data, plan)
            with run.interrupts:
                everything, keys = _read_events(data.source, exposure)
                missing = everything.missing
                if missing is not None and missing.nnz == missing.shape[0] * missing.shape[1]:
                    raise nothing_known(self)
                events = _merge_copies(everything, keys)
                atoms, size_path = self._first_atoms(data, events, run)
                _check_data(self, everything, atoms, data.inputs.get("feature_names_in_"))
                choose = partial(_choose, self, events, atoms, run.generator)
                now = partial(_first_attributes, self, data, atoms)
                chosen, events, state = run.make_step("prior", choose, now)
                phase = _Alternation(self, plan.most_steps, data, events, state, chosen)
                run.run(phase)
                self._take(phase.attributes() | {"size_path_": size_path})
        self.fit_seconds_ = run.seconds
        if self.ended_by_ == "max_iter" and self.tol is not None and self.max_iter != "auto":
            warn_of_early_end(self, has_rate=False)
        return self

    def _first_atoms(self, data, events, run):  # -> (n_components, n_features), Bunch or None
        find = partial(_first_atoms, self, data, events, run.generator)
        if self.n_components != "auto":
            return find()

        def attributes():  # for the number of atoms that the choice begins with
            return _first_attributes(self, data, first_atoms(events, _FIRST))

        return run.make_step("size", find, attributes)

    def _plan(self):
        most_steps = _STEPS if self.max_iter == "auto" else self.max_iter
        n_components = None if self.n_components == "auto" else self.n_components
        return _Plan(n_components, most_steps)

    def _read(self, plan, X, exposure, weight):  # -> Data, exposure
        given = open_source(X, self)
        if weight is not None:
            weight = check_sample_weight(weight, given.n_rows)
        if exposure is not None:
            exposure = check_exposure(exposure, given.n_rows, self.loss)
        data = read_rows(self, plan, given, weight=weight)
        if exposure is not None:  # by which a checkpoint recognises the data, too
            data = data._replace(samples=replace(data.samples, offset=to_tensor(exposure)))
        return data, exposure

    # ------------------------------------------------------------------ codes and score

    def score(
        self,
        X: ArrayLike | Tensor,
        y: None = None,
        exposure: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Return the explained share of the deviance of held-out features.

        The columns are cut into ten fixed groups. Each is held out once for all rows, the codes are
        inferred from the other columns, and predict the held-out entries. ``GridSearchCV`` compares
        numbers of atoms by it. A row without any event outside of the held-out features gets half
        an event, since a rate of 0 would exclude any event.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Counts, or a dataset, batches or a sparse array as for `fit`.
        y : None
            Ignored.
        exposure, sample_weight : array-like of shape (n_samples,), default=None
            As for `fit`.

        Returns
        -------
        float
            Explained share of the deviance, pooled over all known entries, against the mean rates
            times exposures. At most 1, larger is better. 0 for constant data.
        """
        return self._score(X, exposure, sample_weight)

    def _transform_encoder(self):
        # it may have been set since `fit`
        self._validate_params("transform_min_gain")
        return _Encoder(0.0, self.transform_min_gain, self.dispersion_)

    # ------------------------------------------------------------------ given atoms

    @classmethod
    def from_components(cls, components: Any, **params: Any) -> Self:
        """Return a learner that is fitted to given atoms, without data.

        Parameters
        ----------
        components : array-like of shape (n_components, n_features), Tensor or learner
            Atoms as rows, not negative, or a fitted learner of this package, scikit-learn or
            SPORCO. They are not scaled: codes are events if the atoms sum to 1.
        **params : dict
            Parameters of the learner.

        Returns
        -------
        PoissonNMF
            Ready for `transform`.

        Raises
        ------
        ValueError
            If the atoms are no matrix of finite numbers that are not negative.

        Examples
        --------
        >>> import numpy as np
        >>> from skpudle import PoissonNMF
        >>> learner = PoissonNMF.from_components([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
        >>> learner.transform(np.array([[3.0, 1.0, 2.0]])).round(2)
        array([[4., 2.]])
        """
        atoms = check_rows(dictionary_of(components))
        learner = cls(len(atoms), **params)
        learner._validate_params()
        atoms = to_tensor(atoms)
        if (atoms < 0).any():
            raise ValueError(
                f"The least entry of components is {float(atoms.min()):.3g}, and rates of counts "
                "are not negative. Pass atoms that are not negative."
            )
        alpha = _SMOOTHING if learner.alpha == "auto" else learner.alpha
        given = (0.0 if v == "auto" else v or 0.0 for v in (learner.dispersion, learner.min_gain))
        chosen = _Chosen(alpha, *given)
        atoms = to_numpy(atoms)
        data = SimpleNamespace(samples=Samples(to_tensor(atoms)), inputs=input_attributes(atoms))
        known = dict(n_iter_=1, n_steps_=0, loss_curve_=np.zeros(0))
        learner._take(_attributes(learner, data, atoms, chosen, **known))
        return learner
