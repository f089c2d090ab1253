"""Data with a known dictionary, and patches of real images.

`make_dictionary_data` draws samples from the generative model ``x = D z`` (+ noise). It returns the
atoms and codes too, so that recovery can be measured. `perturb_dictionary` makes the initial
dictionaries of the published experiments. The remaining functions cut patches of images: of arrays,
of the files in a folder, or of the two photographs shipped with scikit-learn. Nothing is
downloaded.
"""

import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sklearn.datasets
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from sklearn.utils import check_array, check_random_state
from sklearn.utils.random import sample_without_replacement

from skpudle._compilation import import_extra
from skpudle._data.images import as_fractions

__all__ = [
    "extract_patches",
    "load_gray_images",
    "load_image_patches",
    "make_dictionary_data",
    "perturb_dictionary",
]

IMAGE_SUFFIXES = (
    ".bmp",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)


def make_dictionary_data(
    n_samples: int = 1000,
    n_features: int | None = None,
    n_components: int | None = None,
    n_nonzero: int = 5,
    *,
    amplitude: tuple[float, ...] = (1.0, 2.0),
    sign: Literal["entry", "sample", None] = "entry",
    snr_db: float | None = None,
    dictionary: ArrayLike | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw samples that are sparse combinations of the atoms of a known dictionary.

    Each sample uses a uniformly drawn subset of the atoms, with moduli drawn uniformly from
    `amplitude`. The atoms are Gaussian vectors scaled to unit norm. The returned arrays have the
    order and shapes of `sklearn.datasets.make_sparse_coded_signal`, which draws Gaussian codes.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of samples.
    n_features : int, default=None
        Number of features. None is that of `dictionary`, or 100 without a dictionary.
    n_components : int, default=None
        Number of atoms. None is that of `dictionary`, or 150 without a dictionary.
    n_nonzero : int, default=5
        Number of atoms that each sample uses.
    amplitude : tuple of float, default=(1.0, 2.0)
        Smallest and largest modulus of a nonzero entry of a code.
    sign : {"entry", "sample", None}, default="entry"
        "entry" draws a random sign for each nonzero entry, "sample" one for each sample (as in the
        published experiments of [1]_). With None codes are positive.
    snr_db : float, default=None
        Signal-to-noise ratio in decibels, over all samples together; the noise is Gaussian. None
        adds no noise.
    dictionary : array-like of shape (n_components, n_features), default=None
        Atoms to use as they are, instead of random ones.
    random_state : int, RandomState instance or None, default=None
        Pass an int for the same data at every call.

    Returns
    -------
    data : ndarray of shape (n_samples, n_features)
        Samples, ``code @ dictionary`` plus noise.
    dictionary : ndarray of shape (n_components, n_features)
        Atoms, one per row.
    code : ndarray of shape (n_samples, n_components)
        Codes, with `n_nonzero` entries other than 0 in each row.

    Raises
    ------
    ValueError
        If there are fewer atoms than nonzero entries, or a size contradicts `dictionary`.

    References
    ----------
    .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit acceleration of dictionary learning by
       backpropagation", arXiv:2106.00058, equation 3 and appendix B.

    Examples
    --------
    >>> from skpudle.datasets import make_dictionary_data
    >>> data, dictionary, code = make_dictionary_data(
    ...     50, 20, 30, n_nonzero=3, random_state=0
    ... )
    >>> data.shape, dictionary.shape, code.shape
    ((50, 20), (30, 20), (50, 30))
    """
    random_state = check_random_state(random_state)
    if dictionary is None:
        dictionary = random_state.standard_normal(
            (n_components or 150, n_features or 100)
        )
        dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    dictionary = check_array(dictionary, dtype=np.float64, input_name="dictionary")
    wanted = n_components or len(dictionary), n_features or dictionary.shape[1]
    if wanted != dictionary.shape:
        raise ValueError(
            f"dictionary has shape {dictionary.shape}, not {wanted}. Leave sizes out."
        )
    if n_nonzero > len(dictionary):
        raise ValueError(
            f"n_nonzero={n_nonzero} is above the {len(dictionary)} atoms. Pass a smaller number."
        )
    # A uniformly drawn subset of the atoms for each sample: every atom gets a random key, and the
    # atoms with the n_nonzero smallest keys are taken.
    keys = random_state.random_sample((n_samples, len(dictionary)))
    supports = np.sort(
        np.argpartition(keys, n_nonzero - 1, axis=1)[:, :n_nonzero], axis=1
    )
    values = random_state.uniform(*amplitude, size=supports.shape)
    n_signs = {"entry": n_nonzero, "sample": 1, None: 0}[sign]
    if n_signs:
        values *= random_state.choice([-1.0, 1.0], size=(n_samples, n_signs))
    starts = np.arange(0, supports.size + 1, n_nonzero)
    code = csr_array(
        (values.ravel(), supports.ravel(), starts), shape=(n_samples, len(dictionary))
    )
    data = code @ dictionary
    if snr_db is not None:
        # The norm of the noise is that of the data times 10 ** (-snr_db / 20).
        noise = random_state.standard_normal(data.shape)
        noise *= np.linalg.norm(data) / np.linalg.norm(noise) * 10 ** (-snr_db / 20)
        data += noise
    return data, dictionary, code.toarray()


def perturb_dictionary(
    dictionary: ArrayLike,
    tau: float,
    *,
    random_state: int | np.random.RandomState | None = None,
) -> np.ndarray:
    r"""Add Gaussian noise to a dictionary: the initial dictionary of the published experiments.

    The noise of every entry has mean 0 and standard deviation ``tau / sqrt(m)``, where ``m`` is the
    number of entries of an atom. Each atom thus moves by a distance of about `tau`: for unit-norm
    atoms `tau` is the expected relative Frobenius error.

    Parameters
    ----------
    dictionary : array-like of shape (n_components, n_features) or (n_components, ...)
        Atoms, one per entry of the first axis.
    tau : float
        Expected distance by which an atom moves, :math:`\tau_B` in [1]_. The text of the paper has
        ``1 / log(1000)`` for figures 5 and 6, and ``0.55 / log(50)`` and ``2.8 / log(50)`` for
        figures 2 to 4. The code published with the paper adds noise of standard deviation 0.005,
        0.02 and 0.1 instead, for a `tau` of ``0.005 * sqrt(1000)``, ``0.02 * sqrt(50)`` and
        ``0.1 * sqrt(50)``.
    random_state : int, RandomState instance or None, default=None
        Pass an int for the same noise at every call.

    Returns
    -------
    ndarray of the shape and floating-point type of `dictionary`
        Perturbed atoms. They are not normalised.

    References
    ----------
    .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit acceleration of dictionary learning by
       backpropagation", arXiv:2106.00058, appendix B.
    """
    dictionary = check_array(dictionary, dtype=[np.float64, np.float32], allow_nd=True)
    noise = check_random_state(random_state).standard_normal(dictionary.shape)
    noise *= tau / math.sqrt(math.prod(dictionary.shape[1:]))
    return dictionary + noise.astype(dictionary.dtype)


def _read_gray(path):
    """Read an image file as grey levels (height, width), from 0 for black to 1 for white.

    ``path`` is a `Path`. Images of floating-point numbers keep their numbers.
    """
    with import_extra("images", "PIL.Image").open(path) as image:
        # ``white`` is the value of white pixels. Images of all modes become grey of 8 bits, except
        # for two kinds that are grey already: modes that begin with "I" hold numbers of 16 bits,
        # which Image.convert("L") would clip to 8 bits, and mode "F" holds floating-point numbers.
        white = {"I": 65535, "F": 1}.get(image.mode[0], 255)
        image = image.convert("L") if white == 255 else image
        return np.asarray(image, dtype=np.float64) / white


def load_gray_images(folder: str | PathLike[str] | None = None) -> list[np.ndarray]:
    """Read all images of a folder as grey levels.

    Parameters
    ----------
    folder : str or path-like, default=None
        Folder of the images, read in the order of their names, without subfolders. None reads the
        two photographs that come with scikit-learn.

    Returns
    -------
    list of ndarray of shape (height, width)
        Luminance in float64, 0 for black and 1 for white. Images of floating-point numbers keep
        their numbers.

    Raises
    ------
    ImportError
        If Pillow is not installed.
    """
    folder = (
        Path(sklearn.datasets.__file__).parent / "images"
        if folder is None
        else Path(folder)
    )
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES
    )
    return [_read_gray(path) for path in paths]


def extract_patches(
    images: Sequence[ArrayLike],
    patch_size: tuple[int, ...] = (8, 8),
    n_patches: int | None = 10_000,
    *,
    center: bool = True,
    normalize: bool = True,
    random_state: int | np.random.RandomState | None = None,
) -> np.ndarray:
    """Cut patches at random positions of images of any sizes, as training data of a learner.

    Every position in every image is equally likely, and no position is taken twice; patches may
    overlap.

    Parameters
    ----------
    images : sequence of array-like of shape (height, width)
        Grey images; unsigned integers become fractions of the largest integer of their dtype.
        Images smaller than a patch have no patches.
    patch_size : tuple of int, default=(8, 8)
        Height and width of a patch.
    n_patches : int or None, default=10_000
        Number of patches. None takes the patches at all positions, in order.
    center : bool, default=True
        Whether each patch's mean is subtracted from it.
    normalize : bool, default=True
        Whether each patch is then scaled to unit norm. A zero patch stays zero; with `center`, a
        patch of one grey level becomes zero.
    random_state : int, RandomState instance or None, default=None
        Pass an int for the same patches at every call.

    Returns
    -------
    ndarray of shape (n_patches, height * width)
        Patches, one per row, with the pixels in row-major order.

    Raises
    ------
    ValueError
        If the images have fewer positions than `n_patches`.
    """
    random_state = check_random_state(random_state)
    height, width = patch_size
    images = [
        check_array(as_fractions(x), dtype=np.float64, input_name="image")
        for x in images
    ]
    images = [
        image
        for image in images
        if image.shape[0] >= height and image.shape[1] >= width
    ]
    windows = [
        np.lib.stride_tricks.sliding_window_view(image, patch_size) for image in images
    ]
    # The positions of patches are numbered through all images: those of image i are the numbers
    # from starts[i] to starts[i + 1] - 1. ``image_number`` has i + 1 for each position.
    starts = np.cumsum([0, *(math.prod(window.shape[:2]) for window in windows)])
    positions = np.arange(starts[-1])
    if n_patches is not None:
        positions = sample_without_replacement(
            len(positions), n_patches, random_state=random_state
        )
    patches = np.empty((len(positions), height, width))
    image_number = starts.searchsorted(positions, "right")
    for i, window in enumerate(windows):
        inside = image_number == i + 1
        patches[inside] = window[
            np.unravel_index(positions[inside] - starts[i], window.shape[:2])
        ]
    patches = patches.reshape(len(positions), -1)
    if center:
        # A patch of one grey level has to become exactly zero: rounding errors of its mean would be
        # scaled to norm 1 below.
        rounding = 10 * np.finfo(np.float64).eps * np.linalg.norm(patches, axis=1)
        patches -= patches.mean(axis=1, keepdims=True)
        patches[np.linalg.norm(patches, axis=1) <= rounding] = 0
    if normalize:
        norms = np.linalg.norm(patches, axis=1, keepdims=True)
        patches /= np.where(norms > 0, norms, 1)
    return patches


def load_image_patches(
    folder: str | PathLike[str] | None = None,
    patch_size: tuple[int, ...] = (8, 8),
    n_patches: int | None = 10_000,
    **options: Any,
) -> np.ndarray:
    """Cut patches at random positions of the images in a folder.

    Parameters
    ----------
    folder : str or path-like, default=None
        Folder of images; None is the two photographs that come with scikit-learn.
    patch_size : tuple of int, default=(8, 8)
        Height and width of a patch.
    n_patches : int or None, default=10_000
        Number of patches. None takes the patches at all positions, in order.
    **options : dict
        ``center``, ``normalize`` and ``random_state``, as in `extract_patches`.

    Returns
    -------
    ndarray of shape (n_patches, height * width)
        Patches, one per row, in float64; by default of mean 0 and norm 1.

    Raises
    ------
    ImportError
        If Pillow is not installed.
    ValueError
        If the images have fewer positions than `n_patches`.

    Examples
    --------
    >>> from skpudle.datasets import load_image_patches
    >>> load_image_patches(patch_size=(8, 8), n_patches=100, random_state=0).shape
    (100, 64)
    """
    return extract_patches(load_gray_images(folder), patch_size, n_patches, **options)
