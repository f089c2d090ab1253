"""
Denoise a photograph by its own patches
=======================================

No clean photograph is needed.

Small patches of a photograph are combinations of few atoms, and noise is not. A dictionary learned
from the noisy patches alone removes most of the noise.
"""

# %%
# A photograph with noise of standard deviation 25/255, and its patches without their means.

import matplotlib.pyplot as plt
import numpy as np
from skimage.restoration import denoise_nl_means
from sklearn.datasets import load_sample_image
from sklearn.feature_extraction.image import (
    extract_patches_2d,
    reconstruct_from_patches_2d,
)

from skpudle import PUDLEDictionaryLearning
from skpudle.plotting import AtomsDisplay, CodesDisplay

SIGMA, SIZE = 25 / 255, (8, 8)
clean = load_sample_image("china.jpg")[60:300, 120:480].mean(axis=2) / 255
noisy = clean + SIGMA * np.random.default_rng(0).standard_normal(clean.shape)

patches = extract_patches_2d(noisy, SIZE).reshape(-1, 64)
means = patches.mean(axis=1, keepdims=True)
X = patches - means

# %%
# With hard thresholding an atom enters a code when ``step_size`` times its correlation reaches
# ``alpha``, which is therefore a multiple of the noise. Without clean data to aim at, the
# gradient of the decoder alone is the better guide. One pass over the patches is enough.

step_size = 0.2
learner = PUDLEDictionaryLearning(
    128,
    alpha=3.2 * SIGMA * step_size,
    gradient="dec",
    shrinkage="hard",
    n_unfoldings=5,
    step_size=step_size,
    dict_init="svd",
    max_iter=1,
    tol=None,
    random_state=0,
).fit(X)

# %%
# Every pixel becomes the mean over all patches that contain it. Non-local means, which look for
# similar patches and average them, need no dictionary.

denoised = learner.inverse_transform(learner.transform(X)) + means
denoised = reconstruct_from_patches_2d(denoised.reshape(-1, *SIZE), clean.shape)
options = dict(patch_size=5, patch_distance=6, h=0.7 * SIGMA, sigma=SIGMA)
averaged = denoise_nl_means(noisy, **options)


def psnr(image):  # in dB, for a peak of 1
    return -10 * np.log10(np.mean((image - clean) ** 2))


images = {
    f"Noisy, {psnr(noisy):.1f} dB": noisy,
    f"By the dictionary, {psnr(denoised):.1f} dB": denoised,
    f"Non-local means, {psnr(averaged):.1f} dB": averaged,
    "Clean": clean,
}
figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
for ax, (title, image) in zip(axes.flat, images.items()):
    ax.imshow(image, cmap="gray", vmin=0, vmax=1)
    ax.set_title(title)
    ax.set_axis_off()
plt.show()

# %%
# The atoms, most used first: edges and waves lead.

AtomsDisplay.from_estimator(learner, X[::10], image_shape=SIZE, n_columns=16)
plt.show()

# %%
# Four patches in ten need no atom, only their mean; three in ten, the textured ones, need more
# than eight.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
CodesDisplay.from_estimator(learner, X[::10], ax=axes[0])
CodesDisplay.from_estimator(learner, X[::10], kind="count", ax=axes[1])
plt.show()
