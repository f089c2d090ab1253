"""Exact codes for given atoms: decoders of autoencoders, their bias, a penalty from data."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from small import Batches

from skpudle import NOODLDictionaryLearning, PUDLEDictionaryLearning
from skpudle.inspection import findings
from skpudle.lasso import solve_lasso
from skpudle.sae import from_sae


@pytest.fixture(scope="module")
def decoder():
    """Rows of several norms, one of them zero."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(30, 12, generator=generator, dtype=torch.float64)
    rows[7] = 0
    return rows, torch.randn(12, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def X(decoder):
    rows, bias = decoder
    generator = torch.Generator().manual_seed(1)
    codes = torch.rand(400, 30, generator=generator, dtype=torch.float64)
    codes *= torch.rand(400, 30, generator=generator, dtype=torch.float64) < 0.1
    return (codes @ rows + bias).numpy()


@pytest.fixture
def sae(decoder):
    """Return `from_sae` of the decoder."""
    rows, bias = decoder
    return partial(from_sae, rows, bias=bias)


# ---------------------------------------------------------------------------- decoders


def test_codes_are_the_lassos_of_rows_minus_the_bias_for_atoms_of_norm_1(
    sae, decoder, X
):
    rows, bias = decoder
    learner = sae(alpha=0.2)
    norms = rows.norm(dim=1, keepdim=True)
    atoms = torch.where(norms > 0, rows / norms, 0.0)
    codes = solve_lasso(atoms, torch.from_numpy(X) - bias, 0.2, positive=True)[
        0
    ].numpy()
    np.testing.assert_allclose(learner.transform(X), codes, rtol=0, atol=1e-9)
    expected = codes @ atoms.numpy() + bias.numpy()
    np.testing.assert_allclose(
        learner.inverse_transform(codes), expected, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, s) for s in (1e30, 1e-30, 1e-42)]
    + [(torch.float64, s) for s in (1e200, 1e-200)],
)
def test_decoders_of_any_size_have_atoms_of_norm_1(dtype, scale, decoder):
    rows = decoder[0].to(dtype) * scale
    atoms = from_sae(rows, alpha=1.0).components_
    # no square underflows
    expected = rows.double() / rows.double().abs().amax(1, keepdim=True)
    expected = torch.nn.functional.normalize(expected.nan_to_num(), dim=1)
    np.testing.assert_allclose(atoms, expected, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------- penalty


@pytest.mark.parametrize("debias", [0.0, 1.0, "auto"])
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("l0", [0.5, 3])
def test_codes_have_the_stated_number_of_entries(l0, positive, debias, sae, X):
    """Noise, since least squares codes without it are zero up to rounding."""
    X = X + 0.05 * np.random.default_rng(0).normal(size=X.shape)
    learner = sae(X, l0=l0, positive_code=positive, debias=debias)
    found = (learner.transform(X) != 0).sum(axis=1).mean()
    assert abs(found - l0) <= 0.005 * l0 + 1 / len(X)
    assert learner.alpha == "auto"
    again = sae(alpha=learner.alpha_, positive_code=positive, debias=learner.debias_)
    np.testing.assert_array_equal(again.transform(X), learner.transform(X))


def test_the_penalty_follows_the_scale_of_data(sae, decoder, X):
    rows, bias = decoder
    for options in ({}, {"l0": 2}):
        one = sae(X, **options)
        other = from_sae(rows, 1024 * X, bias=1024 * bias, **options)
        np.testing.assert_allclose(other.alpha_, 1024 * one.alpha_, rtol=1e-9)
        np.testing.assert_allclose(other.debias_, one.debias_, rtol=1e-9)


def test_a_penalty_is_stated_once(sae, X):
    with pytest.raises(ValueError, match="without data"):
        sae()
    with pytest.raises(ValueError, match="l0=3 came without data"):
        sae(alpha=0.1, l0=3)
    with pytest.raises(ValueError, match="came with data. Pass activations as X"):
        sae(X, alpha=0.1)


def test_more_codes_than_there_can_be_are_refused(sae, X):
    with pytest.raises(ValueError, match="l0=50 is more than"):
        sae(X, l0=50)
    with pytest.raises(ValueError, match="l0=1 is more than"):
        PUDLEDictionaryLearning.from_components(np.eye(12), alpha=1).choose_alpha(
            0 * X, l0=1
        )


def test_only_penalties_of_codes_of_the_lasso_are_chosen(sae, X):
    for options in (
        {"shrinkage": "hard"},
        {"n_unfoldings": 5},
        {"transform_algorithm": "omp"},
    ):
        with pytest.raises(ValueError, match="codes of the lasso"):
            sae(X, **options)
    with pytest.raises(ValueError, match="transform_alpha=0.1 overrides"):
        sae(X, transform_alpha=0.1)
    with pytest.raises(NotFittedError):
        PUDLEDictionaryLearning().choose_alpha(X)


def test_negative_codes_count_the_mistakes(decoder):
    """As many positive codes are wrong, of which the truth knows."""
    rows, _ = decoder
    generator = torch.Generator().manual_seed(2)
    truth = torch.rand(2000, 30, generator=generator, dtype=torch.float64) < 0.05
    truth[:, 7] = False
    atoms = torch.nn.functional.normalize(rows, dim=1)
    x = (
        truth.double() @ atoms
        + 0.15 * torch.randn(2000, 12, generator=generator).double()
    )
    learner = PUDLEDictionaryLearning.from_components(
        atoms, alpha=1.0, positive_code=True
    )
    learner.set_params(alpha="auto").choose_alpha(x, criterion="support")
    codes = solve_lasso(atoms, x, learner.alpha_)[0]
    n_wrong = ((codes > 0) & ~truth).sum()
    assert abs((codes < 0).sum() - n_wrong) < 0.5 * n_wrong

    def f1(share):
        found = (
            learner.set_params(transform_alpha=share * learner.alpha_).transform(x) > 0
        )
        return 2 * (found & truth).sum() / (found.sum() + truth.sum())

    assert f1(1) > max(f1(0.25), f1(4))


def test_codes_of_both_signs_have_no_support_to_tell(decoder):
    atoms = torch.nn.functional.normalize(decoder[0], dim=1)
    x = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)).double()
    learner = PUDLEDictionaryLearning.from_components(
        atoms, alpha=1.0, positive_code=True
    )
    with pytest.raises(ValueError, match="both signs are as frequent"):
        learner.choose_alpha(x, criterion="support")
    with pytest.raises(ValueError, match="counts negative codes as mistakes"):
        learner.set_params(positive_code=False).choose_alpha(x, criterion="support")
    with pytest.raises(ValueError, match="'criterion' parameter of choose_alpha"):
        learner.choose_alpha(x, criterion="size")


