"""Fixtures that every test may use, and what holds after every test."""

import os
import random
import signal
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import pytest
import torch
from numba.core.dispatcher import Dispatcher

# Reasons of skips that --refuse-skips allows. Whatever else is skipped there is a test that ran
# on no machine: install what it needs, by .ci/run or an extra of pyproject.toml.
ALLOWED_SKIPS = {
    "needs a CUDA device": "machines of CI have none; make gpu tests on one",
    "the processor has no bfloat16": "half of the processors have none",
}


def pytest_addoption(parser):
    """Add the option of CI."""
    parser.addoption(
        "--refuse-skips", action="store_true", help="fail if other tests are skipped"
    )


def pytest_configure():
    """Let workers wait for loops that another one compiles, instead of compiling them too.

    They share the folders in which numba keeps what is compiled, and numba locks none of them.
    """
    if "PYTEST_XDIST_TESTRUNUID" not in os.environ:
        return
    import fcntl

    run, held = os.environ["PYTEST_XDIST_TESTRUNUID"], set()
    compile_one = Dispatcher.compile

    def compile_alone(self, signature):
        module = self.py_func.__module__
        if module in held:  # which calls another function of its own
            return compile_one(self, signature)
        with open(Path(gettempdir(), f"{run}-{module}.lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            held.add(module)
            try:
                return compile_one(self, signature)
            finally:
                held.discard(module)

    Dispatcher.compile = compile_alone


def reason_of(report):
    """Return the reason of a skip, as a test or a module gave it."""
    reason = (
        report.longrepr[2]
        if isinstance(report.longrepr, tuple)
        else str(report.longrepr)
    )
    return reason.removeprefix("Skipped: ")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """Fail with the option if a test was skipped for a reason that is not allowed."""
    if not session.config.getoption("refuse_skips"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    refused = Counter(map(reason_of, skipped)) - Counter(
        dict.fromkeys(ALLOWED_SKIPS, 10**6)
    )
    if refused:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line(
            "\nSkipped, but not in ALLOWED_SKIPS of tests/conftest.py:", red=True
        )
        for reason, n in refused.items():
            reporter.write_line(f"{n} tests: {reason}", red=True)


def cover_pairs(rows):
    """Return the numbers of few rows that hold every pair of values of two columns of all rows."""
    pairs = [{*combinations(enumerate(row), 2)} for row in rows]
    missing, chosen = set().union(*pairs), set()
    while missing:
        best = max(range(len(rows)), key=lambda i: len(pairs[i] & missing))
        missing -= pairs[best]
        chosen.add(best)
    return chosen


def choices_of(item):
    """Return the place of a test in each parametrisation; the arguments of one table are one."""
    tables, chosen = {}, defaultdict(tuple)
    for number, mark in enumerate(item.iter_markers("parametrize")):
        names = mark.args[0]
        names = names.replace(",", " ").split() if isinstance(names, str) else names
        tables |= dict.fromkeys(names, number)
    for name, value in item.callspec.params.items():
        chosen[tables.get(name, name)] += (id(value),)
    return tuple(chosen.values())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Skip what is marked ``gpu`` without a CUDA device, and leave most products to ``slow``.

    A test of three or more parametrisations runs for some of their products, in which each choice
    of one meets each choice of another. The rest of them are marked ``slow``.
    """
    tests = defaultdict(list)
    for item in items:
        on_gpu = item.get_closest_marker("gpu") is not None
        if on_gpu and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if not item.get_closest_marker("slow") and hasattr(item, "callspec"):
            tests[item.path, item.originalname, on_gpu].append(item)
    for products in tests.values():
        rows = [choices_of(item) for item in products]
        if len(rows[0]) > 2:
            for i in {*range(len(rows))} - cover_pairs(rows):
                products[i].add_marker(pytest.mark.slow)


def numpy_random_state():
    state = np.random.get_state(legacy=False)  # noqa: NPY002 (what it watches)
    return state["state"]["key"].tobytes(), state["state"]["pos"], state["has_gauss"]


def global_state():
    """Return all that a library must leave alone, as names and comparable values."""
    return {
        "random state of Python": random.getstate(),
        "random state of numpy": numpy_random_state(),
        "random state of torch": torch.get_rng_state().numpy().tobytes(),
        "numpy error handling": np.geterr(),
        "torch default dtype": torch.get_default_dtype(),
        "torch gradient mode": torch.is_grad_enabled(),
        "torch number of threads": torch.get_num_threads(),
        "torch deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch anomaly detection": torch.is_anomaly_enabled(),
        "torch matmul precision": torch.get_float32_matmul_precision(),
        "torch cudnn benchmark": torch.backends.cudnn.benchmark,
    }


@pytest.fixture(autouse=True)
def global_state_is_left_alone(request):
    """Fail a test that drew from a global random state or changed a global setting.

    Only ``random_state=None`` reads numpy's global state, by scikit-learn's convention. Its
    estimator checks use that, and one of them permutes with it: mark such tests
    ``draws_from_numpy``.
    """
    before = global_state()
    yield
    after = global_state()
    if request.node.get_closest_marker("draws_from_numpy"):
        del before["random state of numpy"]
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"The test changed global state: {', '.join(changed)}."


@pytest.fixture
def handler():
    """Install Python's handler, for a shell lets background jobs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Name each device in turn; the CUDA half is skipped where there is none."""
    return request.param


@pytest.fixture
def generator():
    """Return a seeded generator of torch, on the CPU."""
    return torch.Generator().manual_seed(0)
