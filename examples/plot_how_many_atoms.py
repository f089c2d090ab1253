"""
Find the number of atoms
========================

``n_components="auto"`` finds the planted number of atoms, without a grid of fits: too many atoms
are learned, and removed as long as held-out samples do not miss them. A consensus of fits tells
atoms that halves of the data agree on from atoms that one fit made up.
"""

import matplotlib.pyplot as plt
import numpy as np

from skpudle import ConsensusDictionary, PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data
from skpudle.metrics import atom_coherence, atom_importance
from skpudle.plotting import PathDisplay, StabilityDisplay

N_ATOMS = 24
rng = np.random.default_rng(0)
X, atoms, _ = make_dictionary_data(1500, 30, N_ATOMS, n_nonzero=3, random_state=0)
X += 0.2 * X.std() * rng.standard_normal(X.shape)

# %%
# The score of held-out samples rises with every atom of the data, and falls beyond: its loss
# against the best is least there. A loss in the grey band counts as chance, and the smallest number
# in the band is chosen.

learner = PUDLEDictionaryLearning("auto", random_state=0).fit(X)
found = (atom_coherence(learner.components_, atoms) > 0.98).sum()
print(
    f"{learner.n_components_} atoms chosen; {found} of {N_ATOMS} planted ones are among them."
)

# %%
# With six atoms too many, fits to different halves of the samples agree on atoms of the data only.
# Planted atoms that some of the fits split in two are not stable either.

many = PUDLEDictionaryLearning(N_ATOMS + 6)
consensus = ConsensusDictionary(
    many, n_replicates=8, resample="halves", random_state=0
).fit(X)
stable = consensus.components_[consensus.stability_ >= 0.9]
planted = (atom_coherence(stable, atoms) > 0.98).sum()
print(
    f"{len(stable)} of {N_ATOMS + 6} atoms are stable; {planted} of these are planted ones."
)

# %%
# The third picture shows what the samples lose without each atom of the consensus: nothing without
# one that is not stable.

figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
PathDisplay.from_estimator(learner, ax=axes[0])
StabilityDisplay.from_estimator(consensus, ax=axes[1])
losses = atom_importance(consensus, X).r2_loss
axes[2].plot(consensus.stability_, losses, "o")
axes[2].set(xlabel="Stability", ylabel="Loss of $R^2$ without the atom")
plt.show()
