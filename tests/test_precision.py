"""What is computed in the precision of the data, whoever asks for it."""

import pytest
import torch

from skpudle._operators._atoms import DenseDictionary
from skpudle._precision import in_own_precision, own_precision


@pytest.fixture
def product(generator):
    """Return a function that computes a product, and what it is outside of any mode."""
    z, atoms = (
        torch.randn(5, 30, generator=generator),
        torch.randn(30, 8, generator=generator),
    )
    dictionary = DenseDictionary(atoms)
    return lambda: dictionary.synthesis(z), z @ atoms


def test_autocast_that_begins_inside_ends_at_the_next_function(product):
    """As that of a callback, which is called inside of `fit`."""
    compute, expected = product
    with own_precision(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compute(), expected)
    assert torch.equal(compute(), expected)


def test_after_an_error_functions_are_protected_as_before(product):
    compute, expected = product
    with pytest.raises(ZeroDivisionError):
        in_own_precision(lambda: 1 / 0)()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compute(), expected)
        assert torch.is_autocast_enabled("cpu")
