"""Draw the error of the dictionary over the depth of the encoder, and make a table of it."""

import json
from pathlib import Path

from result_tables import RESULTS, conditions, table

FILE = RESULTS / "depth.json"
MARKERS = {"dec": "o", "ae-lasso": "s", "ae-ls": "^"}


def _curves(path, noise):  # -> {gradient: {unfoldings: row}}
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    curves = {}
    for row in rows:
        if row["noise"] == noise:
            curves.setdefault(row["gradient"], {})[row["unfoldings"]] = row
    return curves


def depths(path=FILE):
    """Return errors and explained shares by the number of unfoldings, in reStructuredText."""
    curves = _curves(path, "none")
    if not curves:
        return "No measurement is stored yet."
    lines = []
    for depth in next(iter(curves.values())):
        at_depth = {gradient: rows[depth] for gradient, rows in curves.items()}
        line = {"unfoldings": str(depth)}
        for column, best in (("error", min), ("explained", max)):
            winner = best(row[column] for row in at_depth.values())
            for gradient, row in at_depth.items():
                shown = (
                    f"{row[column]:.3f}" if row[column] >= 0.1 else f"{row[column]:.4f}"
                )
                bold = f"**{shown}**" if row[column] == winner else shown
                line[f"{gradient}: {column}"] = bold
        lines.append(line)
    result = json.loads(path.read_text())
    said = conditions({"circumstances": result.get("circumstances", {})})
    title = "Relative error of the dictionary, and variance of other rows explained"
    picture = [
        ".. image:: /generated/depth.svg",
        "   :alt: Error of the dictionary over the number of unfoldings, for three gradients",
        "",
    ]
    made = table(lines, title=f"{title} (means of five seeds, no noise)")
    return "\n".join([*picture, made, ".. rst-class:: conditions", "", said, ""])


def draw(output, path=FILE):
    """Draw means over seeds, and the range from the smallest to the largest error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    output.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(
        1, 2, figsize=(9, 3.4), sharey=True, layout="constrained"
    )
    for ax, noise in zip(axes, ("none", "20 dB"), strict=True):
        for gradient, rows in _curves(path, noise).items():
            depths = list(rows)
            low, high = (
                [row[f"{end} error"] for row in rows.values()]
                for end in ("smallest", "largest")
            )
            errors = [row["error"] for row in rows.values()]
            ax.loglog(
                depths, errors, marker=MARKERS[gradient], markersize=4, label=gradient
            )
            ax.fill_between(depths, low, high, alpha=0.2)
            ax.set_xticks(depths, depths)
        ax.minorticks_off()
        ax.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
        ax.set(
            xlabel="unfoldings",
            title="No noise" if noise == "none" else f"Noise at {noise}",
        )
    axes[0].set(ylabel="error of the dictionary", yticks=[0.01, 0.03, 0.1, 0.3])
    axes[0].yaxis.set_major_formatter("{x:g}")
    if axes[0].lines:
        axes[0].annotate(
            "start", (100, 0.5), xytext=(0, 3), textcoords="offset points", ha="right"
        )
        axes[0].legend()
    figure.savefig(output / "depth.svg")
    plt.close(figure)


def setup(app):
    from sphinx.util.docutils import SphinxDirective

    class DepthTable(SphinxDirective):
        def run(self):
            self.env.note_dependency(str(FILE))
            return self.parse_text_to_nodes(depths(), allow_section_headings=True)

    app.add_directive("depth-results", DepthTable)
    app.connect("builder-inited", lambda app: draw(Path(app.srcdir) / "generated"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
