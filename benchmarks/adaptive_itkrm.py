"""The adaptive scheme of Pali and Schnass on the planted problems of `bench_sizes`, for comparison.

Our own implementation, after the paper (arXiv:1804.07101): iterative thresholding and K residual
means, with a sparsity level, a replacement of coherent atoms, and a dictionary size that adapt.

- An iteration thresholds, projects on the chosen atoms, and moves each atom to the signed mean of
  the residuals of its users.
- A coefficient counts if it is larger than noise of the residual's energy could make it, and so
  does an atom that correlates as much with the residual. The sparsity level follows the mean number
  that counts, by one in an iteration.
- Atoms that count for too few samples go, the least used ones first; of two coherent ones, one.
- Candidates are residual means of sparsity one, learned from the residuals; those that count for
  enough samples are added. In the last third of the iterations none are.

Usage: python benchmarks/adaptive_itkrm.py [--seeds 2] [--iterations 100]
"""

import argparse
import json
import time

import numpy as np
from bench_sizes import PROBLEMS, draw
from common import RESULTS

from skpudle.metrics import atom_coherence

# What the scheme has no word for: missing entries, signs of its own, and counts.
LEFT_OUT = "a fifth is missing", "non-negative", "counts"
COHERENT = 0.7


def unit(atoms):
    """Return rows of norm 1."""
    return atoms / np.maximum(np.linalg.norm(atoms, axis=1, keepdims=True), 1e-12)


def coded(X, atoms, n_nonzero):
    """Threshold and project: return supports, coefficients on them, and residuals."""
    products = X @ atoms.T
    support = np.argpartition(-np.abs(products), n_nonzero - 1, axis=1)[:, :n_nonzero]
    gram = (atoms @ atoms.T)[support[:, :, None], support[:, None, :]]
    gram += 1e-9 * np.eye(n_nonzero)
    right = np.take_along_axis(products, support, axis=1)
    codes = np.linalg.solve(gram, right[:, :, None])[:, :, 0]
    return support, codes, X - np.einsum("ns,nsf->nf", codes, atoms[support])


def counted(codes, residual, n_atoms):
    """Return which products with unit atoms noise of the residual's energy would hardly make."""
    level = 2 * np.log(4 * n_atoms) / residual.shape[1] * np.square(residual).sum(1)
    return np.square(codes) > np.maximum(level, 1e-12)[:, None]


def residual_means(X, atoms, support, codes, residual):
    """Move each atom to the signed mean of its users' residuals, with its own part put back."""
    signs = np.sign(np.einsum("nf,nsf->ns", X, atoms[support]))
    own = np.abs(np.einsum("nf,nsf->ns", X, atoms[support]))
    moved = np.zeros_like(atoms)
    for s in range(support.shape[1]):
        np.add.at(moved, support[:, s], signs[:, s, None] * residual)
    weights = np.bincount(support.ravel(), own.ravel(), len(atoms))
    return moved + weights[:, None] * atoms


def candidates(residual, n_candidates, rng):
    """Learn atoms of sparsity one from residuals."""
    atoms = unit(rng.standard_normal((n_candidates, residual.shape[1])))
    for part in np.array_split(residual, max(1, round(np.log(residual.shape[1])))):
        support, codes, rest = coded(part, atoms, 1)
        atoms = unit(residual_means(part, atoms, support, codes, rest))
    return atoms, residual @ atoms.T


def merged(atoms, uses):
    """Remove the less used one of each two coherent atoms."""
    kept = []
    for j in np.argsort(-uses, kind="stable"):
        if not kept or np.abs(atoms[kept] @ atoms[j]).max() < COHERENT:
            kept.append(j)
    return np.sort(np.array(kept))


def learn(X, n_iterations, seed):
    """Return atoms, from as many as there are features."""
    rng, m = np.random.default_rng(seed), X.shape[1]
    atoms, n_nonzero, least = unit(rng.standard_normal((m, m))), 1, round(m * np.log(m) / 4)
    n_candidates = max(1, round(np.log(m)))
    for iteration in range(n_iterations):
        support, codes, residual = coded(X, atoms, min(n_nonzero, len(atoms)))
        counts = counted(codes, residual, len(atoms))
        missed = counted(residual @ atoms.T, residual, len(atoms))
        level = (counts.sum(1) + missed.sum(1)).mean()
        uses = np.bincount(support.ravel(), counts.ravel(), len(atoms))
        atoms = unit(residual_means(X, atoms, support, codes, residual))
        n_nonzero = max(1, n_nonzero + int(np.sign(np.round(level) - n_nonzero)))
        if iteration < n_iterations // 10:
            continue
        kept = merged(atoms, uses)
        rare = [j for j in kept if uses[j] < least]
        gone = sorted(rare, key=lambda j: uses[j])[: max(1, len(atoms) // 20)]
        atoms = atoms[[j for j in kept if j not in gone]]
        if iteration < 2 * n_iterations // 3:
            new, products = candidates(residual, n_candidates, rng)
            best = np.abs(products).argmax(1)
            energy = np.square(residual).sum(1, keepdims=True)
            large = np.square(products).max(1) > 2 * np.log(4 * m) / m * energy[:, 0]
            enough = np.bincount(best, large, len(new)) >= least
            atoms = np.concatenate([atoms, new[enough]])
            atoms = atoms[merged(atoms, np.arange(len(atoms), 0, -1))]
        if len(atoms) == 0:
            atoms = unit(rng.standard_normal((1, m)))
    return atoms


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=100)
    args, rows = parser.parse_args(), []
    for name, problem in PROBLEMS.items():
        if name in LEFT_OUT:
            continue
        for seed in range(args.seeds):
            X, planted = draw(*problem, seed=seed)
            start = time.process_time()
            atoms = learn(X, args.iterations, seed)
            seconds = time.process_time() - start
            coherences = atom_coherence(atoms, planted)
            rows.append({
                "problem": name,
                "seed": seed,
                "planted": len(planted),
                "chosen": len(atoms),
                "found": float((coherences > 0.95).mean()),
                "mean_coherence": float(coherences.mean()),
                "seconds": round(seconds, 2),
            })  # fmt: skip
            print(rows[-1], flush=True)
    (RESULTS / "adaptive_itkrm.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
