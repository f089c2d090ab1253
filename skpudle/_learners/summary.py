"""Say in some ten lines what a fit has decided, and how clear its decisions were."""

import numpy as np

from skpudle._data.arrays import check_rows, host_array
from skpudle._data.sources import open_source


def _size(learner):
    path = getattr(learner, "size_path_", None)
    if path is None:
        return f"{learner.n_components_} atoms, as named"
    order = np.argsort(path.n_components)
    n, score = path.n_components[order], path.score[order]
    at = int(np.searchsorted(n, learner.n_components_).clip(0, len(n) - 1))
    # of the many sizes of the path that may have been tried
    far = np.unique(np.geomspace(at + 1, len(n), 4).astype(int) - 1)
    tried = ", ".join(f"{n[i]} explain {score[i]:.3f}" for i in far)
    return f"{learner.n_components_} atoms, chosen by hidden entries: {tried}"


def _baseline(learner):
    baseline = getattr(learner, "baseline_", learner.intercept_)
    if not np.any(baseline):
        return "baseline: none"
    root = np.sqrt(np.mean(np.square(baseline)))
    return f"baseline: root mean square {root:.3g}, in intercept_"


def _outliers(learner):
    outliers = getattr(learner, "outliers_", None)
    if outliers is None:
        return "outliers: none"
    rows = int((outliers.sum(axis=1) > 0).sum())
    return f"outliers: {outliers.nnz} entries of {rows} rows did not count"


def _noise(learner):
    noise = getattr(learner, "noise_std_", None)
    if noise is None:
        return "noise: not estimated, since the penalty is named or codes are of no lasso"
    if np.ndim(noise) == 0:
        return f"noise: standard deviation {noise:.3g}"
    return f"noise: standard deviations of features from {np.min(noise):.3g} to {np.max(noise):.3g}"


def _penalties(learner):
    said = f"penalty of codes: {learner.alpha_:.3g}, {learner.debias_:.0%} of its bias removed"
    alpha = getattr(learner, "search_alpha_", None)
    return said if alpha is None else f"penalty of the search: {alpha:.3g}; {said}"


def _prediction(learner):
    path = getattr(learner, "penalty_path_", None)
    if path is None:
        return "hidden entries: none were predicted"
    best = np.argmax(path.score)
    said = f"hidden entries: {path.score[best]:.3f} of their energy is predicted"
    if path.score[best] <= path.tolerance[best]:
        return f"{said}: these atoms explain nothing that columns share"
    # as the least loss that counts when the number of atoms is chosen
    near = (path.score > path.score[best] - 0.001) & (path.alpha != learner.search_alpha_)
    if near.any():
        alphas = " or ".join(f"{alpha:.3g}" for alpha in np.unique(path.alpha[near]))
        said += f", as well with a search at {alphas}"
    return said


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
    name, n_rows = type(learner).__name__, learner.n_samples_seen_
    lines = [f"{name}: {n_rows} rows of {learner.n_features_in_} features"]
    lines += [say(learner) for say in (_size, _baseline, _outliers, _noise, _penalties)]
    lines.append(_prediction(learner))
    if X is not None:
        lines.append(_codes(learner, X))
    if hasattr(learner, "fit_seconds_"):  # absent after partial_fit
        phases = ", ".join(f"{name} {n}" for name, n in learner.phases_.items())
        seconds = learner.fit_seconds_["fit"]
        lines.append(f"ended by {learner.ended_by_} in {seconds:.1f} s; epochs: {phases or 'none'}")
    return "\n  ".join(lines)
