"""Data that are not held in memory give what an array gives, and are read a part at a time."""

import itertools
import os
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from scipy import sparse
from sklearn.base import BaseEstimator, clone
from small import Batches, Table, learner_of
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from skpudle import CountDictionaryLearning, PUDLEDictionaryLearning
from skpudle._data import sources
from skpudle._data.arrays import with_gaps
from skpudle._data.sources import Samples, open_source
from skpudle._learners import transformer
from skpudle.inspection import atom_contributions, reconstruction_contributions

CPU = torch.device("cpu")


class Given(Batches):
    """Batches as they are."""

    def __init__(self, parts):
        self.parts = parts


class Streamed(Given, IterableDataset):
    """Samples one by one."""


class Numbered(Dataset):
    """Rows by number."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row]


def labelled(X):
    """Return a dataset of NumPy rows that come with a label."""
    return Numbered([*zip(X, range(len(X)))])


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32)


@pytest.fixture
def memory_map(X, tmp_path):
    np.save(tmp_path / "X.npy", X)
    return np.load(tmp_path / "X.npy", mmap_mode="r")


@pytest.fixture
def small_windows(monkeypatch):
    """Maps of 70 rows are large: blocks of 4 rows, windows of 5 blocks."""
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 4 * 8 * 6)
    monkeypatch.setattr(sources, "_WINDOW_BYTES", 20 * 8 * 6)


FIXED = dict(
    n_unfoldings=5,
    max_iter=3,
    tol=None,
    batch_size=16,
    random_state=0,
    dict_init="data",
)


def make_learner(**params):
    return PUDLEDictionaryLearning(8, **dict(optimizer="adam") | FIXED | params)


def make_learner_of_counts(**params):
    return CountDictionaryLearning(8, **FIXED | params)


def opened(X, **checks):
    return open_source(X).read_for(BaseEstimator(), CPU, **checks)


# ---------------------------------------------------------------------------- same as an array


STREAMS = {
    "iterable": Batches,
    "loader": lambda X: DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=16),
    "iterable dataset": lambda X: Streamed(torch.from_numpy(X)),
}


class Tensors(Numbered):
    """A dataset of tensors that are made where torch makes them by default."""

    def __getitem__(self, row):
        return torch.tensor(self.rows[row])


@pytest.mark.parametrize(
    "wrap", [np.asarray, labelled, Tensors, STREAMS["iterable dataset"]]
)
def test_the_default_device_of_torch_does_not_matter(wrap, X):
    """Nothing is made there: on the device "meta" numbers do not exist."""
    expected = make_learner(device="cpu").fit(wrap(X))
    with torch.device("meta"):
        found = make_learner(device="cpu").fit(wrap(X))
        codes, score = found.transform(wrap(X)), found.score(wrap(X))
        assert torch.empty(0).device.type == "meta"
    assert score == expected.score(wrap(X))
    assert_array_equal(found.components_, expected.components_)
    assert_array_equal(codes, expected.transform(wrap(X)))


SOURCES = STREAMS | {
    "dataset": labelled,
    "dataset of tensors": lambda X: TensorDataset(torch.from_numpy(X)),
    "map": lambda X: np.load("X.npy", mmap_mode="r"),
}
SAME_AS_ARRAYS = [
    *zip(SOURCES, itertools.cycle([make_learner, make_learner_of_counts]))
]


@pytest.mark.parametrize(("name", "make"), SAME_AS_ARRAYS)
def test_samples_with_gaps_that_replace_atoms_are_those_of_an_array(
    name, make, X, small_windows, tmp_path, monkeypatch
):
    """Whatever is read at a time; a missing entry says nothing in favour of the atom."""
    X = np.floor(np.abs(3 * X)) + 2
    X[np.random.default_rng(1).random(X.shape) < 0.2] = np.nan
    np.save(tmp_path / "X.npy", X)
    monkeypatch.chdir(tmp_path)
    params = dict(dict_init=np.eye(6), alpha=1e3)
    state = torch.get_rng_state()
    expected, found = (
        make(**params).set_params(n_components=6).partial_fit(data)
        for data in (X, SOURCES[name](X))
    )
    torch.set_rng_state(state)
    assert (expected.components_ == 0).any()
    assert not np.allclose(expected.components_, np.eye(6))
    np.testing.assert_allclose(
        found.components_, expected.components_, rtol=0, atol=1e-6
    )


# ---------------------------------------------------------------------------- a large memory map


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("kind", ["map", "array"])
def test_an_epoch_visits_every_row_once(
    kind, batch_size, shuffle, X, memory_map, small_windows, generator
):
    source = opened(memory_map) if kind == "map" else Samples(torch.from_numpy(X))
    source = sources.Batches(source, batch_size, generator if shuffle else None)
    parts = list(source.batches())
    assert [len(b.x) for b in parts[:-1]] == [min(batch_size, 70)] * (len(parts) - 1)
    assert len(parts) == source.n_batches
    seen = torch.cat([b.x for b in parts]).numpy()
    places = (seen[:, None] == X).all(2).nonzero()[1]
    assert_array_equal(np.sort(places), np.arange(70))
    # one batch has no order
    is_shuffled = shuffle and (kind == "map" or batch_size < 70)
    assert np.array_equal(places, np.arange(70)) is not is_shuffled


class Watched(np.memmap):
    """A memory map that notes which parts of it are asked for."""

    def __getitem__(self, key):
        self.asked.append(key)
        return super().__getitem__(key).view(np.ndarray)


def test_a_map_is_read_by_contiguous_blocks(memory_map, small_windows):
    data = memory_map.view(Watched)
    data.asked = []
    learner = make_learner().fit(data)
    assert learner.n_steps_ == 15
    assert all(isinstance(key, slice) and key.step is None for key in data.asked)
    assert max(key.stop - key.start for key in data.asked) <= 4


@pytest.mark.parametrize("chunk", [1, 10, 60])
def test_a_sample_of_a_table_is_proportional_to_its_parts(
    chunk, generator, monkeypatch
):
    """Sorted rows, a tenth of them of another population: regular parts have one place each."""
    monkeypatch.setattr(sources, "_LEAST_SAMPLE", 100)
    monkeypatch.setattr(sources, "_ROWS_OF_AN_ATOM", 1)
    monkeypatch.setattr(sources, "_POSITIONS", 50)
    data = np.arange(1000.0)[:, None] * np.ones((1, 3))
    source = sources.Table(data, data.shape)
    source._chunk = chunk
    sample = source.read_for(BaseEstimator(), CPU).sample(3, 0).x[:, 0]
    assert len(sample) == 100
    assert len(sample.unique()) == 100
    assert (sample < 100).sum() == 10
    assert torch.equal(sample, sample.sort().values)


def test_a_reservoir_holds_each_row_of_a_stream_as_often(monkeypatch):
    """Of 2,000 rows 100 are kept: 2,000 draws hold each of the first rows about 100 times."""
    monkeypatch.setattr(sources, "_LEAST_SAMPLE", 100)
    monkeypatch.setattr(sources, "_ROWS_OF_AN_ATOM", 1)
    X, counts = np.arange(2000.0)[:, None], np.zeros(2000)
    for seed in range(300):
        source = opened(Batches(X, 170))
        kept = source.sample(1, seed).x[:, 0].long().numpy()
        assert len(np.unique(kept)) == 100
        counts[kept] += 1
    assert source.n_samples == 2000
    thirds = np.array([part.sum() for part in np.array_split(counts, 4)])
    assert np.abs(thirds / thirds.mean() - 1).max() < 0.05


def test_a_first_part_of_a_stream_needs_no_pass_over_all(X, monkeypatch):
    monkeypatch.setattr(sources, "_FIRST_ROWS", 20)
    source = opened(Batches(X))
    assert len(source.sample(8, 0, whole=False)) == 32
    source.sample(8, 0)
    assert source.n_samples == 70
    learner = PUDLEDictionaryLearning(3, random_state=0).partial_fit(Batches(X))
    assert learner.n_samples_seen_ == 70


@pytest.mark.parametrize("size", [7, 16, 40, 100])
def test_blocks_of_a_stream_are_its_rows(size, X):
    X[3, 2] = X[40, 1] = np.nan
    source = opened(Batches(X), allow_nan=True)
    source.sample(8, 0)
    blocks = list(source.blocks(size, None))
    assert [len(block.x) for block in blocks[:-1]] == [min(size, 70)] * (
        len(blocks) - 1
    )
    rows = [with_gaps(block.x, block.mask) for block in blocks]
    assert_array_equal(torch.cat(rows), X)


# ---------------------------------------------------------------------------- any table


def of_hdf5(X):
    h5py = pytest.importorskip("h5py")
    file = h5py.File("X.h5", "w")
    return file.create_dataset("X", data=X, chunks=(7, X.shape[1]))


def of_zarr(X):
    return pytest.importorskip("zarr").array(X, chunks=(7, X.shape[1]))


def of_dask(X):
    return pytest.importorskip("dask.array").from_array(X, chunks=(7, 4)) + 0


def of_safetensors(X):
    pytest.importorskip("safetensors.numpy").save_file({"X": X}, "X.safetensors")
    return (
        pytest.importorskip("safetensors")
        .safe_open("X.safetensors", "np")
        .get_slice("X")
    )


def of_hugging_face(X):
    data = pytest.importorskip("datasets").Dataset.from_dict(
        {"x": X, "label": range(len(X))}
    )
    return data.with_format("numpy")


TABLES = {
    "hdf5": of_hdf5,
    "zarr": of_zarr,
    "dask": of_dask,
    "safetensors": of_safetensors,
    "hugging face": of_hugging_face,
}
HOLDERS = (SOURCES | TABLES) | {
    "numbered": Numbered,
    "dictionaries": lambda X: Numbered([{"x": row, "label": 1} for row in X]),
    "csr": sparse.csr_array,
    "csc": sparse.csc_matrix,
    "triples": sparse.coo_array,
    "sparse batches": lambda X: Given(
        [sparse.csr_array(rows) for rows in Batches(X).parts]
    ),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_what_holds_rows_gives_what_their_array_gives(kind, X, tmp_path, monkeypatch):
    """Small tables are read at once, and give its bits; streams in their order."""
    monkeypatch.chdir(tmp_path)
    X[X < 0.5] = 0
    np.save("X.npy", X)
    data, learner = HOLDERS[kind](X), make_learner().fit(X)
    state, begun = torch.get_rng_state(), make_learner().partial_fit(X)
    found = make_learner().partial_fit(data)
    assert_array_equal(found.components_, begun.components_)
    is_stream = kind in (*STREAMS, "sparse batches")
    fitted = make_learner(max_iter=1 if is_stream else 3).fit(data)
    assert_array_equal(
        fitted.components_, (begun if is_stream else learner).components_
    )
    assert fitted.n_samples_seen_ == 70
    assert fitted.n_steps_ == (5 if is_stream else learner.n_steps_)
    codes = learner.transform(X)
    np.testing.assert_allclose(learner.transform(data), codes, atol=1e-6)
    monkeypatch.setattr(transformer, "PART", 16)
    stored = learner.transform_sparse(data)
    np.testing.assert_allclose(stored.toarray(), codes, atol=1e-6)
    assert (stored.format, stored.nnz) == ("csr", np.count_nonzero(codes))
    assert learner.score(data) == pytest.approx(learner.score(X), rel=1e-5)
    np.save("X.npy", codes)
    os.remove("X.h5") if kind == "hdf5" else None
    back = learner.inverse_transform(HOLDERS[kind](codes))
    np.testing.assert_allclose(back, learner.inverse_transform(codes), atol=1e-6)
    torch.set_rng_state(state)  # a loader draws from it; that is its owner's choice


@pytest.mark.parametrize(
    "kind", ["map", "numbered", "dataset of tensors", "csr", "triples"]
)
def test_exposures_go_with_their_rows_whatever_holds_them(
    kind, small_windows, tmp_path, monkeypatch
):
    """In training, in codes and in scores; of a table also in windows of shuffled blocks."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    X, exposure = rng.poisson(3.0, (70, 6)).astype(float), rng.uniform(1, 5, 70)
    np.save("X.npy", X)
    data = HOLDERS[kind](X)
    expected = make_learner_of_counts(batch_size=70).fit(X, exposure=exposure)
    found = make_learner_of_counts(batch_size=70).fit(data, exposure=exposure)
    np.testing.assert_allclose(found.loss_curve_, expected.loss_curve_, rtol=1e-9)
    np.testing.assert_allclose(
        found.components_, expected.components_, rtol=0, atol=1e-9
    )
    codes = expected.transform(X, exposure=exposure)
    assert (codes != expected.transform(X)).any()
    monkeypatch.setattr(transformer, "PART", 16)
    np.testing.assert_allclose(
        expected.transform(data, exposure=exposure), codes, atol=1e-9
    )
    stored = expected.transform_sparse(data, exposure=exposure)
    np.testing.assert_allclose(stored.toarray(), codes, atol=1e-9)
    score = expected.score(X, exposure=exposure)
    assert expected.score(data, exposure=exposure) == pytest.approx(score, rel=1e-9)


