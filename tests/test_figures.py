"""Figures in sentences and tables of the pages are those of the benchmarks' results."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def rows_of(name, key="results", **wanted):
    """Return the rows of a benchmark's file that have these values."""
    stored = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text("utf-8"))
    rows = stored[key] if isinstance(stored, dict) else stored
    return [row for row in rows if all(row.get(k) == value for k, value in wanted.items())]


def written(value):
    """Return a number as pages write it: two digits after the point, and no zero before it."""
    return f"{value:.2f}".removeprefix("0")


def percent(share):
    return f"{100 * share:.0f} %"


def found(learner):
    """Return the range of the share of atoms that a learner finds, in percent."""
    rows = [row for row in rows_of("learners", learner=learner) if "found, > 0.95" in row]
    shares = [100 * row["found, > 0.95"] for row in rows]
    return f"{min(shares):.0f} to {max(shares):.0f} %"


def denoised(method):
    (row,) = rows_of("colour_denoising", sigma=25, method=method)
    return f"{row['cpu_seconds']} s to {row['mean_psnr']:.1f} dB".removeprefix("0")


def encoder(name, data="digits", unfoldings=None):
    (row,) = rows_of("encoders", data=data, encoder=name, unfoldings=unfoldings)
    return row["R2"], row["density"]


def consensus(data):
    (row,) = rows_of("seeds_consensus", data=data, resample="seeds")
    return written(row["cosine"])


def found_at(db, n, method):
    return [100 * r["found"] for r in rows_of("found", dB=db, rows=n, method=method)]


CLAIMS = {
    "README.md": [
        lambda: f"SPAMS finds {found('SPAMS')}, SPORCO {found('SPORCO')}",
        lambda: f"K-SVD {found('dictlearn K-SVD')}, scikit-learn {found('scikit-learn MiniBatch')}",
        lambda: f"take {denoised('skpudle')}. BM3D takes {denoised('BM3D, colour')}",
        lambda: "explain {} of the variance of held-out digits by {} of the codes".format(
            *map(percent, encoder("separate_atoms='unfolding'", unfoldings=3))
        ),
        lambda: "exact codes {} by {}".format(*map(percent, encoder("converged"))),
    ],
    "docs/guide/encoders.rst": [
        lambda: "{} at {}".format(*map(written, encoder("search alone", unfoldings=20))),
        lambda: "{} at {}".format(*map(written, encoder("ae-ls", unfoldings=20))),
        lambda: "{} at {}".format(*map(written, encoder("TopK", unfoldings=1))),
    ],
    "docs/guide/how_many.rst": [
        lambda: f"to a cosine of {consensus('digits')}\nand {consensus('patches')}"
    ],
    "docs/guide/choosing.rst": [
        lambda: "the chosen penalty finds {:.0f} and {:.0f} %".format(
            *found_at(0, 12000, "skpudle")
        ),
        lambda: "the first penalty {:.0f} and {:.0f} %".format(
            *found_at(0, 12000, "skpudle, first penalty")
        ),
    ],
}


@pytest.mark.parametrize("page", CLAIMS)
def test_figures_are_those_of_the_results(page):
    text = " ".join((ROOT / page).read_text("utf-8").split())
    for claim in CLAIMS[page]:
        assert " ".join(claim().split()) in text, claim()
