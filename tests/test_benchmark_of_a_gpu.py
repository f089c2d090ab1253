"""The benchmark of a GPU runs to its end where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu.py"


@pytest.mark.slow
def test_all_parts_run_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    given = "--out", str(out), "--device", "cpu", "--quick", "--repeats", "1"
    subprocess.run(
        [sys.executable, str(SCRIPT), *given], check=True, capture_output=True
    )
    report = json.loads(out.read_text())
    assert report["tests"]["exit status"] == 0
    (times,) = report["times"]
    assert min(times["seconds"].values()) > 0
