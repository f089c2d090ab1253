"""Codes at the default: how near to clean data, next to the best penalty of a grid?

The error of reconstructions of held-out rows against the clean data, relative to that of the noisy
rows (1: nothing gained). The grid has multiples of the search's penalty, each refitted, with the
lasso's codes and with least squares on their supports; the learner sees no clean data. Beside it
are spectra next to NMF, images, missing entries next to the imputers of scikit-learn, and the time
of a fit with and without the choice. Example::

    python benchmarks/bench_codes.py --out benchmarks/results/codes.json
"""

import argparse
from functools import cache, partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from common import circumstances, write_report
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.decomposition import NMF
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer
from sklearn.preprocessing import StandardScaler

from skpudle import ConvPUDLEDictionaryLearning, PUDLEDictionaryLearning
from skpudle._operators._conv import ConvDictionary
from skpudle.datasets import extract_patches, load_gray_images, make_dictionary_data

MULTIPLES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)
KINDS = {"lasso": 0.0, "least squares": 1.0}


def planted(n_features, n_nonzero, snr_db, seed):  # -> noisy, clean, number of atoms, parameters
    shape = dict(n_samples=2500, n_features=n_features, n_components=60, n_nonzero=n_nonzero)
    noisy, atoms, codes = make_dictionary_data(**shape, snr_db=snr_db, random_state=seed)
    return noisy, codes @ atoms, 60, {}


def spectra(noise, seed, *, share=0.4, n=800, n_atoms=8, n_channels=120):
    """Return mixtures of sums of Gaussian lines, which are non-negative."""
    rng = np.random.default_rng(seed)
    channels, atoms = np.arange(n_channels), np.zeros((n_atoms, n_channels))
    for atom in atoms:
        for _ in range(3):
            centre, width = rng.uniform(0, n_channels), rng.uniform(2, 8)
            atom += rng.uniform(0.3, 1) * np.exp(-0.5 * ((channels - centre) / width) ** 2)
    codes = rng.gamma(1.5, size=(n, n_atoms)) * (rng.uniform(size=(n, n_atoms)) < share)
    clean = codes @ atoms
    noisy = clean + noise * rng.standard_normal(clean.shape)
    return noisy, clean, n_atoms, {"positive_code": True, "positive_dict": True}


def noisy_patches(seed, *, sigma=0.1):
    options = dict(patch_size=(8, 8), n_patches=2500, normalize=False, center=False)
    clean = extract_patches(load_gray_images(), **options, random_state=seed)
    noisy = clean + np.random.default_rng(seed).normal(scale=sigma, size=clean.shape)
    mean = noisy.mean(axis=1, keepdims=True)
    return noisy - mean, clean - mean, 100, {}


ROWS = {
    "60 atoms in 50 dimensions, 4-sparse, 20 dB": lambda seed: planted(50, 4, 20, seed),
    "60 in 30, 3-sparse, 30 dB": lambda seed: planted(30, 3, 30, seed),
    "60 in 50, 4-sparse, 5 dB": lambda seed: planted(50, 4, 5, seed),
    "8 spectra of 120 channels, noise 0.05": lambda seed: spectra(0.05, seed),
    "8 spectra of 120 channels, noise 0.005": lambda seed: spectra(0.005, seed),
    "photograph patches with noise": noisy_patches,
}


def relative_error(found, clean, noisy):
    return float(np.square(found - clean).sum() / np.square(noisy - clean).sum())


def coded(learner, noisy, clean):  # -> error relative to the noise, share of codes that are used
    codes = learner.transform(noisy)
    error = relative_error(learner.inverse_transform(codes), clean, noisy)
    return error, float((codes != 0).mean())


def compared(make, train, test, clean):
    """Return errors and densities at the default, of the search's penalty, and of a grid."""
    learner = make().fit(train)
    error, density = coded(learner, test, clean)
    penalty, errors = learner.search_alpha_, {}
    for multiple in MULTIPLES:
        fitted = make(alpha=multiple * penalty).fit(train)
        for name, share in KINDS.items():
            errors[f"{name}, {multiple:g}"] = coded(fitted.set_params(debias=share), test, clean)
    best = min(errors, key=lambda name: errors[name][0])
    before = errors["lasso, 1"][1]
    return {
        "error": error,
        "best of the grid": errors[best][0],
        "over best": error / errors[best][0],
        "best is": best,
        "multiple": learner.alpha_ / penalty,
        "debias": learner.debias_,
        "density": density,
        "density over the search's": density / before,
        "errors of the grid": {name: found[0] for name, found in errors.items()},
    }, learner


def rows_of(name, seed):
    noisy, clean, n_atoms, params = ROWS[name](seed)
    n = len(noisy) * 4 // 5

    def make(**more):
        return PUDLEDictionaryLearning(n_atoms, random_state=0, **params, **more)

    found, _ = compared(make, noisy[:n], noisy[n:], clean[n:])
    if params:
        nmf = NMF(n_atoms, init="nndsvda", max_iter=1000, random_state=0)
        nmf.fit(np.maximum(noisy[:n], 0.0))
        rebuilt = nmf.inverse_transform(nmf.transform(np.maximum(noisy[n:], 0.0)))
        found["NMF"] = relative_error(rebuilt, clean[n:], noisy[n:])
        found["over NMF"] = found["error"] / found["NMF"]
    return found


