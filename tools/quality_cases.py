"""The problems of same_quality.py: what is fitted, to which data, and how it is judged.

A case is a function of a seed that returns a `Result`. Planted data differ for each seed. Real data
are the same for all seeds, so that atoms of two seeds can agree.
"""

import tempfile
import time
from functools import partial
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Result(NamedTuple):
    """Figures of one fit."""

    error: float
    codes: float | None
    seconds: float
    atoms: np.ndarray | None = None
    truth: np.ndarray | None = None


# ------------------------------------------------------------------------- planted data


def unit(rows):
    """Return rows of norm 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Rows(NamedTuple):
    """Training rows, test rows, test rows without noise, the noise, and the atoms."""

    train: np.ndarray
    test: np.ndarray
    clean: np.ndarray
    noise: np.ndarray | float
    atoms: np.ndarray


def draw_gabor(rng, p):
    """Return Gabor functions of 8 x 8 pixels, at random places."""
    y, x = np.mgrid[-4:4, -4:4] + 0.5
    atoms = []
    for _ in range(p):
        angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        frequency, width, (i, j) = (
            rng.uniform(0.1, 0.35),
            rng.uniform(1.2, 2.5),
            rng.uniform(-2, 2, 2),
        )
        wave = np.cos(
            2 * np.pi * frequency * ((x - j) * np.cos(angle) + (y - i) * np.sin(angle))
            + phase
        )
        atoms.append(
            (np.exp(-((x - j) ** 2 + (y - i) ** 2) / 2 / width**2) * wave).ravel()
        )
    return np.array(atoms)


def draw_peaks(rng, p, m=60):
    """Return spectra of three peaks."""
    centres = rng.random((p, 3, 1))
    return np.exp(-((np.linspace(0, 1, m) - centres) ** 2) / 2 / 0.03**2).sum(1)


def draw_values(rng, shape, kind):
    """Return nonzero codes."""
    if kind == "gauss":
        return rng.standard_normal(shape)
    if kind == "laplace":
        return rng.laplace(size=shape)
    if kind == "gamma":
        return rng.gamma(2, 0.5, shape)
    values = rng.uniform(0.5, 1.5, shape)
    return values if kind == "positive" else values * rng.choice([-1, 1], shape)


def draw_codes(rng, n, p, s, kind="uniform", zipf=0.0):
    """Return codes with ``s`` nonzero entries a row, by atoms of unequal use with ``zipf``."""
    weight = np.arange(1.0, p + 1) ** -zipf
    keys = rng.exponential(size=(n, p)) / weight
    codes, places = np.zeros((n, p)), np.argsort(keys, axis=1)[:, :s]
    np.put_along_axis(codes, places, draw_values(rng, (n, s), kind), axis=1)
    return codes


def draw_rows(
    seed, n=1200, m=30, p=45, s=4, db=20.0, kind="uniform", zipf=0.0, draw_atoms=None, spoil=None,
    of_rows=0, of_columns=0, offset=0.0, n_test=500,
):  # fmt: skip
    """Return planted rows; ``spoil`` changes rows for training only."""
    rng = np.random.default_rng(seed)
    atoms = unit(
        rng.standard_normal((p, m)) if draw_atoms is None else draw_atoms(rng, p)
    )
    clean = draw_codes(rng, n + n_test, p, s, kind, zipf) @ atoms
    levels = rng.uniform(0, of_rows, (len(clean), 1)) + rng.uniform(
        0, of_columns, (1, clean.shape[1])
    )
    noise = np.sqrt(np.square(clean).mean()) * 10 ** (-(db + levels) / 20)
    clean += offset * unit(rng.standard_normal((1, clean.shape[1])))
    x = clean + noise * rng.standard_normal(clean.shape)
    if spoil is not None:
        spoil(rng, x[:n])
    noise = np.broadcast_to(noise, x.shape)
    return Rows(x[:n], x[n:], clean[n:], noise[n:], atoms)


def put_rows(rng, x):
    """Replace a twentieth of the rows by long ones of noise."""
    rows = rng.random(len(x)) < 0.05
    x[rows] = 5 * np.sqrt(np.square(x).mean()) * rng.standard_normal(x[rows].shape)


def put_spikes(rng, x):
    """Add large numbers to a fiftieth of the entries."""
    spikes = rng.random(x.shape) < 0.02
    x[spikes] += 5 * rng.standard_normal(spikes.sum())


def put_gaps(rng, x):
    """Hide a fifth of the entries."""
    x[rng.random(x.shape) < 0.2] = np.nan


def draw_concepts(seed, n=1000, p=50, active=4):
    """Return combinations of concepts without noise, where one of them is in half of the rows."""
    rng = np.random.default_rng(seed)
    atoms = unit(
        rng.standard_normal((p, int(np.ceil(2 * active * np.log(p / active)))))
    )
    codes = draw_codes(rng, n + 500, p - 1, active, "positive") * rng.random(
        (n + 500, 1)
    )
    common = rng.random((n + 500, 1)) * (rng.random((n + 500, 1)) < 0.5)
    x = np.hstack([common, codes]) @ atoms
    return Rows(x[:n], x[n:], x[n:], x[n:].std(), atoms)


# ------------------------------------------------------------------------- real data


def split(x, n_train, y=None):
    """Return shuffled rows for training and for a test."""
    order = np.random.default_rng(0).permutation(len(x))
    parts = [x[order[:n_train]], x[order[n_train:]]]
    return parts if y is None else [*parts, y[order[:n_train]], y[order[n_train:]]]


def standardise(parts):
    """Divide features by their deviation, after subtracting their mean."""
    train, test = parts
    scale = train.std(0)
    return [
        (part - train.mean(0)) / np.where(scale > 0, scale, 1) for part in (train, test)
    ]


def load_table(name, n_train, is_scaled=False):
    """Return a table of scikit-learn."""
    from sklearn import datasets

    parts = split(getattr(datasets, f"load_{name}")().data.astype(float), n_train)
    return standardise(parts) if is_scaled else parts


def load_patches(size, is_centred, image="photographs", n=1600):
    """Return patches of pictures that scikit-learn or scikit-image ship."""
    from skimage import data
    from sklearn.datasets import load_sample_images
    from sklearn.feature_extraction.image import extract_patches_2d

    photographs = image == "photographs"
    images = load_sample_images().images if photographs else [getattr(data, image)()]
    images = [picture.mean(2) if picture.ndim == 3 else picture for picture in images]
    cut = partial(
        extract_patches_2d, patch_size=(size, size), max_patches=n // len(images)
    )
    x = np.concatenate([cut(picture / 255.0, random_state=0) for picture in images])
    x = x.reshape(len(x), -1)
    return split(x - x.mean(1, keepdims=True) if is_centred else x, 3 * n // 4)


def load_faces():
    """Return faces."""
    from skimage.data import lfw_subset

    return split(lfw_subset()[:100].reshape(100, -1).astype(float), 75)


def load_heartbeats():
    """Return windows of an electrocardiogram; those for the test are of its last quarter."""
    from pywt.data import ecg

    windows = np.lib.stride_tricks.sliding_window_view(ecg().astype(float), 48)
    return [windows[:720].copy(), windows[768:].copy()]


# ------------------------------------------------------------------------- measure


def make(names, *args, optional=None, **params):
    """Return an object of the first of some classes, separated by spaces, that the checkout has.

    Optional parameters are passed if the class has them.
    """
    import skpudle

    for name in names.split():
        if hasattr(skpudle, name):
            known = signature(getattr(skpudle, name)).parameters
            params |= {
                key: value for key, value in (optional or {}).items() if key in known
            }
            return getattr(skpudle, name)(*args, **params)
    raise ImportError(f"This checkout has none of {names}.")


def time_fit(learner, *args):
    """Fit, a list part after part, and return seconds of CPU time."""
    begin = time.process_time()
    if isinstance(args[0], list):
        for part in args[0]:
            learner.partial_fit(part)
    else:
        learner.fit(*args)
    return time.process_time() - begin


def count_codes(codes):
    """Return the mean number of nonzero codes of a sample."""
    return float((codes != 0).sum() / codes.shape[0])


def judge(learner, seconds, test, clean=None, noise=None, truth=None):
    """Return the figures of a learner of rows: the error of reconstructions of test rows."""
    codes = learner.transform(test)
    found = learner.inverse_transform(codes)
    if clean is None:
        clean, noise = test, np.sqrt(np.square(test - test.mean(0)).mean())
    error = np.square((found - clean) / noise).mean()
    return Result(float(error), count_codes(codes), seconds, learner.components_, truth)


def fit_planted(
    seed,
    draw=draw_rows,
    n_components=None,
    names="PUDLEDictionaryLearning",
    give=None,
    **params,
):
    """Fit a learner to planted rows, other rows for each seed; ``give`` changes their form."""
    rows = draw(seed)
    n_components = len(rows.atoms) if n_components is None else n_components
    learner = make(names, n_components, random_state=seed, **params)
    seconds = time_fit(learner, rows.train if give is None else give(rows.train))
    return judge(learner, seconds, rows.test, rows.clean, rows.noise, rows.atoms)


def fit_real(seed, load, n_components, **params):
    """Fit the main learner to rows of real data."""
    train, test = load()
    learner = make("PUDLEDictionaryLearning", n_components, random_state=seed, **params)
    return judge(learner, time_fit(learner, train), test)


def match(atoms, others):
    """Return the largest modulus of the cosine of each atom with others, at any shift of place.

    Atoms of images and signals have a place before their last axis, the channels.
    """
    norms = [np.linalg.norm(a.reshape(len(a), -1), axis=1) for a in (atoms, others)]
    if atoms.ndim == 2:
        products = atoms @ others.T
    else:
        axes = tuple(range(1, atoms.ndim - 1))
        shape = [2 * atoms.shape[axis] for axis in axes]
        one, two = (np.fft.rfftn(a, shape, axes=axes) for a in (atoms, others))
        spectra = (one[:, None] * two.conj()).sum(-1)  # over channels
        shifted = np.fft.irfftn(spectra, shape, axes=[axis + 1 for axis in axes])
        products = np.abs(shifted).reshape(len(atoms), len(others), -1).max(2)
    return (np.abs(products) / np.maximum(np.outer(*norms), 1e-12)).max(1)


class Stream:
    """Batches that can be read again."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def give_stream(x):
    """Return a stream of batches."""
    return Stream(np.array_split(x, 20))


