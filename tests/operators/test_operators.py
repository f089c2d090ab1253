"""Dictionaries are trilinear forms, their bound is a bound, and projections are nearest points."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import normal, torch_maps

from skpudle._operators import _conv
from skpudle._operators._atoms import (
    DenseDictionary,
    atom_norms,
    factor_atoms,
    project_atoms,
)
from skpudle._operators._conv import ConvDictionary

CONVOLUTIONS = {  # shape of the atoms, stride, shape of a sample
    "1-D": ((3, 1, 4), 1, (1, 9)),
    "1-D, strided": ((3, 1, 5), 2, (1, 11)),
    "1-D, channels": ((4, 3, 5), 3, (3, 14)),
    "1-D, apart": ((2, 2, 2), 3, (2, 8)),
    "2-D": ((3, 1, 3, 3), 1, (1, 6, 7)),
    "2-D, strided": ((3, 1, 9, 9), 4, (1, 17, 13)),
    "2-D, channels": ((4, 3, 4, 5), (3, 2), (3, 10, 11)),
    "2-D, side by side": ((2, 1, 3, 3), 3, (1, 9, 6)),
    "2-D, apart": ((2, 2, 2, 1), (3, 4), (2, 5, 9)),
    "2-D, one position": ((5, 2, 4, 3), 2, (2, 4, 3)),
    "3-D": ((2, 1, 2, 3, 2), 1, (1, 5, 5, 4)),
    "3-D, channels": ((2, 2, 3, 2, 2), (2, 1, 2), (2, 7, 4, 4)),
}
# class, shape of the atoms, of a sample
DICTIONARIES = {"dense": (DenseDictionary, (7, 5), (5,))}
DICTIONARIES |= {
    f"convolution {name}": (partial(ConvDictionary, stride=stride), atoms, sample)
    for name, (atoms, stride, sample) in CONVOLUTIONS.items()
}

CONSTRAINTS = [
    (norm, positive) for norm in ("unit", "ball", None) for positive in (False, True)
]

SHAPES = [(3, 8), (8, 3), (5, 5), (1, 4), (4, 1), (1, 1)]  # (n_components, n_features)


def spectral_norm_squared(atoms):
    return torch.linalg.matrix_norm(atoms.double(), ord=2).square()


def atoms_of_kind(kind, shape, generator):
    atoms = normal(generator, *shape)
    if kind == "rank one":
        return normal(generator, shape[0], 1) * atoms[:1]
    if kind == "orthogonal":
        return torch.eye(max(shape), dtype=torch.float64)[: shape[0], : shape[1]] * 2.0
    if kind == "coherent":
        return atoms[:1] + 1e-3 * atoms
    if kind == "some zero":
        return torch.where(torch.arange(shape[0])[:, None] % 2 == 0, atoms, 0.0)
    return atoms


@pytest.fixture(params=DICTIONARIES)
def problem(request, generator):  # dictionary, codes, data
    make_dictionary, atoms, sample = DICTIONARIES[request.param]
    dictionary = make_dictionary(normal(generator, *atoms))
    x = normal(generator, 6, *sample)
    return dictionary, normal(generator, *dictionary.analysis(x).shape), x


def test_synthesis_analysis_and_outer_are_the_partial_derivatives_of_one_form(problem):
    dictionary, z, x = problem
    form = (dictionary.synthesis(z) * x).sum()
    torch.testing.assert_close((z * dictionary.analysis(x)).sum(), form)
    torch.testing.assert_close((dictionary.atoms * dictionary.outer(z, x)).sum(), form)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_those_of_torch(name, generator, monkeypatch):
    atoms, stride, sample = CONVOLUTIONS[name]
    dictionary = ConvDictionary(normal(generator, *atoms), stride)
    x = normal(generator, 3, *sample)
    analysis, synthesis = torch_maps(dictionary.atoms, stride)
    z = analysis(x)
    for block in (_conv.BLOCK, 16 * dictionary.atoms[0].numel() * len(x)):
        monkeypatch.setattr(_conv, "BLOCK", block)
        torch.testing.assert_close(dictionary.analysis(x), z)
        torch.testing.assert_close(dictionary.synthesis(z), synthesis(z))
    assert len(list(dictionary.analysis_in_blocks(x))) > 1 or z.shape[2] < 3


@pytest.mark.parametrize(
    "name", ["dense", "convolution 1-D, channels", "convolution 2-D, channels"]
)
def test_both_maps_are_differentiable_twice(name, generator):
    make_dictionary, atoms, sample = DICTIONARIES[name]
    atoms, x = normal(generator, *atoms)[:2], normal(generator, 1, *sample)
    z = make_dictionary(atoms).analysis(x)
    inputs = [value.requires_grad_() for value in (atoms, z, x)]
    with torch.random.fork_rng():  # gradgradcheck draws from the global state
        for maps, pair in (("synthesis", inputs[:2]), ("analysis", inputs[::2])):
            assert torch.autograd.gradgradcheck(
                lambda atoms, value, maps=maps: getattr(make_dictionary(atoms), maps)(
                    value
                ),
                pair,
            )


def norm_on_a_ring(dictionary, positions):
    """Return the squared norm on periodic images with so many positions along each axis.

    Its codes are waves at equidistant frequencies, one frequency for each position.
    """
    n_components = len(dictionary.atoms)
    n_codes = n_components * math.prod(positions)
    codes = torch.eye(n_codes, dtype=torch.float64)
    images = dictionary.synthesis(codes.view(n_codes, n_components, *positions))
    for axis, (n, stride) in enumerate(zip(positions, dictionary.strides), start=2):
        size = max(n * stride, images.shape[axis])
        pixels = torch.arange(images.shape[axis]) % (n * stride)
        ring = images.new_zeros(*images.shape[:axis], size, *images.shape[axis + 1 :])
        images = ring.index_add_(axis, pixels, images)
    return spectral_norm_squared(images.flatten(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_bound_of_a_convolution_is_tight_and_never_below_the_squared_norm(
    name, dtype, generator
):
    """The bound holds for images of any size.

    The norm on a ring with 8 positions for each degree of the symbol is its maximum at the
    frequencies of the bound. Between them the symbol may be 4.2 % an axis larger, and the bound of
    an eigenvalue of five atoms at most is 0.7 % too large.
    """
    shape, stride, _ = CONVOLUTIONS[name]
    atoms = normal(generator, *shape)
    dictionary = ConvDictionary(atoms, stride)
    bound = ConvDictionary(atoms.to(dtype), stride).squared_norm_bound()
    assert bound.dtype == dtype
    positions = [12, 9][: len(shape) - 2] if len(shape) < 5 else [4, 4, 4]
    n_codes = shape[0] * math.prod(positions)
    codes = torch.eye(n_codes, dtype=torch.float64).view(-1, shape[0], *positions)
    exact = spectral_norm_squared(dictionary.synthesis(codes).flatten(1))
    assert bound.double() >= (1 - 1e-14) * exact
    sizes = zip(shape[2:], dictionary.strides, strict=True)
    degrees = [-(-kernel // step) - 1 for kernel, step in sizes]
    on_ring = norm_on_a_ring(dictionary, [max(1, 8 * degree) for degree in degrees])
    limit = 1.007 * 1.042 ** sum(degree > 0 for degree in degrees)
    assert 1 - 1e-6 <= bound.double() / on_ring <= limit


def test_images_that_atoms_do_not_cover_exactly_are_refused(generator):
    dictionary = ConvDictionary(normal(generator, 2, 1, 9, 9), 4)
    assert dictionary.positions((129, 13)) == (31, 2)
    for size in ((128, 13), (129, 5)):
        with pytest.raises(ValueError, match=r"do not cover .* Pad it to"):
            dictionary.analysis(torch.zeros(1, 1, *size, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "kind", ["random", "rank one", "orthogonal", "coherent", "some zero"]
)
def test_bound_is_at_most_five_percent_above_the_squared_spectral_norm(
    kind, dtype, generator
):
    """Never below it, up to the rounding of the norm that it is compared with."""
    for shape in (*SHAPES, (300, 280)):
        atoms = atoms_of_kind(kind, shape, generator).to(dtype)
        bound = DenseDictionary(atoms).squared_norm_bound()
        assert bound.dtype == dtype
        ratio = bound.double() / spectral_norm_squared(atoms)
        assert 1 - 1e-14 <= ratio <= 1.05, shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bound_scales_with_the_square_of_the_atoms(dtype, generator):
    atoms = normal(generator, 20, 10).to(dtype)
    bound = DenseDictionary(atoms).squared_norm_bound()
    for scale in (1e-12, 1e-6, 1e6, 1e12):
        scaled = DenseDictionary(atoms * scale).squared_norm_bound()
        torch.testing.assert_close(scaled / scale**2, bound)


@pytest.mark.parametrize(("atom_norm", "positive"), CONSTRAINTS)
@pytest.mark.parametrize("shape", [(30, 4), (30, 2, 3)], ids=str)
def test_projecting_twice_is_projecting_once(shape, atom_norm, positive, generator):
    project = dict(atom_norm=atom_norm, positive=positive)
    once = project_atoms(normal(generator, *shape), **project)
    torch.testing.assert_close(project_atoms(once, **project), once, rtol=1e-15, atol=0)


@pytest.mark.parametrize(("atom_norm", "positive"), CONSTRAINTS)
@settings(deadline=None, derandomize=True)
@given(atom=st.lists(st.integers(-300, 300), min_size=2, max_size=2))
def test_projected_atom_is_the_nearest_one_allowed(atom_norm, positive, atom):
    """No point of a polar grid that satisfies the constraints is closer."""
    atom = torch.tensor([atom], dtype=torch.float64) / 100
    if atom_norm == "unit" and not atom.any():
        return  # every unit atom is as near as any other to zero
    angle = torch.linspace(0, 2 * torch.pi, 241, dtype=torch.float64)
    radii = {
        "unit": [1.0],
        "ball": [0.0, 0.3, 0.7, 1.0],
        None: [0.0, 0.5, 1.0, 2.0, 4.0],
    }
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    allowed = torch.cat([radius * circle for radius in radii[atom_norm]])
    if positive:
        allowed = allowed[(allowed >= 0).all(1)]
    projected = project_atoms(atom, atom_norm=atom_norm, positive=positive)
    nearest = torch.linalg.vector_norm(allowed - atom, dim=1).min()
    assert torch.linalg.vector_norm(projected - atom) <= nearest + 1e-14


@pytest.mark.parametrize("shape", [(5, 3, 7), (5, 7, 3), (4, 3, 2, 5)], ids=str)
def test_factors_of_an_atom_are_its_leading_singular_vectors(shape, generator):
    """No product of a map and a waveform is nearer (Eckart and Young)."""
    atoms = normal(generator, *shape)
    maps, waveforms = factor_atoms(atoms)
    left, values, right = torch.linalg.svd(atoms.flatten(2), full_matrices=False)
    leading = left[..., :1] * values[:, None, :1] * right[:, :1]
    products = torch.einsum("kc,k...->kc...", maps, waveforms)
    torch.testing.assert_close(products.flatten(2), leading)
    torch.testing.assert_close(
        atom_norms(waveforms).flatten(), torch.ones(shape[0]).double()
    )
    extremes = waveforms.flatten(1)
    assert torch.equal(extremes.amax(1), extremes.abs().amax(1))
    again = factor_atoms(products)
    torch.testing.assert_close(again, (maps, waveforms))


@pytest.mark.parametrize("atom_norm", ["unit", "ball", None])
def test_products_stay_products(atom_norm, generator):
    project = dict(atom_norm=atom_norm, rank=1)
    once = project_atoms(normal(generator, 6, 3, 8), **project)
    assert (torch.linalg.matrix_rank(once, rtol=1e-10) == 1).all()
    torch.testing.assert_close(project_atoms(once, **project), once)
    zero = torch.zeros(2, 3, 4)
    assert torch.equal(project_atoms(zero, **project), zero)
    one_channel = normal(generator, 6, 1, 8)
    expected = project_atoms(one_channel, atom_norm=atom_norm)
    torch.testing.assert_close(project_atoms(one_channel, **project), expected)
