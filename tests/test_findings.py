"""What is wrong is said in words, and only then."""

import re

import numpy as np
import pytest
import torch
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_wine,
)
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpudle import (
    ConvPUDLEDictionaryLearning,
    CountDictionaryLearning,
    NOODLDictionaryLearning,
    PoissonNMF,
    PUDLEDictionaryLearning,
)
from skpudle.datasets import make_dictionary_data
from skpudle.inspection import findings
from skpudle.metrics import match_atoms


def given(atoms, **params):
    params = dict(alpha=0.01) | params
    return PUDLEDictionaryLearning.from_components(np.asarray(atoms, float), **params)


def sparse(n_samples, n_features, n_used, n_nonzero=1):
    """Return samples of a few unit vectors each, of the first so many."""
    rng = np.random.default_rng(0)
    X = np.zeros((n_samples, n_features))
    for row in X:
        row[rng.choice(n_used, n_nonzero, replace=False)] = rng.uniform(1, 2, n_nonzero)
    return X


def without_prediction(found):
    """Leave out the sentence about hidden entries, which unit vectors never predict."""
    return [
        sentence for sentence in found if "hidden entries no better" not in sentence
    ]


def only(found):
    """Return the one sentence that was found."""
    (sentence,) = without_prediction(found)
    assert sentence.endswith(".")
    return sentence


def test_where_nothing_is_wrong_nothing_is_said():
    X = make_dictionary_data(600, 20, 12, 3, snr_db=20, random_state=0)[0]
    learner = PUDLEDictionaryLearning(12, random_state=0)
    assert findings(make_pipeline(StandardScaler(), learner).fit(X), X) == []


def test_equal_rows_support_no_atom():
    X = np.ones((60, 8))
    learner = PUDLEDictionaryLearning(3, random_state=0).fit(X)
    (said,) = (text for text in findings(learner, X) if "supported" in text)
    assert said.startswith("3")


@pytest.mark.parametrize(
    ("learner", "reason"),
    [
        (given(np.eye(8), alpha=9), "alpha=9 is too large for these data. Lower it."),
        (given(np.eye(8), transform_alpha=9), "transform_alpha=9 is too large"),
        (
            NOODLDictionaryLearning(8, threshold=9.0, max_iter=1, tol=None),
            "threshold=9 is too",
        ),
        (
            MiniBatchDictionaryLearning(4, alpha=9, transform_algorithm="threshold"),
            "alpha=9 is",
        ),
    ],
    ids=["alpha", "transform_alpha", "noodl", "scikit-learn"],
)
def test_all_codes_are_zero(learner, reason):
    X = sparse(30, 8, 8)
    if not hasattr(learner, "components_"):
        learner.set_params(random_state=0).fit(X)
    assert only(findings(learner, X)).startswith(f"All codes are zero: {reason}")
    assert only(findings(learner, np.zeros((200, 8)))).startswith(
        "No value of these samples is"
    )


def test_atoms_are_unused():
    expected = "3 of 12 atoms are unused by these 300 samples: n_components=9 would do."
    assert only(findings(given(np.eye(12)), sparse(300, 12, 9))) == expected


def test_chance_leaves_atoms_unused():
    """Five samples of one atom each use five at the most."""
    found = only(findings(given(np.eye(12)), np.eye(12)[:5]))
    assert found.startswith(
        "5 of 12 atoms are single samples: there are 0.417 samples to an atom"
    )


def test_atoms_are_single_samples():
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(8, 30))
    # three atoms that many samples share
    common = rng.normal(size=(300, 3)) @ atoms[:3]
    X = np.vstack(
        [common, 10 * atoms[3:] / np.linalg.norm(atoms[3:], axis=1, keepdims=True)]
    )
    learner = given(atoms / np.linalg.norm(atoms, axis=1, keepdims=True), alpha=0.5)
    sentence = only(findings(learner, X))
    assert sentence.startswith(
        "5 of 8 atoms are single samples: there are 38.1 samples to an atom"
    )
    # other samples, other words
    assert findings(learner, common[:, ::-1])[:1] != [sentence]


@pytest.fixture
def waves():
    """Return two signals of six waves each."""
    rng = np.random.default_rng(0)
    signals = 0.1 * rng.normal(size=(2, 900, 1))
    for signal in signals[..., 0]:
        for start in range(50, 850, 140):
            signal[start : start + 40] += np.hanning(40)
    return signals


def learn_waves(signals, n_components=1):
    learner = ConvPUDLEDictionaryLearning(
        n_components, atom_shape=40, positive_code=True, random_state=0
    )
    return learner.fit(signals)


