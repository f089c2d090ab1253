"""`benchopt run` of the public benchmarks, small."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Lasso

ROOT = Path(__file__).parents[2]
SOLVERS = {  # and the packages that they need
    "scikit-learn": "sklearn",
    "skpudle": "torch",
    "SPAMS": "spams",
    "SPORCO": "sporco",
    "dictlearn": "dictlearn",
}
pytest.importorskip("benchopt.cli")


def run(folder, tmp_path, *options):  # -> data frame of results
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    shutil.copytree(
        ROOT / "benchmarks/benchopt" / folder,
        tmp_path / folder,
        ignore=shutil.ignore_patterns("outputs", "__cache__", "__pycache__"),
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchopt",
            "run",
            ".",
            "--no-plot",
            "-r",
            "1",
            *options,
        ],
        cwd=tmp_path / folder,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        },
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert "error" not in output.lower(), output[-3000:]
    (file,) = (tmp_path / folder / "outputs").glob("*.parquet")
    return pandas.read_parquet(file)


@pytest.mark.slow
def test_the_benchmark_of_dictionary_learning_runs(tmp_path):
    missing = [package for package in SOLVERS.values() if find_spec(package) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    data = "Synthetic[n_components=12,n_features=16,n_samples=300,sparsity=2,snr_db=20]"
    options = "-d", data, "-o", "*[reg=0.1]", "-n", "3", "--timeout", "10"
    results = run("dictionary_learning", tmp_path, *options)
    names = results.solver_name.str.partition("[")[0]
    assert set(names) == set(SOLVERS)
    assert (results.objective_value < 1).all()  # lower than without codes
    assert (results.objective_value > 0).all()
    ours = results[results.solver_name == "skpudle[alpha=common]"]
    assert (ours.objective_missed == 0).all()
    assert (ours.objective_value <= 1.02 * results.objective_value.min()).all()


@pytest.mark.draws_from_numpy
def test_the_solver_for_benchmark_lasso_is_exact():
    path = ROOT / "benchmarks/benchopt/lasso/solvers/skpudle.py"
    spec = spec_from_file_location("solver", path)
    spec.loader.exec_module(module := module_from_spec(spec))
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((50, 100)), rng.standard_normal(50)
    solver, alpha = module.Solver(), 0.1 * np.abs(X.T @ y).max()
    solver.set_objective(X, y, alpha, False)
    solver.run(1)
    expected = (
        Lasso(alpha / 50, fit_intercept=False, tol=1e-12, max_iter=10_000)
        .fit(X, y)
        .coef_
    )
    np.testing.assert_allclose(solver.get_result()["beta"], expected, rtol=0, atol=1e-6)
