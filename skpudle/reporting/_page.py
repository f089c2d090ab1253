"""Report on a fitted learner in one self-contained page.

Pictures are inside the page: it can be sent, stored next to a model, or shown in a notebook.
"""

import base64
import html
import io
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from skpudle._data.foreign import drop_names
from skpudle._fitted.drawing import draw_steps, new_figure
from skpudle._fitted.learners import as_arrays, look_at, sample_numbers
from skpudle.metrics import atom_importance
from skpudle.plotting import AtomsDisplay, CodesDisplay, LossCurveDisplay
from skpudle.reporting._findings import ENDINGS, sentences
from skpudle.search._epoch import spread_rows

_STYLE = """
:root { color-scheme: light dark; }
body { font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
section { display: inline-block; vertical-align: top; width: 30rem; max-width: 100%; }
img { background: white; border-radius: 4px; max-width: 98%; }
pre { white-space: pre-wrap; }
h1 { overflow-wrap: anywhere; }
table { border-collapse: collapse; }
td { padding: 0.15rem 1rem 0.15rem 0; }
"""

# Most samples for the importance of atoms, which removes all atoms in turn.
_SAMPLES_OF_IMPORTANCE = 500
# Most samples for the score, which hides entries of each sample several times.
_SAMPLES_OF_SCORE = 500
# Score below which a fit is worse than chance; zero codes score slightly below 0, by the means of a
# few samples.
_BAD_SCORE = -0.01


class Report:
    """A page of HTML, and its words and numbers.

    Parameters
    ----------
    page : str
        The page.
    facts : dict, default=None
        Names of numbers, and their values.
    findings : list of str, default=None
        What is wrong, as `skpudle.reporting.findings` says it.

    Examples
    --------
    In a notebook the last expression of a cell shows it; ``report.save("report.html")`` writes it.
    In a terminal its words and numbers are printed.
    """

    def __init__(self, page, facts=None, findings=None):
        self.page, self.facts, self.findings = page, facts or {}, findings or []

    def save(self, path):
        """Write the page to a file.

        Parameters
        ----------
        path : str or path-like
            File to write.
        """
        Path(path).write_text(self.page, encoding="utf-8")

    def __repr__(self):
        title = self.page.partition("<title>")[2].partition("</title>")[0]
        head = (
            f"<Report on {html.unescape(title)}, {len(self.page) / 1e6:.1f} MB: "
            'save("report.html"), or the last expression of a notebook cell, shows it>'
        )
        facts = (f"{name}: {value}" for name, value in self.facts.items())
        return "\n".join([head, *self.findings, *facts])

    def _repr_html_(self):
        page = html.escape(self.page)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0"></iframe>'


def _picture(draw, alt):
    """Return the drawing of ``draw(ax)`` as an image inside the page."""
    figure = new_figure(figsize=(5, 3.6))
    draw(figure.subplots())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    code = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{code}">'


def _crop(x, y):
    """Crop two arrays to their common shape: atoms may reach beyond an image."""
    shared = tuple(map(slice, np.minimum(x.shape, y.shape)))
    return x[shared], y[shared]


def _worst(look, samples, reconstructions, errors, n_worst, shape):
    """Return a function that draws the samples with the largest errors, and their copies."""
    found, rows = look.found, np.argsort(-errors, kind="stable")[:n_worst]
    rows = [row for row in rows if samples[row].shape == samples[rows[0]].shape]
    pairs = np.stack([arrays[row] for arrays in (samples, reconstructions) for row in rows])
    pairs = found.to_data(np.nan_to_num(pairs))
    kind, pictures = found.pictures(pairs, **shape)

    def draw_images(ax):
        AtomsDisplay(pictures, kind).plot(ax=ax, n_columns=len(rows))
        ax.set_title(f"samples {', '.join(map(str, rows))}; below: reconstructions", fontsize=8)

    def draw_lines(ax):
        originals, copies = np.split(pictures, 2)
        step = 1.1 * max(np.ptp(originals[:3]), np.finfo(float).tiny)
        for i, (original, copy) in enumerate(zip(originals[:3], copies)):
            for channel, (x, y) in enumerate(zip(original.T, copy.T)):
                ax.plot(x - i * step, color=f"C{channel}", linewidth=1)
                ax.plot(y - i * step, ":", color="black", linewidth=1.5)
        ax.set_yticks(-step * np.arange(len(rows[:3])), [f"sample {row}" for row in rows[:3]])
        name = "Position" if look.is_convolutional else "Feature"
        ax.set(xlabel=name, title="dotted: reconstructions")

    return draw_images if kind == "images" else draw_lines


