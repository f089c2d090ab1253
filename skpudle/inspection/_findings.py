"""Find faults of a fitted learner, and suggest remedies to the user: `findings`.

Each fault has a generator function, listed in `_FINDINGS`. The function takes a `CodedFit` and
yields a sentence for the user, or nothing if the fit does not have the fault.
"""

import warnings
from collections import Counter
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from skpudle._estimators import encode_samples, find_learner, read_samples
from skpudle._fit.encoders import centre
from skpudle._learners.convolutional.base import geometry_of
from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle._learners.supervised import TaskLearner
from skpudle._learners.transformer import DictionaryTransformer
from skpudle._units import LONG
from skpudle.inspection._support import atom_support, fit_same_model
from skpudle.metrics import atom_cosines, unit_atoms

# An atom counts as the copy of a single sample, or of a single event of a signal, only if this
# sample or event has more than this fraction of the sum of squared codes of the atom. Squared codes
# are compared since they are the weights of the samples in a least squares fit of the atom: above a
# half the single sample has more weight than all other samples together.
_SINGLE_FRACTION = 0.5

# Largest number of entries of the samples for which `_unsupported_atoms` runs. It is slow, since it
# fits a new learner to each half of the samples: for scikit-learn's digits (115,000 entries) each
# fit takes 2 s of one core.
_MOST_NUMBERS = 1_000_000

# Atoms without support are reported only if R^2 of hidden entries falls by at most this number
# without them. In data of 4 planted dictionaries superfluous atoms raise R^2 by less than 0.001; in
# 7 tables that ship with scikit-learn, and in a planted questionnaire, atoms without support raise
# R^2 by 0.08 or more.
_SUPERFLUOUS_GAIN = 0.01

# A number such as -999 counts as a stand-in for missing entries only if at least this fraction of
# all entries equals the number.
_MISSING_FRACTION = 0.01


class CodedFit(NamedTuple):
    """A fitted learner, with samples and their codes.

    Attributes
    ----------
    learner : estimator
        The fitted learner in the estimator that the user passed.
    params : dict
        Its parameters.
    loss : str
        The learner's loss: "gaussian", or a loss of counts. "kullback-leibler" has no penalty of
        codes.
    is_convolutional : bool
        Whether the learner's atoms are placed at positions of images or signals.
    X : array-like
        Samples as the learner gets them, after the earlier steps of a pipeline.
    samples : ndarray of shape (n_samples, n_features) or list of (n_channels, *size)
        The same as arrays with NaN for missing entries, images or signals as a list.
    table : ndarray of shape (n_samples, n_columns) or list of (n_channels, *size)
        Samples before the earlier steps of a pipeline, if these samples are numbers, else
        ``samples``.
    codes : ndarray of shape (n_codes, n_components)
        Signed codes: a row for each sample, or for each position in an image or signal.
    numbers : ndarray of shape (n_codes,)
        The number of the sample that each row of codes belongs to.
    """

    learner: Any
    params: dict
    loss: str
    is_convolutional: bool
    X: Any
    samples: Any
    table: Any
    codes: np.ndarray
    numbers: np.ndarray

    @property
    def n_atoms(self):
        return self.codes.shape[1]

    def name_atoms(self, indices):  # -> str, such as "3 of 10 atoms are"
        """Begin a sentence about the atoms with these indices."""
        n = len(indices)
        return f"{n} of {self.n_atoms} atoms {'is' if n == 1 else 'are'}"


def _penalty(fit):
    """Return the name of the parameter that sets the penalty of codes, and its value in the fit.

    Findings name this parameter to the user as the one to change. The value is a float; a penalty
    that the fit chose itself is read from ``alpha_``. A learned encoder (``separate_atoms``) has
    the penalty of its training, and does not use ``transform_alpha``.
    """
    params = fit.params
    is_learned = (
        params.get("separate_atoms") and params["transform_algorithm"] == "unfolded"
    )
    if params.get("transform_alpha") is not None and not is_learned:
        return "transform_alpha", params["transform_alpha"]
    name = "threshold" if "threshold" in params else "alpha"
    alpha = getattr(fit.learner, "alpha_", None)
    return name, float(np.mean(params.get(name, np.nan) if alpha is None else alpha))


