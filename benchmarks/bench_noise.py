"""Compare learners on data as users have them: an offset, unequal noise, outliers, units.

    python benchmarks/bench_noise.py    # resumes where it was interrupted
    python benchmarks/bench_noise.py --only offset spikes --seeds 0 --out noise.json

Planted rows of 40 features, sums of 4 of 60 atoms, and some other families; two thirds of the rows
are for training. The error is that of reconstructions of the other rows, as far as they are from
the clean rows, in units of the noise's error: 1 is as bad as the noisy rows. Learners:

- the default `PUDLEDictionaryLearning`, on the data as they are;
- the same with ``noise="equal", fit_intercept=False``;
- `MiniBatchDictionaryLearning` of scikit-learn and `spams.trainDL`, on the data as they are and
  after `StandardScaler` or `RobustScaler`. Both learn with five penalties, and code by least
  squares on the lasso's supports at five penalties. The best pair is chosen by the *clean* rows,
  which no user has, so that these are bounds of what the learners can do;
- `FactorAnalysis`, which has a baseline and noise of features, and dense codes.

Real data have no clean rows: for them it is the explained share of held-out entries (``score``),
and R^2 of held-out rows with ten codes each by orthogonal matching pursuit, with and without the
noise model. Seconds are CPU time.
"""

import warnings
from functools import partial
from itertools import product

import numpy as np
import torch
from common import Report, halves, parse, spams_atoms, timed, unit
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_sample_images,
    load_wine,
)
from sklearn.decomposition import (
    FactorAnalysis,
    MiniBatchDictionaryLearning,
    sparse_encode,
)
from sklearn.feature_extraction.image import extract_patches_2d
from sklearn.preprocessing import RobustScaler, StandardScaler

from skpudle import PUDLEDictionaryLearning
from skpudle.lasso import solve_lasso

# in units of the root mean square norm of a row
PENALTIES = (
    0.02,
    0.05,
    0.1,
    0.2,
    0.4,
)
PLAIN = {"noise": "equal", "fit_intercept": False}


def sums_of_atoms(random, n=4000, m=40, p=60, s=4):
    """Return clean rows and their atoms."""
    atoms = unit(random.standard_normal((p, m)))
    codes = np.zeros((n, p))
    places = np.argsort(random.random((n, p)), axis=1)[:, :s]
    values = random.uniform(0.5, 1.5, (n, s)) * random.choice([-1, 1], (n, s))
    np.put_along_axis(codes, places, values, axis=1)
    return codes @ atoms, atoms


def deviation(clean, db):
    return np.sqrt(np.square(clean).mean()) * 10 ** (-np.asarray(db) / 20)