def give_file(x):
    """Return rows in a file, which exists as long as they are used."""
    path = Path(tempfile.mkdtemp()) / "x.npy"
    np.save(path, x)
    rows = np.load(path, mmap_mode="r")
    path.unlink()
    path.parent.rmdir()
    return rows


def fit_consensus(seed):
    """Agree on the atoms of several fits."""
    rows = draw_rows(seed, n=600, m=12, p=10, s=2)
    learner = make(
        "ConsensusDictionary", make("PUDLEDictionaryLearning", 10), 4, random_state=seed
    )
    seconds = time_fit(learner, rows.train)
    return judge(learner, seconds, rows.test, rows.clean, rows.noise, rows.atoms)


def fill_gaps(seed):
    """Fill gaps of digits; the error is that of hidden entries."""
    rng = np.random.default_rng(seed)
    train, test = load_table("digits", 900)
    hidden = rng.random(test.shape) < 0.2
    train = np.where(rng.random(train.shape) < 0.2, np.nan, train)
    learner = make(
        "DictionaryImputer", make("PUDLEDictionaryLearning", 30, random_state=seed)
    )
    seconds = time_fit(learner, train)
    filled = learner.transform(np.where(hidden, np.nan, test))
    left = np.square(filled - test)[hidden].mean()
    return Result(float(left / test[hidden].var()), None, seconds)


