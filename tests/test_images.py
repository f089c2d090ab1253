"""Patches cover an image and go back to it; measures are those of scikit-image."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.fft import dct
from sklearn.decomposition import MiniBatchDictionaryLearning, SparseCoder
from sklearn.feature_extraction.image import (
    extract_patches_2d,
    reconstruct_from_patches_2d,
)
from small import weekly

from skpudle import PUDLEDictionaryLearning
from skpudle import images as images_module
from skpudle.images import denoise_patches, extract, inpaint, reconstruct
from skpudle.pretrained import load_denoiser


def mean_square(error):
    return float(np.mean(np.square(error)))


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(size=(17, 22))


def test_patches_at_every_pixel_are_those_of_scikit_learn(image):
    expected = extract_patches_2d(image, (5, 4)).reshape(-1, 20)
    np.testing.assert_array_equal(extract(image, (5, 4)), expected)
    changed = expected + np.random.default_rng(1).normal(size=expected.shape)
    mean = reconstruct_from_patches_2d(changed.reshape(-1, 5, 4), image.shape)
    np.testing.assert_allclose(
        reconstruct(changed, image.shape, (5, 4)), mean, atol=1e-12
    )


@pytest.mark.parametrize("shape", [(17, 22), (5, 4), (3, 30), (1, 1)], ids=str)
def test_unchanged_patches_are_the_image(shape):
    image = np.random.default_rng(0).normal(size=shape)
    for stride in (1, 2, 3, 4):
        patches = extract(image, (5, 4), stride=stride)
        back = reconstruct(patches, shape, (5, 4), stride=stride)
        np.testing.assert_allclose(back, image, rtol=1e-12)
        tensors = extract(torch.tensor(image), (5, 4), stride=stride)
        assert isinstance(
            reconstruct(tensors, shape, (5, 4), stride=stride), torch.Tensor
        )


def cosines(side=8):
    waves = dct(np.eye(side), norm="ortho", axis=0)
    return np.kron(waves, waves)


@pytest.mark.parametrize("weights", ["equal", "sparsity"])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_patches_are_denoised_in_blocks_as_all_at_once(
    weights, stride, image, monkeypatch
):
    """The naive way: all patches, all codes, and weighted sums pixel by pixel."""
    coder = SparseCoder(
        cosines(4)[1:], transform_algorithm="threshold", transform_alpha=1.5
    )
    patches = extract(image, (4, 4), stride=stride)
    means = patches.mean(1, keepdims=True)
    codes = coder.fit(patches).transform(patches - means)
    weight = 1 / (1 + np.count_nonzero(codes, axis=1)) if weights == "sparsity" else 1
    naive = (
        reconstruct((values.T * weight).T, image.shape, (4, 4), stride=stride)
        for values in (codes @ cosines(4)[1:] + means, np.ones_like(patches))
    )
    total, count = naive
    for n_patches in (1, 40, 10**6):
        monkeypatch.setitem(images_module._PATCHES, "cpu", n_patches)
        denoised = denoise_patches(coder, image, (4, 4), stride=stride, weights=weights)
        np.testing.assert_allclose(denoised, total / count, atol=1e-12)


def test_any_coder_denoises(image):
    """Learners of scikit-learn, what has no inverse, and tensors for learners of this package."""
    patches = extract(image)
    patches = patches - patches.mean(1, keepdims=True)
    options = dict(n_components=10, random_state=0, max_iter=3)
    theirs = MiniBatchDictionaryLearning(transform_algorithm="omp", **options).fit(
        patches
    )
    given = dict(transform_algorithm="omp", transform_n_nonzero_coefs=6)
    ours = PUDLEDictionaryLearning.from_components(theirs.components_, **given)
    expected = denoise_patches(theirs.set_params(transform_n_nonzero_coefs=6), image)
    assert np.abs(expected - image).max() > 0.1
    np.testing.assert_allclose(denoise_patches(ours, image), expected, atol=1e-6)
    tensor = denoise_patches(ours, torch.tensor(image))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_allclose(tensor, expected, atol=1e-6)

    class WithoutInverse:
        components_, transform = theirs.components_, theirs.transform

    np.testing.assert_array_equal(denoise_patches(WithoutInverse(), image), expected)


def test_pursuit_up_to_the_error_of_the_noise_denoises():
    """K-SVD's coder: a patch without more than noise is its mean."""
    noisy = 0.1 * np.random.default_rng(0).normal(size=(40, 40))
    learner = PUDLEDictionaryLearning.from_components(
        cosines(), transform_algorithm="omp", transform_alpha=64 * (1.5 * 0.1) ** 2
    )
    means = extract(noisy).mean(1, keepdims=True).repeat(64, axis=1)
    np.testing.assert_allclose(
        denoise_patches(learner, noisy), reconstruct(means, noisy.shape), atol=1e-12
    )


