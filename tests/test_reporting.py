"""The report is one page that needs nothing else and says what is so."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import skpudle
from skpudle import (
    ConvDenoiser,
    ConvPUDLEDictionaryLearning,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
    SporcoDictionaryLearning,
)
from skpudle._fitted.learners import find_learner
from skpudle.datasets import make_dictionary_data
from skpudle.reporting import findings

pytest.importorskip("matplotlib")

VOID = {"meta", "img", "br", "link", "input"}


class Checker(HTMLParser):
    """Collects images and complains of tags that are not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.images = [], []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(page):
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    return checker.images


@pytest.fixture(scope="module")
def X():
    return make_dictionary_data(80, 16, 12, 2, random_state=0)[0]


@pytest.fixture(scope="module")
def learner(X):
    options = dict(gradient="ae-ls", n_unfoldings=20, max_iter=3, tol=None, random_state=0)
    return PUDLEDictionaryLearning(12, **options).fit(X)


def test_a_page_has_all_pictures_inside(learner, X):
    page = skpudle.report(learner, X).page
    images = check(page)
    names = {image["alt"] for image in images}
    assert names == {
        "Atoms, most used first",
        "Usage of the atoms",
        "Loss of R² without each atom",
        "Atoms per sample",
        "Reconstruction error",
        "Worst samples",
        "Loss",
    }
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert not re.search(r"https?://|<script|<link", page)


def test_numbers_are_those_of_the_learner(learner, X):
    page = skpudle.report(learner, X).page
    codes = learner.transform(X)
    residual = X - learner.inverse_transform(codes)
    assert f"{(codes != 0).mean():.1%}" in page
    assert f"{(residual**2).sum() / (X**2).sum():.2%}" in page
    assert f"{learner.alpha_:.4g}" in page


def test_the_page_has_the_score_and_the_time_of_codes(learner, X):
    page = skpudle.report(learner, X).page
    assert f"<td>score of the first 80 samples</td><td>{learner.score(X):.4g}</td>" in page
    assert "<td>seconds for the codes of all samples</td>" in page


def test_a_report_says_what_it_is_in_a_terminal(learner, X):
    report = skpudle.report(learner, X)
    head, *lines = repr(report).splitlines()
    assert head.startswith("<Report on PUDLEDictionaryLearning, 0.")
    facts = [f"{name}: {value}" for name, value in report.facts.items()]
    assert lines == [*report.findings, *facts]
    zero = skpudle.report(clone(learner).set_params(alpha=9.0).fit(X), X)
    assert repr(zero).splitlines()[1].startswith("All codes are zero")


def test_the_facts_are_those_of_the_fit(learner, X):
    facts = skpudle.report(learner, X).facts
    assert facts["rows that fit read"] == len(X)
    assert facts["atoms"] == 12
    expected = r2_score(
        X, learner.inverse_transform(learner.transform(X)), multioutput="variance_weighted"
    )
    assert float(facts["R² of the reconstruction"]) == pytest.approx(expected, abs=1e-4)
    seconds = dict(learner.fit_seconds_)
    phases = ["noise", "search", "unbiased atoms", "training"]
    assert list(seconds) == ["reading", *phases, "result", "fit"]
    whole = seconds.pop("fit")
    assert 0 < sum(seconds.values()) < whole
    parts = ", ".join(f"{name}: {value:.3g}" for name, value in seconds.items())
    assert facts["seconds of fit"] == f"{whole:.3g} ({parts})"
    again = clone(learner).fit(X).partial_fit(X)
    assert not hasattr(again, "fit_seconds_")
    assert "seconds of fit" not in skpudle.report(again, X).facts


def test_the_page_says_what_is_wrong_and_how_training_ended(learner, X):
    page = skpudle.report(learner, X).page
    assert "<td>training ended</td><td>at max_iter</td>" in page
    n_search = learner.phases_["search"]
    assert f"<td>phases</td><td>search: {n_search} epochs, then ae-ls: 3 epochs</td>" in page
    nothing = "<h2>What is wrong</h2><p>Nothing.</p>"
    assert (nothing in page) == (not findings(learner, X))
    zero = clone(learner).set_params(alpha=9.0).fit(X)
    page = html.unescape(skpudle.report(zero, X).page)
    assert [f"<li>{found}</li>" in page for found in findings(zero, X)] == [True]


@pytest.mark.parametrize("place", ["pipeline", "search"])
def test_pipelines_and_searches_have_the_page_of_their_learner(place, learner, X):
    X = X - X.mean(0)
    estimator = GridSearchCV(clone(learner), {"alpha": [0.2]}, cv=2)
    if place == "pipeline":
        estimator = make_pipeline(PCA(16), estimator)  # turns and keeps all
    page = skpudle.report(estimator.fit(X), X).page
    found = find_learner(estimator)
    alone = skpudle.report(found.learner, found.prepare(X)).page
    assert check(page)[1:4] == check(alone)[1:4]  # of the codes and of the error
    assert share_not_explained(page) == share_not_explained(alone)
    assert html.escape(repr(estimator)) in page
    assert "<h1>PUDLEDictionaryLearning</h1>" in page


