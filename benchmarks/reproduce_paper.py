"""Run the experiments of the PUDLE paper at full size, figures 2 to 6, and some beyond it.

Every experiment has a name, writes ``benchmarks/results/paper/NAME.json`` as it proceeds, and keeps
its state in ``benchmarks/output/paper``, to resume after an interruption. A finished one is not run
again.

    python benchmarks/reproduce_paper.py --list
    python benchmarks/reproduce_paper.py --only figure5-s20-ae-ls figure4cd-T25-dec
    python benchmarks/reproduce_paper.py                    # all that is not finished yet

The settings are those in appendix B of the paper (arXiv:2106.00058) and in its authors' published
files: Adam with learning rate 1e-3, 100 unfoldings with step 0.2 and penalty 0.2, hard threshold
0.1, one sign per sample.
"""

import json
import pickle
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from common import (
    RESULTS,
    STATES,
    circumstances,
    parse,
    spams_atoms,
    unit,
    write,
    write_report,
)
from sklearn.decomposition import MiniBatchDictionaryLearning

from skpudle import (
    NOODLDictionaryLearning,
    PUDLEDictionaryLearning,
    SporcoDictionaryLearning,
)
from skpudle._data.sources import Samples
from skpudle._gradients import GRADIENT_RULES
from skpudle._operators._atoms import DenseDictionary, project_atoms
from skpudle._optimizers import make_optimizer
from skpudle.datasets import make_dictionary_data, perturb_dictionary
from skpudle.encoding import encode
from skpudle.metrics import dictionary_error

BENCHMARKS = Path(__file__).resolve().parent
sys.path.append(str(BENCHMARKS.parent / "examples"))
from convergence import code_convergence, gradient_convergence, lasso_dictionary  # noqa: E402

RESULTS, STATES = RESULTS / "paper", STATES / "paper"

# ---------------------------------------------------------------- files


def read_result(name):
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


# ---------------------------------------------------------------- the paper's generative model


@dataclass(frozen=True)
class Model:
    """``x = D z``: unit-norm Gaussian atoms, amplitudes in [1, 2], one sign per sample."""

    n_features: int
    n_components: int
    sparsity: int
    seed: int = 0
    snr_db: float | None = None

    def random_state(self, *path):
        """Return the seed of one part of the data, independent of earlier draws."""
        return int(np.random.SeedSequence([self.seed, *path]).generate_state(1)[0])

    def atoms(self):  # (n_components, n_features), float64
        sizes = (1, self.n_features, self.n_components)
        return make_dictionary_data(*sizes, random_state=self.random_state(0))[1]

    def perturbed_atoms(self, deviation):  # float32
        """Return the truth plus normal entries of this standard deviation, normalised."""
        tau = deviation * self.n_features**0.5
        atoms = perturb_dictionary(self.atoms(), tau, random_state=self.random_state(1))
        return unit(atoms).astype(np.float32)

    def samples_and_codes(self, n_samples, block, atoms):
        samples, _, codes = make_dictionary_data(
            n_samples,
            n_nonzero=self.sparsity,
            sign="sample",
            snr_db=self.snr_db,
            dictionary=atoms,
            random_state=self.random_state(2, block),
        )
        return samples, codes

    def samples(self, n_samples, block, atoms):  # (n_samples, n_features), float32
        return self.samples_and_codes(n_samples, block, atoms)[0].astype(np.float32)


# ---------------------------------------------------------------- figures 5 and 6

BATCH = 50
N_UPDATES = 1000
RECORD_EVERY = 25

PAPER = dict(
    n_unfoldings=100, step_size=0.2, optimizer=partial(torch.optim.Adam, eps=1e-3),
    learning_rate=1e-3, batch_size=BATCH, tol=None, device="cpu",
)  # fmt: skip


