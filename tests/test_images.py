"""Patches cover an image and go back to it; measures are those of scikit-image."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.image import extract_patches_2d, reconstruct_from_patches_2d
from sklearn.preprocessing import FunctionTransformer

from skpudle import ConvPUDLEDictionaryLearning, PUDLEDictionaryLearning
from skpudle.datasets import extract_patches
from skpudle.images import denoise_patches, extract, psnr, reconstruct, ssim
from skpudle.metrics import (
    make_denoising_scorer,
    make_lasso_objective_scorer,
    reconstruction_r2_scorer,
)
from skpudle.pretrained import load_denoiser, save_denoiser


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(size=(17, 22))


def test_patches_at_every_pixel_are_those_of_scikit_learn(image):
    expected = extract_patches_2d(image, (5, 4)).reshape(-1, 20)
    np.testing.assert_array_equal(extract(image, (5, 4)), expected)
    changed = expected + np.random.default_rng(1).normal(size=expected.shape)
    mean = reconstruct_from_patches_2d(changed.reshape(-1, 5, 4), image.shape)
    np.testing.assert_allclose(reconstruct(changed, image.shape, (5, 4)), mean, atol=1e-12)


@pytest.mark.parametrize("shape", [(17, 22), (5, 4), (3, 30), (1, 1)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_unchanged_patches_are_the_image(shape, stride):
    image = np.random.default_rng(0).normal(size=shape)
    patches = extract(image, (5, 4), stride=stride)
    back = reconstruct(patches, shape, (5, 4), stride=stride)
    np.testing.assert_allclose(back, image, rtol=1e-12)
    tensors = extract(torch.tensor(image), (5, 4), stride=stride)
    assert isinstance(reconstruct(tensors, shape, (5, 4), stride=stride), torch.Tensor)


def test_denoising_by_a_learner_that_changes_nothing_changes_nothing(image):
    identity = FunctionTransformer(check_inverse=False).fit(np.zeros((1, 64)))
    np.testing.assert_allclose(denoise_patches(identity, image, stride=3), image, atol=1e-12)


def test_a_learned_dictionary_denoises():
    clean = np.kron(np.random.default_rng(0).uniform(size=(6, 6)), np.ones((8, 8)))
    noisy = clean + 0.1 * np.random.default_rng(1).normal(size=clean.shape)
    patches = extract(noisy)
    patches = patches - patches.mean(1, keepdims=True)
    options = dict(alpha=0.2, n_unfoldings=30, max_iter=5, tol=None, random_state=0)
    learner = PUDLEDictionaryLearning(32, gradient="dec", optimizer="surrogate", **options)
    learner.fit(patches)
    assert psnr(denoise_patches(learner, noisy, stride=2), clean) > psnr(noisy, clean) + 5


def test_sizes_that_do_not_fit_are_refused(image):
    with pytest.raises(ValueError, match="do not cover an image"):
        extract(image, (5, 4), stride=5)
    with pytest.raises(ValueError, match="pass what extract returned"):
        reconstruct(np.zeros((3, 20)), image.shape, (5, 4))


def test_measures_of_equal_and_of_different_images(image):
    assert psnr(image + 0.1, image) == pytest.approx(20)
    assert psnr(image + 0.1, image, peak=10.0) == pytest.approx(40)
    assert ssim(image, image) == pytest.approx(1)
    assert ssim(image + 1, image, peak=4.0) < 1


def test_packaged_denoiser_denoises(tmp_path):
    """A part of a photograph with smooth and rough regions."""
    from sklearn.datasets import load_sample_image

    clean = load_sample_image("china.jpg").mean(axis=2)[80:240, 200:400] / 255
    noisy = clean + 25 / 255 * np.random.default_rng(0).normal(size=clean.shape)
    learner = load_denoiser()
    denoised = learner.denoise([noisy])[0]
    assert psnr(denoised, clean) > psnr(noisy, clean) + 5
    save_denoiser(learner, tmp_path / "copy.npz")
    again = load_denoiser(tmp_path / "copy.npz").denoise([noisy])[0]
    np.testing.assert_allclose(again, denoised, atol=1e-12)
    steps = learner.set_params(learning_rate=1e-4, random_state=0).partial_fit([clean]).n_steps_
    assert steps == 1


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((3, 14, 13, 3), dict(atom_shape=(5, 4), stride=(3, 2))), ((3, 30, 2), dict(atom_shape=7))],
    ids=["colour", "two-channel signals"],
)
@pytest.mark.parametrize(
    "options",
    [
        dict(separate_atoms="both", noise_std=0.1),
        dict(separate_atoms="unfolding", noise_std=(0.05, 0.5), learn_threshold="unfolding"),
    ],
    ids=["both", "unfolding"],
)
def test_a_denoiser_is_loaded_as_it_was_saved(shape, sizes, options, tmp_path):
    noisy = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    shared = dict(n_unfoldings=3, max_iter=1, tol=None, random_state=0)
    options = options | dict(lambda_decay=0.9, atom_norm=None)
    learner = ConvPUDLEDictionaryLearning(6, **sizes, **options, **shared).fit(noisy)
    save_denoiser(learner, tmp_path / "denoiser.npz")
    loaded = load_denoiser(tmp_path / "denoiser.npz", shift_average=False)
    found, expected = loaded.get_params(), learner.get_params()
    for name in ("atom_shape", "stride", "lambda_decay", "noise_std", "separate_atoms"):
        assert found[name] == expected[name]
    assert loaded.device_ == learner.device_
    np.testing.assert_allclose(loaded.denoise(noisy), learner.denoise(noisy), atol=1e-6)
    assert loaded.set_params(random_state=0).partial_fit(noisy).lambda_decay_ == 0.9


def test_the_default_device_of_torch_does_not_matter_to_the_denoiser(image):
    """Nothing is made there: on the device "meta" numbers do not exist."""
    expected = load_denoiser(device="cpu").denoise([image])[0]
    with torch.device("meta"):
        found = load_denoiser(device="cpu").denoise([image])[0]
    np.testing.assert_array_equal(found, expected)


def test_unsigned_integers_are_fractions_wherever_there_are_images():
    image = np.random.default_rng(0).integers(256, size=(17, 22), dtype=np.uint8)
    fractions = (image / 255).astype(np.float32)
    np.testing.assert_array_equal(extract(image), extract(fractions))
    pair = (extract_patches([X], random_state=0, n_patches=9) for X in (image, fractions))
    np.testing.assert_array_equal(*pair)
    nothing = FunctionTransformer(check_inverse=False)
    np.testing.assert_allclose(denoise_patches(nothing, image.tolist()), image, rtol=1e-5)
    learner = ConvPUDLEDictionaryLearning(4, max_iter=1, tol=None, n_unfoldings=2, random_state=0)
    learner.fit(fractions[None])
    two, same = np.stack([image, image[::-1]]), np.stack([fractions, fractions[::-1]])
    scorers = (reconstruction_r2_scorer, make_denoising_scorer(), make_lasso_objective_scorer())
    for scorer in scorers:
        assert scorer(learner, two) == scorer(learner, same)


def test_what_is_not_fitted_is_not_saved(tmp_path):
    with pytest.raises(NotFittedError):
        save_denoiser(ConvPUDLEDictionaryLearning(4), tmp_path / "nothing.npz")
    assert not [*tmp_path.iterdir()]
