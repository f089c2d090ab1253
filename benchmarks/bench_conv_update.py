"""Time and memory of one update of a convolutional denoiser, against automatic differentiation.

The reference is the same network of torch's convolutions, differentiated by torch. Every variant
runs in its own process. Its peak memory, without imports and data, is read from the kernel.
Example::

    python benchmarks/bench_conv_update.py --out conv_update.json
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from common import circumstances, peak_megabytes, write_report
from torch.nn.functional import conv2d, conv_transpose2d, softshrink

from skpudle._data.batches import Batch
from skpudle._learners.convolutional.learner import _PIXELS
from skpudle.encoding import encode
from skpudle.gradients import ae_ls, differentiate
from skpudle.operators import ConvDictionary


def skpudle_adjoint(atoms, x, options):  # -> gradient
    """Encode by this package, with its own backward pass, some images at a time."""
    settings = dict(n_unfoldings=options.n_unfoldings, step_size=options.step_size)
    encoder = partial(encode, alpha=options.alpha, **settings)
    gradient, _ = differentiate(
        ae_ls,
        ConvDictionary(atoms, options.stride),
        atoms,
        Batch(slice(None), x),
        part_size=max(1, options.part_pixels // options.crop**2),
        encoder=encoder,
        penalty=options.alpha,
    )
    return gradient


def torch_autograd(atoms, x, options):  # -> gradient
    """Differentiate torch's convolutions automatically."""
    stride = options.stride
    z = torch.zeros_like(conv2d(x, atoms, stride=stride))
    for _ in range(options.n_unfoldings):
        residual = x - conv_transpose2d(z, atoms, stride=stride)
        v = z + options.step_size * conv2d(residual, atoms, stride=stride)
        z = softshrink(v, options.step_size * options.alpha)
    loss = 0.5 * (conv_transpose2d(z, atoms, stride=stride) - x).square().sum() / len(x)
    return torch.autograd.grad(loss, atoms)[0]


VARIANTS = {f.__name__: f for f in (skpudle_adjoint, torch_autograd)}


def measure(name, options):
    generator = torch.Generator().manual_seed(0)
    size = options.atom_size
    atoms = torch.randn(options.n_components, 1, size, size, generator=generator)
    atoms /= atoms.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    coarse = options.n, 1, options.crop // 8 + 1, options.crop // 8 + 1
    smooth = torch.rand(coarse, generator=generator)
    x = torch.nn.functional.interpolate(smooth, size=(options.crop,) * 2, mode="bilinear")
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    before, seconds = peak_megabytes(), []
    for _ in range(options.repeats + 1):  # the first warms up
        leaf = atoms.clone().requires_grad_()
        start = perf_counter()
        gradient = VARIANTS[name](leaf, x, options)
        seconds.append(perf_counter() - start)
    return {
        "seconds": median(seconds[1:]),
        "seconds_best": min(seconds[1:]),
        "megabytes": peak_megabytes() - before,
        "gradient_norm": float(gradient.norm()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("n", 16), ("crop", 129), ("n-components", 64), ("atom-size", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("stride", 4), ("n-unfoldings", 15), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--part-pixels", type=int, default=_PIXELS, help="as the estimator has it")
    parser.add_argument("--alpha", type=float, default=0.16)
    parser.add_argument("--step-size", type=float, default=0.1)
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
        row = results[name]
        print(
            f"{name:16s} {1e3 * row['seconds']:9.1f} ms (best {1e3 * row['seconds_best']:.1f})  "
            f"{row['megabytes']:8.1f} MB  |gradient| {row['gradient_norm']:.6g}"
        )
    write_report(options.out, {"options": vars(options)} | circumstances() | {"results": results})


if __name__ == "__main__":
    main()
