"""Figures in sentences and tables of the pages are those of the benchmarks' results."""

import json
import re
from pathlib import Path
from statistics import mean, median

import pytest

ROOT = Path(__file__).parents[1]


def rows_of(name, key="results", **wanted):
    """Return the rows of a benchmark's file that have these values."""
    stored = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text("utf-8"))
    rows = stored[key] if isinstance(stored, dict) else stored
    return [
        row for row in rows if all(row.get(k) == value for k, value in wanted.items())
    ]


def written(value, digits=2):
    """Return a number as pages write it."""
    return f"{value:.{digits}f}"


def percent(share, digits=0):
    return f"{100 * share:.{digits}f} %"


def span(values, digits=0):
    return f"{written(min(values), digits)} to {written(max(values), digits)}"


def found(learner):
    """Return the range of the share of atoms that a learner finds, in percent."""
    rows = [
        row for row in rows_of("learners", learner=learner) if "found, > 0.95" in row
    ]
    return span([100 * row["found, > 0.95"] for row in rows]) + " %"


def problems_solved():
    """Return the number of problems in which the default finds every atom."""
    return sum(
        row.get("found, > 0.95") == 1 for row in rows_of("learners", learner="skpudle")
    )


def seconds(learner):
    return {
        row["data"]: row.get("seconds") for row in rows_of("learners", learner=learner)
    }


def times(learner):
    """Return the times of a learner over scikit-learn's."""
    ours, theirs = seconds(learner), seconds("scikit-learn MiniBatch")
    return [ours[data] / theirs[data] for data in ours if theirs.get(data)]


def sets_where_spams_is_faster():
    ours, theirs = seconds("skpudle"), seconds("SPAMS")
    return sum(theirs[data] < ours[data] for data in ours if theirs.get(data))


def the_row(*name, **wanted):
    (row,) = rows_of(*name, **wanted)
    return row


def denoised(method):
    return the_row("colour_denoising", sigma=25, method=method)


def faster_than_bm3d():
    """Return in which time of BM3D a photograph is denoised."""
    share = denoised("skpudle")["cpu_seconds"] / denoised("BM3D, colour")["cpu_seconds"]
    return "in less than a quarter of" if share < 0.25 else f"in {share:.2f} of"


def more_decibels(method, other):
    return denoised(method)["mean_psnr"] - denoised(other)["mean_psnr"]


def noise(data, learner):
    return mean(row[learner]["error"] for row in rows_of("noise", "rows", data=data))


def noise_row(data):
    default, equal = noise(data, "default"), noise(data, "equal noise")
    return f"* - {data} - {written(default)} - {written(equal, 0 if equal > 9 else 2)}"


def encoder(name, data="digits", unfoldings=None):
    row = the_row("encoders", data=data, encoder=name, unfoldings=unfoldings)
    return row["R2"], row["density"]


def encoder_row(title, *key):
    data = "digits", "photograph patches"
    cells = [" at ".join(map(written, encoder(key[0], one, *key[1:]))) for one in data]
    return f"* - {title} - {cells[0]} - {cells[1]}"


def consensus(data):
    return written(the_row("seeds_consensus", data=data, resample="seeds")["cosine"])


def found_at_0_db(method):
    """Return the percentages of atoms found in two data sets of as much noise as signal."""
    rows = rows_of("found", dB=0, rows=12000, method=method)
    return [100 * row["found"] for row in rows]


def accuracy(method):
    return the_row("classifiers", set="digits", method=method)["accuracy"]


def waveforms(*case):
    methods = the_row("waveforms", "many channels", case=[*case])["methods"]
    means = (
        mean(methods[one]["correlation"]) for one in ("ours", "threshold", "GreedyCDL")
    )
    return f"* - {case[0]}, {case[1]:.2g} - " + " - ".join(
        written(one, 3) for one in means
    )


def angles(title, scenario):
    methods = "skpudle", "NMF", "pyMCR from the purest samples"
    rows = [rows_of("spectra", scenario=scenario, method=method) for method in methods]
    cells = [written(mean(row["angle"] for row in of_one), 1) for of_one in rows]
    return f"* - {title} - " + " - ".join(cells)


