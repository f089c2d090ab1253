"""The surrogate optimiser: a quadratic model that every batch refines."""

from functools import partial

import numpy as np
import pytest
import torch

from skpudle import PUDLEDictionaryLearning
from skpudle._operators._atoms import project_atoms
from skpudle._optimizers import SurrogateOptimizer
from skpudle.datasets import make_dictionary_data


@pytest.fixture
def problem(generator):  # -> atoms (6, 4), codes (50, 6), x (50, 4)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    codes = normal(50, 6) * (torch.rand(50, 6, generator=generator) < 0.5)
    return project_atoms(normal(6, 4)), codes, normal(50, 4)


def dec_gradient(atoms, codes, x):
    return codes.mT @ (codes @ atoms - x) / len(x)


@pytest.mark.parametrize("atom_norm", ["ball", None])
def test_many_inner_steps_minimise_the_model(atom_norm, problem):
    """For one batch of dec the model is least squares: at its minimum a projected step rests."""
    atoms, codes, x = problem
    project = partial(project_atoms, atom_norm=atom_norm)
    optimizer = SurrogateOptimizer(atoms, project, anchor=0.0, n_inner=20_000)
    optimizer.update(dec_gradient(atoms, codes, x), codes)
    found = optimizer.atoms.detach()
    step = 0.1 * dec_gradient(found, codes, x)
    torch.testing.assert_close(project(found - step), found, rtol=0, atol=1e-9)
    if atom_norm is None:
        expected = torch.linalg.lstsq(codes, x).solution
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_without_forgetting_batches_add_up(problem):
    """The model of batches of any sizes is that of their union: A is z^T z and B is z^T x."""
    atoms, codes, x = problem
    project = partial(project_atoms, atom_norm=None)
    optimizer = SurrogateOptimizer(atoms, project, forgetting=0.0, anchor=0.0, n_inner=20_000)
    for rows in (slice(0, 25), slice(25, 47), slice(47, 50)):
        now = optimizer.atoms.detach()
        optimizer.update(dec_gradient(now, codes[rows], x[rows]), codes[rows])
    torch.testing.assert_close(
        optimizer.atoms.detach(), torch.linalg.lstsq(codes, x).solution, rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("gradient", ["dec", "ae-lasso", "ae-ls"])
@pytest.mark.parametrize("shrinkage", ["soft", "hard"])
@pytest.mark.parametrize("n_samples", [30, 1500])
def test_the_surrogate_ends_at_least_as_low_as_adam(gradient, shrinkage, n_samples):
    """Also where samples are fewer than atoms, and the model is rank deficient."""
    X, truth, _ = make_dictionary_data(n_samples, 40, 60, 3, sign="sample", random_state=0)
    initial = truth + 0.02 * np.random.default_rng(0).standard_normal(truth.shape)
    options = dict(gradient=gradient, shrinkage=shrinkage, alpha=0.1, n_unfoldings=30)
    options |= dict(dict_init=initial, batch_size=50, tol=None, random_state=0)
    options["max_iter"] = 2 if n_samples > 1000 else 30
    surrogate, adam = (
        PUDLEDictionaryLearning(60, optimizer=name, **options).fit(X)
        for name in ("surrogate", "adam")
    )
    assert np.isfinite(surrogate.loss_curve_).all()
    assert surrogate.loss_curve_[-1] <= adam.loss_curve_[-1]
