"""The learner `PoissonNMF`: non-negative matrix factorization of counts, whose sources add."""

from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_non_negative
from torch.special import xlogy

from skpudle._data import arrays
from skpudle._data.arrays import host_array, to_numpy, to_tensor, with_gaps
from skpudle._data.sources import Samples, merge_copies
from skpudle._fit import messages
from skpudle._fit.estimator import Data, PhasedLearner
from skpudle._fit.run import Fitted, Phase, Run, as_arrays, take
from skpudle._fit.train import PATIENCE
from skpudle._learners.counts import ExposedTransformer, OfRows
from skpudle._learners.parameters import ATOMS, sets_parameters
from skpudle._losses import Poisson
from skpudle._nmf import alternate, choose
from skpudle._rows import hash_rows

# n_components="auto" needs at least this number of distinct rows, since a quarter of the rows is
# held out: of 8 rows 2.
_LEAST_ROWS_OF_AUTO = 8


class KullbackLeibler(Poisson):
    """The Poisson loss of `PoissonNMF`: the expectation of a count is codes times atoms.

    In `Poisson` the natural parameter, codes times atoms, is the logarithm of the expectation; here
    it is the expectation itself (the identity link). ``saturated(x)`` is the log-likelihood of
    counts ``x`` whose expectations equal them.
    """

    def mean(self, natural):
        """Return the expectation of a count, which equals the natural parameter here."""
        return natural

    natural = mean

    def half_deviance(self, natural, x):
        """Return half the deviance of each count ``x`` from its expectation ``natural``.

        ``natural`` and ``x`` are tensors of one shape. The result, of this shape, is
        differentiable.
        """
        rate = natural.clamp_min(torch.finfo(natural.dtype).tiny)
        return rate - xlogy(x, rate) + self.saturated(x)


@dataclass(frozen=True)
class _Encoder:
    """The encoder of `PoissonNMF`: codes that make counts most likely, each row on its own.

    `transform` and `score` of `ExposedTransformer` call it as a function.

    Parameters
    ----------
    min_gain : float
        An atom stays in a row if it raises the log-likelihood of the row by at least this number of
        nats.
    dispersion : float
        The variance of a count of expectation ``mu`` is ``mu + dispersion * mu**2``.
    least : float, default=0.0
        The sum of the expected events of a row without any event; its codes are equal. For
        predictions of hidden entries it must be above 0: at a rate of 0 a single hidden event makes
        the error infinite.
    """

    min_gain: float
    dispersion: float
    least: float = 0.0

    def of_features(self, features):  # -> _Encoder
        """Return the encoder for `score`, which hides features and predicts their counts.

        The argument ``features``, the indices of the visible features, has no effect here. (The
        encoders of other learners need it.) Rows without visible events get codes above 0.
        """
        return replace(self, least=0.5)

    def __call__(
        self, dictionary, x, *, mask=None, exposure=None
    ):  # -> (n, n_components)
        """Return codes: the number of events that a row has from each atom, divided by exposures.

        ``dictionary.atoms`` (n_components, n_features) are the atoms, ``x`` (n, n_features) the
        counts, and ``mask``, of the shape of ``x``, is 1 for known entries. ``exposure`` has the
        shape (n, 1); None is 1. All are tensors, and codes have the dtype and device of ``x``.
        """
        events = _events_of(Samples(x, mask))
        atoms = to_numpy(dictionary.atoms.double())
        codes, events = alternate.solve_dispersed(events, atoms, self.dispersion)
        if self.min_gain > 0:
            codes = alternate.prune_codes(events, atoms, codes, self.min_gain)
        load_sums = events.loads(atoms).sum(1, keepdims=True)
        least_events = self.least * (~codes.any(1, keepdims=True) & (load_sums > 0))
        codes = to_tensor(
            codes + least_events / np.where(load_sums > 0, load_sums, 1.0)
        )
        return (codes if exposure is None else codes / exposure.cpu()).to(x)


def _events_of(samples):  # Samples -> Events
    # Convert a batch of rows. Its targets (exposures) do not matter to the solver.
    arrays = samples.map(lambda part: to_numpy(part.double()))
    return alternate.Events.of(arrays.x, arrays.mask, arrays.weight)


