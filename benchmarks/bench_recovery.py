"""Count updates and time to recover a dictionary: the problem of figure 5 of the PUDLE paper.

    python benchmarks/bench_recovery.py --out benchmarks/results/recovery.json
    python benchmarks/bench_recovery.py --m 200 --p 300 --n-nonzero 5 --updates 300  # a quick look

Samples are combinations of ``n_nonzero`` of ``p`` unit-norm Gaussian atoms, with amplitudes in
[1, 2] and one sign per sample. Learning starts at the true atoms plus noise, and every update sees
new samples. Only updates are timed; Adam has the learning rate and the ``eps`` of the paper's
authors. The report has the first update and second with an error of the atoms, in Frobenius norm
relative to the truth, below 1e-2, 1e-3, 1e-4 and 1e-5.
"""

import time
from functools import partial
from itertools import product

import numpy as np
import torch
from common import Report, parse, timed, unit

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data, perturb_dictionary
from skpudle.metrics import dictionary_error

TARGETS = (1e-2, 1e-3, 1e-4, 1e-5)
ENCODERS = {"soft": dict(alpha=0.2), "hard": dict(alpha=0.1, shrinkage="hard")}
OPTIMIZERS = {
    "surrogate": dict(optimizer="surrogate"),
    "adam": dict(optimizer=partial(torch.optim.Adam, eps=1e-3), learning_rate=1e-3),
}


def learn(encoder, gradient, optimizer, options):
    """Return a curve of (update, seconds, error)."""
    sizes = (options.m, options.p)
    truth = make_dictionary_data(1, *sizes, random_state=options.seed)[1]
    start = perturb_dictionary(
        truth, options.deviation * options.m**0.5, random_state=1
    )
    start = unit(start)
    learner = PUDLEDictionaryLearning(
        options.p,
        **ENCODERS[encoder],
        **OPTIMIZERS[optimizer],
        gradient=gradient,
        n_unfoldings=options.n_unfoldings,
        step_size=options.step_size,
        batch_size=options.batch,
        dict_init=start,
    )
    curve, elapsed, size = [], 0.0, options.batch * options.every
    for block in range(-(-options.updates // options.every)):
        x = make_dictionary_data(
            size,
            n_nonzero=options.n_nonzero,
            sign="sample",
            dictionary=truth,
            random_state=options.seed + 2 + block,
        )[0]
        elapsed += timed(
            learner.partial_fit, x.astype(np.float32), clock=time.perf_counter
        )[1]
        error = dictionary_error(learner.components_, truth)
        curve.append((learner.n_steps_, elapsed, float(error)))
        if error < TARGETS[-1]:
            break
    return curve


def first_below(curve, target):
    return next(
        ([update, seconds] for update, seconds, error in curve if error < target), None
    )


def main():
    options = parse(
        __doc__, m=1000, p=1500, n_nonzero=20, batch=50, n_unfoldings=100, step_size=0.2,
        deviation=0.005, updates=1000, every=10, seed=0,
    )  # fmt: skip
    report = Report(
        options.out, title="Recovery of a dictionary", options=vars(options)
    )
    for encoder, gradient, optimizer in product(ENCODERS, ("ae-ls", "dec"), OPTIMIZERS):
        name = f"{encoder} {gradient} {optimizer}"
        curve, row = learn(encoder, gradient, optimizer, options), {"name": name}
        for target in TARGETS:
            update, seconds = first_below(curve, target) or (None, None)
            row |= {f"updates to {target:g}": update, f"seconds to {target:g}": seconds}
        report.add(row | {"curve": curve})


if __name__ == "__main__":
    main()
