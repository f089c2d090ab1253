"""
Fill missing pixels
===================

Denoising again and again fills gaps better than interpolation, or than coding once.

NaN marks a missing pixel. A dictionary and its codes come from the known pixels only, and the
reconstruction has values everywhere. :func:`skpudle.images.inpaint` goes further: it denoises for
less and less noise, while known pixels keep their values. Linear interpolation and scikit-image's
biharmonic inpainting, which use only neighbours, are there for comparison.
"""

# %%
# Half of the pixels of two photographs are lost: of a roof, with edges and repeated tiles, and of a
# flower, which is smooth.

import matplotlib.pyplot as plt
import numpy as np
from skimage.metrics import peak_signal_noise_ratio
from skimage.restoration import inpaint_biharmonic
from sklearn.datasets import load_sample_images

from skpudle import PUDLEDictionaryLearning
from skpudle.images import denoise_patches, extract, inpaint
from skpudle.plotting import AtomsDisplay

china, flower = (image.mean(axis=2) / 255 for image in load_sample_images().images)
pictures = {"roof": china[60:220, 180:400], "flower": flower[140:300, 180:400]}
lost = np.random.default_rng(0).random(pictures["roof"].shape) < 0.5

# %%
# Atoms are learned from damaged patches, none of which is complete. Then the known pixels code
# the patches at all positions, and a lost pixel becomes the mean over the patches around it.


def by_learned_atoms(damaged):  # -> image, learner
    patches = extract(damaged, stride=2)
    X = patches - np.nanmean(patches, axis=1, keepdims=True)
    learner = PUDLEDictionaryLearning(
        96,
        alpha=0.02,
        dict_init="data",
        gradient="dec",
        max_iter=2,
        tol=None,
        random_state=0,
    ).fit(X)
    return np.where(lost, denoise_patches(learner, damaged), damaged), learner


# %%
# `inpaint` needs no learning: by default it denoises by cosines with a hard threshold, which
# follows the noise. Any function of an image and a noise level can take their place; one that
# changes nothing leaves the linear interpolation that it begins with.


def unchanged(image, noise_std):
    return image


# %%
# Repeated tiles gain most: no neighbour of a lost pixel tells of them, and other patches do.

figure, axes = plt.subplots(2, 5, figsize=(16, 5.2), layout="constrained")
for row, (name, clean) in zip(axes, pictures.items()):
    damaged = np.where(lost, np.nan, clean)
    inpainted, learner = by_learned_atoms(damaged)
    images = {
        "linear interpolation": inpaint(damaged, denoise=unchanged, n_iter=1),
        "biharmonic": inpaint_biharmonic(np.where(lost, 0, clean), lost),
        "learned atoms": inpainted,
        "inpaint": inpaint(damaged),
    }
    shown = {f"{name}, half of the pixels": damaged}
    shown |= {
        f"{k}, {peak_signal_noise_ratio(clean[lost], x[lost], data_range=1):.1f} dB": x
        for k, x in images.items()
    }
    for ax, (title, image) in zip(row, shown.items()):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title)
        ax.set_axis_off()
plt.show()

# %%
# No training patch was complete, and still the atoms have no gaps.

AtomsDisplay.from_estimator(learner, image_shape=(8, 8), n_columns=16)
plt.show()
