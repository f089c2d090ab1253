"""Make the table of denoisers for any noise, and their training curves."""

import json
from pathlib import Path

from result_tables import RESULTS, table, text

FOLDER = RESULTS / "denoisers"
LEVELS = ("15", "25", "50")
# As published, on the same images: parameters, PSNR at each level.
PUBLISHED = {
    "BM3D": ("", "31.07", "28.57", "25.62"),
    "WCRR-NN": ("13,763", "31.21", "28.68", ""),
    "TNRD": ("27,000", "31.45", "28.95", "26.00"),
    "CSCNet": ("64,000", "31.57", "29.11", "26.24"),
    "CDLNet, small": ("64,000", "31.60", "29.11", "26.19"),
}


def _read(folder):
    found = {
        path.stem: json.loads(path.read_text())
        for path in sorted(folder.glob("any-noise*"))
    }
    return {name: result for name, result in found.items() if "one_grid" in result}


def denoisers(folder=FOLDER):
    """Return the table, in reStructuredText."""
    rows = []
    for name, result in _read(folder).items():
        options = result["options"]
        shared = {
            "network": f"``{name}``, {options['n_components']} atoms, "
            f"{options['n_unfoldings']} unfoldings",
            "parameters": f"{result['n_parameters']:,}",
        }
        found = result["one_grid"]
        values = {level: f"{found[level]:.2f}" for level in LEVELS if level in found}
        rows.append(
            shared | values | {"CPU s an image": text(found["cpu_seconds_an_image"])}
        )
        rows[-1]["crops"] = f"{result['crops']:,}"
        rows[-1]["CPU minutes"] = f"{result['cpu_seconds'] / 60:.0f}"
    columns = "parameters", *LEVELS
    for name, values in PUBLISHED.items():
        rows.append(
            {"network": f"{name}, as published"}
            | dict(zip(columns, values, strict=True))
        )
    return table(
        rows, title="PSNR in dB of the 68 images, by the standard deviation of 255"
    )


def draw(output, folder=FOLDER):
    """Draw the PSNR of four test images over the crops of training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    output.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, len(LEVELS), figsize=(9, 3), layout="constrained")
    for ax, level in zip(axes, LEVELS, strict=True):
        for name, result in _read(folder).items():
            points = [
                (p["epoch"] * 0.432, p[level]) for p in result["curve"] if level in p
            ]
            if points:
                ax.plot(*zip(*points), label=name)
        ax.set(title=f"{level} / 255", xlabel="thousands of crops")
    axes[0].set_ylabel("PSNR (dB)")
    if axes[0].lines:
        axes[0].legend()
    figure.savefig(output / "denoisers.svg")
    plt.close(figure)


def setup(app):
    from sphinx.util.docutils import SphinxDirective

    class DenoiserTable(SphinxDirective):
        def run(self):
            for path in FOLDER.glob("*.json"):
                self.env.note_dependency(str(path))
            return self.parse_text_to_nodes(denoisers(), allow_section_headings=True)

    app.add_directive("denoiser-results", DenoiserTable)
    app.connect("builder-inited", lambda app: draw(Path(app.srcdir) / "generated"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
