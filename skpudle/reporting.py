"""Find faults of a fitted learner, and suggest remedies to the user: `findings`.

Each fault has a generator function, listed in `_FINDINGS`. The function takes a `Bunch`, ``look``,
and yields a sentence for the user, or nothing if the learner does not have the fault. It must not
change ``look``, which all functions share. `findings` makes the `Bunch`, with the entries

- ``learner``, the fitted learner in the estimator that the user passed, and ``params``, the dict of
  its parameters;
- ``loss``, the learner's loss: "gaussian", or a loss of counts, of which "kullback-leibler" has no
  penalty of codes;
- ``is_convolutional``, whether the learner's atoms are placed at positions of images or signals;
- ``X``, samples as the learner gets them, after the earlier steps of a pipeline, and ``samples``,
  the same as arrays with NaN for missing entries: (n_samples, n_features), or for a convolutional
  learner a list of (n_channels, *size);
- ``codes``, an array (n_codes, n_components) of signed codes, with a row for each sample, or for
  each position in an image or signal, and ``numbers``, (n_codes,), the number of the sample that
  each row of codes belongs to.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch

from skpudle._estimators import encode_samples, find_learner, read_samples
from skpudle._fit.encoders import centre
from skpudle._learners.convolutional.base import geometry_of
from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle.metrics import atom_cosines, atom_support, unit_atoms

__all__ = ["findings"]

# An atom counts as the copy of a single sample, or of a single event of a signal, only if this
# sample or event has more than this fraction of the sum of squared codes of the atom. Squared codes
# are compared since they are the weights of the samples in a least squares fit of the atom: above a
# half the single sample has more weight than all other samples together.
_SINGLE_SHARE = 0.5

# Largest number of entries of the samples for which `_unsupported_atoms` runs. It is slow, since it
# fits a new learner to each half of the samples: for scikit-learn's digits (115,000 entries) each
# fit takes 7 s of one core.
_MOST_NUMBERS = 1_000_000


def _some(indices, n_atoms):
    """Begin a sentence about the atoms of these numbers, for example with "3 of 10 atoms are"."""
    n = len(indices)
    return f"{n} of {n_atoms} atoms {'is' if n == 1 else 'are'}"


def _penalty(look):
    """Return the name of the parameter that sets the penalty of codes, and its value in the fit.

    Findings name this parameter to the user as the one to change. ``look`` is the `Bunch` of the
    module docstring. The value is a float; a penalty that the fit chose itself is read from
    ``alpha_``.
    """
    params = look.params
    learned = (
        params.get("separate_atoms") and params["transform_algorithm"] == "unfolded"
    )
    if params.get("transform_alpha") is not None and not learned:
        return "transform_alpha", params["transform_alpha"]
    name = "threshold" if "threshold" in params else "alpha"
    return name, float(
        np.mean(getattr(look.learner, "alpha_", params.get(name, np.nan)))
    )


def _unused_atoms(look):
    """Report atoms that no code uses, if they are more than chance leaves unused.

    Suppose that a code uses each of p atoms with a probability of at least 1 / p. Then the
    probability that none of n codes uses an atom is at most (1 - 1 / p)^n < exp(-n / p), and chance
    leaves fewer than p exp(-n / p) atoms unused on average. ``look`` is the `Bunch` of the module
    docstring.
    """
    n, p = look.codes.shape
    unused = np.flatnonzero(~look.codes.any(axis=0))
    if p * np.exp(-n / p) < len(unused) < p:
        yield (
            f"{_some(unused, p)} unused by these {len(look.samples)} samples: "
            f"n_components={p - len(unused)} would do."
        )


def _find_single(look, reach):  # -> (n_found,), (n_components,)
    """Find atoms that are used almost only once: in one sample, or at one position of a signal.

    Return the indices of the atoms for which more than half of the sum of squared codes comes from
    rows near the atom's largest code, and for each of all atoms the row of its largest code. A row
    of codes is near if it belongs to the same sample and is fewer than ``reach`` rows away.
    ``look`` is the `Bunch` of the module docstring.
    """
    energies = np.square(look.codes)
    numbers = look.numbers
    places = energies.argmax(axis=0)
    near = np.abs(np.arange(len(energies))[:, None] - places) < reach
    near &= numbers[:, None] == numbers[places]
    return np.flatnonzero(
        (energies * near).sum(0) > _SINGLE_SHARE * energies.sum(0)
    ), places


def _single_samples(look):
    """Report atoms that copy a single sample, for learners of rows with the Gaussian loss.

    More than half of the sum of squared codes of the atom comes from the sample, and the squared
    cosine of atom and sample is above 0.9: the sample explains nine tenths of the atom's energy.
    ``look`` is the `Bunch` of the module docstring.
    """
    if look.is_convolutional or look.loss != "gaussian":
        return
    atoms, (found, places) = look.learner.components_, _find_single(look, 1)
    samples = unit_atoms(np.nan_to_num(look.samples[places]))
    cosines = np.abs((samples * unit_atoms(atoms)).sum(axis=1))
    single = found[cosines[found] > 0.9**0.5]
    if len(single):
        yield (
            f"{_some(single, len(atoms))} single samples: there are "
            f"{len(look.samples) / len(atoms):.3g} samples to an atom. Learn fewer atoms, or from "
            "more samples; a larger alpha makes more of them, not fewer."
        )


def _single_events(look):
    """Report atoms with more than half of the sum of squared codes at one position of one signal.

    Often the position has an artefact. An artefact is larger than all events, so that a fit gives
    it one atom or even all atoms. ``look`` is the `Bunch` of the module docstring.
    """
    learner = look.learner
    if not look.is_convolutional or np.size(learner.atom_shape) != 1:
        return
    (length,), (stride,) = geometry_of(learner)
    # Copies of an atom that overlap are one event. They overlap if they are fewer than ``length``
    # samples of the signal apart, that is, fewer than length / stride rows of codes.
    found, places = _find_single(look, -(-length // stride))
    if len(found):
        atom = max(found, key=lambda k: abs(look.codes[places[k], k]))
        signal = look.numbers[places[atom]]
        start = stride * (places[atom] - np.searchsorted(look.numbers, signal))
        yield (
            f"{_some(found, look.codes.shape[1])} single events, such as atom {atom}: "
            f"samples {start} to {start + length - 1} of signal {signal}. Set them to NaN, and fit "
            "again, if this is an artefact."
        )


def _same_atoms(look):
    """Report the first pair of atoms that are equal up to sign or shift, and how many pairs are.

    Atoms are compared up to sign unless codes are non-negative, and up to shift if the learner is
    convolutional. ``look`` is the `Bunch` of the module docstring.
    """
    # Two atoms count as equal if their cosine is above 0.99. Unit atoms then differ by less than
    # sqrt(2 - 2 * 0.99) = 14 % of their length, as much as noise that is 17 dB below the atoms.
    cosines = atom_cosines(look.learner, look.learner)
    largest = cosines if look.params.get("positive_code") else np.abs(cosines)
    pairs = np.argwhere(np.tril(largest > 0.99, -1))
    more = "" if len(pairs) == 1 else f", and so are {len(pairs) - 1} pairs more"
    for one, other in pairs[:1]:
        cosine = f"a cosine of {cosines[one, other]:.3g}"
        yield f"Atoms {other} and {one} are the same, with {cosine}{more}: learn fewer atoms."


def _unsupported_atoms(look):
    """Report atoms that `atom_support` does not find in both halves of the samples.

    Unsupported atoms come from noise or from too few samples, or are superfluous, such as copies
    and sums of two atoms. The check runs only for a `PUDLEDictionaryLearning` (no subclass) with
    the Gaussian loss whose fit was neither interrupted nor diverged, for at least one sample per
    atom and at most `_MOST_NUMBERS` entries of samples. ``look`` is the `Bunch` of the module
    docstring.
    """
    learner = look.learner
    p = look.codes.shape[1]
    ended = getattr(learner, "ended_by_", "interrupt") not in (
        "interrupt",
        "divergence",
    )
    is_fit = type(learner) is PUDLEDictionaryLearning and look.loss == "gaussian"
    if not (
        is_fit
        and ended
        and len(look.samples) >= p
        and look.samples.size <= _MOST_NUMBERS
    ):
        return
    unsupported = np.flatnonzero(~atom_support(learner, look.samples).supported)
    if len(unsupported):
        yield (
            f"{_some(unsupported, p)} not supported by these samples, {unsupported.tolist()}: they "
            "are not found in both halves. Learn fewer atoms, or from more samples."
        )


def _dense_codes(look):
    """Report codes with too many nonzero entries: above half the features, or half the atoms.

    A code with fewer nonzero entries than half the features of a sample can be the unique sparsest
    code. A denser code never is, in any dictionary, since more atoms than features are linearly
    dependent (Donoho and Elad 2003). For a dictionary with fewer atoms than features, "sparse" is
    defined here as at most half the atoms. ``look`` is the `Bunch` of the module docstring.
    """
    n_samples = len(look.samples)
    n_numbers = sum(sample.size for sample in look.samples) / n_samples
    n_entries = look.codes.size / n_samples
    used = np.count_nonzero(look.codes) / n_samples
    if look.loss == "kullback-leibler" or used <= min(n_numbers, n_entries) / 2:
        return
    advice = "raise {} (now {:.3g})".format(*_penalty(look))
    if look.params.get("transform_algorithm") == "omp":
        advice = "lower transform_n_nonzero_coefs, or raise transform_alpha"
    yield (
        f"Codes are dense: {used / n_entries:.0%} of their entries are not zero, {used:.3g} for a "
        f"sample of {n_numbers:.0f} numbers. To make them sparse, {advice}."
    )


def _no_better_than_the_baseline(look):
    """Report a fit that explains no more of the samples than its baseline alone, without codes.

    For the Gaussian loss the baseline is the learner's intercept, and squared residuals of all
    entries are compared. For counts the baseline is the mean rate, and the learner's ``score``
    compares on held-out entries, since codes of noise explain the entries they were fitted to.
    ``look`` is the `Bunch` of the module docstring.
    """
    if look.is_convolutional or not np.ptp(look.samples, axis=1).any():
        return
    if look.loss == "gaussian":
        rows = centre(look.learner, look.samples.astype(np.float64))
        residuals = rows - look.codes @ look.learner.components_
        explained = 1 - np.nansum(np.square(residuals)) / np.nansum(np.square(rows))
    else:
        explained = look.learner.score(look.X)
    if not explained > 0:
        yield (
            f"The fit is no better than the baseline: codes explain {explained:.2g} of what it "
            "leaves. Scale the data as in fit, learn fewer atoms, or from more samples."
        )


# All checks, in the order of the report. `findings` calls them only if some code is not zero: if
# all codes are zero, `atom_support` fails, and the other checks have nothing to compare.
_FINDINGS = (
    _unused_atoms,
    _single_samples,
    _single_events,
    _same_atoms,
    _unsupported_atoms,
)
_FINDINGS += _dense_codes, _no_better_than_the_baseline


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
        `skpudle.metrics.atom_support` does not support; a fit that explains no more than its
        baseline. ``summary()`` of a learner says what the fit decided: its baseline, noise and
        outliers, and how it ended.

    Raises
    ------
    NotFittedError
        If no estimator in ``estimator`` is fitted.

    Notes
    -----
    The check by `skpudle.metrics.atom_support` takes as long as a fit with ``n_components="auto"``.
    It runs for a `skpudle.PUDLEDictionaryLearning` and samples of up to 1,000,000 entries. Call
    `skpudle.metrics.atom_support` for larger samples.

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
    found = find_learner(estimator)
    X = found.prepare(X)
    learner = found.learner
    look = Bunch(
        learner=learner,
        params=learner.get_params(),
        X=X,
        samples=read_samples(learner, X),
    )
    look.codes, look.numbers = encode_samples(learner, X)
    look.loss = getattr(learner, "loss", "gaussian")
    look.is_convolutional = hasattr(learner, "atom_shape")
    if look.codes.any():
        return [sentence for finding in _FINDINGS for sentence in finding(look)]
    if not any(np.nan_to_num(sample).any() for sample in look.samples):
        return [
            "No value of these samples is known, or all are zero. Pass the samples of fit."
        ]
    name, used = _penalty(look)
    return [
        f"All codes are zero: {name}={used:.3g} is too large for these data. Lower it."
    ]
