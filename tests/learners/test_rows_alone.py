"""Whatever a learner says of a row depends on that row alone: not on its company, nor on a batch.

A row is encoded alone, among others, in another order, in parts of odd sizes, and in company whose
entries are missing. Codes of rows with gaps, which no product of matrices is part of, have the same
bits. Elsewhere a product of one row with a matrix may be another routine of BLAS than a product of
many, which sums in another order: codes then agree to `ROUNDING` of the largest.
"""

import numpy as np
import pytest
from scipy import sparse
from small import KINDS, learner_of

from skpudle import ConvPUDLEDictionaryLearning
from skpudle._learners import transformer

N_SAMPLES, N_FEATURES = 60, 12

# Codes are solutions of problems whose conditions, of supports of few atoms, lose three digits.
ROUNDING = 1e-12

METHODS = ("transform", "predict", "predict_proba", "decision_function")


@pytest.fixture(scope="module", params=[False, True], ids=["complete", "with gaps"])
def rows(request):
    """Return counts, which every loss takes, with and without missing entries."""
    rng = np.random.default_rng(0)
    rates = np.exp(
        rng.normal(size=(N_SAMPLES, 3)) @ rng.normal(size=(3, N_FEATURES)) / 2 + 1
    )
    X = np.minimum(rng.poisson(rates), 30).astype(float)
    if request.param:
        X[rng.random(X.shape) < 0.1] = np.nan
        X[3], X[4, 1:] = np.nan, np.nan
        assert (~np.isnan(X).any(axis=1)).sum() > 10
    return X


@pytest.fixture(scope="module", params=KINDS)
def learner(request):
    X = (
        np.random.default_rng(1)
        .poisson(3.0, size=(200, N_FEATURES))
        .clip(0, 30)
        .astype(float)
    )
    y = X[:, 0] > X[:, 1]
    return learner_of(request.param, 20).fit(X, y)


def said_of(learner, rows):
    """Return, by method, whatever a learner says of rows."""
    return {
        name: getattr(learner, name)(rows) for name in METHODS if hasattr(learner, name)
    }


def assert_same_rows(found, expected):
    """Compare results for the same rows, with and without company."""
    assert found.shape == expected.shape
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(found, expected)
        return
    scale = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * scale)


def parts_of(n, sizes):
    ends = np.cumsum(np.resize(sizes, n))
    return np.split(np.arange(n), ends[ends < n])


def test_in_parts_of_any_size(learner, rows):
    """Also each of the first rows alone, of which one has no known entry."""
    parts = parts_of(len(rows), [*[1] * 8, 3, 1, 41, 2])
    found = [said_of(learner, rows[part]) for part in parts]
    for name, expected in said_of(learner, rows).items():
        assert_same_rows(np.concatenate([part[name] for part in found]), expected)


def test_in_any_order_and_whatever_is_missing_elsewhere(learner, rows):
    """One entry of one row."""
    order, others = np.random.default_rng(2).permutation(len(rows)), rows.copy()
    others[0, 0] = np.nan
    in_order, found = said_of(learner, rows[order]), said_of(learner, others)
    for name, expected in said_of(learner, rows).items():
        assert_same_rows(in_order[name], expected[order])
        assert_same_rows(found[name][1:], expected[1:])


def test_however_data_come(learner, rows, monkeypatch):
    """In parts of 13 rows, and of each method that returns codes."""
    expected = learner.transform(rows)
    assert np.any(expected)
    monkeypatch.setattr(transformer, "PART", 13)
    assert_same_rows(learner.transform_sparse(rows).toarray(), expected)
    assert_same_rows(learner.transform([*rows]), expected)
    back = learner.inverse_transform(expected)
    for kind in (sparse.csr_array, sparse.coo_matrix, sparse.csc_array):
        assert_same_rows(learner.inverse_transform(kind(expected)), back)


@pytest.mark.parametrize("name", ["search", "lasso", "lasso of unfolded"])
def test_codes_of_the_lasso_with_gaps_have_the_same_bits(name, rows):
    learner = learner_of(name, 20).fit(np.nan_to_num(rows, nan=2.0))
    gaps = np.isnan(rows).any(axis=1)
    expected = learner.transform(rows)
    others = rows.copy()
    others[~gaps, 0] += 1
    np.testing.assert_array_equal(learner.transform(others)[gaps], expected[gaps])
    for row in np.flatnonzero(gaps):
        np.testing.assert_array_equal(
            learner.transform(rows[row : row + 1])[0], expected[row]
        )


# ---------------------------------------------------------------------------- images


@pytest.mark.parametrize("with_gaps", [False, True])
def test_codes_of_an_image_depend_on_that_image_alone(with_gaps):
    rng = np.random.default_rng(0)
    images = rng.poisson(3.0, size=(5, 14, 16)).astype(float)
    learner = ConvPUDLEDictionaryLearning(
        3, atom_shape=(4, 4), stride=1, random_state=0
    )
    learner.fit(images)
    if with_gaps:
        images[2:4][rng.random((2, 14, 16)) < 0.1] = np.nan
    expected = learner.transform(images)
    assert expected.any()
    order = rng.permutation(len(images))
    assert_same_rows(learner.transform(images[order]), expected[order])
    alone = [learner.transform(images[i : i + 1]) for i in range(len(images))]
    assert_same_rows(np.concatenate(alone), expected)
    images[0, 3, 4] = np.nan
    assert_same_rows(learner.transform(images)[1:], expected[1:])
