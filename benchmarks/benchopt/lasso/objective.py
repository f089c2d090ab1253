"""The lasso, with the interface of benchopt's benchmark_lasso, to try the solver on."""

import numpy as np
from benchopt import BaseObjective


class Objective(BaseObjective):
    """min over beta of 1/2 |y - X beta|^2 + lmbd |beta|_1."""

    name = "Lasso Regression"
    min_benchopt_version = "1.6"
    parameters = {"fit_intercept": [False], "reg": [0.5, 0.1, 0.05]}

    def set_data(self, X, y):
        self.X, self.y = X, y
        self.lmbd = self.reg * float(np.abs(X.T @ y).max())

    def get_objective(self):
        return dict(X=self.X, y=self.y, lmbd=self.lmbd, fit_intercept=self.fit_intercept)

    def evaluate_result(self, beta):
        residual = self.y - self.X @ beta
        primal = 0.5 * residual @ residual + self.lmbd * np.abs(beta).sum()
        scale = min(1.0, self.lmbd / np.abs(self.X.T @ residual).max())
        dual = scale * (residual @ self.y) - 0.5 * scale**2 * (residual @ residual)
        return dict(value=float(primal), duality_gap=float(primal - dual))

    def get_one_result(self):
        return dict(beta=np.zeros(self.X.shape[1]))
