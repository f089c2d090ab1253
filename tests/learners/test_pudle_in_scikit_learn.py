"""What `PUDLEDictionaryLearning` does beyond scikit-learn's own checks of an estimator."""

import copy
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from small import assert_same, make

# ---------------------------------------------------------------------------- bad input

BAD_PARAMETERS = {
    "negative alpha": (dict(alpha=-1.0), "alpha"),
    "one decay in a tuple": (
        dict(lambda_decay=(0.9,)),
        r"lambda_decay=\(0.9,\) .*pair",
    ),
    "optimizer that needs a closure": (dict(optimizer=torch.optim.LBFGS), "closure"),
    "rate twice": (
        dict(optimizer=partial(torch.optim.SGD, lr=0.1)),
        "learning_rate instead",
    ),
    "unknown parameter": (
        dict(optimizer=partial(torch.optim.Adam, momentum=0.9)),
        "momentum",
    ),
    "unknown device": (dict(device="gpu"), r"(?s)Device 'gpu' .* Pass 'auto'"),
    "atoms of other length": (
        dict(dict_init=np.ones((6, 7))),
        r"\(6, 7\), expected .*\(6, 8\)",
    ),
    "other number of atoms": (
        dict(dict_init=np.ones((5, 8))),
        r"\(5, 8\), expected .*\(6, 8\)",
    ),
    "zero atom": (
        dict(dict_init=np.eye(6, 8) - np.eye(1, 8)),
        "dict_init has atoms of zeros",
    ),
    "converged hard codes": (
        dict(n_unfoldings=None, shrinkage="hard"),
        "Converged codes .*shrinkage='hard'.* Pass shrinkage='soft'",
    ),
    "converged codes with decay": (
        dict(transform_algorithm="lasso", lambda_decay=0.9),
        "Converged codes .*lambda_decay=0.9.* Pass .*lambda_decay=1",
    ),
}

NAN, INF = np.eye(8), np.eye(8)
NAN[2, 3], INF[4, 5] = np.nan, np.inf

BAD_DATA = {
    "infinite": (-INF, "infinity"),
    "infinite tensor with a gap": (torch.tensor(INF + NAN), "infinity"),
    "complex tensor": (
        torch.ones(3, 8, dtype=torch.complex64),
        "Complex data not supported",
    ),
    "1-D": (np.ones(8), "Expected 2D array, got 1D array"),
    "words": (np.full((3, 8), "a"), "could not convert string"),
}


@pytest.mark.parametrize(
    ("params", "message"), BAD_PARAMETERS.values(), ids=BAD_PARAMETERS
)
def test_bad_parameters_are_named_and_leave_no_trace(params, message, X):
    """By scikit-learn's convention `partial_fit` validates them at its first call."""
    fitted = make(batch_size=16).fit(X)
    for estimator, method in (
        (make(), "fit"),
        (fitted, "fit"),
        (make(), "partial_fit"),
    ):
        estimator.set_params(**params)
        before = copy.deepcopy(vars(estimator))
        with pytest.raises((ValueError, TypeError), match=message):
            getattr(estimator, method)(X)
        assert_same(vars(estimator), before)


@pytest.mark.parametrize(("rows", "message"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_are_named_and_leave_no_trace(rows, message, X):
    methods = ("fit", "partial_fit", "transform", "score")
    for estimator, method in product((make(), make().fit(X)), methods):
        before = copy.deepcopy(vars(estimator))
        if method in ("transform", "score") and "components_" not in before:
            continue
        with pytest.raises((ValueError, TypeError), match=message):
            getattr(estimator, method)(rows)
        assert_same(vars(estimator), before)


def test_a_wrong_number_of_codes_is_named(X):
    estimator = make(split_sign=True).fit(X)
    with pytest.raises(ValueError, match="Codes have 6 columns, .* returns 12"):
        estimator.inverse_transform(estimator.transform(X)[:, :6])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_and_codes_on_any_device_are_finite(value, device, X):
    """But for NaN in rows, where it marks missing entries."""
    estimator = make().fit(X)
    rows, codes = (torch.full((3, n), value, device=device) for n in (8, 6))
    rows[0, 0] = torch.inf
    for call, wrong in (
        (estimator.transform, rows),
        (estimator.inverse_transform, codes),
    ):
        with pytest.raises(ValueError, match="NaN|infinity"):
            call(wrong)


# ---------------------------------------------------------------------------- scikit-learn


def test_a_data_error_on_the_way_leaves_a_fitted_estimator_as_it_was(X):
    class Breaks:
        def __iter__(self):
            yield from (X[:20, :5], X[20:40, :5], X[40:, :4])

    estimator = make().fit(X)
    before = copy.deepcopy(
        {k: v for k, v in vars(estimator).items() if k.endswith("_")}
    )
    with pytest.raises(ValueError, match=r"(?s)X has 4 features.*In batch 2 of X"):
        estimator.fit(Breaks())
    assert_same({k: v for k, v in vars(estimator).items() if k.endswith("_")}, before)


def test_partial_fit_replaces_atoms_that_are_not_used(X):
    """As `fit` does; after ten samples for each atom, so that small batches say nothing."""
    X[:, -1] = 0
    unused = np.eye(X.shape[1])[-1:]
    learner = make(dict_init=np.vstack([X[:5], unused]), alpha=0.3)
    learner.partial_fit(X[:40])
    np.testing.assert_array_equal(learner.components_[5:], unused)
    learner.partial_fit(X[40:])
    assert learner.components_[5, -1] == 0
