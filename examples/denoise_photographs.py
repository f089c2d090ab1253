"""
Hard thresholding denoises photographs better than the lasso, and in less time
==============================================================================

Small patches of a photograph are combinations of few atoms, and noise is not: a dictionary learned
from noisy patches alone, without one clean photograph, removes most of the noise. Here
:class:`~skpudle.PUDLEDictionaryLearning` and scikit-learn's
:class:`~sklearn.decomposition.MiniBatchDictionaryLearning` learn 128 atoms each from the same noisy
8 x 8 patches and denoise the two photographs that come with scikit-learn. As a script, this prints
one table and writes two pictures, into the folder that ``--out`` names.
"""

import argparse
import warnings
from pathlib import Path
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import sklearn
import torch
from sklearn.base import clone
from sklearn.datasets import load_sample_images
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

import skpudle
from skpudle import PUDLEDictionaryLearning

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
# A photograph is cut into overlapping patches, the patches are denoised one by one, and each pixel
# becomes the mean of what all patches that contain it say. Patches are centred first: their means
# carry little noise, and atoms need not spend themselves on brightness.


def positions(length, stride):  # the last patch always touches the border
    starts = np.arange(0, length - SIZE + 1, stride)
    return starts if starts[-1] == length - SIZE else np.append(starts, length - SIZE)


def extract(image, stride=STRIDE):  # -> centred patches, one a row, and their means
    rows, columns = (positions(length, stride) for length in image.shape)
    windows = np.lib.stride_tricks.sliding_window_view(image, (SIZE, SIZE))
    patches = windows[np.ix_(rows, columns)].reshape(-1, SIZE * SIZE)
    means = patches.mean(axis=1, keepdims=True)
    return patches - means, means


def average(patches, shape):  # -> every pixel the mean of its patches
    rows, columns = (positions(length, STRIDE) for length in shape)
    patches = patches.reshape(len(rows), len(columns), SIZE, SIZE)
    total, count = np.zeros(shape), np.zeros(shape)
    for i, j in np.ndindex(SIZE, SIZE):  # pixel (i, j) of all patches at once
        pixels = np.ix_(rows + i, columns + j)
        total[pixels] += patches[:, :, i, j]
        count[pixels] += 1
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
# Hard shrinkage keeps what it selects at full size, while the lasso shrinks every coefficient. An
# atom first enters a code when ``step_size`` times its correlation with the patch reaches
# ``alpha``, so alpha is a multiple of the noise: 3.2 standard deviations, times the step. Trained
# for an encoder of five unfoldings, the dictionary needs no more.

step_size = 0.2
through_encoder = PUDLEDictionaryLearning(
    N_ATOMS,
    alpha=3.2 * SIGMA * step_size,
    gradient="ae-ls",
    shrinkage="hard",
    n_unfoldings=5,
    step_size=step_size,
    dict_init="svd",
    learning_rate=5e-3,
    max_iter=1,  # one pass
    tol=None,
    random_state=FIT_SEED,
)

# %%
# The gradient through the encoder makes it reconstruct well, and what there is to reconstruct is
# noisy. With nothing clean to aim at, the gradient of the decoder alone is the better guide.

decoder_only = clone(through_encoder).set_params(gradient="dec")

# %%
# scikit-learn keeps its own batch size, number of iterations and stopping rule; three times as many
# iterations change its results by less than 0.1 dB. Its alpha is a penalty and not a threshold, and
# gets a value of its own: 1.85 standard deviations is about what denoises best. The parameters of
# all learners were chosen on these two photographs; expect a smaller lead on others.

alternating = MiniBatchDictionaryLearning(
    N_ATOMS,
    alpha=1.85 * SIGMA,
    fit_algorithm="cd",
    transform_algorithm="lasso_cd",
    transform_n_nonzero_coefs=2,  # for OMP
    random_state=FIT_SEED,
)

# a few codes stop at a duality gap of 1e-6, which no PSNR shows
warnings.filterwarnings("ignore", category=ConvergenceWarning, module="sklearn")

# %%
# One table
# ---------
# All learners see the same arrays. A few patches come first, so that the start of processes and
# what Python imports on first use are not timed.


def timed_fit(learner):  # -> seconds
    clone(learner).set_params(max_iter=1).fit(training[:500])
    start = perf_counter()
    learner.fit(training)
    return perf_counter() - start


def denoise(learner):  # -> photographs, how often each atom is used, seconds for codes
    images, usage, seconds = [], 0, 0.0
    learner.transform(training[:500])
    for image in noisy:
        patches, means = extract(image)
        start = perf_counter()
        codes = learner.transform(patches)
        seconds += perf_counter() - start
        images.append(average(codes @ learner.components_ + means, image.shape))
        usage = usage + np.count_nonzero(codes, axis=0)
    return images, usage, seconds


def print_row(name, images, *seconds):  # PSNRs are means over the photographs
    before, after = (np.mean([psnr(*pair) for pair in zip(x, clean)]) for x in (noisy, images))
    print("{:<38}{:>10.2f}{:>10.2f}{:>9.2f}{:>15.2f}".format(name, before, after, *seconds))


print(f"{'':<38}PSNR noisy  denoised  fit (s)  transform (s)")
for learner in (through_encoder, decoder_only):  # the pictures below show the second
    fit_seconds = timed_fit(learner)
    denoised, usage, transform_seconds = denoise(learner)
    print_row(
        f"PUDLEDictionaryLearning, {learner.gradient}", denoised, fit_seconds, transform_seconds
    )

fit_seconds = timed_fit(alternating)
alternating.set_params(n_jobs=torch.get_num_threads())  # transform gains from it, fit does not
for algorithm in ("lasso_cd", "omp"):
    images, _, transform_seconds = denoise(alternating.set_params(transform_algorithm=algorithm))
    print_row(f"MiniBatchDictionaryLearning, {algorithm}", images, fit_seconds, transform_seconds)

n_threads, shape = torch.get_num_threads(), f"{N_TRAINING} patches in {training.dtype}"
versions = ", ".join(f"{x.__name__} {x.__version__}" for x in (skpudle, sklearn, torch))
print(f"\nPSNR in dB, mean of two photographs; {N_ATOMS} atoms from {shape}; patch stride {STRIDE}")
print(f"threads:  {n_threads} (torch on {decoder_only.device_}; jobs of scikit-learn's transform)")
print(f"seeds:    noise {NOISE_SEED}, patches {PATCH_SEED}, fits {FIT_SEED}\nversions: {versions}")

# %%
# Two pictures
# ------------
# The atoms of the better dictionary: edges and waves are used most often, noise-like ones least.

figure, axes = plt.subplots(8, N_ATOMS // 8, figsize=(8, 4.4))
for ax, atom in zip(axes.flat, decoder_only.components_[np.argsort(-usage)]):
    ax.imshow(atom.reshape(SIZE, SIZE), cmap="gray")
    ax.set_axis_off()
figure.suptitle(f"{N_ATOMS} atoms learned from noisy patches, most used first")
figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.92, wspace=0.08, hspace=0.08)
folder.mkdir(parents=True, exist_ok=True)
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
