"""Time orthogonal matching pursuit of natural patches: skpudle against SPAMS and scikit-learn.

    python benchmarks/bench_omp.py --out benchmarks/results/omp.json
    python benchmarks/bench_omp.py --side 12 --dtype float32

Two tasks. "atoms": a fixed number of atoms for each patch, of zero mean and unit norm. "error":
patches of 8-bit images with noise of standard deviation sigma, without their mean, coded up to a
squared error of (1.1 sigma)^2 n_features, as in K-SVD denoising. Each competitor warms up; then all
run in turn, so that other work on the machine affects them alike. The report has medians, and the
median of the ratios of runs in turn. scikit-learn takes sample after sample in Python and is timed
on fewer.

`spams.omp` is another greedy method: it adds the atom that lowers the error the most (order
recursive matching pursuit, also called orthogonal least squares), in as many rounds of the same
kind. Its codes therefore differ, and its errors are a little lower.
"""

import argparse
import statistics
import time
import warnings
from functools import partial

import numpy as np
import torch
from bench_transform import learn_atoms
from common import circumstances, synchronize, write_report
from sklearn.decomposition import sparse_encode
from sklearn.linear_model import orthogonal_mp_gram

from skpudle.datasets import load_image_patches
from skpudle.omp import solve_omp

# penalty for learning the dictionary from patches of unit norm
ALPHA = 0.15


def patches_and_atoms(options):
    """Return patches of mean zero and unit norm, (n, side^2), and a dictionary learned from more.

    They come with their norms in units of an image in [0, 255].
    """
    n_all = options.n + max(options.p, 20_000)
    patches = load_image_patches(
        options.data,
        n_patches=n_all + n_all // 10,
        patch_size=(options.side, options.side),
        dtype=np.float64,
        random_state=options.seed,
        normalize=False,
    )
    patches *= 255
    norms = np.linalg.norm(patches, axis=1)
    order = np.random.default_rng(options.seed).permutation(np.flatnonzero(norms > 1))
    patches, norms = patches[order] / norms[order, None], norms[order]
    atoms = learn_atoms(patches[options.n :], options.p, ALPHA)
    return patches[: options.n], norms[: options.n], atoms


def competitors(x, atoms, stop, options):
    """Map names to a function that returns codes, and the number of samples that it codes."""
    x_device, atoms_device = (torch.from_numpy(a).to(options.device) for a in (x, atoms))

    def ours(**how):
        codes = solve_omp(atoms_device, x_device, **stop, **how)
        synchronize(options.device)
        return codes

    found = {"skpudle batched": (partial(ours, solver="batched"), len(x))}
    if options.device == "cpu":
        found["skpudle compiled"] = (partial(ours, solver="compiled"), len(x))
    found["skpudle positive"] = (partial(ours, positive=True), len(x))
    try:
        import spams
    except ImportError:
        print("SPAMS is not installed: left out")
    else:
        columns, atom_columns = np.asfortranarray(x.T), np.asfortranarray(atoms.T)
        # without eps it returned only zeros in some runs
        rule = dict(L=stop.get("n_nonzero_coefs", min(atoms.shape)), eps=stop.get("tol", 0.0))
        run = partial(spams.omp, columns, atom_columns, numThreads=torch.get_num_threads(), **rule)
        found["SPAMS"] = (lambda: run().toarray().T, len(x))
        found["SPAMS, sparse codes"] = (run, len(x))
    few = x[: options.few]

    def gram():
        norms = np.square(few).sum(1)
        return orthogonal_mp_gram(atoms @ atoms.T, atoms @ few.T, norms_squared=norms, **stop).T

    found["scikit-learn gram"] = (gram, len(few))
    if "n_nonzero_coefs" in stop:
        encode = partial(sparse_encode, few, atoms, algorithm="omp", **stop)
        found["scikit-learn sparse_encode"] = (encode, len(few))
    return found


def measure(found, repeats):
    """Return the seconds of each run and the codes of each competitor."""
    codes = {name: run() for name, (run, _) in found.items()}
    seconds = {name: [] for name in found}
    for _ in range(repeats):
        for name, (run, _) in found.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds, codes


