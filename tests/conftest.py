"""Fixtures that every test may use, and what holds after every test."""

import random
import signal
from collections import Counter

import numpy as np
import pytest
import torch

# Reasons of skips that --refuse-skips allows. Whatever else is skipped there is a test that ran
# on no machine: install what it needs, by .ci/run or an extra of pyproject.toml.
ALLOWED_SKIPS = {
    "needs a CUDA device": "machines of CI have none; make gpu tests on one",
    "the processor has no bfloat16": "half of the processors have none",
}


def pytest_addoption(parser):
    """Add the option of CI."""
    parser.addoption("--refuse-skips", action="store_true", help="fail if other tests are skipped")


def reason_of(report):
    """Return the reason of a skip, as a test or a module gave it."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """Fail with the option if a test was skipped for a reason that is not allowed."""
    if not session.config.getoption("refuse_skips"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    refused = Counter(map(reason_of, skipped)) - Counter(dict.fromkeys(ALLOWED_SKIPS, 10**6))
    if refused:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line("\nSkipped, but not in ALLOWED_SKIPS of tests/conftest.py:", red=True)
        for reason, n in refused.items():
            reporter.write_line(f"{n} tests: {reason}", red=True)


def pytest_collection_modifyitems(items):
    """Skip what is marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


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


@pytest.fixture
def python_draws():
    """Restore Python's random state, for packages that draw from it."""
    state = random.getstate()
    yield
    random.setstate(state)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Name each device in turn; the CUDA half is skipped where there is none."""
    return request.param


@pytest.fixture
def generator():
    """Return a seeded generator of torch, on the CPU."""
    return torch.Generator().manual_seed(0)
