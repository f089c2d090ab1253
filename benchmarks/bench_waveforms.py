"""Find waveforms that repeat in signals of one channel and of many: atoms, events, time, memory.

One channel: signals of 300 samples in which each of two or four waveforms of 64 samples occurs
once, as in alphacsc's simulation. Many channels: 30 signals of 600 samples, three waveforms times
maps over the channels, each at three places of a signal. Noise is in standard deviations of the
signal without noise. The score is the mean over true atoms of the correlation with the matched
atom at the best shift. "Threshold" has the universal threshold of white noise as its penalty, of
full atoms, and "rank one after it" is their projection. alphacsc's GreedyCDL (``reg=0.1``, scaled,
rank one, 60 iterations from chunks) needs NumPy 1.26, so it runs by another interpreter.

Further problems: "coloured" has two atoms in noise of an autoregression; "eeg" counts events at 0
dB in 30 channels, "ecg" beats of PyWavelets' electrocardiogram 16 times with noise. "large" has 204
channels, 100,000 samples and 25 waveforms of 150, "long" 10^6 samples of 8 channels from a memory
map. Times are of the process's CPU, on one thread, after a small fit has compiled the loops.
Example::

    OMP_NUM_THREADS=1 python benchmarks/bench_waveforms.py --out benchmarks/results/waveforms.json
"""

import tempfile
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from common import Report, by_scripts, parse, peak_megabytes, timed, unit
from scipy.optimize import linear_sum_assignment

from skpudle import ConvPUDLEDictionaryLearning
from skpudle.events import find_events

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
    kinds = islice(
        cycle([("triangle", 1), ("square", 1), ("sin", 1), ("triangle", 2)]), k
    )
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
    return unit(maps)


def many_channels(n_channels, noise, seed):
    """Return signals (30, 600, n_channels) and atoms (3, 64, n_channels)."""
    rng = np.random.default_rng([seed, n_channels])
    waves = np.stack(
        [waveform("triangle", 1), waveform("square", 1), waveform("sin", 2)]
    )
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


def rank_one(atoms):  # (k, length, n_channels) -> the same
    """Return the nearest products of waveforms and maps."""
    left, values, right = np.linalg.svd(atoms, full_matrices=False)
    return left[:, :, :1] * values[:, :1, None] * right[:, :1]


def events_found(true, table, atoms, found, tolerance=5):
    """Return recall and precision; the same shift of all events of an atom does not count."""
    pairs = correlations(atoms, found)
    rows, columns = linear_sum_assignment(-pairs)
    n_hits = 0
    for row, column in zip(rows, columns):
        expected = [(signal, time) for signal, time, atom in true if atom == row]
        own = table[table["atom"] == column]
        lags = [e["time"] - t for s, t in expected for e in own if e["signal"] == s]
        lags = np.array([lag for lag in lags if abs(lag) < 2 * LENGTH] or [0])
        shift = int(np.bincount(lags + 2 * LENGTH).argmax()) - 2 * LENGTH
        free = [(int(e["signal"]), int(e["time"]) - shift) for e in own]
        for signal, time in expected:
            near = [e for e in free if e[0] == signal and abs(e[1] - time) <= tolerance]
            if near:
                free.remove(min(near, key=lambda e: abs(e[1] - time)))
                n_hits += 1
    return n_hits / len(true), n_hits / max(len(table), 1)


# ---------------------------------------------------------------- methods


def fit(signals, k, seed, **options):
    """Return a fitted learner and seconds of CPU time."""
    options = dict(atom_shape=LENGTH, positive_code=True, random_state=seed) | options
    return timed(ConvPUDLEDictionaryLearning(k, **options).fit, signals)


def threshold_of(signals):
    """Return the universal threshold of white noise, whose deviation neighbours tell."""
    sigma = np.median(np.abs(np.diff(signals, axis=1))) / 0.6745 / np.sqrt(2)
    return float(sigma * np.sqrt(2 * np.log(signals.shape[0] * signals.shape[1])))


_GREEDY = """
import sys, time, warnings
import numpy as np
from alphacsc import GreedyCDL
warnings.simplefilter("ignore")
known = np.load(sys.argv[1])
X = np.moveaxis(known["signals"], 2, 1)
def learn(X, k):
    model = GreedyCDL(k, int(known["length"]), reg=0.1, n_iter=60, rank1=True, lmbd_max="scaled",
                      solver_z="lgcd", random_state=int(known["seed"]), D_init="chunk", verbose=0)
    return model.fit(X).D_hat_
learn(X[:5], 2)
start = time.process_time()
atoms = learn(X, int(known["k"]))
np.savez(sys.argv[2], atoms=np.moveaxis(atoms, 1, 2), seconds=time.process_time() - start)
"""