def _importance(look):
    """Return a function that draws the loss of R^2 without each atom."""
    places = spread_rows(len(look.samples), _SAMPLES_OF_IMPORTANCE)
    samples = np.stack([look.samples[i] for i in places])
    losses = np.sort(atom_importance(drop_names(look.learner), samples).r2_loss)[::-1]

    def draw(ax):
        draw_steps(ax, losses)
        ax.set(xlabel="Atom, most important first", ylabel="Loss of $R^2$ without it")

    return draw


def _number(learner, name):  # -> str, empty if the learner has none
    value = getattr(learner, name, None)
    return "" if value is None else f"{np.mean(value):.4g}"


def _seconds_of_fit(learner):  # -> str, empty without
    phases = dict(getattr(learner, "fit_seconds_", {}))
    if not phases:
        return ""
    whole = phases.pop("fit")
    return f"{whole:.3g} ({', '.join(f'{name}: {n:.3g}' for name, n in phases.items())})"


def _r_squared(look, samples, errors):  # -> str, empty for images
    if look.is_convolutional:
        return ""
    X = np.stack(samples)
    X = X[:, ~np.isnan(X).all(axis=0)]
    total = np.nansum(np.square(X - np.nanmean(X, axis=0)))
    return f"{1 - errors.sum() / total:.4g}" if total > 0 else ""


def _seconds_of_codes(look):  # all samples again, since the first call may compile
    start = perf_counter()
    look.learner.transform(look.X)
    return perf_counter() - start


def _score(look):  # -> name, float; None for learners without a score, or without one of X alone
    """Return the score of the first samples: a share of what is hidden, or of denoising in dB."""
    X, options = look.X[:_SAMPLES_OF_SCORE], {}
    name = f"score of the first {min(len(look.samples), _SAMPLES_OF_SCORE)} samples"
    if hasattr(look.learner, "denoise"):
        options["peak"] = float(max(np.nanmax(np.abs(sample)) for sample in look.samples))
        name += f" (denoised, PSNR in dB for a peak of {options['peak']:.4g})"
    elif look.is_convolutional:
        name += " (R² of hidden pixels)"
    try:
        return name, look.learner.score(X, **options)
    except (AttributeError, TypeError, ValueError):
        return name, None


def _bad_score(name, score):  # -> list of str
    if score is None or "PSNR" in name or score > _BAD_SCORE:
        return []
    return [
        f"The score is {score:.4g}: codes of known entries predict hidden ones worse than their "
        "mean does. The codes follow noise, or these samples differ from those of fit: raise alpha "
        "or learn fewer atoms, and pass samples in the units of fit."
    ]


def _facts(look, samples, errors, energies, score):  # -> dict of a name to its value
    learner, codes = look.learner, look.codes
    ended_by = getattr(learner, "ended_by_", None)
    phases = getattr(learner, "phases_", {}).items()
    of_score, score = score
    n_copies = f"{np.count_nonzero(codes) / len(look.samples):.4g}" if look.is_convolutional else ""
    facts = {
        "samples": len(look.samples),
        "atoms": len(learner.components_),
        "numbers in an atom": learner.components_[0].size,
        "alpha of codes": _number(learner, "alpha_"),
        "alpha of the search": _number(learner, "search_alpha_"),
        "share of the lasso's bias that is removed": _number(learner, "debias_"),
        "estimated noise of an entry": _number(learner, "noise_std_"),
        f"{'samples' if look.is_convolutional else 'rows'} that fit read": getattr(
            learner, "n_samples_seen_", ""
        ),
        "seconds of fit": _seconds_of_fit(learner),
        "epochs": getattr(learner, "n_iter_", ""),
        "phases": ", then ".join(f"{name}: {n_epochs} epochs" for name, n_epochs in phases),
        "training ended": ENDINGS.get(ended_by, ""),
        "entries of the codes that are not zero": f"{(codes != 0).mean():.1%}",
        "mean number of copies of atoms in a sample": n_copies,
        "atoms that no sample uses": int((~codes.any(axis=0)).sum()),
        "share of the energy not explained": f"{errors.sum() / max(energies.sum(), 1e-300):.2%}",
        "R² of the reconstruction": _r_squared(look, samples, errors),
        of_score: "" if score is None else f"{score:.4g}",
        "seconds for the codes of all samples": f"{_seconds_of_codes(look):.2g}",
    }
    return {name: value for name, value in facts.items() if value != ""}


