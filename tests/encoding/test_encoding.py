"""The unfolded encoder is plain automatic differentiation, and solves the lasso.

The oracle is the encoder as the paper writes it, differentiated by torch step by step.
"""

import numpy as np
import pytest
import torch
from naive import make_mask, naive_encode, normal, torch_encode, unit
from sklearn.linear_model import Lasso

from skpudle._data.sources import Samples
from skpudle._gradients import GRADIENT_RULES
from skpudle._operators._atoms import DenseDictionary
from skpudle._operators._conv import ConvDictionary
from skpudle.encoding import _steps, encode
from skpudle.encoding._unfold import default_step, unfold

# (n_samples, n_components, n_features), by whether dense products go through the Gram matrix
SHAPES = {"gram": (20, 6, 9), "direct": (8, 11, 4)}

VARIANTS = {
    "soft": {},
    "soft, positive": dict(positive_code=True),
    "soft, decay": dict(lambda_decay=0.95),
    "soft, initial": dict(initial_threshold=0.5),
    "soft, positive, initial": dict(positive_code=True, initial_threshold=0.5),
    "hard": dict(shrinkage="hard"),
    "hard, positive": dict(shrinkage="hard", positive_code=True),
    "hard, initial": dict(shrinkage="hard", initial_threshold=0.5),
}


def make_problem(generator, shape="gram"):  # atoms, data
    n_samples, n_components, n_features = SHAPES[shape]
    x = 1.5 * normal(generator, n_samples, n_features)
    return unit(generator, n_components, n_features), x


def value_and_gradients(encoder, inputs, weights, **options):
    """Return codes, and the derivatives of a linear function of them in all inputs."""
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    atoms, x, alpha, step = inputs
    z = encoder(atoms, x, alpha=alpha, step_size=step, **options)
    gradients = torch.autograd.grad((weights * z).sum(), inputs, materialize_grads=True)
    return z.detach(), *gradients


