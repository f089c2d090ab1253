"""
Learn from raw data
===================

An offset, flashes of pixels and a few bad rows hide every atom, unless the learner knows of them.

Small pictures are sums of three bars of sixteen. Then the data become as data are: all pictures
have the same bright corner, the noise of each pixel has its own size, two pixels in a hundred
flash, and one row in a hundred is noise, much larger than all others. Nothing is centred, scaled or
removed before the fit.
"""

import matplotlib.pyplot as plt
import numpy as np

from skpudle import PUDLEDictionaryLearning

rng = np.random.default_rng(0)
side = 8
bars = np.zeros((2 * side, side, side))
for k in range(side):
    bars[k, k], bars[side + k, :, k] = 1, 1
atoms = bars.reshape(len(bars), -1) / np.sqrt(side)
codes = np.zeros((2000, len(atoms)))
for row in codes:
    row[rng.choice(len(atoms), 3, replace=False)] = rng.uniform(1, 3, 3) * rng.choice(
        [-1, 1], 3
    )
clean = codes @ atoms
corner = 6 * np.exp(-np.add.outer(np.arange(side), np.arange(side)) / 4).ravel()
X = clean + corner + rng.standard_normal(clean.shape) * rng.uniform(0.02, 0.3, side**2)
X[rng.random(X.shape) < 0.02] += 20
X[::100] = 15 * rng.standard_normal(X[::100].shape)

# %%
# The first learner takes the data as they are: all entries count alike, around zero. The second is
# the default.

plain = PUDLEDictionaryLearning(
    16, noise="equal", fit_intercept=False, random_state=0
).fit(X)
learner = PUDLEDictionaryLearning(16, random_state=0).fit(X)


def count_found(learner):
    cosines = atoms @ learner.components_.T
    return int((np.abs(cosines).max(axis=1) > 0.95).sum())


print(
    f"found without a noise model: {count_found(plain)} of 16; by default: {count_found(learner)}"
)

# %%
# What the default has learned beside the atoms: the baseline of all rows, the noise of each pixel,
# and the entries that are no data.

figure, axes = plt.subplots(4, 16, figsize=(10, 3.2), layout="constrained")
rows = [X[1:17], plain.components_, learner.components_]
titles = "Raw rows", "All entries alike", "Default"
for line, pictures, title in zip(axes, rows, titles, strict=False):
    for axis, picture in zip(line, pictures, strict=True):
        largest = np.abs(picture).max()
        axis.imshow(
            picture.reshape(side, side), cmap="RdBu_r", vmin=-largest, vmax=largest
        )
    line[0].set_ylabel(title, rotation=0, ha="right", va="center")
outliers = learner.outliers_.toarray().mean(axis=0)
learned = {
    "baseline": learner.intercept_,
    "noise": learner.noise_std_,
    "outliers": outliers,
}
for axis, (name, values) in zip(axes[3], learned.items(), strict=False):
    axis.imshow(np.broadcast_to(values, side**2).reshape(side, side), cmap="Greys")
    axis.set_xlabel(name, fontsize=8)
axes[3, 0].set_ylabel("Learned", rotation=0, ha="right", va="center")
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
for axis in axes[3, 3:]:
    axis.set_axis_off()
plt.show()
