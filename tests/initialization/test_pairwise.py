"""Atoms are found from the data alone, and whatever the data are, there are enough of them."""

import pytest
import torch

from skpudle import PUDLEDictionaryLearning
from skpudle._initialization._pairwise import (
    MIN_RATIO,
    _draw_pairs,
    _first_eigenvectors,
    _new_directions,
    _residual,
    pairwise_atoms,
)
from skpudle.datasets import load_image_patches, make_dictionary_data
from skpudle.metrics import atom_coherence, dictionary_error, match_atoms, recovery_rate


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
    monkeypatch.setattr("skpudle._initialization._pairwise.BLOCK_STEPS", 60)
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
        dict_init="pairwise",
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


def test_noise_is_no_obstacle():
    x, dictionary, _ = model(6000, 48, 60, 3, snr_db=10)
    atoms = pairwise_atoms(x, 60, generator=seeded()).numpy()
    assert recovery_rate(atoms, dictionary, threshold=0.9) >= 0.95


def test_few_samples_still_help():
    """Where fourth moments are too noisy for all atoms, some are found and samples fill in."""
    x, dictionary, _ = model(1000, 64, 96, 3)
    atoms = pairwise_atoms(x, 96, generator=seeded()).numpy()
    samples = x[torch.randperm(1000, generator=seeded())[:96]].numpy()
    gain = atom_coherence(atoms, dictionary).mean() - atom_coherence(samples, dictionary).mean()
    assert gain > 0.1


def test_fewer_atoms_than_there_are_are_all_true():
    x, dictionary, _ = model(6000, 48, 60, 3)
    atoms = pairwise_atoms(x, 30, generator=seeded()).numpy()
    assert recovery_rate(dictionary, atoms, threshold=0.9) >= 0.95


def test_more_atoms_than_there_are_are_completed_by_samples():
    x, dictionary, _ = model(3000, 32, 40, 2)
    atoms = pairwise_atoms(x, 60, generator=seeded())
    assert recovery_rate(atoms.numpy(), dictionary, threshold=0.9) >= 0.9
    rows = x / x.norm(dim=1, keepdim=True)
    is_sample = (atoms @ rows.mT).amax(1) > 1 - 1e-12
    assert is_sample.sum() >= 10


def test_natural_patches_give_as_many_atoms_as_asked_for():
    pytest.importorskip("PIL")
    x = torch.as_tensor(load_image_patches(n_patches=2000, random_state=0))
    atoms = pairwise_atoms(x, 128, generator=seeded())
    torch.testing.assert_close(atoms.norm(dim=1), torch.ones(128, dtype=torch.float64))
    gram = (atoms @ atoms.mT).abs().fill_diagonal_(0)
    assert gram.max() < 1 - 1e-5


# What holds for all data


@pytest.mark.parametrize("scale", [2.0**-200, 3.0, 1e100])
def test_scale_of_the_data_does_not_matter(scale):
    x, _, _ = model(2000, 20, 30, 2)
    atoms = pairwise_atoms(x, 30, generator=seeded())
    torch.testing.assert_close(pairwise_atoms(scale * x, 30, generator=seeded()), atoms)


def test_sign_of_a_sample_does_not_matter_to_the_directions():
    """M_uv is even in every sample: flipping samples flips atoms at most."""
    x, dictionary, _ = model(4000, 32, 40, 2)
    signs = torch.randint(0, 2, (4000, 1), generator=seeded()) * 2 - 1
    plain = pairwise_atoms(x, 40, generator=seeded(1)).numpy()
    flipped = pairwise_atoms(signs * x, 40, generator=seeded(1)).numpy()
    assert recovery_rate(flipped, plain, threshold=0.99) == 1
    assert recovery_rate(flipped, dictionary, threshold=0.9) >= 0.95


def test_generator_determines_the_atoms():
    x, _, _ = model(1000, 20, 30, 2)
    first, again, other = (pairwise_atoms(x, 30, generator=seeded(seed)) for seed in (0, 0, 1))
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert not torch.equal(other, first)


def test_precisions_find_the_same_atoms():
    x, _, _ = model(4000, 32, 40, 2)
    double = pairwise_atoms(x, 40, generator=seeded())
    single = pairwise_atoms(x.float(), 40, generator=seeded())
    assert single.dtype == torch.float32
    assert atom_coherence(single.double().numpy(), double.numpy()).min() > 0.99


def test_at_most_max_samples_are_looked_at():
    x, _, _ = model(500, 10, 15, 2)
    limited = pairwise_atoms(x, 15, generator=seeded(), max_samples=300)
    generator = seeded()
    chosen = torch.randperm(500, generator=generator)[:300]
    torch.testing.assert_close(limited, pairwise_atoms(x[chosen], 15, generator=generator))


def test_no_pairs_means_samples_only():
    x, _, _ = model(500, 10, 15, 2)
    atoms = pairwise_atoms(x, 15, generator=seeded(), max_pairs=0)
    rows = x / x.norm(dim=1, keepdim=True)
    assert ((atoms @ rows.mT).amax(1) > 1 - 1e-12).all()


DEGENERATE = {
    "random": lambda x: x,
    "zero": torch.zeros_like,
    "constant": torch.ones_like,
    "rank one": lambda x: torch.outer(torch.arange(len(x)).to(x), torch.ones_like(x[0])),
    "half of the rows zero": lambda x: x * (torch.arange(len(x)) % 2)[:, None],
    "one outlier": lambda x: x * torch.where(torch.arange(len(x)) == 0, 1e9, 1.0)[:, None].to(x),
    "near overflow": lambda x: x * 1e37,
    "near underflow": lambda x: x * 1e-37,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 4), (2, 1), (2, 2), (7, 3), (300, 1), (300, 5)])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_there_are_always_enough_unit_atoms(kind, shape, dtype):
    x = DEGENERATE[kind](torch.randn(shape, generator=seeded(), dtype=dtype))
    for n_components in (1, 12):
        atoms = pairwise_atoms(x, n_components, generator=seeded())
        assert atoms.shape == (n_components, shape[1])
        assert atoms.dtype == dtype
        torch.testing.assert_close(atoms.norm(dim=1), torch.ones(n_components, dtype=dtype))


def test_zero_rows_become_no_atoms_and_random_directions_complete_the_rest():
    x = torch.zeros(10, 8, dtype=torch.float64)
    x[3, 2], x[7, 2], x[5, 4] = 3, -1, 2
    atoms = pairwise_atoms(x, 6, generator=seeded())
    on_axis = (atoms.abs() > 1 - 1e-12).any(dim=1)
    assert on_axis.sum() == 2  # two of the three samples are one direction
    assert torch.linalg.matrix_rank(atoms) == 6


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\).*one row"):
        pairwise_atoms(torch.ones(2, 3, 4), 2, generator=seeded())
    with pytest.raises(ValueError, match="n_components is 0"):
        pairwise_atoms(torch.ones(2, 3), 0, generator=seeded())
