"""What a user of `PUDLEDictionaryLearning` can rely on once it is fitted."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import orthogonal_mp_gram
from small import make, numpy_codes

from skpudle import NOODLDictionaryLearning, PUDLEDictionaryLearning
from skpudle.omp import solve_omp

# ---------------------------------------------------------------------------- transform


def test_codes_are_those_of_the_public_encoder(variant, X):
    estimator = make(**variant).fit(X)
    codes = numpy_codes(estimator, X)
    if estimator.split_sign:
        codes = np.concatenate([codes.clip(min=0), (-codes).clip(min=0)], axis=1)
    np.testing.assert_array_equal(estimator.transform(X), codes)


def test_transform_alpha_is_what_transform_uses(X):
    estimator = make(transform_alpha=0.5).fit(X)
    np.testing.assert_array_equal(
        estimator.transform(X), numpy_codes(estimator, X, alpha=0.5)
    )
    assert estimator.alpha_ == make().fit(X).alpha_  # training does not
    assert estimator.set_params(transform_alpha=0.0).transform(X).any()


def test_a_warning_of_codes_points_at_the_users_line(X):
    learner = PUDLEDictionaryLearning(12, random_state=0).fit(X)
    learner.components_[0] = np.nan
    with pytest.warns(ConvergenceWarning, match="duality gap") as warned:
        learner.transform(X)
    assert {warning.filename for warning in warned} == {__file__}


def test_split_codes_lead_back_to_the_rows_of_plain_ones(X):
    plain, split = make().fit(X), make(split_sign=True).fit(X)
    codes, parts = plain.transform(X), split.transform(X)
    np.testing.assert_array_equal(
        split.inverse_transform(parts), plain.inverse_transform(codes)
    )
    assert len(split.get_feature_names_out()) == 12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("split_sign", [False, True])
def test_dtype_of_the_data_is_that_of_codes_and_reconstructions(split_sign, dtype, X):
    """Whatever the dictionary was learned in."""
    for learned in (np.float32, np.float64):
        estimator = make(split_sign=split_sign).fit(X.astype(learned))
        codes = estimator.transform(X.astype(dtype))
        assert codes.dtype == dtype
        assert estimator.inverse_transform(codes).dtype == dtype


def test_a_dictionary_learned_on_an_absent_device_encodes_on_the_cpu(X):
    """Pickles travel to machines without the GPU that made them."""
    estimator = make().fit(X)
    codes, score = estimator.transform(X), estimator.score(X)
    estimator.set_params(device="cuda:97")
    np.testing.assert_array_equal(estimator.transform(X), codes)
    np.testing.assert_allclose(
        estimator.inverse_transform(codes), codes @ estimator.components_
    )
    assert estimator.score(X) == score
    with pytest.raises(ValueError, match="'cuda:97'"):
        estimator.partial_fit(X)


# ---------------------------------------------------------------------------- tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tensors_in_give_tensors_out_on_their_device(dtype, device, X):
    rows = torch.tensor(X, dtype=dtype, device=device)
    estimator = make().fit(rows)
    assert isinstance(estimator.components_, np.ndarray)
    assert estimator.device_.partition(":")[0] == device
    codes = estimator.transform(rows)
    back = estimator.inverse_transform(codes)
    for tensor in (codes, back, make().fit_transform(rows)):
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype == dtype
        assert tensor.device.type == device
        assert not tensor.requires_grad
    assert type(estimator.score(rows)) is float


@pytest.mark.gpu
def test_a_gpu_learns_what_the_cpu_learns_and_the_same_every_time(variant, X):
    options = variant | dict(batch_size=16)
    cpu = make(device="cpu", **options).fit(X)
    first, second = (make(device="cuda", **options).fit(X) for _ in range(2))
    np.testing.assert_allclose(first.components_, second.components_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(first.components_, cpu.components_, rtol=0, atol=1e-6)
    assert first.device_ == "cuda:0"


@pytest.mark.gpu
def test_what_a_gpu_learned_encodes_without_one(X, monkeypatch):
    estimator = make(device="cuda").fit(X).partial_fit(X)
    codes = estimator.transform(X)
    stored = pickle.dumps(estimator)
    assert b"torch._utils" not in stored
    loaded = pickle.loads(stored).set_params(device="cpu")
    np.testing.assert_allclose(loaded.transform(X), codes, rtol=0, atol=1e-10)
    loaded.partial_fit(X)


# ---------------------------------------------------------------------------- score


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -1e8])
@pytest.mark.parametrize("n_samples", [1, 7, 60])
def test_score_of_constant_data_is_zero(n_samples, value, X):
    """Also where the mean of equal numbers is rounded to another one."""
    estimator = make().fit(X)
    assert estimator.score(np.full((n_samples, 8), value)) == 0.0


# ---------------------------------------------------------------------------- orthogonal pursuit


@pytest.mark.parametrize("params", [{"n_nonzero_coefs": 2}, {"tol": 0.05}, {}])
def test_codes_of_a_pursuit_are_those_of_scikit_learn(params, X):
    names = {"n_nonzero_coefs": "transform_n_nonzero_coefs", "tol": "transform_alpha"}
    named = {names[name]: value for name, value in params.items()}
    learner = make(transform_algorithm="omp", **named).fit(X)
    D, squares = learner.components_, np.square(X).sum(1)
    expected = orthogonal_mp_gram(
        D @ D.T, D @ X.T, norms_squared=squares, **params or {"n_nonzero_coefs": 1}
    )
    # where scikit-learn takes one atom all the same
    left_alone = squares <= params.get("tol", 0)
    expected[:, left_alone] = 0
    np.testing.assert_allclose(learner.transform(X), expected.T, atol=1e-10)


def test_a_pursuit_knows_signs_and_gaps(X):
    learner = make(
        transform_algorithm="omp", positive_code=True, transform_n_nonzero_coefs=3
    )
    codes = learner.fit(X).transform(X)
    assert codes.min() >= 0
    assert (codes != 0).sum(1).max() <= 3
    gaps = X.copy()
    gaps[:, 0] = np.nan
    visible = solve_omp(
        torch.tensor(learner.components_[:, 1:]),
        torch.tensor(X[:, 1:]),
        n_nonzero_coefs=3,
        positive=True,
    )
    np.testing.assert_allclose(learner.transform(gaps), visible.numpy(), atol=1e-10)


# ---------------------------------------------------------------------------- without a fit


def test_components_make_a_learner_that_transforms_as_the_fitted_one(variant, X):
    fitted = make(**variant).fit(X)
    params = fitted.get_params() | {"alpha": fitted.alpha_}
    del params["n_components"]
    learner = PUDLEDictionaryLearning.from_components(fitted.components_, **params)
    np.testing.assert_array_equal(learner.components_, fitted.components_)
    np.testing.assert_array_equal(learner.transform(X), fitted.transform(X))
    assert learner.score(X) == fitted.score(X)
    assert np.isfinite(learner.partial_fit(X).components_).all()


def test_components_alone_are_enough_for_a_pursuit_and_for_nothing_else(X, atoms):
    learner = PUDLEDictionaryLearning.from_components(
        2 * atoms, transform_algorithm="omp"
    )
    np.testing.assert_array_equal(learner.components_, 2 * atoms)
    assert learner.transform(X).shape == (len(X), len(atoms))
    with pytest.raises(ValueError, match="alpha='auto'.*pass a number"):
        PUDLEDictionaryLearning.from_components(atoms)
    with pytest.raises(ValueError, match="threshold='auto'.*pass a number[.]"):
        NOODLDictionaryLearning.from_components(atoms)
    learner.set_params(transform_algorithm="unfolded")
    for use in (learner.transform, learner.score):
        with pytest.raises(ValueError, match="alpha='auto'.*transform_alpha"):
            use(X)
    assert np.isfinite(learner.set_params(transform_alpha=0.1).transform(X)).all()


@pytest.mark.parametrize("alpha", ["auto", 0.25])
@pytest.mark.parametrize(
    "params", [{}, dict(shrinkage="hard"), dict(optimizer="adam")], ids=repr
)
def test_a_first_part_of_the_data_chooses_what_atoms_alone_leave_open(
    params, alpha, X, atoms
):
    """Alpha and the unit of gradients, as it does where atoms are an initial dictionary."""
    common = dict(transform_algorithm="omp", gradient="ae-ls", random_state=0, **params)
    learner = PUDLEDictionaryLearning.from_components(atoms, **common)
    learner.set_params(alpha=alpha).partial_fit(X)
    begun = PUDLEDictionaryLearning(len(atoms), dict_init=atoms, alpha=alpha, **common)
    begun.partial_fit(X)
    assert learner.alpha_ == pytest.approx(begun.alpha_, rel=1e-12)
    np.testing.assert_allclose(
        learner.components_, begun.components_, rtol=0, atol=1e-12
    )
    learner.partial_fit(2 * X)
    assert learner.alpha_ == pytest.approx(begun.alpha_, rel=1e-12)
