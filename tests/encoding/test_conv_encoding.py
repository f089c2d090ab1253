"""The encoder of a convolution is automatic differentiation of torch's convolutions."""

import pytest
import torch
from naive import make_mask, normal, torch_encode, unit
from test_encoding import VARIANTS, assert_agree

from skpudle._data.batches import Samples
from skpudle._gradients import GRADIENT_RULES
from skpudle._operators._atoms import DenseDictionary
from skpudle._operators._conv import ConvDictionary
from skpudle.encoding import encode
from skpudle.encoding._unfold import default_step

PROBLEMS = {  # shape of the atoms, stride, shape of the data
    "pictures": ((6, 1, 9, 9), 4, (3, 1, 25, 21)),
    "colour": ((4, 3, 4, 4), (3, 2), (2, 3, 13, 10)),
    "signals": ((5, 2, 6), 2, (3, 2, 20)),
}


@pytest.fixture(params=[name for name in VARIANTS if "initial" not in name])
def variant(request):
    return VARIANTS[request.param]


@pytest.mark.parametrize("masked", [False, True], ids=["all known", "masked"])
@pytest.mark.parametrize("per_atom", [False, True], ids=["one alpha", "alpha per atom"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_adjoint_is_automatic_differentiation(name, variant, per_atom, masked, generator):
    """Codes, and derivatives in the atoms, the data, learned thresholds and the learned step."""
    shape, stride, sample = PROBLEMS[name]
    atoms = unit(generator, *shape)
    x = 2 * normal(generator, *sample)
    options = dict(variant)
    if masked:
        options["mask"] = make_mask(generator, x)
    alpha = torch.rand(shape[0] if per_atom else 1, generator=generator, dtype=torch.float64)
    step = 0.9 * default_step(ConvDictionary(atoms, stride))
    inputs = [atoms, x, (0.1 + 0.1 * alpha).squeeze(), step]
    inputs = [value.requires_grad_() for value in inputs]
    atoms, x, alpha, step = inputs
    shared = dict(alpha=alpha, step_size=step, n_unfoldings=15, **options)
    expected = torch_encode(atoms, x, stride=stride, **shared)
    assert 0 < expected.count_nonzero() < expected.numel()  # both sides of the threshold
    actual = encode(ConvDictionary(atoms, stride), x, **shared)
    weights = normal(generator, *expected.shape)
    gradients = [
        torch.autograd.grad((weights * z).sum(), inputs, materialize_grads=True)
        for z in (actual, expected)
    ]
    assert_agree([actual, *gradients[0]], [expected, *gradients[1]])


@pytest.mark.parametrize("gradient", GRADIENT_RULES)
def test_convolution_with_image_sized_atoms_is_dense(gradient, variant, generator):
    """An atom as large as the image has one position: both maps are one matrix."""
    images = normal(generator, 5, 2, 6, 7)
    atoms = unit(generator, 9, 2, 6, 7)
    options = dict(alpha=0.3, step_size=0.2, n_unfoldings=20, **variant)
    codes = encode(ConvDictionary(atoms, 3), images, **options)
    dense = encode(DenseDictionary(atoms.flatten(1)), images.flatten(1), **options)
    assert_agree([codes.flatten(1)], [dense])

    def update(make_dictionary, atoms, x):
        def encoder(dictionary, x, mask=None):
            return encode(dictionary, x, mask=mask, **options)

        evaluate = GRADIENT_RULES[gradient]
        atoms = atoms.clone().requires_grad_()
        evaluation = evaluate(make_dictionary(atoms), Samples(x), encoder=encoder, penalty=0.3)
        return torch.autograd.grad(evaluation.surrogate, atoms)[0], evaluation.losses

    convolutional = update(lambda atoms: ConvDictionary(atoms, 3), atoms, images)
    expected = update(DenseDictionary, atoms.flatten(1), images.flatten(1))
    assert expected[0].any()
    assert_agree([convolutional[0].flatten(1), convolutional[1]], expected)
