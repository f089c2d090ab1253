"""The search of skpudle: alternating minimisation that splits and removes atoms."""

from benchopt import BaseSolver
from skpudle import PUDLEDictionaryLearning


class Solver(BaseSolver):
    """It ends by itself, so that the curve is one point."""

    name = "skpudle"
    requirements = ["pip::skpudle"]
    parameters = {"alpha": ["common", "auto"]}
    sampling_strategy = "run_once"

    def set_objective(self, X, n_components, alpha):
        self.X = X
        alpha = alpha if self.alpha == "common" else "auto"
        self.learner = PUDLEDictionaryLearning(
            n_components, alpha=alpha, random_state=0
        )

    def warm_up(self):  # compiles, once on a machine
        self.run(1)

    def run(self, _):
        self.learner.fit(self.X)

    def get_result(self):
        return dict(D=self.learner.components_)
