"""Blocks of rows, one after the other, lead where a search of all rows leads."""

import pickle

import numpy as np
import pytest
import torch

from skpudle import Checkpoint, PUDLEDictionaryLearning
from skpudle._data import sources, tables
from skpudle._learners.online import preferred
from skpudle._training import fit
from skpudle.search import Problem
from skpudle.search import _stream as stream_module
from skpudle.search._stream import Memory, advance_stream, begin_stream, objective


def rows_of(atoms, n, generator, n_nonzero=3):
    codes = torch.zeros(n, len(atoms), dtype=torch.float64)
    places = torch.rand(n, len(atoms), generator=generator).topk(n_nonzero).indices
    values = 0.5 + torch.rand(places.shape, generator=generator, dtype=torch.float64)
    signs = torch.randint(2, places.shape, generator=generator) * 2 - 1
    x = codes.scatter_(1, places, values * signs) @ atoms
    return x + 0.02 * torch.randn(x.shape, generator=generator, dtype=torch.float64)


def directions(n, m, generator):
    atoms = torch.randn(n, m, generator=generator, dtype=torch.float64)
    return atoms / atoms.norm(dim=1, keepdim=True)


def share_found(atoms, truth):
    return float(
        (abs(truth @ torch.as_tensor(np.asarray(atoms)).double().T).amax(1) > 0.95).double().mean()
    )


def through(state, blocks, alpha=0.1):
    for x in blocks:
        state, _ = advance_stream(Problem(x, alpha), state, final=True)
    return state


def started(x, p, generator):
    chosen = x[torch.randperm(len(x), generator=generator)[:p]]
    return begin_stream(chosen / chosen.norm(dim=1, keepdim=True), forgetting=3.0)


def test_blocks_find_the_atoms_of_their_rows(generator):
    truth = directions(20, 16, generator)
    x = rows_of(truth, 3000, generator)
    state = through(started(x[:300], 20, generator), x.split(300))
    assert share_found(state.atoms, truth) == 1
    assert state.n_rows == 3000
    assert state.n_blocks == 10
    others = Problem(rows_of(truth, 500, generator), 0.1)
    assert objective(others, state.atoms) < 1.02 * objective(others, truth)


def test_a_new_population_is_found_and_the_old_one_stays(generator):
    old, new = directions(15, 24, generator), directions(15, 24, generator)
    parts = [rows_of(atoms, 3000, generator) for atoms in (old, new)]
    state = through(started(parts[0][:500], 30, generator), parts[0].split(500))
    assert share_found(state.atoms, old) == 1
    assert share_found(state.atoms, new) < 0.3
    state = through(state, parts[1].split(500))
    assert share_found(state.atoms, new) == 1
    assert share_found(state.atoms, old) > 0.7


def test_without_moves_atoms_minimise_the_model_of_all_blocks(generator, monkeypatch):
    """No forgetting: A and B are sums over blocks, and so are the counted rows."""
    monkeypatch.setattr(stream_module, "_MAX_ROUNDS", 0)
    truth = directions(10, 12, generator)
    x = rows_of(truth, 400, generator)
    state = begin_stream(truth, forgetting=0.0)
    a = torch.zeros(10, 10, dtype=torch.float64)
    for part in x.split(100):
        state, over = advance_stream(Problem(part, 0.1), state)
        assert over
        codes = Problem(part, 0.1).no_codes()
        for _ in range(5):
            epoch = Problem(part, 0.1).epoch(state.atoms, codes)
            codes = epoch.codes
        a += torch.as_tensor(epoch.products(0, 10))
    assert (state.memory.a - a).norm() < 0.01 * a.norm()
    assert float(state.memory.rows) == 400


