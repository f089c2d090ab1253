"""Break training on purpose, for a given time or a given number of times, and count losses.

    python benchmarks/soak.py --kills 50 --corruptions 100 --full-disks 5
    python benchmarks/soak.py --minutes 30

A process in training is killed by SIGKILL at random moments until its fit is finished; the result
has to equal an undisturbed one bit by bit. Checkpoints are cut off, changed in a bit, overwritten,
or replaced by a file that would run when unpickled. The largest file a process may write becomes
too small, as on a full disk.

Children are forked, so that a fault does not cost a start of Python; each computes on one thread.
"""

import hashlib
import io
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a fork has no threads but its own

import numpy as np
import torch
from common import Report, parse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from skpudle import Checkpoint, PUDLEDictionaryLearning
from skpudle._training.checkpoint import read_checkpoint

warnings.simplefilter("ignore", ConvergenceWarning)


def make_data(rng):
    X = rng.normal(size=(600, 20)).astype(np.float32)
    X[rng.random(X.shape) < 0.01] = np.nan
    return X


def make_learner(rng):
    """Return one of several kinds of training, of some hundred updates."""
    return PUDLEDictionaryLearning(
        int(rng.integers(8, 60)),
        batch_size=int(rng.integers(8, 64)),
        n_unfoldings=10,
        optimizer=str(rng.choice(["adam", "sgd", "surrogate"])),
        gradient=str(rng.choice(["ae-ls", "ae-lasso", "dec"])),
        lambda_decay=(1.0, 0.95) if rng.random() < 0.3 else 1.0,
        max_iter=40,
        tol=None,
        random_state=int(rng.integers(1000)),
    )


def forked(function):
    """Run a function in a child; return its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        function()
        code = 0
    except BaseException as error:
        print(f"child: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    finally:
        os._exit(code)


def wait(child, seconds=None):
    """Return the exit status of a child, None if it still runs after the given time."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() >= end:
            return None
        time.sleep(0.002)


def being_written(path):
    return any(path.parent.glob(f"{path.name}.*.part"))


def train(learner, X, path, result, **options):
    found = clone(learner).set_callbacks(Checkpoint(path, every_seconds=0, **options)).fit(X)
    with open(f"{result}.part", "wb") as file:
        np.save(file, found.components_)
    os.replace(f"{result}.part", result)


