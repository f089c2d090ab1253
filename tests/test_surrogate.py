"""The surrogate optimiser: a quadratic model that every batch refines."""

from functools import partial

import numpy as np
import pytest
import torch

from skpudle import PUDLEDictionaryLearning
from skpudle._data.batches import Samples
from skpudle._gradients import GRADIENT_RULES
from skpudle._operators._atoms import DenseDictionary, project_atoms
from skpudle._optimizers._surrogate import SurrogateOptimizer
from skpudle.datasets import make_dictionary_data
from skpudle.lasso._implicit import converged_codes
from skpudle.metrics import dictionary_error


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


def test_a_strong_anchor_is_a_small_gradient_step(problem):
    """With rho far above the curvature the minimum is D - g / rho."""
    atoms, codes, x = problem
    gradient = dec_gradient(atoms, codes, x)
    project = partial(project_atoms, atom_norm=None)
    optimizer = SurrogateOptimizer(atoms, project, anchor=1e8, n_inner=50)
    optimizer.update(gradient, codes)
    one_use = codes.square().sum() / len(codes) / (codes != 0).sum()
    moved = (optimizer.atoms.detach() - atoms) * 1e8 * one_use
    torch.testing.assert_close(moved, -gradient, rtol=1e-5, atol=1e-6)


