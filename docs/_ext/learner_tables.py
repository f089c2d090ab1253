"""Make tables and a picture from `benchmarks/bench_learners.py`, and single tables.

``learner-results`` compares learners: a table for each measure, with a row for each data set.
``concept-results`` compares the scores of ``benchmarks/results/concepts.json`` with published ones,
``sae-code-results`` compares codes of autoencoders with exact ones, from ``synthsae.json`` there,
``large-results`` shows the fits of ``large.json`` and curves of ``large_epochs.json``, and
``benchmark-table:: NAME`` shows the rows of ``benchmarks/results/NAME.json`` as they are.
Without measurements, all say so.
"""

import json
from pathlib import Path
from statistics import fmean

from result_tables import RESULTS, conditions, scalars, table, text

BASELINE = "scikit-learn MiniBatch"  # of the picture
# Bars, and markers.
DRAWN = {
    "skpudle": "lightsteelblue",
    "SPAMS": "black",
    "SPORCO": "tab:red",
    "dictlearn K-SVD": "tab:green",
}

# Title of a table: column in the file, divisor in each row, and the better end.
MEASURES = {
    "Variance explained by m/10 atoms (R², OMP, held-out)": (
        "R2, m/10 atoms",
        None,
        max,
    ),
    "Variance explained by 2 atoms (R², OMP, held-out)": ("R2, 2 atoms", None, max),
    "Variance explained by 5 atoms (R², OMP, held-out)": ("R2, 5 atoms", None, max),
    "Held-out lasso objective, over the lowest": ("held-out objective", min, min),
    "Share of the true atoms found (coherence above 0.95)": (
        "found, > 0.95",
        None,
        max,
    ),
    "Share of the true atoms found (coherence above 0.99)": (
        "found, > 0.99",
        None,
        max,
    ),
    "Relative error of the matched dictionary": ("matched error", None, min),
    "Density of the learner's own codes": ("density", None, None),
    "Atoms that no lasso code uses": ("dead atoms", None, None),
    "Seconds of the processor for the fit": ("seconds", None, None),
}


def _read(path):
    return json.loads(path.read_text()) if path.exists() else {"results": []}


def _by_data(rows, column):
    """Map data sets to the learners' values in a column, without empty rows."""
    found = {}
    for row in rows:
        if row.get(column) is not None:
            found.setdefault(row["data"], {})[row["learner"]] = row[column]
    return found


def _cell(value, best):
    shown, bold = (
        f"{v:.3g}" if isinstance(v, float) else text(v) for v in (value, best)
    )
    return f"**{shown}**" if shown == bold else shown


def comparison(rows, title, column, unit, better):
    """Return a table in reStructuredText, with the best of each row in bold type, or nothing."""
    names = list(dict.fromkeys(row["learner"] for row in rows))
    lines = []
    for data, values in _by_data(rows, column).items():
        scale = unit(values.values()) if unit else 1
        values = {
            name: value / scale if unit else value for name, value in values.items()
        }
        best = better(values.values()) if better else None
        cells = {
            name: _cell(values[name], best) if name in values else "" for name in names
        }
        lines.append({"data": data} | cells)
    return table(lines, title=title) if lines else ""


def learners(path=RESULTS / "learners.json"):
    """Return the tables of all measures in reStructuredText."""
    result = _read(path)
    rows = result["results"]
    if not rows:
        return "No measurement is stored yet."
    sizes = {row["data"]: row for row in rows}
    columns = ("data", "size", "atoms", "alpha")
    sets = [
        {key: text(row[key]) for key in columns if key in row} for row in sizes.values()
    ]
    parts = [comparison(rows, title, *how) for title, how in MEASURES.items()]
    parts += [table(sets, title="The data to learn from")]
    notes = [
        f"- {row['data']}, {row['learner']}: {row['note']}"
        for row in rows
        if "note" in row
    ]
    parts += ["Without a result:", "", *notes, ""] if notes else []
    drawn = [
        ".. image:: /generated/learners.svg",
        "   :alt: A bar for each data set: variance gained, and time saved",
        "",
    ]
    return "\n".join(
        [*drawn, *parts, ".. rst-class:: conditions", "", conditions(result), ""]
    )


