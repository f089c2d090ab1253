"""Run the experiments of the PUDLE paper at full size: figures 2 to 6, and what lies beyond them.

Every experiment has a name, writes ``benchmarks/results/paper/NAME.json`` as it goes, and keeps in
``benchmarks/output/paper`` what it needs to go on after an interruption; one that is finished is
not run again.

    python benchmarks/reproduce_paper.py --list
    python benchmarks/reproduce_paper.py figure5-s20-ae-ls figure4-T25-dec
    python benchmarks/reproduce_paper.py                    # all that is not finished yet
    python benchmarks/reproduce_paper.py --summary --published published_curves.json

The settings are those of appendix B of the paper (arXiv:2106.00058), as its authors' published
files show them: Adam with learning rate 1e-3, 100 unfoldings with step 0.2 and penalty 0.2, hard
threshold 0.1, one sign per sample.
"""

import argparse
import json
import os
import pickle
import platform
import time
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

import skpudle
from skpudle import PUDLEDictionaryLearning
from skpudle.encoding import encode, threshold_levels, unfold
from skpudle.gradients import GRADIENT_RULES
from skpudle.operators import DenseDictionary, project_atoms
from skpudle.optimizers import make_optimizer

BENCHMARKS = Path(__file__).resolve().parent
RESULTS = BENCHMARKS / "results" / "paper"
STATES = BENCHMARKS / "output" / "paper"

# ---------------------------------------------------------------- files


def write(path, content, *, mode="w"):
    """Replace a file in one step, so that an interruption leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with temporary.open(mode) as file:
        file.write(content)
    temporary.replace(path)


def read_result(name):
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def write_result(name, result):
    rounded = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.6g}"))
    write(RESULTS / f"{name}.json", json.dumps(rounded, indent=1) + "\n")


def circumstances():
    return {
        "skpudle": skpudle.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


# ---------------------------------------------------------------- the paper's generative model


def unit_rows(atoms):
    return atoms / np.linalg.norm(atoms, axis=1, keepdims=True)


@dataclass(frozen=True)
class Model:
    """``x = D z``: unit-norm Gaussian atoms, amplitudes in [1, 2], one sign per sample."""

    n_features: int
    n_components: int
    sparsity: int
    seed: int = 0
    snr_db: float | None = None

    def atoms(self):  # (n_components, n_features), float64
        generator = np.random.default_rng([self.seed, 0])
        return unit_rows(generator.standard_normal((self.n_components, self.n_features)))

    def perturbed_atoms(self, scale):
        """Return the truth plus normal entries of standard deviation ``scale``."""
        generator = np.random.default_rng([self.seed, 1])
        noise = generator.standard_normal((self.n_components, self.n_features))
        return self.atoms() + scale * noise

    def codes(self, n_samples, block):
        generator = np.random.default_rng([self.seed, 2, block])
        codes = np.zeros((n_samples, self.n_components))
        support = generator.random(codes.shape).argpartition(self.sparsity, axis=1)
        support = support[:, : self.sparsity]
        signs = generator.choice([-1.0, 1.0], size=(n_samples, 1))
        amplitudes = signs * generator.uniform(1, 2, size=support.shape)
        np.put_along_axis(codes, support, amplitudes, axis=1)
        return codes

    def samples(self, n_samples, block, atoms):  # (n_samples, n_features), float32
        """Return one block of the data; block ``k`` is the same whatever was drawn before."""
        x = self.codes(n_samples, block) @ atoms
        if self.snr_db is not None:
            generator = np.random.default_rng([self.seed, 3, block])
            noise = generator.standard_normal(x.shape)
            scale = np.linalg.norm(x, axis=1) / np.linalg.norm(noise, axis=1)
            x = x + noise * scale[:, None] * 10 ** (-self.snr_db / 20)
        return x.astype(np.float32)


def relative_error(atoms, truth):
    return float(np.linalg.norm(atoms - truth) / np.linalg.norm(truth))


# ---------------------------------------------------------------- figures 5 and 6

BATCH = 50
N_UPDATES = 1000
RECORD_EVERY = 25

PAPER = dict(
    n_unfoldings=100,
    step_size=0.2,
    learning_rate=1e-3,
    optimizer_params={"eps": 1e-3},
    batch_size=BATCH,
    tol=None,
    device="cpu",
)


def decay_at(update):
    """Return the decay within the unfolding: 1, and 0.005 less after every 100 updates."""
    return 1 - 0.005 * (update // 100)


def learner_of(method, **params):
    if method == "ae-ls" or method == "decay":
        return PUDLEDictionaryLearning(alpha=0.2, **PAPER | params)
    if method == "hard":
        return PUDLEDictionaryLearning(alpha=0.1, shrinkage="hard", **PAPER | params)
    if method == "noodl":
        from skpudle import NOODLDictionaryLearning

        noodl = {name: PAPER[name] for name in ("n_unfoldings", "step_size", "batch_size", "tol")}
        return NOODLDictionaryLearning(threshold=0.1, learning_rate=0.4, **noodl | params)
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
            initial = unit_rows(model.perturbed_atoms(0.005)).astype(np.float32)
            learner = learner_of(self.method, n_components=1500, dict_init=initial)
            result = {
                "experiment": asdict(self),
                "circumstances": circumstances(),
                "update": [0],
                "relative_error": [relative_error(initial, truth)],
                "seconds": 0.0,
                "finished": False,
            }
        points = [1, *range(RECORD_EVERY, N_UPDATES + 1, RECORD_EVERY)]
        for point in points:
            done = result["update"][-1]
            if point <= done:
                continue
            start = time.perf_counter()
            blocks = [model.samples(BATCH, update, truth) for update in range(done, point)]
            if self.method == "decay":
                learner.set_params(lambda_decay=decay_at(done))
            learner.partial_fit(np.concatenate(blocks))
            result["update"].append(point)
            result["relative_error"].append(relative_error(learner.components_, truth))
            result["seconds"] += time.perf_counter() - start
            result["finished"] = point == N_UPDATES
            write(state, pickle.dumps((learner, result)), mode="wb")
            write_result(name, result)
            print(f"{name}  {point}  {result['relative_error'][-1]:.4g}", flush=True)
        state.unlink()


# ---------------------------------------------------------------- figures 4c and 4d

N_THEORY = 10_000


@cache
def theory_data(seed):  # -> truth, samples, initial atoms
    model = Model(50, 100, 5, seed)
    truth = model.atoms()
    samples = model.samples(N_THEORY, 0, truth)
    return truth, samples, unit_rows(model.perturbed_atoms(0.1)).astype(np.float32)


@dataclass(frozen=True)
class Training:
    """One curve of figure 4c or 4d: full-batch training, distances to D tilde and D*."""

    n_unfoldings: int
    gradient: str
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    n_epochs: int = 600
    seed: int = 0

    def run(self, name):
        truth, samples, initial = theory_data(self.seed)
        minimiser = lasso_minimiser(self.seed)
        optimizer = make_optimizer(
            self.optimizer,
            torch.tensor(initial),
            project_atoms,
            learning_rate=self.learning_rate,
            data_scale=1.0,
            params={"eps": 1e-8} if self.optimizer == "adam" else None,
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
            optimizer.update(self.gradient_of(optimizer.atoms, samples), codes=None)
            result["seconds"] += time.perf_counter() - start
            if epoch == 1 or epoch % RECORD_EVERY == 0:
                atoms = optimizer.atoms.detach()
                result["epoch"].append(epoch)
                result["to_truth"].append(float(np.linalg.norm(atoms.numpy() - truth)))
                distance = float(np.linalg.norm(atoms.numpy() - minimiser))
                result["to_minimiser"].append(distance)
                result["finished"] = epoch == self.n_epochs
                content = (atoms, optimizer.state()), result
                write(state, pickle.dumps(content), mode="wb")
                write_result(name, result)
                print(f"{name}  {epoch}  {result['to_truth'][-1]:.4g}  {distance:.4g}", flush=True)
        state.unlink()

    def gradient_of(self, atoms, samples):
        """Return the mean gradient, from chunks whose codes fit into a processor's cache."""
        encoder = partial(encode, alpha=0.2, n_unfoldings=self.n_unfoldings, step_size=0.2)
        rule, total = GRADIENT_RULES[self.gradient], torch.zeros_like(atoms)
        for rows in samples.split(1000):
            evaluation = rule(DenseDictionary(atoms), rows, encoder=encoder, penalty=0.2)
            (gradient,) = torch.autograd.grad(evaluation.surrogate, atoms)
            total += gradient * (len(rows) / len(samples))
        return total


