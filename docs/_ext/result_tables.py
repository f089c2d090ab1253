"""Tables and pictures of what `benchmarks/` measured, read from its JSON when pages are built.

Three directives. ``benchmark-tables`` makes one table of each ``benchmarks/results/*.json``,
whatever its columns are. ``paper-results`` shows the curves and the last errors of
``benchmarks/results/paper/*.json``. ``denoising-results`` shows the denoisers of
``benchmarks/results/denoise/*.json`` beside what was published. What has not been measured has no
row.
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
    "start": "Starts that know no truth",
    "descent": "Plain gradient descent on full batches",
    "sgd": "Stochastic gradient descent",
}
# Titles of measurements that have none of their own, or the same as another one.
TITLES = {
    "update-soft": "One update: soft thresholding",
    "update-hard": "One update: hard thresholding",
    "update-decay": "One update: penalties that decay",
    "update-T1000": "One update: 1000 unfoldings",
    "update-n512-p1024": "One update: 512 samples, 1024 atoms of 256 features",
    "scale": "One update: exponents of time and memory",
    "transform-p256": "Exact codes: 256 atoms",
    "transform-p1024": "Exact codes: 1024 atoms",
    "conv_update": "One update of a convolution: 16 crops of 129 x 129 pixels",
    "denoise_time": "Denoising by the packaged dictionary, mean of all grids",
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
    return {path.stem: json.loads(path.read_text()) for path in paths}


def text(value):
    """Return a number, or whatever else it is, as a table says it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows, *, title=""):
    """Return rows, which are dictionaries of text, as a table in reStructuredText."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f".. list-table:: {title}", "   :header-rows: 1", ""]
    for row in [{key: key for key in columns}, *rows]:
        cells = [row.get(key, "") for key in columns]
        lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(cells)]
    return "\n".join([*lines, ""])


def scalars(entry):
    return {
        key.replace("_", " "): text(value)
        for key, value in entry.items()
        if not isinstance(value, (dict, list))
    }


def conditions(result):
    """Return all that a result says of how it came about, in one paragraph."""
    flat = {}
    for key, value in result.items():
        if key in ("results", "title"):
            continue
        for inner, content in value.items() if isinstance(value, dict) else [(key, value)]:
            if isinstance(content, dict):
                content = ", ".join(f"{k} {text(v)}" for k, v in content.items() if v is not None)
            if isinstance(content, list):
                content = ", ".join(map(text, content))
            flat[inner.replace("_", " ")] = text(content)
    hidden = ("out", "variant", "data")  # where files were on the machine says nothing
    said = [f"{key} {value}" for key, value in flat.items() if value and key not in hidden]
    return f"Conditions: {'; '.join(said)}." if said else ""


def performance(folder=RESULTS):
    """Return the tables of all benchmarks in reStructuredText."""
    parts = []
    for name, result in read(folder).items():
        entries = result.get("results", result)
        if isinstance(entries, dict):
            entries = [
                {"name": key} | value for key, value in entries.items() if isinstance(value, dict)
            ]
        rows = [scalars(entry) for entry in entries]
        plain = name.replace("_", " ").replace("-", " ").capitalize()
        title = TITLES.get(name, result.get("title", plain))
        if rows:
            heading = [title, "-" * len(title), "", table(rows)]
            parts += [*heading, ".. rst-class:: conditions", "", conditions(result), ""]
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
            row |= {"smallest": text(float(min(errors))), "at the end": text(float(errors[-1]))}
            if "to_minimiser" in result:
                row["at the end, to D*"] = text(float(result["to_minimiser"][-1]))
            if "seconds" in result:
                row["minutes"] = text(result["seconds"] / 60)
            if not result.get("finished", True):
                row[""] = "not finished"
            rows.append(row)
        if rows:
            picture = [f".. image:: /generated/paper-{key}.svg", f"   :alt: {title}", ""]
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
    options, one, all_grids = (result.get(k, {}) for k in ("options", "one grid", "all grids"))
    method = options["gradient"] + (", hard" if options["shrinkage"] == "hard" else "")
    learned = options["learn_threshold"] is not None
    before = result.get("start") or {"epoch": 0, "cpu_seconds": 0}
    size = options["atom_size"]
    row = {
        "method": method + (", separate atoms" if options["separate_atoms"] else ""),
        "threshold": "learned" if learned else text(options["alpha"]),
        "atoms": f"{options['n_components']} of {size} x {size} every {options['stride']}",
        "start": "cosines" if options.get("dict_init") == "dct" else "random",
        "rate": text(options["learning_rate"]),
        "parameters": text(result["n_parameters"]),
        "epochs": text(result["epochs"] + before["epoch"]),
        "CPU minutes": f"{(result['training_cpu_seconds'] + before['cpu_seconds']) / 60:.1f}",
    }
    scores = {
        "whole, one grid": one.get("whole"),
        "whole, all grids": all_grids.get("whole"),
        "crop, one grid": one.get("crop"),
        "crop, published": None if learned else PUBLISHED[method].get(options["alpha"]),
    }
    return row | {key: f"{value:.2f}" if value else "" for key, value in scores.items()}


def denoising(folder=RESULTS / "denoise"):
    """Return the tables of denoisers, in reStructuredText; those with the best results first."""
    tables = {"As in table 1": [], "Sweeps over the threshold": [], "Past the paper": []}
    results = sorted(read(folder).items(), key=lambda pair: -pair[1]["one grid"]["whole"])
    for name, result in results:
        row = _denoiser(result)
        kind = 1 if name.startswith("sweep-") else 2 if row["threshold"] == "learned" else 0
        list(tables.values())[kind].append(row)
    parts = []
    for title, rows in tables.items():
        said = [{k: v for k, v in row.items() if any(r[k] for r in rows)} for row in rows]
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

    class Tables(SphinxDirective):
        make, folder = staticmethod(performance), RESULTS

        def run(self):
            for path in Path(self.folder).glob("*.json"):
                self.env.note_dependency(str(path))
            return self.parse_text_to_nodes(self.make(), allow_section_headings=True)

    class PaperTables(Tables):
        make, folder = staticmethod(paper), RESULTS / "paper"

    class ReliabilityTables(Tables):
        folder = RESULTS / "reliability"
        make = staticmethod(lambda: performance(RESULTS / "reliability"))

    class DenoisingTables(Tables):
        make, folder = staticmethod(denoising), RESULTS / "denoise"

    app.add_directive("benchmark-tables", Tables)
    app.add_directive("reliability-results", ReliabilityTables)
    app.add_directive("denoising-results", DenoisingTables)
    app.add_directive("paper-results", PaperTables)
    app.connect("builder-inited", lambda app: draw(Path(app.srcdir) / "generated"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