def decay_at(update):
    """Return the decay within the unfolding: 1, minus 0.005 after every 100 updates."""
    return 1 - 0.005 * (update // 100)


def learner_of(method, **params):
    if method == "ae-ls" or method == "decay":
        return PUDLEDictionaryLearning(alpha=0.2, **PAPER | params)
    if method == "hard":
        return PUDLEDictionaryLearning(alpha=0.1, shrinkage="hard", **PAPER | params)
    if method == "noodl":
        noodl = {
            name: PAPER[name]
            for name in ("n_unfoldings", "step_size", "batch_size", "tol")
        }
        return NOODLDictionaryLearning(
            threshold=0.1, learning_rate=0.4, **noodl | params
        )
    raise ValueError(f"Unknown method {method!r}.")


@dataclass(frozen=True)
class Recovery:
    """One curve of figure 5 or 6: the error of the dictionary against the update."""

    sparsity: int
    method: str
    snr_db: float | None = None
    seed: int = 0

    def run(self, name):
        model = Model(1000, 1500, self.sparsity, self.seed, self.snr_db)
        truth = model.atoms()
        state = STATES / f"{name}.pickle"
        if state.exists():
            learner, result = pickle.loads(state.read_bytes())
        else:
            initial = model.perturbed_atoms(0.005)
            learner = learner_of(self.method, n_components=1500, dict_init=initial)
            result = {
                "experiment": asdict(self),
                "circumstances": circumstances(),
                "update": [0],
                "relative_error": [float(dictionary_error(initial, truth))],
                "seconds": 0.0,
                "finished": False,
            }
        points = [1, *range(RECORD_EVERY, N_UPDATES + 1, RECORD_EVERY)]
        for point in points:
            done = result["update"][-1]
            if point <= done:
                continue
            start = time.perf_counter()
            blocks = [
                model.samples(BATCH, update, truth) for update in range(done, point)
            ]
            if self.method == "decay":
                learner.set_params(lambda_decay=decay_at(done))
            learner.partial_fit(np.concatenate(blocks))
            result["update"].append(point)
            error = float(dictionary_error(learner.components_, truth))
            result["relative_error"].append(error)
            result["seconds"] += time.perf_counter() - start
            result["finished"] = point == N_UPDATES
            write(state, pickle.dumps((learner, result)))
            write_report(RESULTS / f"{name}.json", result)
            print(f"{name}  {point}  {error:.4g}", flush=True)
        state.unlink()


# ---------------------------------------------------------------- other packages


def fit_sporco(samples, initial, n_updates):
    learner = SporcoDictionaryLearning(alpha=0.2, max_iter=200, dict_init=initial)
    return learner.fit(samples).components_


def fit_scikit_learn(samples, initial, n_updates):
    start = dict(batch_size=BATCH, dict_init=initial.astype(samples.dtype))
    learner = MiniBatchDictionaryLearning(len(initial), alpha=0.2, **start)
    for rows in np.split(samples, n_updates):
        learner.partial_fit(rows)
    return learner.components_


def fit_spams(samples, initial, n_updates):
    start = np.asfortranarray(initial.T, dtype=np.float64)
    how = dict(D=start, mode=2, batch=BATCH, iter=n_updates)
    return spams_atoms(samples.astype(np.float64), len(initial), 0.2, **how)


PACKAGES = {"sporco": fit_sporco, "scikit-learn": fit_scikit_learn, "spams": fit_spams}


@dataclass(frozen=True)
class OtherPackage:
    """The final error of another package on the problem of figure 5 or 6."""

    sparsity: int
    package: str
    n_samples: int = BATCH * N_UPDATES
    seed: int = 0

    def run(self, name):
        model = Model(1000, 1500, self.sparsity, self.seed)
        truth, initial = model.atoms(), model.perturbed_atoms(0.005)
        n_updates = self.n_samples // BATCH
        blocks = [model.samples(BATCH, update, truth) for update in range(n_updates)]
        start = time.perf_counter()
        atoms = PACKAGES[self.package](np.concatenate(blocks), initial, n_updates)
        result = {
            "experiment": asdict(self),
            "circumstances": circumstances(),
            "relative_error": float(dictionary_error(atoms, truth)),
            "seconds": time.perf_counter() - start,
            "finished": True,
        }
        write_report(RESULTS / f"{name}.json", result)
        print(f"{name}  {result['relative_error']:.4g}", flush=True)


# ---------------------------------------------------------------- figures 2, 3, 4a and 4b

DEPTHS = [1, 2, 3, 5, 8, 13, 20, 25, 30, 40, 50, 60, 75, 90, 100]


@dataclass(frozen=True)
class Theory:
    """Figures 2, 3, 4a and 4b: errors of codes and gradients against the unfolding."""

    n_samples: int = 10_000
    n_single: int = 200
    seed: int = 0

    def run(self, name):
        model = Model(50, 100, 5, self.seed)
        truth, atoms = model.atoms(), model.perturbed_atoms(0.02)
        samples, codes = model.samples_and_codes(self.n_samples, 0, truth)
        best = lasso_dictionary(samples, truth, alpha=0.2, tol=1e-4).components
        settings = dict(alpha=0.2, step_size=0.2)
        means = gradient_convergence(
            samples, atoms, n_unfoldings=DEPTHS, code=codes, minimizer=best, **settings
        )
        single = samples[: self.n_single]
        settings["n_unfoldings"] = 200
        code_error = code_convergence(single, atoms, random_state=0, **settings)
        each = gradient_convergence(single, atoms, per_sample=True, **settings)
        ratios = []
        for sample, first in enumerate(code_error.support_time):
            if first + 60 <= 200:
                window = slice(first - 1 + 30, first - 1 + 60)
                logs = np.log(each.local[:2, window, sample])
                dec, ae_lasso = np.polyfit(np.arange(30), logs.T, 1)[0]
                ratios.append(ae_lasso / dec)
        result = {
            "experiment": asdict(self),
            "circumstances": circumstances(),
            "unfolding": DEPTHS,
            "code_error": np.mean(code_error.code_error, axis=1)[
                np.array(DEPTHS) - 1
            ].tolist(),
            "gradient": means.gradient.tolist(),
            "to_local": means.local.tolist(),
            "to_minimiser": means.minimizer.tolist(),
            "to_truth": means.truth.tolist(),
            "slope_ratio": float(np.median(ratios)),
            "slope_ratio_samples": len(ratios),
            "finished": True,
        }
        write_report(RESULTS / f"{name}.json", result)
        print(f"{name}  slope ratio {result['slope_ratio']:.4g}", flush=True)


# ---------------------------------------------------------------- figures 4c and 4d

N_THEORY = 10_000


@cache
def theory_data(seed):  # -> truth, samples, initial atoms
    model = Model(50, 100, 5, seed)
    truth = model.atoms()
    samples = model.samples(N_THEORY, 0, truth)
    return truth, samples, model.perturbed_atoms(0.1)


@dataclass(frozen=True)
class Training:
    """One curve of figure 4c or 4d: distances to D tilde and D* in (full-batch) training."""

    n_unfoldings: int
    gradient: str
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    batch_size: int = N_THEORY
    n_epochs: int = 600
    seed: int = 0

    def run(self, name):
        truth, samples, initial = theory_data(self.seed)
        minimiser = lasso_minimiser(self.seed)
        optimizer = make_optimizer(
            partial(torch.optim.Adam, eps=1e-8)
            if self.optimizer == "adam"
            else self.optimizer,
            torch.tensor(initial),
            project_atoms,
            learning_rate=self.learning_rate,
            data_scale=1.0,
        )
        state = STATES / f"{name}.pickle"
        if state.exists():
            (atoms, moments), result = pickle.loads(state.read_bytes())
            optimizer.load(atoms, moments)
        else:
            result = {
                "experiment": asdict(self),
                "circumstances": circumstances(),
                "distance_of_minimiser": float(np.linalg.norm(minimiser - truth)),
                "epoch": [0],
                "to_truth": [float(np.linalg.norm(initial - truth))],
                "to_minimiser": [float(np.linalg.norm(initial - minimiser))],
                "seconds": 0.0,
                "finished": False,
            }
        samples = torch.tensor(samples)
        for epoch in range(result["epoch"][-1] + 1, self.n_epochs + 1):
            start = time.perf_counter()
            for rows in samples.split(self.batch_size):
                optimizer.update(self.gradient_of(optimizer.atoms, rows), codes=None)
            result["seconds"] += time.perf_counter() - start
            if epoch == 1 or epoch % RECORD_EVERY == 0:
                atoms = optimizer.atoms.detach()
                result["epoch"].append(epoch)
                result["to_truth"].append(float(np.linalg.norm(atoms.numpy() - truth)))
                distance = float(np.linalg.norm(atoms.numpy() - minimiser))
                result["to_minimiser"].append(distance)
                result["finished"] = epoch == self.n_epochs
                content = (atoms, optimizer.state()), result
                write(state, pickle.dumps(content))
                write_report(RESULTS / f"{name}.json", result)
                print(
                    f"{name}  {epoch}  {result['to_truth'][-1]:.4g}  {distance:.4g}",
                    flush=True,
                )
        state.unlink()

    def gradient_of(self, atoms, samples):
        """Return the mean gradient, from chunks whose codes fit into a processor's cache."""
        encoder = partial(
            encode, alpha=0.2, n_unfoldings=self.n_unfoldings, step_size=0.2
        )
        rule, total = GRADIENT_RULES[self.gradient], torch.zeros_like(atoms)
        for rows in samples.split(1000):
            batch = Samples(rows)
            evaluation = rule(
                DenseDictionary(atoms), batch, encoder=encoder, penalty=0.2
            )
            (gradient,) = torch.autograd.grad(evaluation.surrogate, atoms)
            total += gradient * (len(rows) / len(samples))
        return total


@cache
def lasso_minimiser(seed):
    """Return D*, the minimiser of the lasso risk of the samples nearest to the true dictionary."""
    truth, samples, _ = theory_data(seed)
    return lasso_dictionary(samples, truth, alpha=0.2, tol=1e-4).components


# ---------------------------------------------------------------- the list, in the order of a run


METHODS = ("ae-ls", "decay", "hard", "noodl")
GRADIENTS = ("dec", "ae-lasso", "ae-ls")


def experiments():
    """Return all experiments by name, in the order in which they are run."""
    found = {"theory": Theory()}
    for sparsity in (20, 10, 40):
        for method in METHODS:
            found[f"figure5-s{sparsity}-{method}"] = Recovery(sparsity, method)
    for depth in (25, 100, 50):
        for gradient in GRADIENTS:
            found[f"figure4cd-T{depth}-{gradient}"] = Training(depth, gradient)
    for sparsity in (20, 10, 40):
        for package in PACKAGES:
            # SPORCO keeps codes of all samples in memory, several times over
            n_samples = 10_000 if package == "sporco" else BATCH * N_UPDATES
            found[f"figure5-s{sparsity}-{package}"] = OtherPackage(
                sparsity, package, n_samples
            )
    # beyond the paper: noise, other optimisers
    for snr in (20, 10):
        for method in METHODS:
            found[f"noise-{snr}dB-{method}"] = Recovery(20, method, snr_db=snr)
    for depth in (25, 100):
        for gradient in GRADIENTS:
            full = Training(depth, gradient, "sgd", learning_rate=3.0)
            found[f"descent-T{depth}-{gradient}"] = full
            batches = Training(
                depth, gradient, "sgd", 1.0, batch_size=500, n_epochs=150
            )
            found[f"sgd-T{depth}-{gradient}"] = batches
    return found


def main():
    given = parse(__doc__, only=[], list=False)
    known = experiments()
    if unknown := set(given.only) - set(known):
        raise SystemExit(f"Unknown experiments {sorted(unknown)}; see --list.")
    for name in given.only or known:
        result = read_result(name)
        finished = result is not None and result["finished"]
        if given.list:
            print(
                f"{name:32} {'finished' if finished else 'started' if result else '-'}"
            )
        elif not finished:
            known[name].run(name)


if __name__ == "__main__":
    main()