def test_units_of_the_data_do_not_matter(problem):
    """Codes times c and gradients times c squared lead to the same atoms."""
    atoms, codes, x = problem
    trained = []
    for c in (1.0, 1e-6, 1e6):
        optimizer = SurrogateOptimizer(atoms, project_atoms)
        for rows in (slice(0, 25), slice(25, 50)):
            now = optimizer.atoms.detach()
            optimizer.update(c**2 * dec_gradient(now, codes[rows], x[rows]), c * codes[rows])
        trained.append(optimizer.atoms.detach())
    torch.testing.assert_close(trained[1], trained[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(trained[2], trained[0], rtol=0, atol=1e-10)


def test_a_resumed_surrogate_takes_the_same_steps(problem):
    atoms, codes, x = problem
    optimizer = SurrogateOptimizer(atoms, project_atoms)
    optimizer.update(dec_gradient(atoms, codes, x), codes)
    now = optimizer.atoms.detach().clone()
    other = SurrogateOptimizer(atoms, project_atoms)
    other.load(now, optimizer.state())
    for each in (optimizer, other):
        each.update(dec_gradient(now, codes, x), codes)
    assert torch.equal(optimizer.atoms, other.atoms)


def test_replaced_atoms_leave_no_trace_in_the_model(problem):
    atoms, codes, x = problem
    optimizer = SurrogateOptimizer(atoms, project_atoms)
    optimizer.update(dec_gradient(atoms, codes, x), codes)
    rows = torch.tensor([1, 4])
    optimizer.replace(rows, atoms[[0, 0]])
    state = optimizer.state()
    assert (state["curvature"][rows] == 0).all()
    assert (state["curvature"][:, rows] == 0).all()
    assert (state["pull"][rows] == 0).all()


def test_batches_without_codes_leave_atoms_where_a_batch_with_codes_left_them(problem):
    """The anchor weighs a use in the model, and no batch without one takes it away.

    The gradient through an encoder also pulls at atoms that no code uses in the end.
    """
    atoms, codes, x = problem
    codes = codes.clone()
    codes[:, 2] = 0
    gradient = dec_gradient(atoms, codes, x)
    gradient[2] = 1e-3
    optimizer = SurrogateOptimizer(atoms, project_atoms, anchor=1e6)
    optimizer.update(gradient, codes)
    before = optimizer.atoms.detach().clone()
    for small in (0.0, 1e-150):
        optimizer.update(small * gradient, small * codes)
        torch.testing.assert_close(optimizer.atoms.detach(), before, rtol=0, atol=1e-4)


def test_one_row_that_is_larger_than_all_others_is_learned_from():
    """Most batches then have no codes at all."""
    for seed in range(4):
        X = np.random.default_rng(seed).normal(size=(300, 10))
        X[7] *= 1e7
        params = dict(n_unfoldings=100, max_iter=5, tol=None, random_state=seed)
        params["noise"] = "equal"  # otherwise the row is an outlier
        learner = PUDLEDictionaryLearning(8, gradient="ae-ls", **params).fit(X)
        left = X - learner.inverse_transform(learner.transform(X))
        assert np.square(left).sum() < 1e-3 * np.square(X).sum()


def test_a_loss_that_rounding_leaves_below_zero_is_none(problem):
    atoms, codes, x = problem
    found = []
    for loss in (-1e-16, 0.0):
        optimizer = SurrogateOptimizer(atoms, project_atoms)
        for _ in range(2):
            now = optimizer.atoms.detach()
            value = torch.tensor(loss, dtype=torch.float64)
            optimizer.update(dec_gradient(now, codes, x), codes, loss=value)
        found.append(optimizer.atoms.detach())
    torch.testing.assert_close(*found, rtol=0, atol=0)


def planted(rng, n_samples, n_features=40, n_components=60, n_nonzero=3):
    atoms = rng.standard_normal((n_components, n_features))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = np.zeros((n_samples, n_components))
    support = np.argsort(rng.random(codes.shape), axis=1)[:, :n_nonzero]
    np.put_along_axis(codes, support, rng.uniform(1, 2, support.shape), axis=1)
    codes *= rng.choice([-1.0, 1.0], (n_samples, 1))
    return atoms, codes @ atoms


def learn(X, initial, **options):
    return PUDLEDictionaryLearning(
        len(initial), dict_init=initial, batch_size=50, tol=None, random_state=0, **options
    ).fit(X)


@pytest.mark.parametrize("gradient", ["dec", "ae-lasso", "ae-ls"])
@pytest.mark.parametrize("shrinkage", ["soft", "hard"])
@pytest.mark.parametrize("n_samples", [30, 1500])
def test_the_surrogate_ends_at_least_as_low_as_adam(gradient, shrinkage, n_samples):
    """Also where samples are fewer than atoms, and the model is rank deficient."""
    rng = np.random.default_rng(0)
    truth, X = planted(rng, n_samples)
    initial = truth + 0.02 * rng.standard_normal(truth.shape)
    options = dict(gradient=gradient, shrinkage=shrinkage, alpha=0.1, n_unfoldings=30)
    options["max_iter"] = 2 if n_samples > 1000 else 30
    surrogate = learn(X, initial, optimizer="surrogate", **options)
    adam = learn(X, initial, optimizer="adam", **options)
    assert np.isfinite(surrogate.loss_curve_).all()
    assert surrogate.loss_curve_[-1] <= adam.loss_curve_[-1]


def test_samples_as_atoms_lead_to_the_dictionary_of_the_data():
    """Codes of before hold atoms where they were: the model has to forget them."""
    X, truth, _ = make_dictionary_data(1500, 30, 40, n_nonzero=3, snr_db=30, random_state=2)
    options = dict(gradient="dec", n_unfoldings=None, optimizer="surrogate", batch_size=100)
    learner = PUDLEDictionaryLearning(
        40, alpha=0.1, max_iter=30, tol=None, random_state=0, **options
    ).fit(X)
    assert dictionary_error(learner.components_, truth, match=True) < 0.03


@pytest.mark.parametrize("params", [{"n_inner": 0}, {"n_inner": 2.5}, {"anchor": -1.0}])
def test_parameters_that_train_nothing_are_refused(params, problem):
    with pytest.raises(ValueError, match=next(iter(params))):
        SurrogateOptimizer(problem[0], project_atoms, **params)


@pytest.mark.parametrize("positive", [False, True])
def test_dec_with_converged_codes_has_no_gradient_through_the_encoder(positive, problem):
    """Theorem 3.3 in the limit: dec = ae-lasso, whose encoder part vanishes at the solution."""
    atoms, _, x = problem

    def encoder(dictionary, x, mask=None):
        return converged_codes(dictionary, x, alpha=0.3, positive_code=positive)[0]

    gradients = []
    for rule in ("dec", "ae-lasso"):
        leaf = atoms.clone().requires_grad_()
        evaluation = GRADIENT_RULES[rule](
            DenseDictionary(leaf), Samples(x), encoder=encoder, penalty=0.3
        )
        gradients.append(torch.autograd.grad(evaluation.surrogate, leaf)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
