"""
Steer and ablate concepts
=========================

Adding one concept to activations makes twos of other digits; taking it off changes only twos.

Activations of a network's layer are sums of few concepts, the atoms. A concept can be added to them
(steering) or taken off (ablation), and the network goes on from there. Atoms have norm 1, so codes
and steps have the units of the activations. The network here is scikit-learn's, for digits.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from skpudle import PUDLEDictionaryLearning

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)
network = MLPClassifier(64, early_stopping=True, random_state=0).fit(X_train, y_train)


def activate(rows):
    return np.maximum(rows @ network.coefs_[0] + network.intercepts_[0], 0)


def classify(activations):
    return (activations @ network.coefs_[1] + network.intercepts_[1]).argmax(axis=1)


# %%
# Concepts are learned from the activations of the training digits. ``choose_alpha`` makes the codes
# as sparse as one likes to read them: eight concepts in a digit.

learner = PUDLEDictionaryLearning(64, positive_code=True, random_state=0)
learner.fit(activate(X_train)).choose_alpha(activate(X_train), l0=8)
activations = activate(X_test)
codes = learner.transform(activations)
print(f"{(codes > 0).sum(axis=1).mean():.1f} concepts in a digit")
print(f"right from activations: {(classify(activations) == y_test).mean():.1%}")
again = learner.inverse_transform(codes)
print(f"right from their concepts: {(classify(again) == y_test).mean():.1%}")

# %%
# A concept belongs to the digit in which its codes are largest. Of the concepts in a twentieth of
# the images or more, this one has the largest share of its codes in one digit. Its usual size is
# the median of the codes that are not zero.

by_digit = np.array([codes[y_test == digit].mean(axis=0) for digit in range(10)])
common = (codes > 0).mean(axis=0) > 0.05
selectivity = np.where(common, by_digit.max(axis=0), 0) / np.where(
    common, by_digit.sum(axis=0), 1
)
concept = selectivity.argmax()
digit = by_digit[:, concept].argmax()
size = np.median(codes[codes[:, concept] > 0, concept])
print(
    f"concept {concept}: {selectivity[concept]:.0%} of it in the digit {digit}, size {size:.2f}"
)

# %%
# Ablation takes off what the concept adds to each row: its code times its atom. Steering adds
# steps of its usual size to all digits that are not of its kind.

atom = learner.components_[concept]
ablated = activations - np.outer(codes[:, concept], atom)
before, after = (
    [(classify(rows) == y_test)[y_test == d].mean() for d in range(10)]
    for rows in (activations, ablated)
)
steps = np.arange(0, 11)
others = y_test != digit
taken = [
    (classify(activations[others] + n * size * atom) == digit).mean() for n in steps
]

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
axes[0].bar(np.arange(10) - 0.2, before, 0.4, label="as they are", color="lightgray")
axes[0].bar(np.arange(10) + 0.2, after, 0.4, label=f"without concept {concept}")
axes[0].set(
    title="Ablation", xlabel="digit", ylabel="share of the digits", xticks=range(10)
)
axes[0].legend(title="classified right", loc="upper center", ncols=2)
axes[1].plot(steps, taken, "o-", label=f"other digits taken for a {digit}")
axes[1].set(title="Steering", xlabel=f"step, in usual sizes of concept {concept}")
axes[1].legend()
axes[0].set_ylim(0, 1.35)
plt.show()

# %%
# A step of one usual size changes a tenth of the decisions: a digit has eight concepts, and the
# network adds up all of them. Five usual sizes change nearly all, and leave the range of the
# activations that the network knows. Ablation touches the digits that have the concept, and the
# network knows most of these by other concepts, too.
