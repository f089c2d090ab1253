"""Convolutional learners that search, solve for codes, choose alpha, and live with gaps."""

import numpy as np
import pytest
import torch

from skpudle import ConvPUDLEDictionaryLearning

SEARCH = dict(stride=1, dict_init="search", random_state=0)


@pytest.fixture
def traces():  # (20, 80), of one shape at random times
    rng = np.random.default_rng(0)
    shape = np.sin(np.linspace(0, 3 * np.pi, 10)) * np.hanning(10)
    traces = 0.01 * rng.normal(size=(20, 80))
    for trace in traces:
        for start in rng.integers(70, size=2):
            trace[start : start + 10] += rng.uniform(1, 2) * shape
    return traces


def test_a_search_finds_the_shape_and_nothing_is_trained_after_it(traces):
    learner = ConvPUDLEDictionaryLearning(1, atom_shape=10, **SEARCH).fit(traces)
    assert learner.n_steps_ == 0
    assert len(learner.loss_curve_) == learner.n_iter_ > 0
    codes = learner.transform(traces)
    assert np.count_nonzero(codes) <= 4 * len(traces)
    rest = learner.inverse_transform(codes) - traces
    assert np.square(rest).sum() < 0.05 * np.square(traces).sum()


@pytest.mark.parametrize("exponent", [-480, 60, 480])
def test_the_scale_of_the_data_changes_nothing_but_theirs(exponent, traces):
    learner, scale = ConvPUDLEDictionaryLearning(1, atom_shape=10, **SEARCH), 2.0**exponent
    expected = learner.fit(traces).components_, scale**2 * learner.loss_curve_
    found = learner.fit(scale * traces).components_, learner.loss_curve_
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_codes_after_a_search_satisfy_the_optimality_condition(traces):
    """Of the lasso: correlations with the residual are alpha where codes are, and at most alpha."""
    learner = ConvPUDLEDictionaryLearning(2, atom_shape=10, **SEARCH, alpha=0.1).fit(traces)
    codes = learner.transform(traces)
    rest = traces - learner.inverse_transform(codes)
    slopes = np.stack(
        [[np.correlate(row, atom) for atom in learner.components_] for row in rest]
    ).swapaxes(1, 2)
    slopes = slopes.reshape(codes.shape)
    used = codes != 0
    np.testing.assert_allclose(slopes[used], 0.1 * np.sign(codes[used]), rtol=0, atol=1e-6)
    assert np.abs(slopes).max() <= 0.1 + 1e-6


@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
def test_pictures_of_any_size_colour_and_stride(stride):
    rng = np.random.default_rng(0)
    images = [rng.random((20, 23, 3)), rng.random((31, 18, 3))]
    options = SEARCH | dict(stride=stride)
    learner = ConvPUDLEDictionaryLearning(3, atom_shape=(4, 5), **options).fit(images)
    assert learner.components_.shape == (3, 4, 5, 3)
    np.testing.assert_allclose(np.square(learner.components_).sum((1, 2, 3)), 1)
    again = ConvPUDLEDictionaryLearning(3, atom_shape=(4, 5), **options).fit(images)
    np.testing.assert_array_equal(learner.components_, again.components_)


def test_training_may_follow_a_search(traces):
    """A gradient asks for it, as does an encoder, and codes are then unfolded."""
    options = SEARCH | dict(atom_shape=10, max_iter=2, tol=None)
    learner = ConvPUDLEDictionaryLearning(2, gradient="ae-ls", **options).fit(traces)
    assert learner.n_steps_ == 4
    assert learner.phases_["ae-ls"] == 2
    other = ConvPUDLEDictionaryLearning(2, n_unfoldings=15, **options).fit(traces)
    assert list(other.phases_) == ["search", "ae-ls"]
    assert np.count_nonzero(learner.transform(traces)) > 0


def test_black_images_have_a_search_too():
    learner = ConvPUDLEDictionaryLearning(2, atom_shape=3, **SEARCH).fit(np.zeros((3, 12)))
    assert not learner.transform(np.zeros((3, 12))).any()


