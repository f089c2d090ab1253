"""Networks for photons see roots of counts, and return expected counts."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_sample_image

from skpudle import ConvDenoiser
from skpudle.pretrained import load_denoiser, save_denoiser

IMAGES = dict(
    atom_shape=(5, 4), stride=2, n_unfoldings=3, separate_atoms="unfolding", alpha=0.4,
    learn_threshold="unfolding", atom_norm=None, max_iter=2, tol=None, random_state=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def light():
    """What is expected, and what was counted."""
    rng = np.random.default_rng(0)
    expected = rng.uniform(0, 4, size=(4, 13, 16))
    return expected, rng.poisson(expected).astype(float)


def root(x):
    return 2 * np.sqrt(x + 3 / 8)


def test_a_network_for_photons_is_one_for_roots(light):
    """The same updates for pairs, and the same results."""
    expected, counts = light
    photons = ConvDenoiser(6, **IMAGES, noise_std="poisson", flip=False)
    roots = ConvDenoiser(6, **IMAGES, noise_std=0.0, flip=False)
    photons.fit(counts, expected)
    roots.fit(root(counts), root(expected))
    np.testing.assert_allclose(photons.components_, roots.components_, rtol=1e-10)
    codes = photons.transform(counts)
    np.testing.assert_allclose(codes, roots.transform(root(counts)), rtol=1e-9, atol=1e-12)
    decoded = np.maximum((np.maximum(roots.inverse_transform(codes), 0) / 2) ** 2 - 3 / 8, 0)
    np.testing.assert_allclose(photons.inverse_transform(codes), decoded, rtol=1e-9, atol=1e-12)
    denoised = photons.denoise(counts)
    np.testing.assert_array_equal(
        photons.denoise(counts.astype(np.uint16)), photons.denoise(counts)
    )
    error = np.square(denoised - expected).mean(axis=(1, 2))
    psnr = np.mean(10 * np.log10(16 / error))
    assert photons.score(counts, expected, peak=4.0) == pytest.approx(psnr)


def test_counts_are_drawn_anew(light):
    """Two epochs of one image see other counts: the loss of no update is that of the image."""
    expected, counts = light
    learner = ConvDenoiser(6, **IMAGES | dict(noise_std="poisson", flip=False))
    learner.set_params(learning_rate=1e-12, max_iter=6).fit(expected)
    assert len(set(learner.loss_curve_)) == 6
    of_pairs = learner.partial_fit(counts, expected).loss_curve_[-1]
    np.testing.assert_allclose(learner.loss_curve_, of_pairs, rtol=0.3)
    assert learner.score(expected) == learner.score(expected)


def test_a_denoiser_of_photons_is_kept(light, tmp_path):
    expected, counts = light
    learner = ConvDenoiser(6, **IMAGES, noise_std="poisson")
    learner.fit(expected.astype(np.float32))
    save_denoiser(learner, tmp_path / "photons.npz")
    same = load_denoiser(tmp_path / "photons.npz", shift_average=False)
    assert same.noise_std == "poisson"
    np.testing.assert_array_equal(same.denoise(counts), learner.denoise(counts))


def test_what_is_no_photon_is_refused(light):
    expected, counts = light
    learner = ConvDenoiser(6, **IMAGES, noise_std="poisson").fit(expected)
    for call in (learner.fit, learner.denoise, lambda x: learner.fit(counts, x)):
        with pytest.raises(ValueError, match="Negative values"):
            call(-1 - counts)
    with pytest.raises(ValueError, match="Leave noise_std=None"):
        learner.denoise(counts, noise_std=1.0)
    with pytest.raises(ValueError, match="3 channels"):
        learner.denoise(np.stack([counts] * 3, axis=-1))


def decibels(image, expected):
    return -10 * np.log10(np.square(image - expected).mean())


def test_the_penalty_of_photons_is_next_to_their_noise(light):
    """As for roots, whose noise is 1."""
    expected, counts = light
    options = dict(atom_shape=(5, 5), stride=2, flip=False, max_iter=2, tol=None, random_state=0)
    photons = ConvDenoiser(3, **options, noise_std="poisson").fit(counts, expected)
    roots = ConvDenoiser(3, **options, noise_std=1.0, alpha=1.6).fit(root(counts), root(expected))
    np.testing.assert_allclose(photons.components_, roots.components_, rtol=1e-9, atol=1e-12)
    assert photons.alpha_ == 1.6


@pytest.mark.parametrize("peak", [1, 4])
def test_the_packaged_network_denoises_photons(peak):
    image = load_sample_image("flower.jpg").mean(axis=2)[100:180, 200:290]
    expected = peak * image / image.max()
    counts = np.random.default_rng(0).poisson(expected)
    learner = load_denoiser("poisson", shift_average=False)
    smoothed = ndimage.gaussian_filter(counts.astype(float), 2)
    assert learner.score([counts], [expected]) > 0.5 + decibels(smoothed, expected)
