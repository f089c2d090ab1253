"""
Missing pixels are filled in by a dictionary that never saw them
================================================================

NaN marks a missing entry. Training and codes then use the known entries only, and the
reconstruction has values everywhere: ``inverse_transform(transform(X))`` fills the gaps.
"""

# %%
# Half of the pixels of a photograph are lost.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image
from sklearn.feature_extraction.image import reconstruct_from_patches_2d
from sklearn.impute import SimpleImputer

from skpudle import PUDLEDictionaryLearning
from skpudle.plotting import AtomsDisplay

SIZE = (8, 8)
clean = load_sample_image("flower.jpg")[140:300, 180:400].mean(axis=2) / 255
lost = np.random.default_rng(0).random(clean.shape) < 0.5
damaged = np.where(lost, np.nan, clean)

# %%
# `extract_patches_2d` refuses NaN; a window onto the array does not. Patches are centred by the
# mean of what is known.

patches = np.lib.stride_tricks.sliding_window_view(damaged, SIZE).reshape(-1, 64)
means = np.nanmean(patches, axis=1, keepdims=True)
X = patches - means

learner = PUDLEDictionaryLearning(
    96,
    alpha=0.02,
    gradient="dec",
    n_unfoldings=30,
    optimizer="surrogate",
    max_iter=2,
    tol=None,
    random_state=0,
).fit(X[::4])
filled = learner.inverse_transform(learner.transform(X)) + means

# %%
# Where a pixel is known it stays; where it is lost, it is the mean over the patches around it.


def assemble(patches):
    image = reconstruct_from_patches_2d(patches.reshape(-1, *SIZE), clean.shape)
    return np.where(lost, image, clean)


def psnr(image):  # in dB over the lost pixels, for a peak of 1
    return -10 * np.log10(np.mean((image - clean)[lost] ** 2))


neighbours = assemble(SimpleImputer().fit_transform(X) + means)  # the mean of the patch
inpainted = assemble(filled)
images = {
    "Half of the pixels are lost": damaged,
    f"Mean of the surroundings, {psnr(neighbours):.1f} dB": neighbours,
    f"By the dictionary, {psnr(inpainted):.1f} dB": inpainted,
}
figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
for ax, (title, image) in zip(axes, images.items()):
    ax.imshow(image, cmap="gray", vmin=0, vmax=1)
    ax.set_title(title)
    ax.set_axis_off()
plt.show()

# %%
# No training patch was complete, and still the atoms have no gaps.

AtomsDisplay.from_estimator(learner, X[::20], n_columns=16)
plt.show()
