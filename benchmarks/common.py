"""Shared code of the benchmarks: options, reports that resume, timing, matching, the machine."""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

RESULTS = Path(__file__).resolve().parent / "results"
STATES = Path(__file__).resolve().parent / "output"
DISTRIBUTIONS = [
    "skpudle", "torch", "numpy", "scipy", "scikit-learn", "numba", "spams-bin", "sporco",
    "dictlearn", "scikit-image", "PyWavelets", "chemotools", "pyMCR", "bm3d", "sae-lens",
]  # fmt: skip


# ---------------------------------------------------------------------------- the machine


def _processor():
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


def peak_megabytes():
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def anonymous_megabytes():
    """Return RssAnon, the private memory of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return (
        next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
        / 1024
    )


class Growth:
    """The largest growth of private memory while it is open, in megabytes: ``most``."""

    def __enter__(self):
        self.start, self.most, self._done = (
            anonymous_megabytes(),
            0.0,
            threading.Event(),
        )
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._done.wait(0.02):
            self.most = max(self.most, anonymous_megabytes() - self.start)

    def __exit__(self, *error):
        self._done.set()
        self._thread.join()


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def circumstances():
    """Return the facts that the figures depend on, for the JSON."""
    versions = {name: _version(name) for name in DISTRIBUTIONS}
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "load_average_at_the_start": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version()}
        | {name: version for name, version in versions.items() if version},
    }


# ---------------------------------------------------------------------------- options and files


def parse(doc, out=None, *, choices=None, hidden=(), names=(), **defaults):
    """Return the options of a command, computing on one thread from here on.

    A default makes an option: False a switch, a list several values, a type one value of this type
    or None, anything else one value of its type. ``--out`` is the file in the folder of results,
    or, if None, nothing unless it is given. ``names`` are positional.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser, choices = (
        argparse.ArgumentParser(description=doc, formatter_class=form),
        choices or {},
    )
    for name in names:
        parser.add_argument(name, choices=choices.get(name))
    for name, default in defaults.items():
        how = dict(choices=choices.get(name)) if name in choices else {}
        if default is False:
            how = dict(action="store_true")
        elif isinstance(default, list | tuple):
            how |= dict(nargs="*", type=type(default[0]) if default else str)
        else:
            how["type"] = default if isinstance(default, type) else type(default)
        help_ = argparse.SUPPRESS if name in hidden else None
        default = None if isinstance(default, type) else default
        option = "--" + name.replace("_", "-")
        parser.add_argument(
            option, default=default, help=help_ or f"default: {default}", **how
        )
    path = None if out is None else RESULTS / out
    parser.add_argument(
        "--out", type=Path, default=path, help=f"JSON to write, default: {path}"
    )
    torch.set_num_threads(1)
    # and of OpenBLAS: its second thread adds half to the CPU times of scikit-learn
    threadpool_limits(1)
    warnings.simplefilter("ignore", ConvergenceWarning)  # the result is judged anyway
    return parser.parse_args()


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
        json.dumps(report, default=str),
        parse_float=lambda text: float(f"{float(text):.6g}"),
    )
    write(path, (json.dumps(rounded, indent=1) + "\n").encode())


class Report:
    """Rows of a JSON file, printed and stored as they come.

    Parameters
    ----------
    path : Path or None
        The file, or None to print alone.
    keys : tuple of str
        Columns that name a row. A file that is there is continued: a row replaces the one with the
        same keys. Without keys the file begins anew.
    rows : str
        The rows' place in the file.
    **head
        What else is in the file.
    """

    def __init__(self, path, *keys, rows="results", **head):
        stored = json.loads(path.read_text()) if keys and path and path.exists() else {}
        self.path, self.keys, self._place = path, keys, rows
        stored = {rows: stored} if isinstance(stored, list) else stored
        self.rows = stored.pop(rows, [])
        facts = circumstances()
        kept = {
            name: stored[name] for name in stored.keys() - facts.keys() - {"machine"}
        }
        self.head = kept | head | {"circumstances": facts}

    def has(self, *values):
        """Return whether there is a row with these first keys."""
        names = self.keys[: len(values)]
        return any(
            tuple(row.get(name) for name in names) == values for row in self.rows
        )

    def add(self, row):
        print(json.dumps(row, default=float), flush=True)
        of_keys = [row.get(name) for name in self.keys]
        same = [
            r
            for r in self.rows
            if self.keys and [r.get(n) for n in self.keys] == of_keys
        ]
        self.rows = [r for r in self.rows if r not in same] + [row]
        self.write()

    def extend(self, rows):
        for row in rows:
            self.add(row)

    def measure(self, function, *values):
        """Add the rows that a function returns for values of the first keys, unless they are there.

        If a package is not installed, rows from its first one on are missing.
        """
        if self.has(*values):
            return
        rows = []
        try:
            found = function(*values)
            for row in [found] if isinstance(found, dict) else found:
                rows.append(row)
        except ImportError as error:
            print(f"{values}, all or the rest: {error}", flush=True)
        self.extend(rows)

    def write(self, **more):
        self.head |= more
        as_numbers = json.loads(json.dumps(self.rows, default=float))
        write_report(self.path, self.head | {self._place: as_numbers})


def alone(script, *arguments):
    """Return the last line, JSON, that a script prints in a process of its own."""
    command = [sys.executable, script, *map(str, arguments)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


# ---------------------------------------------------------------------------- measuring


def timed(function, *arguments, clock=time.process_time, **options):
    """Return a result and the seconds of the processor."""
    start = clock()
    return function(*arguments, **options), clock() - start


def unit(rows):
    """Return rows of norm 1; rows of zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def matched(found, truth):
    """Return the row that stands for each true one, one to one, and their signed cosines."""
    cosines = unit(truth) @ unit(found).T
    rows, columns = linear_sum_assignment(-np.abs(cosines))
    return columns, cosines[rows, columns]


def share_found(found, truth, threshold=0.95):
    """Return the share of true atoms with an atom of a larger cosine."""
    return float(
        (np.abs(unit(truth) @ unit(np.asarray(found)).T).max(1) > threshold).mean()
    )


def halves(X, share=0.8):
    """Return rows to learn from and rows to evaluate by, at random."""
    X = X[np.random.default_rng(0).permutation(len(X))]
    return X[: int(share * len(X))], X[int(share * len(X)) :]


def spams_atoms(
    X, n_components, alpha, *, n_passes=20, batch=512, positive=False, **options
):
    """Return the atoms of `spams.trainDL`, from several passes over the rows."""
    import spams

    batch = min(batch, len(X))
    options = dict(iter=n_passes * -(-len(X) // batch), K=n_components) | options
    options |= dict(
        lambda1=alpha, batchsize=batch, posAlpha=positive, numThreads=1, verbose=False
    )
    return np.ascontiguousarray(spams.trainDL(np.asfortranarray(X.T), **options).T)


def by_scripts(python, script, *, folder, **given):
    """Run code in another interpreter on arrays, from file to file; return the arrays it stores."""
    before, after = Path(folder) / "given.npz", Path(folder) / "found.npz"
    np.savez(before, **given)
    subprocess.run([python, "-c", script, str(before), str(after)], check=True)
    with np.load(after) as found:
        return dict(found)


perf_timed = partial(timed, clock=time.perf_counter)
