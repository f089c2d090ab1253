"""A report of a fitted learner as one page that needs nothing else.

Pictures are inside the page, so that it can be sent, stored next to a model, or shown in a
notebook.
"""

import base64
import html
import io
from pathlib import Path

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skpudle._data.arrays import check_rows, to_numpy, to_tensor
from skpudle._data.images import read_images
from skpudle._drawing import as_images, new_figure, shape_of_images, signed_codes
from skpudle.plotting import AtomsDisplay, CodesDisplay, LossCurveDisplay

__all__ = ["Report", "report"]

_STYLE = """
:root { color-scheme: light dark; }
body { font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
section { display: inline-block; vertical-align: top; width: 30rem; max-width: 100%; }
img { background: white; max-width: 100%; }
pre { white-space: pre-wrap; }
h1 { overflow-wrap: anywhere; }
table { border-collapse: collapse; }
td { padding: 0.15rem 1rem 0.15rem 0; }
"""


class Report:
    """A page of HTML.

    Parameters
    ----------
    page : str
        The page.

    Examples
    --------
    In a notebook the last expression of a cell shows it; ``report.save("report.html")`` writes it.
    """

    def __init__(self, page):
        self.page = page

    def save(self, path):
        """Write the page to a file.

        Parameters
        ----------
        path : str or path-like
            Where to.
        """
        Path(path).write_text(self.page, encoding="utf-8")

    def _repr_html_(self):
        page = html.escape(self.page)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0"></iframe>'


def _picture(draw, alt):
    """Return what ``draw(ax)`` draws as an image inside the page."""
    figure = new_figure(figsize=(5, 3.6))
    draw(figure.subplots())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    code = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{code}">'


def _as_arrays(samples):
    """Return samples as a list of arrays, whatever they came in."""
    if isinstance(samples, list):
        return [to_numpy(to_tensor(sample)) for sample in samples]
    return list(to_numpy(to_tensor(samples)))


def _read(estimator, X):
    """Return what the estimator takes X for, as a list of arrays."""
    if not hasattr(estimator, "atom_shape"):
        return _as_arrays(check_rows(X, allow_nan=True))
    images = read_images(X, np.size(estimator.atom_shape), image_shape=estimator.image_shape)
    return _as_arrays(images.hand_back(images.tensors))


def _crop(x, y):
    """Return two arrays without what only one has: atoms may reach beyond an image."""
    shared = tuple(map(slice, np.minimum(x.shape, y.shape)))
    return x[shared], y[shared]


def _draw_worst(samples, reconstructions, worst, image_shape):
    """Return a function that draws samples above their reconstructions."""
    worst = [row for row in worst if samples[row].shape == samples[worst[0]].shape]
    pairs = [np.nan_to_num(samples[row]) for row in worst] + [reconstructions[r] for r in worst]
    pairs = np.stack(pairs)
    try:
        as_images(pairs, image_shape)
    except ValueError:  # no images: curves

        def draw(ax):
            for row in worst[:3]:
                (line,) = ax.plot(samples[row].ravel(), label=f"sample {row}")
                ax.plot(reconstructions[row].ravel(), ":", color=line.get_color())
            ax.set(xlabel="Feature", title="dotted: reconstruction")
            ax.legend()

        return draw

    def draw(ax):
        AtomsDisplay.from_atoms(pairs, image_shape=image_shape, n_columns=len(worst), ax=ax)
        ax.set_title(f"samples {', '.join(map(str, worst))}; below: reconstructions", fontsize=8)

    return draw


def _page(estimator, facts, pictures):  # -> Report
    rows = "".join(
        f"<tr><td>{name}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    sections = "".join(
        f"<section><h2>{title}</h2>{_picture(draw, title)}</section>"
        for title, draw in pictures.items()
    )
    name, title = (html.escape(text) for text in (type(estimator).__name__, repr(estimator)))
    return Report(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{name}</h1><pre>{title}</pre><table>{rows}</table>{sections}"
        "</body></html>"
    )


