"""Converged codes: certified, and the same by both solvers and by scikit-learn."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import ill_posed, normal, unit

from skpudle._operators._atoms import DenseDictionary
from skpudle.lasso import _implicit, _solve, duality_gap, solve_lasso
from skpudle.lasso._implicit import converged_codes
from skpudle.lasso._solve import warn_about_gaps


def make_problem(
    generator, n=20, m=12, p=40, *, alpha=0.15, dtype=torch.float64, device="cpu"
):
    """Return unit-norm atoms, unit-norm data and a penalty relative to the largest correlation."""
    atoms, x = (unit(generator, size, m).to(device, dtype) for size in (p, n))
    return atoms, x, alpha * float((x @ atoms.mT).abs().max())


def make_mask(generator, x, share=0.3):
    """Return which entries are known: all of two rows, none of the third, most of the others."""
    known = (
        torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        >= share
    )
    known[:2], known[2:3] = True, False
    return known.to(x.dtype)


def objective(atoms, x, z, alpha):
    return (x - z @ atoms).square().sum(1) / 2 + (alpha * z.abs()).sum(1)


def optimality_error(atoms, x, z, alpha, positive=False, mask=1.0):
    """Return how far the subgradient of the objective is from containing zero."""
    c = mask * (x - z @ atoms) @ atoms.mT
    on = (c - alpha * z.sign()).abs() * (z != 0)
    off = ((c if positive else c.abs()) - alpha).clamp_min(0) * (z == 0)
    return torch.maximum(on, off).max()


# What the codes are.


@pytest.mark.uncompiled
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 6),
    m=st.integers(1, 12),
    p=st.integers(1, 70),
    kind=st.sampled_from(
        ["normal", "lengths", "repeated", "signs", "correlated", "near"]
    ),
    log_alpha=st.floats(-4, 0.2),
    positive=st.booleans(),
    share=st.sampled_from([0.0, 0.3, 0.8]),
    seed=st.integers(0, 2**20),
)
def test_every_problem_is_solved_the_same_by_both_solvers(
    using, n, m, p, kind, log_alpha, positive, share, seed
):
    """Ill-posed dictionaries included; where codes are not unique, the reconstruction is."""
    generator = torch.Generator().manual_seed(seed)
    atoms, x, alpha = make_problem(generator, n, m, p, alpha=10**log_alpha)
    choice = torch.randint(0, 1 + p // 3, (p,), generator=generator)
    atoms = ill_posed(atoms, kind, choice)
    if kind == "lengths":
        alpha = 10**log_alpha * float((x @ atoms.mT).abs().max())
    mask = torch.rand(x.shape, generator=generator, dtype=torch.float64) >= share
    all_codes = []
    for solver in ("batched", "compiled"):
        with using(solver):
            codes, gaps = solve_lasso(atoms, x, alpha, positive=positive, mask=mask)
        assert gaps.max() < 1e-9
        assert optimality_error(atoms, x, codes, alpha, positive, mask) < 1e-9 * alpha
        assert (codes != 0).sum(1).max() <= m + (kind in {"signs", "near"})
        all_codes.append(codes)
    tolerance = dict(rtol=0, atol=1e-7)
    seen = [mask * (codes @ atoms) for codes in all_codes]
    torch.testing.assert_close(*seen, **tolerance)
    # on few known entries other atoms are parallel
    if kind in {"normal", "lengths", "repeated"} and mask.all():
        scale = all_codes[0].abs().max()
        torch.testing.assert_close(
            all_codes[0], all_codes[-1], rtol=0, atol=1e-8 * scale
        )


@pytest.mark.parametrize("exponent", [-13, -10, -7])
def test_twins_do_not_share_codes_by_rounding(generator, solver, exponent):
    """Atoms whose cosine is 1 to rounding are one; others are told apart. All are certified."""
    atoms, x, alpha = make_problem(generator, 600, 4, 20, alpha=0.05)
    noise = normal(generator, *atoms.shape)
    turned = atoms + 10.0**exponent * noise / 2
    atoms = torch.cat([atoms, torch.nn.functional.normalize(turned, dim=1)])
    codes, gaps = solve_lasso(atoms, x, alpha)
    assert gaps.max() < 1e-7
    torch.testing.assert_close(
        gaps, duality_gap(atoms, x, codes, alpha), rtol=1e-6, atol=1e-13
    )
    for row in range(50):
        alone, _ = solve_lasso(atoms, x[row : row + 1], alpha, certify=False)
        torch.testing.assert_close(alone[0], codes[row], rtol=0, atol=1e-9)


@pytest.mark.parametrize("exponent", [-480, 480])
def test_powers_of_two_scale_codes_exactly_and_leave_gaps(generator, solver, exponent):
    """Near the ends of float64 too, where products of three data have no room."""
    atoms, x, alpha = make_problem(generator)
    for max_iter in (1, 1000):
        options = dict(max_iter=max_iter)
        codes, gaps = solve_lasso(atoms, x, alpha, **options)
        assert (gaps.max() > 1e-3) == (max_iter == 1)
        factor = 2.0**exponent
        scaled, gaps_of_scaled = solve_lasso(
            atoms, factor * x, factor * alpha, **options
        )
        assert torch.equal(scaled, factor * codes)
        torch.testing.assert_close(gaps_of_scaled, gaps, rtol=1e-12, atol=1e-15)


def test_a_penalty_for_each_atom_scales_atom_and_code(generator, solver):
    atoms, x, alpha = make_problem(generator)
    penalties = alpha * (
        0.5 + torch.rand(len(atoms), generator=generator, dtype=torch.float64)
    )
    codes, gaps = solve_lasso(atoms, x, penalties)
    assert gaps.max() < 1e-12
    assert optimality_error(atoms, x, codes, penalties) < 1e-13
    expected, _ = solve_lasso(atoms / penalties[:, None], x, 1.0)
    torch.testing.assert_close(penalties * codes, expected, rtol=0, atol=1e-12)


@pytest.mark.uncompiled
@pytest.mark.parametrize("positive", [False, True])
def test_float32_is_certified_and_is_the_rounded_solution(
    generator, solver, device, positive
):
    if device == "cuda" and solver == "compiled":
        pytest.skip("compiled for the CPU")
    atoms, x, alpha = make_problem(generator, 50, dtype=torch.float32, device=device)
    codes, gaps = solve_lasso(atoms, x, alpha, positive=positive)
    exact, _ = solve_lasso(atoms.double(), x.double(), alpha, positive=positive)
    assert codes.dtype == torch.float32
    assert gaps.dtype == torch.float64
    assert codes.device.type == device
    assert gaps.max() < 1e-12
    torch.testing.assert_close(codes.double(), exact, rtol=1e-6, atol=1e-12)


# Missing entries.


@pytest.mark.uncompiled
@pytest.mark.parametrize("penalties", ["one", "one each"])
@pytest.mark.parametrize("positive", [False, True])
def test_masked_codes_are_those_of_the_known_entries(
    generator, solver, positive, penalties
):
    """Row by row with the known columns alone, whatever lies under the mask; certified."""
    atoms, x, alpha = make_problem(generator)
    if penalties == "one each":
        alpha = alpha * (
            1 + torch.rand(len(atoms), generator=generator, dtype=torch.float64)
        )
    mask = make_mask(generator, x)
    garbage = x.masked_fill(mask == 0, torch.nan)
    options = dict(positive=positive)
    codes, gaps = solve_lasso(atoms, garbage, alpha, mask=mask, **options)
    assert gaps.max() < 1e-12
    assert not codes[2].any()
    assert (codes != 0).any(1).sum() == len(x) - 1
    for row in mask.any(1).nonzero().squeeze(1):
        known = mask[row] != 0
        visible = atoms[:, known], x[row, known][None], alpha
        alone, _ = solve_lasso(*visible, **options)
        torch.testing.assert_close(codes[row], alone[0], rtol=0, atol=1e-12)
        certified = duality_gap(
            *visible[:2], codes[row, None], alpha, positive=positive
        )
        torch.testing.assert_close(gaps[row, None], certified, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_samples", [20, 400], ids=["direct", "gram"])
def test_gaps_in_one_row_change_no_bit_of_the_others(generator, n_samples, dtype):
    atoms, x, alpha = make_problem(generator, n_samples, p=700, dtype=dtype)
    mask = torch.ones_like(x)
    complete, certified = solve_lasso(atoms, x, alpha)
    mask[5, :3] = 0
    codes, gaps = solve_lasso(atoms, x, alpha, mask=mask)
    others = torch.arange(n_samples) != 5
    assert not torch.equal(codes[5], complete[5])
    assert torch.equal(codes[others], complete[others])
    assert torch.equal(gaps[others], certified[others])


# What the certificate says.


@pytest.mark.parametrize("positive", [False, True])
def test_gap_bounds_the_distance_from_the_minimum(generator, positive):
    """Whatever the codes are."""
    atoms, x, alpha = make_problem(generator)
    best, _ = solve_lasso(atoms, x, alpha, positive=positive)
    noise = normal(generator, *best.shape)
    for size in [0.0, 1e-6, 1e-3, 1e-1, 10.0]:
        codes = best + size * noise * (best != 0)
        codes = codes.clamp_min(0) if positive else codes
        distance = objective(atoms, x, codes, alpha) - objective(atoms, x, best, alpha)
        distance = distance / (x.square().sum(1) / 2)
        assert (
            duality_gap(atoms, x, codes, alpha, positive=positive) >= distance - 1e-14
        ).all()
    assert duality_gap(atoms, x, best, alpha, positive=positive).max() < 1e-13


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_samples", [2, 200], ids=["direct", "gram"])
@pytest.mark.parametrize("max_iter", [1, 1000])
def test_gaps_of_the_solver_are_those_of_its_codes(
    generator, positive, dtype, n_samples, max_iter
):
    """The compiled solver certifies with correlations of its own."""
    atoms, x, alpha = make_problem(generator, n_samples, p=200, dtype=dtype)
    x[0] = 0
    options = dict(positive=positive, max_iter=max_iter)
    _, gaps = solve_lasso(atoms, x, alpha, **options)
    exact, _ = solve_lasso(atoms.double(), x.double(), alpha, **options)
    expected = duality_gap(atoms, x, exact, alpha, positive=positive)
    assert (expected[1:] > 1e-3).any() == (max_iter == 1)
    torch.testing.assert_close(gaps, expected, rtol=1e-6, atol=1e-14)


def test_samples_that_miss_the_tolerance_are_named(generator, solver):
    atoms, x, alpha = make_problem(generator)
    x[3] = atoms[0]  # solved in one round
    _, gaps = solve_lasso(atoms, x, alpha, max_iter=1)
    assert gaps[3] < 1e-12
    with pytest.warns(RuntimeWarning, match="1 of 2 samples.*samples 0\\)"):
        warn_about_gaps(gaps[2:4])
    with pytest.warns(
        UserWarning, match="of 20 samples.*samples 0, 1, 2, 4, 5, ..."
    ) as record:
        warn_about_gaps(gaps, category=UserWarning)
    assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_about_gaps(gaps[3:4])
        warn_about_gaps(gaps[:0])


def test_data_that_is_not_finite_is_not_certified(generator, solver):
    atoms, x, alpha = make_problem(generator)
    good, _ = solve_lasso(atoms, x, alpha)
    x[1, 2], x[2, 3] = torch.nan, torch.inf
    codes, gaps = solve_lasso(atoms, x, alpha)
    assert (~(gaps <= 1e-6)).nonzero().squeeze(1).tolist() == [1, 2]
    torch.testing.assert_close(codes[3:], good[3:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e200])
def test_atoms_that_are_not_finite_have_no_codes(generator, solver, value):
    """Nor a derivative, by which training that diverges is told."""
    atoms, x, alpha = make_problem(generator)
    atoms[3, 1] = value
    codes, gaps = solve_lasso(atoms, x, alpha)
    assert codes.isnan().all()
    assert gaps.isnan().all()
    atoms.requires_grad_()
    codes, _ = converged_codes(DenseDictionary(atoms), x, alpha=alpha)
    assert torch.autograd.grad(codes.square().sum(), atoms)[0].isnan().any()


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
def test_alpha_must_be_positive(generator, alpha):
    atoms, x, _ = make_problem(generator)
    with pytest.raises(
        ValueError, match=r"alpha must be positive, got .* torch.linalg.lstsq"
    ):
        solve_lasso(atoms, x, alpha)


# Derivatives.


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("debias", [0.0, 0.3, 1.0])
def test_gradient_agrees_with_finite_differences(generator, debias, masked, positive):
    atoms, x, alpha = make_problem(generator, 4, 6, 9, alpha=0.3)
    alpha = torch.tensor(alpha, dtype=torch.float64)
    mask = make_mask(generator, x) if masked else None
    options = dict(positive_code=positive, debias=debias, mask=mask)

    def codes(atoms, x, alpha):
        return converged_codes(DenseDictionary(atoms), x, alpha=alpha, **options)[0]

    inputs = [tensor.requires_grad_() for tensor in (atoms, x, alpha)]
    assert torch.autograd.gradcheck(codes, inputs, eps=1e-7, atol=1e-6)
    per_atom = alpha.detach().expand(len(atoms)).clone().requires_grad_()
    assert torch.autograd.gradcheck(codes, [atoms, x, per_atom], eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("blocks", [2**22, 100])
def test_adjoint_applies_the_pseudo_inverse_on_every_support(
    generator, blocks, monkeypatch
):
    """Also for repeated atoms, supports larger than the number of features, and empty ones."""
    monkeypatch.setitem(_solve.BLOCK_ENTRIES, "cpu", blocks)
    atoms, _, _ = make_problem(generator, 1, 9, 60)
    atoms[1] = atoms[0]
    atoms[2] = 0
    share = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None]
    codes, delta = normal(generator, 2, 30, 60)
    codes = codes * (
        torch.rand(codes.shape, generator=generator, dtype=torch.float64) < share
    )
    codes[0] = 0
    codes[1] = 0
    codes[1, :3] = 1
    mask = torch.ones(30, 9, dtype=torch.float64)
    mask[15:] = torch.rand(15, 9, generator=generator, dtype=torch.float64) > 0.3
    u = _implicit._implicit_adjoint(atoms, codes, delta, mask)
    assert torch.equal(u[:15], _implicit._implicit_adjoint(atoms, codes, delta)[:15])
    for code, direction, known, got in zip(codes, delta, mask, u):
        expected = torch.zeros_like(got)
        on = code != 0
        members = atoms[on] * known
        expected[on] = (
            torch.linalg.pinv(members @ members.mT, hermitian=True) @ direction[on]
        )
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)
