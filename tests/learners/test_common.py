"""What scikit-learn asks of every estimator, by scikit-learn's own checks.

`check_estimator` runs most of them; those that it leaves to scikit-learn's own test suite are run
here as well. None may fail, and none may be skipped where the array API is switched on. Other
configurations of a class run them with ``-m slow``.
"""

import os

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.utils import estimator_checks

from skpudle import (
    ConsensusDictionary,
    ConvDenoiser,
    ConvPUDLEDictionaryLearning,
    CountDictionaryLearning,
    DictionaryImputer,
    NOODLDictionaryLearning,
    PoissonNMF,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
    PUDLERegressor,
    SporcoDictionaryLearning,
)

pytestmark = [
    pytest.mark.draws_from_numpy,
    # the checks fit for few epochs, and mix data frames with arrays
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    # by default there are as many atoms as features, whatever the number of samples
    pytest.mark.filterwarnings(
        r"ignore:X has \d+ samples? with known values:UserWarning"
    ),
    pytest.mark.filterwarnings("ignore:All values of X are below 1:UserWarning"),
    # rows for a convolutional learner are images of one line, which atoms are higher or wider than
    pytest.mark.filterwarnings("ignore:Atoms of the size:UserWarning"),
    # atoms that learn rows of few pixels come close to one another, so that their norm grows
    pytest.mark.filterwarnings("ignore:step_size=0.1 is beyond:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All replicates of:UserWarning"),
    # scikit-learn's principal components of its own data
    pytest.mark.filterwarnings("ignore:Array API does not support LU:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:X (has|does not have valid) feature names:UserWarning"
    ),
]

SMALL = dict(n_unfoldings=5, max_iter=3)
SMALL_CONV = dict(n_components=4, n_unfoldings=3, max_iter=2)

# One learner a class; every change of the package runs the checks of these.
CLASSES = [
    PUDLEDictionaryLearning(),
    ConvPUDLEDictionaryLearning(4),
    ConvDenoiser(**SMALL_CONV),
    NOODLDictionaryLearning(dict_init="data", **SMALL),
    CountDictionaryLearning(dict_init="data", **SMALL),
    PoissonNMF(2, alpha=0.5, max_iter=3),
    PUDLEClassifier(dict_init="data", max_iter=3, tol=1e-2),
    PUDLERegressor(dict_init="data", max_iter=3),
    ConsensusDictionary(PCA(1), 2, resample="bootstrap", random_state=0),
    DictionaryImputer(
        PUDLEDictionaryLearning(2, alpha=0.1, noise="equal", fit_intercept=False)
    ),
]
VARIANTS = [
    PUDLEDictionaryLearning("auto"),
    NOODLDictionaryLearning(**SMALL),
    PUDLEClassifier(max_iter=3),
    PUDLERegressor(max_iter=3),
    PUDLEDictionaryLearning(gradient="dec", **SMALL),
    PUDLEDictionaryLearning(
        gradient="dec", positive_code=True, positive_dict=True, **SMALL
    ),
    PUDLEDictionaryLearning(
        gradient="ae-ls", split_sign=True, optimizer="sgd", **SMALL
    ),
    PUDLEDictionaryLearning(n_unfoldings=3, separate_atoms="unfolding", max_iter=3),
    ConvPUDLEDictionaryLearning(4, atom_shape=3),
    ConvDenoiser(atom_shape=3, stride=1, **SMALL_CONV),
    ConvDenoiser(noise_std=(0.1, 0.3), **SMALL_CONV),
    CountDictionaryLearning(loss="binomial", n_trials=1000, **SMALL),
    PoissonNMF(max_iter=3),
]
try:
    import sporco.dictlrn.bpdndl  # noqa: F401 (it changes global state, which every test watches)
except ImportError:
    pass
else:
    CLASSES.append(SporcoDictionaryLearning(max_iter=3))

# What `check_estimator` does not run by itself, for all learners and for transformers.
FURTHER_CHECKS = [
    estimator_checks.check_dataframe_column_names_consistency,
    estimator_checks.check_estimators_partial_fit_n_features,
    estimator_checks.check_inplace_ensure_writeable,
    estimator_checks.check_param_validation,
]
CHECKS_OF_TRANSFORMERS = [
    estimator_checks.check_get_feature_names_out_error,
    estimator_checks.check_global_output_transform_pandas,
    estimator_checks.check_global_set_output_transform_polars,
    estimator_checks.check_set_output_transform,
    estimator_checks.check_set_output_transform_pandas,
    estimator_checks.check_set_output_transform_polars,
    estimator_checks.check_transformer_get_feature_names_out,
    estimator_checks.check_transformer_get_feature_names_out_pandas,
]


@pytest.mark.parametrize(
    "estimator",
    CLASSES + [pytest.param(learner, marks=pytest.mark.slow) for learner in VARIANTS],
    ids=repr,
)
def test_scikit_learn_checks(estimator):
    """A check that is skipped warns, which is an error where all that it may need is there."""
    on_skip = "warn" if os.environ.get("SCIPY_ARRAY_API") == "1" else None
    estimator_checks.check_estimator(estimator, on_skip=on_skip)
    of_its_kind = CHECKS_OF_TRANSFORMERS if hasattr(estimator, "transform") else []
    for check in FURTHER_CHECKS + of_its_kind:
        check(type(estimator).__name__, clone(estimator))


@pytest.mark.gpu
def test_scikit_learn_checks_on_a_gpu():
    learner = PUDLEDictionaryLearning(device="cuda", gradient="ae-ls", **SMALL)
    estimator_checks.check_estimator(learner)


@pytest.mark.parametrize(
    "kind",
    [
        PUDLEDictionaryLearning,
        CountDictionaryLearning,
        PoissonNMF,
        NOODLDictionaryLearning,
        SporcoDictionaryLearning,
    ],
)
def test_numbers_of_numpy_are_numbers(kind):
    # A grid of numbers of atoms is often `np.arange`.
    X = np.random.default_rng(0).poisson(2.0, (100, 12)).astype(float)
    learners = [kind(number, random_state=0) for number in (40, np.int64(40))]
    one, other = (learner.fit(X) for learner in learners)
    np.testing.assert_array_equal(one.components_, other.components_)


def test_sizes_of_atoms_may_be_numbers_of_numpy():
    X = np.random.default_rng(0).standard_normal((4, 20, 20))
    one, other = (
        ConvPUDLEDictionaryLearning(2, atom_shape=shape, random_state=0).fit(X)
        for shape in ((5, 5), tuple(np.array([5, 5])))
    )
    np.testing.assert_array_equal(one.components_, other.components_)
