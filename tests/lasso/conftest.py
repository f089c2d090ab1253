"""Both solvers of the lasso, on one device."""

from contextlib import contextmanager

import pytest

from skpudle.lasso import _batched, _compiled, _solve


@pytest.fixture(scope="session")
def using():
    """Return a context in which a solver, compiled or batched, solves blocks of 70 rows."""

    @contextmanager
    def use(name):
        chosen = {"batched": _batched, "compiled": _compiled}[name].solve_alike
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_compiled, "solve_alike", chosen)
            patch.setattr(_solve, "rows_of_block", lambda x, n_components: 70)
            yield name

    return use


@pytest.fixture(params=["batched", "compiled"])
def solver(request, using):
    """Use each solver in turn; return its name."""
    with using(request.param) as name:
        yield name
