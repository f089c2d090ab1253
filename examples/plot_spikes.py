"""
Find the shapes of spikes
=========================

A noisy trace is enough to learn the shapes in it.

A recording is a sum of a few shapes that occur at unknown times. With atoms at every sample
(``stride=1``) and non-negative codes, :class:`~skpudle.ConvPUDLEDictionaryLearning` learns the
shapes from the trace alone. The truth is known here, to measure the error.
"""

import matplotlib.pyplot as plt
import numpy as np

from skpudle import ConvPUDLEDictionaryLearning

rng = np.random.default_rng(0)
LENGTH, WIDTH = 20_000, 32
time = np.linspace(0, 1, WIDTH)
shapes = np.stack(
    [
        -np.exp(-(((time - 0.3) / 0.06) ** 2))
        + 0.5 * np.exp(-(((time - 0.55) / 0.12) ** 2)),
        np.sin(6 * np.pi * time) * np.exp(-(((time - 0.5) / 0.2) ** 2)),
    ]
)
shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
trace = np.zeros(LENGTH)
for shape in shapes:
    times = np.sort(rng.choice((LENGTH - WIDTH) // 40, size=150, replace=False)) * 40
    for start, amplitude in zip(times, rng.uniform(1, 2, size=150)):
        trace[start : start + WIDTH] += amplitude * shape
noisy = trace + 0.1 * rng.normal(size=LENGTH)

# %%
# The trace is cut into pieces, which are rows.

learner = ConvPUDLEDictionaryLearning(
    2,
    atom_shape=WIDTH,
    stride=1,
    alpha=0.4,
    positive_code=True,
    random_state=1,
).fit(noisy.reshape(100, -1))

# %%
# Shapes are known up to the order and to a shift in time, which the codes undo.


def closest(shape):  # -> learned shape, its correlation, at the best shift
    options = []
    for atom in learner.components_:
        correlations = np.correlate(atom, shape, mode="full")
        lag = correlations.argmax() - (WIDTH - 1)
        options.append((correlations.max(), np.roll(atom, -lag)))
    return max(options, key=lambda option: option[0])


figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for ax, shape in zip(axes, shapes):
    correlation, atom = closest(shape)
    ax.plot(shape, label="true")
    ax.plot(atom, "--", label="learned")
    ax.set(
        title=f"Correlation {correlation:.3f}",
        xlabel="Sample",
        ylabel="Amplitude (unit norm)",
    )
    ax.legend()
plt.show()