@pytest.mark.parametrize(
    "options",
    [
        dict(n_unfoldings=None, gradient="ae-ls"),
        dict(n_unfoldings=None, gradient="dec", alpha=0.0),
    ],
)
def test_what_cannot_be_solved_for_is_refused(options, traces):
    with pytest.raises(ValueError, match="n_unfoldings=None"):
        ConvPUDLEDictionaryLearning(2, atom_shape=5, stride=1, **options).fit(traces)


# ---------------------------------------------------------------- missing samples


@pytest.fixture
def gaps(traces):
    traces = traces.copy()
    traces[np.random.default_rng(1).random(traces.shape) < 0.2] = np.nan
    return traces


@pytest.mark.parametrize("options", [SEARCH, dict(stride=1, max_iter=3, tol=None, random_state=0)])
def test_what_is_missing_counts_for_nothing(options, gaps):
    """Not even its channel's mean, which only says where the dictionary begins."""
    learner = ConvPUDLEDictionaryLearning(2, atom_shape=10, alpha=0.1, **options)
    learner.set_params(dict_init=np.random.default_rng(2).normal(size=(2, 10)))
    missing = np.isnan(gaps)
    codes = learner.fit(gaps).transform(gaps)
    atoms = torch.as_tensor(learner.components_)[:, None]
    assert np.isfinite(codes).all()
    filled = np.where(missing, learner.inverse_transform(codes), gaps)
    np.testing.assert_array_equal(filled[~missing], gaps[~missing])
    assert torch.isfinite(atoms).all()


def test_a_search_with_gaps_fills_them(traces, gaps):
    learner = ConvPUDLEDictionaryLearning(1, atom_shape=10, **SEARCH, alpha=0.1).fit(gaps)
    filled = learner.inverse_transform(learner.transform(gaps))
    missing = np.isnan(gaps)
    error = np.square(filled - traces)[missing].sum()
    assert error < 0.2 * np.square(traces[missing]).sum()


def test_gradients_with_gaps_are_those_of_the_known_pixels(gaps):
    """Whatever stood there: updates are those of any values under the mask."""
    from skpudle._data.batches import Samples
    from skpudle._fit.encoders import Encoder
    from skpudle._gradients import ae_ls, differentiate
    from skpudle._learners.convolutional.model import ConvNetwork

    generator = torch.Generator().manual_seed(0)
    mask = torch.as_tensor(~np.isnan(gaps))[:, None].double()
    results = []
    for fill in (0.0, 7.0):
        x = torch.as_tensor(np.nan_to_num(gaps, nan=fill))[:, None]
        atoms = torch.randn(3, 1, 6, generator=generator.manual_seed(0), dtype=torch.float64)
        atoms.requires_grad_()
        network = ConvNetwork(atoms, (1,), Encoder(5).at(0.1, step_size=0.05))
        batch = Samples(x, mask)
        gradient, _ = differentiate(
            ae_ls, network, atoms, batch, encoder=ConvNetwork.encode, penalty=0.1
        )
        results.append(gradient)
    torch.testing.assert_close(*results)


def test_by_default_atoms_are_searched_for_where_nothing_asks_for_training(traces):
    """To the bits of the search; who names unfoldings asks for training."""
    options = dict(atom_shape=10, stride=1, random_state=0)
    default = ConvPUDLEDictionaryLearning(2, **options).fit(traces)
    searched = ConvPUDLEDictionaryLearning(2, dict_init="search", **options).fit(traces)
    np.testing.assert_array_equal(default.components_, searched.components_)
    assert default.ended_by_ == "search"
    options |= dict(n_unfoldings=15, max_iter=1, tol=None)
    trained, random = (
        ConvPUDLEDictionaryLearning(2, dict_init=start, **options).fit(traces).components_
        for start in ("auto", "random")
    )
    np.testing.assert_array_equal(trained, random)
