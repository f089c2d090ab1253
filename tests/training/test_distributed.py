"""Two processes learn what one learns from the rows of both."""

import subprocess
import sys

import numpy as np
import pytest
import torch.distributed as dist

from skpudle import PUDLEDictionaryLearning, data_parallel

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed"),
]

# What one process and each of two run: fits of "rows", its share of them, and wrong calls.
FITS = """
import sys, warnings
import numpy as np
from skpudle import (
    Checkpoint, ConvPUDLEDictionaryLearning, PoissonNMF, PUDLEDictionaryLearning, data_parallel,
)

warnings.simplefilter("ignore")


def make_rows():
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(12, 16))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = rng.normal(size=(600, 12)) * (rng.random((600, 12)) < 0.2)
    return codes @ atoms + 0.02 * rng.normal(size=(600, 16)), atoms


def fit_all(share):
    X, weight = make_rows()[0], (np.arange(600) % 3)[share]
    first, X = X[:12].tolist(), X[share]  # weighted rows are sorted, so initial atoms would differ
    trained = dict(gradient="ae-ls", n_unfoldings=5, batch_size=600, max_iter=5, tol=None)
    trained |= dict(dict_init="data", random_state=0)
    learners = {
        "adam": PUDLEDictionaryLearning(40, **trained).fit(X),
        "surrogate": PUDLEDictionaryLearning(12, **trained, optimizer="surrogate").fit(X),
        "weights": PUDLEDictionaryLearning(12, **trained | {"dict_init": first}).fit(
            X, sample_weight=weight
        ),
        "search": PUDLEDictionaryLearning(12, random_state=0).fit(X),
        "named penalty": PUDLEDictionaryLearning(12, alpha=0.1, random_state=0).fit(X),
    }
    found = {name: learner.components_ for name, learner in learners.items()}
    search = learners["search"]
    return found | {"codes": [search.alpha_, search.debias_, search.noise_std_]}
"""
TWO = """
def error_of(function):
    try:
        function()
    except ValueError as error:
        return str(error)


with data_parallel(timeout=240) as team:
    rank, half = team.rank, np.array_split(np.arange(600), team.size)[team.rank]
    found = fit_all(half)
    X = make_rows()[0][half]
    uneven = X[:20] if rank else X
    learner = PUDLEDictionaryLearning(8, gradient="dec", batch_size=16, max_iter=2, tol=None)
    found["uneven"] = learner.fit(uneven).components_  # of a seed that they have to agree on
    for n in 1, 4:
        search = PUDLEDictionaryLearning(12, random_state=0).fit(X[:n] if rank else X)
        found[f"{n // 4} rows are held out"] = search.components_
    errors = {
        "ConvPUDLEDictionaryLearning": lambda: ConvPUDLEDictionaryLearning().fit(X),
        "PoissonNMF": lambda: PoissonNMF(2).fit(X),
        "partial_fit": lambda: learner.partial_fit(X),
        "choose_alpha": lambda: learner.choose_alpha(X),
        "Checkpoint": lambda: learner.set_callbacks(Checkpoint("no.npz")).fit(X),
    }
    errors = {name: error_of(function) for name, function in errors.items()}
    np.savez(f"{sys.argv[1]}/{rank}.npz", **found)
    np.savez(f"{sys.argv[1]}/errors-{rank}.npz", **errors)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Return what each of two processes learned and was refused."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "fit.py").write_text(FITS + TWO)
    options = ["--standalone", "--nproc-per-node=2", folder / "fit.py", folder]
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return [
        dict(np.load(folder / f"{name}.npz"))
        for name in ("0", "1", "errors-0", "errors-1")
    ]


def test_two_processes_learn_what_one_learns(two):
    namespace = {}
    exec(FITS, namespace)
    alone, truth = namespace["fit_all"](slice(None)), namespace["make_rows"]()[1]
    for name, components in two[0].items():
        np.testing.assert_array_equal(two[1][name], components)
    for name in ("adam", "surrogate", "weights"):
        np.testing.assert_allclose(two[0][name], alone[name], rtol=1e-6, atol=1e-8)
    for name in ("search", "named penalty"):  # begin with other rows: in another order
        cosines = np.abs(two[0][name] @ alone[name].T).max(1)
        np.testing.assert_allclose(cosines, 1, rtol=0, atol=1e-4)
        assert np.abs(truth @ two[0][name].T).max(1).min() > 0.999


def test_what_is_no_sum_is_refused(two):
    for errors in two[2:]:
        for name, error in errors.items():
            assert f"{name} runs in one process. Call it outside" in str(error)


@pytest.fixture
def alone(tmp_path):
    """Make a group of this process alone."""
    options = dict(init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    dist.init_process_group("gloo", **options)
    yield
    dist.destroy_process_group()


def test_a_group_of_one_learns_the_same(alone):
    X = np.random.default_rng(0).normal(size=(96, 6))
    learner = PUDLEDictionaryLearning(
        8, gradient="ae-ls", n_unfoldings=5, batch_size=16, max_iter=3, random_state=0
    )
    expected = learner.fit(X).components_
    with data_parallel() as team:
        assert (team.rank, team.size) == (0, 1)
        np.testing.assert_allclose(
            learner.fit(X).components_, expected, rtol=1e-10, atol=1e-12
        )
    assert dist.is_initialized()  # what was there before stays there


def test_processes_have_to_be_started_together(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="RANK expected, but not set"), data_parallel():
        pass
