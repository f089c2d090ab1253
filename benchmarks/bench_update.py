"""Time and memory of one update: this package against automatic differentiation and SPAMS.

Every variant computes the loss and the derivative in the atoms of one ``ae-ls`` update on the same
data, in its own process. Its peak memory, without imports and data, is read from the kernel. SPAMS
does its own work for a batch: lasso codes and an update of all atoms (the time that one batch more
adds to a run; on CPUs, soft shrinkage only). Example::

    python benchmarks/bench_update.py --n 512 --m 256 --p 1024 --out update.json
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from common import circumstances, peak_megabytes, synchronize, write_report

from skpudle._operators._atoms import DenseDictionary
from skpudle.encoding._unfold import threshold_levels, unfold


def skpudle(atoms, x, options, *, path="auto"):
    """Encode by this package: one function with its own backward pass."""
    dictionary, step = DenseDictionary(atoms), torch.tensor(options.step_size).to(x)
    levels = threshold_levels(
        dictionary,
        options.alpha,
        options.n_unfoldings,
        step,
        lambda_decay=options.lambda_decay,
        shrinkage=options.shrinkage,
    )
    z = unfold(dictionary, x, levels, step, shrinkage=options.shrinkage, path=path)
    return 0.5 * (x - z @ atoms).square().sum() / len(x)


def skpudle_dense(atoms, x, options):
    """Do the same without working sets of atoms."""
    return skpudle(atoms, x, options, path="dense")


def shrink(v, t, options):
    if options.shrinkage == "hard":
        return v * (v.abs() >= options.alpha)
    level = options.step_size * options.alpha * options.lambda_decay**t
    return torch.sign(v) * torch.relu(v.abs() - level)


def autograd_2d(atoms, x, options):
    """Differentiate products of matrices automatically."""
    z = x.new_zeros(len(x), len(atoms))
    for t in range(options.n_unfoldings):
        z = shrink(z + options.step_size * ((x - z @ atoms) @ atoms.mT), t, options)
    return 0.5 * (x - z @ atoms).square().sum() / len(x)


def autograd_3d(atoms, x, options):
    """Do the same with codes of shape (n, p, 1), as research code often has them."""
    dictionary, x = atoms.mT, x[..., None]
    z = x.new_zeros(len(x), len(atoms), 1)
    for t in range(options.n_unfoldings):
        residual = x - torch.matmul(dictionary, z)
        z = shrink(z + options.step_size * torch.matmul(dictionary.mT, residual), t, options)
    return 0.5 * (x - torch.matmul(dictionary, z)).square().sum() / len(x)


VARIANTS = {f.__name__: f for f in (skpudle, skpudle_dense, autograd_2d, autograd_3d)}


def spams_batch_seconds(options):
    """Return the time of one batch of `spams.trainDL`, with new samples each time."""
    import spams

    few, many = 2, 2 + 4 * options.repeats
    atoms, x = problem(argparse.Namespace(**vars(options) | {"n": many * options.n}))
    columns, start_atoms = (np.asfortranarray(a.numpy().T) for a in (x, atoms))

    def run(n_batches):
        start = perf_counter()
        spams.trainDL(
            columns,
            D=start_atoms,
            lambda1=options.alpha,
            iter=n_batches,
            batchsize=options.n,
            numThreads=torch.get_num_threads(),
            verbose=False,
        )
        return perf_counter() - start

    run(1)
    return (run(many) - run(few)) / (many - few)


def problem(options):  # -> atoms (p, m), x (n, m)
    generator = torch.Generator().manual_seed(options.seed)
    dtype = getattr(torch, options.dtype)
    truth = torch.randn(options.p, options.m, generator=generator, dtype=dtype)
    truth /= truth.norm(dim=1, keepdim=True)
    support = torch.rand(options.n, options.p, generator=generator).argsort(1)[
        :, : options.n_nonzero
    ]
    values = 1 + torch.rand(support.shape, generator=generator, dtype=dtype)
    values *= torch.randint(0, 2, (options.n, 1), generator=generator) * 2 - 1
    codes = torch.zeros(options.n, options.p, dtype=dtype).scatter_(1, support, values)
    noise = torch.randn(truth.shape, generator=generator, dtype=dtype)
    atoms = truth + 0.158 / options.m**0.5 * noise
    atoms /= atoms.norm(dim=1, keepdim=True)
    return atoms.to(options.device), (codes @ truth).to(options.device)


def peak_memory(device):  # -> megabytes
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_megabytes()


def measure(name, options):
    if name == "spams":
        return {"seconds": spams_batch_seconds(options)}
    atoms, x = problem(options)
    if options.step_size is None:
        options.step_size = float(1 / DenseDictionary(atoms).squared_norm_bound())
    before, seconds = peak_memory(options.device), []
    for _ in range(options.repeats + 1):  # the first warms up
        leaf = atoms.clone().requires_grad_()
        start = perf_counter()
        VARIANTS[name](leaf, x, options).backward()
        synchronize(options.device)
        seconds.append(perf_counter() - start)
    megabytes = peak_memory(options.device) - before
    norm = float(leaf.grad.norm())
    return {"seconds": median(seconds[1:]), "megabytes": megabytes, "gradient_norm": norm}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("n", 50), ("m", 1000), ("p", 1500), ("n-nonzero", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--n-unfoldings", type=int, default=100)
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--step-size", type=float, help="1 / L unless given")
    parser.add_argument("--lambda-decay", type=float, default=1.0)
    parser.add_argument("--shrinkage", choices=["soft", "hard"], default="soft")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options.variant, options)))
        return
    names = list(VARIANTS)
    if importlib.util.find_spec("spams") and (options.device, options.shrinkage) == ("cpu", "soft"):
        names.append("spams")
    report = {"benchmark": "update", "options": vars(options), **circumstances(options.device)}
    results = {}
    for name in names:
        command = [sys.executable, __file__, *sys.argv[1:], "--variant", name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = results[name] = json.loads(output.splitlines()[-1])
        row["time_ratio"] = row["seconds"] / results["skpudle"]["seconds"]
        print(f"{name:14s} {1e3 * row['seconds']:9.1f} ms  {row['time_ratio']:6.2f} x", end="")
        if "megabytes" in row:
            print(f"{row['megabytes']:9.1f} MB  |gradient| {row['gradient_norm']:.6g}", end="")
        print(flush=True)
    report["results"] = [{"name": name} | row for name, row in results.items()]
    write_report(options.out, report)


if __name__ == "__main__":
    main()
