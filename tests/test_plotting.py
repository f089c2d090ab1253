"""Displays: what is drawn is what the arrays say."""

import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, PowerTransformer, StandardScaler

from skpudle import ConvPUDLEDictionaryLearning, PUDLEDictionaryLearning
from skpudle._estimators import find_learner
from skpudle.datasets import make_dictionary_data
from skpudle.inspection import atom_contributions
from skpudle.inspection._intervals import AtomIntervals
from skpudle.metrics import atom_coherence
from skpudle.plotting import (
    ActivationsDisplay,
    AtomsDisplay,
    CodesDisplay,
    ContributionsDisplay,
    LossCurveDisplay,
    PathDisplay,
    RecoveryDisplay,
    StabilityDisplay,
)

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def X():
    return make_dictionary_data(60, 12, 9, 2, random_state=0)[0]


@pytest.fixture(scope="module")
def learner(X):
    options = dict(n_unfoldings=20, max_iter=3, tol=None, random_state=0)
    return PUDLEDictionaryLearning(9, **options).fit(X)


# ---------------------------------------------------------------------------- atoms


def cells(grid, height, width):
    """Cut a grid into its images, without the lines between them."""
    rows = range(0, grid.shape[0], height + 1)
    columns = range(0, grid.shape[1], width + 1)
    return [grid[i : i + height, j : j + width] for i in rows for j in columns]


def test_every_atom_is_drawn_scaled_to_its_largest_modulus(learner):
    display = AtomsDisplay.from_estimator(learner, image_shape=(3, 4))
    drawn = cells(np.asarray(display.image_.get_array()), 3, 4)
    assert len(drawn) == 9
    for atom, image in zip(learner.components_, drawn):
        np.testing.assert_allclose(image.ravel(), atom / np.abs(atom).max(), rtol=1e-12)


def test_colours_are_kept_and_zero_is_grey():
    atoms = np.random.default_rng(0).normal(size=(4, 5 * 6 * 3))
    display = AtomsDisplay.from_estimator(atoms, image_shape=(5, 6, 3))
    drawn = cells(np.asarray(display.image_.get_array()), 5, 6)
    expected = 0.5 + 0.5 * atoms / np.abs(atoms).max(axis=1, keepdims=True)
    np.testing.assert_allclose(drawn[2].ravel(), expected[2], rtol=1e-12)


@pytest.mark.parametrize("n_channels", [0, 2, 3])
def test_convolutional_atoms_and_codes_are_drawn(n_channels):
    """Two channels stand side by side."""
    shape = (6, 16, 20, n_channels)[: 3 + (n_channels > 0)]
    pictures = np.random.default_rng(0).normal(size=shape)
    options = dict(atom_shape=(4, 5), stride=3, random_state=0)
    learner = ConvPUDLEDictionaryLearning(7, **options).fit(pictures)
    atoms = learner.components_
    atoms = np.concatenate(np.moveaxis(atoms, 3, 0), 2) if n_channels == 2 else atoms
    np.testing.assert_array_equal(AtomsDisplay.from_estimator(learner).atoms, atoms)
    maps = learner.transform(pictures)  # one code for each position
    usage = (maps != 0).sum(axis=(1, 2)).mean(axis=0)  # copies in an image
    for samples in (pictures, list(pictures)):
        display = CodesDisplay.from_estimator(learner, samples)
        np.testing.assert_allclose(display.heights_, np.sort(usage)[::-1])
        display.plot(kind="count")
        assert display.heights_.sum() == len(pictures)
    first = AtomsDisplay.from_estimator(learner, pictures).atoms[0]
    np.testing.assert_array_equal(first, atoms[usage.argmax()])


# ---------------------------------------------------------------------------- lines


def pieces(line):  # -> abscissae and ordinates of each atom, (n_atoms, length)
    """Cut a line at its gaps, of which there is one after each atom."""
    x, y = line.get_data()
    length = np.flatnonzero(np.isnan(x))[0]
    return (values.reshape(-1, length + 1)[:, :-1] for values in (x, y))


