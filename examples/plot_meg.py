"""
Find sources in recordings of many sensors
==========================================

Maps over 60 sensors, waveforms and the times of events come from the recording alone.

A source has a fixed map over the sensors and a waveform that repeats. With ``rank=1`` the atoms of
:class:`~skpudle.ConvPUDLEDictionaryLearning` are products of both. The recording is simulated:
three sources, and noise with as much energy as they have.
"""

import matplotlib.pyplot as plt
import numpy as np

from skpudle import ConvPUDLEDictionaryLearning
from skpudle.events import find_events
from skpudle.plotting import ActivationsDisplay, AtomsDisplay

rng = np.random.default_rng(0)
RATE, SECONDS, LENGTH = 150, 60, 60

# %%
# Sensors on a disc, maps with two poles, and three waveforms of 0.4 seconds: arches, a spike with a
# slow wave, and a spindle.

radius, angle = np.sqrt(np.linspace(0.02, 1, 60)), 2.4 * np.arange(60)
positions = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def pole(x, y):
    return np.exp(-((positions - [x, y]) ** 2).sum(axis=1) / 0.15)


maps = np.stack(
    [
        pole(-0.6, 0.1) - pole(-0.2, 0.5),
        pole(0.5, 0.3) - pole(0.6, -0.4),
        pole(0, -0.6) - 0.6 * pole(-0.5, -0.5),
    ]
)
maps /= np.linalg.norm(maps, axis=1, keepdims=True)
time = np.linspace(0, 1, LENGTH)
waveforms = np.stack(
    [
        np.abs(np.cos(3 * np.pi * (time - 0.5))) ** 0.5 * np.hanning(LENGTH),
        np.exp(-(((time - 0.3) / 0.03) ** 2))
        - 0.4 * np.exp(-(((time - 0.6) / 0.15) ** 2)),
        np.sin(14 * np.pi * time) * np.hanning(LENGTH),
    ]
)
waveforms /= np.linalg.norm(waveforms, axis=1, keepdims=True)

recording = np.zeros((60, SECONDS * RATE))
for map_, waveform in zip(maps, waveforms):
    for start in rng.choice(SECONDS * RATE - LENGTH, size=30, replace=False):
        recording[:, start : start + LENGTH] += rng.uniform(1, 2) * np.outer(
            map_, waveform
        )
recording += recording.std() * rng.normal(size=recording.shape)

# %%
# One recording has the shape (n_channels, n_times).

learner = ConvPUDLEDictionaryLearning(
    3,
    atom_shape=LENGTH,
    rank=1,
    channels_first=True,
    positive_code=True,
    random_state=0,
).fit(recording)

cosines = np.abs(maps @ learner.spatial_components_.T)
print(
    "cosine of each true map with the nearest learned one:",
    cosines.max(axis=1).round(3),
)

AtomsDisplay.from_estimator(
    learner, kind="waveforms", positions=positions, sampling_rate=RATE
)
plt.show()

# %%
# A table of events, with times at the peaks of the waveforms: all 90 were planted.

events = find_events(learner, recording, sampling_rate=RATE)
print(len(events), "events")
for event in events[:5]:
    print("atom {atom} at {time:.2f} s, amplitude {amplitude:.2f}".format(**dict(zip(
        event.dtype.names, event.tolist()
    ))))  # fmt: skip

# %%
# The first ten seconds.

ActivationsDisplay.from_estimator(
    learner, recording[:, : 10 * RATE], sampling_rate=RATE
)
plt.show()
