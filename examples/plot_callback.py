"""
Watch a fit, and end it
=======================

A callback of ten lines measures the dictionary after each epoch, and ends the fit when it is right.

A callback is any object with the four methods of scikit-learn's protocol. Here it knows the
dictionary that made the data, and follows the error to it. Yours may write to a log, draw, or score
rows that the fit does not have.
"""

import matplotlib.pyplot as plt

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data, perturb_dictionary
from skpudle.metrics import dictionary_error


class EndWhenRight:
    """Note the error of the dictionary after each epoch; end the fit below a number."""

    def __init__(self, truth, below):
        self.truth, self.below, self.errors = truth, below, []

    def setup(self, estimator, context): ...

    def teardown(self, estimator, context): ...

    def on_fit_task_begin(self, estimator, context): ...

    def on_fit_task_end(self, estimator, context, *, fitted_estimator):
        if context.task_name == "epoch":
            atoms = fitted_estimator.components_
            self.errors.append(dictionary_error(atoms, self.truth, match=True))
            return self.errors[-1] < self.below


# %%
# Training through an encoder of 50 unfoldings, from a start near the truth. ``fitted_estimator`` is
# the learner as if the fit had ended with that epoch; what the callback does not ask for costs
# nothing. Returning True ends the fit, which then is as good as any other.

X, truth, _ = make_dictionary_data(1000, 50, 80, 4, sign="sample", random_state=0)
start = perturb_dictionary(truth, 0.5, random_state=1)
callback = EndWhenRight(truth, below=0.011)
learner = PUDLEDictionaryLearning(
    gradient="ae-ls", alpha=0.2, n_unfoldings=50, dict_init=start, random_state=0
)
learner.set_callbacks(callback).fit(X)
print(f"{len(callback.errors)} epochs, ended by: {learner.ended_by_}")

# %%

fig, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
ax.semilogy(range(1, len(callback.errors) + 1), callback.errors, "o-")
ax.axhline(
    callback.below,
    color="gray",
    linewidth=0.8,
    linestyle=":",
    label="the fit ends here",
)
ax.set(xlabel="Epoch", ylabel="Error of the dictionary")
ax.legend()
plt.show()
