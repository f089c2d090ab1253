"""Time converged codes of natural patches: skpudle against scikit-learn and SPAMS.

    python benchmarks/bench_transform.py --p 256 --out transform-p256.json
    python benchmarks/bench_transform.py --p 1024 --data FOLDER_OF_IMAGES --dtype float32

All solve the same lasso for 8x8 patches without their mean and of unit norm. Each warms up once
(numba compiles, threads start); then all run in turn, so that other work on the machine affects
them alike. The report has medians. A competitor with a warm-up longer than `--patience` seconds is
not run again. Every gap is computed in float64, from the codes alone; the codes of skpudle have
their own certificate, which is part of its time.
"""

import argparse
import statistics
import time
import warnings
from functools import partial

import numpy as np
import torch
from common import circumstances, natural_patches, synchronize, write_report
from sklearn.decomposition import sparse_encode

from skpudle.lasso import duality_gap, solve_lasso

TOL = 1e-6
# least-angle regression runs in Python, sample by sample: time it on fewer
LARS_SAMPLES = 1000


def learn_atoms(patches, p, alpha, *, n_passes=5, batch_size=2000):  # -> (p, n_features)
    """Learn a dictionary by Mairal et al.'s online method (2010), so that codes are typical."""
    atoms = torch.from_numpy(patches[:p].copy())
    total_codes, total_data = torch.eye(p, dtype=atoms.dtype), atoms.clone()
    for batch in torch.from_numpy(patches).split(batch_size) * n_passes:
        codes, _ = solve_lasso(atoms, batch, alpha)
        total_codes = 0.9 * total_codes + codes.mT @ codes
        total_data = 0.9 * total_data + codes.mT @ batch
        for j in total_codes.diagonal().nonzero().squeeze(1).tolist():
            atoms[j] += (total_data[j] - total_codes[j] @ atoms) / total_codes[j, j]
            atoms[j] /= torch.linalg.vector_norm(atoms[j])
    return atoms.numpy()


def competitors(x, atoms, alpha, device):
    """Map names to a function that returns codes, and the number of samples that it codes."""
    x_device, atoms_device = (torch.from_numpy(a).to(device) for a in (x, atoms))

    def ours(solver):
        codes, _ = solve_lasso(atoms_device, x_device, alpha, solver=solver)
        synchronize(device)
        return codes

    found = {"skpudle batched": (partial(ours, "batched"), len(x))}
    if device == "cpu":
        try:
            import numba  # noqa: F401
        except ImportError:
            print("numba is not installed: no compiled solver")
        else:
            found["skpudle compiled"] = (partial(ours, "compiled"), len(x))
    try:
        import spams
    except ImportError:
        print("SPAMS is not installed: left out")
    else:
        columns, atom_columns = np.asfortranarray(x.T), np.asfortranarray(atoms.T)
        found["SPAMS lasso"] = (
            lambda: (
                spams.lasso(
                    columns, atom_columns, lambda1=alpha, numThreads=torch.get_num_threads()
                )
                .toarray()
                .T
            ),
            len(x),
        )
    for name, n in {"lasso_cd": len(x), "lasso_lars": min(LARS_SAMPLES, len(x))}.items():
        encode = partial(sparse_encode, x[:n], atoms, algorithm=name, alpha=alpha)
        found[f"scikit-learn {name}"] = (encode, n)
    return found


def measure(found, *, repeats, patience):
    """Return the seconds of each run and the codes of each competitor."""
    seconds, codes = {}, {}
    for name, (run, _) in found.items():
        start = time.perf_counter()
        codes[name] = run()
        seconds[name] = [time.perf_counter() - start]
        print(f"{name}: warm-up {seconds[name][0]:.3f} s", flush=True)
    quick = [name for name in found if seconds[name][0] <= patience]
    for name in quick:
        seconds[name].clear()
    for _ in range(repeats):
        for name in quick:
            time.sleep(0.5)  # let the threads of the last one stop waiting for work
            start = time.perf_counter()
            found[name][0]()
            seconds[name].append(time.perf_counter() - start)
    return seconds, codes


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="device of skpudle (default: cpu)")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--n", type=int, default=20_000, help="number of patches")
    parser.add_argument("--p", type=int, default=256, help="number of atoms")
    parser.add_argument("--alpha", type=float, default=0.15)
    parser.add_argument(
        "--atoms", choices=["learned", "patches"], default="learned", help="the dictionary"
    )
    parser.add_argument("--data", help="folder of images (default: scikit-learn's two)")
    parser.add_argument("--only", nargs="+", help="parts of the names of those to run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patience", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON file to write")
    options = parser.parse_args()

    n_atoms = max(options.p, 20_000)
    patches = natural_patches(
        options.data, n_atoms + options.n, dtype=np.float64, seed=options.seed
    )
    patches = patches[np.random.default_rng(options.seed).permutation(len(patches))]
    atoms, x = patches[:n_atoms], patches[n_atoms:].astype(options.dtype)
    if options.atoms == "learned":
        atoms = learn_atoms(atoms, options.p, options.alpha)
    atoms = np.ascontiguousarray(atoms[: options.p], dtype=options.dtype)

    report = {"benchmark": "transform", "options": vars(options), **circumstances(options.device)}
    found = competitors(x, atoms, options.alpha, options.device)
    if options.only:
        found = {k: v for k, v in found.items() if any(part in k for part in options.only)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the gaps say which samples did not converge
        seconds, codes = measure(found, repeats=options.repeats, patience=options.patience)

    exact_atoms, exact_x = torch.from_numpy(atoms).double(), torch.from_numpy(x).double()
    rows = []
    for name, (_, n) in found.items():
        z = torch.as_tensor(codes[name]).cpu()
        gaps = duality_gap(exact_atoms, exact_x[:n], z, options.alpha)
        rows.append(
            {
                "name": name,
                "samples": n,
                "runs": len(seconds[name]),
                "seconds": statistics.median(seconds[name]),
                "all_seconds": seconds[name],
                "seconds_per_1000_samples": statistics.median(seconds[name]) / n * 1000,
                "largest_gap": float(gaps.max()),
                "samples_above_1e-6": int((~(gaps <= TOL)).sum()),
                "mean_support": float((z != 0).sum(1).double().mean()),
            }
        )
    report["results"] = rows

    reference = next((r for r in rows if "SPAMS" in r["name"]), rows[0])
    unit = "seconds_per_1000_samples"
    print(f"\n{'':26}{'s / 1000':>10}{'ratio':>8}{'gap':>10}{'> 1e-6':>8}{'support':>9}")
    for row in rows:
        print(
            f"{row['name']:26}{row[unit]:10.4f}{row[unit] / reference[unit]:8.2f}"
            f"{row['largest_gap']:10.1e}{row['samples_above_1e-6']:8d}{row['mean_support']:9.1f}"
        )
    write_report(options.out, report)


if __name__ == "__main__":
    main()
