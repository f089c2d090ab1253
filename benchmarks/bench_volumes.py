"""Learn atoms of volumes and of a film from data alone, with planted atoms, against SPORCO.

Five problems, each with several seeds. "volumes": 8 atoms of 3 x 7 x 7 voxels, smooth noise of
norm 1, have 16 copies each in each of 4 volumes of 24 x 32 x 32 voxels. Copies have factors of
modulus 1 to 2, and noise has the standard deviation 0.2. "10 % hidden" and "30 % hidden": the same
volumes with missing voxels. "film": one film of 80 frames of 32 x 32 pixels, with 60 copies of each
of 4 atoms of 3 frames of 7 x 7 pixels. "long atoms": the same with atoms of 6 frames, so that the
noise in a patch has five times the energy of a copy.

An atom is found if its correlation with a learned atom, at the best shift, is at least 0.9. The
error is 1 minus this correlation, averaged over planted atoms. SPORCO's ``ConvBPDNDictLearn`` with
``dimN=3`` gets the penalty that this package's search has chosen, and 150 iterations, on the
problem "volumes" alone.

Times are of the process's CPU, on one thread, after a small fit of the same kind has compiled its
functions. Example::

    OMP_NUM_THREADS=1 python benchmarks/bench_volumes.py --out volumes.json
"""

from typing import NamedTuple

import numpy as np
from common import Report, parse, timed
from scipy.ndimage import gaussian_filter

from skpudle import ConvPUDLEDictionaryLearning
from skpudle.metrics import atom_cosines

NOISE = 0.2


class Problem(NamedTuple):
    """The sizes of a problem, and the fraction of voxels that are missing."""

    n_volumes: int
    size: tuple
    n_atoms: int
    kernel: tuple
    n_copies: int
    missing_fraction: float = 0.0

    def draw(self, seed):  # -> volumes, atoms
        rng = np.random.default_rng(seed)
        atoms = rng.standard_normal((self.n_atoms, *self.kernel))
        atoms = np.stack([gaussian_filter(atom, 0.7) for atom in atoms])
        atoms /= np.linalg.norm(atoms.reshape(len(atoms), -1), axis=1)[
            :, None, None, None
        ]
        X = NOISE * rng.standard_normal((self.n_volumes, *self.size))
        room = np.subtract(self.size, self.kernel) + 1
        for volume in X:
            for atom in np.repeat(atoms, self.n_copies, axis=0):
                first = rng.integers(room)
                window = tuple(
                    slice(i, i + k) for i, k in zip(first, self.kernel, strict=True)
                )
                volume[window] += rng.choice([-1, 1]) * rng.uniform(1, 2) * atom
        return np.where(rng.random(X.shape) < self.missing_fraction, np.nan, X), atoms


VOLUMES = Problem(4, (24, 32, 32), 8, (3, 7, 7), 16)
SMALL = Problem(1, (12, 12, 12), 1, (3, 3, 3), 4)
PROBLEMS = {
    "volumes": VOLUMES,
    "10 % hidden": VOLUMES._replace(missing_fraction=0.1),
    "30 % hidden": VOLUMES._replace(missing_fraction=0.3),
    "film": Problem(1, (80, 32, 32), 4, (3, 7, 7), 60),
    "long atoms": Problem(1, (80, 32, 32), 4, (6, 7, 7), 60),
}


def fit(X, problem, seed):  # -> learner
    learner = ConvPUDLEDictionaryLearning(
        problem.n_atoms,
        atom_shape=problem.kernel,
        stride=1,
        random_state=seed,
    )
    return learner.fit(X)


def sporco_atoms(X, problem, penalty, seed, n_iter=150):
    """Learn atoms by SPORCO, with the options of its examples in two dimensions."""
    from sporco.dictlrn import cbpdndl

    rng = np.random.default_rng(seed)
    start = rng.standard_normal((*problem.kernel, problem.n_atoms))
    options = cbpdndl.ConvBPDNDictLearn.Options(
        {
            "MaxMainIter": n_iter,
            "CBPDN": {"rho": 50 * penalty + 0.5},
            "CCMOD": {"rho": 10.0},
        },
        dmethod="cns",
    )
    learner = cbpdndl.ConvBPDNDictLearn(
        start,
        np.moveaxis(X, 0, -1),
        penalty,
        options,
        dmethod="cns",
        dimK=1,
        dimN=3,
    )
    atoms = learner.solve().reshape(*problem.kernel, problem.n_atoms)
    return np.moveaxis(atoms, -1, 0)


def judge(atoms, planted):  # -> dict
    best = np.abs(atom_cosines(atoms, planted, n_axes=3)).max(axis=1)
    return {"found": float((best >= 0.9).mean()), "error": float(1 - best.mean())}


def table(names, seeds):
    fit(SMALL.draw(0)[0], SMALL, 0)  # compiles
    for name in names:
        problem = PROBLEMS[name]
        for seed in seeds:
            X, planted = problem.draw(seed)
            learner, seconds = timed(fit, X, problem, seed)
            shared = {"problem": name, "seed": seed}
            of_fit = judge(learner.components_, planted) | {"cpu_seconds": seconds}
            yield shared | {"learner": "skpudle"} | of_fit
            if problem is not VOLUMES:
                continue
            atoms, seconds = timed(
                sporco_atoms, X, problem, learner.search_alpha_, seed
            )
            of_fit = judge(atoms, planted) | {"cpu_seconds": seconds}
            yield shared | {"learner": "SPORCO, ConvBPDNDictLearn"} | of_fit


def main():
    args = parse(
        __doc__,
        "volumes.json",
        choices={"problems": PROBLEMS},
        problems=list(PROBLEMS),
        seeds=[0, 1, 2, 3, 4],
    )
    Report(args.out, "problem", "learner", "seed").extend(
        table(args.problems, args.seeds)
    )


if __name__ == "__main__":
    main()
