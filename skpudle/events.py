r"""Turn codes of signals into a table of events: signal, time, atom and amplitude.

The codes of a signal have a value for each atom at each position of the signal. More codes are
nonzero than there are events. An event between two samples, or of a shape that differs a little
from its atom, has two or three codes side by side, and codes at the level of the noise are no
events.

So signals are coded again, with a penalty at the level of the noise. Codes of one atom and one sign
are one event if the copies of the atom at their positions correlate by at least 0.7. The event is
at the position of the largest of these codes. Its amplitude is the projection of the sum of the
copies on the copy at that position. Events smaller than a third of the atom's *typical amplitude*
are left out: half of the energy of the atom's events, their sum of squares, is in events above the
typical amplitude. For this sum an artefact, however large, counts as the 98 % quantile of the
amplitudes.
"""

from copy import copy
from math import inf, log, sqrt
from typing import Any

import numpy as np

from skpudle._estimators import encode_samples, find_learner, read_samples
from skpudle._learners.convolutional.base import geometry_of

__all__ = ["find_events"]

# Default of ``least`` of `find_events`: the amplitude of the smallest event, divided by the typical
# amplitude of its atom, see `_typical`. In an electrocardiogram with noise of 0 dB the smallest
# beat has 0.77 of the typical amplitude, and waves that are not beats reach 0.36.
_LEAST = 1 / 3


def _typical(amplitudes):
    """Return the typical amplitude of an atom's events, by which `find_events` judges small events.

    ``amplitudes`` (n_events,), of either sign, has at least one entry; the result is a float. Half
    of the energy, the sum of squares of all amplitudes, is in events above the typical amplitude.
    The largest 2 % of the events may be artefacts, and count with the amplitude of the 98 %
    quantile. A median would be too small: in an electrocardiogram with little noise most events are
    waves between the beats.
    """
    sizes = np.sort(np.abs(amplitudes))
    # Amplitudes are limited to their 98 % quantile. This limit must not be below true events. In an
    # electrocardiogram with little noise beats are only 9 % of the events: the 90 % quantile would
    # be below the beats, the result would be too small, and `find_events` would return the 468
    # waves between the beats of the record, too.
    energy = np.cumsum(np.minimum(sizes, sizes[int(0.98 * (len(sizes) - 1))]) ** 2)
    return sizes[np.searchsorted(energy, energy[-1] / 2)]


def _autocorrelation(atom, stride):  # (length[, n_channels]) -> (n_shifts,)
    """Return the correlations of an atom with its copies 0, 1, 2 ... strides later, for `_merge`.

    The first correlation is 1, or 0 for an atom of zeros.
    """
    shifts = range(0, len(atom), stride)
    products = np.array([(atom[s:] * atom[: len(atom) - s]).sum() for s in shifts])
    return products / (products[0] or 1.0)


def _merge(codes, correlation):
    """Merge an atom's neighbouring codes in one signal into events; yield the largest codes first.

    ``codes`` (n_positions,) are the atom's codes, and ``correlation`` (n_shifts,) is the result of
    `_autocorrelation`. Each event is a pair: the index of its position, and its amplitude.
    """
    # Two codes are one event if their copies of the atom correlate by at least 0.7. ``reach`` is
    # the smallest distance in positions at which copies correlate less. In simulated EEG with noise
    # of 0 dB the fraction of the true events that are found is 0.957, 0.966 and 0.973 with limits
    # of 0.5, 0.7 and 0.8 (benchmarks/bench_waveforms.py). With 0.8, however, some beats of an
    # electrocardiogram with noise of 0 dB count twice.
    reach = int(np.argmin(np.append(correlation, 0.0) >= 0.7))
    codes = codes.copy()
    order = np.argsort(-np.abs(codes), kind="stable")
    for position in order[: np.count_nonzero(codes)]:
        if codes[position] != 0:  # not yet merged into an event
            first = max(0, position - reach + 1)
            near = np.arange(first, min(len(codes), position + reach))
            near = near[codes[near] * codes[position] > 0]
            yield position, codes[near] @ correlation[np.abs(near - position)]
            codes[near] = 0


def _at_level_of_noise(learner, X):
    """Return a copy of a learner that codes signals for `find_events`, with a smaller penalty.

    The penalty is ``noise * sqrt(2 log n)`` for the n samples of ``X``, at which about one sample
    of pure noise has a code, but never more than the penalty of the learner. If the learner has
    ``debias="auto"``, the copy removes all of the lasso's bias. If the fit did not measure the
    noise, or the penalty is an array, the learner itself is returned.
    """
    noise_std = getattr(learner, "noise_std_", None)
    if noise_std is None or np.ndim(learner.alpha_):
        return learner
    n_samples = sum(signal.shape[-1] for signal in read_samples(learner, X))
    other = copy(learner)
    other.alpha_ = min(learner.alpha_, noise_std * sqrt(2 * log(max(n_samples, 2))))
    other.debias_ = 1.0
    return other


