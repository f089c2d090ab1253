"""The boundary between NumPy and torch: nothing is lost, shared by accident, or let through."""

from functools import partial
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from skpudle import (
    ConvPUDLEDictionaryLearning,
    DictionaryImputer,
    PUDLEDictionaryLearning,
    SporcoDictionaryLearning,
)
from skpudle._compilation import blocks_of_rows
from skpudle._data import arrays
from skpudle._data.arrays import mean_square, resolve_device

SMALL = dict(max_iter=2, random_state=0)
LEARNERS = [
    PUDLEDictionaryLearning(4, gradient="ae-ls", n_unfoldings=5, tol=None, **SMALL),
    ConvPUDLEDictionaryLearning(4, atom_shape=2, stride=1, random_state=0),
    pytest.param(
        SporcoDictionaryLearning(4, **SMALL),
        marks=pytest.mark.skipif(find_spec("sporco") is None, reason="needs SPORCO"),
    ),
]


def read_only(array):
    array.flags.writeable = False
    return array


FORMS = {
    "Fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": read_only,
    "tensor": lambda a: torch.tensor(a, requires_grad=True),
    **{name: np.dtype(name).type for name in ("float16", "int8", "int64", "uint8")},
    "foreign": lambda a: a.astype(">f8"),
    "tensor of integers": lambda a: torch.tensor(a).to(torch.uint8),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_numbers_are_learned_from_in_any_form(form):
    """The same bits, and atoms that are independent of the memory of the data."""
    X = np.random.default_rng(0).integers(0, 9, size=(30, 6)).astype(float)
    learner, given = clone(LEARNERS[0]), form(X.copy())
    before = X.copy()
    found, codes = learner.fit(given).components_.copy(), learner.transform(given)
    assert isinstance(codes, torch.Tensor) == isinstance(given, torch.Tensor)
    np.testing.assert_array_equal(given.tolist(), before)
    expected = learner.fit(X)
    np.testing.assert_array_equal(found, expected.components_)
    np.testing.assert_array_equal(np.asarray(codes), expected.transform(X))
    assert codes.dtype in (np.float64, torch.float64)


# ---------------------------------------------------------------------------- devices


def test_auto_follows_a_tensor_or_is_cuda_where_it_is_present(device, monkeypatch):
    assert resolve_device("auto", torch.zeros(2, device=device)).type == device
    for X in (None, np.zeros(2), [[1.0]]):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
        assert resolve_device("auto", X).type == device


# ---------------------------------------------------------------------------- the unit of the data


@pytest.mark.parametrize("n_numbers", [1, 7, 10_000])
def test_the_mean_square_is_that_of_all_rows_at_once(n_numbers, generator, monkeypatch):
    monkeypatch.setattr(
        arrays, "blocks_of_rows", partial(blocks_of_rows, most=n_numbers)
    )
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    assert mean_square(x) == float(x.square().sum(1).mean())


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("unit", [1e-25, 1e20])
def test_data_that_cannot_be_squared_are_refused(unit, learner):
    X = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    learner = clone(learner)
    for method in (
        ["fit", "partial_fit"] if hasattr(learner, "partial_fit") else ["fit"]
    ):
        with pytest.raises(ValueError, match="float32.*scale the data"):
            getattr(learner, method)(X * np.float32(unit))
        assert not hasattr(learner, "components_")
    learner.fit(X.astype(float) * unit)  # float64 has room
    learner.fit(X * np.float32(unit**0.6))


@pytest.mark.parametrize("unit", [2.0**-90, 2.0**70])
def test_what_is_too_small_to_learn_from_has_codes_and_a_score(unit):
    X = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    learner = clone(LEARNERS[0]).fit(X)
    codes, score = learner.transform(X), learner.score(X)
    learner.set_params(transform_alpha=unit * learner.alpha_)
    scaled = X * np.float32(unit)
    np.testing.assert_allclose(
        learner.transform(scaled) / np.float32(unit), codes, atol=1e-5
    )
    assert learner.score(scaled) == pytest.approx(score, rel=1e-5)


DATES = pd.date_range("2020-01-01", periods=12).to_numpy()
OF_DATES = {
    "NaT": np.array([["2020-01-01", "NaT"]] * 6, "M8[D]"),
    "times": DATES.reshape(6, 2) - DATES[0],
    "rows": list(DATES.reshape(6, 2)),
    "frame": pd.DataFrame({"a": 1.0, "when": DATES, "b": DATES - DATES[0]}),
    "dates only": pd.DataFrame({"when": DATES, "until": DATES}),
}


@pytest.mark.parametrize("kind", OF_DATES)
def test_dates_are_no_numbers(kind):
    """Of what unit would they be? NaT would be the smallest integer."""
    for learner in (PUDLEDictionaryLearning(2, random_state=0), DictionaryImputer()):
        with pytest.raises(
            TypeError, match="X has dates or times.* Leave them out, or pass num"
        ):
            learner.fit(OF_DATES[kind])
