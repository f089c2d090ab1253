"""The derivative at codes of the lasso is that of automatic differentiation."""

from functools import partial

import numpy as np
import pytest
import torch

from skpudle import PUDLEDictionaryLearning
from skpudle._data.sources import Samples
from skpudle._fit.plan import Plan
from skpudle._fit.run import Fitted
from skpudle._gradients import GRADIENT_RULES, differentiate
from skpudle._operators._atoms import DenseDictionary
from skpudle.lasso import _implicit
from skpudle.lasso._implicit import converged_codes, lasso_gradient

ALPHA = 0.3


@pytest.fixture
def problem(generator):  # -> atoms (7, 5), x (9, 5)
    return tuple(
        torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (7, 9)
    )


def encode(dictionary, x, mask=None, *, positive):
    return converged_codes(
        dictionary, x, alpha=ALPHA, positive_code=positive, mask=mask
    )[0]


def by_autograd(rule, atoms, x, positive, mask=None):
    atoms = atoms.clone().requires_grad_()
    encoder = partial(encode, positive=positive)
    return differentiate(
        GRADIENT_RULES[rule], DenseDictionary(atoms), atoms, Samples(x, mask),
        encoder=encoder, penalty=ALPHA,
    )  # fmt: skip


def by_a_learner(rule, atoms, x, positive, alpha=ALPHA, mask=None):
    """Whose encoder says that it solves the lasso, and so is not called."""
    plan = Plan(PUDLEDictionaryLearning(positive_code=positive, gradient=rule))
    rule, dictionary, options = plan.network(Fitted(atoms=atoms, alpha=alpha))
    return differentiate(rule, dictionary, atoms, Samples(x, mask), **options)


@pytest.fixture(params=[False, True], ids=["complete", "with gaps"])
def mask(request, problem, generator):
    """Return which entries are known, None for all."""
    if not request.param:
        return None
    known = torch.rand(problem[1].shape, generator=generator, dtype=torch.float64) > 0.3
    known[0] = False
    return known.double()


@pytest.mark.uncompiled
@pytest.mark.parametrize("positive", [False, True], ids=["any sign", "positive"])
@pytest.mark.parametrize("rule", ["dec", "ae-lasso", "ae-ls"])
def test_it_is_that_of_autograd_with_the_same_evaluation(rule, positive, problem, mask):
    options = dict(through_encoder=rule == "ae-ls", positive=positive, mask=mask)
    assert lasso_gradient(*problem, ALPHA, **options) is not None
    expected, evaluation = by_autograd(rule, *problem, positive, mask)
    found, known = by_a_learner(rule, *problem, positive, mask=mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert expected.abs().max() > 0.01
    for one, other in zip(known, evaluation, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ["dec", "ae-ls"])
def test_float32_has_its_dtype_and_the_digits_of_it(rule, problem):
    expected, _ = by_a_learner(rule, *problem, False)
    found, evaluation = by_a_learner(rule, *(t.float() for t in problem), False)
    assert {t.dtype for t in (found, *evaluation)} == {torch.float32}
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.uncompiled
@pytest.mark.parametrize("atom", [0.0, 2.0], ids=["a zero atom", "a parallel atom"])
def test_atoms_that_depend_on_each_other_are_left_to_others(atom, problem):
    atoms, x = problem
    atoms[3] = atom * atoms[1]
    assert lasso_gradient(atoms, x, ALPHA, through_encoder=True) is None


@pytest.mark.uncompiled
def test_so_are_supports_without_an_inverse(problem):
    atoms = np.ascontiguousarray(problem[0][:3, :2])
    given = atoms, atoms @ atoms.T, np.ones((1, 2)), np.empty((1, 0)), True
    for third, has_an_inverse in ((0.0, True), (1.0, False)):
        sums = np.array([[1.0, 1.0, third]]), np.zeros(1), np.zeros_like(atoms)
        assert _implicit.loops.differentiate(*given, *sums) == has_an_inverse
