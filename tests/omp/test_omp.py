"""Orthogonal matching pursuit: the obvious greedy method's codes, and scikit-learn's."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import ill_posed, normal, unit
from scipy.optimize import nnls

from skpudle import omp
from skpudle.omp import solve_omp

STOPS = [{"n_nonzero_coefs": 1}, {"n_nonzero_coefs": 5}, {"tol": 0.3}, {"tol": 0.02}]
EXACT = dict(rtol=0, atol=1e-10)


def make_problem(generator, n=20, m=12, p=40):
    """Return atoms and data, both of unit norm."""
    return tuple(unit(generator, size, m) for size in (p, n))


def squared_errors(atoms, x, codes):
    return (x - codes @ atoms).square().sum(1)


def obvious_code(atoms, x, n_nonzero_coefs=None, tol=0.0, positive=False):
    """Choose, solve least squares anew, repeat: one sample in NumPy."""
    n_most = min(atoms.shape) if n_nonzero_coefs is None else n_nonzero_coefs
    support, z, residual = [], np.zeros(0), x
    while len(support) < n_most and residual @ residual > tol:
        c = atoms @ residual
        c[support] = 0
        new = np.argmax(c if positive else np.abs(c))
        if (c[new] if positive else abs(c[new])) < 1e-7:
            break
        support = [*support, new]
        members = atoms[support].T
        z = nnls(members, x)[0] if positive else np.linalg.lstsq(members, x)[0]
        support, z = [j for j, code in zip(support, z) if code], z[z != 0]
        residual = x - z @ atoms[support]
    code = np.zeros(len(atoms))
    code[support] = z
    return code


def obvious_codes(atoms, x, **options):
    return torch.tensor(
        np.array([obvious_code(atoms.numpy(), row, **options) for row in x.numpy()])
    )


# What the codes are.


@pytest.mark.uncompiled
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("stop", STOPS, ids=str)
@pytest.mark.parametrize(("m", "p"), [(12, 40), (30, 20), (7, 100), (1, 3), (5, 5)])
def test_codes_are_those_of_the_obvious_pursuit(generator, m, p, stop, positive):
    atoms, x = make_problem(generator, 20, m, p)
    stop = {name: min(value, p) for name, value in stop.items()}
    codes = solve_omp(atoms, x, positive=positive, **stop)
    torch.testing.assert_close(
        codes, obvious_codes(atoms, x, positive=positive, **stop), **EXACT
    )


# Non-negative codes.


def bumps(generator):
    """Return neighbouring bumps and mixtures of them: one that stands for two leaves again."""
    places = torch.linspace(0, 59, 40, dtype=torch.float64)[:, None]
    atoms = torch.nn.functional.normalize(
        (-(torch.arange(60) - places).square() / 8).exp()
    )
    amounts = torch.rand(40, 40, generator=generator, dtype=torch.float64) ** 4
    x = amounts @ atoms + 0.02 * normal(generator, 40, 60)
    return atoms, torch.nn.functional.normalize(x)


@pytest.mark.uncompiled
@pytest.mark.parametrize(
    "stop", [{"n_nonzero_coefs": 12}, {"tol": 0.03}, {"n_nonzero_coefs": 40}], ids=str
)
def test_positive_atoms_that_stand_for_others_leave_again(generator, stop):
    """To the last: then it is Lawson and Hanson's method for non-negative least squares."""
    atoms, x = bumps(generator)
    codes = solve_omp(atoms, x, positive=True, **stop)
    torch.testing.assert_close(
        codes, obvious_codes(atoms, x, positive=True, **stop), **EXACT
    )
    sizes = range(1, 13)
    supports = [
        solve_omp(atoms, x, n_nonzero_coefs=k, positive=True) > 0 for k in sizes
    ]
    assert any(
        (before & ~after).any() for before, after in itertools.pairwise(supports)
    )


# Dictionaries that are not well posed.