def test_blocks_hold_many_atoms_in_their_places(generator, monkeypatch):
    """Energies instead of products of all pairs: atoms near the truth come nearer."""
    monkeypatch.setattr(stream_module, "_MOST_PAIRED", 0)
    truth = directions(20, 16, generator)
    x = rows_of(truth, 3000, generator)
    near = truth + 0.1 * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    near /= near.norm(dim=1, keepdim=True)
    state = begin_stream(near, forgetting=0.0)
    errors = [float(1 - (near * truth).sum(1).mean())]
    for part in x.split(500):
        state, over = advance_stream(Problem(part, 0.1), state)
        assert over
        errors.append(float(1 - (state.atoms * truth).sum(1).mean()))
    assert state.memory.a.shape == (20,)
    torch.testing.assert_close(state.memory.b, state.memory.energy[:, None] * state.atoms)
    matrix = state.memory.matrix
    torch.testing.assert_close(matrix, torch.diag(state.memory.energy))
    target, among = map(torch.as_tensor, state.memory.targets(truth.numpy(), 5, 9))
    torch.testing.assert_close(target, (state.memory.b - matrix @ truth)[5:9])
    torch.testing.assert_close(among, matrix[5:9, 5:9])
    assert errors[-1] < errors[1] < errors[0] / 10


def test_a_block_that_is_too_small_is_not_counted(generator):
    truth = directions(10, 12, generator)
    state = started(rows_of(truth, 50, generator), 10, generator)
    later, over = advance_stream(Problem(rows_of(truth, 3, generator), 0.1), state)
    assert not over
    assert (later.n_rows, later.n_blocks) == (0, 0)
    assert later.memory is state.memory


def test_a_memory_forgets_an_atom_and_keeps_the_targets_of_others(generator):
    """With A and B of exact codes the other atoms stay stationary."""
    truth = directions(6, 12, generator)
    z = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    ones = torch.ones(6, dtype=torch.float64)
    memory = Memory(z.T @ z, z.T @ (z @ truth), ones, ones, ones.sum())
    which = torch.tensor([1, 4])
    less = memory.without(truth, which)
    others = [0, 2, 3, 5]
    torch.testing.assert_close((less.a @ truth)[others], less.b[others])
    assert not less.a[which].any()
    assert not less.b[which].any()
    assert less.cost.tolist() == [1, 0, 1, 1, 0, 1]


# ---------------------------------------------------------------------------- learners


class Stream:
    def __init__(self, X, size=100):
        self.X, self.size = X, size

    def __iter__(self):
        return iter(np.split(self.X, range(self.size, len(self.X), self.size)))


@pytest.fixture
def populations(generator):
    return directions(12, 20, generator), directions(12, 20, generator)


@pytest.fixture
def X(populations, generator):
    """Sorted: the first population, then the second."""
    return torch.cat([rows_of(atoms, 2000, generator) for atoms in populations]).numpy()


@pytest.fixture
def small_samples(monkeypatch):
    """A sample has 800 rows for 24 atoms."""
    monkeypatch.setattr(sources, "_LEAST_SAMPLE", 800)
    monkeypatch.setattr(sources, "_ROWS_OF_AN_ATOM", 1)
    monkeypatch.setattr(tables, "IN_MEMORY_BYTES", 0)


def make(**params):
    return PUDLEDictionaryLearning(24, random_state=0, **params)


def held_out_objective(learner, populations, generator):
    x = torch.cat([rows_of(atoms, 500, generator) for atoms in populations])
    return objective(Problem(x, 0.1), torch.as_tensor(learner.components_))


@pytest.mark.parametrize("kind", ["stream", "map"])
def test_sorted_data_outside_memory_give_the_atoms_of_their_array(
    kind, X, populations, small_samples, generator, tmp_path
):
    array = make().fit(X)
    if kind == "map":
        np.save(tmp_path / "X.npy", X)
        data = np.load(tmp_path / "X.npy", mmap_mode="r")
    else:
        data = Stream(X)
    learner = make().fit(data)
    assert learner.n_samples_seen_ == 4000
    for atoms in populations:
        assert share_found(learner.components_, atoms) == 1
    state = generator.get_state()
    expected = held_out_objective(array, populations, generator)
    generator.set_state(state)
    assert held_out_objective(learner, populations, generator) < 1.01 * expected
    again = make().fit(data)
    np.testing.assert_array_equal(again.components_, learner.components_)