def test_an_atom_is_a_single_event(waves):
    assert findings(learn_waves(waves), waves) == []
    artefact = waves.copy()
    artefact[1, 600:604] += 50
    sentence = only(findings(learn_waves(artefact), artefact))
    where = re.search(r"samples (\d+) to (\d+) of signal 1", sentence)
    first, last = (int(where[1]), int(where[2]))
    assert first <= 600 <= last
    artefact[1, first : last + 1] = np.nan  # as the sentence says
    assert findings(learn_waves(artefact), artefact) == []


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("positive_code", [False, True])
def test_atoms_are_the_same(sign, positive_code):
    atoms = np.vstack([np.eye(8), sign * np.eye(8)[2] + 0.05 * np.eye(8)[3]])
    X = np.vstack([sparse(200, 8, 8), -sparse(200, 8, 8)])
    learner = given(atoms, positive_code=positive_code)
    found = without_prediction(findings(learner, X))
    if positive_code and sign < 0:
        assert found == []
    else:
        words = f"Atoms 2 and 8 are the same, with a cosine of {sign * 0.999}: learn fewer atoms."
        assert words in found


def test_a_search_leaves_no_atoms_that_are_the_same():
    X, atoms = make_dictionary_data(400, 16, 8, 2, snr_db=20, random_state=0)[:2]
    twice = np.vstack([atoms, atoms[:3]])
    learner = PUDLEDictionaryLearning(11, random_state=0, max_iter=1, tol=None)
    found = findings(learner.set_params(dict_init=twice).fit(X), X)
    same, unsupported = found
    assert same.endswith(", and so are 2 pairs more: learn fewer atoms.")
    assert unsupported.startswith("3 of 11 atoms are not supported")
    learner = PUDLEDictionaryLearning(11, random_state=0).fit(X)
    spare = np.setdiff1d(
        np.arange(11), match_atoms(atoms, learner.components_).reference_indices
    )
    expected = f"3 of 11 atoms are not supported by these samples, {spare.tolist()}"
    assert only(findings(learner, X)).startswith(expected)


@pytest.mark.parametrize("n_axes", [1, 2])
def test_convolutional_atoms_are_the_same_up_to_shift(n_axes):
    atom_shape, size = (6, 5)[:n_axes], (40, 30)[:n_axes]
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, *size, 2))
    learner = ConvPUDLEDictionaryLearning(
        4, atom_shape=atom_shape, stride=2, random_state=0
    ).fit(images)
    found = findings(learner, images)
    assert not any("same" in sentence for sentence in found)
    atom = np.zeros_like(learner.components_[0])
    inside = (slice(1, 4),) * n_axes
    atom[inside] = rng.normal(size=atom[inside].shape)
    learner.components_ = np.stack(
        [atom, *learner.components_[1:3], -np.roll(atom, 1, axis=0)]
    )
    message = "Atoms 0 and 3 are the same, with a cosine of -1: learn fewer atoms."
    assert message in findings(learner, images)


@pytest.mark.parametrize(
    ("params", "advice"),
    [
        (dict(alpha=1e-6), "raise alpha (now 1e-06)."),
        (dict(transform_alpha=1e-6), "raise transform_alpha (now 1e-06)."),
        (
            dict(transform_algorithm="omp", transform_n_nonzero_coefs=9),
            "lower transform_n_nonzero",
        ),
    ],
    ids=["alpha", "transform_alpha", "omp"],
)
def test_codes_are_dense(params, advice):
    """Sixteen numbers in a sample: from nine entries on there are other codes as short."""
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(20, 16))
    learner = given(atoms / np.linalg.norm(atoms, axis=1, keepdims=True), **params)
    X = np.random.default_rng(1).normal(size=(60, 16))
    codes = learner.transform(X)
    sentence = only(findings(learner, torch.tensor(X)))
    expected = (
        f"Codes are dense: {(codes != 0).mean():.0%} of their entries are not zero, "
    )
    expected += f"{(codes != 0).sum(1).mean():.3g} for a sample of 16 numbers."
    assert sentence.startswith(expected)
    assert advice in sentence
    if "alpha" not in params:
        sparser = {"transform_n_nonzero_coefs": 8, "transform_alpha": 1}
        learner.set_params(**{name: sparser[name] for name in sparser.keys() & params})
        assert without_prediction(findings(learner, X)) == []


def questionnaire(n_rows=1200, n_items=25, n_factors=5):
    """Return answers from 1 to 6: each item asks for one factor, and all rows have all factors."""
    rng = np.random.default_rng(0)
    loadings = np.zeros((n_factors, n_items))
    items = np.arange(n_items)
    loadings[items % n_factors, items] = rng.uniform(0.6, 1.1, n_items)
    means = rng.standard_normal((n_rows, n_factors)) @ loadings
    return np.clip(np.round(3.5 + means + rng.standard_normal(means.shape)), 1, 6)


def standardised(load):
    return StandardScaler().fit_transform(load().data)


TABLES = {
    "digits": (16, lambda: load_digits().data[:900]),
    "wine": (5, lambda: standardised(load_wine)),
    "cancer": (5, lambda: load_breast_cancer().data),
    "cancer, standardised": (8, lambda: standardised(load_breast_cancer)),
    "diabetes": (5, lambda: load_diabetes().data),
    "questionnaire": (5, questionnaire),
}


