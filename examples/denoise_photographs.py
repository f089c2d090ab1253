"""
Hard thresholding denoises photographs better than the lasso, and in less time
==============================================================================

Small patches of a photograph are combinations of few atoms, and noise is not: a dictionary learned
from noisy patches alone, without one clean photograph, removes much of the noise. Here
:class:`~skpudle.PUDLEDictionaryLearning` and scikit-learn's
:class:`~sklearn.decomposition.MiniBatchDictionaryLearning` learn 128 atoms each from the same noisy
8 x 8 patches and denoise the two photographs that come with scikit-learn.

As a script, ``python examples/denoise_photographs.py [--out FOLDER]``, it prints one table and
writes two pictures.
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
SIZE, STRIDE = 8, 2  # of patches; training patches come from every position
N_ATOMS, N_TRAINING = 128, 20_000
NOISE_SEED = TRAINING_SEED = FIT_SEED = 0

# lasso_cd stops at duality gaps of 1e-6 on a few patches, too small to see in a PSNR
warnings.filterwarnings("ignore", category=ConvergenceWarning, module="sklearn")

# %%
# From photographs to patches and back
# ------------------------------------
# Every photograph is cut into overlapping patches, the patches are denoised one by one, and each
# pixel becomes the mean of what all patches that contain it say. Patches are centred first: their
# means carry little noise, and atoms need not spend themselves on brightness.


def positions(length, stride):
    """Return where patches start along an axis; the last one always touches the border."""
    starts = np.arange(0, length - SIZE + 1, stride)
    return starts if starts[-1] == length - SIZE else np.append(starts, length - SIZE)


def extract(image, stride=STRIDE):
    """Return centred patches, one a row, and their means."""
    rows, columns = (positions(length, stride) for length in image.shape)
    windows = np.lib.stride_tricks.sliding_window_view(image, (SIZE, SIZE))
    patches = windows[np.ix_(rows, columns)].reshape(-1, SIZE * SIZE)
    means = patches.mean(axis=1, keepdims=True)
    return patches - means, means


def average(patches, shape, stride=STRIDE):
    """Return the photograph in which every pixel is the mean of its patches."""
    rows, columns = (positions(length, stride) for length in shape)
    patches = patches.reshape(len(rows), len(columns), SIZE, SIZE)
    total, count = np.zeros(shape), np.zeros(shape)
    for i, j in np.ndindex(SIZE, SIZE):  # pixel (i, j) of all patches at once
        pixels = np.ix_(rows + i, columns + j)
        total[pixels] += patches[:, :, i, j]
        count[pixels] += 1
    return total / count


def psnr(image, reference):
    """Return the peak signal-to-noise ratio in dB, for a peak of 1."""
    return -10 * np.log10(np.mean((image - reference) ** 2))


names = [Path(name).stem for name in load_sample_images().filenames]
clean = [image @ [0.299, 0.587, 0.114] / 255 for image in load_sample_images().images]
noise = np.random.default_rng(NOISE_SEED)
noisy = [image + SIGMA * noise.standard_normal(image.shape) for image in clean]

training = np.concatenate([extract(image, stride=1)[0] for image in noisy])
chosen = np.random.default_rng(TRAINING_SEED).choice(len(training), N_TRAINING, replace=False)
training = training[chosen]

# %%
# Two learners
# ------------
# Hard shrinkage keeps what it selects at full size, while the lasso shrinks every coefficient. An
# atom enters a code when ``step_size`` times its correlation with the patch reaches ``alpha``, so
# that alpha is set as a multiple of the noise: 3.2 standard deviations, times the step. Five
# unfoldings are enough, because the dictionary is trained for this very encoder.

step_size = 0.2
learner = PUDLEDictionaryLearning(
    N_ATOMS,
    alpha=3.2 * SIGMA * step_size,
    shrinkage="hard",
    n_unfoldings=5,
    step_size=step_size,
    dict_init="svd",
    learning_rate=3e-3,
    max_iter=4,
    tol=None,
    random_state=FIT_SEED,
)

# %%
# scikit-learn keeps its own batch size, number of iterations and stopping rule. Its alpha is a
# penalty, not a threshold, so it gets its own: 1.85 standard deviations denoise best here. Ten
# times as many iterations would gain it less than 0.1 dB.

reference = MiniBatchDictionaryLearning(
    N_ATOMS,
    alpha=1.85 * SIGMA,
    fit_algorithm="cd",
    transform_algorithm="lasso_cd",
    random_state=FIT_SEED,
)

# %%
# One table
# ---------
# All learners see the same arrays. A fit of a few patches comes first, so that what Python imports
# on first use is not timed.


def timed(function, *args):
    """Return what the function returns, and the seconds that it took."""
    start = perf_counter()
    result = function(*args)
    return result, perf_counter() - start


def fit(estimator):
    """Return the seconds that a fit to the training patches takes."""
    clone(estimator).fit(training[:500])
    return timed(estimator.fit, training)[1]


def denoise(estimator):
    """Return the denoised photographs, how often each atom was used, and the seconds."""
    images, usage, seconds = [], np.zeros(N_ATOMS, dtype=int), 0.0
    for image in noisy:
        patches, means = extract(image)
        codes, elapsed = timed(estimator.transform, patches)
        images.append(average(codes @ estimator.components_ + means, image.shape))
        usage += np.count_nonzero(codes, axis=0)
        seconds += elapsed
    return images, usage, seconds


def row(name, images, fit_seconds, transform_seconds):
    """Print a row of the table; PSNRs are means over the photographs."""
    before, after = (np.mean([psnr(*pair) for pair in zip(x, clean)]) for x in (noisy, images))
    print(f"{name:<34}{before:>10.2f}{after:>13.2f}{fit_seconds:>9.2f}{transform_seconds:>13.2f}")


n_jobs = torch.get_num_threads()
print(f"{'':<34}{'PSNR noisy':>10}{'denoised':>13}{'fit (s)':>9}{'transform (s)':>15}")
fit_seconds = fit(learner)
denoised, usage, seconds = denoise(learner)
row("PUDLEDictionaryLearning", denoised, fit_seconds, seconds)

fit_seconds = fit(reference)
reference.set_params(n_jobs=n_jobs, transform_n_nonzero_coefs=2)
for algorithm in ("lasso_cd", "omp"):
    images, _, seconds = denoise(reference.set_params(transform_algorithm=algorithm))
    row(f"MiniBatchDictionaryLearning, {algorithm}", images, fit_seconds, seconds)

print(
    f"""