@pytest.mark.parametrize("stream", ["iterable", "loader"])
def test_batches_have_no_number_for_each_row(stream, X):
    """Also not if a length tells how many batches there are."""
    data, numbers = STREAMS[stream](X), np.ones(5)
    with pytest.raises(TypeError, match="numbered rows.* sample_weight .* partial_fit"):
        make_learner().fit(data, sample_weight=numbers)
    with pytest.raises(TypeError, match="numbered rows.* exposure.* partial_fit"):
        make_learner_of_counts().fit(data, exposure=numbers)


@pytest.mark.parametrize("kind", TABLES)
def test_a_large_table_is_learned_from_as_a_map(kind, X, memory_map, small_windows, monkeypatch,
                                                tmp_path):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 7 * 8 * 6)
    monkeypatch.setattr(sources, "_WINDOW_BYTES", 21 * 8 * 6)
    data, learner = TABLES[kind](X), make_learner().fit(memory_map)
    found = make_learner().fit(data)
    np.testing.assert_allclose(found.components_, learner.components_, atol=1e-6)
    assert found.n_samples_seen_ == 70
    np.testing.assert_allclose(learner.transform(data), learner.transform(X), atol=1e-6)
    assert learner.score(data) == pytest.approx(learner.score(X), rel=1e-5)


