"""Test and time this package on a GPU, against its CPU and plain torch.

Every part has its own process and time limit, nine minutes in all, and the report is written after
each: a failure does not affect the others. Without CUDA there is nothing to measure, and a message
says so; ``--device cpu --quick`` checks that all parts run. Example::

    python benchmarks/gpu.py --out gpu.json
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
from common import circumstances, synchronize, write_report

import skpudle
from skpudle.encoding import encode
from skpudle.lasso import solve_lasso
from skpudle.omp import solve_omp
from skpudle.search import Problem, auto_alpha
from skpudle.search.descend import descend

ROOT = Path(__file__).resolve().parents[1]
N_UNFOLDINGS, STEP = 100, 0.2


# ---------------------------------------------------------------------------- measuring


def seconds_of(function, device, *, repeats):
    """Return the median time of a call, after one that warms up, and the most memory in MiB."""
    on_gpu, seconds = torch.device(device).type == "cuda", []
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    for _ in range(repeats + 1):
        synchronize(device)
        start = perf_counter()
        function()
        synchronize(device)
        seconds.append(perf_counter() - start)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if on_gpu else None
    return {"seconds": median(seconds[1:]), "megabytes": peak}


def emit(found):
    """Print the figures so far, the last of which count, and return them."""
    print(json.dumps(found), flush=True)
    return found


def attempt(function):
    """Return the result of a function, or its error."""
    try:
        return function()
    except Exception as error:  # mostly of memory: the other measurements continue
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def with_tf32(function):
    """Return measurements of a function with TF32 off and on; restore the setting."""
    before, found = torch.get_float32_matmul_precision(), {}
    of_convolutions = torch.backends.cudnn.allow_tf32
    try:
        for name, precision in (("tf32_off", "highest"), ("tf32_on", "high")):
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = precision == "high"
            found[name] = attempt(function)
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = of_convolutions
    return found


def unit_rows(n, m, device, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, m, generator=generator, dtype=dtype)
    return torch.nn.functional.normalize(rows, dim=1).to(device)


def sparse_data(atoms, n, n_nonzero, seed=1):
    """Return sums of a few atoms each, with weights between 1 and 2 and some noise."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, len(atoms), generator=generator).topk(n_nonzero).indices
    weights = torch.zeros(n, len(atoms)).scatter_(
        1, chosen, 1 + torch.rand(n, n_nonzero, generator=generator)
    )
    x = weights.to(atoms) @ atoms
    return x + 0.05 * torch.randn(x.shape, generator=generator).to(x)


# ---------------------------------------------------------------------------- parts


def tests(options):
    """Run the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-cov", "-m", "gpu", str(ROOT / "tests")]
    if options.quick:
        command.append("--collect-only")
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = run.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit_status": run.returncode, "summary": lines[-1:], "failed": failed}


def checks(options):
    """Run scikit-learn's checks of an estimator."""
    from sklearn.utils.estimator_checks import check_estimator

    found = {}
    for name, more in {"ae-ls": {}, "lasso": dict(gradient="dec", n_unfoldings=None)}.items():
        settings = (
            dict(dict_init="data", n_unfoldings=5, max_iter=3, batch_size=16, tol=None) | more
        )
        learner = skpudle.PUDLEDictionaryLearning(4, device=options.device, **settings)
        results = check_estimator(learner, on_skip=None, on_fail=None)
        failed = [r["check_name"] for r in results if r["status"] == "failed"]
        found[name] = {"checks": len(results), "failed": failed}
        if options.quick:
            break
    return found


def peak(options):
    """Measure products of large matrices, as the reference for all parts."""
    size = 512 if options.quick else 8192

    def rate(dtype):
        a = torch.randn(size, size, dtype=dtype, device=options.device)
        seconds = seconds_of(lambda: a @ a, options.device, repeats=options.repeats)["seconds"]
        return {"teraflops": 2 * size**3 / seconds / 1e12}

    return {
        "float32": with_tf32(partial(rate, torch.float32)),
        "float64": attempt(partial(rate, torch.float64)),
    }


