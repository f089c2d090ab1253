"""
Remove noise from codes
=======================

Codes lose most of the noise, at any level of it.

A reconstruction from sparse codes can be nearer to the truth than the data are, if the penalty of
the codes fits the noise. Nobody tells the learner the level of the noise: it predicts hidden
entries to find out. The data are sums of four atoms of sixty, at four levels of noise. Errors are
those in other rows, as shares of the error of the noisy rows themselves: below 1 something is
gained.
"""

import matplotlib.pyplot as plt
import numpy as np

from skpudle import PUDLEDictionaryLearning

rng = np.random.default_rng(0)
atoms = rng.standard_normal((60, 50))
atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
codes = np.zeros((1500, 60))
for row in codes:
    row[rng.choice(60, 4, replace=False)] = rng.uniform(0.5, 1.5, 4) * rng.choice(
        [-1, 1], 4
    )
clean = codes @ atoms
train, test = slice(0, 1200), slice(1200, None)

# %%
# The lasso shrinks its codes by the penalty. That is worth it where there is much noise, and most
# of the error where there is little. The learner removes the share ``debias_`` of it.

levels = [5, 10, 20, 30]  # dB
errors = {"codes of the lasso": [], "default": []}
for level in levels:
    noise = clean.std() * 10 ** (-level / 20) * rng.standard_normal(clean.shape)
    noisy = clean + noise
    learner = PUDLEDictionaryLearning(60, random_state=0).fit(noisy[train])
    print(
        f"{level} dB: alpha of the search {learner.search_alpha_:.3f}, "
        f"of codes {learner.alpha_:.3f}, "
        f"bias removed {learner.debias_:.0%}, noise {learner.noise_std_:.3f} of {noise.std():.3f}"
    )
    found = learner.inverse_transform(learner.transform(noisy[test]))
    lasso = learner.set_params(debias=0.0, transform_alpha=learner.search_alpha_)
    biased = lasso.inverse_transform(lasso.transform(noisy[test]))
    for name, rows in zip(errors, (biased, found)):
        errors[name].append(
            ((rows - clean[test]) ** 2).sum() / (noise[test] ** 2).sum()
        )

# %%
# With the penalty of the search alone, reconstructions are worse than the data from some 15 dB
# on.

fig, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
for name, values in errors.items():
    ax.semilogy(levels, values, "o-", label=name)
ax.axhline(1, color="black", linewidth=0.8, linestyle=":", label="the noisy rows")
ax.set(
    xlabel="Signal to noise (dB)",
    ylabel="Error / error of the noisy rows",
    xticks=levels,
)
ax.legend()
plt.show()