def test_a_pass_that_does_not_help_is_given_up(X, small_samples, monkeypatch):
    """Atoms of a pass that are random are worse on rows that were held back."""
    expected = make().fit(Stream(X))

    def spoiled(problem, state, *, final):
        state, over = advance_stream(problem, state, final=final)
        noise = torch.randn(state.atoms.shape, generator=torch.Generator().manual_seed(0))
        return stream_module.replace(state, atoms=problem.project(noise.double())), over

    monkeypatch.setattr("skpudle._training.fit.advance_stream", spoiled)
    found = make().fit(Stream(X))
    assert found.score(X) == pytest.approx(expected.score(X), abs=0.02)


def test_atoms_without_bias_that_suit_the_sample_alone_are_given_up(X, small_samples, monkeypatch):
    """The sample has a fifth of the rows; rows that are held out tell noise from bias."""
    expected, n_calls = make().fit(Stream(X)), []

    def spoiled(problem, atoms, codes):
        n_calls.append(1)
        noise = torch.randn(atoms.shape, generator=torch.Generator().manual_seed(0))
        return problem.project(noise.double())

    monkeypatch.setattr(fit, "refit_atoms", spoiled)
    found = make().fit(Stream(X))
    assert n_calls
    assert found.score(X) == pytest.approx(expected.score(X), abs=0.002)


def test_rows_prefer_the_atoms_that_they_are_made_of(populations, generator):
    truth = populations[0]
    judges = Problem(rows_of(truth, 100, generator), 0.1)
    noisy = truth + 0.1 * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    noisy /= noisy.norm(dim=1, keepdim=True)
    assert preferred(judges, noisy, truth) is truth
    assert preferred(judges, truth, noisy) is truth


def test_gaps_and_signs_pass(X, populations, small_samples):
    gaps = X.copy()
    gaps[np.random.default_rng(0).random(X.shape) < 0.1] = np.nan
    learner = make().fit(Stream(gaps))
    assert np.mean([share_found(learner.components_, atoms) for atoms in populations]) > 0.9
    positive = make(positive_code=True, positive_dict=True).fit(Stream(np.abs(X)))
    assert (positive.components_ >= 0).all()


def test_a_fit_resumes_at_the_beginning_of_the_pass(X, small_samples, tmp_path, monkeypatch):
    expected, path = make().fit(Stream(X)), tmp_path / "fit.npz"

    def broken(problem, state, *, final):
        raise OSError("disk")

    with monkeypatch.context() as patch:
        patch.setattr("skpudle._training.fit.advance_stream", broken)
        with pytest.raises(OSError, match="disk"):
            make().set_callbacks(Checkpoint(path, every_seconds=1000)).fit(Stream(X))
    found = make().set_callbacks(Checkpoint(path, every_seconds=1000)).fit(Stream(X))
    np.testing.assert_array_equal(found.components_, expected.components_)


@pytest.mark.parametrize("size", [40, 500])
def test_partial_fit_finds_the_atoms_of_fit(size, X, populations):
    """A pickle goes on with the same bits."""
    learner = PUDLEDictionaryLearning(12, random_state=0)
    for start in range(0, 1000, size):
        learner.partial_fit(X[start : start + size])
    other = pickle.loads(pickle.dumps(learner))
    for start in range(1000, 2000, size):
        learner.partial_fit(X[start : start + size])
        other.partial_fit(X[start : start + size])
    np.testing.assert_array_equal(other.components_, learner.components_)
    assert share_found(learner.components_, populations[0]) == 1
    assert learner.n_samples_seen_ == 2000
    assert learner.n_steps_ == 0


def test_partial_fit_after_fit_keeps_what_fit_found(X, populations):
    learner = make().fit(X[:2000])
    for start in range(2000, 4000, 500):
        learner.partial_fit(X[start : start + 500])
    assert share_found(learner.components_, populations[1]) == 1
    assert share_found(learner.components_, populations[0]) > 0.7


@pytest.mark.parametrize("params", [{"gradient": "dec"}, {"optimizer": "adam"}, {"batch_size": 50}])
def test_partial_fit_trains_if_that_is_named(params, X):
    assert make(**params).partial_fit(X[:200]).n_steps_ > 0
