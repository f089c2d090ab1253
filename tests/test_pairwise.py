"""The pairwise start of the paper's experiments finds atoms from the data alone."""

import pytest
import torch
from pairwise import (
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


# The operator


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
