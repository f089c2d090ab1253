"""
Train a convolutional denoiser
==============================

Trained on one photograph, it denoises another.

A photograph is a sum of small atoms at every second pixel.
:class:`~skpudle.ConvDenoiser` is trained to remove noise, drawn anew for every
update. It learns atoms and thresholds of each unfolding.
"""

import matplotlib.pyplot as plt
import numpy as np
from skimage.restoration import denoise_nl_means
from sklearn.datasets import load_sample_images

from skpudle import ConvDenoiser
from skpudle.pretrained import load_denoiser

SIGMA = 25 / 255
photographs = load_sample_images().images
china, flower = (image.mean(axis=2).astype(np.float32) / 255 for image in photographs)
tiles = [
    china[i : i + 100, j : j + 100]
    for i in range(0, 400, 100)
    for j in range(0, 600, 100)
]

# %%
# Every epoch takes one random crop of each tile. Atoms start as cosines, and every unfolding then
# learns atoms of its own.

learner = ConvDenoiser(noise_std=SIGMA, max_iter=80, tol=None, random_state=0).fit(
    tiles
)

# %%
# The network that comes with the package has atoms of its own in each of ten unfoldings, and was
# trained for longer, on 432 photographs, with noise of any level: it is told the present one.
# Non-local means, which need no training, are there for comparison.


def quality(image):
    return f"{-10 * np.log10(np.mean((image - target) ** 2)):.1f} dB"


target = flower[100:300, 200:420]
noisy = target + SIGMA * np.random.default_rng(0).normal(size=target.shape).astype(
    np.float32
)
packaged = load_denoiser()
denoised = learner.denoise([noisy])[0]
better = packaged.denoise([noisy], noise_std=SIGMA)[0]
options = dict(patch_size=5, patch_distance=6, h=0.7 * SIGMA, sigma=SIGMA)
averaged = denoise_nl_means(noisy, **options)
panels = {
    f"noisy, {quality(noisy)}": noisy,
    f"non-local means, {quality(averaged)}": averaged,
    f"learned here, {quality(denoised)}": denoised,
    f"packaged, {quality(better)}": better,
    "clean": target,
}
figure, axes = plt.subplots(1, 5, figsize=(13, 2.9), layout="constrained")
for ax, (title, image) in zip(axes, panels.items()):
    ax.imshow(image, cmap="gray", vmin=0, vmax=1)
    ax.set_title(title)
    ax.set_axis_off()
plt.show()

# %%
# In colour the packaged network sees the mean of the channels and two differences. Here it
# estimates the noise, of twice that level, from the image.

target = photographs[0][150:350, 250:470].astype(np.float32) / 255
noisy = target + 2 * SIGMA * np.random.default_rng(1).normal(size=target.shape).astype(
    np.float32
)
better = packaged.denoise([noisy])[0]
options = dict(
    patch_size=5, patch_distance=6, h=1.4 * SIGMA, sigma=2 * SIGMA, channel_axis=-1
)
averaged = denoise_nl_means(noisy, **options)
panels = {
    f"noisy, {quality(noisy)}": noisy,
    f"non-local means, {quality(averaged)}": averaged,
    f"packaged, {quality(better)}": better,
    "clean": target,
}
figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
for ax, (title, image) in zip(axes, panels.items()):
    ax.imshow(np.clip(image, 0, 1))
    ax.set_title(title)
    ax.set_axis_off()
plt.show()

# %%
# The atoms that were learned here, slow waves first. After so short a training they are still close
# to cosines; their norms and thresholds have changed. The first one, which carries the
# brightness, has a mean threshold of 0.005, slow waves have 0.01 to 0.02, and fast ones, which are
# mostly noise, 0.03 to 0.06.

figure, axes = plt.subplots(4, 16, figsize=(8, 2.2), layout="constrained")
for ax, atom in zip(axes.flat, learner.network_.synthesis[-1, :, 0].detach().numpy()):
    largest = np.abs(atom).max()
    ax.imshow(atom, cmap="gray", vmin=-largest, vmax=largest)
    ax.set_axis_off()
plt.show()
