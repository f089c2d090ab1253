"""Displays: what is drawn is what the arrays say."""

import builtins
import subprocess
import sys

import numpy as np
import pytest

from skpudle import (
    ConvPUDLEDictionaryLearning,
    NOODLDictionaryLearning,
    PUDLEDictionaryLearning,
)
from skpudle.datasets import make_dictionary_data
from skpudle.diagnostics import code_convergence, gradient_convergence
from skpudle.inspection import atom_contributions
from skpudle.metrics import atom_coherence
from skpudle.plotting import (
    AtomsDisplay,
    CodesDisplay,
    ContributionsDisplay,
    ConvergenceDisplay,
    LossCurveDisplay,
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


def test_lines_between_atoms_are_empty(learner):
    display = AtomsDisplay.from_estimator(learner, image_shape=(3, 4))
    grid = np.ma.filled(display.image_.get_array(), np.nan)
    assert grid.shape == (3 * 4 - 1, 3 * 5 - 1)
    assert np.isnan(grid[3]).all()
    assert np.isnan(grid[:, 4]).all()


def test_atoms_come_in_the_order_of_their_use(learner, X):
    usage = (learner.transform(X) != 0).sum(0)
    display = AtomsDisplay.from_estimator(learner, X, image_shape=(3, 4), n_atoms=1)
    most = learner.components_[usage.argmax()]
    np.testing.assert_array_equal(display.images[0].ravel(), most)


def test_a_square_is_what_features_are_by_default(learner):
    assert AtomsDisplay.from_atoms(np.eye(16)).images.shape == (16, 4, 4)
    with pytest.raises(ValueError, match="12 features.*image_shape"):
        AtomsDisplay.from_estimator(learner)


def test_colours_are_kept_and_zero_is_grey():
    atoms = np.random.default_rng(0).normal(size=(4, 5 * 6 * 3))
    display = AtomsDisplay.from_atoms(atoms, image_shape=(5, 6, 3))
    drawn = cells(np.asarray(display.image_.get_array()), 5, 6)
    expected = 0.5 + 0.5 * atoms / np.abs(atoms).max(axis=1, keepdims=True)
    np.testing.assert_allclose(drawn[2].ravel(), expected[2], rtol=1e-12)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3)])
def test_atoms_with_the_shape_of_images_are_drawn_as_they_are(shape):
    atoms = np.random.default_rng(0).normal(size=(4, *shape))
    images = AtomsDisplay.from_atoms(atoms).images
    np.testing.assert_array_equal(images.reshape(atoms.shape), atoms)


@pytest.mark.parametrize("n_channels", [0, 3])
def test_convolutional_atoms_and_codes_are_drawn(n_channels):
    shape = (6, 16, 20, 3)[: 3 + (n_channels > 0)]
    pictures = np.random.default_rng(0).normal(size=shape)
    options = dict(atom_shape=(4, 5), stride=3, max_iter=1, n_unfoldings=3, random_state=0)
    learner = ConvPUDLEDictionaryLearning(7, tol=None, **options).fit(pictures)
    images = AtomsDisplay.from_estimator(learner).images
    np.testing.assert_array_equal(images, learner.components_)
    maps = learner.transform(pictures)  # one code for each position
    usage = (maps != 0).mean(axis=(0, 1, 2))
    for samples in (pictures, list(pictures)):
        display = CodesDisplay.from_estimator(learner, samples)
        np.testing.assert_allclose(display.heights_, np.sort(usage)[::-1])
    first = AtomsDisplay.from_estimator(learner, pictures, n_atoms=1).images[0]
    np.testing.assert_array_equal(first, learner.components_[usage.argmax()])


def test_two_channels_are_no_image():
    with pytest.raises(ValueError, match="neither grey nor colour"):
        AtomsDisplay.from_atoms(np.ones((4, 5, 6, 2)))


