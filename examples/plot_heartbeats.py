"""
Learn the shapes of heartbeats
==============================

One atom explains more of an unseen heartbeat than eight principal components.

Windows of an electrocardiogram hold one beat or parts of two, at any place. A dictionary has an
atom for each place, and a window takes a few; principal components are the same for all. Rows are
signals here, and their atoms are drawn as lines.
"""

from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from pywt.data import ecg
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

from skpudle import PUDLEDictionaryLearning
from skpudle.inspection import findings
from skpudle.plotting import AtomsDisplay

# %%
# All windows of 64 samples, without their means and in units of their standard deviation. The
# first three quarters of the recording are for learning, the last for judging.

WIDTH = 64
windows = [
    np.lib.stride_tricks.sliding_window_view(part, WIDTH)
    for part in np.split(ecg().astype(float), [768])
]
train, test = (rows - rows.mean(axis=1, keepdims=True) for rows in windows)
train, test = train / train.std(), test / train.std()

learner = PUDLEDictionaryLearning(32, random_state=0).fit(train)
few = PUDLEDictionaryLearning.from_components(
    learner.components_, transform_algorithm="omp"
)

print("explain of the variance of unseen windows")
print("     atoms  principal components")
for n in (1, 2, 4, 8):
    few.set_params(transform_n_nonzero_coefs=n)
    print(f"{n:>2}", end="")
    for transformer in (few, PCA(n).fit(train)):
        found = transformer.inverse_transform(transformer.transform(test))
        print(f"{r2_score(test, found, multioutput='variance_weighted'):>8.3f}", end="")
    print()

# %%
# The atoms, in the order of their use by the unseen windows. The recording has 360 samples a
# second, and an atom is a window of 0.18 seconds.

display = AtomsDisplay.from_estimator(learner, test, sampling_rate=360)
display.ax_.set_title("Atoms, most used first, row by row")
plt.show()

# %%
# Which of them do the windows support? Of twice as many atoms, not more.

for n_components in (32, 64):
    larger = PUDLEDictionaryLearning(n_components, random_state=0).fit(train)
    found = findings(larger, train) or ["Nothing is wrong."]
    print(fill(f"{n_components} atoms: {' '.join(found)}", 88))
