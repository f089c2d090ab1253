"""The pairwise start of the paper's experiments finds atoms from the data alone."""

import pytest
import torch
from pairwise import (
    MIN_RATIO,
    _draw_pairs,
    _first_eigenvectors,
    _new_directions,
    _residual,
    pairwise_atoms,
)

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data
from skpudle.metrics import dictionary_error, match_atoms, recovery_rate


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def model(*sizes, dtype=torch.float64, seed=0, **options):
    """Return data as a tensor, and what it was made of as arrays."""
    data, dictionary, code = make_dictionary_data(*sizes, random_state=seed, **options)
    return torch.as_tensor(data, dtype=dtype), dictionary, code


def random_directions(*shape):
    atoms = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    return atoms / atoms.norm(dim=1, keepdim=True)


# The operator


def cumulant_matrix(x, u, v):
    """M_uv less its Gaussian part, as in the docstring of the module, entry by entry."""
    moment = torch.einsum("i,ia,ib->ab", (x @ u) * (x @ v), x, x) / len(x)
    covariance = x.mT @ x / len(x)
    shared = torch.outer(covariance @ u, covariance @ v)
    return moment - (u @ covariance @ v) * covariance - shared - shared.mT


def pairs_that_share(n_shared, atoms, *, n_nonzero, n_pairs):
    """Return two sums of atoms per pair, which have so many atoms in common."""
    orders = [torch.randperm(len(atoms), generator=seeded(i)) for i in range(n_pairs)]
    order = torch.stack(orders)
    start = n_nonzero - n_shared
    return atoms[order[:, :n_nonzero]].sum(1), atoms[order[:, start : start + n_nonzero]].sum(1)


def test_eigenvectors_are_those_of_the_explicit_matrix(monkeypatch):
    """With more power steps than good pairs need."""
    monkeypatch.setattr("pairwise.BLOCK_STEPS", 60)
    x, dictionary, _ = model(4000, 32, 40, 2)
    u, v = pairs_that_share(1, torch.as_tensor(dictionary), n_nonzero=2, n_pairs=10)
    vectors, ratios = _first_eigenvectors(x, u, v, seeded())
    for pair in range(10):
        values, exact = torch.linalg.eigh(cumulant_matrix(x, u[pair], v[pair]))
        order = values.abs().argsort(descending=True)
        assert (exact[:, order[0]] @ vectors[pair]).abs() > 1 - 1e-9
        torch.testing.assert_close(ratios[pair], (values[order[0]] / values[order[1]]).abs())


def test_ratio_tells_pairs_that_share_one_atom_from_the_rest():
    x, dictionary, _ = model(6000, 64, 80, 3)
    none, one, two = (
        _first_eigenvectors(
            x,
            *pairs_that_share(n_shared, torch.as_tensor(dictionary), n_nonzero=3, n_pairs=40),
            seeded(),
        )[1].median()
        for n_shared in (0, 1, 2)
    )
    assert max(none, two) < MIN_RATIO < one


def test_residual_has_no_part_in_atoms_that_are_known():
    """Orthogonal atoms are found exactly; what other atoms contribute stays as it is."""
    atoms = torch.linalg.qr(random_directions(12, 12)).Q
    codes = torch.as_tensor(make_dictionary_data(50, 12, 12, 4, random_state=0)[2])
    residual = _residual(codes @ atoms, atoms[:8])
    torch.testing.assert_close(residual, codes[:, 8:] @ atoms[8:])


def test_pairs_meet_in_atoms_that_are_missing():
    x, dictionary, _ = model(4000, 64, 96, 3)
    atoms = torch.as_tensor(dictionary)
    u, v = _draw_pairs(x, atoms[:90], seeded())
    nearest = (u + v * (u * v).sum(1, keepdim=True).sign()) @ atoms.mT
    assert (nearest.abs().argmax(1) >= 90).double().mean() > 0.95


def test_no_atom_is_kept_twice():
    atoms = random_directions(10, 20)
    near = atoms + 0.01 * random_directions(10, 20)
    near /= near.norm(dim=1, keepdim=True)
    candidates = torch.cat([atoms[:3], -near[:3], near[3:6], atoms[3:6]])
    kept = _new_directions(candidates, -atoms[2:3], 0.9)
    torch.testing.assert_close(kept, torch.cat([atoms[:2], near[3:6]]))


# Recovery


@pytest.mark.parametrize("sign", ["entry", "sample", None])
def test_atoms_are_recovered_from_data_alone(sign, device):
    """Fewer samples and features than the claim of 95 % is made for."""
    x, dictionary, _ = model(6000, 48, 60, 3, sign=sign)
    atoms = pairwise_atoms(x.to(device), 60, generator=seeded()).cpu().numpy()
    assert recovery_rate(atoms, dictionary, threshold=0.9) >= 0.9
    if sign is None:
        assert (match_atoms(atoms, dictionary).signs > 0).mean() >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_atoms_are_recovered_at_the_size_claimed(seed):
    x, dictionary, _ = model(20_000, 128, 192, 3, seed=seed, dtype=torch.float32)
    atoms = pairwise_atoms(x, 192, generator=seeded(seed)).numpy()
    assert recovery_rate(atoms, dictionary.astype("float32"), threshold=0.9) >= 0.95


@pytest.mark.parametrize(
    "sizes", [(6000, 64, 80, 2), pytest.param((20_000, 128, 192, 3), marks=pytest.mark.slow)]
)
def test_training_goes_on_to_the_truth(sizes):
    """Nothing is known but data and sizes, and no threshold was chosen: the paper's 0.1."""
    x, dictionary, _ = model(*sizes)
    learner = PUDLEDictionaryLearning(
        sizes[2],
        dict_init=pairwise_atoms(x, sizes[2], generator=seeded()).numpy(),
        alpha=0.1,
        shrinkage="hard",
        n_unfoldings=50,
        optimizer="surrogate",
        max_iter=2,
        tol=None,
        random_state=0,
    )
    atoms = learner.fit(x).components_
    assert dictionary_error(atoms, dictionary, match=True) < 1e-3
