"""
Know how sure atoms are
=======================

**Bands of 90 % hold 90 % of the true waveforms; the bands of rare ones are wider.**

Rows are sums of a few of six waveforms, with half as much noise as signal. The last two waveforms
occur in a tenth of the rows of the first four. `~skpudle.inspection.atom_intervals` tells from one
fit how well each entry of each atom is known: the bands are intervals of 90 %.
"""

import matplotlib.pyplot as plt
import numpy as np

from skpudle import PUDLEDictionaryLearning
from skpudle.inspection import atom_intervals, error_bound
from skpudle.plotting import AtomsDisplay

rng = np.random.default_rng(0)
time = np.linspace(0, 1, 60)
waves = np.stack([
    np.exp(-0.5 * ((time - 0.3) / 0.05) ** 2),
    np.sin(6 * np.pi * time) * np.exp(-4 * time),
    (time > 0.4) * np.exp(-6 * (time - 0.4)),
    np.sin(20 * np.pi * time) * np.exp(-0.5 * ((time - 0.6) / 0.12) ** 2),
    np.exp(-0.5 * ((time - 0.75) / 0.03) ** 2) - np.exp(-0.5 * ((time - 0.6) / 0.08) ** 2),
    np.cos(2 * np.pi * time),
])  # fmt: skip
waves /= np.linalg.norm(waves, axis=1, keepdims=True)
uses = rng.random((800, 6)) < np.array([0.3, 0.3, 0.3, 0.3, 0.03, 0.03])
codes = uses * rng.uniform(1, 2, uses.shape) * rng.choice([-1, 1], uses.shape)
signal = codes @ waves
X = signal + signal.std() / 2 * rng.standard_normal(signal.shape)

# %%
# The fit, and the intervals. Printed, they say how far the atoms are from what any method could do.

learner = PUDLEDictionaryLearning(6, random_state=0).fit(X)
found = atom_intervals(learner, X, random_state=0)
print(found)

# %%
# Each panel has one atom, its band, and the true waveform as a dashed line.

cosines = found.estimate @ waves.T
order = np.abs(cosines).argmax(0)
signs = np.sign(cosines[order, np.arange(6)])
figure, axes = plt.subplots(2, 3, figsize=(9, 4.5), sharex=True, layout="constrained")
inside = 0
for ax, atom, sign, wave, name in zip(axes.flat, order, signs, waves, uses.sum(0)):
    lower, upper = np.sort([sign * found.lower[atom], sign * found.upper[atom]], axis=0)
    ax.fill_between(time, lower, upper, alpha=0.4)
    ax.plot(time, wave, "k--", linewidth=0.8)
    ax.set_title(f"in {name} rows", fontsize="medium")
    inside += np.count_nonzero((lower <= wave) & (wave <= upper))
share = inside / waves.size
figure.suptitle(
    f"Bands of 90 % hold {100 * share:.0f} % of the true waveforms; rare ones have wider bands"
)
plt.show()

# %%
# All atoms in one picture.

AtomsDisplay.from_estimator(found, n_columns=3).ax_.set_title(
    "Atoms with bands of 90 %"
)
plt.show()

# %%
# How many rows does an error need? `~skpudle.inspection.error_bound` is the least expected squared
# error, without data: here of an atom in 0.3 of the rows.

rows = np.array([100, 200, 400, 800])
options = dict(n_nonzero=1.26, snr_db=6, relative_uses=0.3 / 0.21)
bounds = [error_bound(int(n), 60, 6, **options) for n in rows]
errors = []
for n in rows:
    part = PUDLEDictionaryLearning(6, random_state=0).fit(X[:n])
    estimate = atom_intervals(part, X[:n], random_state=0).estimate
    cosines = np.abs(estimate @ waves.T).max(0)[:4]  # the frequent ones
    errors.append(np.mean(2 - 2 * cosines))
figure, ax = plt.subplots(layout="constrained")
ax.loglog(rows, errors, "o-", label="four frequent atoms, measured")
ax.loglog(rows, bounds, "k--", label="limit of any method")
ax.set(
    xlabel="Rows",
    ylabel="Squared error of an atom",
    title="The error of atoms is near the limit of any method",
)
ax.legend()
plt.show()
