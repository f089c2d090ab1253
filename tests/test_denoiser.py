"""Denoising networks are loops of convolutions, train on noise, and keep the size of images."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from sklearn.datasets import load_sample_image
from sklearn.exceptions import ConvergenceWarning

from skpudle import ConvDenoiser
from skpudle._data.images import covered
from skpudle._denoiser import network
from skpudle._denoiser.network import DenoisingNetwork
from skpudle._image_noise import estimate_noise, estimate_noise_of_known
from skpudle._operators._atoms import project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle.encoding import encode
from skpudle.encoding._unfold import default_step

SMALL = dict(
    atom_shape=(5, 4), stride=(2, 3), noise_std=0.0, n_unfoldings=4, max_iter=2, tol=None,
    random_state=0, batch_size=16,
)  # fmt: skip
RANGE = (0.1, 0.5)


def learner_of(n_components=6, **options):
    return ConvDenoiser(n_components, **SMALL | options)


def atoms_of(learner):
    return learner.network_.synthesis.detach().numpy()


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(5, 13, 16))


@pytest.fixture(scope="module")
def trained():
    """A network for a range of noise, on normal numbers."""
    images = np.random.default_rng(0).normal(size=(5, 13, 16))
    return learner_of(noise_std=RANGE).fit(images)


def blocks(n, size, seed):  # piecewise constant pictures
    values = np.random.default_rng(seed).uniform(size=(n, size // 8 + 1, size // 8 + 1))
    return np.kron(values, np.ones((8, 8)))[:, :size, :size]


def network_of(generator, noise_std=RANGE, *, shape=(3, 6, 1, 5, 5), stride=(2, 2)):
    network = DenoisingNetwork(shape, stride, noise_std, peak=9.0).double()
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(0.15 * torch.randn(value.shape, generator=generator))
        for levels in (network.thresholds, network.slopes):
            if levels is not None:
                levels.abs_()
    return network


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("noise_std", [0.3, RANGE])
def test_the_network_is_a_loop_of_convolutions(noise_std, generator):
    """Values, and derivatives in all that is learned."""
    network = network_of(generator, noise_std, shape=(5, 4, 2, 5, 4), stride=(2, 3))
    x = 2 * torch.randn(3, 2, 13, 13, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.12, 0.3, 0.5], dtype=torch.float64)

    def naive():
        z = torch.nn.functional.conv2d(x, network.analysis[0], stride=(2, 3)) * 0
        for t in range(5):
            sums = torch.conv_transpose2d(
                z, network.synthesis[max(t - 1, 0)], stride=(2, 3)
            )
            rest = x if t == 0 else x - sums
            v = z + torch.nn.functional.conv2d(rest, network.analysis[t], stride=(2, 3))
            level = network.thresholds[t].expand(3, 4)
            if network.slopes is not None:  # in units of the middle level
                level = level + sigma[:, None] / (0.1 * 0.5) ** 0.5 * network.slopes[t]
            z = v.sign() * (v.abs() - level[..., None, None]).relu()
        return torch.conv_transpose2d(z, network.synthesis[-1], stride=(2, 3))

    codes = network.encode(x, sigma)
    assert 0 < (codes == 0).double().mean() < 1
    found, expected = network.decode(codes), naive()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    parameters = [*network.parameters()]
    ours, oracle = (
        torch.autograd.grad((weights * y).sum(), parameters) for y in (found, expected)
    )
    for one, other in zip(ours, oracle, strict=True):
        assert other.any()
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shift_average", [False, True])
def test_tiles_with_overlap_are_the_whole_image(shift_average, generator):
    network = network_of(generator)
    x = torch.randn(2, 1, 61, 53, generator=generator, dtype=torch.float64)
    whole = network(x, 0.3, shift_average=shift_average)
    tiles = []
    network.tell = lambda: tiles.append(network.tile)
    for tile in (9, 16, 20):
        network.tile = tile
        tiled = network(x, 0.3, shift_average=shift_average)
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-12)
    assert all(tiles.count(tile) > 1 for tile in (9, 16, 20))


def test_shift_average_is_the_mean_over_moved_grids(generator):
    """Inside, where the continuation of the border does not reach, and for no noise, unmixed."""
    learner = ConvDenoiser.from_network(network_of(generator, 0.0), shift_average=True)
    x = torch.randn(1, 70, 70, generator=generator, dtype=torch.float64)
    total = 0
    for i in range(2):
        for j in range(2):
            moved = learner.network_(x[None, :, i:, j:])[0].detach()
            total = total + torch.nn.functional.pad(moved, [j, 0, i, 0])
    inside = (..., slice(26, 44), slice(26, 44))
    found = learner.denoise(x)[inside]
    torch.testing.assert_close(found, total[inside] / 4, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 24, 28), (2, 23, 25), (1, 150)], ids=str)
def test_the_mix_with_the_input_has_the_smallest_estimated_error(shape, generator):
    """Stein's estimate with all derivatives has its minimum there.

    Atoms are single pixels, so that the derivative is diagonal.
    """
    n_channels, *size = shape
    sizes = (1, n_channels, n_channels, *[1] * len(size))
    network = DenoisingNetwork(sizes, (1,) * len(size), 0.3, peak=9.0).double()
    with torch.no_grad():
        for atoms in (network.analysis, network.synthesis):
            atoms.copy_(torch.eye(n_channels).reshape(sizes))
        network.thresholds.fill_(0.7)
    x = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    change = x.sign() * (x.abs() - 0.7).clamp_min(0) - x
    trace = float((x.abs() > 0.7).double().sum())
    share = 0.3**2 * (x.numel() - trace) / float(change.square().sum())
    assert 0 < share < 0.9
    # 10 % in favour of the network, and steps that cross a threshold
    torch.testing.assert_close(
        network(x, 0.3), x + 1.1 * share * change, atol=0.02, rtol=0
    )


def test_photons_are_mixed_by_the_variance_of_counts(generator):
    """Hudson's identity: what noise explains of a change of a count is the count, times 1 - f'."""
    network = DenoisingNetwork((1, 1, 1, 1, 1), (1, 1), "poisson", peak=99.0).double()
    with torch.no_grad():
        network.analysis.fill_(1.0)
        network.synthesis.fill_(1.0)
        network.thresholds.fill_(4.0)
    counts = torch.poisson(
        torch.full((1, 1, 40, 40), 100.0), generator=generator
    ).double()
    roots = network.noise.enter(counts)
    mixed, denoised = (
        network.noise.leave(network(roots)),
        network.noise.leave(roots - 4.0),
    )
    slope = (roots - 4.0) / roots  # of (root(y) - 4)^2 / 4 in y
    change = denoised - counts
    share = float((counts * (1 - slope)).sum() / change.square().sum())
    assert 0 < share < 0.5
    torch.testing.assert_close(mixed, counts + 1.1 * share * change, rtol=1e-3, atol=0)


def test_the_network_sees_nothing_that_it_was_not_trained_for(
    trained, images, monkeypatch
):
    """Pixels as large as in training, and a level of its range, whatever the noise and units."""
    seen, levels, own, unfold = [], [], trained.network_, network.unfold

    def listen(synthesis, x, level, *how, **options):
        seen.append(float(x.abs().max()))
        levels.append(level)
        return unfold(synthesis, x, level, *how, **options)

    monkeypatch.setattr(network, "unfold", listen)
    for unit in (1 / 64, 1.0, 255.0):
        for level in (0.001, 0.09, 0.1, 0.5, 0.51, 3.0):
            trained.denoise(unit * images, noise_std=unit * level)
    assert max(seen) <= own.peak + 6 * 0.5  # images and their noise
    shares = [level / (RANGE[0] * RANGE[1]) ** 0.5 for level in RANGE]
    ends = [
        (own.thresholds + share * own.slopes)[:, None, :, None, None]
        for share in shares
    ]
    assert all(((ends[0] - 1e-7 <= x) & (x <= ends[1] + 1e-7)).all() for x in levels)


# ---------------------------------------------------------------- denoising


@pytest.mark.parametrize(
    "size", [(13, 16), (14, 15), (5, 4), (3, 20), (1, 1), (2, 7)], ids=str
)
def test_denoised_images_have_exactly_the_size_of_their_input(size, trained):
    learner = pickle.loads(pickle.dumps(trained))
    image = np.random.default_rng(0).normal(size=size)
    (denoised,) = learner.denoise([image])
    assert denoised.shape == size
    assert np.isfinite(denoised).all()
    assert learner.denoise(image[None]).shape == (1, *size)


@pytest.mark.parametrize("unit", [1 / 64, 64.0, 255.0])
def test_images_in_other_units_are_scaled_to_the_pixels_of_training(
    unit, images, trained
):
    assert trained.network_.peak == np.abs(images).max()
    for image in images * (
        trained.network_.peak / np.abs(images).max(axis=(1, 2), keepdims=True)
    ):
        for noise_std in (0.2, 0.02):  # known, and less than known
            (expected,) = trained.denoise([image], noise_std=noise_std)
            (found,) = trained.denoise([unit * image], noise_std=noise_std * unit)
            np.testing.assert_allclose(
                found, unit * expected, rtol=1e-10, atol=1e-10 * unit
            )


def test_every_image_has_its_noise_and_none_without_noise_changes(images, trained):
    levels = np.array([0.0, 0.1, 0.2, 0.4, 0.5])
    together = trained.denoise(images, noise_std=levels)
    for i, level in enumerate(levels):
        (alone,) = trained.denoise([images[i]], noise_std=level)
        np.testing.assert_allclose(together[i], alone, atol=1e-12)
    np.testing.assert_array_equal(together[0], images[0])
    assert (together[1:] != images[1:]).all()


def test_a_network_for_grey_images_denoises_three_channels(images, trained):
    """By their mean, which has less noise, and differences, of which grey images have none."""
    coloured = np.repeat(images[..., None], 3, axis=3)
    denoised = trained.denoise(coloured, noise_std=0.3)
    expected = trained.denoise(images, noise_std=0.3 / 3**0.5)
    np.testing.assert_allclose(
        denoised, np.repeat(expected[..., None], 3, axis=3), atol=1e-12
    )
    with pytest.raises(ValueError, match="3 channels, but .* fitted on 1"):
        trained.partial_fit(coloured)


def test_score_is_the_mean_psnr(images):
    learner = learner_of().fit(images)
    noisy = images + 0.1
    expected = [
        peak_signal_noise_ratio(clean, denoised, data_range=2.0)
        for clean, denoised in zip(images, learner.denoise(noisy))
    ]
    score = learner.score(list(noisy), list(images), peak=2.0)
    assert type(score) is float
    assert score == pytest.approx(np.mean(expected))
    with pytest.raises(
        ValueError, match="nothing to remove: the noise of training is 0"
    ):
        learner.score(images, [0, 1, 0, 1, 0])
    # without clean images the noise of training is added, the same in every call
    of_noise = learner_of(noise_std=0.3).fit(images)
    assert of_noise.score(images[::-1]) == pytest.approx(of_noise.score(images))
    noise = np.random.default_rng(1).normal(scale=0.3, size=images.shape)
    plain = of_noise.score(images + noise, images)
    assert of_noise.score(images) == pytest.approx(plain, abs=0.5)


def test_images_whose_squares_vanish_are_refused(images):
    with pytest.raises(ValueError, match="does not hold the squares"):
        ConvDenoiser(4, max_iter=1, random_state=0).fit(1e-200 * images)


def test_progress_is_told_tile_by_tile(images, trained, capsys):
    learner = pickle.loads(pickle.dumps(trained)).set_params(verbose=1)
    learner.network_.tile = 9
    learner.denoise(np.tile(images, (1, 4, 4)))
    said = capsys.readouterr().out.splitlines()
    assert said == [f"denoising, part 1/1, tile {i + 1}" for i in range(len(said))]
    assert len(said) > 2  # of an image and of its probe


def test_photons_are_denoised_as_roots():
    """The same updates for pairs of counts and expectations, and the same results."""
    rng = np.random.default_rng(0)
    expected = rng.uniform(0, 4, size=(4, 13, 16))
    counts = rng.poisson(expected).astype(float)
    photons = learner_of(noise_std="poisson", alpha=0.4).fit(counts, expected)
    root, both = lambda x: 2 * np.sqrt(x + 3 / 8), (counts, expected)
    roots = learner_of(noise_std=0.0, alpha=0.4).fit(*map(root, both))
    for one, other in zip(
        photons.network_.parameters(), roots.network_.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    as_integers = photons.denoise(counts.astype(np.uint16))
    np.testing.assert_array_equal(as_integers, photons.denoise(counts))
    for call in (photons.fit, photons.denoise, lambda x: photons.fit(counts, x)):
        with pytest.raises(ValueError, match="Negative values"):
            call(-1 - counts)
    with pytest.raises(ValueError, match="Leave noise_std=None"):
        photons.denoise(counts, noise_std=1.0)
    with pytest.raises(ValueError, match="3 channels"):
        photons.denoise(np.stack([counts] * 3, axis=-1))


# ---------------------------------------------------------------- the noise of images


def test_texture_is_no_noise():
    """Clean photographs have none, and noise is found whole where there is enough of it."""
    parts = []
    for name in ("china.jpg", "flower.jpg"):
        image = load_sample_image(name).mean(axis=2) / 255
        part = image[100:292, 150:342]
        assert float(estimate_noise(torch.tensor(part)[None, None])) < 1e-3
        image = image if name == "china.jpg" else part
        corners = np.ndindex(*(n // 32 for n in image.shape))
        parts += [image[32 * y : 32 * y + 32, 32 * x : 32 * x + 32] for y, x in corners]
    clean = torch.tensor(np.stack(parts))[:, None]
    # .14 with half the texture
    assert (estimate_noise(clean) > 0.005).double().mean() < 0.1
    white = torch.randn(4, 1, 200, 210, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimate_noise(white), torch.ones(4), atol=0.05, rtol=0)
    ramp = torch.linspace(0, 20, 200)[:, None] + white
    torch.testing.assert_close(estimate_noise(ramp), torch.ones(4), atol=0.1, rtol=0)


@pytest.mark.parametrize("size", [(96, 80), (700,), (1, 700)], ids=str)
def test_estimated_noise_commutes_with_units_and_offsets(size):
    images = torch.randn(
        3, 2, *size, generator=torch.Generator().manual_seed(0)
    ).double()
    found = estimate_noise(images)
    assert ((found > 0.7) & (found < 1.3)).all()
    torch.testing.assert_close(
        estimate_noise(255 * images - 7), 255 * found, rtol=1e-9, atol=0
    )
    assert not estimate_noise(torch.full((1, 1, *size), 0.5)).any()


def test_the_noise_of_photographs_is_estimated():
    """Within 5 % at 15 and 50 of 255, where there is not more texture than noise."""
    image = load_sample_image("flower.jpg").mean(axis=2) / 255
    for level in (15 / 255, 50 / 255):
        noisy = image + level * np.random.default_rng(0).normal(size=image.shape)
        found = float(estimate_noise(torch.tensor(noisy)[None, None]))
        assert abs(found / level - 1) < 0.05


@pytest.mark.parametrize("size", [(5000,), (70, 80), (15, 20, 18)], ids=str)
@pytest.mark.parametrize("n_known_of_ten", [10, 7])
def test_the_noise_of_known_pixels_is_estimated(size, n_known_of_ten):
    """White noise within 6 %, also on a slope and beside edges along all axes but one."""
    rng = np.random.default_rng(0)
    x = torch.tensor(0.3 * rng.standard_normal((2, 1, *size)))
    mask = torch.tensor(rng.random(x.shape) < n_known_of_ten / 10)
    assert estimate_noise_of_known(x, mask) == pytest.approx(0.3, rel=0.06)
    slope = torch.arange(size[-1], dtype=x.dtype)
    if len(size) > 1:
        edges = 5 * (torch.arange(size[0]) % 2).reshape(-1, *[1] * (len(size) - 1))
        slope = slope + edges
    assert estimate_noise_of_known(x + slope, mask) == pytest.approx(0.3, rel=0.06)
    # Missing pixels may have any number.
    wrong = torch.where(mask, x, torch.tensor(1e6, dtype=x.dtype))
    assert estimate_noise_of_known(wrong, mask) == estimate_noise_of_known(x, mask)
    assert estimate_noise_of_known(x, torch.zeros_like(mask)) == 0


# ---------------------------------------------------------------- training


def test_training_denoises():
    """Supervised by pairs, or with noise of its own."""
    clean, test = blocks(24, 33, 0), blocks(6, 40, 1)
    rng = np.random.default_rng(2)
    noisy, noisy_test = (x + 0.2 * rng.normal(size=x.shape) for x in (clean, test))
    options = dict(
        atom_shape=(6, 6), stride=3, n_unfoldings=6, max_iter=15, batch_size=8
    )
    options |= dict(learning_rate=1e-2, alpha=0.2)
    before = learner_of(16, **options | {"learning_rate": 1e-9}).fit(noisy, clean)
    start = before.score(noisy_test, test)
    pairs = learner_of(16, **options).fit(noisy, clean).score(noisy_test, test)
    fresh = learner_of(16, **options, noise_std=0.2).fit(clean)
    assert pairs > start + 1
    assert fresh.score(noisy_test, test) > start + 1


def test_one_network_denoises_at_any_level():
    """It does better with the noise it is told or finds than with that of another level."""
    clean, test = blocks(32, 24, 0), blocks(32, 24, 1)
    learner = learner_of(16, noise_std=(0.05, 0.5), crop_size=24, learning_rate=1e-2)
    learner.set_params(max_iter=40).fit(clean)
    for level in (0.07, 0.4):
        noisy = test + level * np.random.default_rng(2).normal(size=test.shape)
        told, found, wrong = (
            np.mean((learner.denoise(noisy, noise_std=s) - test) ** 2)
            for s in (level, None, 0.47 - level)
        )
        assert max(told, found) < min(0.8 * wrong, level**2)


def test_a_fit_begins_as_the_lasso_of_its_atoms(images):
    """The step is shared by both sides, and codes and thresholds are in its unit."""
    learner = learner_of(alpha=0.3, learning_rate=1e-300).fit(images)
    dictionary = ConvDictionary(
        project_atoms(learner.network_.synthesis[0].detach()), (2, 3)
    )
    x = covered(torch.from_numpy(images)[:, None], (5, 4), (2, 3))
    lasso = encode(dictionary, x, alpha=0.3, n_unfoldings=4)
    codes = learner.network_.encode(x)
    found = float(default_step(dictionary)) ** 0.5 * codes
    torch.testing.assert_close(found, lasso, atol=1e-12, rtol=0)
    expected = dictionary.synthesis(lasso)
    torch.testing.assert_close(
        learner.network_.decode(codes), expected, atol=1e-12, rtol=0
    )


def test_the_same_seed_gives_the_same_bits_also_after_pickling(images):
    options = dict(noise_std=0.1, crop_size=9)
    first, second, other = (
        learner_of(**options | {"random_state": seed}).fit(images) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(atoms_of(first), atoms_of(second))
    assert (atoms_of(first) != atoms_of(other)).any()
    stored = pickle.loads(pickle.dumps(first)).partial_fit(images)
    np.testing.assert_array_equal(
        atoms_of(stored), atoms_of(second.partial_fit(images))
    )
    assert stored.n_steps_ == first.n_steps_ + 1
    assert len(stored.loss_curve_) == 3


@pytest.mark.parametrize("exponent", [-30, -3, 20])
@pytest.mark.parametrize("noise_std", [0.1, (0.05, 0.3)])
def test_thresholds_scale_with_the_data(noise_std, exponent, images):
    """In `fit` and in `partial_fit` after it."""
    unit = 2.0**exponent
    one, other = (
        learner_of(3, noise_std=s, learning_rate=0.02) for s in (noise_std, 0.0)
    )
    scaled = unit * np.asarray(noise_std)
    other.set_params(noise_std=tuple(scaled) if scaled.ndim else float(scaled))
    for method in ("fit", "partial_fit"):
        getattr(one, method)(images)
        getattr(other, method)(unit * images)
        np.testing.assert_allclose(atoms_of(other), atoms_of(one), rtol=1e-7)
        for found, expected in zip(
            other.network_.levels, one.network_.levels, strict=True
        ):
            torch.testing.assert_close(found, unit * expected, rtol=1e-7, atol=0)


def test_without_a_level_the_noise_follows_the_images(images):
    """In proportion to the range of clean images, or as noisy images differ from clean ones."""
    learner = learner_of(noise_std="auto").fit(images)
    extent = np.ptp(images)
    expected = pytest.approx((0.02 * extent, 0.5 * extent))
    assert learner.training_noise_std_ == expected
    learner = learner_of(noise_std="auto").fit(np.ones_like(images))
    assert learner.training_noise_std_ == 0
    noisy = images + 0.3 * np.random.default_rng(1).normal(size=images.shape)
    pairs = learner_of(noise_std="auto").fit(noisy, images)
    stored = pairs.training_noise_std_
    assert stored == pytest.approx((noisy - images).std())
    assert pairs.network_.peak == np.abs(images).max()
    assert pairs.partial_fit(images / 2).training_noise_std_ == stored
    assert pairs.network_.peak == np.abs(images).max()
    learners = [
        learner_of(**s, alpha=0.2).fit(images, images)
        for s in ({}, dict(noise_std=0.5))
    ]
    np.testing.assert_array_equal(*map(atoms_of, learners))


def test_training_that_diverges_leaves_a_finite_network(images):
    learner = learner_of(learning_rate=1e30, max_iter=9)
    with pytest.raises(ValueError, match="stopped being finite .*learning_rate"):
        learner.fit(images)
    assert learner.ended_by_ == "divergence"
    assert np.isfinite(learner.denoise(images)).all()


def test_training_that_makes_images_worse_says_so():
    """The loss is then larger than the noise."""
    learner = learner_of(noise_std=0.01, learning_rate=0.3)
    with pytest.warns(ConvergenceWarning, match="raised its objective .*learning_rate"):
        learner.set_params(batch_size=1, max_iter=2).fit(blocks(8, 24, 0))


# ---------------------------------------------------------------- what is refused


@pytest.mark.filterwarnings("ignore:The noise of an image")
def test_noise_in_other_units_than_the_images_is_pointed_out():
    """Unsigned integers become fractions, so sigma 25 is 25 / 255; other numbers stay."""
    images = np.random.default_rng(0).integers(256, size=(2, 13, 16), dtype=np.uint8)
    with pytest.warns(
        UserWarning, match="noise_std=25, but the largest pixel is 1"
    ) as record:
        learner_of(noise_std=25.0, learning_rate=1e-9).fit(images)
    learner = learner_of(noise_std=25 / 255).fit(images)
    learner.denoise(images)
    learner.denoise(images, noise_std=1e-6)  # who tells it knows it
    with pytest.warns(
        UserWarning, match="noise_std=0.098, but the largest pixel is 255"
    ) as more:
        learner.denoise(images.astype(float))
    with pytest.warns(
        UserWarning, match="noise_std=25, but the largest pixel is 1"
    ) as told:
        learner.denoise(images / 255, noise_std=25)
    assert {warning.filename for warning in [*record, *more, *told]} == {__file__}


@pytest.mark.parametrize(
    "noise_std",
    [-1.0, float("nan"), float("inf"), [0.1, 0.2], "a", ["a"] * 5, 1j, [[0.1]]],
)
def test_what_is_no_noise_is_refused(noise_std, images, trained):
    with pytest.raises(ValueError, match="noise_std|shape|remapping|float|Complex"):
        trained.denoise(images, noise_std=noise_std)
    with pytest.raises(ValueError, match="noise of training was 0"):
        learner_of().fit(images).denoise(images, noise_std=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(noise_std=(0.5, 0.1)), "neither a standard deviation nor a pair"),
        (dict(stride=(1, 2, 3)), "do not belong together"),
        (dict(stride=(6, 3)), "strides of at most the size of an atom"),
        (dict(atom_shape=(5, 4, 3, 2), stride=1), "one to three of each"),
    ],
)
def test_contradictions_are_refused(options, message, images):
    with pytest.raises(ValueError, match=message):
        learner_of(**options).fit(images)


@pytest.mark.parametrize("call", ["fit", "score"])
def test_pairs_that_do_not_match_are_refused(call, images, trained):
    """Fewer, smaller ones, and ones of other channels."""
    learner = learner_of() if call == "fit" else trained
    for targets in (
        images[:4],
        images[:, :12],
        np.repeat(images[..., None], 2, axis=3),
    ):
        with pytest.raises(ValueError, match="Targets do not match"):
            getattr(learner, call)(images, targets)


def test_much_more_noise_than_in_training_is_warned_of(images):
    """Silence if the noise is passed, or if training had a range of noise."""
    noisy = 0.5 + np.random.default_rng(0).normal(size=(2, 40, 40))
    learner = learner_of(noise_std=0.1).fit(images)
    with pytest.warns(UserWarning, match=r"(?s)trained for 0\.1: .*Pass the noise to"):
        learner.denoise(noisy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.denoise(noisy, noise_std=1.0)
        learner_of(noise_std=(0.1, 1.0)).fit(images).denoise(noisy)