@pytest.mark.uncompiled
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 6),
    m=st.integers(1, 12),
    p=st.integers(1, 70),
    kind=st.sampled_from(
        ["normal", "lengths", "repeated", "signs", "correlated", "near"]
    ),
    stop=st.sampled_from([{}, *STOPS, {"tol": 0.0}]),
    positive=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_codes_of_every_problem_are_as_few_and_as_exact_as_promised(
    n, m, p, kind, stop, positive, seed
):
    generator = torch.Generator().manual_seed(seed)
    atoms, x = make_problem(generator, n, m, p)
    choice = torch.randint(0, 1 + p // 3, (p,), generator=generator)
    atoms = ill_posed(atoms, kind, choice)
    stop = {
        name: min(value, p) if name != "tol" else value for name, value in stop.items()
    }
    codes = solve_omp(atoms, x, positive=positive, **stop)
    assert (codes != 0).sum(1).max() <= min(stop.get("n_nonzero_coefs", m), m)
    errors = squared_errors(atoms, x, codes)
    assert errors.max() <= 1 + 1e-12
    if not positive and "tol" in stop and kind in {"normal", "lengths"} and p > 2 * m:
        assert errors.max() <= stop["tol"] + 1e-9


@pytest.mark.uncompiled
def test_repeated_and_zero_atoms_are_never_needed(generator):
    atoms, x = make_problem(generator, 20, 8, 10)
    zero = torch.zeros(3, 8, dtype=torch.float64)
    more = torch.cat([zero, atoms, -atoms, atoms, zero])
    for positive in [False, True]:
        if positive:
            more = torch.cat([zero, atoms, atoms, zero])
        codes = solve_omp(more, x, tol=0.01, positive=positive)
        expected = solve_omp(atoms, x, tol=0.01, positive=positive)
        torch.testing.assert_close(codes[:, 3:13], expected, **EXACT)
        assert (codes[:, :3] == 0).all()
        assert (codes[:, 13:] == 0).all()


@pytest.mark.parametrize("positive", [False, True])
def test_zero_atoms_only_and_zero_samples_have_zero_codes(generator, positive):
    atoms, x = make_problem(generator)
    x[3] = 0
    for stop in [{"n_nonzero_coefs": 3}, {"tol": 0.0}, {"tol": 0.1}]:
        codes = solve_omp(atoms, x, positive=positive, **stop)
        assert (codes != 0).any(1).tolist() == [True] * 3 + [False] + [True] * 16
        codes = solve_omp(0 * atoms, x, positive=positive, **stop)
        assert (codes == 0).all()


@pytest.mark.parametrize("scale", [1e-100, 1e-9, 1e6, 1e100])
@pytest.mark.parametrize("positive", [False, True])
def test_codes_follow_the_units_of_data_and_atoms(generator, scale, positive):
    atoms, x = make_problem(generator)
    options = dict(n_nonzero_coefs=9, positive=positive)
    codes = solve_omp(atoms, x, **options)
    exact = dict(rtol=1e-9, atol=0)
    torch.testing.assert_close(
        solve_omp(atoms, scale * x, **options), scale * codes, **exact
    )
    if 1e-9 <= scale <= 1e6:
        torch.testing.assert_close(
            solve_omp(scale * atoms, x, **options), codes / scale, **exact
        )


@pytest.mark.uncompiled
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_code_is_a_number_where_an_atom_is_none(generator, bad, masked):
    atoms, x = make_problem(generator)
    atoms[1, 2] = bad
    mask = torch.ones_like(x) if masked else None
    codes = solve_omp(atoms, x, n_nonzero_coefs=4, mask=mask)
    assert codes.shape == (len(x), len(atoms))
    assert codes.isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_sample_that_is_not_finite_has_no_code_and_leaves_the_others_theirs(
    generator, bad
):
    atoms, x = make_problem(generator)
    expected = solve_omp(atoms, x, n_nonzero_coefs=4)
    x[2, 5] = bad
    for positive in [False, True]:
        codes = solve_omp(atoms, x, n_nonzero_coefs=4, positive=positive)
        assert codes[2].isnan().all()
        assert codes.isnan().any(1).sum() == 1
    codes = solve_omp(atoms, x, n_nonzero_coefs=4)
    torch.testing.assert_close(codes[3:], expected[3:], **EXACT)


# Parts of features.


@pytest.mark.uncompiled
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_a_mask_leaves_features_out_of_data_and_atoms(generator, stop, positive):
    atoms, x = make_problem(generator)
    mask = torch.rand(x.shape, generator=generator, dtype=torch.float64) < 0.7
    mask[0] = False
    options = dict(positive=positive, **stop)
    codes = solve_omp(atoms, x.masked_fill(~mask, math.nan), mask=mask, **options)
    for row, known, code in zip(x, mask, codes):
        expected = solve_omp(atoms * known, (row * known)[None], **options)[0]
        torch.testing.assert_close(code, expected, **EXACT)
    everything = torch.ones_like(x)
    torch.testing.assert_close(
        solve_omp(atoms, x, mask=everything, **options),
        solve_omp(atoms, x, **options),
        **EXACT,
    )


# How they are computed.


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_neither_blocks_nor_threads_nor_a_gram_matrix_change_codes(
    generator, stop, positive, monkeypatch
):
    atoms, x = make_problem(generator, 70)
    options = dict(positive=positive, **stop)
    expected = solve_omp(atoms, x, **options)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    torch.testing.assert_close(solve_omp(atoms, x, **options), expected, **EXACT)
    torch.set_num_threads(before)
    monkeypatch.setattr(omp, "entries_of_block", lambda: 40 * 9)
    torch.testing.assert_close(solve_omp(atoms, x, **options), expected, **EXACT)
    monkeypatch.setattr(omp, "_GRAM_ATOMS", 0)
    torch.testing.assert_close(solve_omp(atoms, x, **options), expected, **EXACT)


@pytest.mark.parametrize("stop", STOPS, ids=str)
@pytest.mark.parametrize("positive", [False, True])
def test_float32_codes_are_those_of_float64_rounded(generator, stop, positive, device):
    atoms, x = (t.float() for t in make_problem(generator))
    codes = solve_omp(atoms.to(device), x.to(device), positive=positive, **stop)
    exact = solve_omp(atoms.double(), x.double(), positive=positive, **stop)
    assert (codes.dtype, codes.device.type) == (torch.float32, device)
    torch.testing.assert_close(codes.cpu(), exact.float(), rtol=2e-7, atol=0)


def test_arguments_are_left_alone_in_any_layout(generator):
    atoms, x = make_problem(generator)
    options = dict(tol=0.1, positive=True)
    expected = solve_omp(atoms, x, **options)
    strided_atoms, strided_x = atoms.mT.contiguous().mT, x.mT.contiguous().mT
    before = strided_atoms.clone(), strided_x.clone()
    torch.testing.assert_close(
        solve_omp(strided_atoms, strided_x, **options), expected, **EXACT
    )
    assert torch.equal(strided_atoms, before[0])
    assert torch.equal(strided_x, before[1])


@pytest.mark.parametrize(
    "options",
    [{"n_nonzero_coefs": 0}, {"n_nonzero_coefs": 41}, {"tol": -1.0}, {"tol": math.nan}],
)
def test_arguments_are_checked(generator, options):
    with pytest.raises(
        ValueError, match="between 1 and the number of atoms, 40, or a squared"
    ):
        solve_omp(*make_problem(generator), **options)
