"""HyperSpy's decomposition by this package's learners."""

import numpy as np
import pytest

from skpudle import PUDLEDictionaryLearning
from skpudle.metrics import recovery_rate

signals = pytest.importorskip("hyperspy.api").signals
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # HyperSpy's own
    pytest.mark.draws_from_numpy,
]


@pytest.fixture(scope="module")
def spectra():
    """Return a map of 20 x 20 spectra, sums of three of four lines each, and the lines."""
    rng = np.random.default_rng(0)
    energy = np.arange(80)
    lines = np.stack([np.exp(-((energy - e) ** 2) / (2 * w**2)) for e, w in
                      [(12, 3), (30, 5), (48, 3), (66, 4)]])  # fmt: skip
    abundance = rng.gamma(1.0, 1.0, (20, 20, 4)) * (rng.random((20, 20, 4)) < 0.6)
    clean = abundance @ lines
    return clean, clean + 0.05 * rng.standard_normal(clean.shape), lines


def test_decomposition_takes_the_learner(spectra):
    clean, noisy, lines = spectra
    signal = signals.Signal1D(noisy)
    learner = PUDLEDictionaryLearning(
        4, positive_code=True, positive_dict=True, debias=1.0, random_state=0
    )
    signal.decomposition(algorithm=learner, output_dimension=4, print_info=False)
    factors = signal.get_decomposition_factors().data
    loadings = signal.get_decomposition_loadings().data
    assert factors.shape == (4, 80)
    assert loadings.shape == (4, 20, 20)
    lines = lines / np.linalg.norm(lines, axis=1, keepdims=True)
    assert recovery_rate(factors, lines, threshold=0.98) == 1
    model = signal.get_decomposition_model().data
    assert np.linalg.norm(model - clean) < 0.5 * np.linalg.norm(noisy - clean)
