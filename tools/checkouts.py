"""Two checkouts of the package, each in processes of its own with one thread."""

import os
import subprocess
import sys
import tarfile
from functools import partial
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ONE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")
}


def unpack(base):
    """Return the directory of a checkout: a directory as it is, a revision in ``build/``.

    The source of a revision is unpacked once, so that its compiled loops stay.
    """
    if (Path(base) / "skpudle").is_dir():
        return Path(base).resolve()
    git = partial(subprocess.run, cwd=ROOT, capture_output=True, check=True)
    commit = (
        git(["git", "rev-parse", "--verify", f"{base}^{{commit}}"])
        .stdout.decode()
        .strip()
    )
    folder = ROOT / "build" / "checkouts" / commit
    if not folder.is_dir():
        archive = git(["git", "archive", commit, "skpudle"]).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
    return folder


def start(script, checkout, *arguments, **options):
    """Start a script in a process that imports the package of a checkout."""
    environment = (
        os.environ | ONE_THREAD | {"PYTHONPATH": str(checkout), "SCIPY_ARRAY_API": "1"}
    )
    return subprocess.Popen(
        [sys.executable, script, *arguments], env=environment, **options
    )


def check_place(package, checkout):
    """Raise SystemExit if the package that a process imported is not that of its checkout."""
    if not Path(package).is_relative_to(checkout):
        raise SystemExit(f"{package} ran in the place of {checkout}.")
