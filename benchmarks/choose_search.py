"""Choose the penalty of a search, as a multiple of a norm of the data.

On synthetic problems: the share of the atoms found (coherence above 0.95) and the matched error. On
real data: the density of the lasso's codes. Seconds are CPU time.

Usage: python benchmarks/choose_search.py [--rules rms:0.05 rms:0.07 median:0.1 median:0.3]
"""

import numpy as np
import torch
from common import Report, parse, share_found, timed
from sklearn.datasets import load_digits, load_sample_image
from sklearn.feature_extraction.image import extract_patches_2d

from skpudle._initialization import initial_atoms
from skpudle.datasets import make_dictionary_data
from skpudle.metrics import dictionary_error
from skpudle.search import Problem, auto_alpha, search

SYNTHETIC = {
    "64 x 100": dict(n_samples=5000, n_features=64, n_components=100, n_nonzero=5),
    "20 x 50, 20 dB": dict(
        n_samples=1500, n_features=20, n_components=50, n_nonzero=3, snr_db=20
    ),
    "100 x 150, 1000 samples": {},
    "100 x 150, 20 dB": dict(n_samples=10_000, snr_db=20),
    "50 x 60, 20 dB": dict(
        n_samples=3000,
        n_features=50,
        n_components=60,
        n_nonzero=3,
        amplitude=(1, 1),
        snr_db=20,
    ),
    "50 x 60": dict(
        n_samples=3000, n_features=50, n_components=60, n_nonzero=3, amplitude=(1, 1)
    ),
    "100 x 200, 10 dB": dict(
        n_samples=20_000, n_components=200, n_features=100, amplitude=(1, 1), snr_db=10
    ),
}


def real_data(rng):
    """Yield the name and the rows of each data set."""
    digits = rng.permutation(load_digits().data)
    scale = digits.std(0)
    yield "digits", digits[:1300]
    standardised = (digits - digits.mean(0)) / np.where(scale > 0, scale, 1)
    yield "standardised digits", standardised[:1300]
    photograph = load_sample_image("china.jpg") / 255
    for name, image, size in (
        ("8 x 8 patches", photograph.mean(2), 8),
        ("12 x 12 patches", photograph.mean(2), 12),
        ("colour patches", photograph, 6),
    ):
        cut = extract_patches_2d(image, (size, size), max_patches=4000, random_state=0)
        cut = cut.reshape(len(cut), -1)
        yield name, cut - cut.mean(1, keepdims=True)


def penalty(rule, x, atoms):
    kind, share = rule.split(":")
    if kind == "auto":
        return auto_alpha(x)
    if kind == "rms":
        return float(share) * float(x.square().sum(1).mean().sqrt())
    atoms = torch.nn.functional.normalize(atoms, dim=1)
    return float(share) * float((x @ atoms.mT).abs().amax(1).median())


def found_by(x, p, rule):
    """Return the atoms of a search, and a row about it."""
    data = torch.from_numpy(x)
    atoms = initial_atoms(data, p, "data", torch.Generator().manual_seed(0))
    alpha = penalty(rule, data, atoms)
    result, seconds = timed(search, Problem(data, alpha), atoms)
    coded = result.coded
    density = coded.n_entries / coded.problem.total_weight / p
    row = {"rule": rule, "alpha": alpha, "method": "search", "density": density}
    return coded.atoms.numpy(), row | {"seconds": seconds, "epochs": len(result.losses)}


def main():
    rules = ["auto:", "rms:0.05", "median:0.1", "median:0.3"]
    given = parse(__doc__, "choosing_search.json", rules=rules)
    report = Report(given.out)
    found_by(
        np.random.default_rng(0).standard_normal((50, 5)), 6, "rms:0.1"
    )  # compiles
    for rule in given.rules:
        for name, options in SYNTHETIC.items():
            x, truth, _ = make_dictionary_data(random_state=1, **options)
            atoms, row = found_by(x, len(truth), rule)
            error = dictionary_error(atoms, truth, match=True)
            row |= {"found": share_found(atoms, truth), "error": error}
            report.add({"data": name} | row)
        for name, x in real_data(np.random.default_rng(0)):
            report.add({"data": name} | found_by(x, 100, rule)[1])


if __name__ == "__main__":
    main()
