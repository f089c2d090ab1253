"""Compare the quality and the time of two checkouts: a change of structure harms no result.

``python tools/same_quality.py BASE`` fits some seventy problems with three seeds, in BASE, a
directory or a revision of git, and in this checkout. It prints a line for each problem and a
summary, and exits with 1 if the contract is broken:

=========  =================================================================  ==================
figure     is                                                                 at most, at least
=========  =================================================================  ==================
error      of unseen rows: in units of the noise, or 1 minus R2 or accuracy   1.03 median, 1.10
found      share of the planted atoms that have a cosine of .95 with an atom  -.01
agreement  mean cosine of the atoms of one seed with the nearest of another   -.02
codes      nonzero codes of a row, an image or a signal                       10 % more or fewer
seconds    CPU time of a fit (and for the median its noise)                   1.0 median, 1.2
=========  =================================================================  ==================

Error and codes are ratios of the means of the seeds; seconds are the median of the ratios of single
fits. Two processes with one thread, one for each checkout, take turns fit by fit. ``--jobs 2`` runs
two such pairs, ``--only WORD`` the problems whose names contain a word. ``--json FILE`` keeps all
figures; problems that it has for the same source are not run again.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from statistics import mean, median
from typing import NamedTuple

from checkouts import ROOT, check_place, start, unpack
from quality_cases import CASES, match

SOURCE = "checkouts.py", "quality_cases.py", "same_quality.py"  # of this comparison
SEEDS = 0, 1, 2
FIGURES = "error", "found", "agreement", "codes", "seconds"
FOUND = 0.95  # cosine of an atom that is found

# The contract.
ERROR_MEDIAN, ERROR_WORST = 1.03, 1.10
LEAST_FOUND, LEAST_AGREEMENT, CODES = -0.01, -0.02, 0.10
SECONDS_MEDIAN, SECONDS_WORST = 1.0, 1.2
# Noise of the ratio of seconds of a case, which the median may exceed 1 by, divided by the root of
# the number of cases. When a checkout is compared with itself on a machine with six times as many
# processes as cores, ratios have a deviation of .09, medians of n of them twice .11 / sqrt(n).
NOISE_OF_SECONDS = 0.22
# Errors that are rounding, in units of the noise or of the variance.
ROUNDING = 1e-4


# ------------------------------------------------------------------------- worker


def run_case(name, seed, first_atoms):
    """Return the figures of a case, or the error that it raised.

    Atoms of the first seed stay in ``first_atoms``, for other seeds to agree with.
    """
    try:
        result = CASES[name](seed)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    figures = {figure: getattr(result, figure, None) for figure in FIGURES}
    if result.truth is not None:
        figures["found"] = float((match(result.truth, result.atoms) >= FOUND).mean())
    elif result.atoms is not None:
        first = first_atoms.setdefault(name, (seed, result.atoms))
        if first[0] != seed:
            figures["agreement"] = float(match(first[1], result.atoms).mean())
    return figures


def serve():
    """Answer requests, lines of a name and a seed, by lines of figures, until the input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the package prints is no reply
    warnings.simplefilter("ignore")
    import skpudle

    print(json.dumps(skpudle.__file__), file=replies)
    first_atoms = {}
    for line in sys.stdin:
        print(json.dumps(run_case(*json.loads(line), first_atoms)), file=replies)


