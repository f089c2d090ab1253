"""Codes without bias: least squares on the lasso's supports, and the way between the two."""

import numpy as np
import pytest
import torch
from naive import make_mask, unit

from skpudle._operators._atoms import DenseDictionary
from skpudle.lasso import solve_lasso
from skpudle.lasso._implicit import converged_codes
from skpudle.lasso._solve import lasso_path


def make_problem(generator, n=30):
    return unit(generator, 25, 12), unit(generator, n, 12), 0.1


def mask_of_some(generator, x):
    mask = make_mask(generator, x)
    mask[::2] = 1
    return mask


def towards_least_squares(atoms, x, z):
    """Go straight to least squares; where a code reaches zero, go on without it."""
    support = list(np.flatnonzero(z))
    z = z.copy()
    while support:
        aim = np.linalg.lstsq(atoms[support].T, x, rcond=None)[0]
        step = aim - z[support]
        turning = z[support] * aim <= 0
        if not turning.any():
            z[support] = aim
            break
        shares = np.where(turning, z[support] / np.where(turning, -step, 1), np.inf)
        z[support] += shares.min() * step
        out = support[int(shares.argmin())]
        z[out] = 0
        support.remove(out)
    return z


@pytest.mark.uncompiled
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("positive", [False, True])
def test_codes_go_to_least_squares_as_slow_loops_do(
    generator, solver, positive, masked
):
    atoms, x, alpha = make_problem(generator)
    mask = mask_of_some(generator, x) if masked else torch.ones_like(x)
    options = dict(positive=positive, mask=mask)
    codes, gaps = solve_lasso(atoms, x, alpha, **options)
    found, found_gaps = solve_lasso(atoms, x, alpha, debias=1, **options)
    expected = np.stack(
        [
            towards_least_squares(
                (atoms * known).numpy(), (row * known).numpy(), z.numpy()
            )
            for row, known, z in zip(x, mask, codes, strict=True)
        ]
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)
    # they certify the supports
    torch.testing.assert_close(found_gaps, gaps, rtol=0, atol=1e-12)
    assert ((codes != 0) & (found == 0)).any()  # some signs turned
    half, _ = solve_lasso(atoms, x, alpha, debias=0.25, **options)
    torch.testing.assert_close(half, torch.lerp(codes, found, 0.25), rtol=0, atol=1e-12)


@pytest.mark.uncompiled
@pytest.mark.parametrize("masked", [False, True])
def test_a_path_is_the_solutions_one_by_one(generator, solver, masked):
    atoms, x, _ = make_problem(generator)
    atoms[7], atoms[9] = -2 * atoms[3], 0  # one that nothing needs, and none
    mask = mask_of_some(generator, x) if masked else None
    alphas = [0.8, 0.4, 0.2, 0.1, 0.05]
    codes, refits = lasso_path(atoms, x, alphas, mask=mask)
    for alpha, z, refit in zip(alphas, codes, refits, strict=True):
        for debias, found in ((0, z), (1, refit)):
            expected, _ = solve_lasso(atoms, x, alpha, debias=debias, mask=mask)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_least_squares_do_not_move_the_loss_to_first_order(generator):
    """Their residual is orthogonal to the support: the gradient is the decoder's alone."""
    atoms, x, alpha = make_problem(generator)
    gradients = []
    for detach in (False, True):
        dictionary = DenseDictionary(atoms.clone().requires_grad_())
        z, _ = converged_codes(dictionary, x, alpha=alpha, debias=1.0)
        z = z.detach() if detach else z
        (0.5 * (dictionary.synthesis(z) - x).square().sum()).backward()
        gradients.append(dictionary.atoms.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_a_share_is_from_0_to_1(generator):
    atoms, x, alpha = make_problem(generator)
    with pytest.raises(ValueError, match=r"debias is 1.5. Pass a number from 0 to 1"):
        solve_lasso(atoms, x, alpha, debias=1.5)
