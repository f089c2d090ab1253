"""
Denoise two photographs
=======================

Hard thresholds denoise better than the lasso, with any learned dictionary.

Small patches of a photograph are combinations of few atoms, and noise is not. So a dictionary
learned from noisy patches alone removes most of the noise. Here
:class:`~skpudle.PUDLEDictionaryLearning` and scikit-learn's
:class:`~sklearn.decomposition.MiniBatchDictionaryLearning` learn 128 atoms each from the same noisy
8 x 8 patches and denoise the two photographs that come with scikit-learn. Cosines and
scikit-image's non-local means, which need no learning, are there for comparison. As a script, this
prints one table and writes two pictures and the table as JSON, into the folder that ``--out``
names.
"""

import argparse
import json
import warnings
from pathlib import Path
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import skimage
import sklearn
import torch
from scipy.fft import dct
from skimage.restoration import denoise_nl_means
from sklearn.base import clone
from sklearn.datasets import load_sample_images
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

import skpudle
from skpudle import PUDLEDictionaryLearning
from skpudle.omp import solve_omp

SIGMA = 25 / 255  # standard deviation of the noise; photographs are in [0, 1]
SIZE, STRIDE = 8, 2  # of the patches that are denoised; those for training come from everywhere
N_ATOMS, N_TRAINING = 128, 100_000
NOISE_SEED = PATCH_SEED = FIT_SEED = 0

parser = argparse.ArgumentParser(description="Denoise two photographs.")
parser.add_argument("--out", type=Path, default=Path("skpudle_demo"), help="folder for pictures")
folder = parser.parse_args().out.resolve()

# %%
# From photographs to patches and back
# ------------------------------------
# Cut a photograph into overlapping patches, denoise each, and average the patches at each pixel.
# Patches with fewer atoms count more, as more atoms have more of the noise. Centre the patches
# first: their means carry little noise, and atoms need not spend themselves on brightness.
# :func:`skpudle.images.denoise_patches` does all this for any coder; here every step is seen, and
# timed.


def positions(length, stride):  # the last patch always touches the border
    starts = np.arange(0, length - SIZE + 1, stride)
    return starts if starts[-1] == length - SIZE else np.append(starts, length - SIZE)


def extract(image, stride=STRIDE):  # -> centred patches, one a row, and their means
    rows, columns = (positions(length, stride) for length in image.shape)
    windows = np.lib.stride_tricks.sliding_window_view(image, (SIZE, SIZE))
    patches = windows[np.ix_(rows, columns)].reshape(-1, SIZE * SIZE)
    means = patches.mean(axis=1, keepdims=True)
    return patches - means, means


def average(patches, weights, shape):  # -> every pixel the weighted mean of its patches
    rows, columns = (positions(length, STRIDE) for length in shape)
    weights = weights.reshape(len(rows), len(columns))
    patches = patches.reshape(len(rows), len(columns), SIZE, SIZE)
    total, count = np.zeros(shape), np.zeros(shape)
    for i, j in np.ndindex(SIZE, SIZE):  # pixel (i, j) of all patches at once
        pixels = np.ix_(rows + i, columns + j)
        total[pixels] += weights * patches[:, :, i, j]
        count[pixels] += weights
    return total / count


def psnr(image, reference):  # in dB, for a peak of 1
    return -10 * np.log10(np.mean((image - reference) ** 2))


