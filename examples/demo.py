"""Learn the atoms of a photograph, and take its noise away: one figure, in a minute.

Run ``python examples/demo.py``. The figure goes into the folder that ``--out`` names.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import extract_patches
from skpudle.images import denoise_patches
from skpudle.plotting import AtomsDisplay
from skpudle.pretrained import load_denoiser

parser = argparse.ArgumentParser(description="Learn from a photograph, and denoise it.")
parser.add_argument(
    "--out", type=Path, default=Path("skpudle_demo"), help="folder of the figure"
)
folder = parser.parse_args().out.resolve()
folder.mkdir(parents=True, exist_ok=True)

NOISE = 25 / 255
clean = load_sample_image("china.jpg")[60:252, 200:456].mean(axis=2) / 255
noisy = clean + NOISE * np.random.default_rng(0).normal(size=clean.shape)

patches = extract_patches([noisy], n_patches=10_000, normalize=False, random_state=0)
learner = PUDLEDictionaryLearning(64, random_state=0).fit(patches)
codes = learner.transform(patches)
print(learner.summary(patches))

coder = PUDLEDictionaryLearning.from_components(
    learner.components_,
    transform_algorithm="omp",
    transform_alpha=64 * (1.1 * NOISE) ** 2,
)
pictures = {
    "with noise": noisy,
    "by atoms of its own patches": denoise_patches(coder, noisy),
    "by the packaged network": load_denoiser().denoise(noisy, noise_std=NOISE),
}

figure = plt.figure(figsize=(12, 8), layout="constrained")
upper, lower = figure.subfigures(2, 1)
left, right = upper.subplots(1, 2)
AtomsDisplay.from_estimator(learner, patches, image_shape=(8, 8), ax=left)
left.set_title("64 atoms of its patches, most used first")
right.imshow(codes[:60] != 0, cmap="Greys", aspect="auto", interpolation="none")
right.set(title="which atoms 60 patches use", xlabel="atom", ylabel="patch")
for ax, (name, picture) in zip(lower.subplots(1, 3), pictures.items(), strict=True):
    psnr = -10 * np.log10(np.mean((picture - clean) ** 2))
    ax.imshow(picture.clip(0, 1), cmap="gray")
    ax.set(title=f"{name}: {psnr:.1f} dB", xticks=[], yticks=[])
    print(f"{psnr:.1f} dB {name}")
figure.savefig(folder / "demo.png", dpi=100)

print(f"""
The figure is {folder / "demo.png"}. Next:
  docs/quick_start.rst     ten minutes, no formulas
  docs/guide/choosing.rst  the line for your data
  PUDLEDictionaryLearning(60).fit(X).summary(X), with your rows""")
