"""Images whose axes are meant otherwise than they would be read are refused, with what to pass."""

import numpy as np
import pytest
import torch

from skpudle import ConvDenoiser, ConvPUDLEDictionaryLearning

SMALL = dict(atom_shape=(5, 4), stride=3, n_unfoldings=4, max_iter=2, tol=None, random_state=0)


def learner_of(**options):
    return ConvDenoiser(6, **SMALL | options)


RGB = np.random.default_rng(0).random((21, 18, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "image", [RGB, torch.tensor(RGB), RGB.tolist()], ids=["array", "tensor", "lists"]
)
def test_one_colour_image_is_not_many_grey_ones(image):
    """Without an error it was: 21 images of 18 x 3 pixels."""
    grey = learner_of().fit([RGB[..., 0]])
    for method in (grey.fit, grey.partial_fit, grey.score):
        with pytest.raises(ValueError, match=r"21 images of .* Pass one image as \[image\]"):
            method(image)


def test_one_colour_image_is_one_for_a_learner_of_colours():
    learner = learner_of().fit([RGB])
    expected = learner.denoise([RGB])[0]
    assert expected.shape == RGB.shape
    np.testing.assert_array_equal(learner.denoise(RGB), expected)
    np.testing.assert_array_equal(learner.denoise(torch.tensor(RGB)), expected)
    dictionary = ConvPUDLEDictionaryLearning(2, atom_shape=(5, 4), random_state=0).fit([RGB])
    codes = dictionary.transform(RGB)
    np.testing.assert_array_equal(codes, dictionary.transform([RGB])[0])
    np.testing.assert_array_equal(
        dictionary.inverse_transform(codes), dictionary.inverse_transform(codes[None])[0]
    )
    assert learner.score(RGB, RGB) == learner.score([RGB], [RGB])


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
def test_channels_that_come_first_are_refused(n_channels):
    images = np.random.default_rng(0).normal(size=(5, n_channels, 13, 16))
    learner = learner_of().fit(np.moveaxis(images, 1, -1))
    for wrong in (images, list(images), torch.tensor(images)):
        for method in (learner.fit, learner.denoise):
            with pytest.raises(ValueError, match="channels_first=True if they are its first"):
                method(wrong)
    if n_channels > 1:
        with pytest.raises(ValueError, match="channels are the last axis"):
            learner.denoise(images[0])


def test_one_grey_image_is_not_silently_rows():
    with pytest.warns(UserWarning, match=r"image of \(1, 18\).* one image as \[image\]"):
        learner_of().fit(RGB[..., 0])
