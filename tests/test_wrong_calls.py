"""Wrong calls, as a new user makes them: each is refused, with what was got and what to pass.

The calls come from six trades: spectra, heart and brain signals, pictures, counts, activations of
networks, and tables. A call is one line; its answer is matched by two pieces, what was got and what
to pass instead.
"""

import inspect
import re
import warnings
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_image
from sklearn.decomposition import NMF, MiniBatchDictionaryLearning

import skpudle
from skpudle import (
    ConsensusDictionary,
    ConvPUDLEDictionaryLearning,
    CountDictionaryLearning,
    DictionaryImputer,
    PoissonNMF,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
    PUDLERegressor,
    metrics,
)
from skpudle._learners.parameters import COUNTERPARTS
from skpudle.datasets import make_dictionary_data
from skpudle.events import find_events
from skpudle.images import inpaint
from skpudle.plotting import AtomsDisplay, PathDisplay
from skpudle.pretrained import load_denoiser

Conv = partial(ConvPUDLEDictionaryLearning, random_state=0)
PUBLIC = [getattr(skpudle, name) for name in skpudle.__all__]
ESTIMATORS = [kind for kind in PUBLIC if hasattr(kind, "get_params")]


@cache
def photograph():
    return load_sample_image("flower.jpg")[100:164, 200:280]


@cache
def grey():  # (64, 80), uint8
    return photograph().mean(axis=2).astype(np.uint8)


@cache
def rows():  # (60, 16)
    return make_dictionary_data(60, 16, 4, 2, snr_db=40, random_state=0)[0]


@cache
def spectra():  # (60, 16) counts
    rng = np.random.default_rng(0)
    rates = rng.gamma(1.0, 60.0, (60, 4)) @ rng.dirichlet(np.full(16, 0.2), size=4)
    return rng.poisson(rates).astype(float)


@cache
def beats():  # learner of signals
    signal = np.random.default_rng(0).standard_normal((300, 1))
    return Conv(1, atom_shape=9).fit([signal])


@cache
def learner():
    return PUDLEDictionaryLearning(4, random_state=0).fit(rows())


def brain(n_channels=32, n_samples=1000):  # trials, channels, time
    return np.random.default_rng(0).standard_normal((3, n_channels, n_samples))


def pillow(mode="L"):
    image = pytest.importorskip("PIL.Image").fromarray(photograph())
    return image.convert(mode)


def table(**columns):
    return pd.DataFrame(rows()).add_prefix("f").assign(**columns)


def fit(data, n_components=4, **params):
    return PUDLEDictionaryLearning(n_components, random_state=0, **params).fit(data)


