"""Losses of the natural exponential family, and what encoders and rules make of them."""

from functools import partial

import pytest
import torch
from naive import make_mask, naive_shrink, normal, unit

from skpudle._data.sources import Samples
from skpudle._fit.run import Fitted
from skpudle._learners.counts import CountDictionaryLearning, CountPlan
from skpudle._losses import Binomial, Gaussian, Poisson
from skpudle._operators._atoms import DenseDictionary
from skpudle.encoding import encode
from skpudle.encoding._unfold import default_step, unfold

FAMILIES = {"poisson": Poisson(), "binomial": Binomial(5), "bernoulli": Binomial()}
ENCODERS = {
    "soft": dict(alpha=0.4),
    "soft, positive": dict(alpha=0.3, positive_code=True),
    "soft, decay": dict(alpha=0.5, lambda_decay=0.95),
    "hard": dict(alpha=0.2, shrinkage="hard"),
}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def loss(request):
    return request.param


@pytest.fixture(params=ENCODERS.values(), ids=ENCODERS)
def options(request):
    return request.param


def draw(generator, loss, natural):
    """Return data of the given natural parameter."""
    if isinstance(loss, Poisson):
        return torch.poisson(natural.exp(), generator=generator)
    trials = torch.rand(int(loss.n_trials), *natural.shape, generator=generator)
    return (trials < natural.sigmoid()).sum(0).to(natural.dtype)


def make_problem(generator, loss, shape=(12, 11, 7)):  # atoms, data, offset
    n_samples, n_components, n_features = shape
    atoms = unit(generator, n_components, n_features)
    offset = 0.5 * normal(generator, n_features)
    codes = normal(generator, n_samples, n_components)
    codes *= torch.rand(codes.shape, generator=generator) < 0.3
    return atoms, draw(generator, loss, codes @ atoms + offset), offset


def naive_unfold(
    loss, atoms, x, alpha, n_unfoldings, step, *, offset=0.0, lambda_decay=1.0, shrinkage="soft",
    positive_code=False, mask=1.0,
):  # fmt: skip
    """Return codes by one operation after the other; without a step it is looked for."""
    z = x.new_zeros(len(x), len(atoms))
    bound = DenseDictionary(atoms).squared_norm_bound()
    start = mask * loss.mean(z @ atoms + offset)
    size = 4 / (bound * torch.maximum(x * mask, start).amax(1, keepdim=True)).detach()
    for t in range(n_unfoldings):
        s = size if step is None else step
        level = alpha if shrinkage == "hard" else s * alpha * lambda_decay**t
        natural = z @ atoms + offset
        v = z + s * (mask * (x - loss.mean(natural))) @ atoms.T
        code = naive_shrink(v, level, shrinkage, positive_code)
        if step is not None:
            z = code
            continue
        change = code @ atoms + offset - natural
        largest = torch.maximum(loss.mean(natural), loss.mean(natural + change))
        curvature = (mask * largest * change**2).sum(1, keepdim=True)
        length = (code - z).square().sum(1, keepdim=True)
        counts = (curvature * size <= length).detach()
        size = torch.where(
            counts, torch.where(length > 0, 1.25 * size, size), size / 2
        ).detach()
        z = torch.where(counts, code, z)
    return z


def objective(loss, atoms, x, z, alpha, offset, mask=1.0):  # -> (n,)
    return (mask * loss.half_deviance(z @ atoms + offset, x)).sum(
        1
    ) + alpha * z.abs().sum(1)


def violation(loss, atoms, x, z, alpha, offset):
    """Return how far codes are from the optimality conditions of the penalised likelihood."""
    ascent = (x - loss.mean(z @ atoms + offset)) @ atoms.T
    at_zero = (ascent.abs() - alpha).clamp_min(0)
    return torch.where(z == 0, at_zero, (ascent - alpha * z.sign()).abs()).max()


# ---------------------------------------------------------------------------- the family


@pytest.mark.parametrize("loss", [Gaussian(), *FAMILIES.values()], ids=repr)
def test_a_family_is_its_derivatives(loss, generator):
    natural = normal(generator, 50).requires_grad_()
    x = (
        draw(generator, loss, natural.detach())
        if loss != Gaussian()
        else normal(generator, 50)
    )
    mean = loss.mean(natural)
    (slope,) = torch.autograd.grad(
        loss.half_deviance(natural, x).sum(), natural, retain_graph=True
    )
    torch.testing.assert_close(slope, mean.detach() - x, rtol=1e-12, atol=1e-12)
    (variance,) = torch.autograd.grad(mean.sum(), natural)
    torch.testing.assert_close(
        loss.variance(mean).detach(), variance, rtol=1e-12, atol=1e-12
    )
    assert (variance <= loss.curvature).all()
    torch.testing.assert_close(loss.natural(mean), natural)
    at_best = loss.half_deviance(natural, mean)
    torch.testing.assert_close(at_best, torch.zeros_like(at_best), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------- the adjoint


@pytest.mark.parametrize("masked", [False, True], ids=["all known", "masked"])
@pytest.mark.parametrize("n_unfoldings", [1, 2, 15])
def test_derivatives_are_those_of_the_definition(
    n_unfoldings, masked, options, loss, generator
):
    """Against automatic differentiation through a naive encoder, steps held constant."""
    atoms, x, offset = make_problem(generator, loss)
    known = make_mask(generator, x) if masked else torch.ones_like(x)
    options = options | dict(n_unfoldings=n_unfoldings)
    step = default_step(DenseDictionary(atoms), loss)

    def derivatives(encoder):
        inputs = [value.clone().requires_grad_() for value in (atoms, x, offset)]
        z = encoder(inputs[0], inputs[1], offset=inputs[2])
        value = (known * loss.half_deviance(z @ inputs[0] + inputs[2], x)).sum()
        return z, torch.autograd.grad(value, inputs)

    z, expected = derivatives(
        partial(naive_unfold, loss, step=step, mask=known, **options)
    )
    assert 0 < z.count_nonzero() < z.numel()
    mask = known if masked else None
    codes, found = derivatives(partial(encode, loss=loss, mask=mask, **options))
    assert torch.equal(codes != 0, z != 0)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True], ids=["all known", "masked"])
