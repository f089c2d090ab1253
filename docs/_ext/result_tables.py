"""Make tables and pictures from the JSON results of `benchmarks/` when pages are built.

Three directives. ``benchmark-tables:: NAME NAME`` makes a table of each of these files in
``benchmarks/results``, with any columns. ``paper-results`` shows the curves and the last errors of
``benchmarks/results/paper/*.json``. ``denoising-results`` compares the denoisers of
``benchmarks/results/denoise/*.json`` with published ones. Missing measurements have no row.
"""

import json
import re
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


# Names of experiments begin like this; the texts are titles, in the order of the page.
FAMILIES = {
    "figure5": "Figures 5 and 6: recovery from a start near the truth",
    "figure4cd": "Figures 4c and 4d: training by Adam on full batches",
    "noise": "Noisy data",
    "descent": "Plain gradient descent on full batches",
    "sgd": "Stochastic gradient descent",
}
# Titles of files without a title, or with another one's.
TITLES = {
    "encoders_speed": "10,000 rows by an encoder of three unfoldings, and solved exactly",
}
# Explanations of the rows, by the beginning of the file's name.
NOTES = {
    "classifiers": "Seconds of ``PUDLEClassifier`` and ``supervision=0`` are processor time with "
    "one thread. All others, and rows with twice the penalty (a dictionary learner's default), are "
    "clock time with two threads.",
    "denoise_patches": "scikit-learn's dictionary and one of this package, learned from the same "
    "noisy patches, with orthogonal matching pursuit up to the error that the noise explains, and "
    "cosines with a hard threshold. Seconds are processor time, for both photographs.",
    "drop_in": "The image denoising example of scikit-learn's gallery (PSNR of the noisy half, on "
    "three pictures), with ``MiniBatchDictionaryLearning`` and ``PUDLEDictionaryLearning`` and the "
    "same arguments.",
    "figure5": "The gradient of an update with 50 rows, 1,500 atoms of 1,000 features and 100 "
    "unfoldings: processor time, the least of several turns. ``auto`` is the time with a step size "
    "from a bound of the norm in each update, relative to that with a fixed step; the error is the "
    "relative difference of both gradients. Products are those that every gradient with a Gram "
    "matrix needs: the Gram matrix itself, one more product of its size, and four of the rows.",
    "inpainting": "Parts of pictures that come with scikit-learn (the first two) and scikit-image, "
    "without a share of their pixels: PSNR over the lost ones for a peak of 1, and seconds of the "
    "processor. ``skpudle`` is :func:`skpudle.images.inpaint` at its defaults.",
    "nnls": "Processor time of one thread, medians over ten parts of the rows, certificates "
    "included; SciPy is ``scipy.optimize.nnls``, for a few rows of each part. The excess is the "
    "largest difference of objectives, relative to the squared data.",
    "tables": "Tables of numbers that come with packages, raw and standardised: nobody planted "
    "atoms. ``hidden`` is R^2 of new rows, each tenth of the columns hidden in turn and predicted "
    "from the others; ``reconstruction`` is R^2 with ceil(m / 5) codes a row. Scores are level, "
    "above or below at a difference of 0.05. The scores of each table are in the file.",
    "recovery": "Updates and seconds until the relative error of the atoms is below the number. "
    "Training starts at the true atoms with Gaussian noise of the given deviation in each entry. "
    "Rows are the thresholding, the gradient and the optimiser.",
}
# Names of columns on the page, where the file's name is not clear.
COLUMNS = {
    "largest gap": "largest duality gap",
    "sets": "random sets",
    "UNCLEAR": "unclear",
    "used": "ended in a right result",
    "refused": "refused with an error",
    "RssAnon before mb": "own memory before (MB)",
    "largest RssAnon mb": "largest own memory (MB)",
    "anonymous memory (MB)": "own memory at the end (MB)",
    "peak memory mb": "peak memory (MB)",
}
# Table 1 of the paper, PSNR in dB by the authors' protocol: method, penalty or threshold.
PUBLISHED = {
    "dec": {0.08: 24.31, 0.12: 24.73, 0.16: 25.24, 0.2: 24.89},
    "ae-ls": {0.08: 24.80, 0.12: 25.48, 0.16: 25.67, 0.2: 25.51},
    "ae-ls, hard": {0.02: 22.87, 0.05: 25.40, 0.08: 24.68, 0.1: 23.77},
}
UNITS = {"epoch": "epochs", "update": "updates"}