def planted_images(snr_db, seed, *, n_images=6, side=64, n_atoms=6, kernel=9, density=0.0026):
    """Return noisy and clean images of planted smooth atoms."""
    rng = np.random.default_rng(seed)
    atoms = torch.from_numpy(rng.standard_normal((n_atoms, 1, kernel, kernel)))
    atoms = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(atoms, [1] * 4), 3, stride=1)
    atoms /= atoms.flatten(1).norm(dim=1)[:, None, None, None]
    shape = n_images, n_atoms, side - kernel + 1, side - kernel + 1
    codes = (rng.uniform(size=shape) < density) * rng.uniform(0.5, 1.5, shape)
    codes *= rng.choice([-1.0, 1.0], shape)
    clean = ConvDictionary(atoms, 1).synthesis(torch.from_numpy(codes))[:, 0].numpy()
    level = clean.std() * 10 ** (-snr_db / 20)
    return clean + level * rng.standard_normal(clean.shape), clean


def images_of(snr_db, seed):
    noisy, clean = planted_images(snr_db, seed)

    def make(**more):
        options = dict(atom_shape=(9, 9), stride=1, random_state=0)
        return ConvPUDLEDictionaryLearning(6, **options, **more)

    return compared(make, noisy[:4], noisy[4:], clean[4:])[0]


TABLES = {
    "digits": load_digits,
    "breast cancer": load_breast_cancer,
    "wine": load_wine,
    "iris": load_iris,
    "diabetes": load_diabetes,
}


def imputed(name, seed):
    """Return errors of missing entries, in units of those of the mean, of three imputers."""
    x = StandardScaler().fit_transform(TABLES[name]().data)
    rng = np.random.default_rng(seed)
    x = x[rng.permutation(len(x))]
    missing = rng.uniform(size=x.shape) < 0.2
    seen = np.where(missing, np.nan, x)
    learner = PUDLEDictionaryLearning(random_state=0).fit(seen)

    def reconstructed(learner):
        return learner.inverse_transform(learner.transform(seen))

    found = {"default": reconstructed(learner)}
    found["KNNImputer"] = KNNImputer().fit_transform(seen)
    few = dict(n_nearest_features=20) if x.shape[1] > 40 else {}
    found["IterativeImputer"] = IterativeImputer(random_state=0, **few).fit_transform(seen)
    for multiple in MULTIPLES:
        fitted = PUDLEDictionaryLearning(alpha=multiple * learner.search_alpha_, random_state=0)
        fitted.fit(seen)
        for kind, share in KINDS.items():
            found[f"{kind}, {multiple:g}"] = reconstructed(fitted.set_params(debias=share))
    square = np.square(x[missing]).sum()
    errors = {key: float(np.square((z - x)[missing]).sum() / square) for key, z in found.items()}
    names = "default", "KNNImputer", "IterativeImputer"
    best = min(error for key, error in errors.items() if key not in names)
    return {key: errors[key] for key in names} | {
        "best of the grid": best,
        "over best": errors["default"] / best,
        "multiple": learner.alpha_ / learner.search_alpha_,
        "debias": learner.debias_,
    }


def seconds(fit, repeats):
    times = []
    for _ in range(repeats):
        start = perf_counter()
        fit()
        times.append(perf_counter() - start)
    return median(times)


@cache
def _digits():
    return load_digits().data / 16


TIMED = {name: (lambda name=name: ROWS[name](0)) for name in ROWS} | {
    "digits, 100 atoms": lambda: (_digits(), None, 100, {}),
}


def times_of(name, repeats):
    x, _, n_atoms, params = TIMED[name]()
    default = PUDLEDictionaryLearning(n_atoms, random_state=0, **params)
    penalty = default.fit(x).search_alpha_
    given = PUDLEDictionaryLearning(n_atoms, alpha=penalty, random_state=0, **params)
    with_choice, without = (seconds(partial(m.fit, x), repeats) for m in (default, given))
    return {"chosen": with_choice, "given": without, "ratio": with_choice / without}


def tasks(n_seeds, repeats):  # yields the part, the name of a row, and what to call for it
    for name in ROWS:
        for seed in range(n_seeds):
            yield "rows", f"{name}, seed {seed}", lambda n=name, s=seed: rows_of(n, s)
    for snr_db in (10, 20, 30):
        for seed in range(n_seeds):
            title = f"six 9 x 9 atoms, {snr_db} dB, seed {seed}"
            yield "images", title, lambda d=snr_db, s=seed: images_of(d, s)
    for name in TABLES:
        yield "imputation", name, lambda n=name: imputed(n, 0)
    for name in TIMED:
        yield "times", name, lambda n=name: times_of(n, repeats)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="data sets of each kind")
    parser.add_argument("--repeats", type=int, default=5, help="fits that are timed")
    parser.add_argument("--only", nargs="*", help="parts: rows, images, imputation, times")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = {}
    for part, name, measure in tasks(options.seeds, options.repeats):
        if options.only and part not in options.only:
            continue
        found = measure()
        results.setdefault(part, []).append({"data": name} | found)
        short = {k: float(f"{v:.3g}") for k, v in found.items() if isinstance(v, float)}
        print(part, "|", name, "|", short, found.get("best is", ""), flush=True)
        report = {"title": "Codes at the default", "seeds": options.seeds, "results": results}
        write_report(options.out, report | circumstances())


if __name__ == "__main__":
    main()