def test_rows_are_lines_unless_a_shape_is_given(learner):
    """Also 64 samples of a signal, which would make a square of 8 x 8."""
    assert AtomsDisplay.from_estimator(learner).kind == "lines"
    assert AtomsDisplay.from_estimator(np.eye(64)).atoms.shape == (64, 64, 1)
    assert AtomsDisplay.from_estimator(np.eye(64), image_shape=(8, 8)).kind == "images"
    assert AtomsDisplay.from_estimator(np.eye(64), image_shape=(64,)).kind == "lines"


def test_every_line_is_scaled_to_its_largest_modulus_in_its_cell(learner):
    display = AtomsDisplay.from_estimator(learner, n_columns=2)
    x, y = pieces(display.lines_[0])
    for i, atom in enumerate(learner.components_):
        np.testing.assert_allclose(x[i], i % 2 + np.linspace(0.05, 0.95, 12))
        np.testing.assert_allclose(
            y[i], i // 2 + 0.5 - 0.45 * atom / np.abs(atom).max()
        )
    assert display.ax_.get_xlim() == (0, 2)
    assert display.ax_.get_ylim() == (5, 0)


def test_ticks_below_lines_say_how_long_they_are():
    display = AtomsDisplay.from_estimator(np.eye(31), sampling_rate=20.0)
    assert [text.get_text() for text in display.ax_.get_xticklabels()] == ["0", "1.5 s"]
    x, _ = pieces(display.lines_[0])
    np.testing.assert_allclose(display.ax_.get_xticks(), x[0, [0, -1]])


def test_channels_are_lines_on_one_scale():
    atoms = np.random.default_rng(0).normal(size=(3, 7, 2))
    for display in (
        AtomsDisplay.from_estimator(atoms, kind="lines"),
        AtomsDisplay.from_estimator(
            atoms.reshape(3, 14), kind="lines", image_shape=(7, 2)
        ),
    ):
        texts = display.ax_.get_legend().get_texts()
        assert [text.get_text() for text in texts] == ["channel 0", "channel 1"]
        drawn = np.stack([list(pieces(line))[1] for line in display.lines_], axis=2)
        rows = np.array([0, 0, 1])[:, None, None]  # in two columns
        scaled = (rows + 0.5 - drawn) / 0.45
        np.testing.assert_allclose(
            scaled, atoms / np.abs(atoms).max(axis=(1, 2), keepdims=True)
        )


@pytest.mark.parametrize(
    ("atoms", "options", "message"),
    [
        (np.eye(6), dict(image_shape=(2, 2)), "6 features, .* has 4"),
        (
            np.eye(6),
            dict(n_columns=4, row_labels=["a"]),
            r"locations \(2\).* of labels \(1\)",
        ),
        (np.eye(2), dict(kind="spectra", groups=["A"]), "zip"),
        (
            np.eye(4).reshape(1, 4, 4),
            dict(kind="waveforms"),
            "not maps times waveforms.*rank=1",
        ),
    ],
)
def test_what_does_not_fit_the_atoms_is_refused(atoms, options, message):
    with pytest.raises((AttributeError, ValueError), match=message):
        AtomsDisplay.from_estimator(atoms, **options)


