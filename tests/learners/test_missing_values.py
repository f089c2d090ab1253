"""NaN marks missing entries."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skpudle import (
    ConvPUDLEDictionaryLearning,
    NOODLDictionaryLearning,
    PUDLEDictionaryLearning,
    SporcoDictionaryLearning,
)
from skpudle._data.arrays import split_missing
from skpudle.datasets import make_dictionary_data
from skpudle.encoding import encode
from skpudle.operators import DenseDictionary

OPTIONS = dict(n_unfoldings=30, max_iter=3, tol=None, random_state=0)
LEARNERS = {
    "ae-ls": PUDLEDictionaryLearning(12, gradient="ae-ls", **OPTIONS),
    "dec": PUDLEDictionaryLearning(12, gradient="dec", **OPTIONS),
    "ae-lasso": PUDLEDictionaryLearning(12, gradient="ae-lasso", optimizer="surrogate", **OPTIONS),
    "hard": PUDLEDictionaryLearning(12, gradient="ae-ls", shrinkage="hard", **OPTIONS),
    "noodl": NOODLDictionaryLearning(12, initial_threshold=0.1, **OPTIONS),
}


@pytest.fixture(params=LEARNERS.values(), ids=LEARNERS)
def learner(request):
    return clone(request.param)


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


def test_what_is_not_missing_is_kept_and_gaps_are_column_means(gaps):
    x, mask = split_missing(torch.tensor(gaps))
    known = ~np.isnan(gaps)
    np.testing.assert_array_equal(mask.numpy(), known)
    np.testing.assert_array_equal(x.numpy()[known], gaps[known])
    means = np.broadcast_to(np.nanmean(gaps, axis=0), gaps.shape)
    np.testing.assert_allclose(x.numpy()[~known], means[~known], rtol=1e-12)


def test_a_column_of_gaps_is_zero_and_complete_data_have_no_mask(X):
    x, _ = split_missing(torch.full((2, 3), torch.nan))
    assert (x == 0).all()
    same = torch.tensor(X)
    x, mask = split_missing(same)
    assert mask is None
    assert x is same


def test_masked_arrays_are_arrays_with_gaps(learner, gaps):
    masked = np.ma.masked_array(np.where(np.isnan(gaps), 1e6, gaps), mask=np.isnan(gaps))
    expected, found = clone(learner).fit(gaps), learner.fit(masked)
    np.testing.assert_array_equal(found.components_, expected.components_)
    np.testing.assert_array_equal(found.transform(masked), expected.transform(gaps))
    assert found.score(masked) == expected.score(gaps)


def test_gaps_in_no_sample_of_the_last_batch_change_nothing(learner, X):
    """A mask of ones is no mask: the same updates from complete data and from masked ones."""
    complete = clone(learner).set_params(batch_size=len(X)).fit(X)
    padded = np.vstack([X, np.full((1, X.shape[1]), np.nan)])
    same = dict(dict_init=complete.components_, batch_size=len(padded), n_components=None)
    threshold = "threshold" if isinstance(learner, NOODLDictionaryLearning) else "alpha"
    same[threshold] = complete.alpha_
    masked, plain = (clone(learner).set_params(**same, max_iter=1) for _ in range(2))
    masked.fit(padded)
    plain.fit(np.vstack([X, np.zeros((1, X.shape[1]))]))
    np.testing.assert_allclose(masked.components_, plain.components_, rtol=0, atol=1e-8)


def test_codes_are_those_of_the_known_entries(gaps):
    """The encoder of the atoms without the missing features, one sample at a time."""
    learner = clone(LEARNERS["ae-ls"]).fit(gaps)
    atoms, codes = torch.tensor(learner.components_), learner.transform(gaps)
    for row, code in zip(gaps, codes):
        known = ~np.isnan(row)
        visible = DenseDictionary(atoms[:, torch.tensor(known)])
        settings = dict(alpha=learner.alpha_, step_size=learner.step_size_, n_unfoldings=30)
        expected = encode(visible, torch.tensor(row[known][None]), **settings)
        np.testing.assert_allclose(code, expected.numpy()[0], rtol=0, atol=1e-10)


def test_what_is_missing_does_not_depend_on_its_neighbours(learner, gaps):
    learner.fit(gaps)
    codes = learner.transform(gaps)
    np.testing.assert_allclose(learner.transform(gaps[5:7]), codes[5:7], rtol=0, atol=1e-10)


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
    learner = PUDLEDictionaryLearning(2, alpha=1e-9, n_unfoldings=3000, max_iter=1, tol=None)
    learner.set_params(dict_init=atoms, optimizer="adam", learning_rate=1e-12, random_state=0).fit(
        gaps
    )
    filled = learner.inverse_transform(learner.transform(gaps))
    np.testing.assert_allclose(filled, X, rtol=0, atol=1e-6)
    assert learner.score(gaps) == pytest.approx(1, abs=1e-6)


def test_score_is_over_the_known_entries(X, gaps):
    """A row that is not known counts for nothing."""
    learner = clone(LEARNERS["ae-ls"]).fit(X)
    padded = np.vstack([X, np.full((3, X.shape[1]), np.nan)])
    assert learner.score(padded) == pytest.approx(learner.score(X), rel=1e-10)
    constant = np.full_like(X, 0.1)
    constant[3:9, 2] = np.nan
    assert learner.score(constant) == 0.0


@pytest.mark.parametrize(
    "learner",
    [
        PUDLEDictionaryLearning(n_unfoldings=None),
        PUDLEDictionaryLearning(transform_algorithm="lasso"),
        SporcoDictionaryLearning(),
    ],
)
def test_what_needs_complete_rows_says_how_to_impute(learner, gaps):
    assert not learner.__sklearn_tags__().input_tags.allow_nan
    with pytest.raises(ValueError, match="impute"):
        learner.fit(gaps)


@pytest.mark.parametrize("dtype", [float, np.uint8])
def test_masked_images_are_those_with_nan(dtype):
    """What lies under a mask is not trained on."""
    pixels = (np.arange(3 * 12 * 12) % 7).reshape(3, 12, 12).astype(dtype)
    images = np.ma.masked_equal(pixels, 3)
    learner = ConvPUDLEDictionaryLearning(2, stride=1, n_unfoldings=5, max_iter=1, tol=None)
    learner.set_params(random_state=0)
    expected = learner.fit(images).components_
    images.data[images.mask] = 200
    for masked in (images, [*images]):
        np.testing.assert_array_equal(learner.fit(masked).components_, expected)
    several = learner.set_params(stride=2, n_train_shifts=2)  # its margins have no mask
    with pytest.raises(ValueError, match="NaN"):
        several.fit(images)


def test_infinity_is_refused(learner, gaps):
    with pytest.raises(ValueError, match="infinity"):
        learner.fit(np.where(np.isnan(gaps), np.inf, gaps))
