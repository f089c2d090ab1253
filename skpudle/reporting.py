"""Find faults of a fitted learner, and suggest the best remedy.

A finding is a function that takes a learner and its codes and returns a sentence, or None without a
fault. A comment at each threshold has its reason.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skpudle._data.images import sizes
from skpudle._fitted.learners import look_at, sample_numbers
from skpudle._learners.convolutional.transformer import stride_of
from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle._learners.units import centre
from skpudle._nmf.estimator import PoissonNMF
from skpudle.metrics import atom_support

__all__ = ["findings"]

# Cosine from which on two atoms count as the same. They then differ by less than sqrt(2 - 2 * 0.99)
# = 14 %, as by noise at 17 dB.
_SAME = 0.99

# An atom is a single sample if the sample has more than half of the energy of the atom's codes,
# which is its weight in least squares, and explains nine tenths of the energy of the atom.
_SINGLE_SHARE, _SINGLE_COSINE = 0.5, 0.9**0.5

# Most entries of samples for the finding that searches halves of the samples; for digits (115,000
# entries) each of its two searches takes 7 s of one core.
_MOST_NUMBERS = 1_000_000

# Least share of the energy of samples in an offset, and least standard deviation of the logarithms
# of noise variances of features if noise is unequal (.07 if it is equal).
_OFFSET, _UNEQUAL = 0.5, 0.5

# Values of ``ended_by_`` of fits that were cut short, which another finding reports.
_BROKEN = "interrupt", "divergence"


def _some(indices, n_atoms):
    """Count atoms in words: "3 of 10 atoms are"."""
    n = len(indices)
    return f"{n} of {n_atoms} atoms {'is' if n == 1 else 'are'}"


def _penalty(learner):  # -> name, value of the parameter, number in use
    name = "threshold" if hasattr(learner, "threshold") else "alpha"
    algorithm = getattr(learner, "transform_algorithm", "unfolded")
    learned = getattr(learner, "separate_atoms", False) and algorithm == "unfolded"
    if getattr(learner, "transform_alpha", None) is not None and not learned:
        name = "transform_alpha"
    given = getattr(learner, name, None)
    used = given if name == "transform_alpha" else getattr(learner, "alpha_", given)
    return name, given, float("nan") if used is None else float(np.mean(used))


def _pursues(learner):
    return getattr(learner, "transform_algorithm", None) == "omp"


def _is_additive(learner):
    return isinstance(learner, PoissonNMF)


def _is_gaussian(learner):
    return getattr(learner, "loss", "gaussian") == "gaussian"


def _centred(look):  # -> samples (n, n_features) less the baseline, what codes leave of them
    samples = centre(look.learner, np.stack(look.samples).astype(np.float64))
    return samples, samples - look.codes @ look.learner.components_


def _searches(learner):
    start = getattr(learner, "dict_init", None)
    return isinstance(start, str) and start == "search"


def _or_automatic(learner):
    """Return advice to let the data choose the penalty, for learners that can."""
    name, given, _ = _penalty(learner)
    if name == "transform_alpha":
        return ", or pass None for the penalty of fit"
    automatic = given != "auto" and hasattr(learner, "alpha_")
    return f", or pass {name}='auto', which follows the data" if automatic else ""


def _sparser(learner):
    """Return advice for sparser codes."""
    if _pursues(learner):
        return "lower transform_n_nonzero_coefs, or raise transform_tol"
    name, given, used = _penalty(learner)
    if given == "auto":
        return f"raise {name}, at first to twice what 'auto' chose, {2 * used:.3g}"
    return f"raise {name} (now {used:.3g}){_or_automatic(learner)}"


def _zero_codes(look):
    if look.codes.any() or not any(np.nan_to_num(sample).any() for sample in look.samples):
        return None
    name, _, used = _penalty(look.learner)
    too_large = f"All codes are zero: {name}={used:.3g} is too large for these data."
    return f"{too_large} Lower it{_or_automatic(look.learner)}."


def _few_samples(look):
    n, p = len(look.samples), look.codes.shape[1]
    if look.is_convolutional or n >= p:
        return None
    return (
        f"There {'is 1 sample' if n == 1 else f'are {n} samples'} for {p} atoms, which copy single "
        "samples, or have not been learned. Learn fewer atoms, or from more samples."
    )


def _unknown_features(look):
    if look.is_convolutional:
        return None
    unknown = np.flatnonzero(np.isnan(look.samples).all(axis=0))
    if not len(unknown):
        return None
    return (
        f"Features {unknown[:10].tolist()}{' ...' if len(unknown) > 10 else ''} have no known "
        "value in these samples, and atoms learn nothing there: leave them out."
    )


def _unused_atoms(look):
    """Report more unused atoms than chance leaves.

    With p atoms, one used for at least 1 / p of the codes is missed by all n samples with
    probability (1 - 1 / p)^n < exp(-n / p).
    """
    n, p = look.codes.shape
    unused = np.flatnonzero(~look.codes.any(axis=0))
    if not p * np.exp(-n / p) < len(unused) < p:
        return None
    has_penalty = not (_pursues(look.learner) or _is_additive(look.learner))
    looser = f", or lower {_penalty(look.learner)[0]}" if has_penalty else ""
    return (
        f"{_some(unused, p)} unused by these {len(look.samples)} samples: "
        f"n_components={p - len(unused)} would do{looser}."
    )


def _single_samples(look):
    learner, p = look.learner, look.codes.shape[1]
    if look.is_convolutional or not _is_gaussian(learner) or _few_samples(look):
        return None
    energies = np.square(look.codes)
    largest = energies.argmax(axis=0)
    own = energies.max(axis=0, initial=0) > _SINGLE_SHARE * energies.sum(axis=0)
    samples = np.nan_to_num([look.samples[row] for row in largest])
    products = np.abs((samples * learner.components_).sum(axis=1))
    norms = np.linalg.norm(samples, axis=1) * np.linalg.norm(learner.components_, axis=1)
    single = np.flatnonzero(own & (products > _SINGLE_COSINE * norms))
    if not len(single):
        return None
    return (
        f"{_some(single, p)} single samples: there are {len(look.samples) / p:.3g} samples to an "
        "atom. Learn fewer atoms, or from more samples; a larger alpha makes more of them, not "
        "fewer."
    )


def _single_events(look):
    """Report atoms of signals that have most of their energy at one place.

    An artefact is larger than all events: a search gives it an atom, or all of them.
    """
    learner = look.learner
    if not look.is_convolutional or np.size(learner.atom_shape) != 1:
        return None
    energies, signals = np.square(look.codes), sample_numbers(learner, look.raw)
    (length,), (stride,) = sizes(learner.atom_shape, 1), stride_of(learner)
    reach = -(-length // stride)  # copies that overlap
    single = []
    for atom, energy in enumerate(energies.T):
        place = energy.argmax()
        near = np.arange(max(0, place - reach + 1), min(len(energy), place + reach))
        near = near[signals[near] == signals[place]]
        if energy[near].sum() > _SINGLE_SHARE * energy.sum():
            single.append((atom, place))
    if not single:
        return None
    atom, place = max(single, key=lambda pair: energies[pair[1], pair[0]])
    signal = signals[place]
    start = stride * (place - np.flatnonzero(signals == signal)[0])
    return (
        f"{_some(single, energies.shape[1])} single events: more than half of the energy of atom "
        f"{atom} is at one place, samples {start} to {start + length - 1} of signal {signal}. If "
        "this is an artefact, set these samples to NaN, or leave this signal out, and fit again."
    )


def _cosines(look):  # yields (n_components,) for each atom, the largest over all shifts
    atoms = look.learner.components_.astype(np.float64, copy=False)
    flat = atoms.reshape(len(atoms), -1)
    norms = np.linalg.norm(flat, axis=1)
    atoms = atoms / np.where(norms > 0, norms, 1).reshape(-1, *[1] * (atoms.ndim - 1))
    either = (lambda x: x) if getattr(look.learner, "positive_code", False) else np.abs
    if not look.is_convolutional:
        for atom in atoms:
            yield either(atoms @ atom)
        return
    axes = tuple(range(1, 1 + np.size(look.learner.atom_shape)))
    size = [2 * atoms.shape[axis] for axis in axes]
    spectra = np.fft.rfftn(atoms, size, axes)
    for spectrum in spectra.conj():
        products = np.fft.irfftn(spectra * spectrum, size, axes)
        products = products if atoms.ndim == 1 + len(axes) else products.sum(axis=-1)
        yield either(products).max(axis=axes)


def _same_atoms(look):
    pairs = [
        (i, j)
        for i, cosines in enumerate(_cosines(look))
        for j in np.flatnonzero(cosines[:i] > _SAME).tolist()
    ]
    if not pairs:
        return None
    learner, (i, j) = look.learner, pairs[0]
    up_to = [] if getattr(learner, "positive_code", False) else ["sign"]
    up_to += ["shift"] if look.is_convolutional else []
    up_to = f" up to {' and '.join(up_to)}" if up_to else ""
    others = "" if len(pairs) == 1 else f", and so are {len(pairs) - 1} pairs more"
    can_search = not (look.is_convolutional or _searches(learner))
    fix = "dict_init='search' leaves none such, or learn" if can_search else "learn"
    return f"Atoms {j} and {i} are the same{up_to}{others}: {fix} fewer atoms."


def _unsupported_atoms(look):
    """Report atoms that searches of halves of the samples do not both find.

    Unsupported atoms are of noise or of too few samples, or superfluous: copies, and sums of two.
    """
    learner, p = look.learner, look.codes.shape[1]
    if (
        look.is_convolutional
        or type(learner) is not PUDLEDictionaryLearning
        or getattr(learner, "ended_by_", "interrupt") in _BROKEN  # None: given atoms, no fit
        or learner.loss != "gaussian"
        or _few_samples(look)  # another finding reports these
        or len(look.samples) * learner.n_features_in_ > _MOST_NUMBERS
    ):
        return None
    unsupported = np.flatnonzero(~atom_support(learner, np.stack(look.samples)).supported)
    if not len(unsupported):
        return None
    if len(unsupported) == p:
        return (
            f"None of the {p} atoms is supported by these samples: searches of both halves find no "
            "atoms in common above chance that noise would not have. Learn from more samples."
        )
    return (
        f"{_some(unsupported, p)} not supported by these samples, {unsupported.tolist()}: searches "
        "of both halves do not find such atoms, or find what other atoms of the learner are nearer "
        "to. Learn fewer atoms (n_components='auto' chooses the number), or from more samples."
    )


def _dense_codes(look):
    """Report codes with more nonzero entries than half the numbers of a sample, or half the atoms.

    A sparser code can be the unique sparsest one. A denser one never is, in any dictionary, since
    more atoms than a sample has numbers are linearly dependent (Donoho and Elad 2003). The bound by
    the atoms defines sparse for dictionaries with fewer atoms than numbers.
    """
    if _is_additive(look.learner):  # PoissonNMF has no penalty to raise
        return None
    n_samples = len(look.samples)
    n_numbers = np.mean([sample.size for sample in look.samples])
    n_entries, used = look.codes.size / n_samples, np.count_nonzero(look.codes) / n_samples
    if used <= min(n_numbers, n_entries) / 2:
        return None
    return (
        f"Codes are dense: {used / n_entries:.0%} of their entries are not zero, {used:.3g} for a "
        f"sample of {n_numbers:.0f} numbers. To make them sparse, {_sparser(look.learner)}."
    )


def _no_better_than_the_baseline(look):
    """Report a fit that explains no more than its baseline, which has no codes.

    For least squares the baseline is zero. For counts it is their mean rates, compared on held-out
    entries, since codes of noise explain the entries that they were fitted to.
    """
    learner = look.learner
    if not _is_gaussian(learner):
        if any(np.isnan(sample).any() for sample in look.samples) and look.is_convolutional:
            return None  # `score` does not support the learner
        explained = learner.score(look.X)
        if explained > 0 or not any(np.ptp(sample) for sample in look.samples):
            return None
        return (
            "The fit is no better than the baseline: hidden entries are predicted no better by "
            f"codes than by mean rates (score {explained:.2g}). Learn fewer atoms, or from more "
            f"samples{'' if _is_additive(learner) else f', or {_sparser(learner)}'}."
        )
    if look.is_convolutional:
        return None
    samples, left = _centred(look)
    if np.nansum(np.square(left)) <= np.nansum(np.square(samples)):
        return None
    return (
        "The fit is no better than the baseline: reconstructions are farther from the samples than "
        "zero is. Scale the data as in fit, or lower step_size or learning_rate and fit "
        "again."
    )


def _outlying_entries(look):
    """Report the number of entries that `fit` left out."""
    outliers = getattr(look.learner, "outliers_", None)
    if outliers is None:
        return None
    of_rows = outliers.sum(1)  # of a sparse array
    are_whole = of_rows == outliers.shape[1]
    n_rows, n_entries = int(are_whole.sum()), int(of_rows[~are_whole].sum())
    found = []
    if n_rows:
        found.append(f"No atom predicts {n_rows} rows, and fit left them out.")
    if n_entries:
        share = n_entries / np.prod(outliers.shape)
        found.append(
            f"{n_entries} entries ({share:.2g} of all) are far from the rest of their rows, and "
            "fit treated them as missing."
        )
    return " ".join([*found, "See outliers_. Pass noise='equal' to use all data alike."])


def _offset(look):
    """Report an offset of the samples if the learner has ``fit_intercept=False``."""
    learner = look.learner
    if not isinstance(learner, PUDLEDictionaryLearning) or learner.fit_intercept is not False:
        return None
    samples = np.stack(look.samples).astype(np.float64)
    mean, energy = np.nanmean(samples, axis=0), np.nanmean(np.square(samples), axis=0).sum()
    share = np.nansum(np.square(mean)) / energy if energy else 0.0
    if share < _OFFSET:
        return None
    return (
        f"Samples have an offset: their mean has {share:.0%} of the energy, and fit_intercept="
        f"False. Pass fit_intercept={True if learner.positive_code else 'auto'!r}."
    )


def _unequal_noise(look):
    """Report residuals that differ between features where noise is taken for equal."""
    learner = look.learner
    if not isinstance(learner, PUDLEDictionaryLearning) or learner.loss != "gaussian":
        return None
    if not isinstance(learner.noise, str) or learner.noise != "equal":
        return None
    squares = np.nanmean(np.square(_centred(look)[1]), axis=0)
    squares = squares[squares > 0]
    if len(squares) < 2 or np.log(squares).std() < _UNEQUAL:
        return None
    low, high = np.quantile(np.sqrt(squares), [0.1, 0.9])
    return (
        f"Residuals of features differ by a factor of {high / low:.3g}, and noise='equal' weighs "
        "them alike. Pass noise='auto', or 'features'."
    )


def _early_end(look):
    learner, parameters = look.learner, look.learner.get_params()
    ended_by = getattr(learner, "ended_by_", None)
    if ended_by == "interrupt":
        return (
            f"Training was interrupted after {learner.n_steps_} updates: fit again. With a "
            "Checkpoint among its callbacks a fit resumes where it stopped."
        )
    if ended_by == "divergence":
        return (
            "Training diverged, and these are the last finite atoms: lower "
            f"learning_rate (now {learner.learning_rate}; with the surrogate, raise batch_size "
            "instead) or step_size, or scale the data."
        )
    if ended_by != "max_iter" or getattr(learner, "tol", None) is None:
        return None
    searched = _searches(learner) and parameters.get("loss") == "gaussian"
    if searched and learner.max_iter == "auto":
        return None  # the fit trains after the search while this pays
    said = f"Training ended at max_iter={learner.max_iter!r}, before it had converged: "
    if searched:
        return said + "leave it at 'auto', or raise it."
    optimizer = parameters.get("optimizer", "auto")
    if not look.is_convolutional and optimizer not in ("auto", "surrogate"):
        return said + "raise it, or pass optimizer='surrogate', which needs fewer updates."
    return said + "raise it."


# findings that apply only if some code is not zero
_FINDINGS = (
    _few_samples,
    _unknown_features,
    _unused_atoms,
    _single_samples,
    _single_events,
    _same_atoms,
    _unsupported_atoms,
    _dense_codes,
    _no_better_than_the_baseline,
    _offset,
    _unequal_noise,
    _outlying_entries,
    _early_end,
)


def findings(estimator: Any, X: ArrayLike) -> list[str]:
    """Return faults of a fitted learner, in words, and remedies.

    Parameters
    ----------
    estimator : estimator
        Fitted learner, with ``components_`` and ``transform``, or a pipeline or search with one.
    X : array-like
        Samples, as `transform` takes them. Pass the samples of `fit`: atoms that copy a sample are
        found only with it.

    Returns
    -------
    list of str
        Sentences, empty without a fault. They report: samples or features without known values;
        codes that are all zero, or more than half as long as samples; fewer samples than atoms;
        atoms that are unused (more than chance leaves), copy single samples, have most of their
        energy at one place of a signal, as of an artefact, repeat an atom (a cosine above 0.99), or
        are not supported by `skpudle.metrics.atom_support`; a fit that explains
        no more than its baseline; an offset or unequal residuals of features where
        ``fit_intercept=False`` or ``noise="equal"`` ignores them; entries that `fit` treated as
        outliers; training that ended before it had converged.

    Notes
    -----
    The support of atoms takes two searches, as long as a fit with ``n_components="auto"``. It is
    tested after `fit` of `skpudle.PUDLEDictionaryLearning` with the loss "gaussian", for samples of
    up to 1,000,000 numbers. Call `skpudle.metrics.atom_support` for larger ones.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.reporting import findings
    >>> X = load_digits().data
    >>> learner = PUDLEDictionaryLearning(32, alpha=1e3, random_state=0).fit(X)
    >>> findings(learner, X)[0][:58]
    'All codes are zero: alpha=1e+03 is too large for these dat'
    """
    look = look_at(estimator, X)
    if all(np.isnan(sample).all() for sample in look.samples):
        return ["No value of these samples is known: all are NaN. Pass samples with known values."]
    if zero := _zero_codes(look):
        return [zero]
    return [sentence for finding in _FINDINGS if (sentence := finding(look))]