def test_what_no_display_has_is_refused(learner, X):
    """A kind, which lists all kinds; numbers without a meaning; what another input would need."""
    kind, atoms, activity = (
        dict(kind="curves"),
        AtomsDisplay.from_estimator,
        np.zeros((4, 1)),
    )
    activations = ActivationsDisplay(activity, *np.zeros((3, 0)), activity).plot
    for draw, wrong, words in [
        (
            partial(atoms, learner),
            kind,
            "auto, images, lines, bars, spectra, waveforms",
        ),
        (
            partial(CodesDisplay.from_estimator, learner, X),
            kind,
            "usage, count, magnitude",
        ),
        (partial(PathDisplay.from_estimator, learner), kind, "size, penalty"),
        (activations, dict(sampling_rate=0), "sampling_rate=0 is not a rate"),
        (
            partial(atoms, np.eye(3)),
            dict(sampling_rate=-1),
            "sampling_rate=-1 is not a rate",
        ),
        (
            partial(atoms, np.ones((1, 4, 2)), kind="waveforms"),
            dict(sampling_rate=0),
            "=0 is not",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            draw(**wrong)


# ---------------------------------------------------------------------------- bars


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_atoms_of_a_table_are_bars_with_names(X, positive, scaled):
    """The largest entry is up, unless codes are positive, and so have signs of their own."""
    names = [f"item {k}" for k in range(12)]
    learner = PUDLEDictionaryLearning(4, positive_code=positive, random_state=0)
    if scaled:
        learner = make_pipeline(StandardScaler(), learner)
    frame = pd.DataFrame(X, columns=names)
    display = AtomsDisplay.from_estimator(learner.fit(frame))
    assert display.kind == "bars"
    labels = [text.get_text() for text in display.ax_.get_xticklabels()]
    assert labels == names
    heights = np.array([bar.get_height() for bar in display.bars_]).reshape(4, 12)
    atoms = find_learner(learner).atoms()
    largest = np.abs(atoms).max(axis=1, keepdims=True)
    if not positive:
        atoms = atoms * np.sign(atoms[np.arange(4), np.abs(atoms).argmax(1)])[:, None]
    np.testing.assert_allclose(heights, 0.45 * atoms / largest, atol=1e-12)
    lines = AtomsDisplay.from_estimator(learner, kind="lines")
    assert lines.kind == "lines"


def test_atoms_of_one_channel_have_no_map():
    atoms = np.random.default_rng(0).normal(size=(3, 9, 1))
    display = AtomsDisplay.from_estimator(atoms, kind="waveforms")
    assert display.maps_ == []
    assert display.axes_.shape == (3, 1)
    for line, atom in zip(display.lines_, atoms):
        np.testing.assert_array_equal(line.get_ydata(), atom[:, 0])


# ---------------------------------------------------------------------------- pipelines


SMALL = PUDLEDictionaryLearning(
    5, n_unfoldings=10, max_iter=1, tol=None, dict_init="data", random_state=0
)


def test_atoms_of_a_pipeline_are_those_of_its_data(X):
    """They make of codes what the pipeline does, but for what it makes of none."""
    pipeline = make_pipeline(
        StandardScaler(), "passthrough", PCA(7, whiten=True), clone(SMALL)
    )
    codes = pipeline.fit_transform(3 * X + 1)
    atoms = AtomsDisplay.from_estimator(pipeline).atoms[:, :, 0]
    nothing = pipeline.inverse_transform(np.zeros_like(codes))
    np.testing.assert_allclose(
        nothing + codes @ atoms, pipeline.inverse_transform(codes)
    )
    recovery = RecoveryDisplay.from_estimator(pipeline, -atoms[::-1])
    np.testing.assert_allclose(np.diag(recovery.coherences), 1)


# no way back, one that is refused, and one that is not affine
@pytest.mark.parametrize("step", [Normalizer(), SimpleImputer(), PowerTransformer()])
def test_steps_without_an_affine_way_back_leave_atoms_as_they_are(step, X):
    pipeline = make_pipeline(step, clone(SMALL)).fit(X)
    atoms = AtomsDisplay.from_estimator(pipeline).atoms[:, :, 0]
    np.testing.assert_array_equal(atoms, pipeline[-1].components_)


GRID = {"alpha": [0.1, 0.2]}
PLACES = {
    "search in a pipeline": lambda learner: make_pipeline(
        StandardScaler(with_std=False), GridSearchCV(learner, GRID, cv=2)
    ),
    "before a classifier": lambda learner: make_pipeline(
        make_pipeline(StandardScaler(with_std=False), learner), LogisticRegression()
    ),
    "frozen": lambda learner: FrozenEstimator(
        learner.fit(np.random.default_rng(0).random((9, 12)))
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_displays_look_into_pipelines_and_searches(place, X):
    """Data that are centred already, so that the learner sees the same in all places."""
    X = X - X.mean(0)
    fitted = PLACES[place](clone(SMALL)).fit(X, np.arange(len(X)) % 2)
    found = find_learner(fitted).learner
    atoms = AtomsDisplay.from_estimator(fitted, X).atoms
    np.testing.assert_allclose(atoms, AtomsDisplay.from_estimator(found, X).atoms)
    usage = CodesDisplay.from_estimator(fitted, X).heights_
    np.testing.assert_allclose(usage, CodesDisplay.from_estimator(found, X).heights_)
    curve = LossCurveDisplay.from_estimator(fitted).lines_[0].get_ydata()
    np.testing.assert_array_equal(curve, found.loss_curve_)
    display = ContributionsDisplay.from_estimator(fitted, X)
    expected = ContributionsDisplay.from_estimator(found, X)
    np.testing.assert_allclose(display.pictures, expected.pictures, atol=1e-12)


def test_what_has_no_learner_is_refused(X):
    search = GridSearchCV(clone(SMALL), GRID, cv=2, refit=False)
    with pytest.raises(NotFittedError, match="GridSearchCV instance is not fitted"):
        AtomsDisplay.from_estimator(search)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    with pytest.raises(
        NotFittedError, match=r"No step of the pipeline has components_"
    ):
        AtomsDisplay.from_estimator(pipeline.fit(X, np.arange(len(X)) % 2))


# ---------------------------------------------------------------------------- curves


def test_loss_curves_are_those_of_the_learners(learner):
    display = LossCurveDisplay.from_estimator({"a": learner, "b": learner})
    assert [line.get_label() for line in display.lines_] == ["a", "b"]
    n, curve = learner.phases_["search"], learner.loss_curve_
    expected = np.concatenate([np.minimum.accumulate(curve[:n]), curve[n:]])
    np.testing.assert_array_equal(display.lines_[1].get_ydata(), expected)
    epochs = np.arange(1, 1 + learner.n_iter_)
    np.testing.assert_array_equal(display.lines_[1].get_xdata(), epochs)
    single = LossCurveDisplay.from_estimator(learner)
    assert single.lines_[0].get_label() == "PUDLEDictionaryLearning"


@pytest.mark.parametrize("kind", ["size", "penalty"])
def test_a_path_has_what_was_tried_its_tolerance_and_the_choice(kind, X):
    learner = PUDLEDictionaryLearning("auto", random_state=0).fit(X)
    display, path = PathDisplay.from_estimator(learner, kind=kind), learner.size_path_
    x, y, chosen = (
        path.n_components,
        path.score.max() - path.score,
        learner.n_components_,
    )
    if kind == "size":
        (band,) = display.band_.get_paths()
        assert band.vertices[:, 1].max() == path.tolerance.max()
    else:
        path, chosen = learner.penalty_path_, learner.search_alpha_
        x, y = path.alpha, path.score
        assert display.unbiased_line_.get_xdata().size == path.unbiased.sum()
    np.testing.assert_array_equal(display.line_.get_xydata().T, [x, y])
    assert set(display.chosen_line_.get_xdata()) == {chosen}


# ---------------------------------------------------------------------------- recovery


@pytest.mark.parametrize("n_reference", [5, 9, 11])
def test_matched_atoms_are_on_the_diagonal(n_reference, learner):
    reference = np.random.default_rng(0).normal(size=(n_reference, 12))
    display = RecoveryDisplay.from_estimator(learner, reference)
    matrix = np.asarray(display.image_.get_array())
    assert matrix.shape == (n_reference, 9)
    expected = np.sort(atom_coherence(learner.components_, reference))[
        -min(9, n_reference) :
    ]
    np.testing.assert_allclose(np.sort(np.diag(matrix)), expected, rtol=1e-12)


# ---------------------------------------------------------------------------- matplotlib


def test_every_display_draws_on_given_axes(learner, X):
    draw = [
        lambda ax: AtomsDisplay.from_estimator(learner, image_shape=(3, 4), ax=ax),
        lambda ax: AtomsDisplay.from_estimator(learner, ax=ax),
        lambda ax: CodesDisplay.from_estimator(learner, X, ax=ax),
        lambda ax: LossCurveDisplay.from_estimator(learner, ax=ax),
        lambda ax: RecoveryDisplay.from_estimator(learner, learner.components_, ax=ax),
    ]
    figure, axes = plt.subplots(1, len(draw))
    for make, ax in zip(draw, axes, strict=True):
        display = make(ax)
        assert display.ax_ is ax
        assert display.figure_ is figure
        assert display.plot() is display  # again, on axes of its own
        assert display.ax_ is not ax


def test_without_matplotlib_the_error_names_the_extra(learner, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"skpudle\[plot\]"):
        LossCurveDisplay.from_estimator(learner)


# ---------------------------------------------------------------------------- contributions


def test_contributions_show_what_makes_an_atom(learner, X):
    """The six atoms that most samples use."""
    display = ContributionsDisplay.from_estimator(learner, X, image_shape=(3, 4))
    found, uses = (
        atom_contributions(learner, X),
        np.count_nonzero(learner.transform(X), axis=0),
    )
    shown = np.argsort(-uses, kind="stable")[:6]
    drawn = cells(np.asarray(display.grid_.image_.get_array()), 3, 4)
    assert len(drawn) == 6 * 8
    atom = shown[0]
    first = X[found.indices[atom, 0]] * np.sign(found.values[atom, 0])
    for image, row in zip(
        drawn, [learner.components_[atom], found.estimates[atom], first]
    ):
        np.testing.assert_allclose(image.ravel(), row / np.abs(row).max())
    assert display.ax_.texts[0].get_text() == f"{found.values[atom, 0]:+.2g}"
    labels = display.ax_.get_xticklabels(), display.ax_.get_yticklabels()
    names = [[text.get_text() for text in of_axis] for of_axis in labels]
    assert names == [["target", "estimate", *"123456"], [f"atom {k}" for k in shown]]


def test_contributions_to_a_reconstruction_stand_beside_the_sample(learner, X):
    display = ContributionsDisplay.from_estimator(learner, X, X[:2], image_shape=(3, 4))
    assert [text.get_text() for text in display.ax_.get_yticklabels()] == [
        "sample 0",
        "sample 1",
    ]
    drawn = cells(np.asarray(display.grid_.image_.get_array()), 3, 4)
    np.testing.assert_allclose(drawn[0].ravel(), X[0] / np.abs(X[0]).max())
    colours = ContributionsDisplay.from_estimator(
        learner, X, X[:2], image_shape=(2, 2, 3)
    )
    drawn = cells(np.asarray(colours.grid_.image_.get_array()), 2, 2)
    np.testing.assert_allclose(drawn[0].ravel(), 0.5 + 0.5 * X[0] / np.abs(X[0]).max())


def test_scores_or_numbers_of_stable_atoms_are_drawn_against_the_size_too(learner):
    atoms = learner.components_
    fits = [[atoms, -atoms], [atoms[:4], atoms[:4]]]
    for scores, expected in [([0.9, 0.7], [0.7, 0.9]), (None, [4, 9])]:
        display = StabilityDisplay.from_estimator(fits, scores=scores)
        np.testing.assert_array_equal(display.right_line_.get_xdata(), [4, 9])
        np.testing.assert_array_equal(display.right_line_.get_ydata(), expected)
        np.testing.assert_allclose(display.line_.get_ydata(), 1)
        assert display.right_line_.axes is display.right_ax_
    with pytest.raises(ValueError, match="zip.. argument 2 is shorter"):
        StabilityDisplay.from_estimator(fits, scores=[0.9])


# ---------------------------------------------------------------------------- activations


@pytest.mark.parametrize("size", [(60,), (1, 30)], ids=["signal", "row"])
def test_atoms_at_their_places_are_the_reconstruction(size):
    X = np.random.default_rng(0).normal(size=(3, *size))
    learner = ConvPUDLEDictionaryLearning(
        3, atom_shape=5, stride=1, alpha=0.5, random_state=0
    )
    given = X.reshape(3, -1) if size[0] == 1 else list(X)
    learner.fit(given)
    expected = np.asarray(
        learner.inverse_transform(learner.transform(given))[1]
    ).ravel()
    display = ActivationsDisplay.from_estimator(learner, given, index=-2)
    atoms, total = learner.components_, np.zeros(size[-1])
    for place, atom, value in zip(display.places, display.atoms, display.values):
        start = place - np.abs(atoms[atom]).argmax()
        total[start : start + 5] += value * atoms[atom]
    np.testing.assert_allclose(total, expected, atol=1e-6)
    assert len(display.marks_) == len(np.unique(display.atoms))
    fewer = ActivationsDisplay.from_estimator(learner, given, index=1, n_atoms=1)
    (strongest,) = np.unique(fewer.atoms)
    sums = [np.abs(display.values[display.atoms == k]).sum() for k in range(3)]
    assert strongest == np.argmax(sums)


def test_bars_are_as_high_as_codes_at_peaks():
    waves = np.array([[0, 1, 0, -3, 0], [-2, 0, 0, 0, 1.0]])
    copies = np.array([6, 8]), np.array([0, 1]), np.array([2.0, -1.0])
    display = ActivationsDisplay(np.ones((24, 1)), *copies, waves).plot()
    (first, second) = (bars.get_segments()[0] for bars in display.marks_)
    np.testing.assert_allclose(first, [[6, -1], [6, -1 + 0.45]])
    np.testing.assert_allclose(second, [[8, -2], [8, -2 - 0.225]])
    for row, (thumbnail, wave) in enumerate(zip(display.thumbnails_, waves), start=1):
        (line,) = thumbnail
        np.testing.assert_allclose(
            line.get_ydata(), 0.45 * wave / np.abs(wave).max() - row
        )
        assert min(line.get_xdata()) > 1  # beside the axes
    display.plot(sampling_rate=20)
    np.testing.assert_allclose(display.marks_[0].get_segments()[0][:, 0], 6 / 20)
    assert display.ax_.get_xlim() == (0, 23 / 20)
    assert display.ax_.get_xlabel() == "Seconds"


@pytest.mark.parametrize("one", [False, True])
def test_activations_of_signals_with_channels_first(one):
    """The default stride of signals is one sample; one recording is its only signal."""
    signals = np.random.default_rng(0).normal(size=(2, 3, 60))
    options = dict(atom_shape=5, rank=1, channels_first=True, random_state=0)
    learner = ConvPUDLEDictionaryLearning(2, **options).fit(signals)
    given = signals[1] if one else signals
    display = ActivationsDisplay.from_estimator(learner, given, index=0 if one else 1)
    np.testing.assert_array_equal(display.sample, signals[1].T)
    assert {len(lines) for lines in display.thumbnails_} == {3}
    codes = learner.transform(signals)[1]
    assert len(display.values) == np.count_nonzero(codes)
    positions, atoms = np.nonzero(codes)
    peaks = np.square(learner.components_).sum(axis=2).argmax(axis=1)
    np.testing.assert_array_equal(display.places, positions + peaks[atoms])


def test_maps_are_bars_or_topographies_beside_their_waveforms():
    signals = np.random.default_rng(0).normal(size=(3, 60, 4))
    learner = ConvPUDLEDictionaryLearning(3, atom_shape=5, rank=1, random_state=0).fit(
        signals
    )
    maps, waveforms = learner.spatial_components_, learner.temporal_components_
    figure, (_, ax) = plt.subplots(1, 2)
    options = dict(kind="waveforms", sampling_rate=10)
    display = AtomsDisplay.from_estimator(learner, ax=ax, **options)
    assert display.axes_.shape == (3, 2)
    assert display.axes_[0, 0].figure is figure
    for bars, line, map_, wave in zip(display.maps_, display.lines_, maps, waveforms):
        np.testing.assert_allclose([bar.get_height() for bar in bars], map_, rtol=1e-5)
        np.testing.assert_allclose(line.get_ydata(), wave, rtol=1e-5)
        np.testing.assert_allclose(line.get_xdata(), np.arange(5) / 10)
    assert [ax.get_title() for ax in display.axes_[:, 0]] == [
        "atom 0",
        "atom 1",
        "atom 2",
    ]
    positions = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    display = AtomsDisplay.from_estimator(
        learner, kind="waveforms", positions=positions
    )
    largest = [contours.levels[-1] for contours in display.maps_]
    np.testing.assert_allclose(largest, np.abs(maps).max(1), rtol=1e-5)


def test_spectra_are_bars_in_the_colours_of_their_groups():
    """Heights are shares of the largest channel, in the order of the rows from the top."""
    spectra = np.array([[1.0, 2.0, 4.0, 0.0], [0.0, 0.3, 0.0, 0.1]])
    groups = ["low", "low", "high", "high"]
    options = dict(kind="spectra", groups=groups, row_labels=["a", "b"])
    drawn = AtomsDisplay.from_estimator(spectra, colors=["red", "blue"], **options)
    by_spectrum = np.reshape(drawn.bars_.patches, (2, -1))
    for bars, spectrum, bottom in zip(by_spectrum, spectra, (1, 0), strict=True):
        heights = np.array([bar.get_height() for bar in bars])
        np.testing.assert_allclose(heights / heights.max(), spectrum / spectrum.max())
        assert {bar.get_y() for bar in bars} == {bottom}
        faces = [bar.get_facecolor() for bar in bars]
        assert faces[0] == faces[1] == (1, 0, 0, 1)
        assert faces[2] == faces[3] == (0, 0, 1, 1)
    assert [text.get_text() for text in drawn.ax_.texts] == ["low", "high"]
    middles = [text.get_position()[0] for text in drawn.ax_.texts]
    np.testing.assert_allclose(middles, [0.5, 2.5])
    texts = [text.get_text() for text in drawn.ax_.get_yticklabels()]
    labels = dict(zip(texts, drawn.ax_.get_yticks(), strict=True))
    assert labels["a"] > 1 > labels["b"] > 0
    drawn.plot(width=0.1)
    assert drawn.bars_[0].get_width() == pytest.approx(0.1)
    with pytest.raises(ValueError, match="zip"):
        AtomsDisplay.from_estimator(spectra, colors=["red"], **options)


# ---------------------------------------------------------------------------- intervals


def intervals(n_features=4):
    """Return three atoms that are not negative, the second one not supported."""
    rng = np.random.default_rng(0)
    estimate = rng.uniform(1, 2, (3, n_features))
    error = np.where(np.arange(n_features) < n_features // 2, 2.0, 0.1) * np.ones(
        (3, 1)
    )
    ends = estimate, estimate - error, estimate + error, error
    return AtomIntervals(*ends, np.array([True, False, True]), np.zeros(3))


def test_bands_hold_the_ends_of_intervals_and_atoms_without_support_are_covered():
    found = intervals()
    drawn = AtomsDisplay.from_estimator(found, n_columns=2)
    (bands,) = drawn.bands_
    largest = np.abs(found.estimate).max(1)
    for atom, band in enumerate(bands.get_paths()):
        row, heights = atom // 2, band.vertices[:, 1]
        expected = row + 0.5 - 0.45 * found.upper[atom].max() / largest[atom]
        np.testing.assert_allclose(heights.min(), expected)
    (cover,) = drawn.ax_.patches
    assert cover.get_xy() == (1, 0)


def test_entries_whose_interval_holds_zero_are_empty_in_images():
    drawn = AtomsDisplay.from_estimator(intervals(), image_shape=(2, 2))
    picture, *_ = cells(np.ma.filled(drawn.image_.get_array(), np.nan), 2, 2)
    np.testing.assert_array_equal(picture[0], 0)
    assert (picture[1] > 0).all()


def test_spectra_have_ends_and_bars_without_support_fade():
    found = intervals()
    drawn = AtomsDisplay.from_estimator(found, kind="spectra")
    expected = (found.lower > 0) & found.supported[:, None]
    faces = [bar.get_facecolor()[3] == 1 for bar in drawn.bars_]
    np.testing.assert_array_equal(faces, expected.ravel())
    AtomsDisplay(drawn.atoms, "spectra", drawn.lower, drawn.upper).plot()
