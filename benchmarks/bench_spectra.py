"""Unmix simulated mixtures: the default learner of spectra, NMF and pyMCR.

    python benchmarks/bench_spectra.py                 # resumes where it was interrupted
    python benchmarks/bench_spectra.py --seeds 0 --out spectra.json

Spectra have three to six narrow peaks each, or are smooth reflectances with broad absorptions.
Abundances sum to one, with some nearly pure samples ("pure") or none above 75 % ("mixed"), or they
are free, with a third of them nonzero ("sparse") or all ("dense"). The noise is Gaussian, with a
standard deviation in percent of the largest value. Everybody is told the number of components.

For each data set: the mean angle between true and learned spectra, matched one to one, in degrees;
the root mean square error of abundances, each column in the scale of its true spectrum; seconds of
CPU time; the angle between the spectra of two values of `random_state`. pyMCR begins at the purest
channels or at the purest samples, as SIMPLISMA ranks them, takes closure where abundances sum to
one, and does at most 200 iterations. It has no random part, so its last figure is missing.
"""

import logging
from itertools import product

import numpy as np
from common import Report, matched, parse, timed
from sklearn.decomposition import NMF

from skpudle import PUDLEDictionaryLearning

SCENARIOS = {  # shape of spectra, abundances, components, noise in the largest value
    "peaks, pure, 1 % noise": ("peaks", "pure", 4, 0.01),
    "peaks, pure, 5 % noise": ("peaks", "pure", 6, 0.05),
    "peaks, mixed, 1 % noise": ("peaks", "mixed", 4, 0.01),
    "peaks, mixed, 3 % noise": ("peaks", "mixed", 6, 0.03),
    "peaks, free abundances, sparse": ("peaks", "sparse", 8, 0.02),
    "peaks, free abundances, dense": ("peaks", "dense", 4, 0.01),
    "reflectances, pure": ("reflectances", "pure", 5, 0.01),
    "reflectances, mixed": ("reflectances", "mixed", 5, 0.01),
}
CLOSED = ("pure", "mixed")  # abundances that sum to one
SIZES = {"peaks": (500, 300), "reflectances": (1500, 200)}  # samples, channels
# abundance of "mixed" samples, nearly pure samples of each component
LARGEST, N_PURE = (
    0.75,
    5,
)


# ---------------------------------------------------------------------------- data


def peaks(n_channels, rng):
    """Return a spectrum of pseudo-Voigt peaks on a weak background."""
    channels = np.arange(n_channels)
    spectrum = 0.05 * (1 - channels / n_channels)
    for _ in range(rng.integers(3, 7)):
        centre, width = rng.uniform(10, n_channels - 10), rng.uniform(3, 8)
        distance = np.square((channels - centre) / width)
        lorentzian = rng.uniform(0.1, 0.7)
        peak = lorentzian / (1 + distance) + (1 - lorentzian) * np.exp(
            -np.log(2) * distance
        )
        spectrum += rng.uniform(0.3, 1) * peak
    return spectrum


def reflectance(n_channels, rng):
    """Return a level with a slope and four broad absorptions."""
    axis = np.linspace(0, 1, n_channels)
    spectrum = rng.uniform(0.4, 0.8) + rng.normal(scale=0.25) * (axis - 0.5)
    for _ in range(4):
        centre, width = rng.uniform(), rng.uniform(0.04, 0.2)
        depth = rng.uniform(0.1, 0.5)
        spectrum *= 1 - depth * np.exp(-0.5 * np.square((axis - centre) / width))
    return spectrum.clip(0.02)


def abundances_of(kind, n, n_components, rng):
    """Return abundances, (n, n_components)."""
    if kind not in CLOSED:
        amounts = rng.gamma(2, 0.5, (n, n_components))
        return (
            amounts * (rng.random(amounts.shape) < 0.35)
            if kind == "sparse"
            else amounts
        )
    shares = rng.dirichlet(np.full(n_components, 0.7), 20 * n)
    if kind == "mixed":
        return shares[shares.max(axis=1) <= LARGEST][:n]
    pure = np.tile(np.eye(n_components), (N_PURE, 1))
    return np.concatenate([0.98 * pure + 0.02 / n_components, shares[len(pure) : n]])


def simulate(scenario, seed):
    """Return data, spectra of maximum one, and abundances."""
    shape, kind, n_components, noise = SCENARIOS[scenario]
    rng = np.random.default_rng([list(SCENARIOS).index(scenario), seed])
    n, n_channels = SIZES[shape]
    make = peaks if shape == "peaks" else reflectance
    spectra = np.array([make(n_channels, rng) for _ in range(n_components)])
    spectra /= spectra.max(axis=1, keepdims=True)
    abundances = abundances_of(kind, n, n_components, rng)
    clean = abundances @ spectra
    return (
        clean + noise * clean.max() * rng.normal(size=clean.shape),
        spectra,
        abundances,
    )