def test_missing_pixels_stay_missing_in_patches_and_come_back_from_codes():
    """Atoms that span all patches reconstruct them from what is known, means included."""
    ramps = np.stack([np.repeat(np.arange(-1.5, 2), 4), np.tile(np.arange(-1.5, 2), 4)])
    clean = np.add.outer(0.3 * np.arange(16), 0.1 * np.arange(22))
    damaged = clean.copy()
    damaged[np.random.default_rng(0).random(clean.shape) < 0.3] = np.nan
    patches = extract(damaged, (4, 4))
    np.testing.assert_array_equal(
        np.isnan(patches), extract(np.isnan(damaged), (4, 4)) > 0
    )
    np.testing.assert_allclose(
        reconstruct(patches, clean.shape, (4, 4)), damaged, rtol=1e-12
    )
    # the mean of what is known is not that of the patch: a constant atom makes up for it
    atoms = np.vstack([ramps, np.ones(16)])
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    pursuit = dict(transform_algorithm="omp", transform_alpha=1e-20)
    learner = PUDLEDictionaryLearning.from_components(atoms, **pursuit)
    filled = denoise_patches(learner, damaged, (4, 4))
    np.testing.assert_allclose(filled, clean, atol=1e-8)
    filled = denoise_patches(learner, torch.tensor(damaged), (4, 4), stride=3)
    np.testing.assert_allclose(filled, clean, atol=1e-8)


def test_what_no_patch_knows_stays_missing(image):
    image[:10, :10] = np.nan
    learner = PUDLEDictionaryLearning.from_components(cosines(4), alpha=0.1)
    unknown = np.isnan(denoise_patches(learner, image, (4, 4)))
    expected = np.zeros(image.shape, bool)
    expected[:7, :7] = True  # beyond the reach of patches of four pixels
    np.testing.assert_array_equal(unknown, expected)


def test_inpainting_fills_what_is_missing_and_nothing_else():
    """A texture that interpolation does not know, of which a half is known."""
    row, column = np.mgrid[:40, :50]
    clean = 0.5 + 0.25 * np.sin(row) + 0.25 * np.cos(1.5 * column)
    lost = np.random.default_rng(0).random(clean.shape) < 0.5
    damaged = np.where(lost, np.nan, clean)
    filled = inpaint(damaged)
    np.testing.assert_array_equal(filled[~lost], clean[~lost])
    interpolated = inpaint(damaged, denoise=lambda image, noise_std: image)
    # by 10 dB
    assert mean_square(filled - clean) < 0.1 * mean_square(interpolated - clean)
    tensor = inpaint(torch.tensor(damaged, dtype=torch.float32))
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor, filled, atol=1e-3)


def test_inpainting_commutes_with_the_units_of_the_image():
    clean = np.kron(np.random.default_rng(0).uniform(size=(4, 5)), np.ones((5, 5)))
    damaged = np.where(
        np.random.default_rng(1).random(clean.shape) < 0.4, np.nan, clean
    )
    np.testing.assert_allclose(
        inpaint(100 * damaged - 7), 100 * inpaint(damaged) - 7, atol=1e-6
    )


def unsigned(fractions, dtype=np.uint8):  # as a file of a photograph holds them
    largest = np.iinfo(dtype).max
    return np.rint(np.clip(np.float64(fractions), 0, 1) * largest).astype(dtype)