def test_rows_with_several_arrays_are_refused(X):
    with pytest.raises(ValueError, match=r"2 arrays, \['x', 'y'\].*select_columns"):
        make_learner().fit(Numbered([{"x": row, "y": row} for row in X]))


# ---------------------------------------------------------------------------- memory of the user


class Reused(Given):
    """Batches in one buffer, each written over the one before."""

    def __init__(self, X, as_batch):
        super().__init__(Batches(X).parts)
        self.buffer, self.as_batch = np.empty_like(X[:16]), as_batch

    def __iter__(self):
        for part in self.parts:
            self.buffer[: len(part)] = part
            yield self.as_batch(self.buffer[: len(part)])
        self.buffer[:] = np.nan


STREAMED = (
    "search",
    "dec",
    "surrogate",
    "encoder",
    "noodl",
    "poisson",
    "counts that add",
)


@pytest.mark.filterwarnings("ignore:.*no effect")
@pytest.mark.parametrize(
    ("name", "as_batch"),
    [*zip(STREAMED, itertools.cycle([np.asarray, torch.from_numpy]))],
)
def test_a_stream_may_yield_one_buffer_again_and_again(name, as_batch, X):
    X = np.rint(np.abs(3 * X)) if name in ("poisson", "counts that add") else X

    def stream(X):
        return Reused(X, as_batch)

    for method in ("fit",) if name == "counts that add" else ("fit", "partial_fit"):
        found, expected = (
            getattr(learner_of(name, 8), method)(data)
            for data in (stream(X), Batches(X))
        )
        assert_array_equal(found.components_, expected.components_)
        # products of six rows round in another order than those of all rows
        codes = found.transform(stream(X)), expected.transform(X)
        np.testing.assert_allclose(*codes, rtol=0, atol=1e-6 * np.abs(codes[1]).max())
        assert found.score(stream(X)) == expected.score(Batches(X))


