"""Blocks of rows, one after the other, lead where a search of all rows leads."""

from functools import partial

import numpy as np
import pytest
import torch
from planted import planted, share_found
from small import Batches

from skpudle import PUDLEDictionaryLearning
from skpudle._data import sources
from skpudle.search import Problem
from skpudle.search.stream import advance_stream, objective

# ---------------------------------------------------------------------------- learners


in_batches = partial(Batches, batch_size=100)


@pytest.fixture(scope="module")
def populations():
    """Return two pairs: rows, and their atoms."""
    return [planted(2500, 20, 12, seed=seed) for seed in (6, 7)]


@pytest.fixture(scope="module")
def X(populations):
    """Sorted: the first population, then the second."""
    return torch.cat([rows[:2000] for rows, _ in populations]).numpy()


@pytest.fixture
def small_samples(monkeypatch):
    """A sample has 800 rows for 24 atoms."""
    monkeypatch.setattr(sources, "_LEAST_SAMPLE", 800)
    monkeypatch.setattr(sources, "_ROWS_OF_AN_ATOM", 1)
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)


def make(**params):
    return PUDLEDictionaryLearning(24, random_state=0, **params)


def held_out_objective(learner, populations):
    x = torch.cat([rows[2000:] for rows, _ in populations])
    return objective(Problem(x, 0.1), torch.as_tensor(learner.components_))


@pytest.mark.parametrize("kind", ["stream", "map"])
def test_sorted_data_outside_memory_give_the_atoms_of_their_array(
    kind, X, populations, small_samples, tmp_path
):
    array = make().fit(X)
    if kind == "map":
        np.save(tmp_path / "X.npy", X)
        data = np.load(tmp_path / "X.npy", mmap_mode="r")
    else:
        data = in_batches(X)
    learner = make().fit(data)
    assert learner.n_samples_seen_ == 4000
    for _, atoms in populations:
        assert share_found(learner.components_, atoms) == 1
    expected = held_out_objective(array, populations)
    assert held_out_objective(learner, populations) < 1.01 * expected
    again = make().fit(data)
    np.testing.assert_array_equal(again.components_, learner.components_)


def test_a_pass_that_does_not_help_is_given_up(X, small_samples, monkeypatch):
    """Atoms of a pass that are random are worse on rows that were held back."""
    expected = make().fit(in_batches(X))

    def spoiled(problem, state, *, final):
        state, over = advance_stream(problem, state, final=final)
        noise = torch.randn(
            state.atoms.shape, generator=torch.Generator().manual_seed(0)
        )
        return state._replace(
            held=state.held._replace(atoms=problem.project(noise.double()))
        ), over

    monkeypatch.setattr("skpudle.search.stream.advance_stream", spoiled)
    found = make().fit(in_batches(X))
    assert found.score(X) == pytest.approx(expected.score(X), abs=0.02)


def test_gaps_and_signs_pass(X, populations, small_samples):
    gaps = X.copy()
    gaps[np.random.default_rng(0).random(X.shape) < 0.1] = np.nan
    learner = make().fit(in_batches(gaps))
    assert (
        np.mean([share_found(learner.components_, atoms) for _, atoms in populations])
        > 0.9
    )
    positive = make(positive_code=True, positive_dict=True).fit(in_batches(np.abs(X)))
    assert (positive.components_ >= 0).all()


@pytest.mark.parametrize(("size", "offset"), [(40, 0), (500, 0), (20, 9), (50, -9)])
def test_partial_fit_finds_the_atoms_of_fit(size, offset, X, populations):
    """Fewer than 60 rows are too few to decide on a baseline, and wait for more."""
    learner = PUDLEDictionaryLearning(12, random_state=0)
    for start in range(0, 2000, size):
        learner.partial_fit(X[start : start + size] + offset)
    assert share_found(learner.components_, populations[0][1]) == 1
    assert learner.n_samples_seen_ == 2000
    assert learner.n_steps_ == 0


def test_partial_fit_after_fit_keeps_what_fit_found():
    """One draw of rows may lose half of the atoms, so ten draws count together."""
    shares = []
    for seed in range(100, 120, 2):
        (first, old), (second, new) = (
            planted(2000, 20, 12, seed=seed + i) for i in range(2)
        )
        learner = make().fit(first)
        for rows in second.split(500):
            learner.partial_fit(rows)
        shares.append([share_found(learner.components_, atoms) for atoms in (new, old)])
    assert (np.mean(shares, 0) > (0.95, 0.6)).all()