def autograd_update(atoms, x, alpha):
    """Encode by the same iterations, with automatic differentiation of products of matrices."""
    z = x.new_zeros(len(x), len(atoms))
    for _ in range(N_UNFOLDINGS):
        v = z + STEP * ((x - z @ atoms) @ atoms.mT)
        z = torch.nn.functional.softshrink(v, STEP * alpha)
    return 0.5 * (x - z @ atoms).square().sum() / len(x)


def our_update(atoms, x, alpha):
    """Encode by this package, with its adjoint."""
    z = encode(atoms, x, alpha=alpha, n_unfoldings=N_UNFOLDINGS, step_size=STEP)
    return 0.5 * (x - z @ atoms).square().sum() / len(x)


def update(options):
    """Measure the loss and its derivative in the atoms, for a batch."""
    n, m = (32, 20) if options.quick else (4096, 1000)
    found = {}
    for p in [40] if options.quick else [1500, 4096, 16384]:

        def run(loss, device, n_rows, p=p):
            atoms = unit_rows(p, m, device)
            x = sparse_data(atoms, n_rows, min(20, p // 4))
            leaf = atoms.requires_grad_()

            def differentiate():
                torch.autograd.grad(loss(leaf, x, 0.2), leaf)

            measured = seconds_of(differentiate, device, repeats=options.repeats)
            # by D and its transpose in turn, or through the Gram matrix, whichever costs less
            operations = N_UNFOLDINGS * n_rows * min(12 * m * p, 6 * p * p)
            return measured | {
                "rows_a_second": n_rows / measured["seconds"],
                "dense_teraflops": operations / measured["seconds"] / 1e12,
            }

        few = max(8, n // 64)  # all samples would dominate the run on a CPU
        found[f"p={p}"] = {
            "skpudle": with_tf32(partial(run, our_update, options.device, n)),
            "autograd": with_tf32(partial(run, autograd_update, options.device, n)),
            "skpudle_on_the_cpu": attempt(partial(run, our_update, "cpu", few)),
        }
        emit(found)
    return found | {"n": n, "m": m, "n_unfoldings": N_UNFOLDINGS}


def coders(options):
    """Measure certified lasso codes, and orthogonal matching pursuit."""
    n, found = 256 if options.quick else 65536, {}
    for m, p in [(16, 32)] if options.quick else [(64, 256), (256, 1024)]:

        def run(solve, device, n_rows, m=m, p=p):
            atoms = unit_rows(p, m, device)
            x = sparse_data(atoms, n_rows, 5)
            measured = seconds_of(lambda: solve(atoms, x), device, repeats=options.repeats)
            return measured | {"rows_a_second": n_rows / measured["seconds"]}

        solvers = {
            "lasso": lambda atoms, x: solve_lasso(atoms, x, 0.2),
            "omp": lambda atoms, x: solve_omp(atoms, x, n_nonzero_coefs=5),
        }
        found[f"m={m}, p={p}"] = {
            name: {
                "device": attempt(partial(run, solve, options.device, n)),
                "cpu": attempt(partial(run, solve, "cpu", n // 8)),
            }
            for name, solve in solvers.items()
        }
        emit(found)
    return found | {"n": n}


def search(options):
    """Measure epochs of the search, codes and atoms, from the second one on."""
    n, m, p = (200, 16, 40) if options.quick else (16384, 128, 2048)
    x = sparse_data(unit_rows(p, m, "cpu"), n, min(10, p // 4))

    def run(device):
        problem = Problem(x.to(device), auto_alpha(x))
        atoms = problem.project(x[:p].double())
        steps = descend(problem, atoms, problem.no_codes(), options.repeats + 2, stall=-1.0)
        next(steps)  # compiles, on the CPU
        return seconds_of(lambda: next(steps), device, repeats=options.repeats)

    found = {name: attempt(partial(run, name)) for name in dict.fromkeys([options.device, "cpu"])}
    return found | {"n": n, "m": m, "p": p}


def fit(options):
    """Measure `fit` with the number of atoms alone, and training from samples."""
    n, m, p = (200, 16, 8) if options.quick else (20_000, 64, 256)
    x = sparse_data(unit_rows(p, m, "cpu"), n, 3).numpy()

    def run(device, **more):
        learner = skpudle.PUDLEDictionaryLearning(p, device=device, random_state=0, **more)
        start = perf_counter()
        learner.fit(x)
        return {"seconds": perf_counter() - start, "epochs": learner.n_iter_}

    skpudle.PUDLEDictionaryLearning(4, device="cpu").fit(x[:100])  # numba compiles
    trained = dict(dict_init="data", max_iter=2 if options.quick else 5, tol=None)
    found = {}
    for name, more in {"default": {}, "trained": trained}.items():
        found[name] = {
            "device": attempt(partial(run, options.device, **more)),
            "cpu": attempt(partial(run, "cpu", **more)),
        }
    return found | {"n": n, "m": m, "p": p}


PARTS = {search: 60, tests: 90, checks: 80, peak: 20, update: 120, coders: 60, fit: 60}
BY_NAME = {part.__name__: part for part in PARTS}


# ---------------------------------------------------------------------------- all of them


def fractions_of_the_peak(parts):
    """Return the ratio of an update's rate to the rate of products in the same mode."""
    try:
        rates = parts["peak"]["result"]["float32"]
        return {
            size: {
                name: {
                    mode: row[mode].get("dense_teraflops", float("nan")) / rates[mode]["teraflops"]
                    for mode in rates
                }
                for name, row in rows.items()
                if name != "skpudle_on_the_cpu"
            }
            for size, rows in parts["update"]["result"].items()
            if size.startswith("p=")
        }
    except (KeyError, TypeError):  # one of them failed
        return None


def run_part(name, options):
    """Run a part in its own process and return its figures, or the reason for their absence."""
    command = [sys.executable, __file__, "--part", name, "--device", options.device]
    command += ["--repeats", str(options.repeats)] + ["--quick"] * options.quick
    start, limit, found = perf_counter(), PARTS[BY_NAME[name]], {}
    try:
        run = subprocess.run(command, capture_output=True, timeout=limit, cwd=ROOT)
        output = run.stdout
        if run.returncode:
            found["error"] = run.stderr.decode()[-2000:]
    except subprocess.TimeoutExpired as error:
        output = error.stdout
        found["error"] = f"took more than {limit} s; its figures until then count"
    lines = [line for line in (output or b"").decode().splitlines() if line.startswith("{")]
    if lines:
        found["result"] = json.loads(lines[-1])
    return found | {"wall_seconds": perf_counter() - start}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny problems, to try that all runs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=BY_NAME, default=list(BY_NAME))
    parser.add_argument("--part", choices=BY_NAME, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        emit(BY_NAME[options.part](options))
        return
    report = {"benchmark": "gpu", "device": options.device, "quick": options.quick}
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        report["skipped"] = (
            "torch finds no CUDA device here, so nothing was measured. Run this on a machine that "
            "has one, or try that it runs with --device cpu --quick."
        )
        print(report["skipped"])
        write_report(options.out, report)
        return
    report |= circumstances(options.device) | {"parts": {}}
    for name in options.parts:
        found = report["parts"][name] = run_part(name, options)
        error = found.get("error", "")
        print(f"{name:8s} {found['wall_seconds']:6.1f} s  {error.strip()[-200:]}", flush=True)
        report["fractions_of_the_peak"] = fractions_of_the_peak(report["parts"])
        write_report(options.out, report)


if __name__ == "__main__":
    main()
