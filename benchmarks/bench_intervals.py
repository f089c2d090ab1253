"""Measure intervals of atoms and codes: coverage, time, and errors beside the limit.

    python benchmarks/bench_intervals.py --out benchmarks/results/intervals.json

Planted atoms, fitted with defaults; of each problem those that are found (a cosine above 0.9) are
compared with the truth. "coverage" is the share of entries of atoms in their 90 % interval, "codes"
that of nonzero codes in rows whose support is right, which are the share "right". "time" is the
processor time of `atom_intervals` by that of the fit. Errors are squared, of unit atoms, summed
over the atoms that were found, and divided by `error_bound` for each atom's own codes.

Codes of "uniform" have moduli of 1 to 2 and random signs, "normal" ones are normal numbers,
"positive" ones have moduli of 1 to 2. Noise of "features" differs by exp(0.5 N). Counts are those
of `skpudle.PoissonNMF`: expectations are sums of spectra of Dirichlet's distribution. "raw" rows
have an offset of 3 N(0, 1), and one of them is a hundred times as long.
"""

import json
from itertools import product

import numpy as np
from common import circumstances, matched, parse, timed, write_report

from skpudle import PoissonNMF, PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data
from skpudle.inspection import atom_intervals, code_intervals, error_bound

N_NONZERO = {20: 3, 50: 4, 100: 5, 200: 8}
ROWS_PER_ATOM = 50
COUNTS = [  # features, components, samples, events, parameter of Dirichlet's spectra, share used
    dict(zip(("n_features", "n_components", "n_samples", "events", "flat", "used"), values))
    for values in (
        (40, 3, 200, 100, 0.2, 1), (40, 3, 200, 100, 1.0, 1), (96, 5, 300, 1000, 0.3, 1),
        (60, 8, 600, 300, 0.5, 0.3), (20, 4, 400, 50, 0.5, 0.4),
    )
]  # fmt: skip


