"""Choose the defaults of a search: its penalty, and the steps after it.

On synthetic problems: the share of the atoms found (coherence above 0.95) and the matched error, of
the search, of the debiased atoms and of SPAMS after 20 passes with the same penalty. On real data:
R^2 on held-out samples, of orthogonal matching pursuit with a tenth as many atoms as features, with
2 and with 5 atoms, and the density of the lasso's codes. ``--gradient`` adds the result of ae-ls
after the search. Seconds are CPU time.

Usage: python benchmarks/choose_search.py [--rules rms:0.05 rms:0.07 median:0.1 median:0.3]
"""

import argparse
import json
import time
import warnings

import numpy as np
import torch
from common import RESULTS
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits, load_sample_image
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import orthogonal_mp_gram

from skpudle import PUDLEDictionaryLearning
from skpudle._initialization import initial_atoms
from skpudle.datasets import make_dictionary_data
from skpudle.search import Problem, auto_alpha, search
from skpudle.search.descend import refit_atoms

SYNTHETIC = {
    "64 x 100": dict(n_samples=5000, n_features=64, n_components=100, n_nonzero=5),
    "20 x 50, 20 dB": dict(n_samples=1500, n_features=20, n_components=50, n_nonzero=3, snr_db=20),
    "100 x 150, 1000 samples": {},
    "100 x 150, 20 dB": dict(n_samples=10_000, snr_db=20),
    "50 x 60, 20 dB": dict(
        n_samples=3000, n_features=50, n_components=60, n_nonzero=3, amplitude=(1, 1), snr_db=20
    ),
    "50 x 60": dict(n_samples=3000, n_features=50, n_components=60, n_nonzero=3, amplitude=(1, 1)),
    "100 x 200, 10 dB": dict(
        n_samples=20_000, n_components=200, n_features=100, amplitude=(1, 1), snr_db=10
    ),
}


def patches(image, size, n, rng):
    rows = rng.integers(0, image.shape[0] - size + 1, n)
    columns = rng.integers(0, image.shape[1] - size + 1, n)
    cut = [image[i : i + size, j : j + size].ravel() for i, j in zip(rows, columns, strict=True)]
    cut = np.stack(cut).astype(float)
    return cut - cut.mean(1, keepdims=True)


def real_data(rng):
    """Yield the name, the training and the test samples of each data set."""
    digits = rng.permutation(load_digits().data)
    scale = digits.std(0)
    standardised = (digits - digits.mean(0)) / np.where(scale > 0, scale, 1)
    yield "digits", digits[:1300], digits[1300:]
    yield "standardised digits", standardised[:1300], standardised[1300:]
    photograph = load_sample_image("china.jpg") / 255
    for size in (8, 12):
        cut = patches(photograph.mean(2), size, 5000, rng)
        yield f"{size} x {size} patches", cut[:4000], cut[4000:]
    cut = patches(photograph, 6, 5000, rng)
    yield "colour patches", cut[:4000], cut[4000:]
    try:
        import pywt.data
    except ImportError:
        return
    signal = pywt.data.ecg().astype(float)
    signal = (signal - signal.mean()) / signal.std()
    windows = np.lib.stride_tricks.sliding_window_view(signal, 64)
    yield "ECG windows", windows[:700].copy(), windows[764:].copy()


def penalty(rule, x, atoms):
    kind, share = rule.split(":")
    if kind == "auto":
        return auto_alpha(x)
    if kind == "rms":
        return float(share) * float(x.square().sum(1).mean().sqrt())
    atoms = torch.nn.functional.normalize(atoms, dim=1)
    return float(share) * float((x @ atoms.mT).abs().amax(1).median())


def timed(function, *arguments, **options):
    start = time.process_time()
    return function(*arguments, **options), round(time.process_time() - start, 2)


def against_truth(atoms, truth):
    correlation = atoms @ truth.T
    rows, columns = linear_sum_assignment(-np.abs(correlation))
    signs = np.sign(correlation[rows, columns])[:, None]
    error = np.linalg.norm(signs * atoms[rows] - truth[columns]) / np.linalg.norm(truth)
    found = float((np.abs(correlation).max(0) > 0.95).mean())
    return {"found": round(found, 3), "error": round(float(error), 4)}