class Worker:
    """A process that runs cases with the package of a checkout."""

    def __init__(self, checkout):
        self.checkout, self.process = checkout, None

    def run(self, name, seed):
        """Return the figures of a case."""
        if self.process is None:
            pipe = dict(
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            self.process = start(__file__, self.checkout, "--serve", **pipe)
            check_place(
                json.loads(self.process.stdout.readline() or '""'), self.checkout
            )
        self.process.stdin.write(json.dumps([name, seed]) + "\n")
        reply = self.process.stdout.readline()
        if not reply:
            return {"failed": f"the process ended with {self.stop()}"}
        return json.loads(reply)

    def stop(self):
        """End the process, and return its exit code."""
        if self.process is not None:
            process, self.process = self.process, None
            process.communicate()
            return process.returncode


def take_turns(workers, name):
    """Return the figures of a case of both checkouts, fit by fit in turns, a list for each."""
    runs = [[], []]
    for turn, seed in enumerate(SEEDS):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            runs[side].append(workers[side].run(name, seed))
    return runs


def run_pair(workers, name):
    """Return the figures of a case of both checkouts; seconds above the limit are taken again.

    A process of another program can slow down one of the fits. The least seconds count.
    """
    runs = take_turns(workers, name)
    if compare(*runs).broken == ["seconds"]:
        for side, again in enumerate(take_turns(workers, name)):
            for one, other in zip(runs[side], again, strict=True):
                one["seconds"] = min(
                    one["seconds"], other.get("seconds", one["seconds"])
                )
    return runs


# ------------------------------------------------------------------------- comparison


class Comparison(NamedTuple):
    """Figures of a case in both checkouts, and what of the contract they break."""

    base: dict
    here: dict
    change: (
        dict  # ratios of error, codes and seconds; differences of found and agreement
    )
    broken: list
    is_equal: bool


def summarise(runs):
    """Return the mean of each figure over the seeds that have it, of seconds the median."""
    known = {
        name: [run[name] for run in runs if run[name] is not None] for name in FIGURES
    }
    return {
        name: (median if name == "seconds" else mean)(values) if values else None
        for name, values in known.items()
    }


def compare(base, here):
    """Compare the runs of a case in two checkouts, a list of figures for each."""
    failures = [
        f"{where}: {run['failed']}"
        for where, runs in (("base", base), ("here", here))
        for run in runs
        if "failed" in run
    ]
    if failures:
        return Comparison({}, {}, {}, failures[:1], False)
    is_equal = all(
        one[name] == other[name]
        for one, other in zip(base, here, strict=True)
        for name in FIGURES[:-1]
    )
    ratios = [
        other["seconds"] / one["seconds"] for one, other in zip(base, here, strict=True)
    ]
    one, other = summarise(base), summarise(here)
    change, broken = {"seconds": median(ratios)}, []
    for name in FIGURES[:-1]:
        if (one[name] is None) != (other[name] is None):
            broken.append(f"{name} is known in one checkout only")
        elif one[name] is not None:
            change[name] = other[name] - one[name]
            if name in ("error", "codes"):
                change[name] = (other[name] + ROUNDING) / (one[name] + ROUNDING)
    allowed = {
        "error": lambda ratio: ratio <= ERROR_WORST,
        "found": lambda rise: rise >= LEAST_FOUND,
        "agreement": lambda rise: rise >= LEAST_AGREEMENT,
        "codes": lambda ratio: abs(ratio - 1) <= CODES,
        "seconds": lambda ratio: ratio <= SECONDS_WORST,
    }
    broken += [name for name, value in change.items() if not allowed[name](value)]
    return Comparison(one, other, change, broken, is_equal)


def judge_all(comparisons):
    """Return what the cases break together, and a summary in words."""
    broken = [name for name, one in comparisons.items() if one.broken]
    changes = {
        figure: [
            one.change[figure] for one in comparisons.values() if figure in one.change
        ]
        for figure in FIGURES
    }
    middle = {
        figure: median(values) if values else 1.0 for figure, values in changes.items()
    }
    n_known = max(len(changes["seconds"]), 1)
    limits = {
        "error": ERROR_MEDIAN,
        "seconds": SECONDS_MEDIAN + NOISE_OF_SECONDS / n_known**0.5,
    }
    above = [figure for figure, limit in limits.items() if not middle[figure] <= limit]
    n_equal = sum(one.is_equal for one in comparisons.values())
    lines = [f"{len(comparisons)} cases, {n_equal} equal but for seconds"]
    for figure, values in changes.items():
        if values:
            extremes = f"{min(values):.3f} to {max(values):.3f}"
            lines.append(f"{figure}: median {middle[figure]:.3f}, {extremes}")
    lines += [f"broken by the median: {figure}" for figure in above]
    lines += [f"broken by {len(broken)} cases: {'; '.join(broken)}"] if broken else []
    return bool(broken or above), "\n".join(lines)


def describe(name, one):
    """Return the line of a case."""
    if not one.change:
        return f"{name:28s} BROKEN {one.broken[0]}"
    parts = []
    for figure in FIGURES:
        if figure in one.change:
            mark = "!" if figure in one.broken else ""
            before, after = one.base[figure], one.here[figure]
            change = (
                f"{one.change[figure]:+.3f}"
                if figure in ("found", "agreement")
                else f"{one.change[figure]:.2f}"
            )
            parts.append(f"{figure} {before:.4g} -> {after:.4g} ({change}){mark}")
    verdict = "BROKEN" if one.broken else "equal" if one.is_equal else "kept"
    return f"{name:28s} {verdict:6s} {', '.join(parts)}"


# ------------------------------------------------------------------------- main


def hash_files(paths):
    """Return a hash of the content of files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[
        :16
    ]


def hash_source(checkout):
    """Return a hash of the package of a checkout."""
    paths = sorted((checkout / "skpudle").rglob("*"))
    return hash_files(path for path in paths if path.suffix in (".py", ".npz", ".pt"))


def read_report(path, state):
    """Return the report in a file if it is about this state of source, or else an empty one."""
    if path is not None and path.exists():
        report = json.loads(path.read_text())
        if report["state"] == state:
            return report
    return {"state": state, "runs": {}}


def write_report(path, report):
    """Replace the report in one step."""
    if path is not None:
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        temporary.replace(path)


def run_cases(checkouts, names, n_jobs, note):
    """Run cases in pairs of processes, and call ``note`` with the name and the runs of each."""
    left = SimpleQueue()
    for name in names:
        left.put(name)

    def work():
        workers = [Worker(checkout) for checkout in checkouts]
        try:
            while not left.empty():
                name = left.get_nowait()
                note(name, run_pair(workers, name))
        finally:
            for worker in workers:
                worker.stop()

    with ThreadPoolExecutor(n_jobs) as pool:
        for job in [pool.submit(work) for _ in range(n_jobs)]:
            job.result()


def main():
    """Run the cases, print a line for each and a summary, exit with 1 if the contract is broken."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", nargs="?", help="directory or revision to compare with")
    parser.add_argument(
        "--only", default="", help="run cases whose names contain this word"
    )
    parser.add_argument("--jobs", type=int, default=1, help="pairs of processes")
    parser.add_argument("--json", type=Path, help="file that keeps all figures")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    if options.base is None:
        parser.error("Got no BASE. Pass a directory or a revision of git.")
    names = [name for name in CASES if options.only in name]
    if not names:
        raise SystemExit(
            f"No case has {options.only!r} in its name. Pass a part of one."
        )
    checkouts = [unpack(options.base), ROOT]
    state = {
        "base": [options.base, hash_source(checkouts[0])],
        "here": hash_source(ROOT),
        "cases": hash_files(Path(__file__).with_name(name) for name in SOURCE),
    }
    report = read_report(options.json, state)

    def note(name, runs):
        report["runs"][name] = runs
        write_report(options.json, report)
        print(describe(name, compare(*runs)), flush=True)

    for name in names:
        if name in report["runs"]:
            print(describe(name, compare(*report["runs"][name])))
    run_cases(
        checkouts,
        [name for name in names if name not in report["runs"]],
        options.jobs,
        note,
    )
    is_broken, text = judge_all(
        {name: compare(*report["runs"][name]) for name in names}
    )
    print(text)
    raise SystemExit(int(is_broken))


if __name__ == "__main__":
    main()
