"""
Choose alpha
============

The default score finds a good alpha; a score for denoising finds a better one.

The error of reconstruction always prefers the smallest alpha: without a penalty everything is
reconstructed, noise included. The ``score`` of a learner hides columns, infers the codes from the
others, and judges the predictions of the hidden entries. A third score estimates the error of
denoising if you know the noise. All are compared with the error against clean data, which no score
may look at. A search needs no ``scoring`` for the first; ``scoring=`` is here only to see three
scores at once.
"""

# %%
# Noisy patches of a photograph; the clean ones only judge at the end.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV, KFold

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import extract_patches, load_gray_images
from skpudle.metrics import make_denoising_scorer, reconstruction_r2_scorer

SIGMA = 25 / 255
clean = extract_patches(
    load_gray_images(), (8, 8), 1500, normalize=False, random_state=0
)
noise = SIGMA * np.random.default_rng(0).standard_normal(clean.shape)
noisy = clean + noise - noise.mean(axis=1, keepdims=True)

# %%
# One search, three scores: the learner's own decides.

alphas = SIGMA * np.geomspace(0.4, 6, 7)
learner = PUDLEDictionaryLearning(
    64, dict_init="data", gradient="dec", max_iter=5, tol=None, random_state=0
)


def own_score(estimator, X, y=None):
    return estimator.score(X)


search = GridSearchCV(
    learner,
    {"alpha": alphas},
    scoring={
        "score": own_score,
        "R2": reconstruction_r2_scorer,
        "denoising": make_denoising_scorer(noise_std=SIGMA),
    },
    refit="score",
    cv=3,
).fit(noisy)
results = search.cv_results_

# %%
# The true error of denoising, of the same held-out patches.

psnr = []
for alpha in alphas:
    errors = []
    for train, test in KFold(3).split(noisy):
        fitted = learner.set_params(alpha=alpha).fit(noisy[train])
        denoised = fitted.inverse_transform(fitted.transform(noisy[test]))
        errors.append(np.mean((denoised - clean[test]) ** 2))
    psnr.append(-10 * np.log10(np.mean(errors)))
picked = search.best_index_
by_estimate = results["mean_test_denoising"].argmax()
for name, i in {
    "score": picked,
    "denoising": by_estimate,
    "the best": np.argmax(psnr),
}.items():
    print(f"{name}: alpha = {alphas[i] / SIGMA:.2f} sigma, {psnr[i]:.2f} dB")

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name in ("score", "R2"):
    axes[0].semilogx(alphas / SIGMA, results[f"mean_test_{name}"], "o-", label=name)
axes[0].set(ylabel="of noisy, held-out patches", title="What can be seen")
axes[0].legend()
axes[1].semilogx(alphas / SIGMA, psnr, "o-", color="C2", label="against clean patches")
estimate = -10 * np.log10(-results["mean_test_denoising"])
axes[1].semilogx(
    alphas / SIGMA, estimate, "o--", color="C3", label="estimated from noisy ones"
)
axes[1].set(ylabel="PSNR, dB", title="What cannot, and its estimate")
axes[1].legend()
for ax in axes:
    ax.axvline(alphas[picked] / SIGMA, color="gray", linestyle=":")
    ax.minorticks_off()
    ax.set(
        xlabel=r"alpha / $\sigma$",
        xticks=[0.5, 1, 2, 4],
        xticklabels=["0.5", "1", "2", "4"],
    )
plt.show()
