"""Replace the name of the class in scikit-learn's example of image denoising; compare the results.

    python benchmarks/bench_drop_in.py --out benchmarks/results/drop_in.json

50 atoms of 7 x 7 pixels from the clean half of a picture; codes of the noisy half by OMP and LARS,
on three pictures of scikit-image, since the gallery's picture would need a download. Pictures are
shrunk to a side of about 200 pixels, as there.

Both classes get the same arguments. Times are CPU time.
"""

import numpy as np
from common import Report, parse, timed
from sklearn.decomposition import MiniBatchDictionaryLearning, SparseCoder
from sklearn.feature_extraction.image import (
    extract_patches_2d,
    reconstruct_from_patches_2d,
)

from skpudle import PUDLEDictionaryLearning

CLASSES = {
    "scikit-learn": MiniBatchDictionaryLearning,
    "skpudle": PUDLEDictionaryLearning,
}
PICTURES = ("camera", "chelsea", "astronaut")
CODERS = {"OMP 1": ("omp", 1), "OMP 2": ("omp", 2), "LARS 5": ("lars", 5)}


def shrunk(image):
    """Return means of blocks of pixels, as the example takes them, in [0, 1]."""
    image = image.mean(axis=2) if image.ndim == 3 else image
    n = round(min(image.shape) / 200)
    height, width = (size // n for size in image.shape)
    blocks = image[: n * height, : n * width].reshape(height, n, width, n)
    return blocks.mean(axis=(1, 3)) / 255


def denoising():
    from skimage import data

    for name in PICTURES:
        clean = shrunk(getattr(data, name)())
        height, width = clean.shape
        noise = 0.075 * np.random.RandomState(0).randn(height, width - width // 2)
        noisy, right = clean.copy(), np.s_[:, width // 2 :]
        noisy[right] += noise
        X = extract_patches_2d(noisy[:, : width // 2], (7, 7)).reshape(-1, 49)
        X = (X - X.mean(axis=0)) / X.std(axis=0)
        params = dict(
            n_components=50, batch_size=200, alpha=1.0, max_iter=10, random_state=0
        )
        learners = {package: kind(**params) for package, kind in CLASSES.items()}
        seconds = {name: timed(learner.fit, X)[1] for name, learner in learners.items()}
        patches = extract_patches_2d(noisy[right], (7, 7)).reshape(-1, 49)
        mean, ratio = patches.mean(axis=0), seconds["skpudle"] / seconds["scikit-learn"]
        times = {"seconds": seconds["skpudle"], "time over scikit-learn": ratio}
        for label, (algorithm, n_nonzero) in CODERS.items():
            psnr = {}
            for package, learner in learners.items():
                options = dict(
                    transform_algorithm=algorithm, transform_n_nonzero_coefs=n_nonzero
                )
                coder = SparseCoder(learner.components_, **options)
                denoised = coder.transform(patches - mean) @ learner.components_ + mean
                image = reconstruct_from_patches_2d(
                    denoised.reshape(-1, 7, 7), noisy[right].shape
                )
                error = np.mean((image - clean[right]) ** 2)
                psnr[f"{package} (dB)"] = float(-10 * np.log10(error))
            yield {"script": f"denoising, {name}, {label}"} | psnr | times


def main():
    given = parse(__doc__)
    # compiles
    PUDLEDictionaryLearning(5).fit(np.random.default_rng(0).standard_normal((50, 8)))
    Report(given.out, title="The name of the class replaced").extend(denoising())


if __name__ == "__main__":
    main()