def test_a_new_figure_is_as_wide_as_its_grid():
    display = AtomsDisplay.from_atoms(np.eye(16), n_columns=6)
    width, height = display.figure_.get_size_inches()
    n_rows, n_columns = np.shape(display.image_.get_array())
    assert width / height == pytest.approx(n_columns / n_rows)


# ---------------------------------------------------------------------------- codes


@pytest.mark.parametrize("split_sign", [False, True])
def test_usage_is_the_share_of_samples_in_falling_order(split_sign, learner, X):
    display = CodesDisplay.from_estimator(learner.set_params(split_sign=split_sign), X)
    learner.set_params(split_sign=False)
    expected = np.sort((learner.transform(X) != 0).mean(0))[::-1]
    np.testing.assert_allclose(display.heights_, expected)


def test_counts_and_magnitudes_are_of_all_samples_and_entries(learner, X):
    codes = learner.transform(X)
    count = CodesDisplay.from_codes(codes, kind="count")
    np.testing.assert_array_equal(count.heights_, np.bincount((codes != 0).sum(1)))
    magnitude = CodesDisplay.from_codes(codes, kind="magnitude")
    assert magnitude.heights_.sum() == np.count_nonzero(codes)
    for kind in ("usage", "count", "magnitude"):  # also where nothing is used
        CodesDisplay.from_codes(np.zeros((3, 4)), kind=kind)


def test_an_unknown_kind_is_named(learner, X):
    with pytest.raises(ValueError, match="'size'.*usage"):
        CodesDisplay.from_estimator(learner, X, kind="size")
    with pytest.raises(ValueError, match="'size'.*gradient"):
        ConvergenceDisplay.from_estimator(learner, X, kind="size")


# ---------------------------------------------------------------------------- curves


def test_loss_curves_are_those_of_the_learners(learner):
    display = LossCurveDisplay.from_estimators({"a": learner, "b": learner})
    assert [line.get_label() for line in display.lines_] == ["a", "b"]
    np.testing.assert_array_equal(display.lines_[1].get_ydata(), learner.loss_curve_)
    epochs = np.arange(1, 1 + learner.n_iter_)
    np.testing.assert_array_equal(display.lines_[1].get_xdata(), epochs)
    single = LossCurveDisplay.from_estimator(learner)
    assert single.lines_[0].get_label() == "PUDLEDictionaryLearning"


def test_convergence_of_codes_is_the_median_over_samples(learner, X):
    display = ConvergenceDisplay.from_estimator(learner, X, n_unfoldings=7)
    settings = dict(alpha=learner.alpha_, step_size=learner.step_size_, n_unfoldings=7)
    curves = code_convergence(X, learner.components_, random_state=0, **settings)
    np.testing.assert_allclose(
        display.lines_[0].get_ydata(), np.median(curves.code_error, axis=1), rtol=1e-12
    )
    assert len(ConvergenceDisplay.from_codes(curves).lines_) == 2  # the Jacobian too


def test_convergence_of_gradients_has_a_line_for_each(learner, X):
    display = ConvergenceDisplay.from_estimator(learner, X, kind="gradient", n_unfoldings=7)
    settings = dict(alpha=learner.alpha_, step_size=learner.step_size_, n_unfoldings=7)
    curves = gradient_convergence(X, learner.components_, **settings)
    assert [line.get_label() for line in display.lines_] == ["dec", "ae-lasso", "ae-ls"]
    for line, error in zip(display.lines_, curves.local):
        np.testing.assert_allclose(line.get_ydata(), error, rtol=1e-12)


@pytest.mark.parametrize(
    "learner",
    [
        PUDLEDictionaryLearning(shrinkage="hard"),
        NOODLDictionaryLearning(),
        PUDLEDictionaryLearning(positive_code=True),
    ],
    ids=repr,
)
def test_codes_of_other_problems_have_no_lasso_to_converge_to(learner, X):
    learner.set_params(n_unfoldings=5, max_iter=1, tol=None, random_state=0)
    with pytest.raises(ValueError, match=f"either sign.*got {type(learner).__name__}"):
        ConvergenceDisplay.from_estimator(learner.fit(X), X)


