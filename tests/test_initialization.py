"""Initial dictionaries come from the data: samples, directions, or the purest rows of mixtures."""

import numpy as np
import pytest
import torch
from naive import normal

from skpudle import PUDLEDictionaryLearning
from skpudle._initialization import (
    INITIALIZATIONS,
    initial_atoms,
    vertices,
)

METHODS = sorted(INITIALIZATIONS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n_components", [1, 40])
def test_atoms_have_the_shape_and_dtype_asked_for(
    method, n_components, dtype, device, generator
):
    """Also where there are fewer samples or features than atoms."""
    x = normal(generator, 20, 4).to(device, dtype)
    atoms = initial_atoms(x, n_components, method, seeded())
    assert atoms.shape == (n_components, 4)
    assert atoms.dtype == dtype
    assert atoms.device.type == device
    assert torch.isfinite(atoms).all()
    assert (atoms != 0).any(1).all()


def test_a_generator_determines_the_atoms(method, generator):
    x = normal(generator, 20, 4)
    first, same, other = (
        initial_atoms(x, 9, method, seeded(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_directions_do_not_depend_on_the_units_of_the_data(method, scale, generator):
    x = normal(generator, 20, 4)
    atoms, scaled = (
        torch.nn.functional.normalize(initial_atoms(data, 6, method, seeded()))
        for data in (x, scale * x)
    )
    torch.testing.assert_close(scaled, atoms)


def test_data_takes_distinct_samples_that_are_not_zero(generator):
    """Copies, at other amplitudes too, would stay copies: equal atoms have equal gradients."""
    x = normal(generator, 10, 4)
    copies = torch.cat([x, 0 * x, x, -2 * x, 1e-3 * x])
    atoms = initial_atoms(copies, 10, "data", seeded())
    coherence = (atoms @ torch.nn.functional.normalize(x).T).abs()
    assert sorted(coherence.argmax(1).tolist()) == list(range(10))
    torch.testing.assert_close(coherence.amax(1), torch.ones(10, dtype=x.dtype))


def test_data_that_are_few_directions_are_completed_by_random_ones():
    x = torch.zeros(10, 8, dtype=torch.float64)
    x[3, 2], x[7, 2], x[5, 4] = 3, -1, 2
    atoms = initial_atoms(x, 6, "data", seeded())
    on_axis = (atoms.abs() > 1 - 1e-12).any(dim=1)
    assert on_axis.sum() == 2  # two of the three samples are one direction
    assert torch.linalg.matrix_rank(atoms) == 6


@pytest.mark.parametrize("n_samples", [20, 4, 3])
def test_svd_takes_the_leading_right_singular_vectors(n_samples, generator):
    x = normal(generator, n_samples, 4) * torch.tensor([4.0, 3.0, 2.0, 1.0])
    atoms = initial_atoms(x, 3, "svd", seeded())
    _, _, right = torch.linalg.svd(x)
    torch.testing.assert_close((atoms @ right.T).abs(), torch.eye(3, 4, dtype=x.dtype))


def test_svd_goes_no_further_than_the_rank_of_the_data(generator):
    """Directions without data are no better than any others: samples complete the dictionary."""
    x = normal(generator, 20, 2) @ normal(generator, 2, 4)
    atoms = initial_atoms(x, 5, "svd", seeded())
    torch.testing.assert_close(atoms[:2] @ atoms[:2].T, torch.eye(2, dtype=x.dtype))
    coherence = (atoms[2:] @ torch.nn.functional.normalize(x).T).abs()
    torch.testing.assert_close(coherence.amax(1), torch.ones(3, dtype=x.dtype))


# ---------------------------------------------------------------------------- purest rows


def mixtures(n=300, m=60, p=4, *, noise=0.0, uneven=0.0, seed=0):
    """Return mixtures of spectra with pure rows among them, and the spectra.

    Rows are equally bright, or differ in brightness by a share.
    """
    rng = np.random.default_rng(seed)
    channel, centres = np.arange(m)[None], rng.uniform(0, m, (p, 3, 1))
    spectra = np.exp(-(((channel - centres) / rng.uniform(2, 6, (p, 3, 1))) ** 2)).sum(
        1
    )
    spectra /= np.linalg.norm(spectra, axis=1, keepdims=True)
    shares = rng.dirichlet(np.ones(p), n)
    shares[rng.choice(n, p, replace=False)] = np.eye(p)
    x = (1 + uneven * rng.uniform(-1, 1, (n, 1))) * shares @ spectra
    return torch.from_numpy(x + noise * rng.standard_normal(x.shape)), torch.from_numpy(
        spectra
    )


def cosines(atoms, truth):
    return (torch.nn.functional.normalize(atoms.double()) @ truth.mT).amax(0)


@pytest.mark.parametrize("n", [30, 300])  # fewer rows than features, and more
@pytest.mark.parametrize("p", [1, 4, 8])
def test_pure_rows_are_found_where_there_is_no_noise(n, p):
    x, truth = mixtures(n, p=p)
    found = vertices(x, p)
    assert found.shape == truth.shape
    torch.testing.assert_close(
        cosines(found, truth), torch.ones(p, dtype=torch.float64)
    )
    pure = (x @ truth.mT).isclose(x.norm(dim=1, keepdim=True)).any(1)
    distance = torch.cdist(found, x[pure]).amin(1)  # they keep the norms of their rows
    torch.testing.assert_close(
        distance, torch.zeros(p, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_vertices_are_purer_than_random_rows_also_where_rows_differ_in_brightness():
    x, truth = mixtures(noise=0.01, uneven=0.6)
    random = initial_atoms(x, 4, "data", torch.Generator().manual_seed(0))
    assert cosines(vertices(x, 4), truth).min() > 0.97 > cosines(random, truth).min()


def test_noise_outside_of_the_subspace_is_left_out():
    x, truth = mixtures(noise=0.01)
    angles = torch.arccos(cosines(vertices(x, 4), truth).clamp_max(1))
    # of the nearest row, which is unknown
    of_rows = torch.arccos(cosines(x, truth).clamp_max(1))
    assert angles.mean() < of_rows.mean()


@pytest.mark.parametrize("noise", [0.0, 0.001])
def test_a_fit_of_mixtures_ends_within_a_degree_of_their_spectra(noise):
    x, truth = mixtures(noise=noise)
    learner = PUDLEDictionaryLearning(
        4, positive_code=True, positive_dict=True, random_state=0
    )
    found = torch.from_numpy(learner.fit(x.numpy()).components_)
    angles = torch.rad2deg(torch.arccos(cosines(found, truth).clamp_max(1)))
    assert angles.max() < 1
    assert (found >= 0).all()