def read(folder):
    """Map names to results, those of a folder in alphabetical order, 25 before 100."""

    def key(path):
        parts = re.split(r"(\d+)", path.stem)
        return [int(part) if part.isdigit() else part for part in parts]

    paths = sorted(Path(folder).glob("*.json"), key=key)
    results = {path.stem: json.loads(path.read_text()) for path in paths}
    return {k: {"results": v} if isinstance(v, list) else v for k, v in results.items()}


def text(value):
    """Format a number or another value for a table."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows, *, title=""):
    """Return rows, dictionaries of text, as a table in reStructuredText."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f".. list-table:: {title}", "   :header-rows: 1", ""]
    for row in [{key: key for key in columns}, *rows]:
        cells = [row.get(key, "") for key in columns]
        lines += [
            f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(cells)
        ]
    return "\n".join([*lines, ""])


def scalars(entry):
    names = {key: key.replace("_", " ") for key in entry}
    return {
        COLUMNS.get(name, name): text(entry[key])
        for key, name in names.items()
        if not isinstance(entry[key], (dict, list))
    }


def note(name):
    """Return the explanation of a benchmark, a list of lines."""
    found = next((words for key, words in NOTES.items() if name.startswith(key)), None)
    return [] if found is None else [found, ""]


def conditions(result):
    """Return the conditions of a result in one paragraph."""
    flat = {}
    for key, value in result.items():
        if key in ("results", "title"):
            continue
        for inner, content in (
            value.items() if isinstance(value, dict) else [(key, value)]
        ):
            if isinstance(content, dict):
                content = ", ".join(
                    f"{k} {text(v)}" for k, v in content.items() if v is not None
                )
            if isinstance(content, list):
                content = ", ".join(map(text, content))
            flat[inner.replace("_", " ")] = text(content)
    # paths on the machine and the selected part of a benchmark do not matter
    hidden = ("out", "variant", "data", "benchmark", "only", "every", "patience")
    hidden += ("tables",)  # the single tables of a summary
    said = [
        f"{key} {value}" for key, value in flat.items() if value and key not in hidden
    ]
    return f"Conditions: {'; '.join(said)}." if said else ""


def tables_of(entries):
    """Return the tables of a list of rows, of named rows, or of named lists of rows."""
    if isinstance(entries, dict):
        named = [
            {"name": key} | row for key, row in entries.items() if isinstance(row, dict)
        ]
        lists = {key: rows for key, rows in entries.items() if isinstance(rows, list)}
        groups = {"": named} | lists
    else:
        groups = {"": entries}
    return [
        table([scalars(row) for row in rows], title=key.replace("_", " ").capitalize())
        for key, rows in groups.items()
        if rows and all(isinstance(row, dict) for row in rows)
    ]


def performance(folder=RESULTS, names=None):
    """Return the tables of benchmarks, by default of all, in reStructuredText."""
    parts, results = [], read(folder)
    for name in names or results:
        result = results.get(name, {"results": []})
        tables = tables_of(result.get("results", result))
        plain = name.replace("_", " ").replace("-", " ").capitalize()
        title = TITLES.get(name, result.get("title", plain))
        if tables:
            heading = [title, "-" * len(title), "", *note(name), *tables]
            said = conditions(result)
            parts += [
                *heading,
                *([".. rst-class:: conditions", "", said, ""] if said else []),
            ]
    return "\n".join(parts) or "No measurement is stored yet."


def curve(result):
    """Return the unit, the positions and the errors of a result that has a curve."""
    unit = next((key for key in UNITS if key in result), None)
    errors = result.get("relative_error", result.get("to_truth"))
    if errors is None:
        return None, [], []
    errors = errors if isinstance(errors, list) else [errors]
    return unit, result.get(unit, []), errors


def family(name):
    return next((key for key in FAMILIES if name.startswith(f"{key}-")), None)


def paper(folder=RESULTS / "paper"):
    """Return the tables of the paper's experiments in reStructuredText."""
    results, parts = read(folder), []
    for key, title in FAMILIES.items():
        rows = []
        for name, result in results.items():
            unit, positions, errors = curve(result)
            if family(name) != key or not errors:
                continue
            row = {"experiment": f"``{name}``"}
            if positions:
                row["trained for"] = f"{positions[-1]} {UNITS[unit]}"
                row["error at the start"] = text(float(errors[0]))
            row |= {
                "smallest": text(float(min(errors))),
                "at the end": text(float(errors[-1])),
            }
            if "to_minimiser" in result:
                row["at the end, to D*"] = text(float(result["to_minimiser"][-1]))
            if "seconds" in result:
                row["minutes"] = text(result["seconds"] / 60)
            if not result.get("finished", True):
                row[""] = "not finished"
            rows.append(row)
        if rows:
            picture = [
                f".. image:: /generated/paper-{key}.svg",
                f"   :alt: {title}",
                "",
            ]
            parts += [title, "-" * len(title), "", *picture, table(rows)]
    if "theory" in results:
        ratio = results["theory"]["slope_ratio"]
        title = "Figure 3: rates of the gradients"
        parts += [title, "-" * len(title), ""]
        parts += [
            f"The slopes of ae-lasso and dec have the ratio {text(float(ratio))}; theory says 2.",
            "",
        ]
    return "\n".join(parts) or "No result is stored yet."