def test_batches_and_arrays_choose_alike(sae, X):
    assert sae(Batches(X, 100), l0=2).alpha_ == sae(X, l0=2).alpha_


# ---------------------------------------------------------------------------- mean


@pytest.fixture
def pair(decoder):
    """A learner with a mean, and the same without."""
    rows, bias = decoder
    options = dict(alpha=0.2, positive_code=True)
    return (
        PUDLEDictionaryLearning.from_components(rows, intercept=bias, **options),
        PUDLEDictionaryLearning.from_components(rows, **options),
        bias.numpy(),
    )


def test_a_mean_is_subtracted_and_added(pair, X):
    with_mean, without, mean = pair
    for rows in (X, np.where(np.arange(12) % 5 == 1, np.nan, X), X.astype(np.float32)):
        codes = without.transform(rows - mean.astype(rows.dtype))
        np.testing.assert_allclose(with_mean.transform(rows), codes, rtol=0, atol=1e-9)
    expected = without.inverse_transform(codes) + mean
    np.testing.assert_allclose(with_mean.inverse_transform(codes), expected, atol=1e-5)
    np.testing.assert_allclose(with_mean.score(X), without.score(X - mean), rtol=1e-9)
    assert findings(with_mean, X) == findings(without, X - mean)


@pytest.mark.parametrize("mean", [np.zeros(11), np.full(12, np.nan), ["a"] * 12])
def test_a_mean_has_a_number_for_each_feature(mean):
    with pytest.raises(ValueError, match="intercept|could not convert"):
        PUDLEDictionaryLearning.from_components(np.eye(12), intercept=mean, alpha=0.1)


def test_a_learner_of_hard_thresholds_takes_a_mean(X):
    learner = NOODLDictionaryLearning.from_components(
        np.eye(12), intercept=X.mean(0), threshold=0.1
    )
    assert learner.inverse_transform(np.zeros((1, 12)))[0] == pytest.approx(X.mean(0))
