"""
Batch size, learning rate and noise
===================================

The data decide where training ends, batches and rate how steadily.

From a dictionary near the truth, training by gradients through the encoder recovers it. Small
batches and large rates get near in fewer epochs, and then stay farther off. Noise in the data
decides how near any of them can get.
"""

import matplotlib.pyplot as plt
import numpy as np

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data, perturb_dictionary
from skpudle.metrics import dictionary_error

N_EPOCHS = 5


def problem(snr_db):
    """Return samples, the dictionary that made them, and the start of training."""
    X, truth, _ = make_dictionary_data(
        1500, 40, 50, n_nonzero=3, snr_db=snr_db, random_state=0
    )
    return X, truth, perturb_dictionary(truth, 0.5, random_state=1)


def errors(X, truth, start, *, batch_size=16, learning_rate=1e-3):
    """Return the error of the dictionary before and after every epoch."""
    learner = PUDLEDictionaryLearning(
        50,
        alpha=0.3,
        n_unfoldings=25,
        optimizer="adam",
        learning_rate=learning_rate,
        batch_size=batch_size,
        dict_init=start,
    )
    rng, found = np.random.default_rng(0), [dictionary_error(start, truth, match=True)]
    for _ in range(N_EPOCHS):
        learner.partial_fit(X[rng.permutation(len(X))])
        found.append(dictionary_error(learner.components_, truth, match=True))
    return found


problems = {snr_db: problem(snr_db) for snr_db in (None, 20, 10)}

# %%
# One of batches, rate and noise varies at a time.

varied = {
    "batch_size": ([4, 16, 64], "Samples in a batch"),
    "learning_rate": ([1e-4, 1e-3, 1e-2], "Learning rate"),
    "snr_db": ([None, 20, 10], "Noise"),
}
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True, layout="constrained")
for ax, (name, (values, title)) in zip(axes, varied.items()):
    for value in values:
        label = (
            value if name != "snr_db" else "none" if value is None else f"{value} dB"
        )
        options = {} if name == "snr_db" else {name: value}
        curve = errors(*problems[value if name == "snr_db" else None], **options)
        ax.semilogy(curve, "o-", markersize=3, label=label)
        print(f"{title} {label}: {curve[0]:.3f} -> {curve[-1]:.4f}")
    ax.set(xlabel="Epoch", title=title)
    ax.legend()
axes[0].set_ylabel("Error of the dictionary")
plt.show()
