"""What users' images are to a network: counts or not, and of photons their roots."""

from math import inf

from skpudle._data.images import check_axes, read_images, read_targets, sizes
from skpudle._data.noise import Noise
from skpudle.losses import loss_named

__all__ = ["as_images", "images_of", "largest_of", "targets_of"]


def largest_of(learner):  # -> float or None
    """Return the largest value of images that are counts, None where they may be any numbers."""
    if Noise.of(learner.noise_std).of_photons:
        return inf
    return loss_named(learner.loss, learner.n_trials).largest


def _reading(learner):
    options = dict(image_shape=learner.image_shape, largest=largest_of(learner))
    return options | {"estimator": learner}


def images_of(learner, X, device, **options):  # -> Images
    """Read images as the network of a learner sees them; options are those of `read_images`."""
    known = _reading(learner) | dict(device=device) | options
    images = read_images(X, len(sizes(learner.atom_shape, 1)), **known)
    check_axes(images)
    return images.map(Noise.of(learner.noise_std).enter)


def targets_of(learner, y, images):  # -> list of (n_channels, *size), or None
    """Read what images are to become, as its network sees it."""
    targets = read_targets(y, images, **_reading(learner))
    return None if targets is None else list(map(Noise.of(learner.noise_std).enter, targets))


def as_images(learner, x):  # (..., *size) -> the same
    """Return what its network makes, or sees, as images: what is expected."""
    x = loss_named(learner.loss, learner.n_trials).mean(x)
    return Noise.of(learner.noise_std).leave(x)
