"""
Find mutational signatures
==========================

The number of signatures, their names, and exposures with intervals, from a table of counts.

Processes that damage DNA leave signatures: spectra over 96 kinds of substitutions (six, each with
its neighbours on both sides). The mutations of a genome add up from a few processes, so
`PoissonNMF` is their model. The genomes here are simulated from known signatures, with more
variation than Poisson's, so that the results can be compared with the truth.
"""

import matplotlib.pyplot as plt
import numpy as np

from skpudle import PoissonNMF
from skpudle.inspection import code_intervals
from skpudle.metrics import match_components
from skpudle.plotting import AtomsDisplay, PathDisplay

# %%
# The channels in the order of the field, such as A[C>A]A. A real table, with a row a channel and a
# column a genome, is read by ``pandas.read_csv(file, sep="\t", index_col=0).T``.

substitutions = ["C>A", "C>G", "C>T", "T>A", "T>C", "T>G"]
channels = [
    f"{left}[{s}]{right}" for s in substitutions for left in "ACGT" for right in "ACGT"
]

rng = np.random.default_rng(0)
common = rng.dirichlet(np.full(96, 3.0))
flat = common * rng.lognormal(0, 0.6, (2, 96))
spiky = rng.dirichlet(np.full(96, 0.1), 4) + 0.05 * common
catalogue = np.concatenate([flat, spiky])
catalogue /= catalogue.sum(axis=1, keepdims=True)
names = ["flat 1", "flat 2", "spiky 1", "spiky 2", "spiky 3", "spiky 4"]

true_events = np.zeros((150, 6))
for genome in true_events:
    active = rng.choice(6, rng.integers(2, 5), replace=False)
    genome[active] = rng.lognormal(np.log(4000), 0.8) * rng.dirichlet(
        np.ones(len(active))
    )
rates = true_events @ catalogue
X = rng.poisson(rates * rng.gamma(30, 1 / 30, rates.shape))

# %%
# Only the table goes in. The fit finds the number of signatures, the dispersion of the counts
# (1 / 30 in truth), and whether genomes have few of them.

learner = PoissonNMF("auto", random_state=0).fit(X)
print(f"{learner.n_components_} signatures, dispersion {learner.dispersion_:.3f}")
PathDisplay.from_estimator(learner)

# %%
# A catalogue of known signatures names them. If a component is a mixture, its shares say of which.

matches = match_components(learner.components_, catalogue, names)
found = [match.nearest for match in matches]
for match in matches:
    print(f"{match.nearest}: cosine {match.cosine:.3f}")

colors = ["deepskyblue", "black", "red", "silver", "yellowgreen", "pink"]
groups = [channel[2:5] for channel in channels]
display = AtomsDisplay.from_estimator(
    learner, kind="spectra", row_labels=found, groups=groups, colors=colors
)
display.ax_.set(xlabel="Substitution with its neighbours")

# %%
# Exposures are numbers of mutations. To assign genomes to known signatures, take the catalogue as
# atoms, and let signatures that are worth less than 6 nats leave a genome. The intervals, of 95 %,
# come from the parametric bootstrap, with the dispersion that the fit has found.

coder = PoissonNMF.from_components(
    catalogue,
    transform_min_gain=6.0,
    dispersion=learner.dispersion_,
)
genomes = X[:4]
events, low, high, *_ = code_intervals(coder, genomes, level=0.95, random_state=0)

figure, axes = plt.subplots(1, 4, sharey=True, figsize=(9, 3), layout="constrained")
for i, ax in enumerate(axes):
    ends = np.stack([events[i] - low[i], high[i] - events[i]])
    ax.bar(range(6), events[i], color="silver", yerr=ends, capsize=3, label="found")
    ax.plot(range(6), true_events[i], "C3_", markersize=14, label="true")
    ax.set_xticks(range(6), names, rotation=90)
    ax.set_title(f"genome {i}")
axes[0].set_ylabel("Mutations")
axes[0].legend()
plt.show()