@pytest.mark.parametrize("name", ["search", "surrogate", "classifier", "regressor"])
def test_partial_fit_keeps_nothing_of_the_memory_of_its_rows(name):
    X = np.random.default_rng(0).normal(size=(3, 12, 6))
    given = dict(y=np.arange(12) % 2) if name in ("classifier", "regressor") else {}
    given |= dict(classes=[0, 1]) if name == "classifier" else {}
    found, expected, buffer = (
        learner_of(name, 4),
        learner_of(name, 4),
        np.empty_like(X[0]),
    )
    for part in X:
        expected.partial_fit(part.copy(), **given)
        buffer[:] = part
        found.partial_fit(buffer, **given)
        buffer[:] = np.nan
    assert_array_equal(found.components_, expected.components_)
    assert_array_equal(found.transform(X[0]), expected.transform(X[0]))


class TensorTable(Table):
    """Slices of a table as tensors that share the memory of one buffer."""

    def __getitem__(self, rows):
        self.buffer = getattr(self, "buffer", torch.empty_like(self.array))
        return self.buffer[: len(self.array[rows])].copy_(self.array[rows])


def test_a_table_may_return_one_buffer_again_and_again(X, memory_map, small_windows):
    learner, found = (
        make_learner().fit(memory_map),
        make_learner().fit(TensorTable(torch.tensor(X))),
    )
    assert_array_equal(found.components_, learner.components_)


