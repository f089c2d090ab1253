"""Test and time this package on a GPU, beside its CPU; ``make gpu`` runs it.

The report is written after each part. Without CUDA there is nothing to measure, and a message says
so; ``--device cpu --quick`` checks that all parts run. Example::

    python benchmarks/gpu.py --out gpu.json
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from common import circumstances, write_report

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data

ROOT = Path(__file__).resolve().parents[1]
# rows, features, atoms
SIZES = (
    (10_000, 64, 128),
    (20_000, 256, 1024),
    (50_000, 512, 4096),
)


def run_tests(quick):
    """Run the tests that need a GPU; a quick run lists those of one folder."""
    given = ["tests/omp", "--collect-only"] if quick else ["tests"]
    command = [sys.executable, "-m", "pytest", "-q", "--no-cov", "-m", "gpu", *given]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    lines = run.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit status": run.returncode, "summary": lines[-1:], "failed": failed}


def synchronize(device):
    """Wait until a device has computed what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function, device, repeats):
    """Return the median time of a call, after one that warms up."""
    seconds = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = perf_counter()
        function()
        synchronize(device)
        seconds.append(perf_counter() - start)
    return round(median(seconds[1:]), 4)


def time_learner(size, device, repeats):
    """Return seconds of a search, of exact codes, and of an epoch through 20 unfoldings."""
    n, m, p = size
    X = torch.tensor(make_dictionary_data(n, m, p, 5, snr_db=20, random_state=0)[0])
    X = X.float().to(device)
    given = dict(random_state=0, device=device)
    learner = PUDLEDictionaryLearning(p, **given).fit(X)
    training = dict(
        n_unfoldings=20, gradient="ae-ls", alpha=learner.alpha_, max_iter=1, tol=None
    )
    trained = PUDLEDictionaryLearning(
        dict_init=learner.components_, **training, **given
    )
    return {
        "fit": seconds_of(
            lambda: PUDLEDictionaryLearning(p, **given).fit(X), device, repeats
        ),
        "transform": seconds_of(lambda: learner.transform(X), device, repeats),
        "epoch": seconds_of(lambda: trained.fit(X), device, repeats),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, some tests are listed"
    )
    options = parser.parse_args()
    report = {"circumstances": circumstances(), "times": []}
    if options.device == "cuda" and not torch.cuda.is_available():
        report["skipped"] = "no CUDA device: nothing was measured"
        print(report["skipped"])
        write_report(options.out, report)
        sys.exit()
    report["tests"] = run_tests(options.quick)
    write_report(options.out, report)
    for size in ((200, 8, 12),) if options.quick else SIZES:
        for device in dict.fromkeys([options.device, "cpu"]):
            found = time_learner(size, device, options.repeats)
            report["times"].append({"size": size, "device": device, "seconds": found})
            write_report(options.out, report)
            print(report["times"][-1])
