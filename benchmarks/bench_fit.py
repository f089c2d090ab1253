"""Time dictionary learners on natural patches to a held-out objective.

    python benchmarks/bench_fit.py --out benchmarks/results/fit.json
    python benchmarks/bench_fit.py --data FOLDER_OF_IMAGES --only surrogate SPAMS

All minimise the same lasso risk, ``0.5 |x - D z|^2 + alpha |z|_1`` with unit-norm atoms, from the
same random patches as atoms. The clock covers learning alone: dictionaries are stored on the way
and evaluated afterwards, all by the same certified codes of held-out patches. Each learner has a
budget of seconds; scikit-learn gets one pass, unless that takes longer than ``--patience``.
"""

import argparse
import time
import warnings
from functools import partial

import numpy as np
import torch
from common import circumstances, natural_patches, synchronize, write_report
from sklearn.decomposition import MiniBatchDictionaryLearning

from skpudle import PUDLEDictionaryLearning
from skpudle.lasso import solve_lasso


def skpudle(x, atoms, options, *, optimizer, n_updates=4):
    """Yield (seconds, atoms) after every few updates of `partial_fit`."""
    learner = PUDLEDictionaryLearning(
        len(atoms),
        alpha=options.alpha,
        gradient="dec",
        n_unfoldings=None,
        optimizer=optimizer,
        batch_size=options.batch,
        dict_init=atoms,
        device=options.device,
    )
    x = torch.from_numpy(x).to(options.device)
    rng = np.random.default_rng(options.seed)
    elapsed, size = 0.0, options.batch * n_updates
    learner.partial_fit(x[:size])  # compiles; the next call starts again
    del learner.components_
    while elapsed < options.seconds:
        order = rng.permutation(len(x))
        for first in range(0, len(x) - size + 1, size):
            start = time.perf_counter()
            learner.partial_fit(x[order[first : first + size]])
            synchronize(options.device)
            elapsed += time.perf_counter() - start
            yield elapsed, learner.components_
            if elapsed >= options.seconds:
                break


def scikit_learn(x, atoms, options, *, algorithm):
    """Yield (seconds, atoms) on the way through one pass of `partial_fit`."""
    learner = MiniBatchDictionaryLearning(
        len(atoms),
        alpha=options.alpha,
        fit_algorithm=algorithm,
        dict_init=atoms,
        batch_size=256,
        random_state=options.seed,
    )
    elapsed, order = 0.0, np.random.default_rng(options.seed).permutation(len(x))
    for first in range(0, len(x), 256):
        start = time.perf_counter()
        learner.partial_fit(x[order[first : first + 256]])
        elapsed += time.perf_counter() - start
        yield elapsed, learner.components_.copy()
        if elapsed > options.patience:
            return


def spams_learner(x, atoms, options):
    """Yield (seconds, atoms) of separate runs, since SPAMS has no hook in a run."""
    import spams

    columns, start_atoms = np.asfortranarray(x.T), np.asfortranarray(atoms.T)
    budgets = [budget for budget in (1, 2, 5, 10, 20) if budget <= options.seconds]
    for budget in budgets:
        start = time.perf_counter()
        found = spams.trainDL(
            columns,
            D=start_atoms,
            lambda1=options.alpha,
            iter=-budget,
            batchsize=512,
            numThreads=torch.get_num_threads(),
            verbose=False,
        )
        yield time.perf_counter() - start, np.ascontiguousarray(found.T)


def sporco_learner(x, atoms, options):
    """Yield (seconds, atoms) of SPORCO's batch learner, which gets a tenth of the patches."""
    from sporco.dictlrn.bpdndl import BPDNDictLearn

    elapsed = 0.0
    settings = BPDNDictLearn.Options({"Verbose": False, "MaxMainIter": 1})
    start = time.perf_counter()
    learner = BPDNDictLearn(
        np.ascontiguousarray(atoms.T), np.ascontiguousarray(x[::10].T), options.alpha, settings
    )
    while elapsed < options.seconds:
        learner.solve()
        elapsed += time.perf_counter() - start
        yield elapsed, learner.getdict().squeeze().T.copy()
        start = time.perf_counter()


