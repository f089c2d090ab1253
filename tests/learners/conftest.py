"""Fixtures of the tests of learners."""

import pytest
from small import GRADIENTS, VARIANTS, make_data


@pytest.fixture
def X():
    return make_data()[0]


@pytest.fixture
def atoms():
    return make_data()[1]


@pytest.fixture(params=GRADIENTS)
def gradient(request):
    return request.param


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def variant(request):
    return request.param
