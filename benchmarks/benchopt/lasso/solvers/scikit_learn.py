"""scikit-learn's coordinate descent, as in benchmark_lasso."""

import warnings

from benchopt import BaseSolver
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso


class Solver(BaseSolver):
    name = "sklearn"
    requirements = ["scikit-learn"]

    def set_objective(self, X, y, lmbd, fit_intercept):
        self.X, self.y = X, y
        self.lasso = Lasso(lmbd / len(y), fit_intercept=fit_intercept, tol=0)

    def run(self, n_iter):
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        self.lasso.set_params(max_iter=n_iter + 1).fit(self.X, self.y)

    def get_result(self):
        return dict(beta=self.lasso.coef_)