def test_a_classifier_has_one(X):
    classifier = PUDLEClassifier(6, max_iter=1, tol=None, random_state=0)
    assert len(check(skpudle.report(classifier.fit(X, np.arange(80) % 2), X).page)) == 7


@pytest.mark.parametrize(
    "shape", [dict(image_shape=(4, 4)), dict(kind="images"), dict(kind="lines", image_shape=(8, 2))]
)
def test_a_row_is_what_it_is_said_to_be(shape, learner, X):
    pages = [check(skpudle.report(learner, X, **given).page) for given in (shape, {})]
    differ = [one["alt"] for one, other in zip(*pages, strict=True) if one != other]
    assert differ == ["Atoms, most used first", "Worst samples"]
    with pytest.raises(ValueError, match="16 features are no images of shape"):
        skpudle.report(learner, X, image_shape=(3, 4))


@pytest.mark.parametrize("shape", [(60, 7), (60, 9)])
def test_what_is_no_image_is_drawn_all_the_same(shape):
    X = np.random.default_rng(0).normal(size=shape)
    options = dict(n_unfoldings=5, max_iter=1, tol=None, random_state=0, split_sign=True)
    learner = PUDLEDictionaryLearning(5, **options).fit(X)
    assert len(check(skpudle.report(learner, torch.tensor(X)).page)) == 7


def test_gaps_are_left_out_of_the_error(X):
    gaps = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    options = dict(n_unfoldings=5, max_iter=1, tol=None, random_state=0)
    learner = PUDLEDictionaryLearning(5, **options).fit(gaps)
    page = skpudle.report(learner, gaps).page
    assert "nan" not in re.sub('base64,[^"]*', "", page)


def test_any_learner_of_the_package_has_one(X):
    pytest.importorskip("sporco")
    learner = SporcoDictionaryLearning(5, max_iter=2, random_state=0).fit(X)
    assert len(check(skpudle.report(learner, X).page)) == 7