def lasso_minimiser(seed, *, n_rounds=2000):
    """Return D*, the minimiser of the lasso risk of the samples next to the true dictionary.

    Alternates 20 encoder steps from the last codes with a sweep of exact atom updates.
    """
    path = STATES / f"minimiser-{seed}.npy"
    if path.exists():
        return np.load(path)
    truth, samples, _ = theory_data(seed)
    x, atoms, codes = torch.tensor(samples), torch.tensor(truth, dtype=torch.float32), None
    for n in range(n_rounds):
        dictionary = DenseDictionary(atoms)
        step = 1 / dictionary.squared_norm_bound()
        n_steps = 500 if codes is None else 20
        levels = threshold_levels(dictionary, 0.2, n_steps, step)
        codes = unfold(dictionary, x, levels, step, initial=codes)
        second, cross = codes.mT @ codes, codes.mT @ x
        updated = atoms.clone()
        for j in range(len(atoms)):
            updated[j] += (cross[j] - second[j] @ updated) / second[j, j]
            updated[j] /= torch.linalg.vector_norm(updated[j])
        change = float(torch.linalg.vector_norm(updated - atoms))
        atoms = updated
        if n % 50 == 0:
            print(f"D*  {n}  {change:.2g}", flush=True)
        if change < 2e-5:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, atoms.double().numpy())
    return np.load(path)


# ---------------------------------------------------------------- the list, in the order of a run


def experiments():
    """Return all experiments by name, in the order in which they are run."""
    found = {}
    for sparsity in (20, 10, 40):
        for method in ("ae-ls", "decay", "hard", "noodl"):
            found[f"figure5-s{sparsity}-{method}"] = Recovery(sparsity, method)
    for depth in (25, 100, 50):
        for gradient in ("dec", "ae-lasso", "ae-ls"):
            found[f"figure4-T{depth}-{gradient}"] = Training(depth, gradient)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="experiments; by default all")
    parser.add_argument("--list", action="store_true", help="list them and what is finished")
    arguments = parser.parse_args()
    known = experiments()
    if unknown := set(arguments.names) - set(known):
        parser.error(f"unknown experiments {sorted(unknown)}; see --list")
    for name in arguments.names or known:
        result = read_result(name)
        finished = result is not None and result["finished"]
        if arguments.list:
            print(f"{name:32} {'finished' if finished else 'started' if result else '-'}")
        elif not finished:
            known[name].run(name)


if __name__ == "__main__":
    main()
