"""Lines of users, for a type checker: mypy reads them in `make lint`, and nothing runs them.

Each learner has lines that mypy accepts, and a line with an unknown parameter that mypy has to
refuse: an ignore that is not needed is an error of its own.
"""

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
y = X[:, 0] > 0
images = np.zeros((4, 16, 16))

# ---------------------------------------------------------------------------- learners of rows

learner = skpudle.PUDLEDictionaryLearning(
    4, alpha="auto", n_unfoldings=None, random_state=0
)
assert_type(learner.fit(X), skpudle.PUDLEDictionaryLearning)
assert_type(learner.partial_fit(X).score(X), float)
assert_type(learner.summary(X), str)
learner.inverse_transform(learner.choose_alpha(X, l0=2).transform(X))
learner.transform_sparse(X)
skpudle.PUDLEDictionaryLearning(4, gradient="ae_ls")  # type: ignore[arg-type]
skpudle.PUDLEDictionaryLearning(4, n_atoms=3)  # type: ignore[call-arg]

counts = skpudle.CountDictionaryLearning(4, loss="binomial", n_trials=3)
assert_type(counts.fit(X), skpudle.CountDictionaryLearning)
assert_type(counts.fit(X, sample_weight=X[:, 0]).score(X), float)
counts.inverse_transform(counts.transform(X))
skpudle.CountDictionaryLearning(4, loss="gamma")  # type: ignore[arg-type]
skpudle.CountDictionaryLearning(4, trials=3)  # type: ignore[call-arg]

parts = skpudle.PoissonNMF("auto", min_gain=3.0)
assert_type(parts.fit(X), skpudle.PoissonNMF)
assert_type(parts.score(X), float)
assert_type(parts.summary(X), str)
parts.inverse_transform(parts.transform(X))
skpudle.PoissonNMF(4, beta_loss="kullback-leibler")  # type: ignore[call-arg]

noodl = skpudle.NOODLDictionaryLearning(4, threshold=0.1)
assert_type(noodl.fit(X), skpudle.NOODLDictionaryLearning)
assert_type(noodl.score(X), float)
noodl.inverse_transform(noodl.transform(X))
skpudle.NOODLDictionaryLearning(4, alpha=0.1)  # type: ignore[call-arg]

sporco = skpudle.SporcoDictionaryLearning(4, max_iter=10)
assert_type(sporco.fit(X), skpudle.SporcoDictionaryLearning)
assert_type(sporco.score(X), float)
sporco.inverse_transform(sporco.transform(X))
skpudle.SporcoDictionaryLearning(4, lmbda=0.1)  # type: ignore[call-arg]

# ---------------------------------------------------------------------------- tasks

classifier = skpudle.PUDLEClassifier(4, supervision=0.5, class_weight="balanced")
assert_type(classifier.fit(X, y), skpudle.PUDLEClassifier)
assert_type(classifier.score(X, y), float)
classifier.predict(X)
classifier.predict_proba(X)
classifier.transform(X)
skpudle.PUDLEClassifier(4, penalty="l2")  # type: ignore[call-arg]

regressor = skpudle.PUDLERegressor(4, C=10.0)
assert_type(regressor.fit(X, X[:, 0]), skpudle.PUDLERegressor)
assert_type(regressor.score(X, X[:, 0]), float)
regressor.predict(X)
skpudle.PUDLERegressor(4, class_weight="balanced")  # type: ignore[call-arg]

consensus = skpudle.ConsensusDictionary(learner, n_replicates=5, resample="halves")
assert_type(consensus.fit(X), skpudle.ConsensusDictionary)
consensus.inverse_transform(consensus.transform(X))
skpudle.ConsensusDictionary(learner, n_repeats=5)  # type: ignore[call-arg]

imputer = skpudle.DictionaryImputer(random_state=0)
assert_type(imputer.fit(X), skpudle.DictionaryImputer)
imputer.transform(X)
skpudle.DictionaryImputer(missing_values=-999)  # type: ignore[call-arg]

# ---------------------------------------------------------------------------- images and signals

waves = skpudle.ConvPUDLEDictionaryLearning(2, atom_shape=5, channels_first=True)
assert_type(waves.fit(images), skpudle.ConvPUDLEDictionaryLearning)
explained: float = waves.score(images)
assert_type(waves.summary(), str)
waves.inverse_transform(waves.transform([X, X]))
skpudle.ConvPUDLEDictionaryLearning(2, sampling_rate=250)  # type: ignore[call-arg]

denoiser = skpudle.ConvDenoiser(8, noise_std=0.1, atom_shape=(5, 5))
assert_type(denoiser.fit(images), skpudle.ConvDenoiser)
decibels: float = denoiser.score(images)
denoiser.denoise(images[0], noise_std=0.1)
skpudle.ConvDenoiser(8, sigma=0.1)  # type: ignore[call-arg]

# ---------------------------------------------------------------------------- functions

skpudle.inspection.findings(learner, X)
assert_type(recovery_rate(learner.components_, X), float)
assert_type(skpudle.metrics.atom_coherence(learner.components_, X), np.ndarray)
assert_type(AtomsDisplay.from_estimator(learner, X).plot(n_columns=3), AtomsDisplay)
codes, gaps = solve_lasso(torch.zeros(4, 8), torch.zeros(20, 8), 0.1)
encode(torch.zeros(4, 8), torch.zeros(20, 8), alpha=0.1)
encode(torch.zeros(4, 8), torch.zeros(20, 8), alpha=0.1, depth=3)  # type: ignore[call-arg]


def features(model: skpudle.PUDLEClassifier) -> NDArray[np.float64]:
    atoms: NDArray[np.float64] = model.fit(X, y).components_
    return atoms
