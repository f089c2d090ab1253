"""Texts of ``learner.summary()``: what a fit has decided, and how clear its decisions were."""

import numpy as np

from skpudle._data.arrays import check_rows, host_array, to_tensor
from skpudle._data.sources import open_source
from skpudle._fit.encoders import baseline_of


def _count(n, noun):  # -> str
    """Return a number with its noun, such as "1 atom" or "2 atoms"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _tried(path, chosen):
    """Return text: the score of the chosen number of atoms, and of up to three larger numbers.

    ``path`` is ``size_path_``, the numbers tried (``n_components``) and their ``score``, and
    ``chosen`` is the number of atoms. The score is the fraction of hidden entries' variance that is
    explained: the text shows whether more atoms explain more.
    """
    order = np.argsort(path.n_components)
    n = path.n_components[order]
    score = path.score[order]
    first = int(np.searchsorted(n, chosen).clip(0, len(n) - 1))
    # The path may be long, so at most four numbers are shown: from the chosen number to the
    # largest, at positions in the sorted path that grow by equal factors.
    indices = np.unique(np.geomspace(first + 1, len(n), 4).astype(int) - 1)
    return ", ".join(f"{n[i]} explain {score[i]:.3f}" for i in indices)


def _prediction(path):
    """Return text: how well hidden entries are predicted, and which penalties predict as well.

    ``path`` is ``penalty_path_``: for each penalty ``alpha`` of the search the ``score``, the
    fraction of the energy of hidden entries that is predicted, and its ``tolerance``, two standard
    errors.
    """
    best = np.argmax(path.score)
    said = f"{path.score[best]:.3f} of their energy is predicted"
    if path.score[best] <= path.tolerance[best]:
        return f"{said}: these atoms explain nothing that columns share"
    # A score that is lower by up to 0.001 counts as equal: differences below 0.001 decide nothing,
    # as in the choice of the number of atoms.
    equal = path.alpha[path.score > path.score[best] - 0.001]
    if equal.min() == equal.max():
        return said
    return f"{said}, by penalties of the search from {equal.min():.3g} to {equal.max():.3g}"


def _codes(learner, X, loss):
    """Return text: how well codes explain the rows ``X``, and how many codes a row has on average.

    ``loss``, an object of `skpudle._losses`, decides what is explained: variance, or deviance.
    """
    codes = host_array(learner.transform(X))
    x = host_array(check_rows(open_source(X).array(), allow_nan=True))

    def deviance(rates):
        rates = to_tensor(np.broadcast_to(rates, x.shape))
        return float(loss.half_deviance(rates, to_tensor(x)).nansum())

    total = deviance(np.nanmean(x, axis=0))
    left = deviance(host_array(learner.inverse_transform(codes)))
    what = "R^2" if loss.is_quadratic else "explained deviance"
    n_codes = (codes != 0).sum(1).mean()
    n_constant = int((np.fmax.reduce(x, axis=1) == np.fmin.reduce(x, axis=1)).sum())
    said = f"rows: {what} {1 - left / total:.3f} by {n_codes:.1f} codes a row"
    return f"{said}; {n_constant} rows are zero or constant" if n_constant else said


def _of_rows(learner):  # -> list of str
    """Return the lines of learners of rows about baseline, outliers, noise and penalties."""
    baseline = baseline_of(learner)
    # With ``coef_`` a learner has a linear model, whose intercept has the name ``intercept_``.
    name = "baseline_" if hasattr(learner, "coef_") else "intercept_"
    level = "none"
    if baseline is not None and baseline.any():
        level = (
            f"root mean square {np.sqrt(np.mean(np.square(baseline))):.3g}, in {name}"
        )
    unusual = "none"
    outliers = learner.outliers_
    if outliers is not None:
        n_rows = np.count_nonzero(outliers.sum(axis=1))
        unusual = f"{outliers.nnz} entries of {n_rows} rows did not count"
    deviation = "not estimated: that takes fit, alpha='auto' and codes of the lasso"
    noise = learner.noise_std_
    if noise is not None:
        largest = f" to {np.max(noise):.3g}, by the feature" if np.ndim(noise) else ""
        deviation = f"standard deviation {np.min(noise):.3g}{largest}"
    return [f"baseline: {level}", f"outliers: {unusual}", f"noise: {deviation}"]


def _penalties(learner):  # -> list of str
    """Return the lines about penalties and predicted hidden entries, for learners with a search.

    A penalty is missing after `from_components` for codes that need none.
    """
    said = "no penalty of codes"
    if learner.alpha_ is not None:
        said = f"penalty of codes: {learner.alpha_:.3g}, {learner.debias_:.0%} of its bias removed"
    if learner.search_alpha_ is not None:
        said = f"penalty of the search: {learner.search_alpha_:.3g}; {said}"
    path = learner.penalty_path_
    hidden = "none were predicted" if path is None else _prediction(path)
    lines = [said, f"hidden entries: {hidden}"]
    factors = learner.factor_score_
    if factors is not None and factors.is_better:
        lines.append(
            f"factor analysis with {_count(factors.n_factors, 'factor')} predicts "
            f"{factors.score:.3f} of it, these atoms {factors.atoms_score:.3f}: for rows that use "
            "most factors, such as answers, see sklearn.decomposition.FactorAnalysis"
        )
    return lines


def _of_added_counts(learner):  # -> list of str
    """Return the lines of `PoissonNMF` about prior, dispersion and gain, and what chose them."""

    def chooser(name):
        return (
            "chosen by the counts" if getattr(learner, name) == "auto" else "set by you"
        )

    return [
        f"prior: {learner.alpha_:.3g} pseudo-events a feature, {chooser('alpha')}",
        f"dispersion: {learner.dispersion_:.3g} beyond Poisson's, {chooser('dispersion')}",
        f"gain of an atom in a row: {learner.min_gain_:.3g} nats, {chooser('min_gain')}",
    ]


def _end(learner):  # -> str
    """Return text: what ended the fit, its seconds, and the epochs of its phases."""
    epochs = ", ".join(f"{name} {n}" for name, n in learner.phases_.items()) or "none"
    seconds = learner.fit_seconds_["fit"]
    return f"ended by {learner.ended_by_} in {seconds:.1f} s; epochs: {epochs}"


def _decisions(learner):  # -> list of str
    """Return what a learner decides beside its atoms, a line for each subject.

    Fitted attributes tell the kind of the learner: ``dispersion_`` that of `PoissonNMF`, ``loss``
    that of counts, and ``coef_`` classifiers and regressors.
    """
    if hasattr(learner, "dispersion_"):
        return _of_added_counts(learner)
    if not hasattr(learner, "debias_"):  # SPORCO's learner, with the lasso's codes
        return [f"penalty of codes: {learner.alpha_:.3g}"]
    lines = [] if hasattr(learner, "loss") else _of_rows(learner)
    if hasattr(learner, "coef_"):
        n_outputs = len(np.atleast_2d(learner.coef_))
        n_decided = len(learner.classes_) if hasattr(learner, "classes_") else n_outputs
        what = "classes" if hasattr(learner, "classes_") else "targets"
        lines.append(
            f"decisions: {n_decided} {what}, by {np.shape(learner.coef_)[-1]} codes"
        )
    return lines + _penalties(learner)


def describe_fit(learner, X, loss):  # -> str
    """Return the text of ``summary`` of learners of rows and counts.

    ``X`` are rows to reconstruct, or None, and ``loss`` is an object of `skpudle._losses`.
    """
    path = getattr(learner, "size_path_", None)
    n_atoms = learner.n_components_
    size = "set by you"
    if path is not None:
        size = f"chosen by hidden entries: {_tried(path, n_atoms)}"
    n_rows = getattr(learner, "n_samples_seen_", None)
    name = type(learner).__name__
    n_features = learner.n_features_in_
    lines = [
        f"{name}: {'no' if n_rows is None else n_rows} rows of {n_features} features",
        f"{_count(n_atoms, 'atom')}, {size}",
        *_decisions(learner),
    ]
    if X is not None:
        lines.append(_codes(learner, X, loss))
    seconds = getattr(learner, "fit_seconds_", None)
    if seconds is not None:  # `partial_fit` has no seconds, and no end
        lines.append(_end(learner))
    return "\n  ".join(lines)


def _size_of(kernel):  # sequence of int -> str
    """Return the size of an atom of images in words: "9 x 9", or "25 samples" of a signal."""
    return f"{kernel[0]} samples" if len(kernel) == 1 else " x ".join(map(str, kernel))


def describe_images(learner, explained=None):  # -> str
    """Return the text of `ConvPUDLEDictionaryLearning.summary`.

    ``explained`` is None, or a pair: the fraction of the energy of images around their baseline
    that codes explain, and the mean number of nonzero codes of an image.
    """
    kernel = np.ravel(learner.atom_shape)
    atoms = f"{_count(learner.n_components_, 'atom')} of {_size_of(kernel)}"
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
        one = ("a signal", "an image", "a volume")[len(kernel) - 1]
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
    noise = learner.training_noise_std_
    if noise == "poisson":
        noise = "photon counts"
    elif isinstance(noise, tuple):
        noise = f"standard deviations from {noise[0]:.3g} to {noise[1]:.3g}"
    else:
        noise = f"standard deviation {noise:.3g}"
    lines = [
        f"{type(learner).__name__}: {_count(n_components, 'atom')} of {_size_of(kernel)} and "
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
