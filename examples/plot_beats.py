"""
Find the beats of a heart in noise
==================================

One atom finds every beat of a noisy electrocardiogram, and nothing else.

:func:`skpudle.events.find_events` turns the codes of :class:`~skpudle.ConvPUDLEDictionaryLearning`
into a table of events. Neither a threshold nor a template is given.
"""

import matplotlib.pyplot as plt
import numpy as np
from pywt.data import ecg

from skpudle import ConvPUDLEDictionaryLearning
from skpudle.events import find_events
from skpudle.plotting import ActivationsDisplay, AtomsDisplay

# %%
# PyWavelets' recording has three beats in 1,024 samples, 360 a second. Here it is repeated 16
# times, without its slow drift, with half as much noise as signal.

RATE = 360
signal = ecg().astype(float)
signal -= np.median(signal)
signal -= np.convolve(signal, np.ones(200) / 200, "same")
clean = np.tile(signal / signal.std(), (16, 1))
signals = clean + 0.5 * np.random.default_rng(0).normal(size=clean.shape)
signals = signals[..., np.newaxis]  # (n_signals, length, n_channels)

learner = ConvPUDLEDictionaryLearning(
    1, atom_shape=100, positive_code=True, random_state=0
)
events = find_events(learner.fit(signals), signals)

print(f"{len(events)} events, true beats: 48")
print("samples of the beats:", *np.unique(events["time"]))

# %%
# The atom is the beat. Its largest excursion, the R peak, gives the time of an event.

display = AtomsDisplay.from_estimator(learner, signals, sampling_rate=RATE)
display.ax_.set_title("The atom")
plt.show()

# %%
# The signal, and below it the codes of the atom, whose waveform is on the right. A bar is where the
# atom's copy has its R peak, and as high as the code. A beat between two samples has two bars side
# by side, which `find_events` takes for one event.

display = ActivationsDisplay.from_estimator(learner, signals, sampling_rate=RATE)
display.ax_.set_title("A bar marks the R peak of a beat")
plt.show()

# %%
# Amplitudes of beats vary little, and so do the intervals between them.

first = events[events["signal"] == 0]
print("intervals in seconds:", (np.diff(first["time"]) / RATE).round(3))
print("amplitudes:", first["amplitude"].round(1))
