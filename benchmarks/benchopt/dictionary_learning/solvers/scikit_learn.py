"""scikit-learn's two learners, with coordinate descent and the common penalty."""

import warnings

from benchopt import BaseSolver
from sklearn.decomposition import DictionaryLearning, MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

LEARNERS = {"batch": DictionaryLearning, "mini-batch": MiniBatchDictionaryLearning}


class Solver(BaseSolver):
    name = "scikit-learn"
    requirements = ["scikit-learn"]
    parameters = {"learner": ["batch", "mini-batch"]}

    def set_objective(self, X, n_components, alpha):
        self.X = X
        options = dict(
            n_components=n_components, alpha=alpha, fit_algorithm="cd", random_state=0
        )
        self.estimator = LEARNERS[self.learner](tol=0, **options)

    def run(self, n_iter):
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        self.estimator.set_params(max_iter=n_iter + 1).fit(self.X)

    def get_result(self):
        return dict(D=self.estimator.components_)