REFUSED = {
    # pictures
    "a picture where rows are samples": (lambda: fit(grey()), "64 rows", r"images\.extract.*X\.as"),
    "a palette": (lambda: Conv(4).fit([pillow("P")]), "mode 'P'", r"convert\('RGB'\)"),
    "one picture without a list": (lambda: Conv(4).fit(grey() / 255), r"\(1, 80\)", r"\[image\]"),
    "one number for atoms of pictures": (
        lambda: Conv(4, atom_shape=8).fit([grey() / 255]), "80 channels", "two numbers as atom_sh"
    ),
    "atoms larger than pictures": (
        lambda: Conv(4, atom_shape=(70, 70)).fit([grey()]), r"\(64, 80\)", "smaller atom_shape"
    ),
    "pictures with colours for atoms of signals": (
        lambda: Conv(4, atom_shape=9).fit([photograph()]), "Images of 1 axes are exp", "pass an arr"
    ),
    # signals
    "trials of a brain for atoms of signals": (
        lambda: Conv(4, atom_shape=25).fit(brain()), "32 samples and 1000", "channels_first=True"
    ),
    "trials of a heart for atoms of signals": (
        lambda: Conv(4, atom_shape=25).fit(brain(3)), "1000 channels", "channels_first=True"
    ),
    "trials of a brain for atoms of pictures": (
        lambda: Conv(4).fit(brain()), "3 grey pictures of 32 x 1000", "channels_first=True and one"
    ),
    "one signal as a row": (lambda: fit(brain()[0, 0]), "got 1D array", r"reshape\(1, -1\)"),
    # tables
    "an empty column to impute": (
        lambda: DictionaryImputer().fit(table(empty=np.nan)), "'empty'.*no known", "Leave.*out"
    ),
    "a column of text": (lambda: fit(table(name="Ann")), "Column 'name'.*'Ann'", "Leave it out"),
    "a column of text to impute": (
        lambda: DictionaryImputer().fit(table(name="Ann")), "Column 'name'", "encode it as numbers"
    ),
    "a column of text for many fits": (
        lambda: ConsensusDictionary(NMF(4), 2, random_state=0).fit(table(name="Ann")),
        "Column 'name'", "Leave it out",
    ),
    "many fits of what has no atoms": (
        lambda: ConsensusDictionary(KMeans(2), 2, random_state=0).fit(rows()),
        "KMeans has no comp", "such as PUDLE",
    ),
    # results
    "a path of sizes where the size was given": (
        lambda: PathDisplay.from_estimator(learner()), "is fitted, .*of sizes", "n_components='auto"
    ),
    "a path of penalties where the penalty was given": (
        lambda: PathDisplay.from_estimator(
            PUDLEDictionaryLearning.from_components(rows(), alpha=0.1), kind="penalty"
        ),
        "no path of penalties", "Fit with alpha='auto'",
    ),
    "atoms of 16 features as pictures of 6 pixels": (
        lambda: AtomsDisplay.from_estimator(learner(), image_shape=(2, 3)),
        r"16 features.*\(2, 3\) has 6", "as many entries",
    ),
    "events of one signal without a list": (
        lambda: find_events(beats(), np.zeros(300)), "one signal of 300", r"pass \[X\]"
    ),
    # counts
    "negative counts": (lambda: PoissonNMF(3).fit(rows()), "down to -", "take PUDLEDictionaryL"),
    "a picture below zero as photons": (
        lambda: load_denoiser("poisson").denoise(grey() / 255 - 0.5), "down to -", "gaussian"
    ),
    "counts above their trials": (
        lambda: CountDictionaryLearning(3, loss="binomial").fit(spectra()),
        "X has values up to", "n_trials",
    ),
    # what is not a table
    "a path": (lambda: fit("data.csv"), "X is the text 'data.csv'", "Read the file"),
    "a path of a picture": (lambda: load_denoiser().denoise("a.png"), "'a.png'", "Read the file"),
    "a dict": (lambda: fit({"a": [1, 2]}), "is a dict", r"DataFrame\(X\)"),
    "rows of two lengths": (lambda: fit([[1, 2], [3]]), "from 1 to 2 entries", "one length"),
    "one signal": (lambda: Conv(2, atom_shape=9).fit(np.zeros(300)), "of 300", r"pass \[X\]"),
    "one signal to score": (lambda: beats().score(np.zeros(300)), "of 300", r"pass \[X\]"),
    "a table of signals without atom_shape": (
        lambda: Conv(2).fit(np.zeros((40, 300))), r"\(9, 9\).*\(1, 300\)", "signals one number"
    ),
    # other arguments
    "no labels": (lambda: PUDLEClassifier(3).fit(rows()), "Classifier requires y", "a label"),
    "labels of text for a regressor": (
        lambda: PUDLERegressor(3).fit(rows(), ["a", "b"] * 30), r"text, such as \['a'\]", "PUDLECl"
    ),
    "a mask of text": (
        lambda: inpaint(grey() / 255, np.full((64, 80), "no")), "the dtype <U2", "Pass True"
    ),
    "a denoiser of no such name": (
        lambda: load_denoiser("colour"), "no file 'colour'", "gaussian-small, poisson, or a file"
    ),
    "a device of no such name": (lambda: fit(rows(), device="gpu"), "'gpu' is not", "'cuda' for"),
    "more nonzero codes than atoms": (
        lambda: make_dictionary_data(10, 5, 8, 9, random_state=0),
        "n_nonzero=9 .* 8 atoms", "smaller number",
    ),
    # names of other packages
    "n_jobs": (lambda: PUDLEDictionaryLearning(n_jobs=-1), "'n_jobs'", "set_num_threads"),
    "positive": (lambda: PUDLEDictionaryLearning(positive=True), "'positive'", "positive_code"),
    "center": (lambda: PUDLEDictionaryLearning(center=True), "'center'", "fit_intercept"),
    "sparsity": (lambda: PUDLEDictionaryLearning(sparsity=5), "'sparsity'", r"choose_alpha\(X, l0"),
    "missing_values": (lambda: DictionaryImputer(missing_values=-1), "'missing_v", "are NaN"),
    "l1_ratio": (lambda: PUDLEDictionaryLearning(l1_ratio=0.5), "'l1_ratio'", "leave it out"),
    "fit_algorithm": (lambda: PUDLEDictionaryLearning(fit_algorithm="cd"), "'fit", "leave it out"),
    "fs": (lambda: Conv(fs=250), "'fs'", "displays take sampling_rate"),
    "n_atoms": (lambda: PUDLEDictionaryLearning(n_atoms=4), "'n_atoms'", "Pass n_components"),
    "n_times_atom": (lambda: Conv(n_times_atom=50), "'n_times_atom'", "Pass atom_shape"),
}  # fmt: skip

