"""
Separate the stains of a slide
==============================

Two atoms of optical density are the colours of two stains.

Stains absorb light, so their optical densities add up: a pixel is a sum of two colours, each times
an amount that is not negative (A. Vahadane et al., IEEE Transactions on Medical Imaging 35, 2016).
A slide is made here from colours and amounts that are known: dark nuclei in a pink tissue, and
holes without either.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import gaussian_filter

from skpudle import PUDLEDictionaryLearning
from skpudle.metrics import match_atoms

rng = np.random.default_rng(0)
colours = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])  # hematoxylin, eosin
colours /= np.linalg.norm(colours, axis=1, keepdims=True)
nuclei, tissue = (
    np.maximum(
        gaussian_filter(rng.normal(size=(200, 300)), width) * width * 3.5 + shift, 0
    )
    for width, shift in ((4, -0.6), (9, 0.5))
)
true_amounts = np.stack([nuclei, 0.6 * tissue], axis=2)
light = 255 * np.exp(-true_amounts @ colours)
slide = np.clip(np.rint(light + rng.normal(size=light.shape)), 1, 255).astype(np.uint8)

# %%
# Densities are logarithms of the light that is left. Codes and atoms are non-negative; nothing else
# is chosen.

density = -np.log(slide / 255).reshape(-1, 3)
learner = PUDLEDictionaryLearning(
    2, positive_code=True, positive_dict=True, random_state=0
)
amounts = learner.fit_transform(density)
match = match_atoms(learner.components_, colours)
print("cosines with the true colours:", match.coherences.round(4))

# %%
# A slide with one stain alone is made of one atom and its amounts.

fig, axes = plt.subplots(1, 3, figsize=(9, 2.4), layout="constrained")
alone = [np.outer(amounts[:, k], learner.components_[k]) for k in range(2)]
pictures = [slide, *(255 * np.exp(-part).reshape(slide.shape) for part in alone)]
for ax, picture, title in zip(
    axes, pictures, ("slide", "atom 0 alone", "atom 1 alone")
):
    ax.imshow(picture.astype(np.uint8))
    ax.set_title(title)
    ax.set_axis_off()
plt.show()
