import numba
import pytest
import torch
from numba.core import caching

from skpudle import PUDLEClassifier, PUDLEDictionaryLearning
from skpudle import _compilation as compilation
from skpudle._compilation import Loops, in_parts, threads_for

# atoms, data
LITTLE, MUCH = [(torch.zeros(n, 10), torch.zeros(n, 10)) for n in (100, 2000)]


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_what_a_part_raises_is_raised(n_threads):
    def fail(first, last):
        if last == 40:
            raise KeyError(first)

    with pytest.raises(KeyError):
        in_parts(fail, 40, 1)


def test_the_work_of_a_call_chooses_one_thread_or_all(n_threads):
    with threads_for(*LITTLE):
        assert torch.get_num_threads() == 1
        with threads_for(*MUCH):
            assert torch.get_num_threads() == n_threads
            with threads_for(*LITTLE):
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == n_threads
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == n_threads


@pytest.mark.parametrize("n_threads", [3], indirect=True)
@pytest.mark.parametrize("kind", [PUDLEDictionaryLearning, PUDLEClassifier])
def test_a_small_fit_and_its_codes_take_one_thread_and_give_the_others_back(
    kind, n_threads, monkeypatch
):
    learner = kind(5, n_unfoldings=3, max_iter=2, tol=None, random_state=0)
    X = torch.randn(
        60, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).numpy()
    seen, product = set(), torch.Tensor.__matmul__

    def watched(self, other):
        seen.add(torch.get_num_threads())
        return product(self, other)

    y = {"y": X[:, 0] > 0} if isinstance(learner, PUDLEClassifier) else {}
    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    learner.fit(X, **y)
    assert seen == {1}
    learner.transform(X)
    assert torch.get_num_threads() == n_threads


def loop_of(module, body):  # -> compiled function, as if of a module
    scope = {"__name__": module}
    exec(f"def loop(x):\n    {body}", scope)
    return Loops(scope).loop


@pytest.fixture
def uncached(monkeypatch):
    """No folder can keep compiled functions, and none has been compiled before."""
    compile_one = numba.njit

    def compile_without_folder(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_one(*args, **options)

    def find_no_folder(function):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(caching, "FunctionCache", find_no_folder)
    monkeypatch.setattr(numba, "njit", compile_without_folder)
    compilation._watch_compilation.cache_clear()


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """An empty folder is to keep compiled functions."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


compiles = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")


@compiles
def test_the_log_says_that_every_process_compiles_if_no_folder_is_writable(
    uncached, caplog
):
    loop = loop_of("skpudle.nowhere", "return x + 1")
    assert loop(1) == 2
    assert "If each process says so, no folder could keep them" in caplog.messages[-1]


@compiles
def test_one_process_of_a_machine_announces_compilation(empty_cache, caplog):
    for _ in range(2):  # each new watch stands for a process
        compilation._watch_compilation.cache_clear()
        assert loop_of("skpudle.nowhere", "return x + 1")(1) == 2
        assert len(caplog.messages) == 1
    assert len(list(empty_cache.rglob("announced-*"))) == 1