def fit_counts(seed, n_trials=None):
    """Fit counts whose logarithm or log-odds few atoms make; errors are of hidden entries."""
    rng = np.random.default_rng(seed)
    atoms = unit(rng.standard_normal((12, 20)))
    natural = 2.5 * draw_codes(rng, 1300, 12, 2) @ atoms + (
        1.0 if n_trials is None else 0.0
    )
    if n_trials is None:
        params, x = dict(loss="poisson"), rng.poisson(np.exp(natural)).astype(float)
    else:
        params = dict(loss="binomial", n_trials=n_trials)
        x = rng.binomial(n_trials, 1 / (1 + np.exp(-natural))).astype(float)
    names = "CountDictionaryLearning PUDLEDictionaryLearning"
    learner = make(names, 12, random_state=seed, **params)
    seconds = time_fit(learner, x[:1000])
    codes = count_codes(learner.transform(x[1000:]))
    return Result(
        1 - learner.score(x[1000:]), codes, seconds, learner.components_, atoms
    )


def fit_signatures(seed, n_components=6):
    """Fit counts that add, with spectra of random sparsity."""
    rng = np.random.default_rng(seed)
    atoms = np.stack(
        [rng.dirichlet(np.full(48, size)) for size in (0.05, 0.05, 0.1, 0.1, 0.2, 2)]
    )
    exposures = draw_codes(rng, 400, 6, 3, "gamma") * rng.lognormal(7, 0.7, (400, 1))
    x = rng.poisson(exposures @ atoms).astype(float)
    learner = make("PoissonNMF", n_components, random_state=seed)
    seconds = time_fit(learner, x[:300])
    codes = count_codes(learner.transform(x[300:]))
    return Result(
        1 - learner.score(x[300:]), codes, seconds, learner.components_, atoms
    )


