"""
A dictionary fills gaps in textures better than interpolation, and in smooth surfaces worse
===========================================================================================

NaN marks a missing entry. Training and codes then use the known entries only, and the
reconstruction has values everywhere: ``inverse_transform(transform(X))`` fills the gaps. Beside it
are what needs no training, linear interpolation and scikit-image's biharmonic inpainting.
"""

# %%
# Half of the pixels of two photographs are lost: of a roof, with edges and repeated tiles, and of a
# flower, which is smooth.

import matplotlib.pyplot as plt
import numpy as np
from scipy.interpolate import griddata
from skimage.restoration import inpaint_biharmonic
from sklearn.datasets import load_sample_images
from sklearn.feature_extraction.image import reconstruct_from_patches_2d

from skpudle import PUDLEDictionaryLearning
from skpudle.plotting import AtomsDisplay

SIZE = (8, 8)
china, flower = (image.mean(axis=2) / 255 for image in load_sample_images().images)
pictures = {"roof": china[60:220, 180:400], "flower": flower[140:300, 180:400]}
lost = np.random.default_rng(0).random(pictures["roof"].shape) < 0.5

# %%
# `extract_patches_2d` refuses NaN; a window onto the array does not. Patches are centred by the
# mean of what is known. Where a pixel is known it stays; where it is lost, it is the mean over the
# patches around it.


def by_dictionary(damaged):  # -> image, learner, rows that it learned from
    patches = np.lib.stride_tricks.sliding_window_view(damaged, SIZE).reshape(-1, 64)
    means = np.nanmean(patches, axis=1, keepdims=True)
    X = patches - means
    learner = PUDLEDictionaryLearning(
        96, alpha=0.02, dict_init="data", gradient="dec", max_iter=2, tol=None, random_state=0
    ).fit(X[::4])
    filled = learner.inverse_transform(learner.transform(X)) + means
    image = reconstruct_from_patches_2d(filled.reshape(-1, *SIZE), damaged.shape)
    return np.where(lost, image, damaged), learner, X[::4]


def by_lines(damaged):  # between known neighbours; beyond the outermost ones, the nearest
    known, gaps = np.argwhere(~lost), np.argwhere(lost)
    linear, nearest = (
        griddata(known, damaged[~lost], gaps, method=method) for method in ("linear", "nearest")
    )
    image = damaged.copy()
    image[lost] = np.where(np.isnan(linear), nearest, linear)
    return image


def psnr(image, clean):  # in dB over the lost pixels, for a peak of 1
    return -10 * np.log10(np.mean((image - clean)[lost] ** 2))


# %%
# Atoms are made of edges and stripes; what is smooth is what interpolation assumes.

figure, axes = plt.subplots(2, 4, figsize=(13, 5.2), layout="constrained")
for row, (name, clean) in zip(axes, pictures.items()):
    damaged = np.where(lost, np.nan, clean)
    inpainted, learner, X = by_dictionary(damaged)
    images = {
        "linear interpolation": by_lines(damaged),
        "biharmonic": inpaint_biharmonic(np.where(lost, 0, clean), lost),
        "dictionary": inpainted,
    }
    shown = {f"{name}, half of the pixels": damaged}
    shown |= {f"{method}, {psnr(x, clean):.1f} dB": x for method, x in images.items()}
    for ax, (title, image) in zip(row, shown.items()):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title)
        ax.set_axis_off()
plt.show()

# %%
# No training patch was complete, and still the atoms have no gaps.

AtomsDisplay.from_estimator(learner, X[::5], image_shape=SIZE, n_columns=16)
plt.show()
