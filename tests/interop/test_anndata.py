"""Codes and atoms of cells, kept by AnnData and read by scanpy."""

import numpy as np
import pytest

from skpudle import CountDictionaryLearning
from skpudle.metrics import recovery_rate

anndata = pytest.importorskip("anndata")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # anndata's and scanpy's own
    pytest.mark.draws_from_numpy,
]


@pytest.fixture(scope="module")
def cells():
    """Return 800 cells of counts with 6 programs of 30 genes, and the programs."""
    rng = np.random.default_rng(0)
    programs = rng.standard_normal((6, 30)) * (rng.random((6, 30)) < 0.3)
    programs /= np.linalg.norm(programs, axis=1, keepdims=True)
    activity = 3 * rng.random((800, 6)) * (rng.random((800, 6)) < 0.25)
    counts = rng.poisson(np.exp(2 + activity @ programs)).astype(np.float32)
    cells = anndata.AnnData(counts)
    cells.obs_names = [f"cell {i}" for i in range(800)]
    cells.var_names = [f"gene {i}" for i in range(30)]
    return cells, programs


def test_the_recipe_puts_codes_into_obsm_and_atoms_into_varm(cells, tmp_path):
    cells, programs = cells[0].copy(), cells[1]
    genes = cells.to_df()  # a data frame brings the names of the genes along
    learner = CountDictionaryLearning(6, positive_code=True, random_state=0)
    cells.obsm["X_pudle"] = learner.fit_transform(genes)
    cells.varm["pudle"] = learner.components_.T
    cells.uns["pudle"] = {"alpha": learner.alpha_}
    assert list(learner.feature_names_in_) == list(cells.var_names)
    assert recovery_rate(cells.varm["pudle"].T, programs, threshold=0.9) >= 5 / 6

    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(again.obsm["X_pudle"], cells.obsm["X_pudle"])

    # the stored atoms code further cells
    some = again[::7].copy()
    coder = CountDictionaryLearning.from_components(
        again.varm["pudle"].T,
        intercept=learner.intercept_,
        positive_code=True,
        alpha=float(again.uns["pudle"]["alpha"]),
    )
    np.testing.assert_allclose(coder.transform(some.X), some.obsm["X_pudle"], atol=1e-3)
