"""The purest rows of mixtures are atoms to begin with."""

import numpy as np
import pytest
import torch

from skpudle import PUDLEDictionaryLearning
from skpudle._initialization import initial_atoms, successive_projections, vertices


def mixtures(n=300, m=60, p=4, *, noise=0.0, uneven=0.0, seed=0):
    """Return mixtures of spectra with pure rows among them, and the spectra.

    Rows are equally bright, or differ in brightness by a share.
    """
    rng = np.random.default_rng(seed)
    channel, centres = np.arange(m)[None], rng.uniform(0, m, (p, 3, 1))
    spectra = np.exp(-(((channel - centres) / rng.uniform(2, 6, (p, 3, 1))) ** 2)).sum(1)
    spectra /= np.linalg.norm(spectra, axis=1, keepdims=True)
    shares = rng.dirichlet(np.ones(p), n)
    shares[rng.choice(n, p, replace=False)] = np.eye(p)
    x = (1 + uneven * rng.uniform(-1, 1, (n, 1))) * shares @ spectra
    return torch.from_numpy(x + noise * rng.standard_normal(x.shape)), torch.from_numpy(spectra)


def cosines(atoms, truth):
    return (torch.nn.functional.normalize(atoms.double()) @ truth.mT).amax(0)


@pytest.mark.parametrize("n", [30, 300])  # fewer rows than features, and more
@pytest.mark.parametrize("p", [1, 4, 8])
def test_pure_rows_are_found_where_there_is_no_noise(n, p):
    x, truth = mixtures(n, p=p)
    found = vertices(x, p)
    assert found.shape == truth.shape
    torch.testing.assert_close(cosines(found, truth), torch.ones(p, dtype=torch.float64))
    pure = (x @ truth.mT).isclose(x.norm(dim=1, keepdim=True)).any(1)
    distance = torch.cdist(found, x[pure]).amin(1)  # they keep the norms of their rows
    torch.testing.assert_close(distance, torch.zeros(p, dtype=torch.float64), atol=1e-6, rtol=0)


def test_vertices_are_purer_than_random_rows_also_where_rows_differ_in_brightness():
    x, truth = mixtures(noise=0.01, uneven=0.6)
    random = initial_atoms(x, 4, "data", torch.Generator().manual_seed(0))
    assert cosines(vertices(x, 4), truth).min() > 0.97 > cosines(random, truth).min()


def test_noise_outside_of_the_subspace_is_left_out():
    x, truth = mixtures(noise=0.01)
    angles = torch.arccos(cosines(vertices(x, 4), truth).clamp_max(1))
    of_rows = torch.arccos(cosines(x, truth).clamp_max(1))  # of the nearest row, which is unknown
    assert angles.mean() < of_rows.mean()


@pytest.mark.parametrize("n_rows", [1, 5, 50])
def test_numpy_and_torch_project_onto_the_same_rows(n_rows, generator):
    rows = torch.randn(n_rows, 6, generator=generator, dtype=torch.float64)
    rows = torch.nn.functional.normalize(rows)
    weights = 0.5 + torch.rand(n_rows, generator=generator, dtype=torch.float64)
    for n in (0, 1, 4, 6, 50):
        taken = successive_projections(rows, n, weights)
        assert taken == successive_projections(rows.numpy(), n, weights.numpy())
        assert len(set(taken)) == len(taken) == min(n, n_rows, 6)


@pytest.mark.parametrize("noise", [0.0, 0.001])
def test_a_fit_of_mixtures_ends_within_a_degree_of_their_spectra(noise):
    x, truth = mixtures(noise=noise)
    learner = PUDLEDictionaryLearning(4, positive_code=True, positive_dict=True, random_state=0)
    found = torch.from_numpy(learner.fit(x.numpy()).components_)
    angles = torch.rad2deg(torch.arccos(cosines(found, truth).clamp_max(1)))
    assert angles.max() < 1
    assert (found >= 0).all()
