"""Compare the gradient of an update of figure 5 of the PUDLE paper with plain autograd's.

Data are 50 samples, each a sum of 20 of 1,500 atoms of 1,000 features, and the encoder has 100
unfoldings with the step size 0.2. The first atoms are the true ones plus noise. Plain autograd
differentiates `naive_encode` of ``tests/naive.py``. Both take turns, and rows of the JSON have the
least time of each. By default the time is that of the processor, because a machine may be busy;
with ``--clock wall`` two threads can be compared with one. ``"auto"`` is the time of an encoder
that bounds the norm of the atoms in each update, relative to that of the fixed step. ``"error"`` is
the relative difference of both gradients. ``"products"`` is the time of the products of matrices
that are needed with a Gram matrix, at the rate that the machine has in the same run.

Usage: python benchmarks/bench_figure5.py [--repeats 7] [--threads 1] [--clock cpu] [--out FILE]
"""

import sys
import time
from functools import partial
from itertools import product
from pathlib import Path

import torch
from common import Report, parse, unit

from skpudle._data.sources import Samples
from skpudle._gradients import GRADIENT_RULES, differentiate
from skpudle._operators._atoms import DenseDictionary
from skpudle.datasets import make_dictionary_data, perturb_dictionary
from skpudle.encoding import encode

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from naive import naive_encode

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
STEP = 0.2
# arguments of the encoder, beside the step size
ENCODERS = {
    "soft 0.1": dict(alpha=0.1),
    "soft 0.2": dict(alpha=0.2),
    "soft 0.2, decay 0.995": dict(alpha=0.2, lambda_decay=0.995),
    "hard 0.1": dict(alpha=0.1, shrinkage="hard"),
}


def problem(dtype):
    """Return samples and perturbed atoms."""
    truth = make_dictionary_data(1, 1000, 1500, random_state=0)[1]
    samples = make_dictionary_data(
        50, n_nonzero=20, sign="sample", dictionary=truth, random_state=1
    )[0]
    atoms = unit(perturb_dictionary(truth, 0.005 * 1000**0.5, random_state=2))
    return torch.tensor(samples, dtype=dtype), torch.tensor(atoms, dtype=dtype)


def penalty_of(alpha, lambda_decay=1.0, shrinkage="soft"):
    """Return the penalty of the last unfolding, as the rules take it."""
    return 0.0 if shrinkage == "hard" else alpha * lambda_decay**99


def by_package(x, atoms, rule, params, step_size=STEP):
    atoms = atoms.clone().requires_grad_()
    gradient, _ = differentiate(
        GRADIENT_RULES[rule],
        DenseDictionary(atoms),
        atoms,
        Samples(x),
        encoder=partial(encode, n_unfoldings=100, step_size=step_size, **params),
        penalty=penalty_of(**params),
    )
    return gradient


def by_autograd(x, atoms, rule, params):
    atoms = atoms.clone().requires_grad_()
    with torch.set_grad_enabled(rule != "dec"):
        z = naive_encode(atoms, x, n_unfoldings=100, step_size=STEP, **params)
    loss = 0.5 * (x - z @ atoms).square().sum()
    if rule != "ae-ls":
        loss = loss + penalty_of(**params) * z.abs().sum()
    (gradient,) = torch.autograd.grad(loss / len(x), atoms)
    return gradient


def products(x, atoms):
    """Compute what each gradient with a Gram matrix needs, apart from iterations."""
    gram = atoms @ atoms.mT
    z = x @ atoms.mT
    residual = x - z @ atoms
    return gram @ atoms + z.mT @ residual, residual @ atoms.mT


def measure(dtype, encoder, rule, repeats, clock):
    """Return a row of the JSON; the first turn, which may compile, does not count."""
    x, atoms = problem(getattr(torch, dtype))
    params = ENCODERS[encoder]
    calls = {
        "skpudle": partial(by_package, x, atoms, rule, params),
        "auto": partial(by_package, x, atoms, rule, params, step_size=None),
        "autograd": partial(by_autograd, x, atoms, rule, params),
        "products": partial(products, x, atoms),
    }
    gradient = calls["skpudle"]()
    expected = calls["autograd"]()
    calls["auto"]()
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            start = clock()
            call()
            least[name] = min(least[name], clock() - start)
    return {
        "dtype": dtype,
        "encoder": encoder,
        "gradient": rule,
        "threads": torch.get_num_threads(),
        "autograd ms": 1e3 * least["autograd"],
        "skpudle ms": 1e3 * least["skpudle"],
        "times as fast": least["autograd"] / least["skpudle"],
        "products ms": 1e3 * least["products"],
        "auto": least["auto"] / least["skpudle"],
        "error": float((gradient - expected).norm() / expected.norm()),
    }


if __name__ == "__main__":
    options = parse(
        __doc__,
        "figure5.json",
        repeats=7,
        threads=1,
        clock="cpu",
        choices={"clock": list(CLOCKS)},
    )
    torch.set_num_threads(options.threads)
    report = Report(
        options.out,
        "dtype",
        "encoder",
        "gradient",
        "threads",
        title="An update of figure 5, and plain autograd",
    )
    rules = "ae-ls", "ae-lasso", "dec"
    for dtype, encoder, rule in product(("float32", "float64"), ENCODERS, rules):
        row = measure(dtype, encoder, rule, options.repeats, CLOCKS[options.clock])
        report.add(row)