def test_convolutions_have_no_encoder_of_rows_to_converge():
    images = np.random.default_rng(0).normal(size=(2, 12, 12))
    options = dict(n_unfoldings=2, max_iter=1, tol=None, random_state=0)
    learner = ConvPUDLEDictionaryLearning(3, **options).fit(images)
    with pytest.raises(ValueError, match="which ConvPUDLEDictionaryLearning does not have"):
        ConvergenceDisplay.from_estimator(learner, images)


# ---------------------------------------------------------------------------- recovery


@pytest.mark.parametrize("n_reference", [5, 9, 11])
def test_matched_atoms_are_on_the_diagonal(n_reference, learner):
    reference = np.random.default_rng(0).normal(size=(n_reference, 12))
    display = RecoveryDisplay.from_estimator(learner, reference)
    matrix = np.asarray(display.image_.get_array())
    assert matrix.shape == (n_reference, 9)
    expected = np.sort(atom_coherence(learner.components_, reference))[-min(9, n_reference) :]
    np.testing.assert_allclose(np.sort(np.diag(matrix)), expected, rtol=1e-12)


def test_a_permutation_with_signs_is_a_diagonal(learner):
    order, signs = np.random.default_rng(0).permutation(9), np.resize([1, -1], 9)
    shuffled = signs[:, None] * learner.components_[order]
    matrix = RecoveryDisplay.from_dictionaries(shuffled, learner.components_).coherences
    np.testing.assert_allclose(np.diag(matrix), 1, rtol=1e-12)


# ---------------------------------------------------------------------------- matplotlib


def test_every_display_draws_on_given_axes(learner, X):
    draw = [
        lambda ax: AtomsDisplay.from_estimator(learner, image_shape=(3, 4), ax=ax),
        lambda ax: CodesDisplay.from_estimator(learner, X, ax=ax),
        lambda ax: LossCurveDisplay.from_estimator(learner, ax=ax),
        lambda ax: ConvergenceDisplay.from_estimator(learner, X, n_unfoldings=3, ax=ax),
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
    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"skpudle\[plot\]"):
        LossCurveDisplay.from_estimator(learner)


def test_importing_the_module_does_not_import_matplotlib():
    program = "import sys, skpudle.plotting; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


# ---------------------------------------------------------------------------- contributions


def test_contributions_show_what_makes_an_atom(learner, X):
    display = ContributionsDisplay.from_estimator(
        learner, X, atoms=[4, 2], n_largest=3, image_shape=(3, 4)
    )
    found = atom_contributions(learner, X)
    drawn = cells(np.asarray(display.image_.get_array()), 3, 4)
    assert len(drawn) == 2 * 5
    first = X[found.indices[4, 0]] * np.sign(found.values[4, 0])
    for image, row in zip(drawn, [learner.components_[4], found.estimates[4], first]):
        np.testing.assert_allclose(image.ravel(), row / np.abs(row).max())
    assert display.ax_.texts[0].get_text() == f"{found.values[4, 0]:+.2g}"


def test_contributions_to_a_reconstruction_stand_beside_the_sample(learner, X):
    display = ContributionsDisplay.from_estimator(learner, X, X[:2], image_shape=(3, 4))
    drawn = cells(np.asarray(display.image_.get_array()), 3, 4)
    np.testing.assert_allclose(drawn[0].ravel(), X[0] / np.abs(X[0]).max())
    with pytest.raises(ValueError, match="grey"):
        ContributionsDisplay.from_estimator(learner, X, image_shape=(2, 2, 3))


def test_stability_is_drawn_in_the_order_of_sizes(learner):
    atoms = learner.components_
    display = StabilityDisplay.from_dictionaries([[atoms, -atoms], [atoms[:4], atoms[:4]]])
    np.testing.assert_array_equal(display.line_.get_xdata(), [4, 9])
    np.testing.assert_allclose(display.line_.get_ydata(), 1)
    np.testing.assert_array_equal(display.count_line_.get_ydata(), [4, 9])
