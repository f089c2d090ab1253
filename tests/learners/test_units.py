"""The unit of the data is the unit of penalties, noise and codes, and nothing else has one."""

from functools import partial
from itertools import cycle

import numpy as np
import pytest
from sklearn.base import clone
from small import KINDS, learner_of, make_data

from skpudle import ConvPUDLEDictionaryLearning

# their data are counts, or they name a number in the unit of the data
WITHOUT = "poisson", "binomial", "counts that add", "noodl", "omp to a tolerance"
LEARNERS = {name: learner_of(name) for name in KINDS if name not in WITHOUT}
LEARNERS |= {
    "number of atoms": learner_of("search", "auto"),
    "noise of features": learner_of("search", noise="features"),
    "noise of rows": learner_of("search", noise="rows", fit_intercept=True),
    "given noise": learner_of(
        "search", noise=np.geomspace(0.1, 10, 8), fit_intercept=False
    ),
    "convolution": ConvPUDLEDictionaryLearning(2, atom_shape=3, random_state=0),
}


@pytest.mark.parametrize(("name", "exponent"), [*zip(LEARNERS, cycle([-480, 480]))])
def test_powers_of_two_change_no_other_bit(name, exponent):
    """Near the ends of float64 too, whose squares have no room. Estimates of noise are rounded."""
    X, unit = make_data()[0] + 3 * ("noise" in name), 2.0**exponent
    one, other = (clone(LEARNERS[name]).fit(c * X, X[:, 0] > 0) for c in (1.0, unit))
    same = partial(
        np.testing.assert_allclose, rtol=0, atol=1e-5 if "noise" in name else 0
    )
    same(other.components_, one.components_)
    same(other.loss_curve_ / unit**2, one.loss_curve_)
    same(other.transform(unit * X) / unit, one.transform(X))
    if hasattr(one, "predict"):
        same(other.predict(unit * X), one.predict(X))
        return
    for attribute in ("alpha_", "search_alpha_", "noise_std_", "intercept_"):
        expected = getattr(one, attribute, None)
        if expected is None:
            assert getattr(other, attribute, None) is None
        else:
            same(getattr(other, attribute) / unit, expected)
