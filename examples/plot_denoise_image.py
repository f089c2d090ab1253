"""
A convolutional dictionary trained on a few crops denoises another photograph
=============================================================================

A photograph is a sum of small atoms at every fourth pixel. Trained to remove noise that is drawn
anew for every update, :class:`~skpudle.ConvPUDLEDictionaryLearning` learns the atoms, a threshold
for each, and the step of its encoder; one photograph is enough to show that it works on another.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images

from skpudle import ConvPUDLEDictionaryLearning

SIGMA = 25 / 255
photographs = load_sample_images().images
china, flower = (image.mean(axis=2).astype(np.float32) / 255 for image in photographs)
crops = [china[i : i + 100, j : j + 100] for i in range(0, 400, 100) for j in range(0, 600, 100)]

# %%
# Every epoch takes one random crop of each training picture. ``shift_average`` denoises by the mean
# over the 16 grids on which atoms may sit.

learner = ConvPUDLEDictionaryLearning(
    32,
    alpha=0.12,
    step_size=0.05,
    learn_threshold="atom",
    learn_step=True,
    noise_std=SIGMA,
    crop_size=49,
    shift_average=True,
    learning_rate=5e-3,
    batch_size=8,
    max_iter=40,
    tol=None,
    random_state=0,
).fit(crops)

# %%

target = flower[100:300, 200:420]
noisy = target + SIGMA * np.random.default_rng(0).normal(size=target.shape).astype(np.float32)
denoised = learner.denoise([noisy])[0]

figure, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for ax, image, name in zip(axes, (noisy, denoised, target), ("noisy", "denoised", "clean")):
    quality = -10 * np.log10(np.mean((image - target) ** 2)) if name != "clean" else None
    ax.imshow(image, cmap="gray", vmin=0, vmax=1)
    ax.set_title(name if quality is None else f"{name}, {quality:.1f} dB")
    ax.set_axis_off()
plt.show()

# %%
# The atoms are edges and waves, and one that carries brightness.

figure, axes = plt.subplots(4, 8, figsize=(6, 3), layout="constrained")
for ax, atom in zip(axes.flat, learner.components_):
    ax.imshow(atom, cmap="gray")
    ax.set_axis_off()
plt.show()
