"""Windows of a simulated electrocardiogram: five waves a beat, at a heart rate that varies.

A simulation needs no download: waves of Gaussian shape, as in McSharry et al., "A dynamical model
for generating synthetic electrocardiogram signals", IEEE Trans. Biomed. Eng. 50, 2003.
"""

import numpy as np
from benchopt import BaseDataset

# position in the beat, width, and height of the waves P, Q, R, S and T
WAVES = [(-0.2, 0.025, 0.15), (-0.03, 0.01, -0.12), (0, 0.011, 1), (0.03, 0.01, -0.25)]
WAVES = [*WAVES, (0.3, 0.045, 0.3)]


class Dataset(BaseDataset):
    name = "ECG"
    parameters = {"n_samples": [5000], "n_components": [64]}
    test_parameters = {"n_samples": [300], "n_components": [12]}

    def get_data(self):
        rng = np.random.default_rng(self.get_seed(use_repetition=True))
        n, rate, length = self.n_samples + 500, 128, 64  # samples a second, samples a window
        duration = n * length / rate
        beats = np.cumsum(rng.normal(0.85, 0.06, int(duration / 0.6)))
        beats = beats[beats < duration]
        signal, times = np.zeros(n * length), np.arange(n * length) / rate
        for at, width, height in WAVES:
            sizes = height * rng.normal(1, 0.1, len(beats))
            for centre, size in zip(beats + at, sizes):
                first, last = np.searchsorted(times, [centre - 5 * width, centre + 5 * width])
                near = times[first:last]
                signal[first:last] += size * np.exp(-((near - centre) ** 2) / (2 * width**2))
        signal += 0.03 * rng.standard_normal(len(signal))
        X = rng.permutation(signal.reshape(n, length))
        return dict(X_train=X[:-500], X_test=X[-500:], n_components=self.n_components)
