"""Patches of a photograph that comes with scikit-learn, without their means."""

import numpy as np
from benchopt import BaseDataset
from sklearn.datasets import load_sample_image
from sklearn.feature_extraction.image import extract_patches_2d


class Dataset(BaseDataset):
    name = "Patches"
    requirements = ["scikit-learn", "pillow"]
    parameters = {"n_samples": [10_000], "size": [8], "n_components": [128]}
    test_parameters = {"n_samples": [300], "size": [4], "n_components": [20]}

    def get_data(self):
        seed = self.get_seed(use_repetition=True)
        image = load_sample_image("china.jpg").mean(axis=2) / 255
        shape = self.size, self.size
        X = extract_patches_2d(image, shape, max_patches=self.n_samples + 500, random_state=seed)
        X = X.reshape(len(X), -1)
        X = X - X.mean(axis=1, keepdims=True)
        X = np.random.default_rng(seed).permutation(X)
        return dict(X_train=X[:-500], X_test=X[-500:], n_components=self.n_components)