def _read_events(source):  # -> Events, int
    """Read all rows of a fit, and merge equal rows into one row with the sum of their weights.

    ``source`` is a `Table`, a `Stream` or `Samples`. Return the `Events` of the distinct rows, and
    the number of rows read that have a weight above 0, copies included.

    Rows must be merged before entries are hidden and rows held out: otherwise a visible copy would
    reveal the noise of a hidden copy.
    """
    parts = []
    keys = []
    for batch in source.blocks(4096):
        parts.append(_events_of(batch))
        keys.append(hash_rows(with_gaps(batch.x.double(), batch.mask)))
    events = alternate.Events.joined(parts)
    weights = to_tensor(events.row_weights[:, 0])
    rows, weights, merged_index = merge_copies(torch.cat(keys), weights)
    events = events.take(to_numpy(rows))
    events = replace(events, row_weights=to_numpy(weights)[:, None])
    return events, int((merged_index >= 0).sum())


def _asked(learner, weight_unit=1.0):  # -> Chosen
    """Return the user's parameters of a `PoissonNMF` that may be "auto", as `choose` takes them.

    ``alpha`` is divided by ``weight_unit``, a float by which a fit also divides the weights of
    rows. A ``dispersion`` of None becomes 0.
    """
    alpha = learner.alpha if learner.alpha == "auto" else learner.alpha / weight_unit
    return choose.Chosen(
        alpha, learner.dispersion or 0.0, learner.min_gain, weight_unit
    )