def _values_for_missing(fit):
    """Report a number that stands for missing entries, such as -999.

    In a column the number is the smallest or the largest value, and farther from the nearest value
    than all other values are from each other. At least `_MISSING_FRACTION` of all entries equal it.
    Columns of at most three distinct values are not considered. ``totals`` counts, for each such
    number, the entries that equal it.
    """
    if fit.is_convolutional:
        return
    totals = Counter()
    for column in fit.table.T:
        values, counts = np.unique(column[np.isfinite(column)], return_counts=True)
        if len(values) > 3:
            gaps = np.diff(values)
            if gaps[0] > values[-1] - values[1]:
                totals[values[0]] += counts[0]
            if gaps[-1] > values[-2] - values[0]:
                totals[values[-1]] += counts[-1]
    del totals[0.0]  # zero is a value like all others: a species does not occur
    for value, count in totals.most_common(1):
        fraction = count / fit.table.size
        if fraction >= _MISSING_FRACTION:
            yield (
                f"{fraction:.1%} of the entries are exactly {value:.10g}, far from all other "
                "values. Pass NaN for them, if they are missing."
            )


def _unused_atoms(fit):
    """Report atoms that no code uses, if they are more than chance leaves unused.

    Suppose that a code uses each of p atoms with a probability of at least 1 / p. Then the
    probability that none of n codes uses an atom is at most (1 - 1 / p)^n < exp(-n / p), and chance
    leaves fewer than p exp(-n / p) atoms unused on average.
    """
    n, p = fit.codes.shape
    unused = np.flatnonzero(~fit.codes.any(axis=0))
    if p * np.exp(-n / p) < len(unused) < p:
        yield (
            f"{fit.name_atoms(unused)} unused by these {len(fit.samples)} samples: "
            f"n_components={p - len(unused)} would do."
        )


def _find_single(fit, reach):  # -> (n_single,), (n_components,)
    """Find atoms that are used almost only once: in one sample, or at one position of a signal.

    Return the indices of the atoms for which more than half of the sum of squared codes comes from
    rows near the atom's largest code, and for each of all atoms the row of its largest code. A row
    of codes is near if it belongs to the same sample and is fewer than ``reach`` rows away.
    """
    energies = np.square(fit.codes)
    rows = energies.argmax(axis=0)
    is_near = np.abs(np.arange(len(energies))[:, None] - rows) < reach
    is_near &= fit.numbers[:, None] == fit.numbers[rows]
    near_energies = (energies * is_near).sum(0)
    return np.flatnonzero(near_energies > _SINGLE_FRACTION * energies.sum(0)), rows


def _single_samples(fit):
    """Report atoms that copy a single sample, for learners of rows with the Gaussian loss.

    More than half of the sum of squared codes of the atom comes from the sample, and the squared
    cosine of atom and sample is above 0.9: the sample explains nine tenths of the atom's energy.
    """
    if fit.is_convolutional or fit.loss != "gaussian":
        return
    atoms = fit.learner.components_
    candidates, rows = _find_single(fit, 1)
    samples = unit_atoms(np.nan_to_num(fit.samples[rows]))
    cosines = np.abs((samples * unit_atoms(atoms)).sum(axis=1))
    single = candidates[cosines[candidates] > 0.9**0.5]
    if len(single):
        yield (
            f"{fit.name_atoms(single)} single samples: there are "
            f"{len(fit.samples) / len(atoms):.3g} samples to an atom. Learn fewer atoms, or from "
            "more samples; a larger alpha makes more of them, not fewer."
        )


