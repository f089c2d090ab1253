"""Names of features: all functions of data and a learner compare them as `transform` does.

Frames with columns in another order are refused, the right ones bring no warning, and arrays for a
learner of frames bring scikit-learn's.
"""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from small import Batches

from skpudle import (
    ConsensusDictionary,
    ConvDenoiser,
    ConvPUDLEDictionaryLearning,
    CountDictionaryLearning,
    DictionaryImputer,
    NOODLDictionaryLearning,
    PUDLEDictionaryLearning,
)
from skpudle.inspection import (
    atom_contributions,
    code_saliency,
    findings,
    reconstruction_contributions,
)
from skpudle.metrics import (
    atom_importance,
    make_denoising_scorer,
    reconstruction_r2_scorer,
)
from skpudle.plotting import (
    ActivationsDisplay,
    AtomsDisplay,
    CodesDisplay,
    ContributionsDisplay,
)
from skpudle.sae import feature_directions

pytestmark = pytest.mark.filterwarnings(r"ignore:Two-dimensional input means rows")

RNG = np.random.default_rng(0)
ATOMS = RNG.normal(size=(4, 6))
X = np.abs(
    (RNG.random((60, 4)) < 0.4) @ np.abs(ATOMS) + 0.01 * RNG.normal(size=(60, 6))
)
FRAME = pd.DataFrame(X, columns=list("abcdef"))
REVERSED = FRAME[FRAME.columns[::-1]]
SHORT = dict(n_unfoldings=2, max_iter=1, tol=None, random_state=0)


ROWS = PUDLEDictionaryLearning(4, positive_code=True, random_state=0)
SIGNED = PUDLEDictionaryLearning(4, random_state=0)
COUNTS = CountDictionaryLearning(4, **SHORT)
ENCODER = PUDLEDictionaryLearning(4, separate_atoms=True, max_iter=1, random_state=0)
IMAGES = ConvPUDLEDictionaryLearning(2, atom_shape=3, stride=1, random_state=0)
DENOISER = ConvDenoiser(2, atom_shape=3, stride=1, **SHORT)
CONSENSUS = ConsensusDictionary(ROWS, 2, random_state=0)
LEARNERS = {
    "rows": ROWS,
    "poisson": COUNTS,
    "noodl": NOODLDictionaryLearning(4, **SHORT),
}
STREAMED = ["transform", "transform_sparse", "score", "partial_fit", "choose_alpha"]
# scikit-learn's checks compare the names of its own methods
FUNCTIONS = {
    "sparse codes": (ROWS, lambda learner, X: learner.transform_sparse(X)),
    "sparse codes of counts": (COUNTS, lambda learner, X: learner.transform_sparse(X)),
    "choice of a penalty": (SIGNED, lambda learner, X: learner.choose_alpha(X)),
    "learned codes": (ENCODER, lambda learner, X: learner.transform(X)),
    "learning goes on": (ENCODER, lambda learner, X: learner.partial_fit(X)),
    "denoised": (DENOISER, lambda learner, X: learner.denoise(X)),
    "codes of a consensus": (CONSENSUS, lambda learner, X: learner.transform(X)),
    "imputed": (DictionaryImputer(ROWS), lambda learner, X: learner.transform(X)),
    "score of a consensus": (CONSENSUS, lambda learner, X: learner.score(X)),
    "importance": (ROWS, atom_importance),
    "importance, signed": (SIGNED, atom_importance),
    "contributions": (ROWS, atom_contributions),
    "of new rows": (
        ROWS,
        lambda learner, X: reconstruction_contributions(learner, FRAME, X),
    ),
    "of training": (
        ROWS,
        lambda learner, X: reconstruction_contributions(learner, X, FRAME),
    ),
    "saliency": (ROWS, code_saliency),
    "directions": (ROWS, feature_directions),
    "findings": (ROWS, findings),
    "R^2": (ROWS, reconstruction_r2_scorer),
    "denoising": (ROWS, make_denoising_scorer()),
    "codes": (ROWS, CodesDisplay.from_estimator),
    "atoms": (ROWS, lambda learner, X: AtomsDisplay.from_estimator(learner, X)),
    "display of contributions": (ROWS, ContributionsDisplay.from_estimator),
    "activations": (IMAGES, ActivationsDisplay.from_estimator),
    "of a consensus": (CONSENSUS, atom_importance),
}


@pytest.fixture(scope="module")
def fitted():
    found = {}

    def fit(learner):
        if id(learner) not in found:
            found[id(learner)] = clone(learner).fit(FRAME)
        return found[id(learner)]

    return fit


def check(call):
    with pytest.raises(ValueError, match="feature names should match.*\n.*same order"):
        call(REVERSED)
    call(FRAME)  # warnings are errors
    with pytest.warns(UserWarning, match="X does not have valid feature names, but"):
        call(X)


@pytest.mark.parametrize("method", STREAMED)
@pytest.mark.parametrize("learner", [ROWS, SIGNED], ids=["rows", "signed"])
def test_methods_compare_names_of_batches(learner, method, fitted):
    learner = fitted(learner)
    check(lambda X: getattr(learner, method)(Batches(X)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_compare_names(name, fitted):
    learner, function = FUNCTIONS[name]
    check(lambda X: function(fitted(learner), X))


def test_one_call_warns_once_of_an_array_after_a_frame(fitted):
    for name in (
        "sparse codes",
        "learned codes",
        "learning goes on",
        "denoised",
        "imputed",
    ):
        learner, function = FUNCTIONS[name]
        with pytest.warns(UserWarning, match="valid feature names") as record:
            function(fitted(learner), X)
        assert len(record) == 1


class Mixed(Batches):
    """Every second batch has its columns in another order."""

    def __iter__(self):
        for i, rows in enumerate(super().__iter__()):
            yield rows if i % 2 == 0 else rows[rows.columns[::-1]]


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("name", LEARNERS)
def test_the_first_batch_names_the_features(name, method):
    learner = getattr(clone(LEARNERS[name]), method)(Batches(FRAME))
    assert learner.feature_names_in_.tolist() == list("abcdef")
    with pytest.raises(
        ValueError, match=r"(?s)The feature names should match.*In batch 1"
    ):
        getattr(clone(learner), method)(Mixed(FRAME))
    with pytest.raises(
        ValueError, match=r"(?s)The feature names should match.*In batch 0"
    ):
        learner.partial_fit(Batches(REVERSED))
    assert not hasattr(getattr(clone(learner), method)(Batches(X)), "feature_names_in_")