def _denoiser(result):  # -> one row of text
    options, one, all_grids = (
        result.get(k, {}) for k in ("options", "one grid", "all grids")
    )
    method = options["gradient"] + (", hard" if options["shrinkage"] == "hard" else "")
    size = options["atom_size"]
    row = {
        "method": method,
        "threshold": text(options["alpha"]),
        "atoms": f"{options['n_components']} of {size} x {size} every {options['stride']}",
        "start": "cosines" if options.get("dict_init") == "dct" else "random",
        "rate": text(options["learning_rate"]),
        "parameters": text(result["n_parameters"]),
        "epochs": text(result["epochs"]),
        "CPU minutes": f"{result['training_cpu_seconds'] / 60:.1f}",
    }
    scores = {
        "whole, one grid": one.get("whole"),
        "whole, all grids": all_grids.get("whole"),
        "crop, one grid": one.get("crop"),
        "crop, published": PUBLISHED[method].get(options["alpha"]),
    }
    return row | {key: f"{value:.2f}" if value else "" for key, value in scores.items()}


def denoising(folder=RESULTS / "denoise"):
    """Return the tables of denoisers, in reStructuredText; those with the best results first."""
    tables = {"As in table 1": [], "Sweeps over the threshold": []}
    results = sorted(
        read(folder).items(), key=lambda pair: -pair[1]["one grid"]["whole"]
    )
    for name, result in results:
        list(tables.values())[name.startswith("sweep-")].append(_denoiser(result))
    parts = []
    for title, rows in tables.items():
        said = [
            {k: v for k, v in row.items() if any(r[k] for r in rows)} for row in rows
        ]
        parts += [table(said, title=title)] if rows else []
    return "\n".join(parts) or "No result is stored yet."


def draw(output, folder=RESULTS / "paper"):
    """Draw the curves of each family that has results, one panel for each setting."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    output.mkdir(parents=True, exist_ok=True)
    panels = {}
    for name, result in read(folder).items():
        unit, positions, errors = curve(result)
        if (key := family(name)) and positions:
            _, setting, method = name.split("-", 2)
            panels.setdefault(key, {}).setdefault(setting, []).append(
                (method, unit, positions, errors)
            )
    for key in FAMILIES:
        settings = panels.get(key, {"no curve yet": []})
        figure, axes = plt.subplots(
            1,
            len(settings),
            figsize=(4.2 * len(settings), 3.6),
            squeeze=False,
            sharey=True,
            layout="constrained",
        )
        for ax, (setting, curves) in zip(axes[0], settings.items()):
            for method, unit, positions, errors in curves:
                ax.semilogy(positions, errors, label=method)
                ax.set_xlabel(unit.capitalize())
            ax.set_title(setting)
            if curves:
                ax.legend()
        axes[0, 0].set_ylabel("Error of the dictionary")
        figure.savefig(output / f"paper-{key}.svg")
        plt.close(figure)


def setup(app):
    from sphinx.util.docutils import SphinxDirective

    class FolderTables(SphinxDirective):
        def run(self):
            for path in Path(self.folder).glob("*.json"):
                self.env.note_dependency(str(path))
            return self.parse_text_to_nodes(self.make(), allow_section_headings=True)

    class Tables(FolderTables):
        folder = RESULTS
        required_arguments, optional_arguments = 1, 100

        def make(self):
            return performance(names=self.arguments)

    class PaperTables(FolderTables):
        make, folder = staticmethod(paper), RESULTS / "paper"

    class DenoisingTables(FolderTables):
        make, folder = staticmethod(denoising), RESULTS / "denoise"

    app.add_directive("benchmark-tables", Tables)
    app.add_directive("denoising-results", DenoisingTables)
    app.add_directive("paper-results", PaperTables)
    app.connect("builder-inited", lambda app: draw(Path(app.srcdir) / "generated"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