class _Phases(Run):
    """A fit of `PoissonNMF`: choices of parameters, then alternation between codes and atoms.

    A phase is one stage of the fit, a generator function ``phase(record)`` that yields new records,
    see `skpudle._fit.run`. A record is a `Fitted`, the results so far; its field ``coding`` is a
    `Chosen`. `table` lists the phases.

    Weights of rows, and ``alpha``, are divided by a mean weight of the distinct rows (the sum of
    the squared weights over the sum of the weights), so that choices do not depend on the unit of
    weights.
    """

    # Read all rows, warn of data that are no counts, and set what the phases use: ``events`` (the
    # distinct rows), ``asked`` (the user's parameters, a `Chosen`), ``fixed`` (the known atoms, of
    # sum 1), ``n_updates`` (the largest number of steps), ``n_samples`` (the number of rows of the
    # input with a weight above 0) and ``seed``. Arguments are those of `Run`: ``X`` and ``y`` are
    # the user's input, ``began`` is the time when `fit` was called, and ``data`` holds what was
    # read of the input.
    def __init__(self, learner, X, y, began, plan, data):
        super().__init__(learner, X, y, began, plan, data)
        self.x = data.samples.x
        self.n_updates = 1000 if learner.max_iter == "auto" else learner.max_iter
        events, n_read = _read_events(data.source)
        self.n_samples = n_read
        if data.merged_index is not None:
            self.n_samples = int((data.merged_index >= 0).sum())
        unknown = np.flatnonzero(
            events.missing.sum(0) == len(events.row_weights)
        ).tolist()
        messages.warn_of_unknown_features(unknown, data.inputs.get("feature_names_in_"))
        if 0 < events.counts.max() < 1:
            messages.warn(
                "All values of X are below 1: fractions are not counts of events, whose noise "
                "follows from their size. Pass counts, or fractions times numbers of events."
            )
        weight_unit = float(
            np.square(events.row_weights).sum() / events.row_weights.sum()
        )
        self.asked = _asked(learner, weight_unit)
        self.events = replace(events, row_weights=events.row_weights / weight_unit)
        self.seed = self.generator.initial_seed()
        self.fixed = np.empty((0, self.x.shape[1]))
        if learner.fixed_components is not None:
            atoms = self._check_atoms(
                learner.fixed_components, None, "fixed_components"
            )
            check_non_negative(atoms, "fixed_components")
            self.fixed = atoms / atoms.sum(1, keepdims=True)

    # Check n atoms (None for any number) that the user has passed as the parameter ``name``.
    def _check_atoms(self, atoms, n, name):  # -> (n, n_features), float64
        return to_numpy(arrays.given_atoms(atoms, n, self.x.double(), name))

    def first(self):  # -> Fitted
        """Return the record before all phases: initial atoms, and defaults for "auto".

        With ``dict_init="search"`` the atoms come from pure rows, see `first_atoms`. With
        ``n_components="auto"`` the phase "size" replaces these atoms.

        Raises
        ------
        ValueError
            If ``n_components``, ``dict_init``, ``fixed_components`` and the rows contradict each
            other.
        """
        n = self.learner.n_components
        start = self.learner.dict_init
        n_fixed = len(self.fixed)
        n_rows = len(self.events.row_weights)
        is_search = isinstance(start, str)
        messages.refuse(
            n == "auto" and (not is_search or n_rows < _LEAST_ROWS_OF_AUTO),
            "n_components='auto' finds atoms itself, and holds out a quarter of the rows: got "
            f"dict_init={start!r:.50}, and {n_rows} rows that differ. Pass a number, or "
            f"dict_init='search' and {_LEAST_ROWS_OF_AUTO} rows or more.",
        )
        n_new = 1 if n == "auto" else (n or self.x.shape[1]) - n_fixed
        messages.refuse(
            n_new < 0,
            f"n_components={n} counts the {n_fixed} fixed_components, too. Pass a number from "
            f"{n_fixed} on.",
        )
        if is_search:
            new = alternate.first_atoms(self.events, n_new, self.fixed)
            messages.warn_of_few_samples(
                self.n_samples, 1 if n == "auto" else n_fixed + n_new
            )
        else:
            new = self._check_atoms(start, n and n_new, "dict_init")
        rows = to_tensor(np.concatenate([self.fixed, new])).to(self.x)
        return Fitted(atoms=rows, coding=self.asked.without_data())

    def table(self, fitted):  # -> tuple of Phase
        """Return the phases of the fit, in their order: "size", "prior" and "training".

        "size" runs only with ``n_components="auto"``. ``fitted`` has no effect.
        """
        is_auto = self.learner.n_components == "auto"
        return (
            Phase("size", self.choose_size, is_auto),
            Phase("prior", self.choose),
            Phase("training", self.train, epoch_name="epoch"),
        )

    def choose_size(self, fitted):
        """Choose the number of atoms: the phase "size", which yields one record.

        The record has new atoms of the chosen number, ``fixed_components`` first, and
        ``size_path``, the numbers that were tried. The atoms of the record ``fitted`` are not used.
        """
        rng = np.random.default_rng(self.seed)
        atoms, path = choose.choose_size(self.events, self.asked, rng, self.fixed)
        if len(atoms) == 1:
            messages.warn(
                "n_components='auto' is 1: more atoms predict hidden counts no better than the "
                "mean spectrum. Pass a number to fit more atoms."
            )
        yield replace(fitted, atoms=to_tensor(atoms), size_path=path)

    def choose(self, fitted):
        """Choose the dispersion, alpha and min_gain: the phase "prior", which yields one record.

        The record has the choices in ``coding``, and atoms that have adapted to them. The number of
        atoms stays that of the record ``fitted``.
        """
        atoms = to_numpy(fitted.atoms.double())
        rng = np.random.default_rng(self.seed)
        chosen, atoms = choose.choose_prior(
            self.events, self.asked, rng, atoms, len(self.fixed)
        )
        yield replace(fitted, atoms=to_tensor(atoms), coding=chosen)

    def train(self, fitted):
        """Alternate between codes and atoms: the phase "training"; yield a record after each step.

        The weights of entries, and the atoms that a sparse row may use, follow from the atoms
        before the first step, and stay the same in all steps. Every record holds these atoms in
        ``training["first"]``, and the `Progress` in ``training["state"]``: so a fit that resumes
        from a checkpoint computes the same weights again, and goes on from the state.
        """
        chosen = fitted.coding
        resumed = fitted.training
        # the atoms before the first step
        atoms = host_array(resumed.get("first", fitted.atoms.double()))
        codes, events = alternate.solve_dispersed(self.events, atoms, chosen.dispersion)
        if chosen.min_gain:
            # Rows are sparse: in all steps a row may use only the atoms of these codes.
            codes = alternate.prune_codes(events, atoms, codes, chosen.min_gain)
            events = replace(events, allowed=codes > 0)
        if resumed:  # the record comes from a checkpoint
            state = alternate.Progress(*map(host_array, resumed["state"]))
        else:
            start = alternate.begin(events, atoms, len(self.fixed))
            state = alternate.advance(events, start, chosen.alpha)
        while True:
            n_steps = len(state.losses)
            ended_by = fitted.ended_by
            if ended_by is None and state.has_stalled(self.learner.tol, PATIENCE):
                ended_by = "tol"
            if ended_by is None and n_steps >= self.n_updates:
                ended_by = "max_iter"
            tensors = (to_tensor(v) if isinstance(v, np.ndarray) else v for v in state)
            yield replace(
                fitted,
                atoms=to_tensor(state.atoms),
                training={"first": to_tensor(atoms), "state": tuple(tensors)},
                losses=state.losses,
                is_done=ended_by is not None,
                ended_by=ended_by,
                note=f"alternation, epoch {n_steps}/{self.n_updates}  "
                f"loss {state.losses[-1]:.6g}",
            )
            state = alternate.advance(events, state, chosen.alpha)