def greedy(python, signals, k, seed):  # -> atoms, seconds
    """Learn by alphacsc in its interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        given = dict(signals=signals, k=k, seed=seed, length=LENGTH)
        found = by_scripts(python, _GREEDY, folder=folder, **given)
    return found["atoms"], float(found["seconds"])


# ---------------------------------------------------------------- problems


def table_of(kind, seeds, python):  # yields a row for each case
    """Compare methods on signals of one channel or of many."""
    cases, draw = (ONE, one_channel) if kind == "one channel" else (MANY, many_channels)
    rank = None if kind == "one channel" else 1
    for first, noise in cases:
        scores = {}

        def note(name, atoms, found, seconds, scores=scores):
            entry = scores.setdefault(name, {"correlation": [], "seconds": []})
            entry["correlation"].append(float(matched(atoms, found).mean()))
            entry["seconds"].append(seconds)

        for seed in seeds:
            signals, atoms = draw(first, noise, seed)
            learner, seconds = fit(signals, len(atoms), seed, rank=rank)
            note("ours", atoms, learner.components_, seconds)
            options = dict(alpha=threshold_of(signals))
            learner, seconds = fit(signals, len(atoms), seed, **options)
            note("threshold", atoms, learner.components_, seconds)
            if rank:
                note("rank one after it", atoms, rank_one(learner.components_), seconds)
            if python:
                note("GreedyCDL", atoms, *greedy(python, signals, len(atoms), seed))
        yield {"case": [first, noise], "methods": scores}


def coloured(seed):
    """Return the correlation in noise of an autoregression with the coefficient 0.9."""
    signals, atoms = one_channel(2, 0.0, seed)
    rng = np.random.default_rng([seed, 9])
    noise = np.zeros(signals.shape)
    for t in range(1, signals.shape[1]):
        noise[:, t] = 0.9 * noise[:, t - 1] + rng.normal(size=noise[:, t].shape)
    learner, seconds = fit(signals + signals.std() * noise / noise.std(), 2, seed)
    found = float(matched(atoms, learner.components_).mean())
    return {"correlation": found, "alpha": learner.search_alpha_, "seconds": seconds}


def events_of_eeg(seed):
    """Return recall and precision of events at 0 dB in 30 channels."""
    rng = np.random.default_rng([seed, 30, 7])
    waves = np.stack(
        [waveform("triangle", 1), waveform("square", 1), waveform("sin", 2)]
    )
    atoms = waves[:, :, None] * bumps(30, 3, rng)[:, None]
    signals, true = np.zeros((30, 600, 30)), []
    for number, signal in enumerate(signals):
        for k, atom in enumerate(atoms):
            for start in rng.choice(600 - LENGTH, 3, replace=False):
                signal[start : start + LENGTH] += rng.uniform(0.5, 1.5) * atom
                true.append((number, start, k))
    signals = with_noise(signals, 1.0, rng)
    learner, seconds = fit(signals, 3, seed, rank=1)
    table = find_events(learner, signals)
    recall, precision = events_found(true, table, atoms, learner.components_)
    return {"recall": recall, "precision": precision, "seconds": seconds}


def beats(noise, seed):
    """Return the beats of an electrocardiogram: 48, at 190, 518 and 848 of 1,024 samples."""
    from pywt.data import ecg

    signal = ecg().astype(float) - np.median(ecg())
    signal -= np.convolve(signal, np.ones(200) / 200, "same")
    signals = np.tile(signal / signal.std(), (16, 1))[..., None]
    signals = signals + noise * np.random.default_rng(seed).normal(size=signals.shape)
    learner, seconds = fit(signals, 1, seed, atom_shape=100)
    times = find_events(learner, signals)["time"]
    right = np.abs(times[:, None] - [190, 518, 848]).min(1) <= 2
    return {
        "beats": int(right.sum()),
        "others": int((~right).sum()),
        "seconds": seconds,
    }


def recording(n_channels, n_samples, k, length, n_events, seed, path):
    """Write a recording (n_channels, n_samples) in float32 to a file; return maps."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(k, length)).cumsum(1)
    waves = unit((waves - waves.mean(1, keepdims=True)) * np.hanning(length))
    maps = unit(rng.normal(size=(k, n_channels)))
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n_channels, n_samples))
    for channel in out:
        channel[:] = 0.05 * rng.normal(size=n_samples)
    for wave, map_ in zip(waves, maps):
        for start in rng.choice(n_samples - length, n_events, replace=False):
            out[:, start : start + length] += rng.uniform(0.5, 1.5) * np.outer(
                map_, wave
            )
    out.flush()
    return maps


def large(n_channels, n_samples, k, length, n_events):
    """Return seconds, megabytes above the start and the least cosine of a map, from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording.npy"
        maps = recording(n_channels, n_samples, k, length, n_events, 0, path)
        signal, before = np.load(path, mmap_mode="r"), peak_megabytes()
        options = dict(rank=1, channels_first=True, atom_shape=length)
        learner, seconds = fit(signal, k, 0, **options)
        of_fit = peak_megabytes() - before
        table = find_events(learner, signal)
        cosines = np.abs(learner.spatial_components_ @ maps.T).max(0)
        return {
            "seconds": seconds,
            "megabytes_of_fit": of_fit,
            "megabytes": peak_megabytes() - before,
            "least_cosine": float(np.min(cosines)),
            "found": int((cosines > 0.95).sum()),
            "events": len(table),
            "true_events": k * n_events,
        }


# ---------------------------------------------------------------- command


def main():
    given = parse(__doc__, seeds=5, alphacsc=str, only=[])
    seeds = range(given.seeds)
    fit(many_channels(8, 1.0, 0)[0][:5], 2, 0, rank=1)  # compiles
    problems = {
        "one channel": lambda: list(table_of("one channel", seeds, given.alphacsc)),
        "many channels": lambda: list(table_of("many channels", seeds, given.alphacsc)),
        "coloured": lambda: [coloured(seed) for seed in seeds],
        "eeg": lambda: [events_of_eeg(seed) for seed in seeds],
        "ecg": lambda: {n: [beats(n, seed) for seed in seeds] for n in (0.1, 0.5, 1.0)},
        "long": lambda: large(8, 10**6, 3, 64, 3000),
        "large": lambda: large(204, 100_000, 25, 150, 60),
    }
    report = Report(given.out, seeds=given.seeds)
    for name in given.only or problems:
        found = problems[name]()
        print(name, found, flush=True)
        report.write(**{name: found})


if __name__ == "__main__":
    main()