def _single_events(fit):
    """Report atoms with more than half of the sum of squared codes at one position of one signal.

    Often the position has an artefact. An artefact is larger than all events, so that a fit gives
    it one atom or even all atoms.
    """
    learner = fit.learner
    if not fit.is_convolutional or np.size(learner.atom_shape) != 1:
        return
    (length,), (stride,) = geometry_of(learner)
    # Copies of an atom that overlap are one event. Copies overlap if they are fewer than ``length``
    # samples of the signal apart, that is, fewer than length / stride rows of codes.
    single, rows = _find_single(fit, -(-length // stride))
    if len(single):
        # Name the atom with the largest code, and the code's position in its signal: `searchsorted`
        # finds the first row of codes of the signal.
        atom = max(single, key=lambda k: abs(fit.codes[rows[k], k]))
        signal = fit.numbers[rows[atom]]
        start = stride * (rows[atom] - np.searchsorted(fit.numbers, signal))
        yield (
            f"{fit.name_atoms(single)} single events, such as atom {atom}: samples {start} to "
            f"{start + length - 1} of signal {signal}. Set them to NaN, and fit again, if this is "
            "an artefact."
        )


def _same_atoms(fit):
    """Report the first pair of atoms that are equal up to sign or shift, and how many pairs are.

    Atoms are compared up to sign unless codes are non-negative, and up to shift if the learner is
    convolutional.
    """
    # Two atoms count as equal if their cosine is above 0.99. Unit atoms then differ by less than
    # sqrt(2 - 2 * 0.99) = 14 % of their length, as much as noise that is 17 dB below the atoms.
    cosines = atom_cosines(fit.learner, fit.learner)
    largest = cosines if fit.params.get("positive_code") else np.abs(cosines)
    pairs = np.argwhere(np.tril(largest > 0.99, -1))
    more = "" if len(pairs) == 1 else f", and so are {len(pairs) - 1} pairs more"
    for one, other in pairs[:1]:
        cosine = f"a cosine of {cosines[one, other]:.3g}"
        yield f"Atoms {other} and {one} are the same, with {cosine}{more}: learn fewer atoms."


def _measure_gain(fit, n_fewer):  # -> float
    """Return how much better the learner's number of atoms predicts than ``n_fewer`` atoms.

    New learners with both numbers of atoms are fitted to one half of the samples. The result is the
    difference of their scores, which are R^2 of hidden entries, for the other half. No atoms have
    the score 0, that of column means.
    """
    rows = np.random.default_rng(0).permutation(len(fit.samples))
    first = fit.samples[rows[::2]]
    second = fit.samples[rows[1::2]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few samples for the atoms
        scores = [
            fit_same_model(fit.learner, first, 0, n).score(second) if n else 0.0
            for n in (fit.n_atoms, n_fewer)
        ]
    return scores[0] - scores[1]


def _unsupported_atoms(fit):
    """Report atoms that `atom_support` does not find in both halves of the samples.

    Unsupported atoms come from noise or from too few samples, or are superfluous, such as copies
    and sums of two atoms. But if data are dense sums of a few factors, as questionnaires are, no
    single atom is determined, and all atoms together predict. So atoms are reported only if a
    learner without them would predict hidden entries as well.

    The check runs only for a `PUDLEDictionaryLearning` (no subclass) with the Gaussian loss whose
    fit was neither interrupted nor diverged, for at least one sample per atom and at most
    `_MOST_NUMBERS` entries of samples.
    """
    learner = fit.learner
    if type(learner) is not PUDLEDictionaryLearning or fit.loss != "gaussian":
        return
    ended_by = getattr(learner, "ended_by_", None)
    has_ended = ended_by not in (None, "interrupt", "divergence")
    is_small = fit.n_atoms <= len(fit.samples) and fit.samples.size <= _MOST_NUMBERS
    if not (has_ended and is_small):
        return
    is_supported = atom_support(learner, fit.samples, random_state=0).supported
    unsupported = np.flatnonzero(~is_supported)
    if len(unsupported) and _measure_gain(fit, is_supported.sum()) <= _SUPERFLUOUS_GAIN:
        yield (
            f"{fit.name_atoms(unsupported)} not supported by these samples, "
            f"{unsupported.tolist()}: they are not found in both halves. Learn fewer atoms, or "
            "from more samples."
        )


def _dense_codes(fit):
    """Report codes with more nonzero entries than half the features or half the atoms.

    A code with fewer nonzero entries than half the features of a sample can be the unique sparsest
    code. A denser code never is, in any dictionary, since more atoms than features are linearly
    dependent (Donoho and Elad 2003). For a dictionary with fewer atoms than features, "sparse" is
    defined here as at most half the atoms. Numbers are means over samples; for images, features are
    pixels, and each position of an atom counts as a code. The loss "kullback-leibler" has no
    penalty that could make codes sparser, so its codes are not reported.
    """
    n_samples = len(fit.samples)
    n_features = sum(sample.size for sample in fit.samples) / n_samples
    n_codes = fit.codes.size / n_samples
    n_used = np.count_nonzero(fit.codes) / n_samples
    if fit.loss == "kullback-leibler" or n_used <= min(n_features, n_codes) / 2:
        return
    name, penalty = _penalty(fit)
    advice = f"raise {name} (now {penalty:.3g})"
    if fit.params.get("transform_algorithm") == "omp":
        advice = "lower transform_n_nonzero_coefs, or raise transform_alpha"
    yield (
        f"Codes are dense: {n_used / n_codes:.0%} of their entries are not zero, {n_used:.3g} "
        f"for a sample of {n_features:.0f} numbers. To make them sparse, {advice}."
    )


def _no_better_than_means(fit):
    """Report a model that explains no more than column means, or than the baseline, would.

    Learners of rows of this package are judged by their ``score``, the prediction of hidden
    entries, since codes of noise explain the entries they were fitted to. The ``score`` of a
    `TaskLearner` judges predicted labels or numbers instead. So for this and for learners of other
    packages squared residuals are compared with the squared residuals of the baseline. Samples are
    not judged if each has equal entries, such as samples of one feature.
    """
    learner = fit.learner
    if fit.is_convolutional or not np.ptp(fit.samples, axis=1).any():
        return
    rows = centre(learner, fit.samples.astype(np.float64))
    advice = "Learn fewer atoms, or from more samples; scale the data as in fit"
    least = np.nanmin(rows)
    is_positive = fit.params.get("positive_code") and fit.params.get("positive_dict")
    if is_positive and least < 0:
        advice = (
            "Codes and atoms are non-negative, and cannot make negative entries "
            f"(the least is {least:.3g}): pass positive_code=False"
        )
    elif fit.loss == "gaussian":
        advice += ", and features of several units by StandardScaler"
    if isinstance(learner, DictionaryTransformer) and not isinstance(
        learner, TaskLearner
    ):
        explained = learner.score(fit.X)
        measure = "R^2" if fit.loss == "gaussian" else "explained deviance"
        sentence = (
            "The model predicts hidden entries no better than column means: "
            f"{measure} is {explained:.2g}, and 0 for the means"
        )
    else:
        residuals = rows - fit.codes @ learner.components_
        explained = 1 - np.nansum(np.square(residuals)) / np.nansum(np.square(rows))
        sentence = (
            f"The fit is no better than the baseline: codes explain {explained:.2g} of what it "
            "leaves"
        )
    if not explained > 0:
        yield f"{sentence}. {advice}."


def _long_rows(fit):
    """Report few rows so long that they determine atoms and penalty: they have most of the energy.

    A fit that found ``outliers_`` has left them out, and is not reported. In any other fit rows of
    usual length get codes near zero. With 5 of 100 planted rows multiplied by 10 the error of the
    remaining rows is 1.0 times the noise instead of 0.39, and by 30 it is 10 times.
    """
    is_gaussian = fit.loss == "gaussian" and not fit.is_convolutional
    if not is_gaussian or getattr(fit.learner, "outliers_", None) is not None:
        return
    squares = np.nanmean(np.square(centre(fit.learner, fit.samples)), axis=1)
    is_long = squares > LONG**2 * np.nanmedian(squares)
    fraction = squares[is_long].sum() / squares.sum()
    # More than a tenth of the rows are no exception.
    if is_long.mean() <= 0.1 and fraction > 0.5:
        yield (
            f"{is_long.sum()} of {len(squares)} rows are over {LONG:g} times as long as the median "
            f"row, and have {100 * fraction:.0f} % of the sum of squares: atoms and penalties suit "
            "these rows. Remove them, or divide all rows by their norms."
        )


def _better_factors(fit):
    """Report a fit whose search predicted hidden entries worse than factor analysis does."""
    factors = getattr(fit.learner, "factor_score_", None)
    if factors is not None and factors.is_better:
        yield (
            f"Factor analysis with {factors.n_factors} factors predicts hidden entries better: R^2 "
            f"is {factors.score:.3f}, and {factors.atoms_score:.3f} for these atoms. If rows use "
            "most factors, as answers to questionnaires do, use "
            "sklearn.decomposition.FactorAnalysis."
        )


# All checks, in the order of the report. `findings` calls them only if some code is not zero: if
# all codes are zero, `atom_support` fails, and the other checks have nothing to compare.
_FINDINGS = (
    _values_for_missing,
    _unused_atoms,
    _single_samples,
    _single_events,
    _same_atoms,
    _unsupported_atoms,
    _dense_codes,
    _long_rows,
    _no_better_than_means,
    _better_factors,
)


def findings(estimator: Any, X: ArrayLike) -> list[str]:
    """Return the faults of a fitted learner and their remedies, as short texts.

    Parameters
    ----------
    estimator : estimator
        Fitted learner, with ``components_`` and ``transform``, or a pipeline or search with one.
    X : array-like
        Samples, as ``transform`` takes them. Pass the samples of `fit`: an atom that copies a
        sample is found only if the sample is among them.

    Returns
    -------
    list of str
        One text for each kind of fault, of a few sentences: the fault, and a remedy. The list is
        empty if there is no fault. Faults are: samples without known values, or all zero; codes
        that are all zero, or that have more nonzero entries than half the features or half the
        atoms; more unused atoms than chance leaves; atoms that copy single samples; atoms that
        repeat another atom (a cosine above 0.99); atoms of signals with more than half of the sum
        of their squared codes at one position of one signal, which is often an artefact; atoms that
        `skpudle.inspection.atom_support` does not support, unless hidden entries are predicted
        worse without them; few rows so long that they have most of the sum of squares; a model that
        predicts hidden entries no better than column means, or worse than factor analysis; a number
        such as -999 that stands for missing entries. ``summary()`` of a learner tells what
        the fit decided: its baseline, noise and outliers, and how it ended.

    Raises
    ------
    NotFittedError
        If no estimator in ``estimator`` is fitted.

    Notes
    -----
    The check by `skpudle.inspection.atom_support` takes as long as a fit with
    ``n_components="auto"``.
    It runs for a `skpudle.PUDLEDictionaryLearning` and samples of up to 1,000,000 entries. Call
    `skpudle.inspection.atom_support` for larger samples.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.inspection import findings
    >>> X = load_digits().data
    >>> learner = PUDLEDictionaryLearning(32, alpha=1e3, random_state=0).fit(X)
    >>> findings(learner, X)[0][:58]
    'All codes are zero: alpha=1e+03 is too large for these dat'
    """
    found_learner = find_learner(estimator)
    learner = found_learner.learner
    prepared = found_learner.prepare(X)
    samples = read_samples(learner, prepared)
    codes, numbers = encode_samples(learner, prepared)
    table = samples
    if found_learner.steps:
        # Samples before the steps may be text, or anything else that the steps turn into numbers.
        with suppress(TypeError, ValueError):
            table = read_samples(learner, X)
    fit = CodedFit(
        learner=learner,
        params=learner.get_params(),
        loss=getattr(learner, "loss", "gaussian"),
        is_convolutional=hasattr(learner, "atom_shape"),
        X=prepared,
        samples=samples,
        table=table,
        codes=codes,
        numbers=numbers,
    )
    if codes.any():
        return [sentence for check in _FINDINGS for sentence in check(fit)]
    if not any(np.nan_to_num(sample).any() for sample in samples):
        return [
            "No value of these samples is known, or all are zero. Pass the samples of fit."
        ]
    name, penalty = _penalty(fit)
    return [
        f"All codes are zero: {name}={penalty:.3g} is too large for these data. Lower it."
    ]
