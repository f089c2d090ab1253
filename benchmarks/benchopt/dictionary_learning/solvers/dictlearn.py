"""dictlearn's K-SVD, which fixes the number of atoms in a row instead of a penalty."""

from benchopt import BaseSolver
from dictlearn import DictionaryLearning


class Solver(BaseSolver):
    name = "dictlearn"
    requirements = ["pip::dictlearn"]
    parameters = {"fit_algorithm": ["aksvd"]}

    def set_objective(self, X, n_components, alpha):
        self.X, self.n_components = X, n_components

    def run(self, n_iter):
        options = dict(
            fit_algorithm=self.fit_algorithm, max_iter=n_iter + 1, random_state=0
        )
        self.learner = DictionaryLearning(self.n_components, **options).fit(self.X)

    def get_result(self):
        return dict(D=self.learner.components_)
