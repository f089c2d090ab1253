"""The report is one page that needs nothing else and says what is so."""

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import skpudle
from skpudle import PUDLEDictionaryLearning, SporcoDictionaryLearning
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


def test_a_browser_shows_it_without_complaint(learner, X, tmp_path, python_draws):
    playwright = pytest.importorskip("playwright.sync_api")
    skpudle.report(learner, X).save(tmp_path / "report.html")
    with playwright.sync_playwright() as browsers:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        if path is None:
            pytest.skip("needs Chromium")
        browser = browsers.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        complaints = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((tmp_path / "report.html").as_uri())
        sizes = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        width = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert len(sizes) == 6
    assert min(sizes) > 0
    assert width <= 390
    assert not complaints
