"""Volumes and films: three axes do what one and two axes do, and planted atoms are found."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from naive import normal
from scipy.signal import correlate

from skpudle import ConvPUDLEDictionaryLearning
from skpudle._operators._conv import ConvDictionary
from skpudle.metrics import atom_cosines
from skpudle.plotting import AtomsDisplay
from skpudle.search.conv_problem import ConvProblem, conv_codes

KERNEL = (2, 4, 3)


def planted(
    size=(10, 14, 12), n=3, n_copies=12, missing=0.0, noise=0.05, kernel=KERNEL
):
    """Return volumes with copies of two atoms at random positions, and the atoms."""
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((2, *kernel))
    atoms /= np.linalg.norm(atoms.reshape(2, -1), axis=1)[:, None, None, None]
    X = noise * rng.standard_normal((n, *size))
    for volume in X:
        for atom in np.repeat(atoms, n_copies, axis=0):
            first = rng.integers(np.subtract(size, kernel) + 1)
            window = tuple(slice(i, i + k) for i, k in zip(first, kernel, strict=True))
            volume[window] += rng.uniform(1, 2) * atom
    return np.where(rng.random(X.shape) < missing, np.nan, X), atoms


def learner_of(atom_shape=KERNEL, n_components=2, **options):
    options = {"stride": 1, "random_state": 0} | options
    return ConvPUDLEDictionaryLearning(n_components, atom_shape=atom_shape, **options)


@pytest.fixture(scope="module")
def fitted():
    X, atoms = planted()
    return learner_of().fit(X), X, atoms


def test_analysis_is_the_correlation_of_scipy(generator):
    dictionary = ConvDictionary(normal(generator, 2, 1, *KERNEL))
    x = normal(generator, 1, 1, 5, 6, 7)
    for z, atom in zip(dictionary.analysis(x)[0], dictionary.atoms, strict=True):
        expected = correlate(x[0, 0].numpy(), atom[0].numpy(), mode="valid")
        np.testing.assert_allclose(z.numpy(), expected, atol=1e-12)


@pytest.mark.uncompiled
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_codes_of_volumes_of_one_slice_are_those_of_pictures(axis, generator):
    atoms = normal(generator, 3, 1, 3, 4)
    x = normal(generator, 2, 1, 8, 9)
    mask = (normal(generator, 2, 1, 8, 9) > -1).double()
    expected, _ = conv_codes(ConvDictionary(atoms), x, alpha=1.0, mask=mask)
    lifted = (tensor.unsqueeze(2 + axis) for tensor in (atoms, x, mask))
    atoms, x, mask = lifted
    codes, solved = conv_codes(ConvDictionary(atoms), x, alpha=1.0, mask=mask)
    assert solved.all()
    torch.testing.assert_close(codes.squeeze(2 + axis), expected, rtol=0, atol=1e-7)


@pytest.mark.uncompiled
def test_atoms_of_volumes_of_one_slice_improve_and_move_as_those_of_pictures(generator):
    # blobs that atoms of one pixel, in a corner of the atom, cut off
    hann = torch.hann_window(5, periodic=False, dtype=torch.float64)[:, None]
    z = torch.zeros(3, 2, 16, 16, dtype=torch.float64)
    z[:, 0, 1::9, 2::9] = 1 + 0.1 * torch.rand(3, 2, 2, generator=generator)
    z[:, 1, 5::9, 6::9] = -1
    x = ConvDictionary((hann * hann.mT).expand(2, 1, 5, 5)).synthesis(z)
    atoms = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    atoms[0, 0, 0, 0] = atoms[1, 0, 2, 2] = 1
    alpha = 0.8
    problem = ConvProblem(x, alpha, kernel=(3, 3), stride=(1, 1))
    volumes = replace(problem, x=x[:, :, None], kernel=(1, 3, 3), stride=(1, 1, 1))
    epoch = problem.epoch(atoms, problem.no_codes())
    lifted = volumes.epoch(atoms[:, :, None], volumes.no_codes())
    assert torch.equal(lifted.codes.value, epoch.codes.value)
    better = epoch.improved_atoms()
    torch.testing.assert_close(lifted.improved_atoms()[:, :, 0], better)
    moved, codes = epoch.move_atoms()
    moved_volumes, codes_of_volumes = lifted.move_atoms()
    torch.testing.assert_close(moved_volumes[:, :, 0], moved)
    assert torch.equal(codes_of_volumes.index, codes.index)
    (rise, _), (rise_of_volumes, _) = epoch.costs(), lifted.costs()
    torch.testing.assert_close(rise_of_volumes, rise)


def test_planted_atoms_of_volumes_are_found(fitted):
    learner, X, atoms = fitted
    assert np.abs(atom_cosines(learner, atoms)).max(axis=1).min() > 0.99
    codes = learner.transform(X)
    assert codes.shape == (3, 9, 11, 10, 2)
    error = np.sqrt(np.mean((learner.inverse_transform(codes) - X) ** 2))
    assert error < 0.06  # the noise is 0.05
    assert learner.score(X) > 0.5
    assert "2 x 4 x 3" in learner.summary(X)
    assert "codes a volume" in learner.summary(X)


def test_planted_atoms_are_found_from_seven_voxels_in_ten():
    X, atoms = planted(missing=0.3)
    learner = learner_of().fit(X)
    assert np.abs(atom_cosines(learner, atoms)).max(axis=1).min() > 0.98


@pytest.mark.parametrize(
    ("noise", "missing"), [(0.2, 0.0), (0.15, 0.2), (0.1, 0.3)], ids=str
)
def test_atoms_are_found_whose_copies_have_less_energy_than_the_noise(noise, missing):
    """The noise of 147 voxels has up to 6 times the squared norm of an atom, which is 1."""
    size, kernel = (24, 32, 32), (3, 7, 7)
    X, atoms = planted(size, 2, 30, missing, noise, kernel)
    learner = learner_of(kernel).fit(X)
    assert np.abs(atom_cosines(learner, atoms)).max(axis=1).min() > 0.95


def test_one_film_is_a_stack_of_one(fitted):
    learner, X, _ = fitted
    codes = learner.transform(X[0])
    np.testing.assert_array_equal(codes, learner.transform(X[:1])[0])
    film = learner.inverse_transform(codes)
    np.testing.assert_array_equal(film, learner.inverse_transform(codes[None])[0])
    of_one = learner_of(max_iter="auto").fit(X[0])
    np.testing.assert_array_equal(
        of_one.components_, learner_of().fit(X[:1]).components_
    )


def test_channels_are_the_last_axis_of_volumes(fitted):
    _, X, _ = fitted
    X = X[..., None] * [1.0, 0.5]
    learner = learner_of(rank=1).fit(X)
    assert learner.components_.shape == (2, *KERNEL, 2)
    assert learner.spatial_components_.shape == (2, 2)
    assert learner.temporal_components_.shape == (2, *KERNEL)
    assert learner.inverse_transform(learner.transform(X)).shape == X.shape


def test_training_through_an_encoder_takes_volumes(fitted):
    _, X, _ = fitted
    options = dict(n_unfoldings=3, max_iter=3, tol=None, stride=(1, 2, 1))
    learner = learner_of(**options).fit(X)
    assert learner.loss_curve_[-1] < learner.loss_curve_[-3]
    assert learner.transform(X).shape == (3, 9, 6, 10, 2)


def test_slices_of_an_atom_are_drawn_side_by_side(fitted):
    learner, _, _ = fitted
    display = AtomsDisplay.from_estimator(learner)
    assert display.atoms.shape == (2, 4, 2 * 3)
    np.testing.assert_array_equal(display.atoms[:, :, :3], learner.components_[:, 0])
