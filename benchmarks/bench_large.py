"""Large dictionaries: seconds of an epoch and of a fit, and memory, over sizes.

    python benchmarks/bench_large.py epochs --out epochs.json
    python benchmarks/bench_large.py fit --atoms 4096 --features 512 --rows 32768 --nonzero 8
    python benchmarks/bench_large.py blocks --atoms 16384 --features 768 --rows 1000000 --nonzero 16
    python benchmarks/bench_large.py ksvd --atoms 4096 --features 2381 --rows 10000 --nonzero 20

Rows are sums of random atoms with amplitudes of 0.5 to 1.5 of either sign and 20 dB of noise, in
float32. "found" is the share of atoms with a learned one at a cosine of 0.95 or more. Seconds are
those of the processor, for all threads. Memory is the growth of RssAnon after imports, the making
of the data and a tiny fit. With "blocks" rows are made when they are read, by a table that holds
none. With "ksvd" the approximate K-SVD of dictlearn learns from the same rows for at least as long
as the fit took, and each dictionary explains these rows, and 2048 others, by matching pursuit with
the planted number of atoms. Each case runs in a process of its own.
"""

import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from common import Growth, Report, alone, parse, share_found, timed, unit

from skpudle import PUDLEDictionaryLearning
from skpudle.omp import solve_omp
from skpudle.search import Problem, auto_alpha
from skpudle.search.find import find_atoms

# atoms, features, rows, atoms in a row
SIZES = [
    *((p, 128, 8 * p, 8) for p in (512, 1024, 2048, 4096, 8192)),
    *((2048, m, 16384, 8) for m in (64, 256, 512, 1024)),
    *((2048, 128, n, 8) for n in (8192, 32768, 65536)),
    (4096, 512, 32768, 8),
    (4096, 2381, 10000, 20),
]