class Soak:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.counts = dict(
            fits=0, kills=0, kills_while_writing=0, restarts_from_a_checkpoint=0,
            corrupted_files=0, full_disks=0, results_lost=0,
        )  # fmt: skip

    def expect(self, right, what):
        if not right:
            self.counts["results_lost"] += 1
            print("LOST:", what, flush=True)

    def in_peace(self, folder):
        X, learner = make_data(self.rng), make_learner(self.rng)
        start = time.monotonic()
        child = forked(lambda: train(learner, X, folder / "peace.npz", folder / "peace.npy"))
        self.expect(wait(child) == 0, f"a fit in peace failed: {learner}")
        self.counts["fits"] += 1
        return X, learner, time.monotonic() - start, np.load(folder / "peace.npy")

    def kill(self, folder, at_most):
        """Kill one fit until it is finished; each life is a random share of an undisturbed one."""
        X, learner, seconds, expected = self.in_peace(folder)
        path, result = folder / "fit.npz", folder / "fit.npy"
        while not result.exists():
            child = forked(lambda: train(learner, X, path, result))
            life = None if at_most <= 0 else self.rng.uniform(0.1, 0.9) * seconds
            code = wait(child, life)
            if code is None:
                end = time.monotonic() + (0.2 * seconds if self.rng.random() < 0.4 else 0)
                while time.monotonic() < end and not being_written(path):
                    pass  # a checkpoint is being written for a few ms only
                os.kill(child, signal.SIGKILL)
                code = wait(child)
            if code == -signal.SIGKILL:
                at_most -= 1
                self.counts["kills"] += 1
                self.counts["kills_while_writing"] += being_written(path)
                if path.exists():
                    read_checkpoint(path)  # whole, or it raises
                    self.counts["restarts_from_a_checkpoint"] += 1
            elif code != 0:
                self.expect(False, f"a restart failed: {learner}")
                return
        same = np.array_equal(np.load(result), expected)
        self.expect(same, f"other bits after a kill: {learner}")

    def corrupt(self, folder):
        """Damage one file; it has to be refused by name, and nothing taken from it."""
        X, learner = self.corruptible
        path, trap = folder / "damaged.npz", folder / "trap"
        content, rng = bytearray(self.whole), self.rng
        kind = str(rng.choice(["bit", "cut", "block", "garbage", "pickle", "objects"]))
        if kind == "bit":
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        elif kind == "cut":
            del content[rng.integers(len(content)) :]
        elif kind == "block":
            where = int(rng.integers(len(content) - 512))
            content[where : where + 512] = rng.bytes(512)
        elif kind == "garbage":
            content = rng.bytes(int(rng.integers(1, 10000)))
        elif kind == "pickle":
            content = pickle.dumps(Trap(trap))
        else:  # with a right checksum
            state = io.BytesIO()
            torch.save({"identity": Trap(trap)}, state)
            content = state.getvalue() + hashlib.sha256(state.getvalue()).digest()
        path.write_bytes(content)

        def refuse():
            found = clone(learner).set_callbacks(Checkpoint(path))
            message = "it was taken"
            try:
                found.fit(X)
            except ValueError as error:
                message = str(error)
            if not message.startswith(f"{path} is no whole checkpoint"):
                raise AssertionError(message)
            if trap.exists() or hasattr(found, "components_"):
                raise AssertionError("it was executed, or half loaded")

        self.expect(wait(forked(refuse)) == 0, f"a file damaged by {kind} was not refused clearly")
        self.counts["corrupted_files"] += 1

    def fill_disk(self, folder):
        """Limit files to half a checkpoint, from a random moment on."""
        X, learner, seconds, expected = self.in_peace(folder)
        path, result = folder / "full.npz", folder / "full.npy"
        size = (folder / "peace.npz").stat().st_size // 2

        def starved():
            def limit(*_):
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

            signal.signal(signal.SIGALRM, limit)
            signal.setitimer(signal.ITIMER_REAL, self.rng.uniform(0.05, 0.8) * seconds)
            warnings.simplefilter("ignore")
            try:
                train(learner, X, path, result)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))

        code = wait(forked(starved))
        self.expect(code in (0, 1), "a full disk ended the process")
        if path.exists():
            read_checkpoint(path)
        wait(forked(lambda: train(learner, X, path, result)))
        same = result.exists() and np.array_equal(np.load(result), expected)
        self.expect(same, "other bits after a full disk")
        self.counts["full_disks"] += 1

    def prepare(self, folder):
        """Write the file to damage."""
        X, learner, _, _ = self.in_peace(folder)
        self.corruptible = X, learner
        self.whole = (folder / "peace.npz").read_bytes()


class Trap:
    """Create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def main():
    given = parse(__doc__, minutes=float, kills=0, corruptions=0, full_disks=0, seed=0)
    soak, start = Soak(given.seed), time.monotonic()
    make_learner(soak.rng).set_params(max_iter=1).fit(make_data(soak.rng))  # once for all children
    asked = dict(kills=given.kills, corrupted_files=given.corruptions, full_disks=given.full_disks)

    def left(fault):
        if given.minutes is not None:
            return 60 * given.minutes + start - time.monotonic()
        return asked[fault] - soak.counts[fault]

    def kill(folder):
        soak.kill(folder, 10 if given.minutes is not None else left("kills"))

    faults = dict(kills=kill, full_disks=soak.fill_disk, corrupted_files=soak.corrupt)
    with tempfile.TemporaryDirectory() as folder:
        soak.prepare(Path(folder))
    while any(left(name) > 0 for name in faults):
        for name in (name for name in faults if left(name) > 0):
            with tempfile.TemporaryDirectory() as folder:
                faults[name](Path(folder))
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    report = Report(given.out, title="Faults injected into training, and results lost")
    report.add(soak.counts | {
        "seconds": round(time.monotonic() - start),
        "peak_memory_mb": round(max(resource.getrusage(w).ru_maxrss for w in who) / 1024),
    })  # fmt: skip
    sys.exit(bool(soak.counts["results_lost"]))


if __name__ == "__main__":
    main()