# ---------------------------------------------------------------------------- lengths and orders


@pytest.mark.parametrize(
    "learner", [make_learner(), PUDLEDictionaryLearning(8, random_state=0)]
)
def test_a_length_that_is_too_large_changes_nothing(learner, X):
    """Neither the rows of an epoch nor the number of epochs."""
    parts = Batches(X).parts
    for params in (
        dict(),
        dict(lambda_decay=(1.0, 0.8), gradient="ae-ls", n_unfoldings=3),
    ):
        learner = clone(learner).set_params(max_iter=10, tol=None, **params)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parameters without effect
            found = clone(learner).fit(Sized(parts, 70))
            expected = clone(learner).fit(Given(parts))
        assert_array_equal(found.components_, expected.components_)
        assert found.lambda_decay_ == expected.lambda_decay_
        assert found.n_samples_seen_ == 70


class Shrinking(Table):
    """A table that is cut after some slices."""

    def __init__(self, X, n_whole):
        super().__init__(X)
        self.n_whole = n_whole

    def __getitem__(self, rows):
        self.n_whole -= 1
        return self.array[rows] if self.n_whole >= 0 else self.array[rows][:1]


def test_a_table_that_gets_shorter_is_refused(X, small_windows, monkeypatch):
    monkeypatch.setattr(transformer, "PART", 16)
    learner = PUDLEDictionaryLearning(8, random_state=0).fit(X)
    for method in (
        "transform",
        "transform_sparse",
        "score",
        "choose_alpha",
        "partial_fit",
        "fit",
    ):
        for n_whole in (0, 2):
            with pytest.raises(
                ValueError, match="Rows .* a Shrinking, are 1 rows. Pass a table"
            ):
                getattr(learner, method)(Shrinking(X, n_whole))


def shuffled(X, **options):
    return DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=16, **options)


RANDOM = {
    "shuffle": dict(shuffle=True),
    "subset": dict(sampler=SubsetRandomSampler(range(70))),
    "weighted": dict(sampler=WeightedRandomSampler([1.0] * 70, 70)),
    "distributed": dict(sampler=DistributedSampler(range(70), num_replicas=1, rank=0)),
}
BY_ROW = {
    "transform": lambda learner, X: learner.transform(X),
    "transform_sparse": lambda learner, X: learner.transform_sparse(X),
    "fit_transform": lambda learner, X: clone(learner).fit_transform(X),
    "atom_contributions": atom_contributions,
    "contributions of loader": lambda learner, X: reconstruction_contributions(
        learner, X, X
    ),
}


@pytest.mark.parametrize(("name", "how"), [*zip(BY_ROW, itertools.cycle(RANDOM))])
def test_rows_in_an_order_that_nobody_knows_have_no_results_by_row(name, how, X):
    learner = make_learner().fit(X)
    state = torch.get_rng_state()
    with pytest.raises(
        ValueError, match="random order, by a .*Sampler.* Pass one with shuffle=F"
    ):
        BY_ROW[name](learner, shuffled(X, **RANDOM[how]))
    in_order = DistributedSampler(range(70), num_replicas=1, rank=0, shuffle=False)
    for options in (dict(), dict(sampler=in_order)):
        BY_ROW[name](learner, shuffled(X, **options))
    torch.set_rng_state(state)


