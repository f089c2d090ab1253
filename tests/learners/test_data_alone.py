"""Convolutional learners that search, solve for codes, choose alpha, and live with gaps."""

import numpy as np
import pytest

from skpudle import ConvPUDLEDictionaryLearning

SEARCH = dict(stride=1, random_state=0)


@pytest.fixture
def traces():  # (20, 80), of one shape at random times
    rng = np.random.default_rng(0)
    shape = np.sin(np.linspace(0, 3 * np.pi, 10)) * np.hanning(10)
    traces = 0.01 * rng.normal(size=(20, 80))
    for trace in traces:
        for start in rng.integers(70, size=2):
            trace[start : start + 10] += rng.uniform(1, 2) * shape
    return traces


def test_a_search_finds_the_shape_and_nothing_is_trained_after_it(traces):
    learner = ConvPUDLEDictionaryLearning(1, atom_shape=10, **SEARCH).fit(traces)
    assert len(learner.loss_curve_) == learner.n_iter_ > 0
    codes = learner.transform(traces)
    assert np.count_nonzero(codes) <= 4 * len(traces)
    rest = learner.inverse_transform(codes) - traces
    assert np.square(rest).sum() < 0.05 * np.square(traces).sum()


def test_codes_after_a_search_satisfy_the_optimality_condition(traces):
    """Of the lasso: correlations with the residual are alpha where codes are, and at most alpha."""
    learner = ConvPUDLEDictionaryLearning(2, atom_shape=10, **SEARCH, alpha=0.1).fit(traces)
    codes = learner.transform(traces)
    rest = traces - learner.inverse_transform(codes)
    slopes = np.stack(
        [[np.correlate(row, atom) for atom in learner.components_] for row in rest]
    ).swapaxes(1, 2)
    slopes = slopes.reshape(codes.shape)
    used = codes != 0
    np.testing.assert_allclose(slopes[used], 0.1 * np.sign(codes[used]), rtol=0, atol=1e-6)
    assert np.abs(slopes).max() <= 0.1 + 1e-6


def test_black_images_have_a_search_too():
    learner = ConvPUDLEDictionaryLearning(2, atom_shape=3, **SEARCH).fit(np.zeros((3, 12)))
    assert not learner.transform(np.zeros((3, 12))).any()


# ---------------------------------------------------------------- missing samples


@pytest.fixture
def gaps(traces):
    traces = traces.copy()
    traces[np.random.default_rng(1).random(traces.shape) < 0.2] = np.nan
    return traces


def test_a_search_with_gaps_fills_them(traces, gaps):
    learner = ConvPUDLEDictionaryLearning(1, atom_shape=10, **SEARCH, alpha=0.1).fit(gaps)
    filled = learner.inverse_transform(learner.transform(gaps))
    missing = np.isnan(gaps)
    error = np.square(filled - traces)[missing].sum()
    assert error < 0.2 * np.square(traces[missing]).sum()