def describe(found, seconds, codes, x, atoms, stop):
    """Return a row of figures for each competitor."""
    ours = "skpudle compiled" if "skpudle compiled" in found else "skpudle batched"
    exact_x, exact_atoms = x.astype(np.float64), atoms.astype(np.float64)
    reference = codes[ours].cpu().numpy().astype(np.float64)
    rows = []
    for name, (_, n) in found.items():
        z = codes[name]
        z = z.toarray().T if hasattr(z, "toarray") else torch.as_tensor(z).cpu().numpy()
        z = z.astype(np.float64)
        # scikit-learn gives an atom even to samples that need none
        coded = np.square(exact_x[:n]).sum(1) > stop.get("tol", 0.0)
        errors = np.square(exact_x[:n] - z @ exact_atoms).sum(1)
        each = [s / n * len(x) / o for s, o in zip(seconds[name], seconds[ours])]
        rows.append(
            {
                "name": name,
                "samples": n,
                "seconds_per_1000_samples": statistics.median(seconds[name]) / n * 1000,
                "all_seconds": seconds[name],
                "time_over_" + ours.replace(" ", "_"): statistics.median(each),
                "mean_support": float((z != 0).sum(1).mean()),
                "mean_squared_error": float(errors.mean()),
                "largest_error_over_tol": float(errors.max() / stop["tol"])
                if "tol" in stop
                else None,
                "largest_difference_of_codes": float(np.abs(z - reference[:n])[coded].max()),
            }
        )
        print(
            f"{name:28}{rows[-1]['seconds_per_1000_samples'] * 1000:10.2f}"
            f"{statistics.median(each):9.2f}{rows[-1]['mean_support']:9.1f}"
            f"{rows[-1]['mean_squared_error']:12.5g}"
            f"{rows[-1]['largest_difference_of_codes']:11.1e}",
            flush=True,
        )
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="device of skpudle (default: cpu)")
    parser.add_argument("--dtype", nargs="+", default=["float64", "float32"])
    parser.add_argument("--n", type=int, default=10_000, help="number of patches")
    parser.add_argument("--few", type=int, default=500, help="number of them for scikit-learn")
    parser.add_argument("--p", type=int, default=256, help="number of atoms")
    parser.add_argument("--side", type=int, default=8, help="pixels of a side of the patches")
    parser.add_argument("--n-nonzero", type=int, default=6)
    parser.add_argument("--sigma", type=float, default=20.0, help="of the noise, of 255")
    parser.add_argument("--data", help="folder of images (default: scikit-learn's two)")
    parser.add_argument("--only", nargs="+", help="parts of the names of those to run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON file to write")
    options = parser.parse_args()

    patches, norms, atoms = patches_and_atoms(options)
    noise = options.sigma * np.random.default_rng(options.seed).standard_normal(patches.shape)
    noise -= noise.mean(1, keepdims=True)
    tasks = {
        "atoms": (patches, {"n_nonzero_coefs": options.n_nonzero}),
        "error": (
            patches * norms[:, None] + noise,
            {"tol": (1.1 * options.sigma) ** 2 * patches.shape[1]},
        ),
    }
    report = {"benchmark": "omp", "options": vars(options), **circumstances(options.device)}
    report["results"] = []
    for task, (x, stop) in tasks.items():
        for dtype in options.dtype:
            print(f"\n{task}, {dtype}: {stop}")
            print(f"{'':28}{'us/sample':>10}{'/ ours':>9}{'support':>9}{'error':>12}{'codes':>11}")
            x_typed, atoms_typed = (np.ascontiguousarray(a, dtype=dtype) for a in (x, atoms))
            found = competitors(x_typed, atoms_typed, stop, options)
            if options.only:
                found = {k: v for k, v in found.items() if any(part in k for part in options.only)}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # scikit-learn on samples that end early
                seconds, codes = measure(found, options.repeats)
            rows = describe(found, seconds, codes, x_typed, atoms_typed, stop)
            report["results"].append({"task": task, "dtype": dtype, "stop": stop, "rows": rows})
    write_report(options.out, report)


if __name__ == "__main__":
    main()