@pytest.mark.parametrize("shape", [(17, 22), (17, 22, 3)], ids=["grey", "colours"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_photograph_stays_one(shape, dtype):
    """Its dtype, range and channels are those of the input: it can be saved as it is."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(np.iinfo(dtype).max, size=shape, dtype=dtype)
    pixels.flat[:2] = 0, np.iinfo(dtype).max
    fractions = (pixels / np.iinfo(dtype).max).astype(np.float32)
    lost = rng.random(shape[:2]) < 0.3
    all_channels = np.broadcast_to(
        lost.reshape(*lost.shape, *[1] * (len(shape) - 2)), shape
    )
    filled = inpaint(pixels, mask=lost)
    assert filled.dtype == dtype
    expected = unsigned(inpaint(np.where(all_channels, np.nan, fractions)), dtype)
    np.testing.assert_array_equal(filled, expected)
    np.testing.assert_array_equal(filled[~lost], pixels[~lost])
    np.testing.assert_array_equal(
        inpaint(np.ma.masked_array(pixels, all_channels)), filled
    )
    coder = PUDLEDictionaryLearning.from_components(cosines(), alpha=0.1)
    denoised = denoise_patches(coder, pixels)
    np.testing.assert_array_equal(
        denoised, unsigned(denoise_patches(coder, fractions), dtype)
    )
    denoiser = load_denoiser("gaussian-small")
    (denoised,) = denoiser.denoise([pixels], noise_std=0.2)
    expected = denoiser.denoise([fractions], noise_std=0.2)[0]
    np.testing.assert_array_equal(denoised, unsigned(expected, dtype))
    assert denoised.dtype == dtype
    np.testing.assert_array_equal(denoiser.denoise(pixels, noise_std=0.2), denoised)
    tensor = torch.from_numpy(pixels)
    for found in (inpaint(tensor, mask=lost), denoiser.denoise(tensor, noise_std=0.2)):
        assert found.dtype == tensor.dtype
        assert found.shape == shape
    np.testing.assert_array_equal(inpaint(tensor, mask=lost), filled)


def test_pixels_without_a_value_are_no_unsigned_integers():
    pixels = np.ma.masked_array(np.full((12, 12), 7, np.uint8), np.ones((12, 12)))
    pixels[0, 0] = 7
    coder = PUDLEDictionaryLearning.from_components(cosines(4), alpha=0.1)
    with pytest.raises(ValueError, match="uint8 cannot hold. Pass fractions"):
        denoise_patches(coder, pixels, (4, 4))


def test_transparency_is_no_colour():
    picture = np.zeros((17, 22, 4), np.uint8)
    denoiser = load_denoiser("gaussian-small")
    for call in (
        inpaint,
        extract,
        denoiser.denoise,
        lambda image: denoiser.denoise([image]),
    ):
        with pytest.raises(ValueError, match=r"Pass the colours, image\[..., :3\]"):
            call(picture)


def test_inpainting_by_cosines_is_denoising_all_patches():
    """The slow way: all patches, also without a gap, by the function for any learner."""
    clean = np.kron(np.random.default_rng(0).uniform(size=(4, 5)), np.ones((5, 5)))
    lost = np.random.default_rng(1).random(clean.shape) < 0.4
    lost[:, 12] = True

    def naive(image, noise_std):
        threshold = dict(
            alpha=2.7 * noise_std, shrinkage="hard", n_unfoldings=1, step_size=1.0
        )
        learner = PUDLEDictionaryLearning.from_components(cosines(), **threshold)
        larger = np.pad(image, 7, mode="symmetric")
        return denoise_patches(learner, larger, weights="equal")[7:-7, 7:-7]

    np.testing.assert_allclose(
        inpaint(clean, mask=lost), inpaint(clean, lost, denoise=naive), atol=1e-9
    )


def test_a_mask_from_a_file_marks_pixels(image):
    lost = np.random.default_rng(0).random(image.shape) < 0.3
    expected = inpaint(np.where(lost, np.nan, image))
    for mask in (lost, 255 * lost.astype(np.uint8), torch.from_numpy(lost)):
        np.testing.assert_array_equal(inpaint(image, mask=mask), expected)


def test_colours_are_denoised_together_by_patches_with_colours():
    """Atoms that are equal in all channels project patches, without their mean colour, on greys."""
    photo = np.random.default_rng(0).uniform(size=(8, 8, 3))
    atoms = np.repeat(cosines(), 3, axis=1) / 3**0.5
    pursuit = dict(transform_algorithm="omp", transform_n_nonzero_coefs=64)
    coder = PUDLEDictionaryLearning.from_components(atoms, **pursuit)
    means = photo.mean((0, 1))
    grey = (photo - means).mean(2, keepdims=True)
    np.testing.assert_allclose(denoise_patches(coder, photo), grey + means, atol=1e-10)


def test_an_image_without_gaps_is_refused(image):
    with pytest.raises(ValueError, match=r"No pixel is missing.*Pass mask"):
        inpaint(image)


def test_odd_arguments_are_refused(image):
    for call in (
        partial(extract, image),
        partial(reconstruct, extract(image), image.shape),
    ):
        for name, wrong in [("stride", (2, 2)), ("stride", 0), ("patch_size", (8, 0))]:
            with pytest.raises(
                (TypeError, ValueError), match=rf"^{name} (== 0, )?must be"
            ):
                call(**{name: wrong})
    with pytest.raises(
        ValueError, match=r"The mask has the shape \(17,\). Pass \(17, 22\)"
    ):
        inpaint(image, np.ones(17, bool))


def _pictures():  # by name, parts of photographs and what is drawn
    from skimage import data
    from sklearn.datasets import load_sample_image

    row, column = np.mgrid[:64, :64]
    return {
        "china": load_sample_image("china.jpg")[216:280, 316:380] / 255,
        "flower": load_sample_image("flower.jpg").mean(axis=2)[166:230, 216:280] / 255,
        "camera": data.camera()[96:160, 216:280] / 255,
        "astronaut": data.astronaut()[16:80, 196:260] / 255,
        "text": data.text()[36:100, 56:120] / 255,
        "flat": np.full((64, 64), 0.6),
        "cartoon": np.kron(
            np.random.default_rng(0).uniform(size=(6, 6)), np.ones((11, 11))
        ),
        "checkerboard": ((row + column) % 2).astype(float),
        "tiny": load_sample_image("china.jpg").mean(axis=2)[200:208, 300:308] / 255,
    }


@pytest.mark.parametrize("name", weekly("gaussian", "gaussian-small"))
@pytest.mark.parametrize("picture", sorted(_pictures()))
def test_a_denoised_image_is_never_worse_than_the_noisy_one(name, picture):
    """At any noise from none to more than in training, told or estimated, grey and in colour."""
    clean, learner = _pictures()[picture], load_denoiser(name)
    noise = np.random.default_rng(1).normal(size=clean.shape)
    for level in (0.0, 0.001, 0.005, 0.01, 0.02, 0.05, 60 / 255):
        noisy = clean + level * noise
        for told in (level, None):
            (denoised,) = learner.denoise([noisy], noise_std=told)
            # without noise an estimate may be a bit more than none
            assert mean_square(denoised - clean) <= mean_square(noisy - clean) + 1e-8


@pytest.mark.parametrize("picture", sorted(_pictures()))
def test_denoised_photons_are_never_worse_than_counts(picture):
    clean, learner = _pictures()[picture], load_denoiser("poisson")
    clean = clean.mean(axis=2) if clean.ndim == 3 else clean
    for peak in (0.3, 2.0, 10.0, 30.0, 1e2, 1e3, 1e6):
        counts = np.random.default_rng(1).poisson(peak * clean).astype(float)
        (denoised,) = learner.denoise([counts])
        # the share of what is denoised, about 0 in much light, is estimated: 0.01 dB
        assert mean_square(denoised - peak * clean) <= 1.002 * mean_square(
            counts - peak * clean
        )
    dark = np.zeros((16, 20))
    np.testing.assert_allclose(learner.denoise([dark])[0], dark, atol=1e-12)