WARNED = {
    "a picture of fractions": (lambda: fit(grey() / 255), "one grey picture", r"sklearn\.utils\.s"),
    "a tall picture for atoms of signals": (
        lambda: Conv(2, atom_shape=8, alpha=1e6).fit([grey().T / 255]), "64 channels", "two numbers"
    ),
    "negative rows for non-negative codes and atoms": (
        lambda: fit(-np.abs(rows()), positive_code=True, positive_dict=True),
        "no negative entries", "positive_code=False",
    ),
    "an empty column": (lambda: fit(table(empty=np.nan)), "'empty'.*no known value", "Leave.*out"),
    "too large a penalty": (lambda: fit(rows(), alpha=1e6), r"alpha_=1e\+06", "Pass a smaller num"),
}  # fmt: skip


def both(got, mend):
    """Return a pattern of two pieces, in this order, of a message of any number of lines."""
    return f"(?s){got}.*{mend}"


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_call_is_refused_with_the_mend(name):
    call, *pieces = REFUSED[name]
    with pytest.raises(
        (AttributeError, OSError, TypeError, ValueError), match=both(*pieces)
    ):
        call()


@pytest.mark.parametrize("name", WARNED)
def test_a_doubtful_call_warns_with_the_mend(name):
    call, *pieces = WARNED[name]
    with pytest.warns(UserWarning, match=both(*pieces)):
        call()


NO_ROWS = {
    "pictures": lambda: np.ones((10, 8, 8)),
    "a tensor of pictures with colours": lambda: torch.ones(5, 8, 8, 3),
    "nothing": lambda: None,
    "a column of text": lambda: table(name="Ann"),
    "a list of arrays": lambda: [rows(), rows()[:5]],
}


@pytest.mark.filterwarnings("ignore:X has feature names")
@pytest.mark.parametrize("name", NO_ROWS)
def test_what_holds_no_rows_is_refused(name):
    for call in (
        fit,
        learner().transform,
        learner().partial_fit,
        learner().inverse_transform,
    ):
        with pytest.raises((TypeError, ValueError)):
            call(NO_ROWS[name]())


def test_every_estimator_points_to_the_page_of_names():
    for kind in ESTIMATORS:
        parameters = inspect.signature(kind).parameters.values()
        assert not [
            p.name for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]
        required = [None for p in parameters if p.default is p.empty]
        with pytest.raises(
            TypeError, match=rf"^{kind.__name__} has no parameter 'n_atoms'"
        ):
            kind(*required, n_atoms=3)
        with pytest.raises(TypeError, match=r"The page .*coming_from\.html"):
            kind(*required, xyzw=3)


def test_counterparts_are_parameters_and_on_the_page():
    parameters = {
        name for kind in ESTIMATORS for name in inspect.signature(kind).parameters
    }
    page = (Path(__file__).parents[1] / "docs/coming_from.rst").read_text("utf-8")
    named = set(re.findall(r"\w+", " ".join(re.findall(r"``(.+?)``", page))))
    assert set(COUNTERPARTS.values()) <= parameters
    assert COUNTERPARTS.keys() <= named


def test_rows_that_are_no_picture_pass():
    """Samples in any order, few features, counts: no warning, which would be an error."""
    rng = np.random.default_rng(0)
    smooth = rng.random((60, 3)) @ np.exp(
        -np.square(np.linspace(-3, 3, 90) - [[-1], [0], [1]])
    )
    fit(smooth / smooth.max())
    fit(grey().astype(float))
    fit(grey()[:, :3])
    PoissonNMF(3, random_state=0, max_iter=2, tol=None).fit(
        spectra().clip(0, 255).astype(np.uint8)
    )


def test_pictures_of_pillow_are_arrays():
    one, many = load_denoiser("gaussian-small"), Conv(4, atom_shape=(8, 8), stride=8)
    np.testing.assert_array_equal(one.denoise(pillow("RGB")), one.denoise(photograph()))
    expected = clone(many).fit([grey(), grey()]).components_
    grey_image = pytest.importorskip("PIL.Image").fromarray(grey())
    np.testing.assert_array_equal(
        many.fit([grey_image, grey_image]).components_, expected
    )


def test_measures_take_learners():
    ours = learner()
    other = MiniBatchDictionaryLearning(4, max_iter=2, random_state=0).fit(rows())
    for name in ("match_atoms", "atom_coherence", "recovery_rate", "dictionary_error"):
        measure = getattr(metrics, name)
        expected = measure(ours.components_, other.components_)
        np.testing.assert_array_equal(measure(ours, other), expected)


def test_spectra_in_the_order_of_time_are_no_picture():
    time = np.linspace(0, 1, 200)[:, None]
    channel = np.arange(300)
    one, other = (np.exp(-np.square(channel - k) / 500) for k in (100, 200))
    X = 0.8 * (time * one + (1 - time) * other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(X)