def planted(n, m, p, n_nonzero, *, snr_db, kind, noise, seed):
    """Return rows, atoms, codes and the mean square of the noise."""
    rng = np.random.default_rng(seed)
    sign = None if kind == "positive" else "entry"
    _, atoms, z = make_dictionary_data(n, m, p, n_nonzero, sign=sign, random_state=seed)
    z = np.where(z != 0, rng.standard_normal(z.shape), 0) if kind == "normal" else z
    signal = z @ atoms
    scales = np.exp(0.5 * rng.standard_normal(m)) if noise == "features" else np.ones(m)
    added = rng.standard_normal(signal.shape) * scales
    added *= np.sqrt((signal**2).mean() / (added**2).mean()) * 10 ** (-snr_db / 20)
    x = signal + added
    if noise == "raw":
        x += 3 * rng.standard_normal(m)
        x[n // 2] *= 100
    return x, atoms, z, float((added**2).mean())


def measured(problem):
    """Return the figures of a problem."""
    sizes = {name: problem[name] for name in ("n", "m", "p", "n_nonzero")}
    how = {name: problem[name] for name in ("snr_db", "kind", "noise", "seed")}
    x, atoms, z, variance = planted(*sizes.values(), **how)
    positive = problem["kind"] == "positive"
    learner = PUDLEDictionaryLearning(
        problem["p"], positive_code=positive, random_state=problem["seed"]
    )
    _, seconds = timed(learner.fit, x)
    found, more = timed(atom_intervals, learner, x, random_state=0)
    order, cosines = matched(found.estimate, atoms)
    signs, is_found = np.sign(cosines), np.abs(cosines) > 0.9
    difference = (found.estimate[order] * signs[:, None] - atoms)[is_found]
    of_fit = (learner.components_[order] * signs[:, None] - atoms)[is_found]
    errors = found.standard_error[order][is_found]
    m, s = problem["m"], problem["n_nonzero"]
    # the mean square of an atom's codes in place of the signal's
    snr_db = 10 * np.log10(np.square(z).sum(0)[is_found] / variance / m)
    bounds = [error_bound(1, m, 1, n_nonzero=1.0, snr_db=value) for value in snr_db]
    bound = sum(bounds) * (m - 1) / (m - s)
    codes = code_intervals(learner, x, random_state=0)
    right = ((codes.estimate[:, order] != 0) == (z != 0)).all(1)
    middle, reach = (
        codes.estimate[:, order] * signs,
        1.6449 * codes.standard_error[:, order],
    )
    inside = (np.abs(middle - z) <= reach)[right][z[right] != 0]
    return problem | {
        "found": float(is_found.mean()),
        "coverage": float((np.abs(difference) <= errors * 1.6449).mean()),
        "supported": float(found.supported.mean()),
        "codes": float(inside.mean()) if right.any() else None,
        "right": float(right.mean()),
        "error of the fit": float((of_fit**2).sum() / bound),
        "error": float((difference**2).sum() / bound),
        "expected error": float((errors**2).sum() / bound),
        "time": more / seconds,
        "seconds of the fit": seconds,
    }


def measured_counts(problem):
    """Return the figures of counts."""
    rng = np.random.default_rng(problem["seed"])
    n, p, m = (problem[name] for name in ("n_samples", "n_components", "n_features"))
    atoms = rng.dirichlet(np.full(m, problem["flat"]), size=p)
    z = (
        problem["events"]
        * rng.gamma(1.0, 1.0, (n, p))
        * (rng.random((n, p)) < problem["used"])
    )
    x = rng.poisson(z @ atoms)
    learner = PoissonNMF(p, random_state=problem["seed"])
    _, seconds = timed(learner.fit, x)
    found, more = timed(atom_intervals, learner, x, random_state=0)
    order, cosines = matched(found.estimate, atoms)
    inside = (found.lower[order] <= atoms) & (atoms <= found.upper[order])
    large = atoms > 0.5 / m
    errors = [
        np.square(part[order] - atoms).sum()
        for part in (found.estimate, learner.components_)
    ]
    return problem | {
        "found": float((cosines > 0.9).mean()),
        "coverage": float(inside.mean()),
        "coverage of large entries": float(inside[large].mean()),
        "error by the fit's": float(errors[0] / errors[1]),
        "time": more / seconds,
        "seconds of the fit": seconds,
    }


def problems(n_seeds):
    """Yield the kind of each problem, and its parameters."""
    for seed in range(3 * n_seeds):
        for counts in COUNTS:
            yield "counts", counts | {"seed": seed}
    for seed in range(n_seeds):
        for rows in (10, 20, 50, 100, 200, 500, 1000):
            sizes = {"n": rows * 60, "m": 40, "p": 60, "n_nonzero": 4}
            rest = {
                "snr_db": 20,
                "kind": "uniform",
                "noise": "equal",
                "seed": 100 + seed,
            }
            yield "curve", sizes | rest
    kinds = [("uniform", "equal"), ("uniform", "features"), ("normal", "equal")]
    kinds += [("positive", "equal"), ("uniform", "raw")]
    for m, seed in sorted(product(N_NONZERO, range(n_seeds))):
        for factor, snr_db in product((1.5, 2), (20, 10, 5)):
            p = int(factor * m)
            sizes = {"n": ROWS_PER_ATOM * p, "m": m, "p": p, "n_nonzero": N_NONZERO[m]}
            is_short = m < 100 and seed == 0
            for kind, noise in (
                kinds if is_short else kinds[:2] if m < 200 or not seed else ()
            ):
                rest = {"snr_db": snr_db, "kind": kind, "noise": noise, "seed": seed}
                yield "coverage", sizes | rest


def size(problem):
    """Return the number of products of rows and atoms, by which the shortest come first."""
    names = (
        ("n_samples", "n_features", "n_components")
        if "events" in problem
        else ("n", "m", "p")
    )
    return int(np.prod([problem[name] for name in names], dtype=np.int64))


def main():
    given = parse(__doc__, "intervals.json", seeds=2)
    found = json.loads(given.out.read_text()) if given.out.exists() else {}  # go on
    facts = found.pop("circumstances", None) or circumstances()
    for kind, problem in sorted(problems(given.seeds), key=lambda pair: size(pair[1])):
        rows = found.setdefault(kind, [])
        if not any(problem.items() <= done.items() for done in rows):
            rows.append((measured_counts if kind == "counts" else measured)(problem))
            print(kind, rows[-1], flush=True)
            write_report(given.out, found | {"circumstances": facts})


if __name__ == "__main__":
    main()