def fit_images(seed, n=8, size=32, **params):
    """Fit images of few shapes at random places."""
    rng = np.random.default_rng(seed)
    shapes = rng.standard_normal((3, 5, 5))
    shapes /= np.linalg.norm(shapes, axis=(1, 2), keepdims=True)
    clean = np.zeros((2 * n, size, size))
    for image in clean:
        for i, j, k in zip(
            *rng.integers(0, size - 5, (2, 15)), rng.integers(0, 3, 15), strict=True
        ):
            image[i : i + 5, j : j + 5] += rng.uniform(1, 2) * shapes[k]
    noise = 0.3 * clean.std()
    x = clean + noise * rng.standard_normal(clean.shape)
    params = dict(atom_shape=(5, 5), stride=1, random_state=seed) | params
    learner = make("ConvPUDLEDictionaryLearning", 3, **params)
    seconds = time_fit(learner, x[:n])
    return judge_signals(learner, seconds, x[n:], clean[n:], noise, shapes[..., None])


def fit_signals(seed, n_channels=1, noise=0.5, n=16, **params):
    """Fit signals in which waveforms come now and then, with maps over the channels."""
    rng = np.random.default_rng(seed)
    time_axis = np.arange(24)[:, None] / 24
    waves = np.hstack(
        [np.sin(2 * np.pi * time_axis), np.abs(time_axis - 0.5) - 0.25, time_axis < 0.5]
    )
    atoms = waves.T[:, :, None] * rng.standard_normal((3, 1, n_channels))
    atoms /= np.linalg.norm(atoms, axis=(1, 2), keepdims=True)
    clean = np.zeros((2 * n, 300, n_channels))
    for signal in clean:
        for k, place in zip(np.tile(range(3), 2), rng.integers(0, 276, 6), strict=True):
            signal[place : place + 24] += rng.uniform(1, 2) * atoms[k]
    noise *= clean.std()
    x = clean + noise * rng.standard_normal(clean.shape)
    learner = make(
        "ConvPUDLEDictionaryLearning", 3, atom_shape=24, random_state=seed, **params
    )
    seconds = time_fit(learner, x[:n])
    return judge_signals(learner, seconds, x[n:], clean[n:], noise, atoms)


def judge_signals(learner, seconds, test, clean, noise, truth):
    """Return the figures of a convolutional learner."""
    codes = learner.transform(test)
    found = np.asarray(learner.inverse_transform(codes)).reshape(clean.shape)
    atoms = np.asarray(learner.components_).reshape(-1, *truth.shape[1:])
    error = float(np.square((found - clean) / noise).mean())
    return Result(error, count_codes(np.asarray(codes)), seconds, atoms, truth)