@pytest.mark.filterwarnings("ignore:Column .* of the variance")
@pytest.mark.parametrize("name", TABLES)
def test_atoms_that_predict_hidden_entries_are_left_alone(name):
    """Even if none of them alone is determined, as factors of dense data are not."""
    n_components, load = TABLES[name]
    X = load()
    learner = PUDLEDictionaryLearning(n_components, random_state=0).fit(X)
    assert learner.score(X) > 0.2
    words = ("not supported", "hidden entries no better")
    assert not [text for text in findings(learner, X) if any(w in text for w in words)]


def independent_counts():
    return np.random.default_rng(0).poisson(3.0, (200, 10)).astype(float)


@pytest.mark.filterwarnings("ignore:Column .* of the variance")
@pytest.mark.parametrize(
    ("learner", "load", "measure"),
    [
        (PUDLEDictionaryLearning(5), lambda: load_wine().data, "R^2"),
        (
            PUDLEDictionaryLearning(6),
            lambda: np.random.default_rng(0).normal(size=(300, 12)),
            "R^2",
        ),
        (PoissonNMF(6), independent_counts, "explained deviance"),
    ],
    ids=["a table of several units", "noise", "counts of noise"],
)
def test_predictions_are_worse_than_column_means(learner, load, measure):
    X = load()
    learner.set_params(random_state=0).fit(X)
    sentence = next(text for text in findings(learner, X) if "hidden entries" in text)
    score = learner.score(X)
    assert score < 0
    assert f"column means: {measure} is {score:.2g}, and 0 for the means." in sentence
    assert "Learn fewer atoms" in sentence
    assert ("StandardScaler" in sentence) == (measure == "R^2")


def test_a_model_without_a_sign_cannot_make_negative_entries():
    learner = given(np.eye(8), positive_code=True, positive_dict=True)
    X = sparse(200, 8, 8) * np.random.default_rng(0).choice([-1, 1], (200, 8))
    words = f"the least is {X.min():.3g}): pass positive_code=False."
    assert words in findings(learner, X)[-1]


@pytest.mark.parametrize("scaled", [False, True])
def test_a_number_for_missing_entries_is_named(scaled):
    X = load_digits().data[:500]
    missing = np.random.default_rng(0).random(X.shape) < 0.05
    learner = PUDLEDictionaryLearning(16, random_state=0)
    if scaled:
        learner = make_pipeline(StandardScaler(), learner)
    coded = np.where(missing, -999, X)
    sentence = findings(learner.fit(coded), coded)[0]
    assert re.match(r"4\.\d% of the entries are exactly -999, .* Pass NaN", sentence)
    gaps = np.where(missing, np.nan, X)
    found = findings(learner.fit(gaps), gaps)
    assert not any("exactly" in sentence for sentence in found)


@pytest.mark.parametrize("loss", ["poisson", "binomial"])
def test_counts_of_noise_are_explained_by_their_baseline(loss):
    """And those of a dictionary are not; other samples than those of fit tell."""
    rng = np.random.default_rng(0)
    atoms = make_dictionary_data(400, 16, 8, 2, random_state=0)[1]
    codes = 3 * (rng.random((400, 8)) < 0.3)
    natural = codes @ atoms + 1
    draw = (lambda eta: rng.poisson(np.exp(eta))) if loss == "poisson" else (
        lambda eta: rng.binomial(9, 1 / (1 + np.exp(-eta)))
    )  # fmt: skip
    learner = CountDictionaryLearning(
        8, loss=loss, alpha=2.0, n_unfoldings=10, random_state=0
    )
    learner.set_params(**{} if loss == "poisson" else {"n_trials": 9})
    words = "no better than column means"
    X = draw(natural).astype(float)
    assert not any(words in sentence for sentence in findings(learner.fit(X), X))
    noise, more = (draw(np.ones((400, 16))).astype(float) for _ in range(2))
    assert any(words in sentence for sentence in findings(learner.fit(noise), more))


def test_reconstructions_may_be_farther_from_the_data_than_zero():
    """With a step beyond 2 over the squared norm codes of the encoder overshoot."""
    X, atoms, _ = make_dictionary_data(100, 16, 8, 1, snr_db=20, random_state=0)
    learner = given(atoms, n_unfoldings=1, step_size=4.0)
    assert any("no better than column means" in text for text in findings(learner, X))
    learner.set_params(n_unfoldings="auto")
    assert not any("no better" in sentence for sentence in findings(learner, X))


@pytest.mark.parametrize("factor", [1, 10, 30])
def test_few_long_rows_are_reported(factor):
    X = make_dictionary_data(600, 16, 16, 3, snr_db=20, random_state=0)[0]
    X[::20] *= factor
    learner = PUDLEDictionaryLearning(16, random_state=0).fit(X)
    sentences = [
        text for text in findings(learner, X) if "of the sum of squares" in text
    ]
    assert len(sentences) == (factor > 1)
    assert all(text.startswith("30 of 600 rows are over 3 times") for text in sentences)