# ---------------------------------------------------------------------------- errors


def test_what_can_be_iterated_only_once_is_refused(X):
    with pytest.raises(TypeError, match="iterated only once.*partial_fit"):
        make_learner().fit(part for part in [X])


def test_a_stream_that_ends_for_good_is_refused(X):
    class Once:
        def __init__(self):
            self.rest = iter(np.split(X, 7))

        def __iter__(self):
            return self.rest

    with pytest.raises(ValueError, match="yields no batch.* anew in every iteration"):
        make_learner().fit(Once())


@pytest.mark.parametrize(
    "wrap", [labelled, lambda X: TensorDataset(torch.from_numpy(X)), Given]
)
def test_what_has_no_samples_is_refused(wrap, X):
    for method in ("fit", "transform", "score"):
        learner = make_learner().fit(X)
        with pytest.raises((IndexError, ValueError), match="yields no batch|index"):
            getattr(learner, method)(wrap(X[:0]))


class Sized(Given):
    """Batches that say how many they are."""

    def __init__(self, parts, n_batches):
        super().__init__(parts)
        self.n_batches = n_batches

    def __len__(self):
        return self.n_batches


class SizedEndless(Sized):
    """Batches without an end, so many of which are an epoch, like those of a simulation."""

    def __iter__(self):
        return itertools.cycle(self.parts)


def test_an_endless_stream_says_how_long_an_epoch_is(X):
    with pytest.warns(UserWarning, match="length 5 and yields more batches.*__len__"):
        learner = make_learner(max_iter=3).fit(SizedEndless([X], 5))
    assert learner.n_steps_ == 3 * -(-5 * 70 // 16)


BAD = {
    "infinity": lambda rows: np.full_like(rows, np.inf),
    "other features": lambda rows: rows[:, :5],
    "one sample": lambda rows: rows[0],
    "text": lambda rows: "text",
    "rows of several lengths": lambda rows: [[1.0], [1.0, 2.0]],
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_a_bad_batch_is_named_whatever_it_is(spoil, X):
    stream = Given([X, X, spoil(X)])
    learner = make_learner()
    for method in ("fit", "partial_fit", "transform", "transform_sparse", "score"):
        if method == "transform":
            learner.fit(X)
        with pytest.raises((ValueError, TypeError), match="In batch 2 of X"):
            getattr(learner, method)(stream)


# ---------------------------------------------------------------------------- transform


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_the_score_of_a_stream_with_gaps_is_that_of_its_rows(stream, X):
    """Rows of one part are unlike those of another: means are those of all."""
    X = X + np.linspace(-3, 3, len(X), dtype=np.float32)[:, None]
    X[:, 4] = 0.1
    X[np.random.default_rng(0).random(X.shape) < 0.1] = np.nan
    X[:16, 2] = np.nan
    learner = make_learner().fit(X)
    state = torch.get_rng_state()
    assert learner.score(stream(X)) == pytest.approx(learner.score(X), rel=1e-5)
    constant = np.where(np.isnan(X), X, np.float32(0.1))
    assert learner.score(stream(constant)) == 0.0
    torch.set_rng_state(state)


def test_rows_go_to_the_device_chunk_by_chunk(X, monkeypatch):
    """All of them may be too many for it: "meta" stands for a GPU without memory."""
    learner = make_learner().fit(X)
    monkeypatch.setattr(
        transformer.arrays, "resolve_device", lambda *_, **__: torch.device("meta")
    )
    monkeypatch.setattr(transformer, "chunk_size", lambda *_: 30)
    moved, move = [], Samples.to
    monkeypatch.setattr(
        Samples, "to", lambda part, *to: moved.append(len(part)) or move(part, *to)
    )
    chunks = learner._chunks(open_source(np.where(X > 1, np.nan, X)))
    assert [part.mask.device.type for part, _ in chunks] == ["meta"] * 3
    assert moved == [30, 30, 10]