def test_the_gradient_of_counts_is_that_of_the_decoder(masked, loss, generator):
    """Of half the deviance at fixed codes; the last row is a baseline whose code is 1."""
    atoms, x, _ = make_problem(generator, loss)
    known = make_mask(generator, x) if masked else torch.ones_like(x)
    exposure = torch.rand(len(x), 1, generator=generator).to(x)
    rows = torch.cat([atoms, normal(generator, 1, atoms.shape[1])]).requires_grad_()
    plan = CountPlan(CountDictionaryLearning(n_unfoldings=5))
    plan.loss = loss
    fitted = Fitted(atoms=rows[:-1], extra=rows[-1:], alpha=0.3)
    rule, dictionary, options = plan.network(fitted)
    batch = Samples(x, known if masked else None, exposure.exp())
    found = rule(dictionary, batch, **options)
    z = found.codes
    assert (z[:, -1] == 1).all()
    value = (known * loss.half_deviance(z @ rows + exposure, x)).sum(1)
    torch.testing.assert_close(found.losses, value.detach())
    expected = value.detach().mean() + 0.3 * z[:, :-1].abs().sum(1).mean()
    torch.testing.assert_close(found.objective, expected)
    pairs = (
        torch.autograd.grad(one.mean(), rows)[0] for one in (value, found.surrogate)
    )
    torch.testing.assert_close(*pairs)


@pytest.mark.uncompiled
def test_gradcheck(loss, generator):
    """In all inputs at once, next to no kink, from initial codes."""
    atoms, x, offset = make_problem(generator, loss, (3, 4, 5))
    inputs = [atoms, x, torch.full((3, 4), 0.05, dtype=x.dtype),
              torch.tensor(0.1, dtype=x.dtype), normal(generator, 3, 4), offset]  # fmt: skip
    inputs = [value.requires_grad_() for value in inputs]

    def codes(atoms, x, levels, step, initial, offset):
        options = dict(initial=initial, loss=loss, offset=offset)
        return unfold(DenseDictionary(atoms), x, levels, step, **options)

    assert torch.autograd.gradcheck(codes, inputs)


def test_least_squares_are_least_squares(generator):
    atoms, x = unit(generator, 6, 9), normal(generator, 20, 9)
    offset = normal(generator, 9)
    same = partial(encode, atoms, alpha=0.3)
    assert torch.equal(same(x, loss=Gaussian()), same(x))
    assert torch.equal(same(x, offset=offset), same(x - offset))


# ---------------------------------------------------------------------------- convergence


def steps_of(loss, atoms, x, offset, alpha, n_unfoldings, mask=None):  # yields codes
    """Return the codes after every number of unfoldings."""
    options = dict(alpha=alpha, loss=loss, offset=offset, mask=mask)
    return [encode(atoms, x, n_unfoldings=t, **options) for t in range(1, n_unfoldings)]


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("masked", [False, True], ids=["all known", "masked"])
def test_the_objective_does_not_rise(loss, masked, scale, generator):
    """For data far from the offset and counts of all sizes."""
    atoms, x, offset = make_problem(generator, loss, (40, 11, 7))
    if isinstance(loss, Poisson):
        x = torch.poisson(scale * x, generator=generator)
    mask = make_mask(generator, x) if masked else None
    value = partial(objective, loss, atoms, x, alpha=0.3, offset=offset)
    value = partial(value, mask=1.0 if mask is None else mask)
    curve = [value(torch.zeros(len(x), len(atoms)).double())]
    curve += [value(z) for z in steps_of(loss, atoms, x, offset, 0.3, 60, mask)]
    curve = torch.stack(curve)
    rises = curve.diff(dim=0)
    assert (rises <= 1e-12 * curve[:-1].clamp_min(1)).all()
    assert (curve[-1] < curve[0]).any()


def test_codes_become_those_of_the_penalised_likelihood(loss, generator):
    atoms, x, offset = make_problem(generator, loss)
    z = encode(atoms, x, alpha=0.3, n_unfoldings=5000, loss=loss, offset=offset)
    assert 0 < z.count_nonzero() < z.numel()
    assert violation(loss, atoms, x, z, 0.3, offset) < 1e-6
