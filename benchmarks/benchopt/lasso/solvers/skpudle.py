"""skpudle's active set method, exact to rounding: the file to give to benchmark_lasso."""

import numpy as np
import torch
from benchopt import BaseSolver
from scipy.sparse import issparse
from skpudle.lasso import solve_lasso


class Solver(BaseSolver):
    """An atom is a column of X, and y the only row of data."""

    name = "skpudle"
    requirements = ["pip::skpudle"]
    sampling_strategy = "run_once"

    def skip(self, X, y, lmbd, fit_intercept):
        if fit_intercept:
            return True, "it fits no intercept"
        if issparse(X):
            return True, "it takes dense X"
        return False, None

    def set_objective(self, X, y, lmbd, fit_intercept):
        self.atoms = torch.from_numpy(np.ascontiguousarray(X.T))
        self.row, self.lmbd = torch.from_numpy(y[None]).to(self.atoms), float(lmbd)

    def warm_up(self):  # compiles, once on a machine
        self.run(1)

    def run(self, _):
        self.codes, _ = solve_lasso(self.atoms, self.row, self.lmbd, certify=False)

    def get_result(self):
        return dict(beta=self.codes[0].numpy())
