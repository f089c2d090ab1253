"""Gradient rules are the derivatives that the papers write down."""

from functools import partial

import pytest
import torch
from naive import make_mask, naive_encode
from test_encoding import make_problem

from skpudle._data.sources import Samples
from skpudle._gradients import GRADIENT_RULES
from skpudle._operators._atoms import DenseDictionary
from skpudle.encoding import encode
from skpudle.encoding._unfold import default_step

ENCODERS = {
    "soft": dict(alpha=0.3),
    "soft, positive": dict(alpha=0.3, positive_code=True),
    "soft, decay": dict(alpha=0.5, lambda_decay=0.95),
    "hard": dict(alpha=0.3, shrinkage="hard"),
    "hard, positive": dict(alpha=0.3, shrinkage="hard", positive_code=True),
}


def naive_gradient(rule, atoms, x, mask, penalty, encoder):
    """Differentiate the definition, averaged over samples, by torch; NOODL's is explicit."""
    z = encoder(atoms, x, mask=mask)
    if rule == "noodl":
        residual = mask * (z @ atoms - x)
        return torch.einsum("nk,nm->km", z.sign(), residual) / len(x)
    z = z.detach() if rule == "dec" else z
    loss = 0.5 * (mask * (x - z @ atoms)).square().sum()
    if rule == "ae-lasso":
        loss = loss + penalty * z.abs().sum()
    return torch.autograd.grad(loss / len(x), atoms)[0]


def evaluate(rule, atoms, x, *, encoder, penalty=0.3, **of_samples):
    batch = Samples(x, **of_samples)
    return GRADIENT_RULES[rule](
        DenseDictionary(atoms), batch, encoder=encoder, penalty=penalty
    )


def gradient_of(rule, atoms, x, **options):
    atoms = atoms.detach().clone().requires_grad_()
    return torch.autograd.grad(evaluate(rule, atoms, x, **options).surrogate, atoms)[0]


@pytest.fixture(params=GRADIENT_RULES)
def rule(request):
    return request.param


@pytest.mark.parametrize("masked", [False, True], ids=["all known", "masked"])
@pytest.mark.parametrize("options", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("n_unfoldings", [1, 2, 30])
@pytest.mark.parametrize("shape", ["gram", "direct"])
def test_gradient_is_that_of_the_definition(
    rule, shape, n_unfoldings, options, masked, generator
):
    """Against automatic differentiation through a naive encoder, the step held constant."""
    atoms, x = make_problem(generator, shape)
    mask = make_mask(generator, x) if masked else None
    options = options | {"n_unfoldings": n_unfoldings}
    step = default_step(DenseDictionary(atoms))
    actual = gradient_of(rule, atoms, x, encoder=partial(encode, **options), mask=mask)
    expected = naive_gradient(
        rule,
        atoms.requires_grad_(),
        x,
        mask if masked else torch.ones_like(x),
        0.3,
        partial(naive_encode, step_size=step, **options),
    )
    assert expected.any()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_reported_losses_are_reconstruction_errors_for_every_rule(rule, generator):
    """So that curves of different rules compare."""
    atoms, x = make_problem(generator)
    evaluation = evaluate(rule, atoms, x, encoder=partial(encode, alpha=0.3))
    z = encode(atoms, x, alpha=0.3)
    assert torch.equal(evaluation.codes, z)
    expected = 0.5 * (x - z @ atoms).square().sum(1)
    torch.testing.assert_close(evaluation.losses, expected)


@pytest.mark.parametrize("shape", ["gram", "direct"])
def test_with_converged_codes_dec_is_ae_lasso(shape, generator):
    """Theorem 3.3: a minimiser of the lasso moves with the atoms at no first-order cost."""
    atoms, x = make_problem(generator, shape)
    encoder = partial(encode, alpha=0.5, n_unfoldings=1_500)
    dec, lasso, ls = (
        gradient_of(rule, atoms, x, encoder=encoder, penalty=0.5)
        for rule in ("dec", "ae-lasso", "ae-ls")
    )
    torch.testing.assert_close(lasso, dec, rtol=0, atol=1e-10)
    assert (ls - dec).abs().max() > 0.1  # while least squares pays
