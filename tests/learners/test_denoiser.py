"""Denoisers learn all of their parameters, and keep the size of every image."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from naive import torch_encode
from sklearn.base import clone
from sklearn.datasets import load_sample_image
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from skpudle import ConvDenoiser, ConvPUDLEDictionaryLearning, PUDLEDictionaryLearning
from skpudle._data.noise import Noise, estimate_noise
from skpudle._learners.convolutional.denoising import denoise_images
from skpudle._learners.convolutional.model import ConvNetwork, RowLayout, all_shifts
from skpudle._learners.convolutional.values import ConvParameters
from skpudle._learners.models import Encoder
from skpudle._operators._conv import ConvDictionary

SMALL = dict(
    atom_shape=(5, 4), stride=(2, 3), noise_std=0.0, n_unfoldings=4, max_iter=2, tol=None,
    random_state=0,
)  # fmt: skip


def learner_of(n_components=6, **options):
    return ConvDenoiser(n_components, **SMALL | options)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 13, 16))


def network_of(generator, *, shape=(6, 1, 5, 5), stride=(2, 2), n_unfoldings=3, **options):
    atoms = torch.randn(*shape, generator=generator, dtype=torch.float64)
    atoms = atoms / atoms.flatten(1).norm(dim=1).view(-1, *[1] * (len(shape) - 1))
    bound = ConvDictionary(atoms, stride).squared_norm_bound()
    parameters = ConvParameters(atoms, alpha=0.1, step=1 / bound)
    return ConvNetwork(parameters, stride, Encoder(n_unfoldings), **options)


# ---------------------------------------------------------------- one code path


def test_image_sized_atoms_learn_what_the_dense_estimator_learns(images):
    """One position of an atom is a row: the same updates, up to rounding."""
    rows = images.reshape(5, -1)
    atoms = np.random.default_rng(1).normal(size=(7, 13 * 16))
    shared = dict(alpha=0.3, n_unfoldings=6, step_size=0.1, max_iter=4, tol=None, random_state=0)
    own = dict(noise_std=0.0, flip=False)
    dense = PUDLEDictionaryLearning(7, dict_init=atoms, optimizer="adam", **shared).fit(rows)
    convolution = ConvDenoiser(
        7, atom_shape=(13, 16), dict_init=atoms.reshape(7, 13, 16), **own, **shared
    ).fit(images)
    expected = dense.components_.reshape(7, 13, 16)
    np.testing.assert_allclose(convolution.components_, expected, rtol=0, atol=1e-12)
    codes = convolution.transform(images)
    np.testing.assert_allclose(codes.reshape(5, 7), dense.transform(rows), rtol=0, atol=1e-12)


@pytest.mark.parametrize("separate", [False, True], ids=["one", "unfolding"])
@pytest.mark.parametrize("noise_unit", [None, 0.5])
def test_everything_that_is_learned_has_the_gradient_of_automatic_differentiation(
    separate, noise_unit, generator
):
    """Atoms, those of each unfolding, thresholds of each that may follow the noise."""
    shape, stride, n_unfoldings = (4, 2, 5, 4), (2, 3), 5

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    atoms = 0.3 * draw(*shape)
    n_layers = n_unfoldings if separate else 0
    layout = RowLayout(shape[1:], n_layers, n_unfoldings, noise_unit, False, None, 0.0, 0.08)
    stacks = [None, None]
    if separate:
        stacks = [atoms + 0.05 * draw(5, *shape), 0.3 * draw(4, *shape)]
    alpha, slope = 0.2 + 0.1 * draw(2, n_unfoldings, 4).abs()
    x, noise_std = 2 * draw(3, 2, 13, 13), torch.tensor([0.1, 0.4, 1.5], dtype=torch.float64)
    rows = layout.pack(ConvParameters(atoms, *stacks, alpha, slope, 0.08)).requires_grad_()
    network = ConvNetwork(layout.unpack(rows), stride, Encoder(n_unfoldings), lambda_decay=0.9)
    known = {} if noise_unit is None else {"noise_std": noise_std}
    codes = network.encode(x, **known)
    output = network.synthesis(codes)

    def naive(rows):
        atoms, analysis, synthesis, alpha, slope, step = layout.unpack(rows)
        z = torch.nn.functional.conv2d(x, atoms, stride=stride) * 0
        for t in range(n_unfoldings):
            forth = atoms if synthesis is None or t == 0 else synthesis[t - 1]
            back = atoms if analysis is None else analysis[t]
            residual = x - torch.conv_transpose2d(z, forth, stride=stride)
            v = z + step * torch.nn.functional.conv2d(residual, back, stride=stride)
            level = alpha[t] if slope is None else alpha[t] + noise_std[:, None] * slope[t]
            level = (step * level * 0.9**t)[..., None, None]
            z = v.sign() * (v.abs() - level).relu()
        return torch.conv_transpose2d(z, atoms, stride=stride)

    expected = naive(rows)
    assert 0 < (codes == 0).double().mean() < 1
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    weights = draw(*expected.shape)
    actual, oracle = (torch.autograd.grad((weights * y).sum(), rows)[0] for y in (output, expected))
    assert (oracle != 0).any(0).all()  # every parameter counts
    torch.testing.assert_close(actual, oracle, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_layers", [0, 5])
@pytest.mark.parametrize(
    ("n_thresholds", "noise_unit"), [(0, None), (1, None), (5, None), (5, 0.5)]
)
def test_rows_hold_what_was_packed(n_layers, n_thresholds, noise_unit, generator):
    atoms = torch.randn(3, 1, 2, 2, generator=generator)
    stacks = [None, None]
    if n_layers:
        stacks = [torch.randn(n, 3, 1, 2, 2, generator=generator) for n in (5, 4)]
    alpha = torch.rand(n_thresholds, 3, generator=generator) if n_thresholds else 0.3
    slope = None if noise_unit is None else torch.rand(n_thresholds, 3, generator=generator)
    parameters = ConvParameters(atoms, *stacks, alpha, slope, 0.125)
    shared = n_layers, n_thresholds, noise_unit, False
    layout = RowLayout((1, 2, 2), *shared, None, 0.3, 0.125, threshold_unit=0.25)
    for got, packed in zip(layout.unpack(layout.pack(parameters)), parameters, strict=True):
        if isinstance(packed, torch.Tensor):
            torch.testing.assert_close(got, packed)
        else:
            assert got is None if packed is None else abs(float(got) - packed) < 1e-7
    rows = layout.pack(parameters) - 5
    torch.testing.assert_close(layout.project(layout.project(rows)), layout.project(rows))


def test_fitted_network_is_the_paper_s(images):
    """Code maps are those of the naive encoder with the fitted parameters."""
    learner = learner_of(alpha=0.2, learn_threshold="atom").fit(images)
    assert learner.alpha_.shape == (6,)
    assert np.ptp(learner.alpha_) > 0
    x = torch.nn.functional.pad(torch.tensor(images)[:, None], [0, 0, 0, 0])
    expected = torch_encode(
        torch.tensor(learner.components_)[:, None],
        x,
        stride=(2, 3),
        alpha=torch.tensor(learner.alpha_),
        step_size=learner.step_size_,
        n_unfoldings=4,
    )
    codes = learner.transform(images)
    np.testing.assert_allclose(codes, expected.movedim(1, -1).numpy(), rtol=0, atol=1e-12)


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("shift_average", [False, True])
@pytest.mark.parametrize("size", [(13, 16), (14, 15), (5, 4), (3, 20), (1, 1), (2, 7)], ids=str)
def test_denoised_images_have_exactly_the_size_of_their_input(size, shift_average, images):
    learner = learner_of(shift_average=shift_average).fit(images)
    image = np.random.default_rng(0).normal(size=size)
    (denoised,) = learner.denoise([image])
    assert denoised.shape == size
    assert np.isfinite(denoised).all()
    assert learner.denoise(image[None]).shape == (1, *size)
    assert learner.transform([image])[0].shape[-1] == 6


def test_unsigned_integers_are_fractions_of_their_largest_value(images):
    pixels = np.clip(60 * images + 128, 0, 255).astype(np.uint8)
    learner = learner_of(alpha=0.1).fit(pixels / 255)
    expected = np.clip(learner.denoise(pixels / 255), 0, 1)
    denoised = learner.denoise(pixels)
    assert denoised.dtype == np.uint8
    np.testing.assert_allclose(denoised, 255 * expected, atol=0.51)
    tensor = learner.denoise(torch.tensor(pixels))
    assert tensor.dtype == torch.uint8
    np.testing.assert_array_equal(tensor, denoised)
    wide = learner.denoise([pixels[0].astype(np.uint16) * 257])[0]
    np.testing.assert_allclose(wide, 65535 * expected[0], atol=1)
    np.testing.assert_allclose(
        learner.inverse_transform(learner.transform(pixels)),
        learner.inverse_transform(learner.transform(pixels / 255)),
        atol=1e-5,
    )


def test_a_single_picture_is_denoised_as_a_list_of_one(images):
    learner = learner_of(alpha=0.1).fit(images)
    np.testing.assert_array_equal(learner.denoise(images[0]), learner.denoise([images[0]])[0])
    rows = learner_of(alpha=0.1, atom_shape=5, stride=2).fit(images.reshape(5, -1))
    assert rows.denoise(images.reshape(5, -1)).shape == (5, 13 * 16)


# ---------------------------------------------------------------- denoising


def test_tiles_with_overlap_are_the_whole_image(generator):
    network = network_of(generator)
    x = torch.randn(2, 1, 61, 53, generator=generator, dtype=torch.float64)
    for shift_average in (False, True):
        whole = denoise_images(network, x, shift_average=shift_average)
        for tile in (9, 16, 40):
            tiled = denoise_images(network, x, shift_average=shift_average, tile=tile)
            torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-12)


def test_shift_average_is_the_mean_over_moved_grids(generator):
    """Inside, where the continuation of the border does not reach."""
    network = network_of(generator)
    x = torch.randn(1, 1, 70, 70, generator=generator, dtype=torch.float64)
    average = denoise_images(network, x, shift_average=True)
    total = 0
    for i, j in all_shifts((2, 2)):
        moved = denoise_images(network, x[..., i:, j:], shift_average=False)
        total = total + torch.nn.functional.pad(moved, [j, 0, i, 0])
    inside = (..., slice(26, 44), slice(26, 44))
    torch.testing.assert_close(average[inside], total[inside] / 4, rtol=0, atol=1e-12)


def test_shift_average_moves_with_the_image(generator):
    """A grid breaks the symmetry under shifts, and the average over all grids restores it."""
    network = network_of(generator)
    x = torch.randn(1, 1, 70, 70, generator=generator, dtype=torch.float64)
    inside = (..., slice(26, 43), slice(26, 43))
    moved, image = (
        denoise_images(network, part, shift_average=True)
        for part in (torch.roll(x, (-1, -1), (2, 3)), x)
    )
    expected = image[..., 27:44, 27:44]
    torch.testing.assert_close(moved[inside], expected, rtol=0, atol=1e-12)


def test_score_is_the_mean_psnr(images):
    from skimage.metrics import peak_signal_noise_ratio

    learner = learner_of().fit(images)
    noisy = images + 0.1
    expected = [
        peak_signal_noise_ratio(clean, denoised, data_range=2.0)
        for clean, denoised in zip(images, learner.denoise(noisy))
    ]
    score = learner.score(noisy, images, peak=2.0)
    assert type(score) is float
    assert score == pytest.approx(np.mean(expected))
    assert learner.score(list(noisy), list(images), peak=2.0) == pytest.approx(score)
    labels = [0, 1, 0, 1, 0]
    with pytest.raises(ValueError, match="nothing to remove: the noise of training is 0"):
        learner.score(images, labels)
    noisy = learner_of(noise_std=0.1).fit(images)
    assert noisy.score(images, labels) == noisy.score(images)


# ---------------------------------------------------------------- training


def blocks(n, size, seed):  # piecewise constant pictures
    rng = np.random.default_rng(seed)
    values = rng.uniform(size=(n, size // 8 + 1, size // 8 + 1))
    return np.kron(values, np.ones((8, 8)))[:, :size, :size]


def test_training_denoises(generator):
    """Supervised by pairs, or with noise of its own."""
    clean, test = blocks(24, 33, 0), blocks(6, 40, 1)
    rng = np.random.default_rng(2)
    noisy, noisy_test = (x + 0.2 * rng.normal(size=x.shape) for x in (clean, test))
    options = dict(
        atom_shape=(6, 6), stride=3, n_unfoldings=6, max_iter=15, learning_rate=1e-2,
        learn_threshold="atom", batch_size=8, alpha=0.2,
    )  # fmt: skip
    before = learner_of(16, **options | {"learning_rate": 1e-9}).fit(noisy, clean)
    start = before.score(noisy_test, test)
    pairs = learner_of(16, **options).fit(noisy, clean).score(noisy_test, test)
    fresh = learner_of(16, **options, noise_std=0.2).fit(clean)
    assert pairs > start + 1
    assert fresh.score(noisy_test, test) > start + 1
    averaged = fresh.set_params(shift_average=True).score(noisy_test, test)
    assert averaged > fresh.set_params(shift_average=False).score(noisy_test, test)


LAYERS = dict(
    separate_atoms="unfolding", learn_threshold="unfolding", atom_norm=None, step_size="auto"
)


def test_layers_begin_as_one_dictionary(images):
    """The step is shared by both sides, and codes and thresholds are in its unit."""
    options = dict(dict_init="data", alpha=0.3, learning_rate=1e-300)
    one, layers = (
        learner_of(**more, **options).fit(images) for more in (dict(step_size="auto"), LAYERS)
    )
    codes, step = layers.transform(images), one.step_size_
    assert layers.analysis_components_.shape == (4, 6, 5, 4)
    assert layers.synthesis_components_.shape == (3, 6, 5, 4)
    np.testing.assert_allclose(codes * step**0.5, one.transform(images), atol=1e-12)
    reconstructed = layers.inverse_transform(codes)
    expected = one.inverse_transform(one.transform(images))
    np.testing.assert_allclose(reconstructed, expected, atol=1e-12)


def test_one_network_denoises_at_any_level():
    """It does better with the noise it is told or finds than with that of another level."""
    clean, test = blocks(32, 24, 0), blocks(32, 24, 1)
    learner = learner_of(16, **LAYERS, noise_std=(0.05, 0.5), crop_size=24, learning_rate=1e-2)
    learner.set_params(max_iter=40).fit(clean)
    for level in (0.07, 0.4):
        noisy = test + level * np.random.default_rng(2).normal(size=test.shape)
        told, found, wrong = (
            np.mean((learner.denoise(noisy, noise_std=s) - test) ** 2)
            for s in (level, None, 0.47 - level)
        )
        assert max(told, found) < min(0.8 * wrong, level**2)


@pytest.mark.parametrize("unit", [1 / 64, 64.0, 255.0])
def test_images_in_other_units_are_scaled_to_the_pixels_of_training(unit, images):
    learner = learner_of(**LAYERS, noise_std=(0.1, 0.5)).fit(images)
    assert learner.peak_ == np.abs(images).max()
    for image in images * (learner.peak_ / np.abs(images).max(axis=(1, 2), keepdims=True)):
        for noise_std in (0.2, 0.02):  # known, and less than known
            (expected,) = learner.denoise([image], noise_std=noise_std)
            (found,) = learner.denoise([unit * image], noise_std=noise_std * unit)
            np.testing.assert_allclose(found, unit * expected, rtol=1e-10, atol=1e-10 * unit)
    for_one = learner_of(noise_std=0.1, learn_threshold="atom").fit(images)
    plain = for_one.denoise(images)
    np.testing.assert_allclose(for_one.denoise(images, noise_std=0.1), plain, atol=1e-12)


def test_a_network_sees_nothing_that_it_was_not_trained_for(images, monkeypatch):
    """Pixels as large as in training, and a level of its range, whatever the noise and units."""
    learner = learner_of(**LAYERS, noise_std=(0.1, 0.5)).fit(images)
    seen, unfold = [], ConvNetwork._unfold

    def listen(network, x, noise_std, mask=None):
        seen.append((float(x.abs().max()), noise_std.tolist()))
        return unfold(network, x, noise_std, mask)

    monkeypatch.setattr(ConvNetwork, "_unfold", listen)
    for unit in (1 / 64, 1.0, 255.0):
        for level in (0.001, 0.09, 0.1, 0.5, 0.51, 3.0):
            learner.denoise(unit * images, noise_std=unit * level)
    learner.denoise(images)
    largest, levels = zip(*seen, strict=True)
    assert max(largest) <= learner.peak_ + 6 * 0.5  # images and their noise
    assert 0.1 <= min(map(min, levels)) <= max(map(max, levels)) <= 0.5


def test_the_largest_pixel_of_training_is_remembered(images):
    learner = learner_of(noise_std=0.1, learn_threshold="atom").fit(images)
    largest = np.abs(images).max()
    assert learner.peak_ == largest
    assert learner.partial_fit(images / 2).peak_ == largest
    assert learner.partial_fit(images * 2).peak_ == 2 * largest
    pairs = learner_of(noise_std=0.1, learn_threshold="atom").fit(3 * images, images)
    assert pairs.peak_ == largest


def test_every_image_has_its_noise(images):
    learner = learner_of(**LAYERS, noise_std=(0.1, 0.5)).fit(images)
    levels = np.linspace(0.1, 0.5, 5)
    together = learner.denoise(images, noise_std=levels)
    for i, level in enumerate(levels):
        (alone,) = learner.denoise([images[i]], noise_std=level)
        np.testing.assert_allclose(together[i], alone, atol=1e-12)


def test_a_network_for_grey_images_denoises_three_channels(images):
    """By their mean, which has less noise, and differences, of which grey images have none."""
    learner = learner_of(**LAYERS, noise_std=(0.1, 0.5)).fit(images)
    coloured = np.repeat(images[..., None], 3, axis=3)
    denoised = learner.denoise(coloured, noise_std=0.3)
    expected = learner.denoise(images, noise_std=0.3 / 3**0.5)
    np.testing.assert_allclose(denoised, np.repeat(expected[..., None], 3, axis=3), atol=1e-12)
    (alone,) = learner.denoise([coloured[0]], noise_std=0.3)
    np.testing.assert_allclose(alone, denoised[0], atol=1e-12)
    with pytest.raises(ValueError, match="3 channels, but .* fitted on 1"):
        learner.transform(coloured)


def test_three_channels_come_back_from_the_opponent_space():
    """A network that changes nothing changes nothing."""
    atoms = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    network = ConvNetwork(ConvParameters(atoms, alpha=0.0, step=1.0), (1, 1), Encoder(1))
    x = torch.tensor(np.random.default_rng(0).normal(size=(2, 3, 5, 4)))
    torch.testing.assert_close(denoise_images(network, x, shift_average=False), x)


@pytest.mark.parametrize(
    "noise_std", [-1.0, float("nan"), float("inf"), [0.1, 0.2], "a", ["a"] * 5, 1j, True, [[0.1]]]
)
def test_what_is_no_noise_is_refused(noise_std, images):
    learner = learner_of(noise_std=0.1).fit(images)
    with pytest.raises(ValueError, match="no standard deviation. Pass .* each of 5 images"):
        learner.denoise(images, noise_std=noise_std)
    with pytest.raises(ValueError, match="thresholds are for no noise"):
        learner_of().fit(images).denoise(images, noise_std=0.1)


@pytest.mark.parametrize("noise_std", [0.1, (0.1, 0.5)], ids=["one level", "range"])
def test_an_image_without_noise_comes_back_as_it_is(noise_std, images):
    layers = LAYERS if isinstance(noise_std, tuple) else {}
    learner = learner_of(noise_std=noise_std, **layers).fit(images)
    levels = np.array([0.0, 0.3, 0.0, 0.3, 0.3])
    denoised = learner.denoise(images, noise_std=levels)
    np.testing.assert_array_equal(denoised[levels == 0], images[levels == 0])
    assert (denoised[levels > 0] != images[levels > 0]).all()


@pytest.mark.parametrize("shift_average", [False, True])
@pytest.mark.parametrize("shape", [(1, 24, 28), (2, 23, 25), (1, 150)], ids=str)
def test_the_mix_with_the_input_has_the_smallest_estimated_error(shape, shift_average, generator):
    """Stein's estimate with all derivatives, by automatic differentiation, has its minimum there.

    Without shrinkage a network is linear, and one probe finds its trace but for off-diagonal terms:
    here a single atom of one pixel, whose derivative is diagonal.
    """
    n_channels, *size = shape
    atoms = torch.zeros(n_channels, n_channels, *[1] * len(size), dtype=torch.float64)
    atoms[range(n_channels), range(n_channels)] = 1.0
    parameters = ConvParameters(atoms, alpha=0.7, step=1.0)
    network = ConvNetwork(parameters, (1,) * len(size), Encoder(1), Noise(0.3, 0.3), peak=9.0)
    x = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    noise_std = torch.full((1,), 0.3, dtype=torch.float64)
    mixed = denoise_images(network, x, noise_std=noise_std, shift_average=shift_average)
    change = x.sign() * (x.abs() - 0.7).clamp_min(0) - x
    trace = float((x.abs() > 0.7).double().sum())
    share = 0.3**2 * (x.numel() - trace) / float(change.square().sum())
    assert 0 < share < 0.9
    # 10 % in favour of the network, and steps that cross a threshold
    torch.testing.assert_close(mixed, x + 1.1 * share * change, atol=0.02, rtol=0)


def test_photons_are_mixed_by_the_variance_of_counts(generator):
    """Hudson's identity: what noise explains of a change of a count is the count, times 1 - f'."""
    atoms = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    parameters = ConvParameters(atoms, alpha=4.0, step=1.0)
    network = ConvNetwork(parameters, (1, 1), Encoder(1), Noise.of("poisson"), peak=99.0)
    counts = torch.poisson(torch.full((1, 1, 40, 40), 100.0), generator=generator).double()
    roots = network.noise.enter(counts)
    mixed = network.noise.leave(denoise_images(network, roots, shift_average=False))
    denoised = network.noise.leave(roots - 4.0)
    slope = (roots - 4.0) / roots  # of (root(y) - 4)^2 / 4 in y
    change = denoised - counts
    share = float((counts * (1 - slope)).sum() / change.square().sum())
    assert 0 < share < 0.5
    torch.testing.assert_close(mixed, counts + 1.1 * share * change, rtol=1e-3, atol=0)


def test_texture_is_no_noise():
    """Clean photographs have none, and noise is found whole where there is enough of it."""
    for name in ("china.jpg", "flower.jpg"):
        image = load_sample_image(name).mean(axis=2)[100:292, 150:342] / 255
        assert float(estimate_noise(torch.tensor(image)[None, None])) < 1e-3
    parts = [image[y : y + 32, x : x + 32] for y in range(0, 192, 32) for x in range(0, 192, 32)]
    image = load_sample_image("china.jpg").mean(axis=2) / 255
    parts += [image[y : y + 32, x : x + 32] for y in range(0, 384, 32) for x in range(0, 608, 32)]
    clean = torch.tensor(np.stack(parts))[:, None]
    assert (estimate_noise(clean) > 0.005).double().mean() < 0.1  # .14 with half the texture
    white = torch.randn(4, 1, 200, 210, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimate_noise(white), torch.ones(4), atol=0.05, rtol=0)
    ramp = torch.linspace(0, 20, 200)[:, None] + white
    torch.testing.assert_close(estimate_noise(ramp), torch.ones(4), atol=0.1, rtol=0)


@pytest.mark.parametrize("size", [(96, 80), (700,), (1, 700)], ids=str)
def test_estimated_noise_commutes_with_units_and_offsets(size):
    images = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(0)).double()
    found = estimate_noise(images)
    assert ((found > 0.7) & (found < 1.3)).all()
    torch.testing.assert_close(estimate_noise(255 * images - 7), 255 * found, rtol=1e-9, atol=0)
    assert not estimate_noise(torch.full((1, 1, *size), 0.5)).any()


def test_the_noise_of_photographs_is_estimated():
    """Within 5 % at 15 and 50 of 255, where there is not more texture than noise."""
    image = load_sample_image("flower.jpg").mean(axis=2) / 255
    for level in (15 / 255, 50 / 255):
        noisy = image + level * np.random.default_rng(0).normal(size=image.shape)
        found = float(estimate_noise(torch.tensor(noisy)[None, None]))
        assert abs(found / level - 1) < 0.05


@pytest.mark.parametrize("gradient", ["dec", "ae-lasso", "ae-ls"])
@pytest.mark.parametrize("shrinkage", ["soft", "hard"])
def test_every_gradient_lowers_the_loss(gradient, shrinkage, images):
    options = dict(gradient=gradient, shrinkage=shrinkage, alpha=0.1, learning_rate=1e-2)
    learner = learner_of(**options, max_iter=10).fit(images)
    assert learner.loss_curve_[-1] < learner.loss_curve_[0]


@pytest.mark.parametrize("atom_norm", ["unit", "ball", None])
def test_atoms_satisfy_their_constraint(atom_norm, images):
    learner = learner_of(atom_norm=atom_norm, learning_rate=0.1, positive_code=True).fit(images)
    norms = np.linalg.norm(learner.components_.reshape(6, -1), axis=1)
    if atom_norm == "unit":
        np.testing.assert_allclose(norms, 1)
    if atom_norm == "ball":
        assert (norms <= 1 + 1e-12).all()
    assert (learner.transform(images) >= 0).all()


def test_the_same_seed_gives_the_same_bits_and_another_does_not(images):
    options = dict(noise_std=0.1, crop_size=9)
    first, second, other = (
        learner_of(**options | {"random_state": seed}).fit(images).components_ for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_fit_goes_on_after_pickling(images):
    """Also with more to learn than before, or less."""
    learner = learner_of(noise_std=0.1, crop_size=9)
    for _ in range(2):
        learner.partial_fit(images)
    reference = clone(learner).partial_fit(images)
    stored = pickle.loads(pickle.dumps(reference)).partial_fit(images)
    np.testing.assert_array_equal(stored.components_, learner.components_)
    assert stored.n_steps_ == 2
    stored.set_params(learn_threshold="unfolding").partial_fit(images)
    assert stored.alpha_.shape == (4, 6)
    for separate in ("unfolding", None, "unfolding"):
        stored.set_params(separate_atoms=separate, atom_norm=None)
        stored.partial_fit(images)
        assert stored.denoise(images).shape == images.shape
    assert len(stored.synthesis_components_) == 3
    with pytest.raises(ValueError, match="learned for 4 unfoldings, each its own, and .* is 5"):
        stored.set_params(n_unfoldings=5).transform(images)


def test_unused_atoms_are_replaced_by_patches(images):
    atoms = np.random.default_rng(0).normal(size=(6, 5, 4))
    atoms[2] *= 1e-9  # a short atom in the ball is not used by any code
    options = dict(dict_init=atoms, atom_norm="ball", learn_threshold="one")
    options |= dict(alpha=0.3, step_size=0.1, learning_rate=1e-9, max_iter=2)
    learner = learner_of(**options).fit(images)
    assert np.linalg.norm(learner.components_[2]) == pytest.approx(1)
    assert learner.alpha_ == pytest.approx(0.3, abs=1e-6)


def test_no_atom_is_replaced_by_nothing():
    """Most of every image is black, and all unused atoms are drawn anew."""
    images = np.zeros((8, 40, 40))
    images[:, 16:24, 16:24] = np.random.default_rng(0).random((8, 8, 8))
    options = SMALL | dict(atom_shape=(5, 5), stride=2, step_size="auto", alpha=1.0, max_iter=5)
    for crops in ({}, dict(crop_size=64)):  # images smaller than crops are extended by zeros
        learner = ConvDenoiser(16, **options | crops).fit(images)
        np.testing.assert_allclose(np.linalg.norm(learner.components_, axis=(1, 2)), 1)


def test_automatic_alpha_looks_at_whole_images():
    """Also where only their ends are not black, beyond the first crop."""
    images = np.random.default_rng(0).random((3, 40, 45))
    images[:, :20, :20] = 0
    options = dict(dict_init=np.random.default_rng(1).normal(size=(6, 5, 4)), alpha="auto")
    learner = learner_of(**options, crop_size=15, max_iter=1)
    atoms = learner_of(**options | dict(alpha=0.0), learning_rate=1e-15, max_iter=1).fit(images)
    dictionary = ConvDictionary(torch.tensor(atoms.components_)[:, None], (2, 3))
    largest = dictionary.analysis(torch.tensor(images[:, :39, :43])[:, None]).abs()
    expected = 0.1 * float(largest.flatten(1).amax(1).median())
    assert learner.fit(images).alpha_ == pytest.approx(expected)


def test_the_step_follows_the_atoms_and_what_is_set(images):
    learner = learner_of(step_size="auto", learning_rate=0.1).partial_fit(images)
    for _ in range(5):
        learner.partial_fit(images)
    dictionary = ConvDictionary(torch.tensor(learner.components_)[:, None], (2, 3))
    assert learner.step_size_ == pytest.approx(1 / float(dictionary.squared_norm_bound()))
    assert learner.set_params(step_size=0.02).partial_fit(images).step_size_ == 0.02


def test_noise_is_not_added_to_pairs(images):
    learners = [
        learner_of(**noise, alpha=0.2).fit(images, images)
        for noise in (dict(), dict(noise_std=0.5))
    ]
    np.testing.assert_array_equal(learners[0].components_, learners[1].components_)


def test_a_search_without_clean_images_judges_by_the_noise_of_training():
    learner = learner_of(noise_std=0.3, alpha=0.2).fit(blocks(4, 24, 0))
    images = blocks(3, 24, 1)
    assert learner.score(images[::-1]) == pytest.approx(learner.score(images))
    plain = learner.score(images, images)
    noise = np.random.default_rng(0).normal(scale=0.3, size=images.shape)
    assert learner.score(images) == pytest.approx(learner.score(images + noise, images), abs=0.5)
    assert learner.score(images) < plain


@pytest.mark.parametrize("unit", [1 / 256, 1.0, 256.0])
def test_without_a_level_the_noise_follows_the_images(unit, images):
    """In proportion to the pixels of clean images, or as noisy images differ from clean ones."""
    learner = learner_of(noise_std="auto").fit(unit * images)
    one = learner_of(noise_std="auto").fit(images)
    np.testing.assert_allclose(learner.components_, one.components_, rtol=1e-9)
    assert learner.training_noise_std_ == pytest.approx(0.45 * unit * images.std())
    assert learner.alpha_ == pytest.approx(1.6 * learner.training_noise_std_)
    found = learner.denoise(unit * images)
    np.testing.assert_array_equal(
        found, learner.denoise(unit * images, noise_std=learner.training_noise_std_)
    )
    noisy = images + 0.3 * np.random.default_rng(1).normal(size=images.shape)
    pairs = learner_of(noise_std="auto").fit(unit * noisy, unit * images)
    assert pairs.training_noise_std_ == pytest.approx(unit * (noisy - images).std())
    stored = pairs.training_noise_std_
    assert pairs.partial_fit(unit * images).training_noise_std_ == stored


def test_a_denoiser_of_the_default_noise_denoises_raw_images():
    """Integers as they are, which are not centred."""
    clean, test = ((255 * blocks(16, 24, seed)).astype(np.uint8) for seed in (0, 1))
    learner = ConvDenoiser(8, atom_shape=(7, 7), n_unfoldings=5, max_iter=40, tol=None)
    learner.set_params(learning_rate=1e-2, random_state=0).fit(clean)
    noise = 255 * learner.training_noise_std_ * np.random.default_rng(2).normal(size=test.shape)
    noisy = np.clip(test + noise, 0, 255).astype(np.uint8)
    denoised = learner.denoise(noisy)
    before, after = (np.square(x.astype(float) - test).mean() for x in (noisy, denoised))
    assert after < 0.8 * before
    assert denoised.dtype == np.uint8


def test_a_fitted_dictionary_is_a_start(images):
    dictionary = ConvPUDLEDictionaryLearning(6, atom_shape=(5, 4), stride=(2, 3), random_state=0)
    atoms = dictionary.fit(images).components_
    by_learner, by_atoms = (learner_of(dict_init=d).fit(images) for d in (dictionary, atoms))
    np.testing.assert_array_equal(by_learner.components_, by_atoms.components_)
    assert list(by_learner.phases_) == ["ae-ls"]


def test_missing_pixels_are_refused(images):
    learner = learner_of().fit(images)
    gaps = np.where(images > 1, np.nan, images)
    for call in (learner_of().fit, learner.transform, learner.denoise, learner.score):
        with pytest.raises(ValueError, match="NaN"):
            call(gaps)


def test_a_grid_of_parameters_is_searched_by_the_score():
    images = blocks(6, 24, 0)
    search = GridSearchCV(learner_of(noise_std=0.2), {"alpha": [0.0, 1.0]}, cv=2).fit(images)
    assert search.best_params_ == {"alpha": 1.0}  # without thresholds nothing is noise
    assert search.score(images) == search.best_estimator_.score(images)


def test_options_of_the_optimiser_may_change(images):
    learner = learner_of().fit(images)
    learner.set_params(optimizer=partial(torch.optim.Adam, amsgrad=True)).partial_fit(images)
    learned = learner_of(learn_threshold="unfolding").fit(images)
    with pytest.raises(
        ValueError, match="learned for 4 unfoldings, each its own, and n_unf.* is 7"
    ):
        learned.set_params(n_unfoldings=7).transform(images)


@pytest.mark.parametrize("then", ["atom", "one"])
def test_thresholds_of_unfoldings_become_their_mean(then, images):
    learner = learner_of(learn_threshold="unfolding", gradient="ae-ls").fit(images)
    mean = learner.alpha_.mean(0 if then == "atom" else None)
    assert np.ptp(learner.alpha_, axis=0).min() > 0
    learner.set_params(learn_threshold=then, learning_rate=1e-12).partial_fit(images)
    np.testing.assert_allclose(learner.alpha_, mean, atol=1e-9)


MODES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: torch.device("meta"),  # numbers do not exist there
}


@pytest.mark.parametrize("dict_init", ["random", "data", "dct"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_modes_of_torch_do_not_matter(mode, dict_init, images):
    images = images.astype(np.float32)
    options = dict(dict_init=dict_init, noise_std=0.1, shift_average=True)
    options |= dict(batch_size=2, device="cpu", step_size=0.01)

    def results():
        learner = learner_of(**options).fit(images).partial_fit(images)
        codes = learner.transform(images)
        again = learner.inverse_transform(codes)
        return learner.components_, codes, again, learner.denoise(images), learner.score(images)

    expected = results()
    with mode():
        found = results()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# ---------------------------------------------------------------- what is refused


def test_noise_in_other_units_than_the_images_is_pointed_out():
    """Unsigned integers become fractions, so sigma 25 is 25 / 255; other numbers stay."""
    images = np.random.default_rng(0).integers(256, size=(2, 13, 16), dtype=np.uint8)
    wrong = pytest.warns(UserWarning, match="noise_std=25, but the largest pixel is 1")
    with pytest.warns(UserWarning, match="All codes .* are zero"), wrong as record:
        learner_of(noise_std=25.0).fit(images)
    learner = learner_of(noise_std=25 / 255).fit(images)
    learner.denoise(images)
    learner.denoise(images, noise_std=1e-6)  # who tells it knows it
    with pytest.warns(UserWarning, match="noise_std=0.098, but the largest pixel is 255") as more:
        learner.denoise(images.astype(float))
    with pytest.warns(UserWarning, match="noise_std=25, but the largest pixel is 1") as told:
        learner.denoise(images / 255, noise_std=25)
    assert {warning.filename for warning in [*record, *more, *told]} == {__file__}
    with pytest.raises(ValueError, match="noise_std=25, but images of uint8.* noise_std / 255"):
        learner.denoise(images, noise_std=25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(gradient="dec", learn_threshold="atom"), "does not go through the encoder"),
        (
            dict(gradient="dec", separate_atoms="unfolding", atom_norm=None),
            "does not go through the encoder",
        ),
        (dict(shrinkage="hard", learn_threshold="one"), "has derivative 0"),
        (dict(separate_atoms="unfolding"), "step is a part of the atoms"),
        (dict(noise_std=(0.1, 0.5)), "have to be learned"),
        (dict(noise_std=(0.5, 0.1), learn_threshold="one"), "is not a pair"),
        (dict(noise_std=(0.0, 0.1), learn_threshold="one"), "is not a pair"),
        (dict(stride=(1, 2, 3)), "do not belong together"),
        (dict(stride=(6, 3)), "leaves gaps between atoms"),
        (dict(atom_shape=(5, 4, 3), stride=1), "one or two axes of an atom"),
        (dict(atom_shape=()), "do not belong together"),
        (dict(atom_shape=(5.7, 4)), "do not belong together"),
        (dict(lambda_decay=(1.0, 5.0)), "is not a pair"),
        (dict(lambda_decay=(0.9,)), "is not a pair"),
        (dict(dict_init=np.ones((6, 4, 5))), "expected .* = \\(6, 5, 4\\)"),
    ],
)
def test_contradictions_are_refused(options, message, images):
    with pytest.raises(ValueError, match=message):
        learner_of(**options).fit(images)


@pytest.mark.parametrize("clean", ["fewer", "smaller", "other channels"])
def test_pairs_that_do_not_match_are_refused(clean, images):
    targets = {
        "fewer": images[:4],
        "smaller": images[:, :12],
        "other channels": np.repeat(images[..., None], 2, axis=3),
    }[clean]
    with pytest.raises(ValueError, match="Targets do not match"):
        learner_of().fit(images, targets)
    with pytest.raises(ValueError, match="Targets do not match"):
        learner_of().fit(images).score(images, targets)


def test_warnings_point_at_the_line_that_called_fit(images):
    learner = learner_of(step_size=2.0, tol=1e-12)
    with pytest.warns((RuntimeWarning, ConvergenceWarning)) as caught:
        learner.fit(images)
    assert {warning.category for warning in caught} == {RuntimeWarning, ConvergenceWarning}
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("exponent", [-30, -3, 20])
@pytest.mark.parametrize(
    "params",
    [
        dict(learn_threshold="one"),
        dict(learn_threshold="atom", alpha=0.0),
        dict(learn_threshold="unfolding", separate_atoms="unfolding", atom_norm=None),
        dict(learn_threshold="atom", noise_std=0.1),
        dict(learn_threshold="unfolding", noise_std=(0.05, 0.3)),
    ],
    ids=str,
)
def test_learned_thresholds_scale_with_the_data(params, exponent, images):
    """In `fit` and in `partial_fit` after it; slopes for the noise have no unit."""
    unit = 2.0**exponent
    small = dict(atom_shape=(4, 5), stride=(2, 3), n_unfoldings=4, max_iter=2, tol=None)
    one = ConvDenoiser(3, random_state=0, learning_rate=0.02, **small | params)
    other = clone(one)
    for name in {"alpha", "noise_std"} & params.keys():
        scaled = unit * np.asarray(params[name])
        other.set_params(**{name: tuple(scaled) if scaled.ndim else float(scaled)})
    for method in ("fit", "partial_fit"):
        getattr(one, method)(images)
        getattr(other, method)(unit * images)
        pairs = [
            (other.alpha_, unit * np.asarray(one.alpha_)),
            (other.components_, one.components_),
            (getattr(other, "alpha_slope_", 0), getattr(one, "alpha_slope_", 0)),
        ]
        for found, expected in pairs:
            np.testing.assert_allclose(found, expected, rtol=1e-9)
