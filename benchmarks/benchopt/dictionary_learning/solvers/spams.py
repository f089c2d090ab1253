"""Online dictionary learning of Mairal et al., by its authors."""

import numpy as np
import spams
from benchopt import BaseSolver


class Solver(BaseSolver):
    name = "SPAMS"
    requirements = ["pip::spams-bin"]
    references = [
        'J. Mairal et al., "Online learning for matrix factorization...", JMLR 2010'
    ]

    def set_objective(self, X, n_components, alpha):
        self.X, self.alpha = np.asfortranarray(X.T), alpha
        self.n_components = n_components

    def run(self, n_iter):
        size = min(512, self.X.shape[1])
        n_batches = n_iter * -(-self.X.shape[1] // size)  # an iteration is a pass
        options = dict(
            batchsize=size, iter=max(1, n_batches), numThreads=1, verbose=False
        )
        self.atoms = spams.trainDL(
            self.X, K=self.n_components, lambda1=self.alpha, **options
        )

    def get_result(self):
        return dict(D=self.atoms.T)
