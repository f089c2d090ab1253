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

import skpudle
from skpudle import (
    ConvPUDLEDictionaryLearning,
    PUDLEDictionaryLearning,
    SporcoDictionaryLearning,
)
from skpudle.datasets import make_dictionary_data

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
    options = dict(n_unfoldings=20, max_iter=3, tol=None, random_state=0)
    return PUDLEDictionaryLearning(12, **options).fit(X)


def test_a_page_has_all_pictures_inside(learner, X):
    page = skpudle.report(learner, X).page
    images = check(page)
    names = {image["alt"] for image in images}
    assert names == {
        "Atoms, most used first",
        "Usage of the atoms",
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


@pytest.mark.parametrize("shape", [(60, 7), (60, 9)])
def test_what_is_no_image_is_drawn_all_the_same(shape):
    X = np.random.default_rng(0).normal(size=shape)
    options = dict(n_unfoldings=5, max_iter=1, tol=None, random_state=0, split_sign=True)
    learner = PUDLEDictionaryLearning(5, **options).fit(X)
    assert len(check(skpudle.report(learner, torch.tensor(X)).page)) == 6


def test_gaps_are_left_out_of_the_error(X):
    gaps = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    options = dict(n_unfoldings=5, max_iter=1, tol=None, random_state=0)
    learner = PUDLEDictionaryLearning(5, **options).fit(gaps)
    page = skpudle.report(learner, gaps).page
    assert "nan" not in re.sub('base64,[^"]*', "", page)


def test_any_learner_of_the_package_has_one(X):
    pytest.importorskip("sporco")
    learner = SporcoDictionaryLearning(5, max_iter=2, random_state=0).fit(X)
    assert len(check(skpudle.report(learner, X).page)) == 6


def test_a_report_is_saved_and_shown_in_notebooks(learner, X, tmp_path):
    report = skpudle.report(learner, X)
    report.save(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report.page
    assert report._repr_html_().startswith("<iframe srcdoc=")


NOISE = np.random.default_rng(0).normal(size=(4, 26, 22, 3))
SIGNALS, PICTURES = NOISE[:, :25, 0, 0], [NOISE[0], NOISE[1], NOISE[2, :20]]  # of several sizes


@pytest.mark.parametrize(("atom_shape", "samples"), [(5, SIGNALS), ((4, 4), PICTURES)])
def test_convolutional_learners_have_one(atom_shape, samples):
    options = dict(max_iter=1, n_unfoldings=3, tol=None, random_state=0)
    learner = ConvPUDLEDictionaryLearning(6, atom_shape=atom_shape, stride=2, **options)
    assert len(check(skpudle.report(learner.fit(samples), samples).page)) == 6


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
    assert len(check(page)) == 6


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
    page.write_text(PAGE.format(skpudle.report(learner, X)._repr_html_()), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom"]
    run = subprocess.run(
        [BROWSER, *options, page.as_uri()], capture_output=True, text=True, timeout=100, check=True
    )
    assert "CONSOLE" not in run.stderr, run.stderr
    seen = json.loads(html.unescape(re.search("<pre>(.*?)</pre>", run.stdout, re.DOTALL)[1]))
    assert seen["title"] == "PUDLEDictionaryLearning"
    assert len(seen["widths"]) == 6
    assert min(seen["widths"]) > 0
    assert seen["overflow"] <= 0
