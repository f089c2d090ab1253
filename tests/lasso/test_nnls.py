"""Non-negative least squares: optimal, certified, and the same by both solvers and by SciPy."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import ill_posed
from scipy.optimize import lsq_linear, nnls

from skpudle.lasso import duality_gap, solve_lasso, solve_nnls
from skpudle.lasso._solve import lasso_path


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def make_problem(rng, n=12, m=15, p=10, *, cosine=0.0):
    """Return atoms without dependences and data with some negative products."""
    common = np.ones(m) / m**0.5
    atoms = rng.standard_normal((p, m))
    atoms /= np.linalg.norm(atoms, axis=1)[:, None]
    atoms = (1 - cosine) ** 0.5 * atoms + cosine**0.5 * common
    return atoms, rng.standard_normal((n, m)) + 0.5 * common


def make_spectra(rng, n=20, m=30, p=33, *, cosine=0.9):
    """Return overlapping non-negative spectra, and mixtures with noise."""
    channels, centres = np.arange(m), np.linspace(0, m, p)[:, None]
    atoms = np.exp(-0.5 * ((channels - centres) / 2) ** 2)
    atoms /= np.linalg.norm(atoms, axis=1)[:, None]
    atoms = (1 - cosine) ** 0.5 * atoms + (cosine / m) ** 0.5
    codes = rng.gamma(1.5, size=(n, p)) * (rng.uniform(size=(n, p)) < 0.2)
    return atoms, codes @ atoms + 0.01 * rng.standard_normal((n, m))


def optimality_error(atoms, x, codes, weights=1.0, free=None):
    """Return how far codes are from the KKT conditions, in units of data and atoms."""
    assert (codes >= 0)[:, [True] * len(atoms) if free is None else ~free].all()
    c = weights**2 * (x - codes @ atoms) @ atoms.T / np.linalg.norm(atoms, axis=1)
    active = (codes != 0) | (False if free is None else free)
    error = np.where(active, np.abs(c), np.maximum(c, 0))
    return float((error / np.linalg.norm(x, axis=1, keepdims=True)).max())


def by_scipy(atoms, x):
    return np.stack([nnls(atoms.T, row)[0] for row in x])


def objective(atoms, x, codes):
    return np.square(x - codes @ atoms).sum(1)


# What the codes are.


KINDS = [
    "normal",
    "non-negative",
    "collinear",
    "repeated",
    "near",
    "low rank",
    "signs",
    "lengths",
]


@pytest.mark.uncompiled
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 4),
    m=st.integers(1, 12),
    p=st.integers(1, 40),
    kind=st.sampled_from(KINDS),
    exact=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_every_problem_is_solved_by_both_solvers_and_by_scipy(
    using, n, m, p, kind, exact, seed
):
    """Ill-posed dictionaries included: where codes are not unique, the objective is."""
    rng = np.random.default_rng(seed)
    atoms, x = torch.as_tensor(rng.standard_normal((p, m))), rng.standard_normal((n, m))
    copies = torch.as_tensor(rng.integers(0, 1 + p // 3, p))
    atoms = ill_posed(torch.nn.functional.normalize(atoms), kind, copies).numpy()
    if kind in ("non-negative", "collinear"):
        atoms = np.abs(atoms) + 10 * (kind == "collinear")
    elif kind == "repeated":
        atoms = atoms * rng.choice([0.5, 1, 2], p)[:, None]
    elif kind == "low rank":
        rank = rng.integers(1, 1 + min(m, p))
        atoms = rng.integers(-3, 4, (p, rank)) @ rng.integers(-3, 4, (rank, m)).astype(
            float
        )
    if exact:
        x = rng.uniform(size=(n, p)) @ atoms
    energy = np.square(x).sum(1) + (~x.any(1))
    try:
        best = objective(atoms, x, by_scipy(atoms, x)) / energy
    except RuntimeError:  # SciPy has run out of iterations
        best = None
    for solver in ("batched", "compiled"):
        with using(solver):
            codes, _ = solve_nnls(atoms, x)  # warns of gaps above 1e-8
        assert codes.min() >= 0
        if kind == "normal":
            assert optimality_error(atoms, x, codes) < 1e-12
        found = objective(atoms, x, codes) / energy
        if best is not None:
            assert (found - best).max() < 1e-9


# Symmetries.


@pytest.mark.parametrize("exponent", [-400, 30])
def test_codes_scale_with_the_data_and_inversely_with_the_atoms(rng, solver, exponent):
    """Near the ends of float64 too, where squares of the data have no room."""
    atoms, x = make_problem(rng)
    codes, gaps = solve_nnls(atoms, x)
    factor = 2.0**exponent
    for scaled_atoms, scaled_x, expected in [
        (atoms, factor * x, factor * codes),
        (factor * atoms, x, codes / factor),
        (factor * atoms, factor * x, codes),
    ]:
        scaled, gaps_of_scaled = solve_nnls(scaled_atoms, scaled_x)
        np.testing.assert_allclose(scaled, expected, rtol=1e-12)
        np.testing.assert_allclose(gaps_of_scaled, gaps, atol=1e-14)


# Weights.


@pytest.mark.uncompiled
def test_weights_are_a_scaling_of_features(rng, solver):
    """Row by row, in any unit, and whatever lies under a weight of 0."""
    atoms, x = make_problem(rng, m=25)
    weights = rng.uniform(0.1, 2, x.shape) * (rng.uniform(size=x.shape) < 0.7)
    weights[:2], weights[2] = 1, 0
    codes, gaps = solve_nnls(atoms, np.where(weights > 0, x, np.nan), weights=weights)
    assert gaps.max() < 1e-12
    assert not codes[2].any()
    for row, w in enumerate(weights):
        alone, _ = solve_nnls(atoms * w, x[[row]] * w)
        np.testing.assert_allclose(codes[row], alone[0], atol=1e-10)
    shared, _ = solve_nnls(
        atoms, np.where(weights[3] > 0, x, np.inf), weights=weights[3]
    )
    one_each, _ = solve_nnls(atoms, x, weights=np.broadcast_to(weights[3], x.shape))
    np.testing.assert_allclose(shared, one_each, atol=1e-10)
    scaled, _ = solve_nnls(atoms, x, weights=1e30 * weights)
    np.testing.assert_allclose(scaled, codes, atol=1e-10)


# Codes of any sign.


@pytest.mark.uncompiled
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "free", [[0, 3, 7], [], [*range(10)]], ids=["some", "none", "all"]
)
def test_free_codes_are_projected_out(rng, solver, free, weighted):
    """Others solve the problem of residuals of least squares on the free atoms."""
    atoms, x = make_problem(rng)
    free = np.isin(np.arange(len(atoms)), free)
    weights = rng.uniform(0.5, 2, x.shape[1]) if weighted else np.ones(x.shape[1])
    each = np.tile(weights, (len(x), 1)) * (1 + np.arange(len(x))[:, None])
    codes, gaps = solve_nnls(atoms, x, free=free, weights=each)
    assert gaps.max() < 1e-12
    assert (codes < 0).any() == free.any()
    assert optimality_error(atoms, x, codes, weights, free) < 1e-12
    left, _ = np.linalg.qr((weights * atoms[free]).T)
    rest, target = (
        v - v @ left @ left.T for v in (weights * atoms[~free], weights * x)
    )
    expected, _ = solve_nnls(rest, target)
    np.testing.assert_allclose(codes[:, ~free], expected, atol=1e-10)


# Edges.


@pytest.mark.uncompiled
def test_empty_and_zero_problems(rng, solver):
    atoms, x = make_problem(rng)
    for some_atoms, some_x in [
        (atoms, x[:0]),
        (atoms[:0], x),
        (atoms[:, :0], x[:, :0]),
        (atoms, 0 * x),
        (0 * atoms, x),
    ]:
        codes, gaps = solve_nnls(some_atoms, some_x)
        assert codes.shape == (len(some_x), len(some_atoms))
        assert gaps.shape == (len(some_x),)
        assert not codes.any()
        assert not (gaps > 1e-15).any()
    with_zeros = np.concatenate([0 * atoms[:1], atoms, 0 * atoms[:2]])
    codes, _ = solve_nnls(with_zeros, x)
    np.testing.assert_allclose(codes[:, 1:-2], solve_nnls(atoms, x)[0], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_come_back_as_tensors_and_arrays_as_arrays(rng, solver, device, dtype):
    if device == "cuda" and solver == "compiled":
        pytest.skip("compiled for the CPU")
    atoms, x = (torch.as_tensor(values, dtype=dtype) for values in make_problem(rng))
    codes, gaps = solve_nnls(atoms.to(device), x.to(device))
    assert codes.dtype == dtype
    assert gaps.dtype == torch.float64
    assert codes.device.type == gaps.device.type == device
    assert float(gaps.max()) < 1e-12
    array, gaps_of_array = solve_nnls(np.asarray(atoms), np.asarray(x))
    assert isinstance(array, np.ndarray)
    assert isinstance(gaps_of_array, np.ndarray)
    torch.testing.assert_close(
        torch.as_tensor(array), codes.cpu(), rtol=1e-5, atol=1e-6
    )


# The certificate.


def test_gaps_bound_the_distance_from_the_minimum(rng, solver):
    """Of codes after every number of rounds: nearly non-negative, independent and other atoms."""
    for atoms, x in (make_spectra(rng), make_problem(rng), make_problem(rng, p=40)):
        best = objective(atoms, x, solve_nnls(atoms, x)[0])
        energy = np.square(x).sum(1)
        for max_iter in range(1, 8):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                codes, gaps = solve_nnls(atoms, x, max_iter=max_iter)
            excess = (objective(atoms, x, codes) - best) / energy
            assert (excess <= gaps + 1e-13).all()
            assert (gaps[excess > 1e-9] > 1e-9).all()


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_gaps_are_of_the_weighted_problem(rng, solver, share):
    """What is orthogonal to a free atom is not so with weights; atoms differ by 1e-6."""
    atoms, x = 1 + 1e-6 * rng.normal(size=(6, 9)), rng.normal(size=(300, 9))
    weights, free = (
        rng.uniform(0.1, 1.1, x.shape) * (rng.random(x.shape) < share),
        np.arange(6) < 1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        codes, gaps = solve_nnls(atoms, x, free=free, weights=weights)
    both = np.concatenate([atoms, -atoms[free]])
    pairs = [(w * both, w * row) for w, row in zip(weights, x)]
    # `scipy.optimize.nnls` cycles here in older versions of scipy
    exact = dict(bounds=(0, np.inf), method="bvls", tol=1e-15, max_iter=1000)
    best = np.array([2 * lsq_linear(a.T, row, **exact).cost for a, row in pairs])
    energy = np.square(weights * x).sum(1)
    excess = (np.square(weights * (x - codes @ atoms)).sum(1) - best) / np.maximum(
        energy, 1e-9
    )
    assert excess.max() > 1e-3  # some rows are not solved
    assert (gaps[excess > 1e-6] > 1e-8).all()
    if share == 1.0:  # a vector proves it: no weight is 0
        assert (excess <= gaps + 1e-6).all()


def test_a_missed_tolerance_is_warned_of_on_the_callers_line(rng, solver):
    atoms, x = make_spectra(rng)
    with pytest.warns(RuntimeWarning, match="larger max_iter") as record:
        _, gaps = solve_nnls(atoms, x, max_iter=1)
    assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve_nnls(atoms, x, max_iter=1, tol=1.01 * gaps.max())


# The lasso without a penalty.


@pytest.mark.uncompiled
@pytest.mark.parametrize("masked", [False, True])
def test_the_lasso_of_non_negative_codes_may_have_no_penalty(rng, solver, masked):
    atoms, x = (torch.as_tensor(values) for values in make_problem(rng))
    mask = torch.as_tensor(rng.uniform(size=x.shape) < 0.8) if masked else None
    expected, _ = solve_nnls(atoms, x, weights=mask)
    options = dict(positive=True, mask=mask)
    for debias in (0.0, 1.0):
        codes, gaps = solve_lasso(atoms, x, 0.0, debias=debias, **options)
        torch.testing.assert_close(codes, expected, rtol=0, atol=1e-11)
        assert float(gaps.max()) < 1e-12
        codes, _ = solve_lasso(atoms, x, 0.0, debias=debias, certify=False, **options)
        torch.testing.assert_close(codes, expected, rtol=0, atol=1e-11)
    path, refits = lasso_path(atoms, x, [1.0, 0.1, 0.0], **options)
    torch.testing.assert_close(path[-1], expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(refits[-1], expected, rtol=0, atol=1e-11)
    gaps = duality_gap(atoms, x, expected, 0.0, positive=True, mask=mask)
    assert float(gaps.max()) < 1e-12
    gaps = duality_gap(atoms, x, 1.1 * expected, 0.0, positive=True, mask=mask)
    assert float(gaps[expected.any(1)].min()) > 1e-6
    for wrong in (0.0, torch.zeros(len(atoms))):
        with pytest.raises(ValueError, match="Pass alpha=0 with positive=True"):
            solve_lasso(atoms, x, wrong, positive=isinstance(wrong, torch.Tensor))


# Errors.


def test_wrong_input_is_refused(rng):
    atoms, x = make_problem(rng)
    ones = np.ones_like(x)
    for values, options, message in [
        ((atoms, np.where(ones, np.nan, x)), {}, "data contain NaN"),
        ((np.where(atoms > 0, np.inf, atoms), x), {}, "atoms contain NaN or infinite"),
        (
            (atoms, x),
            dict(weights=-ones),
            r"weights has the value -1. Pass weights >= 0",
        ),
        ((atoms, x), dict(weights=ones * np.nan), "weights contain NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            solve_nnls(*values, **options)
