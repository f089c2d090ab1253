"""Lines of users, for a type checker: mypy reads them in `make lint`, and nothing runs them."""

from typing import assert_type

import numpy as np
import torch
from numpy.typing import NDArray

import skpudle
from skpudle.encoding import encode
from skpudle.lasso import solve_lasso
from skpudle.metrics import recovery_rate
from skpudle.plotting import AtomsDisplay

X = np.zeros((20, 8))
learner = skpudle.PUDLEDictionaryLearning(
    4, alpha="auto", n_unfoldings=None, random_state=0
)
assert_type(learner.fit(X), skpudle.PUDLEDictionaryLearning)
assert_type(learner.partial_fit(X).score(X), float)
skpudle.inspection.findings(learner, X)
assert_type(recovery_rate(learner.components_, X), float)
assert_type(skpudle.metrics.atom_coherence(learner.components_, X), np.ndarray)
assert_type(AtomsDisplay.from_estimator(learner, X).plot(n_columns=3), AtomsDisplay)
codes, gaps = solve_lasso(torch.zeros(4, 8), torch.zeros(20, 8), 0.1)
encode(torch.zeros(4, 8), torch.zeros(20, 8), alpha=0.1)

# mypy has to refuse these: an ignore that is not needed is an error of its own
skpudle.PUDLEDictionaryLearning(4, gradient="ae_ls")  # type: ignore[arg-type]
skpudle.PUDLEDictionaryLearning(4, n_atoms=3)  # type: ignore[call-arg]
skpudle.CountDictionaryLearning(4, loss="gamma")  # type: ignore[arg-type]
encode(torch.zeros(4, 8), torch.zeros(20, 8), alpha=0.1, depth=3)  # type: ignore[call-arg]


def features(model: skpudle.PUDLEClassifier) -> NDArray[np.float64]:
    atoms: NDArray[np.float64] = model.fit(X, X[:, 0] > 0).components_
    return atoms
