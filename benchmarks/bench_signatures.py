"""Find spectra and their number in simulated catalogues of mutations, with `skpudle.PoissonNMF`.

    python benchmarks/bench_signatures.py --out benchmarks/results/signatures.json

A catalogue has a row of 96 counts for each genome, a sum of 2 to 7 signatures. Signatures are
random: spiky ones are draws of sparse Dirichlet distributions, flat ones a common spectrum with
log-normal factors, whose cosines with each other are 0.7 to 0.9. For each problem: the number of
atoms that ``n_components="auto"`` chooses; precision and sensitivity at a cosine of 0.9; the sum of
absolute errors of exposures as a share of their sum, with the number found and with the true one;
``alpha_``; seconds of CPU time of the fits; and the exposures of scikit-learn's NMF with the true
number, the best of several starts by its own likelihood. With ``--grid`` the number by
`GridSearchCV` with the default score, among those from one less to five more. With ``--public 0 1``
sets in the form of public ones, of these seeds: F1 at a cosine of 0.9 of "auto", and the largest
cosines of the signatures that are missed.
"""

from itertools import product

import numpy as np
from common import Report, matched, parse, timed, unit
from sklearn.decomposition import NMF
from sklearn.model_selection import GridSearchCV

from skpudle import PoissonNMF

N_CHANNELS, SAME = 96, 0.9
# genomes, signatures, flat ones among them, standard deviation of their log-normal factors, median
# of the mutations of a genome, standard deviation of their logarithm, kind
SCENARIOS = {
    "easy": (200, 5, 0, 0.55, 5000, 0.7, "mixed"),
    "exact": (200, 8, 2, 0.55, 5000, 0.7, "exact"),
    "mixed": (300, 10, 2, 0.55, 5000, 1.0, "mixed"),
    "noisy": (300, 10, 2, 0.55, 5000, 1.0, 0.05),
    "noisy 20": (300, 10, 2, 0.55, 5000, 1.0, 0.2),
    "small": (50, 6, 4, 0.55, 5000, 1.0, "mixed"),
    "flat": (300, 8, 4, 0.55, 5000, 1.0, "mixed"),
    "alike": (300, 8, 4, 0.35, 5000, 1.0, "mixed"),
    "dim": (200, 6, 4, 0.55, 1000, 1.0, "mixed"),
    "rare": (500, 12, 3, 0.55, 3000, 1.0, "rare"),
    "tissues": (600, 20, 5, 0.55, 3000, 1.0, "tissues"),
    "exome": (500, 6, 1, 0.55, 150, 0.8, "mixed"),
}
# In the form of the public sets of the mSigHdp paper (which are not shipped): signatures, flat ones
# among them, tissues of 60 genomes. Two signatures are in nearly all genomes, each tissue has three
# to seven of its own, medians of its events are between 1e3 and 1e5, and some genomes have ten
# times as many; every entry of every signature's share has negative binomial noise of this size.
PUBLIC = {"public 1": (23, 9, 9), "public 2": (32, 12, 18)}
SIZE = 30.0


def draw_signatures(rng, n, n_flat, deviation):
    """Return spectra of sum 1, the flat ones first."""
    common = rng.dirichlet(np.full(N_CHANNELS, 3.0))
    flat = common * rng.lognormal(0, deviation, (n_flat, N_CHANNELS))
    shapes = rng.choice([0.05, 0.1, 0.2], n - n_flat)
    spiky = [
        rng.dirichlet(np.full(N_CHANNELS, shape)) + 0.05 * common for shape in shapes
    ]
    atoms = np.concatenate([flat, np.reshape(spiky, (-1, N_CHANNELS))])
    return atoms / atoms.sum(1, keepdims=True)