def assert_agree(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


@pytest.fixture(params=[1, 2, 30])
def n_unfoldings(request):
    return request.param


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


@pytest.fixture(params=["loops", "products", "both"])
def way(request, monkeypatch):
    """Run iterations by compiled loops, by dense products, or by whichever suits the codes."""
    if request.param == "products":
        monkeypatch.setattr(_steps, "is_compiled", lambda x: False)
    elif request.param == "both":
        monkeypatch.setattr(_steps, "_SPARSE_CODES", 0.5)
        monkeypatch.setattr(_steps, "_FEW_PRODUCTS", 0)


@pytest.mark.uncompiled
@pytest.mark.parametrize("masked", [False, True], ids=["all known", "masked"])
@pytest.mark.parametrize("per_atom", [False, True], ids=["one alpha", "alpha per atom"])
def test_adjoint_is_automatic_differentiation(
    variant, n_unfoldings, shape, way, masked, per_atom, generator
):
    """Codes, and derivatives in the atoms, the data, alpha and the step."""
    atoms, x = make_problem(generator, shape)
    options = variant | {"n_unfoldings": n_unfoldings}
    if masked:
        options["mask"] = make_mask(generator, x)
    alpha = torch.rand(
        len(atoms) if per_atom else 1, generator=generator, dtype=torch.float64
    )
    alpha = (0.2 + 0.4 * alpha).squeeze()
    inputs = atoms, x, alpha, 0.9 * default_step(DenseDictionary(atoms))
    weights = normal(generator, len(x), len(atoms))
    expected = value_and_gradients(naive_encode, inputs, weights, **options)
    # both sides of the threshold
    assert 0 < expected[0].count_nonzero() < expected[0].numel()
    assert_agree(value_and_gradients(encode, inputs, weights, **options), expected)
    # without a graph the encoder reuses two buffers
    codes = encode(atoms, x, alpha=alpha, step_size=inputs[-1], **options)
    torch.testing.assert_close(codes, expected[0], rtol=0, atol=1e-12)


def test_second_derivatives_raise(shape, generator):
    """Through saved codes they would be silently wrong."""
    atoms, x = make_problem(generator, shape)

    def loss(atoms):
        return encode(atoms, x, alpha=0.3, n_unfoldings=5).square().sum()

    with pytest.raises(RuntimeError, match="once only"):
        torch.autograd.grad(loss(atoms.requires_grad_()), atoms, create_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        torch.autograd.functional.hessian(loss, atoms.detach())


def test_encoding_writes_to_none_of_its_inputs(shape, generator):
    atoms, x = make_problem(generator, shape)
    initial, mask = normal(generator, len(x), len(atoms)), make_mask(generator, x)
    levels, step = (
        torch.full((3, 1), 0.1, dtype=x.dtype),
        torch.tensor(0.2, dtype=x.dtype),
    )
    inputs = [atoms, x, levels, step, initial, mask]
    before = [value.clone() for value in inputs]
    for hide in (None, mask):
        unfold(DenseDictionary(atoms), x, levels, step, initial=initial, mask=hide)
    assert all(map(torch.equal, inputs, before))


@pytest.mark.draws_from_numpy  # coordinate descent does, though its order is cyclic
@pytest.mark.parametrize("positive", [False, True], ids=["signed", "positive"])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_many_unfoldings_solve_the_lasso_of_scikit_learn(
    alpha, positive, shape, generator
):
    """Same objective, same units of alpha."""
    atoms, x = make_problem(generator, shape)
    codes = encode(atoms, x, alpha=alpha, n_unfoldings=5_000, positive_code=positive)
    options = dict(fit_intercept=False, positive=positive, tol=1e-14, max_iter=100_000)
    lasso = Lasso(alpha / x.shape[1], **options)
    reference = lasso.fit(atoms.numpy().T, x.numpy().T).coef_
    np.testing.assert_allclose(codes, reference, rtol=0, atol=1e-6)


def test_codes_follow_the_units_the_order_and_the_signs_of_atoms(variant, generator):
    """Units exactly, by powers of two. A penalty above every correlation leaves no codes."""
    atoms, x = make_problem(generator)
    codes = encode(atoms, x, alpha=0.3, **variant)
    for scale in (2.0**-30, 2.0**20):
        first = variant.get("initial_threshold")
        given = (
            variant if first is None else variant | {"initial_threshold": scale * first}
        )
        assert torch.equal(
            encode(atoms, scale * x, alpha=scale * 0.3, **given), scale * codes
        )
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    signs = (
        torch.ones(6, 1)
        if variant.get("positive_code")
        else torch.tensor([[1.0], [-1]] * 3)
    )
    changed = encode(signs * atoms[order], x, alpha=0.3, **variant)
    torch.testing.assert_close(changed * signs.mT, codes[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [1 + 1e-12, 0.999])
def test_alpha_above_every_correlation_gives_zero_codes(
    share, shape, n_unfoldings, generator
):
    atoms, x = make_problem(generator, shape)
    alpha = share * (x @ atoms.T).abs().max()
    assert encode(atoms, x, alpha=alpha, n_unfoldings=n_unfoldings).any() == (share < 1)


def test_float32_is_computed_in_float32(variant, shape, generator):
    atoms, x = make_problem(generator, shape)
    codes = encode(atoms.float(), x.float(), alpha=0.3, **variant)
    assert codes.dtype == torch.float32
    if variant.get("shrinkage") != "hard":  # which may jump
        expected = encode(atoms, x, alpha=0.3, **variant)
        torch.testing.assert_close(codes.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_codes_of_a_gpu_are_those_of_the_cpu(variant, generator):
    atoms, x = make_problem(generator)
    codes = encode(atoms.cuda(), x.cuda(), alpha=0.3, **variant)
    assert codes.is_cuda
    expected = encode(atoms, x, alpha=0.3, **variant)
    torch.testing.assert_close(codes.cpu(), expected, rtol=0, atol=1e-12)


def test_few_rows_that_are_not_finite_have_codes_that_are_not(generator, variant):
    atoms, x = unit(generator, 5, 4), normal(generator, 4, 4)
    x[0, 1], x[1, 2] = torch.nan, torch.inf
    codes = encode(atoms, x, alpha=0.1, n_unfoldings=5, **variant)
    torch.testing.assert_close(
        codes.isfinite().all(1), torch.tensor([False, False, True, True])
    )


# ---------------------------------------------------------------------------- convolutions

PROBLEMS = {  # shape of the atoms, stride, shape of the data
    "pictures": ((6, 1, 9, 9), 4, (3, 1, 25, 21)),
    "colour": ((4, 3, 4, 4), (3, 2), (2, 3, 13, 10)),
    "signals": ((5, 2, 6), 2, (3, 2, 20)),
}
WITHOUT_INITIAL = [name for name in VARIANTS if "initial" not in name]


@pytest.mark.parametrize("masked", [False, True], ids=["all known", "masked"])
@pytest.mark.parametrize("variant", WITHOUT_INITIAL, indirect=True)
@pytest.mark.parametrize("per_atom", [False, True], ids=["one alpha", "alpha per atom"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_adjoint_of_convolutions_is_that_of_torchs(
    name, variant, per_atom, masked, generator
):
    """Codes, and derivatives in the atoms, the data, learned thresholds and the learned step."""
    shape, stride, sample = PROBLEMS[name]
    atoms = unit(generator, *shape)
    x = 2 * normal(generator, *sample)
    options = dict(variant)
    if masked:
        options["mask"] = make_mask(generator, x)
    alpha = torch.rand(
        shape[0] if per_atom else 1, generator=generator, dtype=torch.float64
    )
    step = 0.9 * default_step(ConvDictionary(atoms, stride))
    inputs = [atoms, x, (0.1 + 0.1 * alpha).squeeze(), step]
    inputs = [value.requires_grad_() for value in inputs]
    atoms, x, alpha, step = inputs
    shared = dict(alpha=alpha, step_size=step, n_unfoldings=15, **options)
    expected = torch_encode(atoms, x, stride=stride, **shared)
    # both sides of the threshold
    assert 0 < expected.count_nonzero() < expected.numel()
    actual = encode(ConvDictionary(atoms, stride), x, **shared)
    weights = normal(generator, *expected.shape)
    gradients = [
        torch.autograd.grad((weights * z).sum(), inputs, materialize_grads=True)
        for z in (actual, expected)
    ]
    assert_agree([actual, *gradients[0]], [expected, *gradients[1]])


@pytest.mark.parametrize("gradient", GRADIENT_RULES)
@pytest.mark.parametrize("variant", WITHOUT_INITIAL, indirect=True)
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
        evaluation = evaluate(
            make_dictionary(atoms), Samples(x), encoder=encoder, penalty=0.3
        )
        return torch.autograd.grad(evaluation.surrogate, atoms)[0], evaluation.losses

    convolutional = update(lambda atoms: ConvDictionary(atoms, 3), atoms, images)
    expected = update(DenseDictionary, atoms.flatten(1), images.flatten(1))
    assert expected[0].any()
    assert_agree([convolutional[0].flatten(1), convolutional[1]], expected)