class MadeRows:
    """A table of rows that are made when they are read, in blocks of 1024."""

    chunks = (1024,)

    def __init__(self, n_rows, n_atoms, n_features, n_nonzero, seed=0):
        rng = np.random.default_rng(seed)
        atoms = rng.standard_normal((n_atoms, n_features), dtype=np.float32)
        self.atoms = unit(atoms)
        self.n_nonzero, self.seed = n_nonzero, seed
        self.shape, self.dtype = (n_rows, n_features), np.dtype(np.float32)

    def __len__(self):
        return self.shape[0]

    def _block(self, number):
        rng = np.random.default_rng((self.seed, number))
        n, s = 1024, self.n_nonzero
        places = rng.integers(len(self.atoms), size=(n, s))
        values = rng.uniform(0.5, 1.5, (n, s)) * rng.choice([-1, 1], (n, s))
        rows = np.zeros((n, self.shape[1]), np.float32)
        for each in range(s):
            rows += (
                values[:, each : each + 1].astype(np.float32)
                * self.atoms[places[:, each]]
            )
        noise = rng.standard_normal(rows.shape, dtype=np.float32)
        return rows + np.float32(0.1 * np.sqrt(s * 13 / 12 / self.shape[1])) * noise

    def __getitem__(self, rows):
        first, last, _ = rows.indices(len(self))
        numbers = range(first // 1024, -(-last // 1024))
        blocks = [self._block(number) for number in numbers]
        blocks = (
            np.concatenate(blocks)
            if blocks
            else np.empty((0, self.shape[1]), np.float32)
        )
        return blocks[first - 1024 * numbers.start : last - 1024 * numbers.start]


def _tiny():
    rows = np.random.default_rng(0).standard_normal((300, 20)).astype(np.float32)
    learner = PUDLEDictionaryLearning(8, random_state=0).fit(rows)
    learner.transform_sparse(rows)


def epochs(size):
    """Time the last of eight epochs from samples."""
    p, m, n, s = size
    x = torch.as_tensor(MadeRows(n, p, m, s)[:n])
    _tiny()
    problem = Problem(x, auto_alpha(x))
    with Growth() as growth:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        steps = find_atoms(problem, x[order[:p]])
        for _ in range(8):
            step, seconds = timed(next, steps)
    coded = step.coded
    rows = len(coded.problem.x)
    return dict(
        seconds=seconds, rows=rows, rows_per_second=rows / seconds, megabytes=growth.most,
        codes_per_row=coded.n_entries / rows,
    )  # fmt: skip


def fit(size, *, in_blocks):
    """Fit, and say how many atoms were found and how the time splits between phases."""
    p, m, n, s = size
    table = MadeRows(n, p, m, s)
    X = table if in_blocks else table[:n]
    _tiny()
    start, wall = time.process_time(), time.perf_counter()
    with Growth() as growth:
        learner = PUDLEDictionaryLearning(p, random_state=0, verbose=1).fit(X)
    result = dict(
        cpu_seconds=time.process_time() - start,
        seconds=time.perf_counter() - wall,
        megabytes=growth.most,
        found=share_found(learner.components_, table.atoms),
        epochs=int(learner.n_iter_),
        rows_read=int(learner.n_samples_seen_),
    )
    rows, start = table[:2048], time.process_time()
    codes = learner.transform_sparse(rows)
    left = rows - codes @ learner.components_
    return result | dict(
        rows_coded_per_cpu_second=2048 / (time.process_time() - start),
        codes_per_row=codes.nnz / 2048,
        explained=float(1 - np.square(left).sum() / np.square(rows).sum()),
    )


def _explained(components, rows, n_nonzero):
    atoms = torch.as_tensor(np.ascontiguousarray(components, dtype=rows.dtype))
    left = 0.0
    for block in torch.as_tensor(rows).split(1024):
        codes = solve_omp(atoms, block, n_nonzero_coefs=n_nonzero)
        left += float((block - codes @ atoms).square().sum())
    return 1 - left / float(np.square(rows).sum())


def ksvd(size):
    """Fit, then run K-SVD for as long on the same rows."""
    from dictlearn import DictionaryLearning

    p, m, n, s = size
    table = MadeRows(n + 2048, p, m, s)
    rows, others = table[:n], table[n:]
    _tiny()
    DictionaryLearning(8, n_nonzero_coefs=2, max_iter=1, random_state=0).fit(rows[:64])
    start, cpu = time.perf_counter(), time.process_time()
    with Growth() as growth:
        learner = PUDLEDictionaryLearning(p, random_state=0, verbose=1).fit(rows)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    ours, n_epochs = learner.components_, int(learner.n_iter_)
    # K-SVD goes on from its atoms, an iteration at a time; codes are made anew in each.
    start, theirs, n_iter = time.perf_counter(), None, 0
    while n_iter == 0 or time.perf_counter() - start < seconds:
        learner = DictionaryLearning(
            p, n_nonzero_coefs=s, max_iter=1, random_state=0, dict_init=theirs
        )
        theirs, n_iter = learner.fit(rows).components_, n_iter + 1
    result = dict(
        seconds=seconds, cpu_seconds=cpu, megabytes=growth.most, epochs=n_epochs,
        ksvd_seconds=time.perf_counter() - start, ksvd_iter=n_iter,
    )  # fmt: skip
    for name, components in (("skpudle", ours), ("ksvd", theirs)):
        result[f"{name}_explained"] = _explained(components, rows, s)
        result[f"{name}_explained_of_others"] = _explained(components, others, s)
        result[f"{name}_found"] = share_found(np.asarray(components), table.atoms)
    return result


CASES = {
    "epochs": epochs,
    "fit": lambda size: fit(size, in_blocks=False),
    "blocks": lambda size: fit(size, in_blocks=True),
    "ksvd": ksvd,
}
SIZE = "atoms", "features", "rows", "nonzero"


def main():
    given = parse(
        __doc__, names=["what"], choices={"what": CASES}, hidden=["alone"], alone=False, threads=1,
        **dict.fromkeys(SIZE, int),
    )  # fmt: skip
    torch.set_num_threads(given.threads)
    size = tuple(getattr(given, name) for name in SIZE)
    if given.alone:  # in a process of its own
        print(json.dumps(CASES[given.what](size)))
        return
    report = Report(given.out, what=given.what)
    for case in [size] if given.atoms else SIZES:
        named = dict(zip(SIZE, case, strict=True))
        options = [
            text for name, value in named.items() for text in (f"--{name}", value)
        ]
        options += ["--threads", given.threads, "--alone"]
        report.add(
            named | {"threads": given.threads} | alone(__file__, given.what, *options)
        )


if __name__ == "__main__":
    main()