clean = [image @ [0.299, 0.587, 0.114] / 255 for image in load_sample_images().images]
noise = np.random.default_rng(NOISE_SEED)
noisy = [image + SIGMA * noise.standard_normal(image.shape) for image in clean]
draw = np.random.default_rng(PATCH_SEED)
pools = [extract(image, stride=1)[0] for image in noisy]
training = np.concatenate([draw.choice(pool, N_TRAINING // 2, replace=False) for pool in pools])

# %%
# Learners
# --------
# Hard shrinkage keeps selected coefficients at full size; the lasso shrinks every one. An atom
# first enters a code when ``step_size`` times its correlation with the patch reaches ``alpha``, so
# alpha is a multiple of the noise: 3.2 standard deviations, times the step. Trained for an encoder
# of five unfoldings, the dictionary needs no more.

step_size = 0.2
through_encoder = PUDLEDictionaryLearning(
    N_ATOMS,
    alpha=3.2 * SIGMA * step_size,
    gradient="ae-ls",
    shrinkage="hard",
    n_unfoldings=5,
    step_size=step_size,
    dict_init="svd",
    max_iter=1,  # one pass
    tol=None,
    random_state=FIT_SEED,
)

# %%
# The gradient through the encoder makes it reconstruct well, noise included. Without clean data
# to aim at, the gradient of the decoder alone is the better guide.

decoder_only = clone(through_encoder).set_params(gradient="dec")

# %%
# The penalty of the lasso is no threshold and has a value of its own: about 1.85 standard
# deviations denoise best. Both packages keep all other defaults. Parameters of all methods were
# chosen on these two photographs; expect other differences on others.

penalty = 1.85 * SIGMA
by_default = PUDLEDictionaryLearning(N_ATOMS, alpha=penalty, random_state=FIT_SEED)
alternating = MiniBatchDictionaryLearning(
    N_ATOMS,
    alpha=penalty,
    fit_algorithm="cd",
    transform_algorithm="lasso_cd",
    random_state=FIT_SEED,
)

# %%
# Any dictionary can be coded as by K-SVD: orthogonal matching pursuit (OMP) adds atoms until
# noise explains the error of a patch. It, too, keeps coefficients at full size.


def omp_to_error(atoms, patches):  # -> codes
    atoms, patches = torch.tensor(atoms), torch.tensor(patches)
    return solve_omp(atoms, patches, tol=(1.1 * SIGMA * SIZE) ** 2).numpy()


# %%
# Nothing has to be learned for cosines, the basis of JPEG, with a hard threshold.

waves = dct(np.eye(SIZE), norm="ortho", axis=0)
cosines = np.kron(waves, waves)


def threshold(atoms, patches):  # -> codes
    codes = patches @ atoms.T
    return np.where(np.abs(codes) < 2.8 * SIGMA, 0, codes)


# a few codes stop at a duality gap of 1e-6, which no PSNR shows
warnings.filterwarnings("ignore", category=ConvergenceWarning, module="sklearn")

# %%
# One table
# ---------
# All methods see the same arrays. A few patches come first, so that the start of processes and
# imports are not timed.


def timed_fit(learner):  # -> seconds
    with warnings.catch_warnings(action="ignore"):
        clone(learner).set_params(max_iter=1).fit(training[:500])
    start = perf_counter()
    learner.fit(training)
    return perf_counter() - start


def denoise(encode, atoms):  # -> photographs, how often each atom is used, seconds for codes
    images, usage, seconds = [], 0, 0.0
    encode(training[:500])
    for image in noisy:
        patches, means = extract(image)
        start = perf_counter()
        codes = encode(patches)
        seconds += perf_counter() - start
        weights = 1 / (1 + np.count_nonzero(codes, axis=1))
        images.append(average(codes @ atoms + means, weights, image.shape))
        usage = usage + np.count_nonzero(codes, axis=0)
    return images, usage, seconds


def mean_psnr(images):
    return float(np.mean([psnr(*pair) for pair in zip(images, clean)]))


rows = []


def report(name, images, fit_seconds=None, seconds=None):
    rows.append({"method": name, "PSNR (dB)": mean_psnr(images)})
    rows[-1] |= {"fit (s)": fit_seconds, "codes (s)": seconds}
    cells = ["" if value is None else f"{value:.2f}" for value in list(rows[-1].values())[1:]]
    print("{:<54}{:>10}{:>10}{:>11}".format(name, *cells), flush=True)


def compare(name, codes, learner):  # -> the return value of `denoise` for its own codes
    fit_seconds, atoms = timed_fit(learner), learner.components_
    own = denoise(learner.transform, atoms)
    report(f"{name}, {codes}", own[0], fit_seconds, own[2])
    images, _, seconds = denoise(lambda patches: omp_to_error(atoms, patches), atoms)
    report(f"{name}, OMP to the noise", images, fit_seconds, seconds)
    return own


print("{:<54}{:>10}{:>10}{:>11}".format("", "PSNR (dB)", "fit (s)", "codes (s)"))
report("noisy", noisy)
compare("PUDLEDictionaryLearning by ae-ls", "hard threshold", through_encoder)
denoised, usage, _ = compare("PUDLEDictionaryLearning by dec", "hard threshold", decoder_only)
compare("PUDLEDictionaryLearning, defaults", "own codes", by_default)
compare("MiniBatchDictionaryLearning", "lasso_cd", alternating)
images, _, seconds = denoise(lambda patches: threshold(cosines, patches), cosines)
report("64 cosines, hard threshold", images, None, seconds)
start = perf_counter()
options = dict(patch_size=5, patch_distance=6, h=0.7 * SIGMA, sigma=SIGMA, fast_mode=True)
images = [denoise_nl_means(image, **options) for image in noisy]
report("non-local means", images, None, perf_counter() - start)

n_threads, shape = torch.get_num_threads(), f"{N_TRAINING} patches in {training.dtype}"
versions = {x.__name__: x.__version__ for x in (skpudle, sklearn, skimage, torch)}
print(f"\nPSNR: mean of two photographs; {N_ATOMS} atoms from {shape}; patch stride {STRIDE}")
print(f"threads:  {n_threads} (torch on {decoder_only.device_})")
print(f"seeds:    noise {NOISE_SEED}, patches {PATCH_SEED}, fits {FIT_SEED}")
print("versions:", ", ".join(f"{name} {version}" for name, version in versions.items()))
folder.mkdir(parents=True, exist_ok=True)
table = {"title": "Two photographs", "results": rows, "threads": n_threads, "versions": versions}
(folder / "denoised.json").write_text(json.dumps(table, indent=1) + "\n")

# %%
# Two pictures
# ------------
# The atoms learned by ``dec``: edges and waves are used most often, noise-like ones least.

figure, axes = plt.subplots(8, N_ATOMS // 8, figsize=(8, 4.4))
for ax, atom in zip(axes.flat, decoder_only.components_[np.argsort(-usage)]):
    ax.imshow(atom.reshape(SIZE, SIZE), cmap="gray")
    ax.set_axis_off()
figure.suptitle(f"{N_ATOMS} atoms learned from noisy patches, most used first")
figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.92, wspace=0.08, hspace=0.08)
figure.savefig(folder / "atoms.png", dpi=150)

# %%
# Smooth regions come back almost clean; foliage, which is as irregular as noise, loses detail.

figure, axes = plt.subplots(len(clean), 3, figsize=(13, 6.2), layout="constrained")
for axes_row, versions in zip(axes, zip(noisy, denoised, clean)):
    titles = [f"{psnr(image, versions[-1]):.1f} dB" for image in versions[:2]] + ["clean"]
    for ax, image, title, kind in zip(axes_row, versions, titles, ("noisy, ", "denoised, ", "")):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        ax.set_title(kind + title)
        ax.set_axis_off()
figure.savefig(folder / "denoised.png", dpi=150)
print(f"\nAtoms: {folder / 'atoms.png'}\nPhotographs: {folder / 'denoised.png'}")
