"""SPORCO's alternating ADMM."""

import numpy as np
from benchopt import BaseSolver
from sporco.dictlrn import bpdndl


class Solver(BaseSolver):
    name = "SPORCO"
    requirements = ["pip::sporco"]

    def set_objective(self, X, n_components, alpha):
        self.X, self.alpha = X.T, alpha
        start = X[np.random.default_rng(0).permutation(len(X))[:n_components]].T
        self.start = start + 1e-6 * np.random.default_rng(1).standard_normal(
            start.shape
        )

    def run(self, n_iter):
        options = bpdndl.BPDNDictLearn.Options(
            {"Verbose": False, "MaxMainIter": n_iter + 1}
        )
        learner = bpdndl.BPDNDictLearn(self.start, self.X, self.alpha, options)
        self.atoms = learner.solve()

    def get_result(self):
        return dict(D=self.atoms.T)
