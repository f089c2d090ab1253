"""Shared code of the benchmarks: natural patches, reports, facts about the machine."""

import importlib.metadata
import json
import os
import platform
import resource
from pathlib import Path

import numpy as np
import torch

from skpudle.datasets import load_image_patches

RESULTS = Path(__file__).resolve().parent / "results"
DISTRIBUTIONS = [
    "skpudle",
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "numba",
    "spams-bin",
    "sporco",
    "dictlearn",
    "scikit-image",
    "PyWavelets",
    "chemotools",
    "pyMCR",
]


def natural_patches(folder, n, *, dtype, seed):
    """Return 8x8 patches without their mean and of unit norm, (n, 64); flat ones are left out."""
    patches = load_image_patches(folder, n_patches=n + n // 10, dtype=dtype, random_state=seed)
    patches = patches[np.linalg.norm(patches, axis=1) > 0.5]
    if len(patches) < n:
        raise SystemExit(f"These images have {len(patches)} patches that are not flat, not {n}.")
    return patches[:n]


def synchronize(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _processor():
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def peak_megabytes():
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def anonymous_megabytes():
    """Return RssAnon, the private memory of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def circumstances(device="cpu"):
    """Return the facts that the figures depend on, for the JSON."""
    versions = {name: _version(name) for name in DISTRIBUTIONS}
    on_gpu = torch.device(device).type == "cuda"
    return {
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "threads": torch.get_num_threads(),
        "load_average_at_the_start": round(os.getloadavg()[0], 2)
        if hasattr(os, "getloadavg")
        else None,
        "versions": {"python": platform.python_version()}
        | {name: version for name, version in versions.items() if version},
    }


def write(path, content):
    """Replace a file by these bytes in one step: an interruption leaves the old or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(content)
    temporary.replace(path)


def write_report(path, report):
    """Write JSON with six significant digits."""
    if path is None:
        return
    rounded = json.loads(
        json.dumps(report, default=str), parse_float=lambda text: float(f"{float(text):.6g}")
    )
    write(path, (json.dumps(rounded, indent=1) + "\n").encode())
