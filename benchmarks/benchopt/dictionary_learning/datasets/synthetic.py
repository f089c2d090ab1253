"""Rows that are sums of a few random atoms, and noise."""

import numpy as np
from benchopt import BaseDataset


class Dataset(BaseDataset):
    name = "Synthetic"
    parameters = {
        "n_samples, n_features, n_components, sparsity": [
            (3000, 50, 60, 3),
            (5000, 64, 100, 5),
        ],
        "snr_db": [10, 20, None],
    }
    test_parameters = {
        "n_samples, n_features, n_components, sparsity": [(300, 16, 12, 2)],
        "snr_db": [20],
    }

    def get_data(self):
        rng = np.random.default_rng(self.get_seed(use_repetition=True))
        n, m, p = self.n_samples + 500, self.n_features, self.n_components
        truth = rng.standard_normal((p, m))
        truth /= np.linalg.norm(truth, axis=1, keepdims=True)
        support = rng.random((n, p)).argsort(axis=1) < self.sparsity
        codes = support * rng.choice([-1, 1], (n, p)) * rng.uniform(1, 2, (n, p))
        X = codes @ truth
        if self.snr_db is not None:
            noise = rng.standard_normal(X.shape)
            X = X + noise * np.linalg.norm(X) / np.linalg.norm(noise) * 10 ** (
                -self.snr_db / 20
            )
        return dict(X_train=X[:-500], X_test=X[-500:], n_components=p, truth=truth)