LEARNERS = {
    "skpudle surrogate": partial(skpudle, optimizer="surrogate"),
    "skpudle adam": partial(skpudle, optimizer="adam"),
    "SPAMS trainDL": spams_learner,
    "SPORCO BPDNDictLearn": sporco_learner,
    "scikit-learn cd": partial(scikit_learn, algorithm="cd"),
    "scikit-learn lars": partial(scikit_learn, algorithm="lars"),
}


def objective(atoms, x, alpha):
    """Return the mean lasso objective of unit-norm atoms at certified codes, in float64."""
    atoms = torch.from_numpy(np.asarray(atoms, dtype=np.float64))
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    codes, gaps = solve_lasso(atoms, x, alpha)
    if not bool((gaps <= 1e-6).all()):
        raise RuntimeError("codes of the held-out patches are not certified")
    penalty = alpha * codes.abs().sum(1)
    return float((0.5 * (x - codes @ atoms).square().sum(1) + penalty).mean())


def thin(curve, n=40):
    """Keep dictionaries at about geometrically spaced times, and the last."""
    wanted = np.geomspace(max(curve[0][0], 1e-2), curve[-1][0], n)
    return [
        curve[i] for i in sorted({int(np.abs([t - w for t, _ in curve]).argmin()) for w in wanted})
    ]


def time_to(curve, target):
    return next((seconds for seconds, value in curve if value <= target), None)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="device of skpudle (default: cpu)")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--n", type=int, default=178_000, help="number of patches")
    parser.add_argument("--held-out", type=int, default=10_000)
    parser.add_argument("--p", type=int, default=256, help="number of atoms")
    parser.add_argument("--alpha", type=float, default=0.15)
    parser.add_argument("--batch", type=int, default=512, help="batch of skpudle")
    parser.add_argument("--data", help="folder of images (default: scikit-learn's two)")
    parser.add_argument("--only", nargs="+", help="parts of the names of those to run")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--patience", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON file to write")
    options = parser.parse_args()

    x = natural_patches(
        options.data, options.n + options.held_out, dtype=options.dtype, seed=options.seed
    )
    x = x[np.random.default_rng(options.seed).permutation(len(x))]
    test, x = torch.from_numpy(x[: options.held_out]).double(), x[options.held_out :]
    atoms = x[: options.p].copy()
    report = {
        "title": "Learning from natural patches",
        "options": vars(options),
        **circumstances(options.device),
    }
    curves = {}
    for name, learner in LEARNERS.items():
        if options.only and not any(part in name for part in options.only):
            continue
        time.sleep(1)  # let the threads of the last one stop waiting for work
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                dictionaries = list(learner(x, atoms, options))
            except ImportError as error:
                print(f"{name}: left out, {error}")
                continue
        curves[name] = [(t, objective(d, test, options.alpha)) for t, d in thin(dictionaries)]
        t, value = curves[name][-1]
        print(f"{name:22s} {value:.6f} after {t:6.2f} s ({len(dictionaries)} looks)", flush=True)
    targets = {name: curve[-1][1] for name, curve in curves.items() if "skpudle" not in name}
    reached = {
        target: {name: time_to(curve, value) for name, curve in curves.items()}
        for target, value in targets.items()
    }
    report["results"] = [
        {"name": name, "seconds": curve[-1][0], "held-out objective": curve[-1][1]}
        | {f"seconds to the objective of {target}": reached[target][name] for target in targets}
        | {"curve": curve}
        for name, curve in curves.items()
    ]
    for target, row in reached.items():
        shown = ", ".join(f"{k} {v:.2f} s" if v else f"{k} never" for k, v in row.items())
        print(f"to {target}'s last objective: {shown}")
    write_report(options.out, report)


if __name__ == "__main__":
    main()
