"""The theorems, at small sizes and in float64; and the diagnostics against slower ways."""

import numpy as np
import pytest
from convergence import code_convergence, gradient_convergence, lasso_dictionary

from skpudle.datasets import make_dictionary_data, perturb_dictionary

ALPHA, STEP = 0.2, 0.2
N_UNFOLDINGS = 140


def unit_rows(atoms):
    return atoms / np.linalg.norm(atoms, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def problem():
    """Return samples, true atoms, true codes and atoms near the truth, as in appendix B."""
    x, truth, code = make_dictionary_data(18, 50, 100, 5, sign="sample", random_state=0)
    return x, truth, code, unit_rows(perturb_dictionary(truth, 0.14, random_state=1))


@pytest.fixture(scope="module")
def codes(problem):
    x, _, _, atoms = problem
    options = dict(
        alpha=ALPHA, n_unfoldings=N_UNFOLDINGS, step_size=STEP, random_state=0
    )
    return code_convergence(x, atoms, n_directions=3, **options)


@pytest.fixture(scope="module")
def gradients(problem):
    x, _, code, atoms = problem
    options = dict(
        alpha=ALPHA, n_unfoldings=N_UNFOLDINGS, step_size=STEP, per_sample=True
    )
    return gradient_convergence(x, atoms, code=code, **options)


def after_support(codes, first, last):
    """Yield each sample and its depths, that many unfoldings after its support last changed."""
    for sample, start in enumerate(codes.support_time):
        if start + last <= N_UNFOLDINGS:
            yield sample, slice(start - 1 + first, start - 1 + last)


def slope(curve):
    return np.polyfit(np.arange(len(curve)), np.log(curve), 1)[0]


# ---------------------------------------------------------------- the theorems


def test_supports_are_selected_in_finitely_many_unfoldings(codes):
    """Proposition 3.1."""
    assert (codes.support_time <= N_UNFOLDINGS).all()


def test_codes_converge_at_the_rate_of_the_gram_matrix_on_the_support(codes):
    """Theorem 3.1: linear, and the constant of the line is an eigenvalue."""
    known = np.isfinite(codes.observed_rate)
    assert known.sum() >= 12
    assert (codes.rate < 1).all()
    assert (codes.observed_rate[known] < codes.rate[known] + 1e-3).all()
    np.testing.assert_allclose(
        np.median(codes.observed_rate / codes.rate), 1, atol=1e-3
    )


def test_jacobians_converge_as_t_times_the_rate_to_the_t(codes):
    """Theorem 3.2: the error over ``t rho^(t-1)`` is bounded (a rate 2 % lower would double it)."""
    growth = []
    for sample, window in after_support(codes, 20, 60):
        t, error = codes.n_unfoldings[window], codes.jacobian_error[window, sample]
        scaled = error / (t * codes.rate[sample] ** (t - 1))
        growth.append(scaled[-1] / scaled[0])
    assert len(growth) >= 10
    assert np.median(growth) < 1
    assert max(growth) < 1.5


def test_gradients_through_the_encoder_converge_twice_as_fast(codes, gradients):
    """Theorem 3.3, figure 3: rates rho^t (dec) and t rho^(2t - 1) (ae-lasso)."""
    ratios = []
    for sample, window in after_support(codes, 30, 60):
        dec, ae_lasso, _ = gradients.local[:, window, sample]
        ratios.append(slope(ae_lasso) / slope(dec))
    assert len(ratios) >= 10
    assert 1.85 < np.median(ratios) < 2.05


def test_ae_ls_levels_off(codes, gradients):
    """Theorem 3.3: of the local gradient, ae-ls is a biased estimate."""
    dec, _, ae_ls = gradients.local
    change = abs(ae_ls[-1] / ae_ls[-20] - 1)
    assert np.median(change) < 1e-2
    assert np.median(ae_ls[-1]) > 1e3 * np.median(dec[-1])


def test_ae_ls_ends_nearest_to_the_gradient_of_the_true_codes():
    """Theorem 3.4, figure 4b: less than half the distance of the others."""
    x, truth, code = make_dictionary_data(
        500, 50, 100, 5, sign="sample", random_state=0
    )
    atoms = unit_rows(perturb_dictionary(truth, 0.14, random_state=1))
    options = dict(alpha=ALPHA, step_size=STEP, n_unfoldings=[120])
    dec, ae_lasso, ae_ls = gradient_convergence(x, atoms, code=code, **options).truth[
        :, 0
    ]
    assert ae_ls < 0.55 * min(dec, ae_lasso)


def test_ae_lasso_ends_nearest_to_the_gradient_of_the_minimiser():
    """Theorem 3.4, figure 4a."""
    x, truth, _ = make_dictionary_data(400, 20, 30, 3, sign="sample", random_state=0)
    best = lasso_dictionary(x, truth, alpha=ALPHA, tol=1e-4).components
    atoms = unit_rows(perturb_dictionary(truth, 0.1, random_state=1))
    options = dict(alpha=ALPHA, n_unfoldings=[25, 250], minimizer=best)
    dec, ae_lasso, ae_ls = gradient_convergence(x, atoms, **options).minimizer
    assert ae_lasso[0] < dec[0]
    np.testing.assert_allclose(ae_lasso[1], dec[1], rtol=1e-2)
    assert ae_lasso[1] < ae_ls[1]


# ---------------------------------------------------------------- the diagnostics
