"""Learn atoms that code held-out rows well, and are the true ones where these are known."""

import numpy as np
from benchmark_utils.referee import lasso_objective, recovery
from benchopt import BaseObjective


class Objective(BaseObjective):
    """The lasso objective of held-out rows, coded by one referee with a common penalty.

    min over D and Z of 1/2 |X - Z D|^2 + alpha |Z|_1 with atoms in the unit ball, where alpha is
    ``reg`` times the root mean square norm of a training row.
    """

    name = "Dictionary learning"
    url = "https://github.com/benchopt/benchmark_dictionary_learning"
    min_benchopt_version = "1.6"
    requirements = ["scikit-learn"]
    parameters = {"reg": [0.1, 0.2]}
    sampling_strategy = "iteration"
    test_dataset_name = "Synthetic"

    def set_data(self, X_train, X_test, n_components, truth=None):
        self.X_train, self.X_test = X_train, X_test
        self.n_components, self.truth = n_components, truth
        self.alpha = self.reg * float(np.sqrt(np.square(X_train).sum(1).mean()))

    def get_objective(self):
        return dict(X=self.X_train, n_components=self.n_components, alpha=self.alpha)

    def evaluate_result(self, D):  # (n_components, n_features)
        test, density = lasso_objective(self.X_test, D, self.alpha)
        # the objective without codes
        zero = 0.5 * float(np.square(self.X_test).sum(1).mean())
        result = dict(value=test / zero, density=density)
        if self.truth is not None:
            result["missed"] = 1 - recovery(D, self.truth)
        return result

    def get_one_result(self):
        return dict(D=self.X_train[: self.n_components])
