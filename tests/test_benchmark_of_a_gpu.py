"""The benchmark of a GPU runs to its end where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu.py"


def run(tmp_path, *arguments):
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--out", str(out), *arguments]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return shown, json.loads(out.read_text())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_gpu_it_says_so(tmp_path):
    shown, report = run(tmp_path)
    assert report["skipped"] in shown


def test_all_parts_run_on_a_cpu(tmp_path):
    _, report = run(tmp_path, "--device", "cpu", "--quick", "--repeats", "1")
    assert report["tests"]["exit status"] == 0
    (times,) = report["times"]
    assert min(times["seconds"].values()) > 0
