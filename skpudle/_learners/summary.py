"""Texts of ``learner.summary()``: what a fit has decided, and how clear its decisions were."""

import numpy as np

from skpudle._data.arrays import check_rows, host_array, to_tensor
from skpudle._data.sources import open_source
from skpudle._losses import LEAST_SQUARES


def _tried(path, chosen):
    """Return text: the score of the chosen number of atoms, and of up to three larger numbers.

    ``path`` is ``size_path_`` and ``chosen`` the number of atoms. The score is the fraction of
    hidden entries' variance that is explained: the text shows whether more atoms explain more.
    """
    order = np.argsort(path.n_components)
    n = path.n_components[order]
    score = path.score[order]
    at = int(np.searchsorted(n, chosen).clip(0, len(n) - 1))
    # The path may be long, so at most four numbers are shown: from the chosen number to the
    # largest, at positions in the sorted path that grow by equal factors.
    far = np.unique(np.geomspace(at + 1, len(n), 4).astype(int) - 1)
    return ", ".join(f"{n[i]} explain {score[i]:.3f}" for i in far)


def _prediction(path, alpha):
    """Return text: how well hidden entries are predicted, and which penalties predict as well.

    ``path`` is ``penalty_path_``, and ``alpha`` the chosen penalty of the search.
    """
    best = np.argmax(path.score)
    said = f"{path.score[best]:.3f} of their energy is predicted"
    if path.score[best] <= path.tolerance[best]:
        return f"{said}: these atoms explain nothing that columns share"
    # A score that is lower by up to .001 counts as equal: differences below .001 decide nothing,
    # as in the choice of the number of atoms.
    near = (path.score > path.score[best] - 0.001) & (path.alpha != alpha)
    alphas = " or ".join(f"{alpha:.3g}" for alpha in np.unique(path.alpha[near]))
    return f"{said}, as well with a search at {alphas}" if alphas else said


def _codes(learner, X, loss):
    """Return text: how well codes explain the rows ``X``, and how many codes a row has on average.

    ``loss``, an object of `skpudle._losses`, decides what is explained: variance, or deviance.
    """
    codes = host_array(learner.transform(X))
    x = host_array(check_rows(open_source(X).array(), allow_nan=True))
    means = np.nanmean(x, axis=0)
    found = host_array(learner.inverse_transform(codes))
    total, left = (
        float(
            loss.half_deviance(
                to_tensor(np.broadcast_to(rates, x.shape)), to_tensor(x)
            ).nansum()
        )
        for rates in (means, found)
    )
    what = "R^2" if loss.is_quadratic else "explained deviance"
    n_constant = int((np.fmax.reduce(x, axis=1) == np.fmin.reduce(x, axis=1)).sum())
    said = f"rows: {what} {1 - left / total:.3f} by {(codes != 0).sum(1).mean():.1f} codes a row"
    return f"{said}; {n_constant} rows are zero or constant" if n_constant else said


def _of_rows(learner):  # -> list of str
    """Return the lines of `PUDLEDictionaryLearning` about baseline, outliers, noise, penalties."""
    names = "penalty_path", "outliers", "noise_std", "search_alpha"
    path, outliers, noise, alpha = (vars(learner).get(f"{n}_") for n in names)
    root = np.sqrt(np.mean(np.square(learner.intercept_)))
    first = ""
    unusual = "none"
    deviation = "not estimated: that takes fit, alpha='auto' and codes of the lasso"
    if outliers is not None:
        n_rows = np.count_nonzero(outliers.sum(axis=1))
        unusual = f"{outliers.nnz} entries of {n_rows} rows did not count"
    if noise is not None:
        largest = f" to {np.max(noise):.3g}, by the feature" if np.ndim(noise) else ""
        deviation = f"standard deviation {np.min(noise):.3g}{largest}"
    if alpha is not None:
        first = f"penalty of the search: {alpha:.3g}; "
    return [
        f"baseline: root mean square {root:.3g}, in intercept_"
        if root
        else "baseline: none",
        f"outliers: {unusual}",
        f"noise: {deviation}",
        f"{first}penalty of codes: {learner.alpha_:.3g}, {learner.debias_:.0%} of its bias removed",
        f"hidden entries: {'none were predicted' if path is None else _prediction(path, alpha)}",
    ]


def _of_counts(learner):  # -> list of str
    """Return the lines of `PoissonNMF` about prior, dispersion and gain, and what chose them."""
    names = "alpha", "dispersion", "min_gain"
    given = {name: getattr(learner, name) == "auto" for name in names}
    how = {
        name: "chosen by the counts" if auto else "as named"
        for name, auto in given.items()
    }
    return [
        f"prior: {learner.alpha_:.3g} pseudo-events a feature, {how['alpha']}",
        f"dispersion: {learner.dispersion_:.3g} beyond Poisson's, {how['dispersion']}",
        f"gain of an atom in a row: {learner.min_gain_:.3g} nats, {how['min_gain']}",
    ]


def describe_fit(learner, X=None, loss=LEAST_SQUARES):  # -> str
    """Return the text of `PUDLEDictionaryLearning.summary` and `PoissonNMF.summary`.

    ``X`` are rows to reconstruct, or None, and ``loss`` is an object of `skpudle._losses`.
    """
    size, seconds = (vars(learner).get(name) for name in ("size_path_", "fit_seconds_"))
    n_rows = vars(learner).get("n_samples_seen_", "no")
    n = learner.n_components_
    sizes = "as named"
    if size is not None:
        sizes = f"chosen by hidden entries: {_tried(size, n)}"
    lines = [
        f"{type(learner).__name__}: {n_rows} rows of {learner.n_features_in_} features",
        f"{n} atoms, {sizes}",
        *(_of_rows if loss.is_quadratic else _of_counts)(learner),
    ]
    if X is not None:
        lines.append(_codes(learner, X, loss))
    if seconds is not None:  # `partial_fit` has no seconds, and no end
        phases = (
            ", ".join(f"{name} {n}" for name, n in learner.phases_.items()) or "none"
        )
        lines.append(
            f"ended by {learner.ended_by_} in {seconds['fit']:.1f} s; epochs: {phases}"
        )
    return "\n  ".join(lines)
