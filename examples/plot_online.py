"""
Learn from data in pieces
=========================

Training goes on, bit for bit, after an interruption.

``partial_fit`` makes one pass over each piece of data as it arrives, and keeps the state of the
optimiser, also through a pickle.
"""

import pickle

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import extract_patches
from skpudle.plotting import AtomsDisplay

images = [
    load_sample_image(name).mean(axis=2) / 255 for name in ("china.jpg", "flower.jpg")
]


def stream(n_pieces, *, first=0):
    for piece in range(first, first + n_pieces):
        yield extract_patches(images, (10, 10), 2000, random_state=piece)


held_out = extract_patches(images, (10, 10), 2000, random_state=1000)
learner = PUDLEDictionaryLearning(
    100,
    alpha=0.15,
    gradient="dec",
    n_unfoldings=20,
    optimizer="surrogate",
    random_state=0,
)

# %%
# Each piece makes the learner better.

unexplained = []
for patches in stream(6):
    learner.partial_fit(patches)
    residual = held_out - learner.inverse_transform(learner.transform(held_out))
    unexplained.append(np.square(residual).sum() / np.square(held_out).sum())

# %%
# An interruption: pickled now and loaded tomorrow, the learner goes on as if nothing had happened.

later = pickle.loads(pickle.dumps(learner))
for patches in stream(3, first=6):
    learner.partial_fit(patches)
    later.partial_fit(patches)
    residual = held_out - later.inverse_transform(later.transform(held_out))
    unexplained.append(np.square(residual).sum() / np.square(held_out).sum())
print("the same atoms:", np.array_equal(learner.components_, later.components_))
print(f"{later.n_steps_} updates in {later.n_iter_} passes")

# %%

figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
axes[0].plot(np.arange(1, len(unexplained) + 1), unexplained, "o-")
axes[0].axvline(6.5, color="gray", linestyle=":", label="pickled and loaded")
axes[0].set(
    xlabel="Pieces of 2000 patches seen",
    ylabel="Share of held-out energy not explained",
)
axes[0].legend()
AtomsDisplay.from_estimator(later, held_out, image_shape=(10, 10), ax=axes[1])
plt.show()
