"""What alpha does the default score choose, and how well does that denoise?

`GridSearchCV` with the learner's own score picks an alpha on noisy data; every alpha of the grid is
then judged by the mean squared error of the reconstruction to the clean data, which the score does
not see. Example::

    python benchmarks/choose_alpha.py --out benchmarks/results/choosing_alpha.json
"""

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, ParameterGrid

import skpudle
from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import extract_patches, load_gray_images, make_dictionary_data

SNR_DB = (12, 9, 6, 20)
SIGMAS = (15, 25, 40)  # of grey levels from 0 to 255
LEARNER = PUDLEDictionaryLearning(
    60, n_unfoldings=30, optimizer="surrogate", max_iter=12, tol=None, random_state=0
)


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
    search = GridSearchCV(learner, {"alpha": list(alphas)}, cv=3, refit=False).fit(noisy)
    errors = []
    for point in ParameterGrid({"alpha": list(alphas)}):
        fitted = clone(learner).set_params(**point).fit(noisy)
        denoised = fitted.inverse_transform(fitted.transform(noisy))
        errors.append(float(np.square(denoised - clean).mean()))
    scores, errors = search.cv_results_["mean_test_score"], np.array(errors)
    picked, best = int(scores.argmax()), int(errors.argmin())
    noise = float(np.square(noisy - clean).mean())
    return {
        "picked alpha": alphas[picked],
        "best alpha": alphas[best],
        "error over best": errors[picked] / errors[best],
        "loss in dB": 10 * np.log10(errors[picked] / errors[best]),
        "error of picked over noise": errors[picked] / noise,
        "error of best over noise": errors[best] / noise,
        "alphas": list(alphas),
        "scores": scores.tolist(),
        "errors over noise": (errors / noise).tolist(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    problems = {
        f"generative model, {snr} dB": (synthetic(snr), np.geomspace(0.1, 1, 7), {})
        for snr in SNR_DB
    }
    problems["generative model, 20 dB, hard"] = (
        synthetic(20),
        np.geomspace(0.01, 0.3, 7),
        {"shrinkage": "hard"},
    )
    for sigma in SIGMAS:
        alphas = sigma / 255 * np.geomspace(0.5, 6, 7)
        problems[f"patches, noise {sigma}/255"] = (patches(sigma), alphas, {})
    rows = []
    for name, (data, alphas, params) in problems.items():
        rows.append({"data": name} | compare(*data, alphas, **params))
        print(
            json.dumps({k: v for k, v in rows[-1].items() if not isinstance(v, list)}), flush=True
        )
    report = {
        "title": "The alpha that the default score chooses",
        "results": json.loads(json.dumps(rows), parse_float=lambda t: float(f"{float(t):.4g}")),
        "versions": {"skpudle": skpudle.__version__, "torch": torch.__version__},
        "python": platform.python_version(),
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
