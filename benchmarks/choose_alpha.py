"""Measure the denoising of the alpha that the default score chooses.

`GridSearchCV` with the learner's own score picks an alpha on noisy data. Every alpha of the grid is
then evaluated by the mean squared error of the reconstruction against the clean data, which the
score does not see. Data of the generative model are learned from the pairwise initialisation and
from samples as atoms; from the latter ``dec`` finds the dictionary, and ``ae-ls`` with a small
alpha does not. The report also has the errors, relative to the best, of the alpha that a scorer for
denoising chooses. Example::

    python benchmarks/choose_alpha.py --out benchmarks/results/choosing_alpha.json
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import torch
from common import circumstances, write_report
from pairwise import pairwise_atoms
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, ParameterGrid

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import extract_patches, load_gray_images, make_dictionary_data
from skpudle.metrics import make_denoising_scorer

SNR_DB = (20, 10, 5)
STARTS = {"pairwise": "the pairwise start", "data": "samples"}
SIGMAS = (15, 25, 40)  # of grey levels from 0 to 255
LEARNER = PUDLEDictionaryLearning(60, optimizer="surrogate", max_iter=12, tol=None, random_state=0)


def default_score(estimator, X, y=None):
    return estimator.score(X)


def synthetic(snr_db):  # -> noisy, clean
    shape = dict(n_samples=3000, n_features=50, n_components=60, n_nonzero=3)
    noisy, atoms, codes = make_dictionary_data(**shape, snr_db=snr_db, random_state=0)
    return noisy, codes @ atoms


def patches(sigma):  # -> noisy, clean; both without the mean of the noisy patch
    options = dict(patch_size=(8, 8), n_patches=2000, normalize=False, center=False)
    clean = extract_patches(load_gray_images(), **options, random_state=0)
    noisy = clean + np.random.default_rng(0).normal(scale=sigma / 255, size=clean.shape)
    mean = noisy.mean(axis=1, keepdims=True)
    return noisy - mean, clean - mean


def compare(noisy, clean, alphas, **params):
    learner = clone(LEARNER).set_params(**params)
    noise = float(np.square(noisy - clean).mean())
    scorers = {
        "score": default_score,
        "GCV": make_denoising_scorer(),
        "SURE": make_denoising_scorer(noise_std=noise**0.5),
    }
    options = dict(scoring=scorers, cv=3, refit=False)
    search = GridSearchCV(learner, {"alpha": alphas.tolist()}, **options).fit(noisy)
    errors = []
    for point in ParameterGrid({"alpha": alphas.tolist()}):
        fitted = clone(learner).set_params(**point).fit(noisy)
        denoised = fitted.inverse_transform(fitted.transform(noisy))
        errors.append(float(np.square(denoised - clean).mean()))
    scores = {name: search.cv_results_[f"mean_test_{name}"] for name in scorers}
    errors, picked = np.array(errors), {name: int(s.argmax()) for name, s in scores.items()}
    best = int(errors.argmin())
    ratio = {name: float(errors[i] / errors[best]) for name, i in picked.items()}
    return {
        "best alpha": float(alphas[best]),
        "picked alpha": float(alphas[picked["score"]]),
        "error over best": ratio["score"],
        "loss in dB": float(10 * np.log10(ratio["score"])),
        "by GCV": ratio["GCV"],
        "by SURE": ratio["SURE"],
        "best error over noise": float(errors[best] / noise),
        "alphas": alphas.tolist(),
        "scores": scores["score"].tolist(),
        "errors over noise": (errors / noise).tolist(),
    }


def problems():  # yields name, (noisy, clean), alphas, parameters
    for start, gradient in (("pairwise", "ae-ls"), ("data", "dec"), ("data", "ae-ls")):
        for snr in SNR_DB:
            name, data = (
                f"generative model, {snr} dB, {gradient} from {STARTS[start]}",
                synthetic(snr),
            )
            generator = torch.Generator().manual_seed(0)
            found = pairwise_atoms(torch.tensor(data[0]), 60, generator=generator).numpy()
            params = {"dict_init": found if start == "pairwise" else start, "gradient": gradient}
            yield name, data, np.geomspace(0.04, 0.5, 7), params
    for gradient, sigma in product(("dec", "ae-ls"), SIGMAS):
        alphas = sigma / 255 * np.geomspace(0.5, 6, 7)
        params = {"gradient": gradient}
        yield f"patches, noise {sigma}/255, {gradient}", patches(sigma), alphas, params
    hard = {"shrinkage": "hard"}
    yield "generative model, 20 dB, hard", synthetic(20), np.geomspace(0.01, 0.3, 7), hard


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name, data, alphas, params in problems():
        rows.append({"data": name} | compare(*data, alphas, **params))
        print({k: v for k, v in rows[-1].items() if not isinstance(v, list)}, flush=True)
        report = {"title": "The alpha that the default score chooses", "results": rows}
        write_report(options.out, report | circumstances())


if __name__ == "__main__":
    main()