def planted(
    random,
    *,
    db=20,
    n=4000,
    offset=0.0,
    training=None,
    noise=None,
    units=None,
    alone=False,
):
    """Return noisy rows, clean rows, atoms, the unit of errors and parameters.

    The unit is that of features, or, if rows stand ``alone``, the noise of each row.
    """
    clean, atoms = sums_of_atoms(random, n)
    scale = deviation(clean, db if noise is None else noise(random, clean.shape))
    X = clean + scale * random.standard_normal(clean.shape)
    if training is not None:
        training(random, X[: 2 * n // 3])
    if offset:
        baseline = offset * unit(random.standard_normal((1, X.shape[1])))
        X, clean = X + baseline, clean + baseline
    if alone:
        return X, clean, atoms, scale, {}
    units = np.ones(X.shape[1]) if units is None else units(random, X.shape[1])
    return X * units, clean * units, atoms * units, units, {}


def with_rows(random, X):
    rows = random.random(len(X)) < 0.05
    X[rows] = 5 * np.sqrt(np.square(X).mean()) * random.standard_normal(X[rows].shape)


def with_spikes(random, X):
    spikes = random.random(X.shape) < 0.02
    X[spikes] += 5 * random.standard_normal(spikes.sum())


def heavy_tails(random):
    clean, atoms = sums_of_atoms(random)
    noise = random.standard_t(2.5, clean.shape) / np.sqrt(5)
    return clean + deviation(clean, 20) * noise, clean, atoms, np.ones(40), {}


def positive(random):
    clean, atoms = sums_of_atoms(random)
    codes = np.zeros((4000, 60))
    places = np.argsort(random.random(codes.shape), axis=1)[:, :5]
    np.put_along_axis(codes, places, random.gamma(2, 0.5, places.shape), axis=1)
    clean = codes @ atoms
    X = clean + deviation(clean, 20) * random.standard_normal(clean.shape)
    return X, clean, atoms, np.ones(40), {"positive_code": True}


FAMILIES = {
    "equal noise": planted,
    "5 dB": partial(planted, db=5),
    "40 dB": partial(planted, db=40),
    "900 rows": partial(planted, n=900),
    "offset": partial(planted, offset=3.0),
    "noise of features": partial(
        planted, noise=lambda r, s: r.uniform(0, 30, (1, s[1]))
    ),
    "noise of rows": partial(planted, noise=lambda r, s: r.uniform(0, 30, (s[0], 1))),
    "noise of rows, each in its unit": partial(
        planted, noise=lambda r, s: r.uniform(0, 30, (s[0], 1)), alone=True
    ),
    "outlying rows": partial(planted, training=with_rows),
    "spikes": partial(planted, training=with_spikes),
    "Student's t": heavy_tails,
    "columns in units of exp(2 N)": partial(
        planted, units=lambda r, m: np.exp(2 * r.standard_normal(m))
    ),
    "non-negative codes": positive,
}


def photographs():
    images = [image.mean(axis=2) for image in load_sample_images().images]
    some = [
        extract_patches_2d(image, (8, 8), max_patches=6000, random_state=0)
        for image in images
    ]
    return halves(np.concatenate(some).reshape(-1, 64), 5 / 6)


REAL = {
    "digits": (100, lambda: halves(load_digits().data)),
    "patches": (100, photographs),
    "wine": (20, lambda: halves(load_wine().data)),
    "breast cancer": (40, lambda: halves(load_breast_cancer().data)),
}


def best_of_penalties(atoms, fitted, rows, clean, units, positive):
    """Return the smallest error of least squares on supports, at five penalties."""
    atoms, left = torch.tensor(unit(atoms)), torch.tensor(rows)
    norm = float(np.sqrt(np.square(rows).sum(axis=1).mean()))
    errors = []
    for share in PENALTIES:
        codes = solve_lasso(atoms, left, share * norm, debias=1.0, positive=positive)[0]
        found = fitted((codes @ atoms).numpy())
        errors.append(np.square((found - clean) / units).mean())
    return min(errors)


def of_scikit_learn(X, p, share, seed, positive):
    norm = np.sqrt(np.square(X).sum(axis=1).mean())
    learner = MiniBatchDictionaryLearning(
        p,
        alpha=share * norm,
        fit_algorithm="cd",
        positive_code=positive,
        random_state=seed,
    )
    return learner.fit(X).components_


def of_spams(X, p, share, seed, positive):
    norm = np.sqrt(np.square(X).sum(axis=1).mean())
    return spams_atoms(X, p, share * norm, iter=1000, batch=256, positive=positive)


def of_tool(learn, scaler, train, test, clean, units, p, params, seed):
    """Return the best error of a tool over penalties to learn and to code with."""
    positive, errors = bool(params.get("positive_code")), []
    X, rows = train, test
    if scaler is not None:
        scaler = scaler().fit(train)
        X, rows = scaler.transform(train), scaler.transform(test)
    back = (lambda x: x) if scaler is None else scaler.inverse_transform
    for share in PENALTIES:
        atoms = learn(np.ascontiguousarray(X), p, share, seed, positive)
        atoms = atoms[np.linalg.norm(atoms, axis=1) > 0]
        errors.append(best_of_penalties(atoms, back, rows, clean, units, positive))
    return min(errors)


def of_us(train, test, clean, units, p, params, seed):
    learner = PUDLEDictionaryLearning(p, random_state=seed, **params).fit(train)
    found = learner.inverse_transform(learner.transform(test))
    return np.square((found - clean) / units).mean(), learner


def of_factors(train, test, clean, units, seed):
    factors = FactorAnalysis(10, random_state=seed).fit(train)
    found = factors.transform(test) @ factors.components_ + factors.mean_
    return np.square((found - clean) / units).mean()


def measure_planted(name, seed):
    X, clean, atoms, units, params = FAMILIES[name](np.random.default_rng(seed))
    k, p = 2 * len(X) // 3, len(atoms)
    train, test, clean = X[:k], X[k:], clean[k:]
    units = units[k:] if units.ndim == 2 else units
    noise = np.square((test - clean) / units).mean()
    row = {"data": name, "seed": seed}

    def note(tool, compute):
        error, seconds = timed(compute)
        row[tool] = {"error": error / noise, "seconds": seconds}

    given = train, test, clean, units, p
    found = {}
    for tool, more in (("default", {}), ("equal noise", PLAIN)):

        def compute(more=more):
            error, found["learner"] = of_us(*given, params | more, seed)
            return error

        note(tool, compute)
        near = np.abs(unit(atoms) @ unit(found["learner"].components_).T).max(axis=1)
        row[tool]["found"] = float((near > 0.99).mean())
    tools = {"scikit-learn": of_scikit_learn, "SPAMS": of_spams}
    scalers = {
        "": None,
        ", StandardScaler": StandardScaler,
        ", RobustScaler": RobustScaler,
    }
    for tool, learn in tools.items():
        for scaled, scaler in scalers.items():
            note(tool + scaled, partial(of_tool, learn, scaler, *given, params, seed))
    note("FactorAnalysis", partial(of_factors, train, test, clean, units, seed))
    return row


def measure_real(name, seed):
    p, load = REAL[name]
    train, test = load()
    row = {"data": name, "seed": seed}
    for tool, more in (("default", {}), ("equal noise", PLAIN)):
        learner, seconds = timed(
            PUDLEDictionaryLearning(p, random_state=seed, **more).fit, train
        )
        rows = test - learner.intercept_
        n_codes = min(10, test.shape[1] // 3)
        options = dict(algorithm="omp", n_nonzero_coefs=n_codes)
        codes = sparse_encode(rows, learner.components_, **options)
        left = np.square(rows - codes @ learner.components_).sum()
        row[tool] = {
            "score": learner.score(test),
            "R2 of ten codes": 1 - left / np.square(test - test.mean(axis=0)).sum(),
            "seconds": seconds,
        }
    return row


def main():
    given = parse(__doc__, "noise.json", only=[*FAMILIES, *REAL], seeds=[0, 1, 2])
    warnings.simplefilter("ignore")
    report = Report(given.out, "data", "seed", rows="rows")
    PUDLEDictionaryLearning(5, random_state=0).fit(
        np.random.default_rng(0).random((200, 8))
    )
    for name, seed in product(given.only, given.seeds):
        report.measure(
            measure_planted if name in FAMILIES else measure_real, name, seed
        )


if __name__ == "__main__":
    main()
