"""Denoise photographs by patches: matching pursuit here and in scikit-learn, and cosines.

    python benchmarks/bench_denoise_patches.py --out benchmarks/results/denoise_patches.json

The data are the two photographs that come with scikit-learn, with noise. scikit-learn's dictionary
and one of this package are learned from the same noisy patches. Both are used with orthogonal
matching pursuit up to the error that the noise explains, as K-SVD does; cosines have a hard
threshold. Seconds are CPU time of `denoise_patches` on both photographs, on one core, the fastest
of a few runs; scikit-learn's pursuit runs once.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import circumstances, write_report
from scipy.fft import dct
from skimage.metrics import peak_signal_noise_ratio
from sklearn.datasets import load_sample_images
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.linear_model import orthogonal_mp_gram

from skpudle import PUDLEDictionaryLearning
from skpudle.images import denoise_patches, extract

SIDE, MARGIN, THRESHOLD = 8, 1.1, 2.8  # pixels; of the error, and of cosines, in noise levels


@dataclass
class PursuitOfScikitLearn:
    """Codes of `orthogonal_mp_gram` up to a squared error.

    It gives every patch at least one atom; ``sparing`` leaves out patches that need none.
    """

    components_: np.ndarray
    tol: float
    sparing: bool

    def transform(self, X):
        atoms, codes = self.components_, np.zeros((len(X), len(self.components_)))
        norms = np.square(X).sum(1)
        coded = norms > self.tol if self.sparing else np.ones(len(X), dtype=bool)
        if coded.any():
            given = dict(norms_squared=norms[coded], tol=self.tol)
            codes[coded] = orthogonal_mp_gram(atoms @ atoms.T, atoms @ X[coded].T, **given).T
        return codes


def learn(noisy, options, sigma):
    """Return the atoms of scikit-learn and of this package."""
    draw = np.random.default_rng(options.seed)
    pools = [extract(image) for image in noisy]
    n_each = options.n_training // len(pools)
    patches = np.concatenate([draw.choice(pool, n_each, replace=False) for pool in pools])
    patches -= patches.mean(1, keepdims=True)
    theirs = MiniBatchDictionaryLearning(
        options.p, alpha=1.85 * sigma, fit_algorithm="cd", random_state=options.seed
    )
    ours = PUDLEDictionaryLearning(options.p, alpha=1.85 * sigma, random_state=options.seed)
    return theirs.fit(patches).components_, ours.fit(patches).components_


def competitors(theirs, ours, sigma):
    """Map names to a coder and options of `denoise_patches`."""
    tol = SIDE**2 * (MARGIN * sigma) ** 2
    build = PUDLEDictionaryLearning.from_components

    def pursuit(atoms):
        return build(atoms, transform_algorithm="omp", transform_tol=tol)

    waves = dct(np.eye(SIDE), norm="ortho", axis=0)
    hard = dict(shrinkage="hard", n_unfoldings=1, step_size=1.0, alpha=THRESHOLD * sigma)
    cosines = build(np.kron(waves, waves), **hard)
    equal, sparsity = dict(weights="equal"), dict(weights="sparsity")
    everywhere = dict(stride=1)
    return {
        "cosines, hard threshold": (cosines, equal),
        "the same, weights by sparsity": (cosines, sparsity),
        "scikit-learn's atoms, orthogonal_mp_gram": (
            PursuitOfScikitLearn(theirs, tol, sparing=False),
            equal,
        ),
        "scikit-learn's atoms, orthogonal_mp_gram of patches above the error": (
            PursuitOfScikitLearn(theirs, tol, sparing=True),
            equal,
        ),
        "scikit-learn's atoms, OMP of skpudle": (pursuit(theirs), equal),
        "scikit-learn's atoms, OMP of skpudle, weights by sparsity": (pursuit(theirs), sparsity),
        "skpudle's atoms, OMP of skpudle": (pursuit(ours), equal),
        "skpudle's atoms, OMP of skpudle, weights by sparsity": (pursuit(ours), sparsity),
        "the same, patches at every pixel": (pursuit(ours), sparsity | everywhere),
        "cosines, by sparsity, patches at every pixel": (cosines, sparsity | everywhere),
    }


def run(coder, noisy, **options):
    """Return denoised photographs and seconds of the processor."""
    denoise_patches(coder, noisy[0][:40, :40], **options)  # compiles
    start = time.process_time()
    images = [denoise_patches(coder, image, **options) for image in noisy]
    return images, time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sigma", type=float, default=25.0, help="of the noise, of 255")
    parser.add_argument("--p", type=int, default=128, help="number of atoms")
    parser.add_argument("--n-training", type=int, default=20_000, help="patches to learn from")
    parser.add_argument("--stride", type=int, default=2, help="distance of patches")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sigma = options.sigma / 255
    clean = [image @ [0.299, 0.587, 0.114] / 255 for image in load_sample_images().images]
    noise = np.random.default_rng(options.seed)
    noisy = [image + sigma * noise.standard_normal(image.shape) for image in clean]

    def quality(images):
        return float(
            np.mean([peak_signal_noise_ratio(*pair, data_range=1) for pair in zip(clean, images)])
        )

    rows = [{"name": "noisy", "PSNR (dB)": quality(noisy)}]
    for name, (coder, given) in competitors(*learn(noisy, options, sigma), sigma).items():
        given = dict(stride=options.stride) | given
        repeats = 1 if isinstance(coder, PursuitOfScikitLearn) else options.repeats
        runs = [run(coder, noisy, **given) for _ in range(repeats)]
        rows.append({"name": name, "stride": given["stride"], "PSNR (dB)": quality(runs[0][0])})
        rows[-1]["processor seconds"] = min(seconds for _, seconds in runs)
        print(rows[-1], flush=True)
    seconds = {row["name"]: row.get("processor seconds") for row in rows}
    ours = seconds["scikit-learn's atoms, OMP of skpudle"]
    for name in (name for name in seconds if "orthogonal_mp_gram" in name):
        print(f"{name} took {seconds[name] / ours:.1f} times as long")
    named = {name: str(value) for name, value in vars(options).items() if name != "out"}
    title = f"Denoising by patches, sigma {options.sigma:g}, mean of two photographs"
    write_report(
        options.out, {"title": title, "options": named} | circumstances() | {"results": rows}
    )


if __name__ == "__main__":
    main()
