"""The 1797 digits of scikit-learn, 8 x 8 pixels."""

import numpy as np
from benchopt import BaseDataset
from sklearn.datasets import load_digits


class Dataset(BaseDataset):
    name = "Digits"
    requirements = ["scikit-learn"]
    parameters = {"n_components": [100]}
    test_parameters = {"n_components": [20]}

    def get_data(self):
        rng = np.random.default_rng(self.get_seed(use_repetition=True))
        X = rng.permutation(load_digits().data)
        return dict(X_train=X[:-500], X_test=X[-500:], n_components=self.n_components)
