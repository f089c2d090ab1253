"""Correlated features, of which a tenth matter."""

import numpy as np
from benchopt import BaseDataset


class Dataset(BaseDataset):
    name = "Simulated"
    parameters = {"n_samples, n_features": [(100, 500), (500, 5000)], "rho": [0, 0.6]}
    test_parameters = {"n_samples, n_features": [(30, 50)], "rho": [0]}

    def get_data(self):
        rng = np.random.default_rng(self.get_seed(use_repetition=True))
        X = rng.standard_normal((self.n_samples, self.n_features))
        for j in range(1, self.n_features):
            X[:, j] = self.rho * X[:, j - 1] + (1 - self.rho**2) ** 0.5 * X[:, j]
        beta = rng.standard_normal(self.n_features) * (rng.random(self.n_features) < 0.1)
        y = X @ beta
        return dict(
            X=X, y=y + 0.3 * np.linalg.norm(y) / len(y) ** 0.5 * rng.standard_normal(len(y))
        )