def alone(path):
    """Return the rows of one file in reStructuredText."""
    result = _read(path)
    entries = result["results"]
    if not entries:
        return "No measurement is stored yet."
    rows = table([scalars(entry) for entry in entries])
    return "\n".join([rows, ".. rst-class:: conditions", "", conditions(result), ""])


def concepts(path=RESULTS / "concepts.json"):
    """Return scores by the number of concepts, and their costs, means over seeds."""
    result = _read(path)
    runs = {}
    for row in result["results"]:
        runs.setdefault((row["method"], row["n"], row["p"]), []).append(row)
    if not runs:
        return "No measurement is stored yet."
    scores = {
        f"published: {name}": found for name, found in result["published"].items()
    }
    costs = []
    for (method, n, p), rows in runs.items():
        mean = {
            key: fmean(row[key] for row in rows)
            for key in ("mcc_ood", "found", "cpu_seconds")
        }
        scores.setdefault(f"{method}, {n} samples", {})[str(p)] = mean["mcc_ood"]
        if method != "true dictionary":
            named = {"method": method, "concepts": text(p), "samples": text(n)}
            named["concepts found"] = f"{mean['found']:.1%}"
            named["seconds of the CPU"] = f"{mean['cpu_seconds']:.1f}"
            costs.append(named | {"runs": text(len(rows))})
    sizes = sorted({p for found in scores.values() for p in found}, key=int)
    lines = [
        {"method": name}
        | {f"p = {p}": f"{found[p]:.3f}" if p in found else "" for p in sizes}
        for name, found in scores.items()
    ]
    title = "Mean correlation out of distribution, of p concepts"
    return "\n".join(
        [table(lines, title=title), table(costs, title="Concepts found, and the time")]
    )


def sae_codes(path=RESULTS / "synthsae.json"):
    """Return F1 and FVU of autoencoders' codes and of exact ones, in reStructuredText."""
    places = "method", "seed", "hierarchy", "samples"
    runs = {tuple(row[name] for name in places): row for row in _read(path)["results"]}
    lines = []
    for (method, *where), own in runs.items():
        kinds = {"exact": "exact codes", "exact, as many": "as many exact codes"}
        exact = {
            name: runs.get((f"{method}, {kind}", *where))
            for name, kind in kinds.items()
        }
        if None in exact.values():
            continue
        for codes, row in ({"its encoder's": own} | exact).items():
            shown = {
                "F1": row["f1"],
                "FVU": row["fvu"],
                "codes in a row (L0)": row["l0"],
            }
            numbers = {name: f"{value:.3f}" for name, value in shown.items()}
            million = f"{own['shown'] / 1e6:.1f}"
            trained = {"autoencoder": method, "millions of samples shown": million}
            lines.append(trained | {"codes": codes} | numbers)
    if not lines:
        return "No measurement is stored yet."
    return table(
        lines, title="F1 of known features, and variance unexplained, before and after"
    )


def large(path=RESULTS / "large.json"):
    """Return whole fits of large dictionaries, and curves of an epoch, in reStructuredText."""
    result = _read(path)
    lines = [
        {
            "atoms, features, rows": f"{row['atoms']:,}, {row['features']:,}, {row['rows']:,}",
            "atoms in a row": text(row["nonzero"]),
            "minutes": f"{row['seconds'] / 60:.1f}, {row['threads']} threads",
            "minutes of the CPU": f"{row['cpu_seconds'] / 60:.1f}",
            "memory beyond the data (MB)": f"{row['megabytes']:.0f}",
            "atoms found": f"{row['found']:.1%}",
        }
        for row in result["results"]
    ]
    if not lines:
        return "No measurement is stored yet."
    drawn = [
        ".. image:: /generated/large.svg",
        "   :alt: Seconds and memory of an epoch, by the number of atoms",
        "",
    ]
    fits = table(lines, title="Whole fits at the defaults")
    return "\n".join(
        [fits, *drawn, ".. rst-class:: conditions", "", conditions(result), ""]
    )