PSNR in dB, mean of {len(clean)} photographs of {noisy[0].size} pixels, patch stride {STRIDE}; {N_ATOMS} atoms,
{N_TRAINING} training patches, {training.dtype}. Threads: {n_jobs} (torch on {learner.device_}; n_jobs of scikit-learn's
transform). Seeds: noise {NOISE_SEED}, choice of patches {TRAINING_SEED}, fits {FIT_SEED}. Versions: skpudle
{skpudle.__version__}, scikit-learn {sklearn.__version__}, torch {torch.__version__}, numpy {np.__version__}."""
)

# %%
# Two pictures
# ------------
# The atoms, those used most often first: edges and waves of all directions.


def atom_picture(atoms, n_columns=16):
    """Show atoms as tiles, row by row."""
    figure, axes = plt.subplots(len(atoms) // n_columns, n_columns, figsize=(8, 4.4))
    for ax, atom in zip(axes.flat, atoms):
        limit = np.abs(atom).max()
        ax.imshow(atom.reshape(SIZE, SIZE), cmap="gray", vmin=-limit, vmax=limit)
        ax.set_axis_off()
    figure.suptitle(f"{len(atoms)} atoms learned from noisy patches, most used first")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.92, wspace=0.08, hspace=0.08)
    return figure


def photograph_picture():
    """Show each photograph noisy, denoised and clean."""
    figure, axes = plt.subplots(len(clean), 3, figsize=(13, 6.2), layout="constrained")
    for ax_row, name, *versions in zip(axes, names, noisy, denoised, clean):
        captions = [f"{psnr(image, versions[-1]):.1f} dB" for image in versions[:2]]
        labels = [f"noisy, {captions[0]}", f"denoised, {captions[1]}", "clean"]
        for ax, image, label in zip(ax_row, versions, labels):
            ax.imshow(image, cmap="gray", vmin=0, vmax=1)
            ax.set_title(f"{name}: {label}")
            ax.set_axis_off()
    return figure


parser = argparse.ArgumentParser(description="Denoise two photographs.")
parser.add_argument("--out", type=Path, default=Path("skpudle_demo"), help="folder for pictures")
folder = parser.parse_args().out
folder.mkdir(parents=True, exist_ok=True)
atom_picture(learner.components_[np.argsort(-usage)]).savefig(folder / "atoms.png", dpi=150)
photograph_picture().savefig(folder / "denoised.png", dpi=150)
print(f"Pictures: {folder.resolve() / 'atoms.png'}, {folder.resolve() / 'denoised.png'}")
