"""Reproduce figures of the published version of the paper: stable training, and contributions.

    python benchmarks/reproduce_published.py stability
    python benchmarks/reproduce_published.py contributions
    python benchmarks/reproduce_published.py size

Stability: 3000 samples of 96 atoms in 64 dimensions, 4 of them in each, with bounded (and so
sub-Gaussian) codes of any sign. Training starts from the pairwise initialisation of these samples,
and takes 6 epochs of Adam with 25 unfoldings, by gradients "dec" and "ae-ls". One of the size of
the batch, the learning rate and the noise of the data varies, the others stay at 16, 1e-3 and none.
The error is the relative one of the dictionary, after matching atoms. The report also has the
distance that the dictionary moves in an epoch at the end of training, and the cosine of the
gradients of a batch and of all samples at the start.

Contributions: the digits 0 to 4 of scikit-learn, without labels, 100 atoms, non-negative codes of
15 unfoldings, Adam for 200 epochs. The report has the distance between the dictionary and the
combination of samples in the formula with some ridge (a sample has the norm 1). It also has the
share of samples of the right class among those with the largest contributions to the reconstruction
of a new digit, and among those with the most similar codes.

Size: three synthetic problems, three seeds each, on which the stability of the dictionary chooses
the number of atoms; three bootstrap samples for each number.
"""

import argparse
import time
from functools import partial

import numpy as np
import torch
from common import RESULTS, circumstances, write_report
from pairwise import pairwise_atoms
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.utils import resample

from skpudle import PUDLEDictionaryLearning
from skpudle._data.batches import Samples
from skpudle._gradients import GRADIENT_RULES
from skpudle._operators._atoms import DenseDictionary, project_atoms
from skpudle.datasets import make_dictionary_data
from skpudle.encoding import encode
from skpudle.inspection import atom_contributions, reconstruction_contributions
from skpudle.metrics import dictionary_error, dictionary_stability

# ---------------------------------------------------------------- stability of training

N, FEATURES, ATOMS, NONZERO = 3000, 64, 96, 4
ALPHA, UNFOLDINGS, EPOCHS = 0.3, 25, 6
BASE = {"batch_size": 16, "learning_rate": 1e-3, "snr_db": None}
VARIED = {
    "batch_size": [4, 16, 64],
    "learning_rate": [1e-4, 1e-3, 1e-2],
    "snr_db": [None, 20, 10],
}


def gradient_of(rule, atoms, x):
    atoms = atoms.clone().requires_grad_()
    encoder = partial(_encode, alpha=ALPHA)
    dictionary, options = DenseDictionary(atoms), dict(encoder=encoder, penalty=ALPHA)
    surrogate = GRADIENT_RULES[rule](dictionary, Samples(x), **options).surrogate
    return torch.autograd.grad(surrogate, atoms)[0]


def _encode(dictionary, x, mask=None, *, alpha):
    return encode(dictionary.atoms, x, alpha=alpha, n_unfoldings=UNFOLDINGS)


def agreement(rule, atoms, x, batch_size, n_batches=50):
    """Return the mean cosine of the gradients of batches and of all samples."""
    whole = gradient_of(rule, atoms, x).flatten()
    batches = x[: batch_size * n_batches].split(batch_size)
    parts = [gradient_of(rule, atoms, batch).flatten() for batch in batches]
    return float(torch.stack([torch.cosine_similarity(p, whole, dim=0) for p in parts]).mean())


def train(rule, X, truth, start, *, batch_size, learning_rate):
    """Return the errors before and after every epoch, and the distance moved in the last one."""
    learner = PUDLEDictionaryLearning(
        len(start),
        alpha=ALPHA,
        gradient=rule,
        n_unfoldings=UNFOLDINGS,
        optimizer="adam",
        learning_rate=learning_rate,
        batch_size=batch_size,
        dict_init=start,
    )
    rng, errors, before = (
        np.random.default_rng(0),
        [dictionary_error(start, truth, match=True)],
        start,
    )
    for _ in range(EPOCHS):
        learner.partial_fit(X[rng.permutation(len(X))])
        errors.append(dictionary_error(learner.components_, truth, match=True))
        moved = np.linalg.norm(learner.components_ - before) / np.linalg.norm(before)
        before = learner.components_
    return [float(error) for error in errors], float(moved)