def test_a_report_is_saved_and_shown_in_notebooks(learner, X, tmp_path):
    report = skpudle.report(learner, X)
    report.save(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report.page
    assert report._repr_html_().startswith("<iframe srcdoc=")


NOISE = np.random.default_rng(0).normal(size=(4, 26, 22, 3))
SIGNALS, PICTURES = NOISE[:, :25, 0, 0], [NOISE[0], NOISE[1], NOISE[2, :20]]  # of several sizes
SAMPLES = [(5, SIGNALS), (5, NOISE[:, :, 0]), ((4, 4), PICTURES), ((4, 4), NOISE[..., :2])]


@pytest.mark.parametrize(("atom_shape", "samples"), SAMPLES)
def test_convolutional_learners_have_one(atom_shape, samples):
    options = dict(max_iter=1, n_unfoldings=3, tol=None, random_state=0)
    learner = ConvPUDLEDictionaryLearning(6, atom_shape=atom_shape, stride=2, **options)
    assert len(check(skpudle.report(learner.fit(samples), samples).page)) == 6


@pytest.mark.parametrize("noise_std", ["auto", (0.1, 1.0), "poisson"])
def test_denoisers_have_one(noise_std):
    samples = np.abs(NOISE[..., 0].round())
    options = dict(max_iter=1, n_unfoldings=3, tol=None, random_state=0)
    learner = ConvDenoiser(6, atom_shape=(4, 4), noise_std=noise_std, **options).fit(samples)
    assert len(check(skpudle.report(learner, samples).page)) == 6


def test_copies_of_atoms_are_counted_in_samples_not_in_positions():
    """One signal is one sample, whether it comes alone, in a list or in an array."""
    options = dict(atom_shape=5, stride=1, max_iter=1, n_unfoldings=3, tol=None, random_state=0)
    learner = ConvPUDLEDictionaryLearning(2, **options)
    for signals in (SIGNALS[..., None], list(SIGNALS)):
        codes = learner.fit(signals).transform(signals)
        facts = skpudle.report(learner, signals).facts
        n_copies = np.mean([np.count_nonzero(maps) for maps in codes])
        assert facts["mean number of copies of atoms in a sample"] == f"{n_copies:.4g}"
        assert facts["samples that fit read"] == facts["samples"] == len(signals)
    one = clone(learner).set_params(channels_first=True).fit(NOISE[0, :3, :, 0])
    facts = skpudle.report(one, NOISE[0, :3, :, 0]).facts
    assert facts["samples"] == 1


def test_the_score_names_its_unit_and_what_is_wrong():
    options = dict(atom_shape=(4, 4), max_iter=1, n_unfoldings=3, tol=None, random_state=0)
    learner = ConvPUDLEDictionaryLearning(6, alpha=1e-3, **options).fit(NOISE[..., 0])
    report, score = skpudle.report(learner, NOISE[..., 0]), learner.score(NOISE[..., 0])
    assert report.facts["score of the first 4 samples (R² of hidden pixels)"] == f"{score:.4g}"
    assert score < -0.01
    assert report.findings[-1].startswith(f"The score is {score:.4g}: ")
    images = 255 * np.random.default_rng(0).random((3, 12, 12))
    learner = ConvDenoiser(6, noise_std=25.0, **options).fit(images)
    (score,) = (v for k, v in skpudle.report(learner, images).facts.items() if "PSNR in dB" in k)
    assert float(score) == pytest.approx(learner.score(images, peak=images.max()), abs=0.01)


def share_not_explained(page):
    return re.search("not explained</td><td>(.*?)<", page)[1]


@pytest.mark.parametrize("container", [list, tuple, lambda images: np.stack([images[0]] * 2)])
def test_images_are_what_the_learner_takes_them_for(container):
    """Integers are fractions, and atoms reach beyond images that they do not cover exactly."""
    rng = np.random.default_rng(0)
    pair = [rng.integers(256, size=size, dtype=np.uint8) for size in [(16, 13), (9, 12)]]
    pixels = container(pair)
    fractions = [(image / 255).astype(np.float32) for image in pixels]
    options = dict(max_iter=1, n_unfoldings=3, tol=None, random_state=0)
    learner = ConvPUDLEDictionaryLearning(6, atom_shape=(4, 4), stride=2, **options).fit(fractions)
    images = learner.inverse_transform(learner.transform(fractions))
    images = [y[: len(x), : x.shape[1]] for x, y in zip(fractions, images, strict=True)]
    error = sum(((x - y) ** 2).sum() for x, y in zip(fractions, images, strict=True))
    expected = error / sum((x**2).sum() for x in fractions)
    page = skpudle.report(learner, pixels).page
    assert len(check(page)) == 6
    assert share_not_explained(page) == f"{expected:.2%}"


def test_images_that_are_rows_have_one():
    """A row is one line of pixels."""
    rows = NOISE[:, :13, :16, 0].reshape(4, -1)
    options = dict(max_iter=1, n_unfoldings=3, tol=None, random_state=0, stride=1)
    learner = ConvPUDLEDictionaryLearning(6, atom_shape=(1, 4), **options)
    assert len(check(skpudle.report(learner.fit(rows), rows).page)) == 6


def test_images_of_another_size_than_in_fit_have_one():
    options = dict(max_iter=1, n_unfoldings=3, tol=None, random_state=0)
    learner = ConvPUDLEDictionaryLearning(6, atom_shape=(4, 4), stride=2, **options)
    learner.fit(NOISE[:, :13, :13])  # as many positions as for 14 pixels
    assert len(check(skpudle.report(learner, NOISE[:, :14, :14]).page)) == 6


def test_energies_of_integers_do_not_wrap_around():
    rows = np.random.default_rng(0).integers(256, size=(60, 9), dtype=np.uint8)
    learner = PUDLEDictionaryLearning(5, n_unfoldings=5, max_iter=1, tol=None, random_state=0)
    pages = [skpudle.report(learner.fit(rows), X).page for X in (rows, rows.astype(float))]
    assert share_not_explained(pages[0]) == share_not_explained(pages[1])


def test_the_name_of_a_class_is_text(learner, X):
    kind = type("Learner<i>&", (PUDLEDictionaryLearning,), {})
    named = kind(**learner.get_params())
    vars(named).update({name: value for name, value in vars(learner).items() if name[-1] == "_"})
    page = skpudle.report(named, X).page
    assert "<i>" not in page
    assert page.count("Learner&lt;i&gt;&amp;") == 3
    assert len(check(page)) == 7


@pytest.mark.parametrize("nothing", [dict(n_atoms=0), dict(n_worst=0)])
def test_a_page_about_nothing_is_refused(nothing, learner, X):
    with pytest.raises(ValueError, match="pass 1 or more of each"):
        skpudle.report(learner, X, **nothing)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)

# The report as a notebook shows it, a frame as wide as a phone, and what the browser makes of it.
PAGE = """<!DOCTYPE html><meta charset="utf-8"><div style="width: 390px">{}</div><pre></pre><script>
addEventListener("load", () => {{
  const frame = document.querySelector("iframe"), page = frame.contentDocument;
  document.querySelector("pre").textContent = JSON.stringify({{
    widths: [...page.images].map(image => image.naturalWidth),
    title: page.querySelector("h1").textContent,
    overflow: page.documentElement.scrollWidth - frame.clientWidth,
  }});
}});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_it_without_complaint(learner, X, tmp_path):
    page = tmp_path / "page.html"
    report = skpudle.report(learner, X)
    page.write_text(PAGE.format(report._repr_html_()), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom"]
    run = subprocess.run(
        [BROWSER, *options, page.as_uri()], capture_output=True, text=True, timeout=100, check=True
    )
    assert "CONSOLE" not in run.stderr, run.stderr
    seen = json.loads(html.unescape(re.search("<pre>(.*?)</pre>", run.stdout, re.DOTALL)[1]))
    assert seen["title"] == "PUDLEDictionaryLearning"
    assert len(seen["widths"]) == len(check(report.page))
    assert min(seen["widths"]) > 0
    assert seen["overflow"] <= 0
