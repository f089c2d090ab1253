"""
``GridSearchCV`` chooses alpha without a ``scoring``
====================================================

The error of reconstruction says that the smallest alpha is best, always: with no penalty anything
is reconstructed, noise included. The ``score`` of the learners hides columns, infers the codes from
the others, and asks how well the hidden entries are predicted. Here both are held against what no
score may look at: the clean data.
"""

# %%
# Noisy patches of a photograph; the clean ones only judge at the end.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import extract_patches, load_gray_images
from skpudle.metrics import reconstruction_r2_scorer

SIGMA = 25 / 255
clean = extract_patches(load_gray_images(), (8, 8), 1500, normalize=False, random_state=0)
noise = SIGMA * np.random.default_rng(0).standard_normal(clean.shape)
noisy = clean + noise - noise.mean(axis=1, keepdims=True)

# %%
# One search, two scores: the learner's own (a scorer of None) decides.

alphas = SIGMA * np.geomspace(0.4, 6, 7)
learner = PUDLEDictionaryLearning(
    64, n_unfoldings=30, optimizer="surrogate", max_iter=5, tol=None, random_state=0
)


def own_score(estimator, X, y=None):
    return estimator.score(X)


search = GridSearchCV(
    learner,
    {"alpha": alphas},
    scoring={"score": own_score, "R2": reconstruction_r2_scorer},
    refit="score",
    cv=3,
).fit(noisy)
results = search.cv_results_

# %%
# The error of denoising, for each alpha.

psnr = []
for alpha in alphas:
    fitted = learner.set_params(alpha=alpha).fit(noisy)
    denoised = fitted.inverse_transform(fitted.transform(noisy))
    psnr.append(-10 * np.log10(np.mean((denoised - clean) ** 2)))
picked = search.best_index_
print(f"picked: alpha = {alphas[picked] / SIGMA:.2f} sigma, {psnr[picked]:.2f} dB")
print(f"best:   alpha = {alphas[np.argmax(psnr)] / SIGMA:.2f} sigma, {max(psnr):.2f} dB")

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name in ("score", "R2"):
    axes[0].semilogx(alphas / SIGMA, results[f"mean_test_{name}"], "o-", label=name)
axes[0].set(ylabel="of noisy, held-out patches", title="What can be seen")
axes[0].legend()
axes[1].semilogx(alphas / SIGMA, psnr, "o-", color="C2")
axes[1].set(ylabel="PSNR against clean patches, dB", title="What cannot")
for ax in axes:
    ax.axvline(alphas[picked] / SIGMA, color="gray", linestyle=":")
    ax.minorticks_off()
    ax.set(xlabel=r"alpha / $\sigma$", xticks=[0.5, 1, 2, 4], xticklabels=["0.5", "1", "2", "4"])
plt.show()
