"""Fixtures of tests of training."""

import pytest

from skpudle._data import sources


@pytest.fixture
def in_samples(monkeypatch):
    """Let searches look at 300 rows of a table or stream, and wait for no disk."""
    monkeypatch.setattr("os.fsync", lambda file: None)
    for name in ("_LEAST_SAMPLE", "_ROWS_OF_AN_ATOM", "_LEAST_ROWS_OF_AN_ATOM"):
        monkeypatch.setattr(sources, name, 300 if name == "_LEAST_SAMPLE" else 1)
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