def draw_large(output, path=RESULTS / "large_epochs.json"):
    """Draw seconds and memory of an epoch against the number of atoms."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    curves = {}
    for row in _read(path)["results"]:
        if row["rows"] == 8 * row["atoms"]:
            curves.setdefault(row["features"], {})[row["atoms"]] = row
    curves = {n_features: rows for n_features, rows in curves.items() if len(rows) > 1}
    output.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for n_features, rows in curves.items():
        atoms = sorted(rows)
        for ax, column in zip(axes, ("seconds", "megabytes"), strict=True):
            values = [rows[n][column] for n in atoms]
            ax.loglog(atoms, values, "o-", label=f"{n_features} features")
    axes[0].set(
        xlabel="atoms (8 rows for each)", ylabel="seconds of an epoch, one core"
    )
    axes[1].set(xlabel="atoms (8 rows for each)", ylabel="memory beyond the data (MB)")
    for ax in axes if curves else ():
        ax.set_xticks(
            sorted({n for rows in curves.values() for n in rows}), minor=False
        )
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.legend()
    figure.savefig(output / "large.svg")
    plt.close(figure)


def draw(output, path=RESULTS / "learners.json"):
    """Draw a bar for each data set: variance gained and time saved over scikit-learn's default."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = _read(path)["results"]
    explained, seconds = (
        _by_data(rows, column) for column in ("R2, m/10 atoms", "seconds")
    )
    sets = [data for data, values in explained.items() if BASELINE in values]
    output.mkdir(parents=True, exist_ok=True)
    size = (9, 1.6 + 0.26 * len(sets))
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    for name, color in DRAWN.items():
        found = [(i, data) for i, data in enumerate(sets) if name in explained[data]]
        places = [i for i, _ in found]
        gained = [
            explained[data][name] - explained[data][BASELINE] for _, data in found
        ]
        saved = [seconds[data][BASELINE] / seconds[data][name] for _, data in found]
        for ax, values, start in zip(axes, (gained, saved), (0, 1), strict=True):
            if name == "skpudle":
                ends = [value - start for value in values]
                ax.barh(places, ends, left=start, color=color, label=name)
            else:
                ax.plot(values, places, "o", color=color, markersize=4, label=name)
    axes[0].set_yticks(range(len(sets)), sets)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("variance explained (R²), minus scikit-learn's")
    axes[1].set(xscale="log", xlabel="times as fast as scikit-learn")
    for ax, start in zip(axes, (0, 1), strict=True):
        ax.axvline(start, color="gray", linewidth=0.8)
    if sets:
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4
        )
    figure.savefig(output / "learners.svg")
    plt.close(figure)


def setup(app):
    from sphinx.util.docutils import SphinxDirective

    class LearnerTables(SphinxDirective):
        def run(self):
            return self.show(learners, RESULTS / "learners.json")

        def show(self, make, path):
            self.env.note_dependency(str(path))  # also where it is still to come
            return self.parse_text_to_nodes(make(path), allow_section_headings=True)

    class ConceptTables(LearnerTables):
        def run(self):
            return self.show(concepts, RESULTS / "concepts.json")

    class CodeTables(LearnerTables):
        def run(self):
            return self.show(sae_codes, RESULTS / "synthsae.json")

    class LargeTables(LearnerTables):
        def run(self):
            self.env.note_dependency(str(RESULTS / "large_epochs.json"))
            return self.show(large, RESULTS / "large.json")

    class TableAlone(LearnerTables):
        required_arguments = 1

        def run(self):
            return self.show(alone, RESULTS / f"{self.arguments[0]}.json")

    app.add_directive("learner-results", LearnerTables)
    app.add_directive("concept-results", ConceptTables)
    app.add_directive("sae-code-results", CodeTables)
    app.add_directive("large-results", LargeTables)
    app.add_directive("benchmark-table", TableAlone)
    for picture in (draw, draw_large):
        app.connect(
            "builder-inited", lambda app, of=picture: of(Path(app.srcdir) / "generated")
        )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