# ---------------------------------------------------------------------------- methods


def unmix_by_default(X, n_components, closed, seed):
    learner = PUDLEDictionaryLearning(
        n_components, positive_code=True, positive_dict=True, random_state=seed
    )
    abundances = learner.fit_transform(X)
    return learner.components_, abundances


def unmix_by_nmf(X, n_components, closed, seed):
    nmf = NMF(n_components, init="nndsvda", max_iter=2000, tol=1e-6, random_state=seed)
    # it refuses the negative values of the noise
    abundances = nmf.fit_transform(X.clip(0))
    return nmf.components_, abundances


def find_purest_columns(X, n_components, offset=0.05):
    """Return the columns that SIMPLISMA (Windig and Guilment 1991) takes.

    The purity of a column is its standard deviation over its mean, with an offset against noise,
    times its independence of the columns that are taken: the determinant of their correlations,
    which is the product of squared distances to the span of the columns before.
    """
    mean, deviation = X.mean(axis=0), X.std(axis=0)
    mean = mean + offset * mean.max()
    left = X / np.sqrt(len(X) * (np.square(mean) + np.square(deviation)))
    taken = []
    for _ in range(n_components):
        purest = np.argmax(deviation / mean * np.square(left).sum(axis=0))
        direction = left[:, purest] / np.linalg.norm(left[:, purest])
        left = left - np.outer(direction, direction @ left)
        taken.append(purest)
    return taken


def unmix_by_mcr(X, n_components, closed, seed, *, purest):
    from pymcr.constraints import ConstraintNonneg, ConstraintNorm
    from pymcr.mcr import McrAR

    if purest == "channels":
        profiles = X[:, find_purest_columns(X, n_components)]
        start = np.linalg.lstsq(profiles, X, rcond=None)[0].clip(0)
    else:
        start = X[find_purest_columns(X.T, n_components)].clip(0)
    closure = [ConstraintNorm()] if closed else []
    # The rescaling of closure may enlarge the error of a half-step: this must not end the fit.
    mcr = McrAR(
        c_regr="NNLS",
        st_regr="NNLS",
        c_constraints=[ConstraintNonneg(), *closure],
        st_constraints=[ConstraintNonneg()],
        max_iter=200,
        tol_increase=10,
    )
    mcr.fit(X, ST=start)
    return mcr.ST_opt_, mcr.C_opt_


MCR = "pyMCR from the purest "
METHODS = {
    "skpudle": unmix_by_default,
    "NMF": unmix_by_nmf,
    MCR + "channels": lambda *args: unmix_by_mcr(*args, purest="channels"),
    MCR + "samples": lambda *args: unmix_by_mcr(*args, purest="samples"),
}


# ---------------------------------------------------------------------------- figures


def match_spectra(truth, spectra):
    """Return the spectrum that stands for each true one, and their angles in degrees."""
    order, cosines = matched(spectra, truth)
    return order, np.degrees(np.arccos(cosines.clip(-1, 1)))


def measure(scenario, method, seed):
    """Return the figures of a method on a data set."""
    X, truth, abundances = simulate(scenario, seed)
    problem = X, len(truth), SCENARIOS[scenario][1] in CLOSED
    (spectra, found), seconds = timed(METHODS[method], *problem, 0)
    order, angles = match_spectra(truth, spectra)
    scales = (spectra[order] * truth).sum(axis=1) / np.square(truth).sum(axis=1)
    between = None
    if not method.startswith(MCR):
        between = match_spectra(spectra, METHODS[method](*problem, 1)[0])[1].mean()
    return {
        "scenario": scenario,
        "method": method,
        "seed": seed,
        "angle": float(angles.mean()),
        "largest angle": float(angles.max()),
        "RMSE of abundances": np.square(found[:, order] * scales - abundances).mean()
        ** 0.5,
        "seconds": seconds,
        "angle between two random states": None if between is None else float(between),
    }


def main():
    given = parse(__doc__, "spectra.json", seeds=[0, 1, 2])
    logging.disable(logging.INFO)  # pyMCR logs the end of each fit
    report = Report(
        given.out, "scenario", "method", "seed", title="Mixtures of spectra"
    )
    # compiles
    unmix_by_default(simulate("peaks, pure, 1 % noise", 0)[0][:100], 4, True, 0)
    for scenario, seed, method in product(SCENARIOS, given.seeds, METHODS):
        report.measure(measure, scenario, method, seed)


if __name__ == "__main__":
    main()