def gain(missing):
    rows = rows_of("inpainting", missing=missing)
    gains = [row["skpudle (dB)"] - row["biharmonic (dB)"] for row in rows]
    title = f"{100 * missing:.0f} % at random"
    return f"* - {title} - {mean(gains):.1f} dB - {min(gains):.1f} dB"


def coverage(key="coverage", **wanted):
    rows = rows_of("intervals", key, **wanted)
    shares = ["coverage", "codes"] if key == "coverage" else ["coverage"]
    return "- " + " - ".join(
        span([100 * row[share] for row in rows]) for share in shares
    )


def stored(name, key):
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text("utf-8"))[
        key
    ]


def signatures(key):
    return stored("signatures", "summary")[key]


def found_of_large():
    row = the_row("large", atoms=4096, rows=10000)
    return f"With {10000 / 4096:.1f} rows a fit finds {percent(row['found'])} of 4,096 atoms"


CLAIMS = {
    "README.md": [
        lambda: (
            f"finds every atom in {problems_solved()} problems, to a cosine of 0.95"
        ),
        lambda: f"| SPORCO | {found('SPORCO')} |",
        lambda: f"| SPAMS | {found('SPAMS')} |",
        lambda: f"| K-SVD | {found('dictlearn K-SVD')} |",
        lambda: f"| scikit-learn | {found('scikit-learn MiniBatch')} |",
        lambda: f"| skpudle | {found('skpudle').removeprefix('100 to ')} |",
        lambda: (
            f"a fit takes {percent(1 - median(times('skpudle')))} less time than scikit-learn's"
        ),
        lambda: f"but more on {sum(t > 1 for t in times('skpudle'))} sets",
        lambda: f"faster than the fit on {sets_where_spams_is_faster()} sets",
        lambda: "reconstructed new rows is {} of the noise's variance".format(
            span(
                [
                    noise(data, "default")
                    for data in ("offset", "outlying rows", "spikes")
                ],
                2,
            )
        ),
        lambda: (
            f"reaches {denoised('skpudle')['mean_psnr']:.1f} dB, {faster_than_bm3d()} the time in "
            f"which BM3D reaches {denoised('BM3D, colour')['mean_psnr']:.1f} dB"
        ),
        lambda: (
            "explain {} of the variance of held-out digits by codes with {} of entries".format(
                *map(percent, encoder("separate_atoms='unfolding'", unfoldings=3))
            )
        ),
        lambda: "codes explain {} with {}".format(*map(percent, encoder("converged"))),
    ],
    "docs/quick_start.rst": [
        lambda: f"gets {written(accuracy('logistic regression'))}"
    ],
    "docs/guide/choosing.rst": [
        lambda: f"finds at least {min(found_at_0_db('skpudle')):.0f} %",
        lambda: (
            f"the first penalty at most {max(found_at_0_db('skpudle, first penalty')):.0f} %"
        ),
        lambda: f"{percent(accuracy('PUDLEClassifier, 32'), 1)} of digits are right",
        lambda: f"unsupervised codes {percent(accuracy('unsupervised codes, 32'), 1)}",
    ],
    "docs/guide/rows.rst": [
        lambda: noise_row("equal noise"),
        lambda: noise_row("offset"),
        lambda: noise_row("noise of features"),
        lambda: noise_row("outlying rows"),
        lambda: noise_row("spikes"),
    ],
    "docs/guide/how_many.rst": [
        lambda: f"to a cosine of {consensus('digits')} and {consensus('patches')}",
        lambda: f"5 to 20 dB {coverage(kind='uniform', noise='equal')}",
        lambda: f"* - normal codes, 5 to 20 dB {coverage(kind='normal')}",
        lambda: (
            f"* - noise of features differs, 5 to 20 dB {coverage(noise='features')}"
        ),
        lambda: (
            f"* - an offset and a row of a hundred times the length {coverage(noise='raw')}"
        ),
        lambda: f"* - counts that add {coverage('counts')}",
    ],
    "docs/guide/counts.rst": [
        lambda: f"planted number in {signatures('right')} of {signatures('problems')}",
        lambda: f"The mean error of exposures is {written(signatures('error_auto'))}",
        lambda: f"of NMF with the true number {written(signatures('error_nmf'))}",
        lambda: angles("some rows pure, 1 % noise", "peaks, pure, 1 % noise"),
        lambda: angles("some rows pure, 5 % noise", "peaks, pure, 5 % noise"),
        lambda: angles("no row above 75 %, 1 % noise", "peaks, mixed, 1 % noise"),
        lambda: angles(
            "every row has all components, unscaled", "peaks, free abundances, dense"
        ),
    ],
    "docs/guide/images.rst": [
        lambda: (
            f"{more_decibels('skpudle', 'skpudle, channel by channel'):.1f} dB better"
        ),
        lambda: (
            f"within {written(more_decibels('BM3D, colour', 'skpudle'), 1)} dB of BM3D in colour, "
            f"{faster_than_bm3d()} its time"
        ),
        *(lambda missing=missing: gain(missing) for missing in (0.3, 0.5, 0.8)),
    ],
    "docs/guide/signals.rst": [
        *(
            lambda case=case: waveforms(*case)
            for case in ((8, 0.5), (8, 2.0), (8, 4.0), (30, 5.0))
        ),
        lambda: f"took {stored('waveforms', 'long')['megabytes']:.0f} MB",
    ],
    "docs/guide/large_data.rst": [found_of_large],
    "docs/guide/encoders.rst": [
        lambda: encoder_row("20 unfoldings, search alone", "search alone", 20),
        lambda: encoder_row("20 unfoldings, dictionary trained", "ae-ls", 20),
        lambda: encoder_row(
            "3 unfoldings with matrices of their own", "separate_atoms='unfolding'", 3
        ),
        lambda: encoder_row(
            "1 unfolding with matrices of its own", "separate_atoms='unfolding'", 1
        ),
        lambda: encoder_row("converged codes", "converged"),
        lambda: encoder_row("TopK autoencoder, trained as long", "TopK", 1),
    ],
}

