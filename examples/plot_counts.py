"""
Model photon counts
===================

A Poisson loss explains counts better than NMF, with fewer codes.

Pixels of the digits as numbers of photons: counts, whose noise grows with them. With
``CountDictionaryLearning`` a dictionary models the logarithm of the expectation, codes have signs,
and the penalty is in units of the noise. Its rival is non-negative matrix factorisation with the
Kullback-Leibler loss, which has the same likelihood and no sparsity of its own.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import xlogy
from sklearn.datasets import load_digits
from sklearn.decomposition import NMF

from skpudle import CountDictionaryLearning
from skpudle.plotting import AtomsDisplay

rng = np.random.default_rng(0)
X = load_digits().data
train, test = X[:1200], X[1200:]

# %%
# Unseen photons are the judge: each photon of the test images falls into one of two halves at
# random. Codes come from the first half, and the deviance compares their expectation with the
# second.

half = rng.binomial(test.astype(int), 0.5).astype(float)
other = test - half


def deviance(mean):
    return (
        2
        * (
            xlogy(other, other) - xlogy(other, np.maximum(mean, 1e-10)) - other + mean
        ).sum()
    )


worst = deviance(half.sum(axis=1, keepdims=True) * train.sum(axis=0) / train.sum())


def explained(mean):
    return 1 - deviance(mean) / worst


# %%
# Half of the photons are an exposure of 0.5. The default ``alpha`` is twice the deviation of the
# noise and gives the sparsest codes; smaller ones predict better.

N_COMPONENTS = 24
exposure = np.full(len(test), 0.5)
curve = []
for alpha in (4.0, 2.0, 1.0):
    learner = CountDictionaryLearning(N_COMPONENTS, alpha=alpha, random_state=0).fit(
        train
    )
    codes = learner.transform(half, exposure=exposure)
    mean = exposure[:, None] * learner.inverse_transform(codes)
    curve.append([(codes != 0).mean(), explained(mean)])

factors = NMF(
    N_COMPONENTS,
    beta_loss="kullback-leibler",
    solver="mu",
    init="nndsvda",
    max_iter=500,
).fit(train)
weights = factors.transform(half)
rival = (weights > 1e-6).mean(), explained(weights @ factors.components_)

# %%

figure, axes = plt.subplot_mosaic(
    [["curve", "ours", "theirs"]], figsize=(10, 3.4), layout="constrained"
)
axes["curve"].plot(*np.transpose(curve), "o-", label="CountDictionaryLearning")
axes["curve"].plot(*rival, "s", label="NMF, Kullback-Leibler")
axes["curve"].set(
    xlabel="Share of the codes that is not zero", ylabel="Deviance explained"
)
axes["curve"].legend()
models = {
    "ours": (learner, "Atoms (zero is grey)"),
    "theirs": (factors, "Factors of NMF"),
}
for name, (model, title) in models.items():
    options = dict(image_shape=(8, 8), ax=axes[name], n_columns=6)
    AtomsDisplay.from_estimator(model.components_, **options)
    axes[name].set_title(title)
figure.get_layout_engine().set(wspace=0.1)
plt.show()

# %%
# The same expectation with fewer codes in use, and more of it with as many.

print({"CountDictionaryLearning": curve, "NMF": rival})
