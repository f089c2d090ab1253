"""NaN marks missing entries."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small import learner_of

from skpudle import (
    ConvPUDLEDictionaryLearning,
    PUDLEDictionaryLearning,
    SporcoDictionaryLearning,
)
from skpudle.datasets import make_dictionary_data
from skpudle.encoding import encode
from skpudle.inspection import findings
from skpudle.lasso import solve_lasso

LEARNERS = [
    "search",
    "unfolded",
    "dec",
    "surrogate",
    "hard",
    "lasso",
    "lasso of unfolded",
]


@pytest.fixture(params=[*LEARNERS, "noodl", "encoder"])
def learner(request):
    return learner_of(request.param, 12)


@pytest.fixture(scope="module")
def X():
    return make_dictionary_data(80, 10, 12, 2, random_state=0)[0]


@pytest.fixture(scope="module")
def gaps(X):
    """Return the same data with a tenth missing, a row without values and one with few."""
    missing = np.random.default_rng(0).random(X.shape) < 0.1
    missing[0] = True
    missing[1, 2:] = True
    return np.where(missing, np.nan, X)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_masked_arrays_are_arrays_with_gaps(dtype, gaps):
    """What lies under the mask counts for nothing."""
    missing, X = np.isnan(gaps), np.nan_to_num(10 * gaps).astype(dtype)
    masked = np.ma.masked_array(np.where(missing, 10**6, X), mask=missing)
    expected, found = (learner_of("search", 12) for _ in range(2))
    gaps = np.where(missing, np.nan, X)
    assert found.fit(masked).components_.dtype == expected.fit(gaps).components_.dtype
    np.testing.assert_array_equal(found.components_, expected.components_)
    np.testing.assert_array_equal(found.transform(masked), expected.transform(gaps))
    assert found.score(masked) == expected.score(gaps)


@pytest.mark.parametrize("name", ["unfolded", "lasso", "search"])
def test_codes_are_those_of_the_known_entries(name, gaps):
    """The encoder of the atoms without the missing features, one sample at a time."""
    learner = learner_of(name, 12).fit(gaps)
    atoms, codes = torch.tensor(learner.components_), learner.transform(gaps)
    assert not codes[0].any()
    for row, code in zip(gaps[1:], codes[1:]):
        known = ~np.isnan(row)
        visible, x = atoms[:, torch.tensor(known)], torch.tensor(row[known][None])
        settings = dict(
            alpha=learner.alpha_, step_size=learner.step_size_, n_unfoldings=10
        )
        if name == "unfolded":
            expected = encode(visible, x, **settings)
            code = code[:12] - code[12:]
        else:
            expected, _ = solve_lasso(
                visible, x, learner.alpha_, debias=learner.debias_
            )
        np.testing.assert_allclose(code, expected.numpy()[0], rtol=0, atol=1e-10)


def test_every_method_takes_gaps_and_gives_finite_numbers(learner, gaps):
    learner.fit(gaps)
    assert np.isfinite(learner.components_).all()
    assert np.isfinite(learner.loss_curve_).all()
    assert np.isfinite(learner.inverse_transform(learner.transform(gaps))).all()
    assert np.isfinite(learner.score(gaps))
    assert np.isfinite(learner.partial_fit(gaps).components_).all()
    assert np.isfinite(learner.transform(torch.tensor(gaps)).numpy()).all()


def test_gaps_are_filled_where_the_known_entries_give_them_away():
    """Points of a plane: two coordinates determine the others."""
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(2, 12))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    X = rng.normal(size=(60, 2)) @ atoms
    gaps = np.where(rng.random(X.shape) < 0.3, np.nan, X)
    learner = PUDLEDictionaryLearning(
        2, alpha=1e-9, n_unfoldings=3000, max_iter=1, tol=None
    )
    learner.set_params(
        dict_init=atoms, optimizer="adam", learning_rate=1e-12, random_state=0
    ).fit(gaps)
    filled = learner.inverse_transform(learner.transform(gaps))
    np.testing.assert_allclose(filled, X, rtol=0, atol=1e-6)
    assert learner.score(gaps) == pytest.approx(1, abs=1e-6)


def test_score_is_over_the_known_entries(X, gaps):
    """A row that is not known counts for nothing."""
    learner = learner_of("unfolded", 12).fit(X)
    padded = np.vstack([X, np.full((3, X.shape[1]), np.nan)])
    assert learner.score(padded) == pytest.approx(learner.score(X), rel=1e-10)
    constant = np.full_like(X, 0.1)
    constant[3:9, 2] = np.nan
    assert learner.score(constant) == 0.0


def test_what_needs_complete_rows_says_how_to_impute(gaps):
    learner = SporcoDictionaryLearning()
    assert not learner.__sklearn_tags__().input_tags.allow_nan
    with pytest.raises(ValueError, match="impute"):
        learner.fit(gaps)


@pytest.mark.parametrize("dtype", [float, np.uint8])
def test_masked_images_are_those_with_nan(dtype):
    """What lies under a mask is not trained on."""
    pixels = (np.arange(3 * 12 * 12) % 7).reshape(3, 12, 12).astype(dtype)
    images = np.ma.masked_equal(pixels, 3)
    learner = ConvPUDLEDictionaryLearning(2, stride=1, random_state=0)
    expected = learner.fit(images).components_
    images.data[images.mask] = 200
    for masked in (images, [*images]):
        np.testing.assert_array_equal(learner.fit(masked).components_, expected)


# ---------------------------------------------------------------------------- too little to learn


@pytest.mark.parametrize("name", ["unfolded", "search", "noodl"])
def test_data_without_a_known_value_are_refused(name, X):
    for method in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match="All values of X are NaN.*Pass"):
            getattr(learner_of(name, 12), method)(np.full_like(X, np.nan))


@pytest.mark.parametrize("name", ["unfolded", "search", "noodl"])
def test_features_that_no_sample_knows_are_named(name, X, gaps):
    """In a fit; parts of data may lack what others have."""
    gaps = gaps.copy()
    gaps[:, [2, 7]] = np.nan
    with pytest.warns(
        UserWarning, match=r"Features \[2, 7\] of X have no known.*Leave"
    ) as record:
        learner_of(name, 12).fit(gaps)
    assert [warning.filename for warning in record] == [__file__]
    learner_of(name, 12).partial_fit(gaps)


@pytest.mark.parametrize("n_samples", [1, 10])
def test_more_atoms_than_samples_are_told(n_samples, gaps):
    """Samples without a known value are none."""
    few = np.vstack([np.nan_to_num(gaps[2 : 2 + n_samples]), np.full((9, 10), np.nan)])
    learner = PUDLEDictionaryLearning(12, random_state=0)
    with pytest.warns(
        UserWarning, match=f"X has {n_samples} sample.* for 12 atoms.*Pass n_comp"
    ):
        learner.fit(few)
    learner.partial_fit(few)
    clone(learner).set_params(dict_init=learner.components_, max_iter=1, tol=None).fit(
        few
    )


def test_nothing_but_that_is_found_where_nothing_is_known(gaps):
    learner = learner_of("search", 12).fit(gaps)
    (words,) = findings(learner, np.full((3, 10), np.nan))
    assert words.startswith("No value of these samples is known")