def _page(estimator, look, facts, found, pictures):  # -> Report
    rows = "".join(
        f"<tr><td>{name}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in found)
    said = f"<ul>{said}</ul>" if said else "<p>Nothing.</p>"
    sections = "".join(
        f"<section><h2>{title}</h2>{_picture(draw, title)}</section>"
        for title, draw in pictures.items()
    )
    name, title = (html.escape(text) for text in (type(look.learner).__name__, repr(estimator)))
    return Report(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{name}</h1><pre>{title}</pre><h2>What is wrong</h2>{said}"
        f"<h2>In numbers</h2><table>{rows}</table>{sections}"
        "</body></html>",
        facts,
        found,
    )


def report(
    estimator: Any,
    X: ArrayLike | None = None,  # a default, to raise our own error without it
    *,
    kind: Literal["auto", "images", "lines"] = "auto",
    image_shape: tuple[int, ...] | None = None,
    n_atoms: int = 100,
    n_worst: int = 8,
) -> Report:
    """Describe a fitted learner and its reconstructions of samples in one page of HTML.

    Parameters
    ----------
    estimator : estimator
        Fitted learner, with ``components_``, ``transform`` and ``inverse_transform``, or a pipeline
        or search with one. Numbers are the learner's; atoms and samples of a pipeline are drawn in
        the features of its data, as by `skpudle.plotting.AtomsDisplay`.
    X : array-like
        Samples, as `transform` takes them: those of `fit` to examine the atoms, others for an
        honest error.
    kind : {"auto", "images", "lines"}, default="auto"
        Whether atoms and samples are images or signals. By default rows are lines, unless
        ``image_shape`` says otherwise; convolutional learners know it.
    image_shape : tuple of int, default=None
        Shape of a row: of images (height, width) or (height, width, 3), of signals
        (length, n_channels).
    n_atoms : int, default=100
        Number of atoms to show, the most used first.
    n_worst : int, default=8
        Number of samples to show, those with the largest error; of signals at most three.

    Returns
    -------
    Report
        The page as `page`, its numbers as `facts`, a method `save`, and a display of its own in
        notebooks. The page says what is wrong (`skpudle.reporting.findings`, and a negative score)
        and how training ended. It shows the atoms, how often they are used and how many a sample
        uses, the loss of R^2 without each of them (of rows), the loss curve, the distribution of
        the reconstruction error, and the samples with the worst reconstructions. Signals and images
        of convolutional learners are samples, and copies of atoms in them are counted.

    Raises
    ------
    ValueError
        If ``n_atoms`` or ``n_worst`` is below 1, or if atoms do not have `image_shape`.
    TypeError
        If there is no learner, or no ``X``.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> import skpudle
    >>> X = load_digits().data
    >>> learner = skpudle.PUDLEDictionaryLearning(32, random_state=0).fit(X)
    >>> page = skpudle.report(learner, X, image_shape=(8, 8)).page  # doctest: +SKIP
    """
    if min(n_atoms, n_worst) < 1:
        raise ValueError(f"n_atoms={n_atoms} and n_worst={n_worst}; pass 1 or more of each.")
    look, shape = look_at(estimator, X), {"kind": kind, "image_shape": image_shape}
    learner, codes = look.learner, look.codes
    pairs = zip(look.samples, as_arrays(learner.inverse_transform(look.raw)), strict=True)
    samples, reconstructions = zip(*(_crop(x, y) for x, y in pairs), strict=True)
    errors = np.array([np.nansum(np.square(x - y)) for x, y in zip(samples, reconstructions)])
    energies = np.array([np.nansum(np.square(x)) for x in samples])
    shares = errors[energies > 0] / energies[energies > 0]
    used = CodesDisplay(codes, sample_numbers(learner, look.raw))
    order = np.argsort(-np.count_nonzero(codes, axis=0), kind="stable")[:n_atoms]
    kind, atoms = look.found.pictures(look.found.atoms()[order], **shape)
    atoms = AtomsDisplay(atoms, kind)

    def draw_errors(ax):
        ax.hist(shares, bins=50)
        ax.set(xlabel=r"$\|x - D z\|^2 \, / \, \|x\|^2$", ylabel="Samples")

    pictures = {
        "Atoms, most used first": lambda ax: atoms.plot(ax=ax),
        "Usage of the atoms": lambda ax: used.plot(ax=ax),
        "Atoms per sample": lambda ax: used.plot(kind="count", ax=ax),
        "Reconstruction error": draw_errors,
        "Worst samples": _worst(look, samples, reconstructions, errors, n_worst, shape),
    }
    if not look.is_convolutional:
        pictures["Loss of R² without each atom"] = _importance(look)
    if hasattr(learner, "loss_curve_"):
        pictures["Loss"] = lambda ax: LossCurveDisplay.from_estimator(learner, ax=ax)
    score = _score(look)
    facts = _facts(look, samples, errors, energies, score)
    return _page(estimator, look, facts, sentences(look) + _bad_score(*score), pictures)