@sets_parameters(
    dict_init=[StrOptions({"search"}), *ATOMS], fixed_components=["array-like"]
)
class PoissonNMF(ExposedTransformer, PhasedLearner):
    r"""Non-negative matrix factorization of counts whose sources add.

    By default `fit` searches for the atoms, hidden counts decide how smooth they are, and residuals
    estimate the variation beyond Poisson's. `transform` returns how many events of a row come from
    each atom. A count has the expectation

    .. math:: \mu_{ij} = e_i \sum_k z_{ik} d_{kj} ,

    with exposures e, codes z and atoms d that are not negative. Atoms sum to 1.
    :doc:`/guide/counts` says how "auto" decides.

    Parameters
    ----------
    n_components : int or "auto", default=None
        Number of atoms: by default that of ``dict_init``, or of features. "auto": the fewest that
        predict hidden entries within a standard error of the best. Long growth stops and warns.

    alpha : float or "auto", default="auto"
        Strength of each atom's Dirichlet prior: pseudo-events per feature, in the shape of the mean
        spectrum. "auto" is the largest number that predicts within half a standard error of the
        best.

    dispersion : float, "auto" or None, default="auto"
        Variation beyond Poisson's: the variance is ``mu + dispersion * mu**2``. "auto" estimates it
        from residuals. None is 0.

    min_gain : float or "auto", default="auto"
        In `fit` a row uses an atom only if it raises the row's log-likelihood by this many nats.
        "auto" is 3 if hidden entries then lose at most .0005 of their deviance beyond chance, and
        ``alpha`` is positive, else 0.

    max_iter : int or "auto", default="auto"
        Largest number of steps of the alternation; "auto" is 1000.

    tol : float or None, default=1e-6
        Five steps in a row with less relative improvement end the fit. None: ``max_iter`` steps.

    dict_init : "search", array-like or learner, default="search"
        Initial atoms: rows with events of few atoms, an array, or a fitted learner.

    fixed_components : array-like of shape (n_fixed, n_features), default=None
        Known atoms, which come first in ``components_`` and do not change. ``n_components`` counts
        them, and ``dict_init`` has the remaining atoms.

    transform_min_gain : float, default=0.0
        ``min_gain`` of `transform` and `score`. 6 suits known spectra, of which a row has few.

    random_state : int, RandomState instance or None, default=None
        Determines which entries and rows are hidden while parameters are chosen.

    verbose : int, default=0
        Whether to print a line per step, and the `summary`.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        The atoms, one per row, each of sum 1.

    alpha_, dispersion_, min_gain_ : float
        The values of ``alpha``, ``dispersion`` and ``min_gain`` in use.

    size_path_ : Bunch
        Numbers of atoms that ``n_components="auto"`` tried, as arrays: ``n_components``, ``score``
        (explained share of the deviance of hidden entries, less .0005 an atom), ``objective``, and
        ``tolerance`` (standard error of the distance from the best score).

    n_components_, n_features_in_, n_samples_seen_, n_iter_, n_steps_ : int
        Numbers of atoms, features, rows, steps of `fit`, and updates of the atoms.

    feature_names_in_ : ndarray of shape (n_features,)
        Names of features, if ``X`` has names.

    loss_curve_ : ndarray of shape (n_iter,)
        Half the mean deviance of rows, before each step changes the atoms.

    ended_by_ : str
        Cause of the end of `fit`: "tol", "max_iter", "callback" or "interrupt" (Ctrl-C).

    phases_, fit_seconds_ : dict
        Steps of the "alternation"; seconds of "fit", "reading", "size", "prior", "training" and
        "result".

    See Also
    --------
    CountDictionaryLearning : Effects that multiply.
    sklearn.decomposition.NMF : The same likelihood without a prior.

    Notes
    -----
    A fit runs on the CPU, and holds all nonzero counts in memory. Codes of `transform` are exact to
    1e-5 nats.

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

    def __init__(
        self,
        n_components: int | Literal["auto"] | None = None,
        *,
        alpha: float | Literal["auto"] = "auto",
        dispersion: float | Literal["auto"] | None = "auto",
        min_gain: float | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 1e-6,
        dict_init: Any = "search",
        fixed_components: OfRows = None,
        transform_min_gain: float = 0.0,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        """Declare the parameters; `sets_parameters` writes the constructor from this signature."""

    # The base classes read these attributes; other learners have the loss and the device as
    # parameters. `_largest` is the largest value that data may have, `_loss` computes the loss, and
    # `_phases` is the class that runs a fit.
    loss = "kullback-leibler"
    device = "cpu"
    _largest = inf
    _loss = KullbackLeibler()
    _phases = _Phases

    # The fitted attributes of a record ``fitted``, for `fit`, its callbacks and
    # `from_components`. ``fitted.coding`` holds alpha over the unit of weights, see `Chosen`.
    def _attributes(self, plan, data, fitted):  # -> dict of name to value
        n = len(fitted.losses)
        chosen = fitted.coding
        atoms = to_numpy(fitted.atoms.to(data.samples.x))
        return data.inputs | {
            "components_": atoms,
            "n_components_": len(atoms),
            "alpha_": float(chosen.weight_unit * chosen.alpha),
            "dispersion_": float(chosen.dispersion),
            "min_gain_": float(chosen.min_gain),
            "n_iter_": n,
            "n_steps_": n,
            "loss_curve_": np.array(fitted.losses),
            "ended_by_": fitted.ended_by,
            "size_path_": as_arrays(fitted.size_path),
            "phases_": fitted.ended_by and {"alternation": n},
            "n_samples_seen_": data.n_seen,
        }

    def _transform_encoder(self):
        self._validate_params()  # again, since a user may have set transform_min_gain after `fit`
        return _Encoder(self.transform_min_gain, self.dispersion_)

    @classmethod
    def from_components(cls, components: Any, **params: Any) -> Self:
        """Make a fitted learner from known atoms, such as reference spectra, without data.

        Parameters
        ----------
        components : array-like of shape (n_components, n_features), Tensor or learner
            Atoms as rows, not negative, or a fitted learner of this package, scikit-learn or
            SPORCO. Atoms are not scaled: codes are numbers of events only if atoms sum to 1.
        **params : dict
            Parameters of the learner.

        Returns
        -------
        PoissonNMF
            The learner, ready for `transform` and `score`.

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
        atoms = to_tensor(arrays.check_rows(arrays.dictionary_of(components)))
        check_non_negative(to_numpy(atoms), "components")
        learner = cls(len(atoms), **params)
        learner._validate_params()
        fitted = Fitted(atoms=atoms, coding=_asked(learner).without_data())
        data = Data(None, Samples(atoms), arrays.input_attributes(to_numpy(atoms)))
        take(learner, learner._attributes(None, data, fitted))
        return learner