def at_equal_sparsity(atoms, test):
    scores = {}
    norms = np.linalg.norm(atoms, axis=1, keepdims=True)
    atoms = atoms / np.where(norms > 0, norms, 1)
    for name, n_atoms in {"r2": test.shape[1] // 10, "r2_2": 2, "r2_5": 5}.items():
        codes = orthogonal_mp_gram(atoms @ atoms.T, atoms @ test.T, n_nonzero_coefs=n_atoms)
        residual = np.square(test - codes.T @ atoms).sum()
        scores[name] = round(1 - residual / np.square(test - test.mean(0)).sum(), 3)
    return scores


def spams_atoms(x, p, alpha):
    import spams

    atoms = spams.trainDL(
        np.asfortranarray(x.T), K=p, lambda1=alpha, iter=-(-20 * len(x) // 512), batchsize=512,
        numThreads=torch.get_num_threads(), verbose=False,
    )  # fmt: skip
    return np.ascontiguousarray(atoms.T)


def run(x, p, rule, score, *, gradient):
    """Yield the results of each method on the samples."""
    data = torch.from_numpy(x)
    atoms = initial_atoms(data, p, "data", torch.Generator().manual_seed(0))
    alpha = penalty(rule, data, atoms)
    problem = Problem(data, alpha)
    result, seconds = timed(search, problem, atoms)
    coded = result.coded
    density = round(coded.n_entries / coded.problem.total_weight / p, 3)
    found = coded.atoms.numpy()
    common = {"rule": rule, "alpha": round(alpha, 4)}
    extra = {"density": density, "epochs": len(result.losses)}
    yield common | {"method": "search"} | score(found) | {"seconds": seconds} | extra
    unbiased, more = timed(refit_atoms, coded.problem, coded.atoms, coded.codes)
    yield common | {"method": "debiased"} | score(unbiased.numpy()) | {"seconds": seconds + more}
    options = dict(dict_init=found, gradient="ae-ls", tol=None, alpha=alpha, random_state=0)
    for optimizer, depth, n_epochs in gradient:
        learner = PUDLEDictionaryLearning(
            p, optimizer=optimizer, n_unfoldings=depth, max_iter=n_epochs, **options
        )
        learner, more = timed(learner.fit, x)
        name = f"then ae-ls, {optimizer}, {depth or 'converged'}, {n_epochs} passes"
        yield common | {"method": name} | score(learner.components_) | {"seconds": seconds + more}
    yield from spams_row(x, p, alpha, score, common)


def spams_row(x, p, alpha, score, common):
    try:
        atoms, seconds = timed(spams_atoms, x, p, alpha)
    except ImportError:
        return
    yield common | {"method": "SPAMS, 20 passes"} | score(atoms) | {"seconds": seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    rules = ["auto:", "rms:0.05", "median:0.1", "median:0.3"]
    parser.add_argument("--rules", nargs="+", default=rules)
    parser.add_argument("--gradient", action="store_true")
    parser.add_argument("--output", default="choosing_search.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    depths = [(name, depth, 5) for name in ("surrogate", "adam") for depth in (None, 20, 100)]
    gradient = [*depths, ("surrogate", None, 20)] if arguments.gradient else []
    small = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)).double()
    problem = Problem(small, 0.1)
    coded = search(problem, small[:6]).coded
    refit_atoms(problem, coded.atoms, coded.codes)  # compiles
    results = []

    def report(name, rows):
        for row in rows:
            results.append({"data": name} | row)
            print(results[-1], flush=True)

    real = list(real_data(np.random.default_rng(0)))
    for rule in arguments.rules:
        for name, options in SYNTHETIC.items():
            x, truth, _ = make_dictionary_data(random_state=1, **options)

            def score(atoms, truth=truth):
                return against_truth(atoms, truth)

            report(name, run(x, len(truth), rule, score, gradient=gradient))
        for name, x, test in real:

            def score(atoms, test=test):
                return at_equal_sparsity(atoms, test)

            report(name, run(x, 100, rule, score, gradient=gradient))
    for name, x, test in real:
        learner, seconds = timed(MiniBatchDictionaryLearning(100, random_state=0).fit, x)
        row = {"method": "MiniBatchDictionaryLearning"} | at_equal_sparsity(
            learner.components_, test
        )
        report(name, [row | {"seconds": seconds}])
    (RESULTS / arguments.output).write_text(json.dumps(results, indent=0) + "\n")


if __name__ == "__main__":
    main()
