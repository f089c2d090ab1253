"""Products that leave out zeros: those of torch, for any share of zeros and any memory."""

import pytest
import torch
from naive import naive_unfold, normal, unit

from skpudle._operators._atoms import DenseDictionary
from skpudle.encoding._compiled import multiply
from skpudle.encoding._unfold import threshold_levels, unfold

# above the size from which zeros are left out, of an odd number of entries in a row
N, INNER, COLUMNS = 61, 173, 211


@pytest.fixture
def factors(generator):
    def draw(share, dtype=torch.float64):
        left, right, plus = (
            torch.randn(*shape, generator=generator, dtype=dtype)
            for shape in ((N, INNER), (INNER, COLUMNS), (N, COLUMNS))
        )
        kept = torch.rand(N, INNER, generator=generator) < share
        return plus, left * kept, right

    return draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_products_are_those_of_torch(factors, share, dtype, layout):
    plus, left, right = factors(share, dtype)
    if layout == "columns":
        left, right = left.mT.contiguous().mT, right.mT.contiguous().mT
    expected = plus - 0.5 * left @ right
    torch.testing.assert_close(multiply(plus, left, right, scale=-0.5), expected)
    assert multiply(plus, left, right, scale=-0.5, in_place=True) is plus
    torch.testing.assert_close(plus, expected)


@pytest.mark.uncompiled
def test_nan_is_not_zero(factors):
    plus, left, right = factors(0.05)
    left[3, 5] = torch.nan
    assert multiply(plus, left, right)[3].isnan().all()


@pytest.mark.parametrize("n_features", [60, 400])  # with the Gram matrix and without
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("shrinkage", "alpha"), [("soft", 1.5), ("hard", 0.12)])
def test_encoder_and_adjoint_are_those_of_automatic_differentiation(
    generator, n_features, given, shrinkage, alpha
):
    """Of products large enough to leave out zeros, from codes of zeros and from given ones."""
    n, p, n_unfoldings, step = 40, 500, 12, 0.05
    atoms, x, first = (
        unit(generator, p, n_features),
        normal(generator, n, n_features),
        None,
    )
    if given:
        first = normal(generator, n, p) * (torch.rand(n, p, generator=generator) < 0.05)
    leaves = [t.requires_grad_() for t in (atoms, x, first) if t is not None]
    dictionary, step = DenseDictionary(atoms), torch.tensor(step, dtype=torch.float64)
    levels = threshold_levels(
        dictionary, alpha, n_unfoldings, step, shrinkage=shrinkage
    )

    z = torch.zeros(n, p, dtype=torch.float64) if first is None else first
    how = dict(
        alpha=alpha, n_unfoldings=n_unfoldings, step_size=step, shrinkage=shrinkage
    )
    codes = [
        unfold(dictionary, x, levels, step, shrinkage=shrinkage, initial=first),
        naive_unfold(lambda x: x @ atoms.mT, lambda z: z @ atoms, x, z, **how),
    ]
    assert 0.005 < (codes[1] != 0).double().mean() < 0.33
    torch.testing.assert_close(*codes, rtol=1e-12, atol=1e-12)
    weight = normal(generator, n, p)
    found, expected = (torch.autograd.grad((weight * z).sum(), leaves) for z in codes)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