def row_of(rule, batch_size, learning_rate, snr_db):
    X, truth, _ = make_dictionary_data(N, FEATURES, ATOMS, NONZERO, snr_db=snr_db, random_state=0)
    x = torch.tensor(X)
    start = project_atoms(pairwise_atoms(x, ATOMS, generator=torch.Generator().manual_seed(0)))
    begun = time.process_time()
    options = {"batch_size": batch_size, "learning_rate": learning_rate}
    errors, moved = train(rule, X, truth, start.numpy(), **options)
    return {
        "gradient": rule,
        "batch size": batch_size,
        "learning rate": learning_rate,
        "noise (dB)": snr_db,
        "error at the start": errors[0],
        "error at the end": errors[-1],
        "moved in the last epoch": moved,
        "cosine with the full gradient": agreement(rule, start, x, batch_size),
        "cpu seconds": time.process_time() - begun,
        "errors": errors,
    }


def stability(path):
    settings = [BASE | {name: value} for name, values in VARIED.items() for value in values]
    distinct = list({tuple(setting.values()): setting for setting in settings}.values())
    rows = []
    for setting in distinct:
        for rule in ("dec", "ae-ls"):
            rows.append(row_of(rule, **setting))
            print(rows[-1], flush=True)
            report = {"title": "Stability of training from the pairwise start", "results": rows}
            write_report(path, report | {"machine": circumstances()})


# ---------------------------------------------------------------- contributions


def share(y_train, y_test, indices):
    """Return the share of the indexed training samples with the class of their sample."""
    return float((y_train[indices] == y_test[:, None]).mean())


def contributions(path):
    X, y = load_digits(n_class=5, return_X_y=True)
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    train, test = slice(0, 700), slice(700, None)
    rows = []
    for rule in ("dec", "ae-ls"):
        begun = time.process_time()
        learner = PUDLEDictionaryLearning(
            100,
            alpha=0.1,
            gradient=rule,
            n_unfoldings=15,
            positive_code=True,
            optimizer="adam",
            learning_rate=1e-3,
            dict_init="data",
            max_iter=200,
            tol=None,
            random_state=0,
        ).fit(X[train])
        seconds = time.process_time() - begun
        similar = cosine_similarity(learner.transform(X[test]), learner.transform(X[train]))
        nearest = np.argsort(-similar, axis=1)[:, :10]
        for ridge in (0.0, 0.1, 1.0):
            atoms = atom_contributions(learner, X[train], ridge=ridge)
            found = reconstruction_contributions(learner, X[train], X[test], ridge=ridge)
            row = {
                "gradient": rule,
                "ridge": ridge,
                "distance of the formula": atoms.distance,
                "median distance of an atom": float(np.median(atoms.distances)),
                "distance of reconstructions": found.distance,
                "same class, ten largest contributions": share(y[train], y[test], found.indices),
                "same class, ten most similar codes": share(y[train], y[test], nearest),
                "same class, by chance": float((y[train][None] == y[test][:, None]).mean()),
                "cpu seconds of training": seconds,
            }
            print(row, flush=True)
            rows.append(row)
    report = {"title": "Contributions of training samples to digits", "results": rows}
    write_report(path, report | {"machine": circumstances()})


# ---------------------------------------------------------------- the number of atoms


def planted(n_components, n_features, n_nonzero, n, noise, rng):
    atoms = rng.standard_normal((n_components, n_features))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = rng.uniform(1, 2, (n, n_components)) * rng.choice([-1, 1], (n, n_components))
    codes[rng.random(codes.shape).argsort(axis=1) >= n_nonzero] = 0
    X = codes @ atoms
    return X + noise * X.std() * rng.standard_normal(X.shape)


def size(path):
    rows = []
    for problem in [(20, 16, 3, 1000, 0.1), (12, 20, 2, 800, 0.3), (24, 30, 3, 800, 0.1)]:
        n_components, n_features, n_nonzero, n, noise = problem
        for seed in range(1, 4):
            X = planted(*problem, np.random.default_rng(seed))
            found = {}
            for k in [n_components + step for step in (-3, -2, -1, 0, 1, 2, 3)]:
                samples = [resample(X, random_state=10 * seed + i) for i in range(3)]
                fits = [PUDLEDictionaryLearning(k, random_state=i).fit(s).components_
                        for i, s in enumerate(samples)]  # fmt: skip
                found[k] = dictionary_stability(fits).stability
            best, second = sorted(found, key=found.get)[:-3:-1]
            row = {
                "atoms": n_components,
                "features": n_features,
                "atoms in a sample": n_nonzero,
                "samples": n,
                "noise": noise,
                "seed": seed,
                "most stable number": best,
                "stability": found[best],
                "second number": second,
                "its stability": found[second],
            }
            print(row, flush=True)
            rows.append(row)
    report = {"title": "The number of atoms by stability", "results": rows}
    write_report(path, report | {"machine": circumstances()})


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    figures = {"stability": stability, "contributions": contributions, "size": size}
    parser.add_argument("figure", choices=figures)
    options = parser.parse_args()
    figures[options.figure](RESULTS / f"published_{options.figure}.json")


if __name__ == "__main__":
    main()
