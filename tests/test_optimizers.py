"""Optimisers are those of torch with a projection, or a quadratic model; all can be resumed."""

from functools import partial

import numpy as np
import pytest
import torch
from naive import normal

from skpudle import PUDLEDictionaryLearning
from skpudle._operators._atoms import project_atoms
from skpudle._optimizers import SurrogateOptimizer, make_optimizer
from skpudle.datasets import make_dictionary_data

OPTIMIZERS = {
    "adam": ("adam", {}),
    "sgd with momentum": ("sgd", dict(momentum=0.9)),
    "RMSprop": (torch.optim.RMSprop, dict(momentum=0.5)),
    "Rprop": (torch.optim.Rprop, {}),
}
CLASSES = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def make(
    kind, atoms, *, atom_norm="unit", data_scale=1.0, learning_rate=0.01, **params
):
    name, defaults = OPTIMIZERS[kind]
    arguments = defaults | params
    return make_optimizer(
        partial(CLASSES.get(name, name), **arguments) if arguments else name,
        atoms,
        partial(project_atoms, atom_norm=atom_norm),
        learning_rate=learning_rate,
        data_scale=data_scale,
    )


def train(optimizer, gradients):
    for gradient in gradients:
        optimizer.update(gradient, None)
    return optimizer.atoms.detach().clone()


@pytest.fixture(params=OPTIMIZERS)
def kind(request):
    return request.param


@pytest.fixture
def atoms(generator):
    return normal(generator, 6, 4)


@pytest.fixture
def gradients(generator):
    return [normal(generator, 6, 4) for _ in range(5)]


@pytest.mark.parametrize("atom_norm", ["unit", "ball", None])
def test_an_update_is_a_step_of_torch_and_a_projection(
    kind, atom_norm, atoms, gradients
):
    project = partial(project_atoms, atom_norm=atom_norm)
    name, params = OPTIMIZERS[kind]
    expected = torch.nn.Parameter(project(atoms).clone())
    reference = CLASSES.get(name, name)([expected], lr=0.01, **params)
    for gradient in gradients:
        expected.grad = gradient
        reference.step()
        with torch.no_grad():
            expected.copy_(project(expected))
    trained = train(make(kind, atoms, atom_norm=atom_norm), gradients)
    torch.testing.assert_close(trained, expected.detach(), rtol=0, atol=1e-14)


def test_a_resumed_optimizer_takes_the_same_steps(kind, atoms, gradients):
    """Going back, or loading into a new optimiser, gives the same bits."""
    optimizer = make(kind, atoms)
    middle, state = train(optimizer, gradients[:2]), optimizer.state()
    last = train(optimizer, gradients[2:])
    optimizer.load(middle, state)
    assert torch.equal(train(optimizer, gradients[2:]), last)
    fresh = make(kind, torch.ones_like(atoms))
    fresh.load(middle, state)
    assert torch.equal(train(fresh, gradients[2:]), last)


def test_replaced_atoms_are_projected_and_have_no_past(
    kind, atoms, gradients, generator
):
    """What is remembered entry by entry is 0 in their rows, and elsewhere as before."""
    optimizer = make(kind, atoms)
    kept, state = train(optimizer, gradients), optimizer.state()
    rows, new = torch.tensor([4, 1]), 3 * normal(generator, 2, 4)
    optimizer.replace(rows, new)
    torch.testing.assert_close(optimizer.atoms.detach()[rows], project_atoms(new))
    others = [0, 2, 3, 5]
    assert torch.equal(optimizer.atoms.detach()[others], kept[others])
    for name, value in optimizer.state().items():
        if value.shape == atoms.shape:
            assert not value[rows].any()
            assert torch.equal(value[others], state[name][others])


# ---------------------------------------------------------------------------- the surrogate


@pytest.fixture
def problem(generator):  # -> atoms (6, 4), codes (50, 6), x (50, 4)
    codes = normal(generator, 50, 6) * (torch.rand(50, 6, generator=generator) < 0.5)
    return project_atoms(normal(generator, 6, 4)), codes, normal(generator, 50, 4)


def dec_gradient(atoms, codes, x):
    return codes.mT @ (codes @ atoms - x) / len(x)


@pytest.mark.parametrize("atom_norm", ["ball", None])
def test_many_inner_steps_minimise_the_model(atom_norm, problem):
    """For one batch of dec the model is least squares: at its minimum a projected step rests."""
    atoms, codes, x = problem
    project = partial(project_atoms, atom_norm=atom_norm)
    optimizer = SurrogateOptimizer(atoms, project)
    optimizer.anchor, optimizer.n_inner = 0.0, 20_000
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
    optimizer = SurrogateOptimizer(atoms, project)
    optimizer.forgetting, optimizer.anchor, optimizer.n_inner = 0.0, 0.0, 20_000
    for rows in (slice(0, 25), slice(25, 47), slice(47, 50)):
        now = optimizer.atoms.detach()
        optimizer.update(dec_gradient(now, codes[rows], x[rows]), codes[rows])
    torch.testing.assert_close(
        optimizer.atoms.detach(),
        torch.linalg.lstsq(codes, x).solution,
        rtol=0,
        atol=1e-8,
    )


@pytest.mark.parametrize("gradient", ["dec", "ae-lasso", "ae-ls"])
@pytest.mark.parametrize("shrinkage", ["soft", "hard"])
@pytest.mark.parametrize("n_samples", [30, 1500])
def test_the_surrogate_ends_at_least_as_low_as_adam(gradient, shrinkage, n_samples):
    """Also where samples are fewer than atoms, and the model is rank deficient."""
    X, truth, _ = make_dictionary_data(
        n_samples, 40, 60, 3, sign="sample", random_state=0
    )
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
