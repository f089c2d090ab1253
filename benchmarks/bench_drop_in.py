"""Replace the name of the class in three scripts of scikit-learn's users; compare the results.

    python benchmarks/bench_drop_in.py --out benchmarks/results/drop_in.json
    python benchmarks/bench_drop_in.py --only faces --repeats 1

* ``denoising``: the gallery's example of image denoising (50 atoms of 7 x 7 pixels from the clean
  half of a picture; codes of the noisy half by OMP and LARS), on three pictures of scikit-image,
  since the gallery's picture would need a download. Pictures are shrunk to a side of about 200
  pixels, as there.
* ``faces``: the gallery's decomposition of faces, with 6 atoms from batches of 3 faces and with the
  constraints on signs that it shows, on scikit-image's 100 faces of 25 x 25 pixels.
* ``digits``: a pipeline of scaling, dictionary and logistic regression, with default codes.

Both classes get the same arguments. Times are CPU time, medians of ``--repeats`` fits, taken in
turn.
"""

import argparse
import time
import warnings
from itertools import product
from pathlib import Path

import numpy as np
from common import circumstances, write_report
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import MiniBatchDictionaryLearning, SparseCoder
from sklearn.feature_extraction.image import extract_patches_2d, reconstruct_from_patches_2d
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpudle import PUDLEDictionaryLearning

CLASSES = {"scikit-learn": MiniBatchDictionaryLearning, "skpudle": PUDLEDictionaryLearning}
PICTURES = ("camera", "chelsea", "astronaut")
CODERS = {"OMP 1": ("omp", 1), "OMP 2": ("omp", 2), "LARS 5": ("lars", 5)}


def fitted_in_turn(learners, X, repeats):
    """Fit each learner in turn, and return their median seconds."""
    for learner in learners.values():  # do not time imports and compilation
        clone(learner).set_params(max_iter=1).fit(X)
    seconds = {name: [] for name in learners}
    for _, (name, learner) in product(range(repeats), learners.items()):
        start = time.process_time()
        learner.fit(X)
        seconds[name].append(time.process_time() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def compared(values, seconds):
    """Return columns of a row: the value of each learner, and the ratio of their times."""
    ratio = seconds["skpudle"] / seconds["scikit-learn"]
    return values | {"seconds": seconds["skpudle"], "time over scikit-learn": ratio}


def shrunk(image):
    """Return means of blocks of pixels, as the example takes them, in [0, 1]."""
    image = image.mean(axis=2) if image.ndim == 3 else image
    n = round(min(image.shape) / 200)
    height, width = (size // n for size in image.shape)
    blocks = image[: n * height, : n * width].reshape(height, n, width, n)
    return blocks.mean(axis=(1, 3)) / 255


def denoising(repeats):
    from skimage import data

    for name in PICTURES:
        clean = shrunk(getattr(data, name)())
        height, width = clean.shape
        noise = 0.075 * np.random.RandomState(0).randn(height, width - width // 2)
        noisy, right = clean.copy(), np.s_[:, width // 2 :]
        noisy[right] += noise
        X = extract_patches_2d(noisy[:, : width // 2], (7, 7)).reshape(-1, 49)
        X = (X - X.mean(axis=0)) / X.std(axis=0)
        params = dict(n_components=50, batch_size=200, alpha=1.0, max_iter=10, random_state=0)
        learners = {package: kind(**params) for package, kind in CLASSES.items()}
        seconds = fitted_in_turn(learners, X, repeats)
        patches = extract_patches_2d(noisy[right], (7, 7)).reshape(-1, 49)
        mean = patches.mean(axis=0)
        for label, (algorithm, n_nonzero) in CODERS.items():
            psnr = {}
            for package, learner in learners.items():
                options = dict(transform_algorithm=algorithm, transform_n_nonzero_coefs=n_nonzero)
                coder = SparseCoder(learner.components_, **options)
                denoised = coder.transform(patches - mean) @ learner.components_ + mean
                image = reconstruct_from_patches_2d(denoised.reshape(-1, 7, 7), noisy[right].shape)
                error = np.mean((image - clean[right]) ** 2)
                psnr[f"{package} (dB)"] = float(-10 * np.log10(error))
            yield {"script": f"denoising, {name}, {label}"} | compared(psnr, seconds)


def faces(repeats):
    from skimage.data import lfw_subset

    X = lfw_subset()[:100].reshape(100, -1).astype(np.float32)
    X = X - X.mean(axis=0)
    X = X - X.mean(axis=1, keepdims=True)
    for positive_dict, positive_code in product((False, True), repeat=2):
        signs = dict(positive_dict=positive_dict, positive_code=positive_code)
        params = dict(n_components=6, alpha=0.1, max_iter=50, batch_size=3, random_state=0, **signs)
        learners = {
            "scikit-learn": MiniBatchDictionaryLearning(**params, fit_algorithm="cd"),  # as there
            "skpudle": PUDLEDictionaryLearning(**params),
        }
        seconds = fitted_in_turn(learners, X, repeats)
        label = ", ".join(name.replace("_", " ") for name, on in signs.items() if on)
        label = f"6 atoms from batches of 3 faces, {label or 'any signs'}"
        yield {"script": label} | compared({}, seconds)


def digits(repeats):
    X, y = load_digits(return_X_y=True)
    splits = ShuffleSplit(max(2, repeats), test_size=0.3, random_state=0)
    for n_atoms in (100, 200):
        right, seconds = {}, {}
        for name, kind in CLASSES.items():
            learner = kind(n_atoms, random_state=0)
            pipeline = make_pipeline(StandardScaler(), learner, LogisticRegression(max_iter=3000))
            start = time.process_time()
            right[f"{name} (share right)"] = float(
                cross_val_score(pipeline, X, y, cv=splits).mean()
            )
            seconds[name] = time.process_time() - start
        yield {"script": f"digits to logistic regression, {n_atoms} atoms"} | compared(
            right, seconds
        )
    pixels = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000))
    right = float(cross_val_score(pixels, X, y, cv=splits).mean())
    yield {"script": "digits to logistic regression, pixels", "no dictionary (share right)": right}


SCRIPTS = {"denoising": denoising, "faces": faces, "digits": digits}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report = {"title": "The name of the class replaced", **circumstances(), "results": []}
    warnings.simplefilter("ignore")
    for name in options.only:
        for row in SCRIPTS[name](options.repeats):
            report["results"].append(row)
            print(row, flush=True)
            write_report(options.out, report)


if __name__ == "__main__":
    main()