def draw_active(rng, n, kind, group, groups):
    """Return the signatures of a genome."""
    if kind == "tissues":  # two in all genomes, one to four of the tissue's
        local = groups[group]
        return np.append([0, 1], rng.choice(local, rng.integers(1, 5), replace=False))
    chance = np.ones(n)
    if kind == "rare":
        chance[-4:] = 0.15
    return rng.choice(
        n, rng.integers(2, min(7, n) + 1), replace=False, p=chance / chance.sum()
    )


def planted(scenario, seed):
    """Return counts, signatures and exposures."""
    n_genomes, n, n_flat, deviation, median, spread, kind = SCENARIOS[scenario]
    rng = np.random.default_rng([seed, *scenario.encode()])
    atoms = draw_signatures(rng, n, n_flat, deviation)
    groups = np.array_split(rng.permutation(np.arange(2, n)), 6)
    groups = [np.append(g, rng.choice(np.arange(2, n), 2)) for g in groups]
    groups = [np.resize(np.unique(g), max(4, len(np.unique(g)))) for g in groups]
    exposures = np.zeros((n_genomes, n))
    for i in range(n_genomes):
        active = np.unique(draw_active(rng, n, kind, i % 6, groups))
        total = np.clip(rng.lognormal(np.log(median), spread), 20, 50_000)
        exposures[i, active] = total * rng.dirichlet(np.ones(len(active)))
    rates = exposures @ atoms
    if isinstance(kind, float):
        rates = rates * rng.lognormal(0, kind, rates.shape)
    counts = np.round(rates) if kind == "exact" else rng.poisson(rates)
    return counts.astype(float), atoms, exposures


def planted_public(scenario, seed):
    """Return counts, signatures and exposures, see PUBLIC."""
    n, n_flat, n_tissues = PUBLIC[scenario]
    rng = np.random.default_rng([seed, *scenario.encode()])
    atoms = draw_signatures(rng, n, n_flat, 0.55)[::-1]
    # a spiky one and a flat one are nearly everywhere
    atoms = atoms[np.r_[0, n - 1, 1 : n - 1]]
    exposures = np.zeros((60 * n_tissues, n))
    for tissue, local in enumerate(
        np.array_split(rng.permutation(np.arange(2, n)), n_tissues)
    ):
        others = rng.permutation(np.setdiff1d(np.arange(2, n), local))
        local = np.append(local, others)[: rng.integers(3, 8)]
        median = np.exp(rng.uniform(np.log(1e3), np.log(1e5)))
        for genome in exposures[60 * tissue : 60 * tissue + 60]:
            active = [k for k in (0, 1) if rng.random() < 0.95]
            n_local = max(rng.integers(3, 8) - len(active), 1)
            active.extend(rng.choice(local, min(n_local, len(local)), replace=False))
            total = rng.lognormal(np.log(median), 0.7) * (
                10 if rng.random() < 0.02 else 1
            )
            genome[active] = total * rng.dirichlet(np.ones(len(active)))
    shares = exposures[:, :, None] * atoms  # (n_genomes, n, n_channels)
    counts = rng.poisson(shares * rng.gamma(SIZE, 1 / SIZE, shares.shape)).sum(1)
    return counts.astype(float), atoms, exposures


def missed(atoms, found):
    """Return the largest cosines of the signatures without a component of more than SAME."""
    largest = (unit(atoms) @ unit(found).T).max(1)
    return sorted(largest[largest <= SAME].round(3).tolist())


def compare(atoms, exposures, found, codes):
    """Return precision, sensitivity and the error of exposures."""
    sums = found.sum(1)
    found, codes = found / sums[:, None], codes * sums
    n_missing = max(len(atoms) - len(found), 0)
    columns, cosines = matched(np.pad(found, ((0, n_missing), (0, 0))), atoms)
    codes = np.pad(codes, ((0, 0), (0, n_missing)))
    n_same = int((cosines >= SAME).sum())
    error = np.abs(codes[:, columns] - exposures).sum() / exposures.sum()
    return dict(
        precision=n_same / len(found),
        sensitivity=n_same / len(atoms),
        error=float(error),
    )