def check_rate(sampling_rate):
    """Check a user's sampling rate, and return it as a number; None becomes 1.

    Raises
    ------
    ValueError
        If the rate is not positive, NaN or infinite.
    """
    rate = 1 if sampling_rate is None else sampling_rate
    if not 0 < rate < inf:
        raise ValueError(
            f"sampling_rate={rate!r:.50} is not a rate. Pass a positive number, or None."
        )
    return rate


def find_peaks(waveforms):  # (n_atoms, length[, n_channels]) -> (n_atoms,)
    """Return the index of the sample at which each waveform has its largest norm over channels.

    The time of an event is the time of this sample.
    """
    energy = np.square(waveforms).reshape(*np.shape(waveforms)[:2], -1).sum(axis=2)
    return energy.argmax(axis=1)


def find_learner_of_signals(estimator):  # -> FoundLearner
    """Return the fitted learner of signals in an estimator, pipeline or search, see `FoundLearner`.

    Raises
    ------
    ValueError
        If the learner codes rows or pictures, or is a denoiser.
    """
    found_learner = find_learner(estimator)
    learner = found_learner.learner
    if np.size(getattr(learner, "atom_shape", ())) != 1 or hasattr(learner, "denoise"):
        raise ValueError(
            f"{type(learner).__name__} has no sparse codes of signals. Pass a "
            "ConvPUDLEDictionaryLearning with one number for atom_shape."
        )
    return found_learner


def find_events(
    estimator: Any, X: Any, *, least: float = _LEAST, sampling_rate: float | None = None
) -> np.ndarray:
    """List the events in signals: where and how strongly each atom occurs.

    Parameters
    ----------
    estimator : estimator
        Fitted `skpudle.ConvPUDLEDictionaryLearning` for signals, or a pipeline or search with one.
    X : array-like, Tensor or list of signals
        Signals, as `transform` takes them.
    least : float, default=1/3
        The smallest amplitude of an event, from 0 to 1 times its atom's typical amplitude. Events
        above the typical amplitude have half of the energy of the atom's events, where the largest
        2 % count with the amplitude of the 98 % quantile. 0 keeps all events.
    sampling_rate : float, default=None
        Number of samples in a second; times are then in seconds. None: times are numbers of
        samples.

    Returns
    -------
    ndarray of shape (n_events,)
        A structured array, which `pandas.DataFrame` takes, in the order of signals and times. Its
        fields are ``signal``, the index of the signal in ``X``; ``time``, of the largest excursion
        of the event's waveform; ``atom``, the index of the atom in ``components_``; ``amplitude``,
        the factor of the atom.

    Raises
    ------
    ValueError
        If the learner is not for signals, ``X`` is one signal instead of a list of signals,
        ``least`` is not from 0 to 1, or ``sampling_rate`` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle import ConvPUDLEDictionaryLearning
    >>> from skpudle.events import find_events
    >>> signal = 0.01 * np.random.default_rng(0).normal(size=400)
    >>> for start in (50, 120, 300):
    ...     signal[start : start + 20] += np.hanning(20)
    >>> learner = ConvPUDLEDictionaryLearning(
    ...     1, atom_shape=20, positive_code=True, random_state=0
    ... )
    >>> len(find_events(learner.fit([signal]), [signal]))
    3
    """
    found_learner = find_learner_of_signals(estimator)
    learner = found_learner.learner
    if not 0 <= least <= 1:
        raise ValueError(
            f"least={least!r:.50} is not a fraction. Pass a number from 0 to 1, as 1 / 3."
        )
    rate = check_rate(sampling_rate)
    X = found_learner.prepare(X)
    _, (stride,) = geometry_of(learner)
    codes, signals = encode_samples(_at_level_of_noise(learner, X), X)
    # the codes (n_positions, n_components) of each signal
    maps = np.split(codes.astype(np.float64), np.flatnonzero(np.diff(signals)) + 1)
    atoms = learner.components_
    events = []
    for number, (atom, peak) in enumerate(zip(atoms, find_peaks(atoms))):
        correlation = _autocorrelation(atom, stride)
        of_atom = [
            (signal, (position * stride + peak) / rate, number, amplitude)
            for signal, codes in enumerate(maps)
            for position, amplitude in _merge(codes[:, number], correlation)
        ]
        # an event is a tuple (signal, time, atom, amplitude)
        if of_atom:
            smallest = least * _typical([amplitude for *_, amplitude in of_atom])
            events += [event for event in of_atom if abs(event[3]) >= smallest]
    fields = [
        ("signal", np.int64),
        ("time", np.int64 if sampling_rate is None else np.float64),
        ("atom", np.int64),
        ("amplitude", np.float64),
    ]
    return np.array(sorted(events), dtype=fields)
