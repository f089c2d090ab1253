"""Other packages: what goes in from them and out to them."""

import re
from importlib.metadata import metadata

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.decomposition import MiniBatchDictionaryLearning, SparseCoder
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.utils.fixes import parse_version

from skpudle import (
    ConvDenoiser,
    PUDLEDictionaryLearning,
    SporcoDictionaryLearning,
)
from skpudle.datasets import make_dictionary_data

SETTINGS = dict(max_iter=2, tol=None, random_state=0)


@pytest.fixture(scope="module")
def X():
    return make_dictionary_data(60, 10, 7, 2, random_state=0)[0]


@pytest.fixture(scope="module")
def bpdndl():
    """Import it before a test looks at global state, which it changes."""
    return pytest.importorskip("sporco.dictlrn.bpdndl")


def make(**params):
    return PUDLEDictionaryLearning(
        **(dict(n_components=7, n_unfoldings=20, optimizer="adam") | SETTINGS | params)
    )


# ---------------------------------------------------------------------------- scikit-learn's coder


# ---------------------------------------------------------------------------- initial dictionaries


def starts_at(source, X):
    """Return where training starts."""
    return make(
        n_components=None, dict_init=source, learning_rate=1e-12, max_iter=1
    ).fit(X)


@pytest.mark.draws_from_numpy
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_learner_of_scikit_learn_is_a_start(X):
    learner = MiniBatchDictionaryLearning(
        7, fit_algorithm="cd", max_iter=2, random_state=0
    ).fit(X)
    atoms = learner.components_ / np.linalg.norm(
        learner.components_, axis=1, keepdims=True
    )
    for source in (learner, SparseCoder(learner.components_), FrozenEstimator(learner)):
        np.testing.assert_allclose(
            starts_at(source, X).components_, atoms, rtol=0, atol=1e-9
        )


def test_a_learner_of_sporco_is_a_start(bpdndl, X):
    options = bpdndl.BPDNDictLearn.Options({"Verbose": False, "MaxMainIter": 3})
    learner = bpdndl.BPDNDictLearn(make().fit(X).components_.T, X.T, 0.1, options)
    atoms = learner.solve().T
    np.testing.assert_allclose(
        starts_at(learner, X).components_, atoms, rtol=0, atol=1e-6
    )
    by_sporco = SporcoDictionaryLearning(
        dict_init=learner, max_iter=1, random_state=0
    ).fit(X)
    assert by_sporco.n_components_ == 7


def test_an_unfitted_learner_says_what_clone_does(X):
    """Parameters that are estimators are cloned, unless they are frozen."""
    source = make().fit(X)
    learner = make(dict_init=source)
    with pytest.raises(ValueError, match="FrozenEstimator"):
        clone(learner).fit(X)
    frozen = clone(make(dict_init=FrozenEstimator(source))).fit(X)
    np.testing.assert_array_equal(frozen.components_, learner.fit(X).components_)


# ---------------------------------------------------------------------------- persistence


def test_skops_stores_without_a_pickle(X):
    skops = pytest.importorskip("skops.io")
    learner = make().fit(X)
    stored = skops.dumps(learner)
    trusted = skops.get_untrusted_types(data=stored)
    of_others = {name for name in trusted if not name.startswith("skpudle.")}
    assert of_others <= {"sklearn.utils._bunch.Bunch"}  # of penalty_path_
    loaded = skops.loads(stored, trusted=trusted)
    np.testing.assert_array_equal(loaded.transform(X), learner.transform(X))
    np.testing.assert_array_equal(
        loaded.partial_fit(X).components_, learner.partial_fit(X).components_
    )


# ---------------------------------------------------------------------------- data frames


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_codes_in_a_frame_lead_back_to_rows(library, X):
    pytest.importorskip(library)
    learner = make().set_output(transform=library).fit(X)
    codes = learner.transform(X)
    expected = np.asarray(codes) @ learner.components_
    np.testing.assert_allclose(learner.inverse_transform(codes), expected, atol=1e-12)


# ---------------------------------------------------------------------------- HTML


def test_the_html_of_an_estimator_touches_no_device(X, monkeypatch):
    """The table of fitted attributes evaluates every property."""
    learner = make().fit(X)

    def touch(*args, **kwargs):
        raise AssertionError("a device was touched")

    for name in ("transformer.arrays.to_tensor", "transformer.arrays.resolve_device"):
        monkeypatch.setattr(f"skpudle._learners.{name}", touch)
    page = learner._repr_html_()
    assert "PUDLEDictionaryLearning" in page
    if parse_version(sklearn.__version__) >= parse_version("1.9"):
        assert "components_" in page


@pytest.mark.parametrize(
    "kind", [PUDLEDictionaryLearning, ConvDenoiser, SporcoDictionaryLearning]
)
def test_the_html_of_an_estimator_links_to_its_page(kind):
    """The address is that of `autosummary`, for names that docs/api.rst lists."""
    home = metadata("skpudle").get_all("Project-URL")[0].split(", ")[1]
    page = f"{home}generated/skpudle.{kind.__name__}.html"
    pages = re.findall(r'href="([^"#]*)[^"]*"', make_pipeline(kind())._repr_html_())
    assert page in pages
    assert not [other for other in pages if "skpudle" in other and other != page]
