"""
Encode in a few products
========================

An encoder with matrices of its own does in three unfoldings what a solver does in hundreds.

Each unfolding is two products and a shrinkage. With the matrices of the dictionary a few
of them are far from the lasso's codes: they are dense and explain little. Training the dictionary
through the encoder helps. Matrices and thresholds of the encoder's own, trained for the dictionary
that the search found, help more. Held-out rows judge.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from skpudle import PUDLEDictionaryLearning

X = load_digits().data[np.random.default_rng(0).permutation(1797)]
train, test = X[:1200], X[1200:]


def judged(learner):
    codes = learner.transform(test)
    left = np.square(test - learner.inverse_transform(codes)).sum()
    return (codes != 0).sum(1).mean(), 1 - left / np.square(test - test.mean(0)).sum()


# %%
# ``n_unfoldings`` is the number of unfoldings, and ``separate_atoms`` gives each its own matrices.

options = dict(n_components=100, random_state=0)
learned, trained, plain = {}, {}, {}
for n in (1, 2, 3, 5):
    learner = PUDLEDictionaryLearning(
        n_unfoldings=n, separate_atoms="unfolding", max_iter=200, **options
    ).fit(train)
    learned[n] = judged(learner)
for n in (2, 3, 5, 10, 20):
    trained[n] = judged(PUDLEDictionaryLearning(n_unfoldings=n, **options).fit(train))
search = PUDLEDictionaryLearning(alpha=learner.alpha_, **options).fit(train)
for n in (2, 3, 5, 10, 20):
    alone = PUDLEDictionaryLearning.from_components(
        search.components_, alpha=search.alpha_, n_unfoldings=n
    )
    plain[n] = judged(alone)
exact = judged(search)

# %%
# One unfolding explains more by fewer codes than twenty of the search's dictionary.

fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
for label, found in {
    "search alone": plain,
    "dictionary trained through the encoder": trained,
    "separate_atoms='unfolding'": learned,
}.items():
    ax.plot(*zip(*found.values()), "o-", label=label)
    for n, point in found.items():
        ax.annotate(n, point, xytext=(5, 5), textcoords="offset points", fontsize=8)
ax.plot(*exact, "k*", ms=12, label="converged codes")
ax.set(
    xlabel="mean number of codes",
    ylabel="explained variance ($R^2$)",
    title="Held-out digits",
)
ax.legend(loc="lower left")
fig.show()

# %%
# A fitted encoder is a fixed graph of products: a module of torch that can be exported.

module = learner.to_module()
print(module)
