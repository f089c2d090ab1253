"""Texts of ``learner.summary()``: what a fit has decided, and how clear its decisions were."""

import numpy as np

from skpudle._data.arrays import check_rows, host_array, to_tensor
from skpudle._data.sources import open_source
from skpudle._losses import LEAST_SQUARES


def _count(n, noun):  # -> str
    """Return a number with its noun, such as "1 atom" or "2 atoms"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


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


def _end(learner):  # -> str
    """Return text: what ended the fit, its seconds, and the epochs of its phases."""
    epochs = ", ".join(f"{name} {n}" for name, n in learner.phases_.items()) or "none"
    seconds = learner.fit_seconds_["fit"]
    return f"ended by {learner.ended_by_} in {seconds:.1f} s; epochs: {epochs}"


def describe_fit(learner, X=None, loss=LEAST_SQUARES):  # -> str
    """Return the text of `PUDLEDictionaryLearning.summary` and `PoissonNMF.summary`.

    ``X`` are rows to reconstruct, or None, and ``loss`` is an object of `skpudle._losses`.
    """
    size, seconds = (vars(learner).get(name) for name in ("size_path_", "fit_seconds_"))
    n_rows = vars(learner).get("n_samples_seen_") or "no"
    n = learner.n_components_
    sizes = "as named"
    if size is not None:
        sizes = f"chosen by hidden entries: {_tried(size, n)}"
    lines = [
        f"{type(learner).__name__}: {n_rows} rows of {learner.n_features_in_} features",
        f"{_count(n, 'atom')}, {sizes}",
        *(_of_rows if loss.is_quadratic else _of_counts)(learner),
    ]
    if X is not None:
        lines.append(_codes(learner, X, loss))
    if seconds is not None:  # `partial_fit` has no seconds, and no end
        lines.append(_end(learner))
    return "\n  ".join(lines)


def describe_images(learner, explained=None):  # -> str
    """Return the text of `ConvPUDLEDictionaryLearning.summary`.

    ``explained`` is None, or a pair: the fraction of the energy of images around their baseline
    that codes explain, and the mean number of nonzero codes of an image.
    """
    kernel = np.ravel(learner.atom_shape)
    size = f"{kernel[0]} samples" if len(kernel) == 1 else f"{kernel[0]} x {kernel[1]}"
    atoms = f"{_count(learner.n_components_, 'atom')} of {size}"
    if learner.size_path_ is not None:
        tried = _tried(learner.size_path_, learner.n_components_)
        atoms = f"{atoms}, chosen by hidden pixels: {tried}"
    baseline = np.array2string(learner.intercept_, precision=3, threshold=9)
    drift = "kept" if learner.detrend_ is None else "slower than two atoms, subtracted"
    noise = "not estimated"
    if learner.noise_std_ is not None and not np.isnan(learner.noise_std_):
        noise = f"{learner.noise_std_:.3g}"
    lines = [
        f"{type(learner).__name__}: {atoms}",
        f"baseline of channels: {baseline}; drift: {drift}",
        f"standard deviation of the noise: {noise}",
        f"penalty of the search: {learner.search_alpha_:.3g}; of codes: {learner.alpha_:.3g}, with "
        f"{learner.debias_:.0%} of its bias removed",
    ]
    if explained is not None:
        fraction, n_codes = explained
        one = "a signal" if len(kernel) == 1 else "an image"
        lines.append(
            f"{fraction:.3f} of the energy around the baseline by {n_codes:.1f} codes {one}"
        )
    if learner.fit_seconds_ is not None:  # it is None while callbacks still run
        lines.append(_end(learner))
    return "\n  ".join(lines)


def describe_denoiser(learner, decibels=None):  # -> str
    """Return the text of `ConvDenoiser.summary`.

    ``decibels`` is None, or the peak signal-to-noise ratio of denoised images.
    """
    n_unfoldings, n_components, n_channels, *kernel = learner.network_.analysis.shape
    size = f"{kernel[0]} samples" if len(kernel) == 1 else f"{kernel[0]} x {kernel[1]}"
    noise = learner.training_noise_std_
    if noise == "poisson":
        noise = "photon counts"
    elif isinstance(noise, tuple):
        noise = f"standard deviations from {noise[0]:.3g} to {noise[1]:.3g}"
    else:
        noise = f"standard deviation {noise:.3g}"
    lines = [
        f"{type(learner).__name__}: {_count(n_components, 'atom')} of {size} and "
        f"{_count(n_channels, 'channel')}, {_count(n_unfoldings, 'unfolding')}",
        f"noise of training: {noise}",
    ]
    if decibels is not None:
        lines.append(f"peak signal-to-noise ratio: {decibels:.2f} dB")
    if len(learner.loss_curve_):
        end = "" if learner.ended_by_ is None else f", ended by {learner.ended_by_}"
        epochs = _count(len(learner.loss_curve_), "epoch")
        lines.append(f"{epochs} of {_count(learner.n_steps_, 'update')} in all{end}")
    return "\n  ".join(lines)
