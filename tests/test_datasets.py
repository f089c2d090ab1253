"""The generative model has what it says, and patches are pieces of their images."""

import math
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_sample_images
from sklearn.feature_extraction.image import extract_patches_2d

from skpudle.datasets import (
    extract_patches,
    load_gray_images,
    load_image_patches,
    make_dictionary_data,
    perturb_dictionary,
)

SIGNS = ["entry", "sample", None]


@pytest.fixture
def images():
    """Return three images of different sizes in which every pixel is unlike all others."""
    pixels = np.random.default_rng(0).permutation(np.arange(1000.0))
    shapes = (9, 14), (12, 11), (20, 8)
    starts = np.cumsum([0, *map(math.prod, shapes)])
    return [
        pixels[start : start + math.prod(shape)].reshape(shape)
        for start, shape in zip(starts, shapes)
    ]


# The generative model


@pytest.mark.parametrize("sign", SIGNS)
def test_data_are_codes_times_unit_atoms(sign):
    data, dictionary, code = make_dictionary_data(
        200, 20, 30, 4, sign=sign, random_state=0
    )
    assert_allclose(data, code @ dictionary, rtol=1e-12, atol=1e-12)
    assert_allclose(np.linalg.norm(dictionary, axis=1), 1)


@pytest.mark.parametrize("n_nonzero", [1, 3, 12])
@pytest.mark.parametrize("sign", SIGNS)
def test_codes_have_the_sparsity_and_amplitudes_asked_for(n_nonzero, sign):
    *_, code = make_dictionary_data(
        300, 5, 12, n_nonzero, amplitude=(0.5, 0.7), sign=sign, random_state=0
    )
    # raises unless every row has as many
    values = code[code != 0].reshape(300, n_nonzero)
    assert np.abs(values).min() >= 0.5
    assert np.abs(values).max() <= 0.7
    distinct = {"entry": 2 if n_nonzero > 1 else 1, "sample": 1, None: 1}[sign]
    assert max(len(set(row)) for row in np.sign(values)) == distinct
    assert set(np.sign(values).ravel()) == ({1} if sign is None else {-1, 1})


def test_supports_are_uniform_over_all_subsets():
    """A chi-squared test of the counts of the 10 pairs among 5 atoms."""
    n_samples = 20_000
    *_, code = make_dictionary_data(n_samples, 3, 5, 2, random_state=0)
    counts = np.unique((code != 0) @ 2 ** np.arange(5), return_counts=True)[1]
    assert len(counts) == 10
    expected = n_samples / 10
    # 99.9 % of chi-squared, 9 degrees
    assert ((counts - expected) ** 2 / expected).sum() < 27.9


@pytest.mark.parametrize("snr_db", [-3.0, 10.0, 20.0])
def test_noise_has_the_ratio_asked_for(snr_db):
    noisy, dictionary, code = make_dictionary_data(
        100, 30, 40, snr_db=snr_db, random_state=0
    )
    clean = code @ dictionary
    ratio = (clean**2).sum() / ((noisy - clean) ** 2).sum()
    assert_allclose(10 * np.log10(ratio), snr_db)


# The perturbed dictionary


@pytest.mark.parametrize("shape", [(400, 50), (300, 2, 5, 6)])
def test_tau_is_the_expected_relative_error(shape):
    atoms = np.random.default_rng(0).normal(size=shape)
    atoms /= np.sqrt(
        np.square(atoms).sum(axis=tuple(range(1, atoms.ndim)), keepdims=True)
    )
    perturbed = perturb_dictionary(atoms, 0.14, random_state=0)
    error = np.linalg.norm((perturbed - atoms).ravel()) / np.linalg.norm(atoms.ravel())
    assert error == pytest.approx(0.14, rel=0.02)  # its standard deviation is 0.7 %


# Patches


def test_all_patches_of_an_image_are_those_of_scikit_learn(images):
    ours = extract_patches(images[:1], (3, 4), None, center=False, normalize=False)
    assert_array_equal(ours, extract_patches_2d(images[0], (3, 4)).reshape(-1, 12))


def test_patches_are_different_pieces_of_the_images(images):
    """Pixels are unique, so that the first one tells where a patch must come from."""
    every = extract_patches(images, (4, 3), None, center=False, normalize=False)
    some = extract_patches(
        images, (4, 3), 100, center=False, normalize=False, random_state=0
    )
    places = {patch[0]: patch for patch in every}
    assert len(every) == sum(
        (h - 3) * (w - 2) for h, w in (image.shape for image in images)
    )
    assert len({patch[0] for patch in some}) == 100
    for patch in some:
        assert_array_equal(patch, places[patch[0]])


def test_centred_patches_have_mean_zero_and_unit_norm(images):
    patches = extract_patches(images, (3, 3), 50, random_state=0)
    assert_allclose(patches.mean(axis=1), 0, atol=1e-6)
    assert_allclose(np.linalg.norm(patches, axis=1), 1, rtol=1e-6)


def test_flat_patches_are_zero_not_amplified_rounding():
    """0.1 is no binary number, and the mean of 49 of them is not 0.1 either."""
    patches = extract_patches([np.full((20, 20), 0.1)], (7, 7), None)
    assert_array_equal(patches, np.zeros_like(patches))


# Image files


def test_photographs_of_scikit_learn_are_the_default():
    pytest.importorskip("PIL")
    photographs = load_sample_images().images
    luminance = np.array([0.299, 0.587, 0.114]) / 255  # ITU-R 601
    for gray, colour in zip(load_gray_images(), photographs):
        assert_allclose(gray, colour @ luminance, atol=1 / 255)
    patches = load_image_patches(n_patches=20, random_state=0)
    assert_array_equal(
        patches, extract_patches(load_gray_images(), n_patches=20, random_state=0)
    )


def test_folder_is_read_in_the_order_of_names(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    levels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    Image.fromarray(levels).save(tmp_path / "b.png")
    Image.fromarray(levels[:, :, None] + np.zeros(3, dtype=np.uint8)).save(
        tmp_path / "a.PNG"
    )
    Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "c.tif")
    Image.fromarray(levels.astype(np.float32) / 7).save(tmp_path / "d.tiff")
    (tmp_path / "e.txt").write_text("no image")
    *integers, floats = load_gray_images(tmp_path)
    assert len(integers) == 3
    for image in integers:
        assert_allclose(image, levels / 255)
    assert_allclose(floats, levels / 7, rtol=1e-6)
    assert load_image_patches(tmp_path, (2, 2), 5, random_state=0).shape == (5, 4)


def test_missing_pillow_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"skpudle\[images\]"):
        load_gray_images()
