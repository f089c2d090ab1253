"""Find waveforms that repeat in signals of one channel and of many: atoms, events, seconds, memory.

One channel: signals of 300 samples in which each of two or four waveforms of 64 samples occurs once,
as in alphacsc's simulation. Many channels: 30 signals of 600 samples, three waveforms times maps
over the channels, each at three places of a signal. Noise is in standard deviations of the signal
without noise. The score is the mean over true atoms of the correlation with the matched atom at the
best shift. alphacsc's GreedyCDL (``reg=0.1``, scaled, rank one, 60 iterations from chunks) needs an
older NumPy, so that it may run by another interpreter, which reads the signals from files.

Further problems: "maps" has five maps and waveforms in 30 channels and 20,000 samples at 5 dB;
"coloured" has one channel with noise of an autoregression; "unequal" has channels with a tenth to
ten times the noise; "events" counts recall and precision; "ecg" is PyWavelets' electrocardiogram,
16 times, with noise; "large" has 204 channels, 100,000 samples and 25 waveforms of 150; "long" fits
10^6 samples from a memory map. Times are of the process's CPU, on one thread, after a small fit has
compiled the loops. Example::

    OMP_NUM_THREADS=1 python benchmarks/bench_waveforms.py --out benchmarks/results/waveforms.json
"""

import argparse
import json
import subprocess
import tempfile
from itertools import cycle, islice
from pathlib import Path
from time import process_time

import numpy as np
from scipy.optimize import linear_sum_assignment

LENGTH = 64
ONE = [(k, noise) for k in (2, 4) for noise in (0.2, 1.0, 2.0)]
MANY = [(8, 0.5), (8, 2.0), (8, 4.0), (30, 2.0), (30, 5.0)]


# ---------------------------------------------------------------- simulations


def waveform(shape, n_cycles, length=LENGTH):
    """Return cycles of a triangle, a square wave or a sine, without the mean and of norm 1."""
    phase = np.arange(length) * n_cycles / length % 1
    if shape == "triangle":
        wave = 1 - np.abs(2 * phase - 1)
    elif shape == "square":
        wave = np.where(phase < 0.5, 0.5, -0.5)
    else:
        wave = np.sin(2 * np.pi * phase)
    wave = wave - wave.mean()
    return wave / np.linalg.norm(wave)


def with_noise(signals, noise, rng):
    """Add white noise with this multiple of the standard deviation of the signals."""
    return signals + noise * signals.std() * rng.normal(size=signals.shape)


def one_channel(k, noise, seed):
    """Return signals (100, 300, 1) and atoms (k, 64, 1)."""
    rng = np.random.default_rng([seed, k])
    kinds = islice(cycle([("triangle", 1), ("square", 1), ("sin", 1), ("triangle", 2)]), k)
    waves = np.stack([waveform(*kind) for kind in kinds])
    signals = np.zeros((100, 300))
    for signal in signals:
        for wave in waves:
            start = rng.integers(300 - LENGTH + 1)
            signal[start : start + LENGTH] += (1 + rng.random()) * wave
    return with_noise(signals, noise, rng)[..., None], waves[..., None]


def bumps(n_channels, n, rng):
    """Return maps of norm 1: a bump over the channels, and one half as high of the other sign."""
    places, centres = np.linspace(0, 1, n_channels), rng.uniform(0.1, 0.6, (n, 1))
    maps = np.exp(-((places - centres) ** 2) / 0.03)
    maps -= 0.5 * np.exp(-((places - centres - 0.35) ** 2) / 0.03)
    return maps / np.linalg.norm(maps, axis=1, keepdims=True)


def many_channels(n_channels, noise, seed):
    """Return signals (30, 600, n_channels) and atoms (3, 64, n_channels)."""
    rng = np.random.default_rng([seed, n_channels])
    waves = np.stack([waveform("triangle", 1), waveform("square", 1), waveform("sin", 2)])
    atoms = waves[:, :, None] * bumps(n_channels, 3, rng)[:, None]
    signals = np.zeros((30, 600, n_channels))
    for signal in signals:
        for atom in atoms:
            for start in rng.choice(600 - LENGTH, 3, replace=False):
                signal[start : start + LENGTH] += rng.uniform(0.5, 1.5) * atom
    return with_noise(signals, noise, rng), atoms


# ---------------------------------------------------------------- scores


def correlations(a, b):  # (k, length, n_channels) twice -> (k, k)
    """Return the correlations of atoms at the best shift of either sign."""
    n = len(a[0]) + len(b[0])
    one, two = (np.fft.rfft(atoms, n, axis=1) for atoms in (a, b))
    lags = np.fft.irfft(np.einsum("ifc,jfc->ijf", one, two.conj()), n)
    norms = [np.maximum(np.linalg.norm(atoms, axis=(1, 2)), 1e-12) for atoms in (a, b)]
    return np.abs(lags).max(2) / np.outer(*norms)


def matched(a, b):  # -> (k,)
    """Return the correlation of each of the atoms ``a`` with its match."""
    found = correlations(a, b)
    return found[linear_sum_assignment(-found)]