def report(estimator, X, *, image_shape=None, n_atoms=100, n_worst=8):
    """Describe a fitted learner and what it makes of samples in one page of HTML.

    Parameters
    ----------
    estimator : estimator
        Fitted learner, with ``components_``, ``transform`` and ``inverse_transform``.
    X : array-like
        Samples, as `transform` takes them; better others than those of `fit`.
    image_shape : tuple of int, default=None
        Shape of a row that is an image, (height, width) or (height, width, 3). By default a square
        if the number of features is one; what is no image is drawn as curves, and such atoms as
        rows of a matrix.
    n_atoms : int, default=100
        Number of atoms to show, the most used first.
    n_worst : int, default=8
        Number of samples to show, those with the largest error.

    Returns
    -------
    Report
        With the page as `page`, a method `save`, and a display of its own in notebooks: the atoms,
        how often they are used and how many a sample uses, the loss curve, the distribution of the
        reconstruction error, and the samples that are reconstructed worst.

    Raises
    ------
    ValueError
        If there is nothing to show: ``n_atoms`` or ``n_worst`` below 1.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> import skpudle
    >>> X = load_digits().data
    >>> learner = skpudle.PUDLEDictionaryLearning(32, max_iter=2, tol=None).fit(X)
    >>> page = skpudle.report(learner, X).page  # doctest: +SKIP
    """
    check_is_fitted(estimator, "components_")
    if min(n_atoms, n_worst) < 1:
        raise ValueError(f"n_atoms={n_atoms} and n_worst={n_worst}; pass 1 or more of each.")
    raw = estimator.transform(X)
    codes = signed_codes(estimator, raw)
    pairs = zip(_read(estimator, X), _as_arrays(estimator.inverse_transform(raw)), strict=True)
    samples, reconstructions = zip(*(_crop(x, y) for x, y in pairs), strict=True)
    errors = [np.nansum(np.square(x - y)) for x, y in zip(samples, reconstructions, strict=True)]
    errors, energies = np.array(errors), np.array([np.nansum(np.square(x)) for x in samples])
    shares = errors[energies > 0] / energies[energies > 0]
    worst = np.argsort(-errors, kind="stable")[:n_worst]
    usage = (codes != 0).mean(axis=0)
    order = np.argsort(-usage, kind="stable")[:n_atoms]
    atoms, atom_shape = estimator.components_[order], shape_of_images(estimator, image_shape)
    if image_shape is None and hasattr(estimator, "atom_shape"):
        image_shape = samples[0].shape  # a signal is no square

    def draw_atoms(ax):
        try:
            as_images(atoms, atom_shape)
        except ValueError:
            ax.imshow(atoms.reshape(len(atoms), -1), cmap="gray", aspect="auto")
            ax.set(xlabel="Feature", ylabel="Atom, most used first")
        else:
            AtomsDisplay.from_atoms(atoms, image_shape=atom_shape, ax=ax)

    def draw_errors(ax):
        ax.hist(shares, bins=50)
        ax.set(xlabel=r"$|x - D z|^2 \, / \, |x|^2$", ylabel="Samples")

    pictures = {
        "Atoms, most used first": draw_atoms,
        "Usage of the atoms": lambda ax: CodesDisplay.from_codes(codes, ax=ax),
        "Atoms per sample": lambda ax: CodesDisplay.from_codes(codes, kind="count", ax=ax),
        "Reconstruction error": draw_errors,
        "Worst samples": _draw_worst(samples, reconstructions, worst, image_shape),
    }
    if hasattr(estimator, "loss_curve_"):
        pictures["Loss"] = lambda ax: LossCurveDisplay.from_estimator(estimator, ax=ax)
    facts = {
        "samples": len(samples),
        "atoms": len(estimator.components_),
        "numbers in an atom": estimator.components_[0].size,
        "alpha": f"{np.mean(estimator.alpha_):.4g}" if hasattr(estimator, "alpha_") else "",
        "epochs": getattr(estimator, "n_iter_", ""),
        "entries of the codes that are not zero": f"{(codes != 0).mean():.1%}",
        "atoms that no sample uses": int((usage == 0).sum()),
        "share of the energy not explained": f"{errors.sum() / max(energies.sum(), 1e-300):.2%}",
    }
    return _page(estimator, facts, pictures)