# What is no result: constants of the method, conditions of an experiment, definitions.
GIVEN = {
    "README.md": ["10 times longer", "wheels of 180 MB"],
    "docs/guide/rows.rst": ["10 times longer"],
    "docs/guide/choosing.rst": ["0.07 times", "At 0 dB", "2 to 3 times"],
    "docs/guide/encoders.rst": ["0.13 of the penalty", "above 0.9"],
    "docs/guide/how_many.rst": ["less than 0.02 more", "of 90 %"],
    "docs/guide/signals.rst": ["41 times in 20 seconds"],
    "docs/guide/counts.rst": ["0.0005 of the deviance"],
    "docs/guide/images.rst": ["for 0.9 to 4.5 photons"],
}
RESULT = re.compile(r"(?<![\w.])0?\.\d+|\d ?(?:%|dB|s|MB|GB|times|minutes)(?!\w)")


def sentences_of(page):
    """Return sentences and tables of a page on one line, without its blocks of code."""
    text = (ROOT / page).read_text("utf-8").replace("**", "")
    text = re.sub(
        r"^```.*?^```|^\.\. code-block::.*?\n(?=\S|\Z)", "", text, flags=re.S | re.M
    )
    return " ".join(text.split())


@pytest.mark.parametrize("page", CLAIMS)
def test_figures_are_those_of_the_results(page):
    text = sentences_of(page)
    for claim in CLAIMS[page]:
        said = " ".join(claim().split())
        assert said in text, said
        text = text.replace(said, " ")
    for constant in GIVEN.get(page, []):
        assert constant in text, constant
        text = text.replace(constant, " ")
    text = re.sub(r"``.*?``|`.*?`|:math:`.*?`", "", text)  # parameters are no results
    untraced = [
        text[max(0, at.start() - 50) : at.end() + 20] for at in RESULT.finditer(text)
    ]
    assert not untraced, f"{page} has figures of no benchmark's results: {untraced}."
