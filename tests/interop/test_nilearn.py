"""nilearn's DictLearning with the recipe of the guide."""

import doctest
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from small import weekly

pytest.importorskip("nilearn")
nibabel = pytest.importorskip("nibabel")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # nilearn's and nibabel's own
    pytest.mark.draws_from_numpy,  # nilearn's masking does
]

N_MAPS, SHAPE, N_TIMES = 16, (20, 20, 12), 60


@cache
def planted(seed, noise=0.5, n_subjects=4):
    """Return maps of one or two blobs each, and images of four subjects with their sums."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    maps = np.zeros((N_MAPS, *SHAPE))
    for one in maps:
        for _ in range(rng.integers(1, 3)):
            centre = np.array([rng.uniform(2, size - 2) for size in SHAPE])
            width, height = rng.uniform(1.2, 2.2), rng.uniform(0.7, 1.3)
            one += height * np.exp(-((grid - centre) ** 2).sum(-1) / (2 * width**2))
    maps = np.where(maps < 0.15, 0, maps).reshape(N_MAPS, -1)
    images = []
    for _ in range(n_subjects):
        series = rng.standard_normal((N_TIMES, N_MAPS)) @ maps
        series = series + noise * rng.standard_normal(series.shape)
        data = series.T.reshape(*SHAPE, N_TIMES).astype(np.float32)
        images.append(nibabel.Nifti1Image(data, np.diag([3.0, 3, 3, 1])))
    return maps, images


def n_found(seed, alpha):
    from nilearn.decomposition import DictLearning

    maps, images = planted(seed)
    mask = nibabel.Nifti1Image(np.ones(SHAPE, np.int8), np.diag([3.0, 3, 3, 1]))
    options = dict(smoothing_fwhm=None, standardize="zscore_sample", random_state=0)
    found = (
        DictLearning(N_MAPS, alpha=alpha, mask=mask, **options).fit(images).components_
    )
    unit = [
        rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9)
        for rows in (maps, found)
    ]
    return int((np.abs(unit[0] @ unit[1].T).max(1) > 0.9).sum())


@pytest.fixture
def recipe(monkeypatch):
    """Return a function that puts the search of the guide into nilearn."""
    from nilearn.decomposition import dict_learning

    page = Path(__file__).parents[2] / "docs" / "guide" / "scikit_learn.rst"
    examples = doctest.DocTestParser().get_examples(page.read_text("utf-8"))
    names = {}
    exec("import torch\nfrom skpudle.lasso import solve_lasso", names)
    exec("from skpudle.search import Problem, search", names)
    (code,) = [
        e.source for e in examples if e.source.startswith("def dict_learning_online")
    ]
    exec(code, names)

    def put():
        monkeypatch.setattr(
            dict_learning, "dict_learning_online", names["dict_learning_online"]
        )

    return put


@pytest.mark.parametrize("alpha", weekly(1, 2))
def test_planted_maps_are_found_as_often_as_by_scikit_learn(alpha, recipe):
    theirs = [n_found(seed, alpha) for seed in range(2)]
    recipe()
    ours = [n_found(seed, alpha) for seed in range(2)]
    assert sum(ours) >= sum(theirs), (ours, theirs)