def fit_classifier(seed):
    """Classify digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    train, test, y, expected = split(digits.data / 16, 500, digits.target)
    learner = make("PUDLEClassifier", 20, random_state=seed, max_iter=20)
    seconds = time_fit(learner, train, y)
    error = 1 - np.mean(learner.predict(test) == expected)
    return Result(float(error), count_codes(learner.transform(test)), seconds)


def fit_regressor(seed):
    """Predict the progression of diabetes."""
    from sklearn.datasets import load_diabetes

    table = load_diabetes()
    train, test, y, expected = split(table.data, 300, table.target)
    learner = make("PUDLERegressor", 10, random_state=seed, max_iter=20)
    seconds = time_fit(learner, train, y)
    error = np.square(learner.predict(test) - expected).mean() / expected.var()
    return Result(float(error), count_codes(learner.transform(test)), seconds)


def judge_denoiser(learner, seconds, clean, noise=0.1):
    """Return the error of a denoised picture in units of the noise."""
    noisy = clean + noise * np.random.default_rng(0).standard_normal(clean.shape)
    found = np.asarray(learner.denoise(noisy)).reshape(clean.shape)
    return Result(float(np.square((found - clean) / noise).mean()), None, seconds)


def load_picture(name):
    """Return a picture in grey, from 0 to 1."""
    from skimage import data

    picture = getattr(data, name)()
    return (picture.mean(2) if picture.ndim == 3 else picture) / 255.0


def fit_denoiser(seed):
    """Train a denoiser with atoms of each unfolding on a small picture."""
    picture = load_picture("camera")
    own = dict(separate_atoms="unfolding", learn_threshold="unfolding", atom_norm=None)
    params = dict(
        atom_shape=(7, 7), stride=3, noise_std=0.1, n_unfoldings=4, max_iter=50
    )
    learner = make(
        "ConvDenoiser", 16, random_state=seed, crop_size=34, optional=own, **params
    )
    seconds = time_fit(learner, picture[None, 100:228, 100:228])
    return judge_denoiser(learner, seconds, picture[None, 300:364, 100:164])


def denoise_by(seed, name):
    """Denoise a picture by a packaged network; seconds are those of denoising."""
    from skpudle.pretrained import load_denoiser

    picture = load_picture("coins")
    learner = load_denoiser(name)
    begin = time.process_time()
    learner.denoise(picture)
    return judge_denoiser(learner, time.process_time() - begin, picture)


# ------------------------------------------------------------------------- cases


def planted(params=None, **options):
    """Return the case of planted rows with options of `draw_rows` and parameters."""
    return partial(fit_planted, draw=partial(draw_rows, **options), **(params or {}))


def table(name, n_train, n_components, is_scaled=False, **params):
    """Return the case of a table."""
    load = partial(load_table, name, n_train, is_scaled)
    return partial(fit_real, load=load, n_components=n_components, **params)


def patches(size, is_centred, n_components, image="photographs"):
    """Return the case of patches."""
    load = partial(load_patches, size, is_centred, image)
    return partial(fit_real, load=load, n_components=n_components)


SMALL = partial(draw_rows, n=1000, m=20, p=25, s=3)
TINY = partial(draw_rows, n=400, m=12, p=10, s=2)
# longer than the sample of a search
LONG = partial(draw_rows, n=20_000, m=12, p=15, s=2)
SHORT = dict(n_unfoldings=10, max_iter=5)
POSITIVE = dict(positive_code=True)
CASES = {
    "planted": fit_planted,
    "planted, 5 dB": planted(db=5),
    "planted, 0 dB": planted(db=0, m=40, p=20, s=2),
    "planted, -3 dB": planted(db=-3, m=40, p=20, s=2, n=2000),
    "planted, 40 dB": planted(db=40),
    "planted, few rows": planted(n=600),
    "planted, wide": planted(m=100, p=40),
    "planted, overcomplete": planted(m=20, p=50, s=3),
    "planted, few atoms": planted(m=40, p=10, s=2),
    "Zipf": planted(zipf=0.7),
    "Gabor": planted(n=1500, p=40, draw_atoms=draw_gabor),
    "Gaussian codes": planted(kind="gauss"),
    "Laplace codes": planted(kind="laplace"),
    "non-negative codes": planted(kind="gamma", params=POSITIVE),
    "spectra": planted(n=800, p=6, s=3, kind="gamma", draw_atoms=draw_peaks,
                       params=dict(positive_dict=True) | POSITIVE),
    "missing entries": planted(spoil=put_gaps),
    "offset": planted(offset=3.0),
    "noise of features": planted(of_columns=30),
    "noise of rows, named": planted(of_rows=30, params=dict(noise="rows")),
    "outlying rows": planted(n=1000, m=20, p=25, s=3, spoil=put_rows),
    "spikes": planted(n=1000, m=20, p=25, s=3, spoil=put_spikes),
    "equal noise": partial(fit_planted, noise="equal", fit_intercept=False),
    "concepts": partial(fit_planted, draw=draw_concepts, **POSITIVE),
    "concepts, alpha": partial(fit_planted, draw=draw_concepts, alpha=0.1, **POSITIVE),
    "digits": table("digits", 1400, 64),
    "digits, standardised": table("digits", 1000, 30, is_scaled=True),
    "patches 6 x 6": patches(6, False, 30),
    "patches 6 x 6, centred": patches(6, True, 30),
    "patches 9 x 9": patches(9, False, 40),
    "patches 9 x 9, centred": patches(9, True, 40),
    "coins, centred": patches(8, True, 30, "coins"),
    "faces": partial(fit_real, load=load_faces, n_components=15),
    "wine": table("wine", 130, 10),
    "wine, standardised": table("wine", 130, 10, is_scaled=True),
    "breast cancer": table("breast_cancer", 400, 20),
    "breast cancer, standardised": table("breast_cancer", 400, 20, is_scaled=True),
    "diabetes": table("diabetes", 330, 10),
    "heartbeats": partial(fit_real, load=load_heartbeats, n_components=16),
    "sizes": partial(fit_planted, draw=partial(SMALL, p=16), n_components="auto"),
    "stream": partial(fit_planted, draw=LONG, give=give_stream),
    "partial_fit": partial(fit_planted, draw=LONG, give=lambda x: np.array_split(x, 8)),
    "file": partial(fit_planted, give=give_file),
    "decoder": partial(fit_planted, draw=SMALL, gradient="dec", **SHORT),
    "ae-lasso": partial(fit_planted, draw=SMALL, gradient="ae-lasso", **SHORT),
    "ae-ls": partial(fit_planted, draw=SMALL, gradient="ae-ls", **SHORT),
    "ae-ls from data": partial(fit_planted, draw=SMALL, gradient="ae-ls", dict_init="data",
                               n_unfoldings=10, max_iter=50, learning_rate=0.01),
    "three unfoldings": table("digits", 600, 30, n_unfoldings=3, max_iter=10),
    "decay": partial(fit_planted, draw=SMALL, lambda_decay=0.9, **SHORT),
    "hard thresholding": partial(fit_planted, draw=SMALL, shrinkage="hard", **SHORT),
    "learned encoder": partial(fit_planted, draw=TINY, separate_atoms=True, **SHORT),
    "learned unfoldings": partial(fit_planted, draw=TINY, separate_atoms="unfolding", **SHORT),
    "matching pursuit": partial(fit_planted, draw=SMALL, transform_algorithm="omp",
                                transform_n_nonzero_coefs=3),
    "NOODL": partial(fit_planted, draw=SMALL, names="NOODLDictionaryLearning", n_unfoldings=20,
                     max_iter=10),
    "counts, Poisson": fit_counts,
    "counts, binomial": partial(fit_counts, n_trials=10),
    "signatures": fit_signatures,
    "signatures, sizes": partial(fit_signatures, n_components="auto"),
    "images": fit_images,
    "images, ae-ls": partial(fit_images, dict_init="search", gradient="ae-ls", **SHORT),
    "signals": fit_signals,
    "signals, four channels": partial(fit_signals, n_channels=4, noise=1.0),
    "signals, rank one": partial(fit_signals, n_channels=4, noise=1.0, rank=1),
    "classifier": fit_classifier,
    "regressor": fit_regressor,
    "denoiser": fit_denoiser,
    "packaged denoiser": partial(denoise_by, name="gaussian-small"),
    "imputer": fill_gaps,
    "consensus": fit_consensus,
}  # fmt: skip
