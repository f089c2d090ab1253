"""Time and memory of one update: the adjoint of this package against automatic differentiation.

Every variant computes the loss and the derivative in the atoms of one ``ae-ls`` update on the same
data, in a process of its own, whose peak memory beyond what importing and the data take is read
from the kernel. Example::

    python benchmarks/bench_update.py --n 512 --m 256 --p 1024 --out update.json
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from skpudle.encoding import encode
from skpudle.operators import DenseDictionary


def skpudle_adjoint(atoms, x, options):
    """The encoder of this package: one function, whose backward is written out."""
    z = encode(
        atoms,
        x,
        alpha=options.alpha,
        n_unfoldings=options.n_unfoldings,
        step_size=options.step_size,
        lambda_decay=options.lambda_decay,
        shrinkage=options.shrinkage,
    )
    return 0.5 * (x - z @ atoms).square().sum() / len(x)


def shrink(v, t, options):
    if options.shrinkage == "hard":
        return v * (v.abs() >= options.alpha)
    level = options.step_size * options.alpha * options.lambda_decay**t
    return torch.sign(v) * torch.relu(v.abs() - level)


def autograd_2d(atoms, x, options):
    """Automatic differentiation of products of matrices."""
    z = x.new_zeros(len(x), len(atoms))
    for t in range(options.n_unfoldings):
        z = shrink(z + options.step_size * ((x - z @ atoms) @ atoms.mT), t, options)
    return 0.5 * (x - z @ atoms).square().sum() / len(x)


def autograd_3d(atoms, x, options):
    """The same with codes of shape (n, p, 1), as research code often has them."""
    dictionary, x = atoms.mT, x[..., None]
    z = x.new_zeros(len(x), len(atoms), 1)
    for t in range(options.n_unfoldings):
        residual = x - torch.matmul(dictionary, z)
        z = shrink(z + options.step_size * torch.matmul(dictionary.mT, residual), t, options)
    return 0.5 * (x - torch.matmul(dictionary, z)).square().sum() / len(x)


VARIANTS = {f.__name__: f for f in (skpudle_adjoint, autograd_2d, autograd_3d)}


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


def peak_memory(device):
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name, options):
    atoms, x = problem(options)
    if options.step_size is None:
        options.step_size = float(1 / DenseDictionary(atoms).squared_norm_bound())
    before, seconds = peak_memory(options.device), []
    for _ in range(options.repeats + 1):  # the first warms up
        leaf = atoms.clone().requires_grad_()
        start = perf_counter()
        VARIANTS[name](leaf, x, options).backward()
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(perf_counter() - start)
    megabytes = (peak_memory(options.device) - before) / 2**20
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
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options.variant, options)))
        return
    results = {}
    for name in VARIANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--variant", name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[name] = json.loads(output.splitlines()[-1])
    ours = results["skpudle_adjoint"]
    for name, row in results.items():
        row["time_ratio"] = row["seconds"] / ours["seconds"]
        print(
            f"{name:16s} {1e3 * row['seconds']:9.1f} ms  {row['time_ratio']:5.2f} x  "
            f"{row['megabytes']:8.1f} MB  |gradient| {row['gradient_norm']:.6g}"
        )
    report = {
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "results": results,
        "machine": {
            "processor": cpu_name(),
            "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def cpu_name():
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return names[0].split(":")[1].strip() if names else platform.processor()


if __name__ == "__main__":
    main()
