"""Say in some ten lines what a fit has decided, and how clear its decisions were."""

import numpy as np

from skpudle._data.arrays import check_rows, host_array
from skpudle._data.sources import open_source


def _tried(path, chosen):
    order = np.argsort(path.n_components)
    n, score = path.n_components[order], path.score[order]
    at = int(np.searchsorted(n, chosen).clip(0, len(n) - 1))
    # of the many sizes of the path that may have been tried
    far = np.unique(np.geomspace(at + 1, len(n), 4).astype(int) - 1)
    return ", ".join(f"{n[i]} explain {score[i]:.3f}" for i in far)


def _prediction(path, alpha):
    best = np.argmax(path.score)
    said = f"{path.score[best]:.3f} of their energy is predicted"
    if path.score[best] <= path.tolerance[best]:
        return f"{said}: these atoms explain nothing that columns share"
    # as the least loss that counts when the number of atoms is chosen
    near = (path.score > path.score[best] - 0.001) & (path.alpha != alpha)
    alphas = " or ".join(f"{alpha:.3g}" for alpha in np.unique(path.alpha[near]))
    return f"{said}, as well with a search at {alphas}" if alphas else said


def _codes(learner, X):
    codes = host_array(learner.transform(X))
    x = host_array(check_rows(open_source(X).array(), allow_nan=True))
    left = np.nansum((x - host_array(learner.inverse_transform(codes))) ** 2)
    share = 1 - left / np.nansum((x - np.nanmean(x, axis=0)) ** 2)
    n_constant = int((np.fmax.reduce(x, axis=1) == np.fmin.reduce(x, axis=1)).sum())
    said = f"rows: R^2 {share:.3f} by {(codes != 0).sum(axis=1).mean():.1f} codes a row"
    return f"{said}; {n_constant} rows are zero or constant" if n_constant else said


def describe_fit(learner, X=None):  # -> str
    """Return the lines, separated by line breaks; see `PUDLEDictionaryLearning.summary`."""
    names = "size_path", "penalty_path", "outliers", "noise_std", "search_alpha", "fit_seconds"
    size, path, outliers, noise, alpha, seconds = (vars(learner).get(f"{n}_") for n in names)
    n, root = learner.n_components_, np.sqrt(np.mean(np.square(learner.intercept_)))
    sizes, first, unusual = "as named", "", "none"
    deviation = "not estimated, since the penalty is named or codes are of no lasso"
    if size is not None:
        sizes = f"chosen by hidden entries: {_tried(size, n)}"
    if outliers is not None:
        n_rows = np.count_nonzero(outliers.sum(axis=1))
        unusual = f"{outliers.nnz} entries of {n_rows} rows did not count"
    if noise is not None:
        largest = f" to {np.max(noise):.3g}, by the feature" if np.ndim(noise) else ""
        deviation = f"standard deviation {np.min(noise):.3g}{largest}"
    if alpha is not None:
        first = f"penalty of the search: {alpha:.3g}; "
    lines = [
        f"{type(learner).__name__}: {learner.n_samples_seen_} rows of "
        f"{learner.n_features_in_} features",
        f"{n} atoms, {sizes}",
        f"baseline: root mean square {root:.3g}, in intercept_" if root else "baseline: none",
        f"outliers: {unusual}",
        f"noise: {deviation}",
        f"{first}penalty of codes: {learner.alpha_:.3g}, {learner.debias_:.0%} of its bias removed",
        f"hidden entries: {'none were predicted' if path is None else _prediction(path, alpha)}",
    ]
    if X is not None:
        lines.append(_codes(learner, X))
    if seconds is not None:  # absent after partial_fit
        phases = ", ".join(f"{name} {n}" for name, n in learner.phases_.items()) or "none"
        lines.append(f"ended by {learner.ended_by_} in {seconds['fit']:.1f} s; epochs: {phases}")
    return "\n  ".join(lines)