def fitted(learner, X):
    """Return the fitted learner, its codes and seconds of CPU time."""
    codes, seconds = timed(learner.fit_transform, X)
    return learner, codes, seconds


def best_nmf(X, n, n_starts):
    fits = [
        fitted(NMF(n, beta_loss="kullback-leibler", solver="mu", init="random", tol=1e-6,
                  max_iter=2000, random_state=seed), X)
        for seed in range(n_starts)
    ]  # fmt: skip
    best = min(fits, key=lambda fit: fit[0].reconstruction_err_)
    return best[0].components_, best[1], sum(fit[2] for fit in fits)


def measure_public(scenario, seed):
    X, atoms, exposures = planted_public(scenario, seed)
    learner, codes, seconds = fitted(PoissonNMF("auto", random_state=0), X)
    found = compare(atoms, exposures, learner.components_, codes)
    n = learner.n_components_
    n_same = found["sensitivity"] * len(atoms)
    return dict(
        scenario=scenario, seed=seed, n_planted=len(atoms), n=n,
        f1=2 * n_same / (n + len(atoms)), seconds=seconds, dispersion=learner.dispersion_,
        missed=missed(atoms, learner.components_), **found,
    )  # fmt: skip


def measure(scenario, seed, *, n_starts, grid):
    X, atoms, exposures = planted(scenario, seed)
    line = dict(scenario=scenario, seed=seed, n_planted=len(atoms))
    for name, n in (("auto", "auto"), ("known", len(atoms))):
        learner, codes, seconds = fitted(PoissonNMF(n, random_state=0), X)
        line[name] = dict(
            n=learner.n_components_, alpha=learner.alpha_, dispersion=learner.dispersion_,
            gain=learner.min_gain_, seconds=seconds,
            **compare(atoms, exposures, learner.components_, codes),
        )  # fmt: skip
    if n_starts:
        found, codes, seconds = best_nmf(X, len(atoms), n_starts)
        line["nmf"] = dict(
            seconds=round(seconds, 2), **compare(atoms, exposures, found, codes)
        )
    if grid:
        numbers = list(range(len(atoms) - 1, len(atoms) + 6))
        search = GridSearchCV(
            PoissonNMF(random_state=0), {"n_components": numbers}, cv=3
        )
        line["grid"] = (
            search.set_params(refit=False).fit(X).best_params_["n_components"]
        )
    return line


def summarize(lines):
    """Return counts of right numbers, and medians and means over all problems."""
    if not lines:
        return {}
    found = [line["auto"] for line in lines]
    seconds = [one["seconds"] for one in found]
    summary = dict(
        problems=len(lines),
        right=sum(line["auto"]["n"] == line["n_planted"] for line in lines),
        median_seconds=float(np.median(seconds)),
        most_seconds=max(seconds),
    )
    for name in ("precision", "sensitivity"):
        summary[name] = float(np.mean([one[name] for one in found]))
    for name in ("auto", "known", "nmf"):
        errors = [line[name]["error"] for line in lines if name in line]
        summary |= {f"error_{name}": float(np.mean(errors))} if errors else {}
    return summary


def main():
    given = parse(
        __doc__, choices={"scenarios": SCENARIOS}, scenarios=list(SCENARIOS),
        seeds=[200, 201, 202], starts=5, grid=False, public=[],
    )  # fmt: skip
    # compiles
    PoissonNMF(3, random_state=0).fit(np.random.default_rng(0).poisson(5, (50, 20)))
    report, public = Report(given.out, rows="problems"), []
    for scenario, seed in product(given.scenarios, given.seeds):
        report.add(measure(scenario, seed, n_starts=given.starts, grid=given.grid))
        report.write(summary=summarize(report.rows))
    for scenario, seed in product(PUBLIC, map(int, given.public)):
        public.append(measure_public(scenario, seed))
        print(public[-1], flush=True)
        report.write(public=public)


if __name__ == "__main__":
    main()
