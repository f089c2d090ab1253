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
    assert "no CUDA device" in shown
    assert report["skipped"] in shown


def assert_whole(report):
    def errors(found):
        if isinstance(found, dict):
            yield from (value for name, value in found.items() if name in ("error", "failed"))
            for value in found.values():
                yield from errors(value)

    assert not any(errors(report["parts"])), report["parts"]


def test_parts_run_on_a_cpu(tmp_path):
    options = ("--device", "cpu", "--quick", "--repeats", "1", "--parts")
    _, report = run(tmp_path, *options, "peak", "update")
    assert_whole(report)
    assert set(report["parts"]) == {"peak", "update"}
    shares = report["fractions_of_the_peak"]["p=40"]["skpudle"]
    assert all(share > 0 for share in shares.values())


@pytest.mark.slow
def test_all_parts_run_on_a_cpu(tmp_path):
    _, report = run(tmp_path, "--device", "cpu", "--quick", "--repeats", "1")
    assert_whole(report)
    assert all("result" in part for part in report["parts"].values())
