"""
Find the kernel of a neuron's spikes
====================================

Spikes that answer a sound repeat one kernel.

A receptor in the ear of a grasshopper hears a noise whose loudness changes at random, and every
peak of the loudness is a trial. The number of ten trials with a spike in a millisecond is a
binomial count. A kernel of :class:`~skpudle.ConvPUDLEDictionaryLearning` is the part that all
trials share, wherever it occurs. Ten other trials judge its expectation.

The recording comes with the package nitime (A. Rokem et al., "Spike-timing precision underlies the
coding efficiency of auditory receptor neurons", Journal of Neurophysiology, 2006).
"""

from importlib.resources import files

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks
from scipy.special import xlogy

from skpudle import ConvPUDLEDictionaryLearning

N_TRIALS, BEFORE, AFTER = 10, 8, 32  # milliseconds around a peak

data = files("nitime") / "data"
spike_times = np.loadtxt(data / "grasshopper_spike_times1.txt") / 1000  # of microseconds
loudness = np.loadtxt(data / "grasshopper_stimulus1.txt")[:, 1].reshape(10_000, 20).mean(axis=1)
spikes = np.histogram(spike_times, np.arange(10_001))[0]


# %%
# The louder half of all peaks are trials. Twenty equally loud peaks are two counts of ten: the
# first gives the codes, the second judges them. Six of ten seconds are for learning.


def counts_of_trials(start, stop):  # -> two arrays (n_groups, BEFORE + AFTER)
    peaks, _ = find_peaks(gaussian_filter1d(loudness, 1), distance=4)
    peaks = peaks[(peaks >= start + BEFORE) & (peaks < stop - AFTER)]
    peaks = peaks[np.argsort(loudness[peaks])][len(peaks) // 2 :]
    peaks = peaks[len(peaks) % (2 * N_TRIALS) :].reshape(-1, 2, N_TRIALS)
    trials = np.stack([spikes[p - BEFORE : p + AFTER] for p in peaks.ravel()])
    return trials.reshape(*peaks.shape, -1).sum(axis=2).astype(float).swapaxes(0, 1)


known, judge = counts_of_trials(0, 6000)
given, hidden = counts_of_trials(6000, 10_000)
train = np.concatenate([known, judge])[..., np.newaxis]


def explained(mean, counts):
    """Return the share of the deviance from a constant rate."""

    def deviance(mean):
        others, rest = N_TRIALS - counts, N_TRIALS - mean
        return (xlogy(counts, counts / mean) + xlogy(others, others / rest)).sum()

    return 1 - deviance(mean) / deviance(np.full_like(counts, train.mean()))


def expected(learner, counts):
    return learner.inverse_transform(learner.transform(counts[..., np.newaxis]))[..., 0]


# %%
# The penalty with which the first half of the training trials explains most of the second.

learners = [
    ConvPUDLEDictionaryLearning(
        1,
        atom_shape=20,
        stride=1,
        loss="binomial",
        n_trials=N_TRIALS,
        positive_code=True,
        alpha=alpha,
        random_state=0,
    ).fit(train)
    for alpha in (2.0, 1.4, 1.0, 0.7)
]
learner = max(learners, key=lambda learner: explained(expected(learner, known), judge))

# %%
# Rivals are two histograms: one of all training trials, which knows the times of the peaks, and
# one of the ten given trials, smoothed, which does not.

everything = np.broadcast_to(train[..., 0].mean(axis=0), hidden.shape)
smooth = 0.95 * gaussian_filter1d(given, 2, axis=1) + 0.05 * train.mean()
means = {
    "one kernel": expected(learner, given),
    "histogram of all trials": everything,
    "histogram of ten trials": smooth,
}
shares = {name: round(float(explained(mean, hidden)), 3) for name, mean in means.items()}

# %%
# The kernel: a spike, none for four milliseconds, and often another after seven. Codes say when
# it begins: three or four milliseconds after a peak, and the spike comes three later.

codes = learner.transform(given[..., np.newaxis])[..., 0]
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
time = np.arange(-BEFORE, AFTER)
axes[0].plot(learner.components_[0], color="C0")
axes[0].axhline(0, color="grey", linewidth=0.8)
axes[0].set(title="Kernel", xlabel="Milliseconds", ylabel="Log odds (unit norm)")
axes[1].bar(np.arange(codes.shape[1]) - BEFORE, codes.mean(axis=0), width=1)
axes[1].axvline(0, color="grey", linewidth=0.8)
axes[1].set(title="When it begins", xlabel="Milliseconds after the peak", ylabel="Mean code")
axes[2].plot(time, hidden.mean(axis=0), "k.", label="other trials")
for name, mean in means.items():
    axes[2].plot(time, mean.mean(axis=0), label=f"{name}: {shares[name]:.2f}")
axes[2].set(
    title="Deviance explained",
    xlabel="Milliseconds after the peak",
    ylabel="Spikes of 10",
    ylim=(0, 7),
)
axes[2].legend(fontsize="x-small")
plt.show()

# %%
# A kernel explains more than a histogram of the given trials, and less than one of all trials,
# which is told the times of the peaks; the kernel has to find them.

print(learner.alpha_, shares)
