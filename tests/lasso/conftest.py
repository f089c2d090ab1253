"""Both solvers."""

import pytest


@pytest.fixture(params=["batched", "compiled"])
def solver(request):
    return request.param
