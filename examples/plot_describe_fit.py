"""
Describe a fit in one figure
============================

Atoms, their use, the loss, the errors and the worst rows fit one figure, with the fit's numbers.

Change it as you like, and keep it next to the learner: ``figure.savefig("fit.pdf")``.
"""

from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from skpudle import PUDLEDictionaryLearning
from skpudle.inspection import findings
from skpudle.plotting import AtomsDisplay, CodesDisplay, LossCurveDisplay

X = load_digits().data[:600]
learner = PUDLEDictionaryLearning(32, random_state=0).fit(X)
copies = learner.inverse_transform(learner.transform(X))
errors = np.square(X - copies).sum(axis=1) / np.square(X).sum(axis=1)
worst = errors.argsort()[::-1][:8]
pairs = np.concatenate([X[worst], copies[worst]]).reshape(-1, 8, 8)

# %%
# The words and the numbers: what is wrong with the atoms, which penalty fit chose, how well codes
# predict hidden pixels, what ended the fit, and how long it took.

for sentence in findings(learner, X) or ["Nothing is wrong."]:
    print(fill(sentence, 88))
print(
    f"penalty {learner.alpha_:.3g}, score {learner.score(X):.3f}, ended by {learner.ended_by_}"
)
print(
    ", ".join(
        f"{phase} {seconds:.2f} s" for phase, seconds in learner.fit_seconds_.items()
    )
)

# %%

figure, axes = plt.subplots(2, 3, figsize=(11, 7), layout="constrained")
AtomsDisplay.from_estimator(learner, X, image_shape=(8, 8), ax=axes[0, 0])
CodesDisplay.from_estimator(learner, X, kind="usage", ax=axes[0, 1])
CodesDisplay.from_estimator(learner, X, kind="count", ax=axes[0, 2])
LossCurveDisplay.from_estimator(learner, ax=axes[1, 0])
axes[1, 1].hist(errors, bins=50)
axes[1, 1].set(xlabel="Share of the energy not explained", ylabel="Rows")
AtomsDisplay(pairs, "images").plot(ax=axes[1, 2], n_columns=len(worst))
axes[1, 2].set_title("The worst rows; below: reconstructions")
plt.show()
