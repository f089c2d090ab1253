"""Read images, rows and signals from users, and return results in the same form.

Inside the package, images are tensors (n, n_channels, *size): size has one axis for signals, two
for pictures and three for volumes or films. Users' images have their channels last, or first with
``channels_first``, or no axis of channels. Users' rows (n, n_pixels) hold one image each, with its
pixels as features.

Words of this module: an atom of images is a small image that is copied to many positions.
``kernel`` is the size of an atom in pixels, and ``stride`` the distance of neighbouring copies,
both tuples with an int for each axis of ``size``.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from skpudle._data.arrays import check_rows, like_input, to_numpy, to_tensor, unpacked
from skpudle._data.sources import looks_like_picture, warn_or_refuse

# `as_pixels` clips to at most this number, the largest float64 below 2**64. The largest integer of
# 64 bits, 2**64 - 1, would be rounded to 2**64 in float64, and overflow as an integer.
_LARGEST = float(np.nextafter(2.0**64, 0))

# Largest number of channels that a picture is expected to have: three colours and transparency.
# `is_one_image` and `check_axes` take a longer axis for an axis of pixels.
_CHANNELS = 4


def sizes(value, n_axes):
    """Return a parameter such as ``atom_shape`` or ``stride`` as a tuple with an int for each axis.

    An integer is repeated ``n_axes`` times. A tuple is not checked here: its length and entries
    may be wrong, which `check_sizes` refuses.
    """
    numbers = (value,) * n_axes if isinstance(value, Integral) else value
    return tuple(int(n) if isinstance(n, Integral) else n for n in numbers)


def check_sizes(kernel, stride):
    """Check that copies of an atom can cover an image: no stride may be larger than the atom.

    Raises
    ------
    ValueError
        Unless ``kernel`` and ``stride`` are one to three positive integers each, and the stride is
        at most the size of an atom along each axis.
    """
    fits = len(stride) == len(kernel) in (1, 2, 3)
    fits = fits and all(isinstance(n, Integral) for n in (*kernel, *stride))
    if not (fits and all(1 <= s <= k for s, k in zip(stride, kernel, strict=True))):
        raise ValueError(
            f"stride={stride!r:.80} and atom_shape={kernel!r:.80} do not belong together. Pass "
            "positive integers, one to three of each, and strides of at most the size of an atom."
        )


def covering_positions(size, kernel, stride):  # three tuples of int -> tuple of int
    """Return for each axis the least number of positions of an atom whose copies cover all pixels.

    The positions are 0, stride, 2 * stride and so on; the last copy may go beyond ``size``.
    """
    axes = zip(size, kernel, stride, strict=True)
    return tuple(1 + max(0, ceil((n - k) / s)) for n, k, s in axes)


def covered(x, kernel, stride):  # (..., *size) -> (..., *larger size)
    """Pad images with zeros at their ends to a size that copies of an atom cover exactly.

    The new size is the kernel plus a multiple of the stride, which `ConvDictionary` requires. ``x``
    may have axes of samples and channels before ``size``.
    """
    # per axis the least number of pixels to add; `pad` takes pairs (start, end), last axis first
    axes = zip(x.shape[-len(kernel) :], kernel, stride, strict=True)
    missing = [max(k - n, (k - n) % s) for n, k, s in axes]
    ends = [n for m in reversed(missing) for n in (0, m)]
    return torch.nn.functional.pad(x, ends) if any(ends) else x


@dataclass(frozen=True)
class Images:
    """A user's images as tensors, with the form of the user's input, in which results are returned.

    `read_images` makes the instances, and `hand_back` uses the form.

    Attributes
    ----------
    tensors : list of Tensor of shape (n, n_channels, *size)
        One tensor for an array of images; for a list of images one tensor with n = 1 per image.
    kind : {"rows", "array", "list", "image"}
        Form of the user's input: rows of pixels, an array or a list of images, or a single image.
    channel_axis : bool
        Whether the user's images have an axis of channels.
    source : object
        The user's input; results become arrays, or tensors on the same device, as this input is.
    """

    tensors: list[Tensor]
    kind: str
    channel_axis: bool
    source: object

    def __len__(self):
        return sum(map(len, self.tensors))

    @property
    def n_channels(self):
        """Number of channels, the same for all images."""
        return self.tensors[0].shape[1]

    def map(self, function):
        """Return new `Images` with a function applied to each tensor (n, n_channels, *size)."""
        return replace(self, tensors=[function(x) for x in self.tensors])

    def singles(self):  # -> list of (n_channels, *size)
        """Return the images as a list of single images, whether the user passed an array or a list.

        The tensors share memory with ``tensors``.
        """
        return [image for images in self.tensors for image in images]

    def hand_back(
        self,
        tensors,
        *,
        channels=None,
        channels_first=False,
        pixels=False,
    ):
        """Return results, such as codes or denoised images, in the form of the user's input.

        Parameters
        ----------
        tensors : list of Tensor of shape (n, n_results, *size)
            One tensor for each tensor of ``self.tensors``. ``n_results`` is a number of channels or
            of atoms, and ``size`` may differ from that of the images.
        channels : bool, default=None
            Whether results keep the axis of ``n_results``. By default they keep it if the user's
            images have an axis of channels.
        channels_first : bool, default=False
            Whether the axis of ``n_results`` is the first of an image instead of the last. In rows
            it is always the last.
        pixels : bool, default=False
            Whether results are images, which become unsigned integers if the user's images have
            this dtype.

        Returns
        -------
        ndarray, Tensor or list of them
            If the user passed a list, a list of results (*size[, n_results]); for rows (n,
            n_features); for a single image one result; otherwise (n, *size[, n_results]). With
            ``channels_first`` the axis of ``n_results`` comes before ``size``.
        """
        channels = self.channel_axis if channels is None else channels
        last = 1 if channels_first and self.kind != "rows" else -1
        results = [x.movedim(1, last) if channels else x[:, 0] for x in tensors]
        like = as_pixels if pixels and self.kind != "rows" else like_input
        if self.kind == "list":
            return [
                like(x[0], source)
                for x, source in zip(results, self.source, strict=True)
            ]
        if self.kind == "rows":
            results = [x.reshape(len(x), -1) for x in results]
        return like(results[0][0] if self.kind == "image" else results[0], self.source)


def largest_unsigned(X):
    """Return the largest integer of the dtype of an array or tensor, which stands for white.

    Return None if the dtype is not an unsigned integer, since pixels are then not fractions of it.
    """
    name = str(getattr(X, "dtype", "")).removeprefix("torch.")
    return np.iinfo(name).max if name.startswith("uint") else None


def as_fractions(X):
    """Convert images of unsigned integers to float32, as fractions of the largest of their dtype.

    ``X`` is an array-like or tensor of any shape; the result is an array or tensor of this shape.
    Other dtypes stay as they are. `as_pixels` is the inverse.
    """
    if not isinstance(X, torch.Tensor):
        X = np.asanyarray(X)  # a masked array stays masked
    largest = largest_unsigned(X)
    if largest is None:
        return X
    if isinstance(X, torch.Tensor):
        return X.to(torch.float32) / largest
    return (X / largest).astype("float32")


def as_pixels(tensor, X):
    """Convert a resulting image to the dtype and the container of the user's image.

    Parameters
    ----------
    tensor : Tensor of any shape
        The resulting image: fractions if ``X`` holds unsigned integers, else any numbers.
    X : array-like or Tensor
        The user's image, before `as_fractions`.

    Returns
    -------
    ndarray or Tensor of the shape of ``tensor``
        Unsigned integers, rounded, and clipped to the range of their dtype, if ``X`` holds unsigned
        integers. Otherwise the numbers of ``tensor``, by `like_input`.

    Raises
    ------
    ValueError
        If a number is not finite, for which unsigned integers have no value.
    """
    largest = largest_unsigned(X)
    if largest is None:
        return like_input(tensor, X)
    if not torch.isfinite(tensor).all():
        raise ValueError(
            f"Some pixels have no value, which {X.dtype} cannot hold. Pass fractions, image / "
            "largest value, to get NaN there."
        )
    pixels = (tensor.double() * largest).round().clamp(0, min(float(largest), _LARGEST))
    if isinstance(X, torch.Tensor):
        return pixels.to(X.dtype).to(X.device)
    return to_numpy(pixels).astype(X.dtype)


def is_one_image(X, n_axes):
    """Return whether an array holds a single image, and neither rows nor a stack of images.

    `ConvDenoiser.denoise` accepts such an array as a single image. ``X`` is any input of a user,
    and ``n_axes`` is 1 for signals, 2 for pictures and 3 for volumes. A single image has ``n_axes``
    axes, or, as a picture, a third axis of 3 or 4 colours and more than 4 pixels along both other
    axes.
    """
    shape = tuple(getattr(unpacked(X), "shape", ()))
    if n_axes == 2 and len(shape) == 3:
        return shape[2] in (3, _CHANNELS) and min(shape[:2]) > _CHANNELS
    return len(shape) == n_axes


def check_axes(images):
    """Raise an error if an axis of channels of the user's images was read as an axis of pixels.

    Parameters
    ----------
    images : Images
        The result of `read_images`.

    Raises
    ------
    ValueError
        If an axis of pixels has at most 4 entries and all other axes more, so that it must be an
        axis of channels.
    """
    n, n_channels, *size = images.tensors[0].shape
    # Two mistakes of users. One image with colours, (height, width, 3), is read as many grey images
    # of (width, 3) pixels, whose last axis is short. Images (n, 3, height, width) that come
    # without channels_first=True are read as images whose height is 3.
    has_colours_last = images.kind == "array" and not images.channel_axis
    has_colours_last = has_colours_last and size[-1] <= _CHANNELS < min(n, *size[:-1])
    has_colours_first = images.kind != "rows" and size[0] <= _CHANNELS < min(
        [n_channels, *size[1:]]
    )
    if has_colours_last or has_colours_first:
        raise ValueError(
            f"{n} images of {size} pixels and {n_channels} channels are read. Pass one image as "
            "[image], and channels_first=True if they are its first axis."
        )


def check_atoms_fit(images, kernel, *, channels_first=False):
    """Raise an error or warn if images are smaller than an atom, or their axes probably misread.

    `ImageEstimator` calls this function when it reads the images of a fit.

    Parameters
    ----------
    images : Images
        The result of `read_images`.
    kernel : tuple of int
        Size of an atom.
    channels_first : bool, default=False
        Whether the user has said that channels are the first axis of an image.

    Raises
    ------
    ValueError
        If atoms are larger than an image, or if the shape shows that the axes are read wrongly.

    Warns
    -----
    UserWarning
        If the axes may be misread, which is not sure: a table narrower than an atom, or signals
        that look like pictures.
    """
    n, n_channels, *size = images.tensors[0].shape
    is_rows = images.kind == "rows"
    is_signal = len(kernel) == 1
    has_many_channels = n_channels >= max(*size, 2) and not channels_first
    if (
        is_signal
        and not is_rows
        and (has_many_channels or looks_like_picture(images.source[0]))
    ):
        warn_or_refuse(
            f"Signals of {size[0]} samples and {n_channels} channels are read: channels are the "
            "last axis. Pass channels_first=True, or for pictures two numbers as atom_shape.",
            surely=has_many_channels or "uint" in str(images.source[0].dtype),
        )
    # Grey pictures with one side of at least 4 times the other are likely signals with channels. A
    # user who has such pictures, as panoramas, can pass a list.
    is_grey = images.kind == "array" and not images.channel_axis
    if len(kernel) == 2 and is_grey and max(size) >= 4 * min(size):
        raise ValueError(
            f"X means {n} grey pictures of {size[0]} x {size[1]} pixels. For signals pass "
            "channels_first=True and one number as atom_shape, for long pictures list(X)."
        )
    for x in images.tensors:
        if any(n < k for n, k in zip(x.shape[2:], kernel, strict=True)):
            # Small tables of rows get a warning instead of an error, because scikit-learn's checks
            # of estimators fit small tables. `sides` are the numbers of features and, if atoms are
            # not signals, of rows.
            sides = (size[0],) if is_signal else (len(x), size[-1])
            warn_or_refuse(
                f"Atoms of the size {kernel} are larger than an image of {tuple(x.shape[2:])}. "
                "Pass one image as [image], a smaller atom_shape (for signals one number), or "
                "X.reshape(-1, height, width).",
                surely=not is_rows or min(sides) >= 16 * len(kernel),
            )


def _check_images(
    X,
    n_axes,
    device,
    check,
    *,
    first,
    is_counts,
):
    """Check one array of a user's images and convert it to a tensor, for `read_images`.

    ``X`` has the shape (n, *size[, n_channels]), or (n, n_channels, *size) with ``first``. ``size``
    has ``n_axes`` axes. Unsigned integers become fractions of their largest value unless
    ``is_counts``. ``check`` is `check_rows` with its options. Return a tensor (n, n_channels,
    *size) on ``device``, and whether ``X`` has an axis of channels. Errors are those of
    `check_rows`, and ValueError if ``X`` has another number of axes or no entries.
    """
    X = X if is_counts else as_fractions(X)
    shape = tuple(X.shape)
    if len(shape) not in (n_axes + 1, n_axes + 2) or 0 in shape:
        raise ValueError(
            f"Images of {n_axes} axes are expected, as many as atom_shape has, and perhaps one of "
            f"channels. Got an array of shape {shape}; pass an array or a list of such images."
        )
    x = to_tensor(check(X.reshape(len(X), -1)), device).reshape(shape)
    channel_axis = len(shape) == n_axes + 2
    x = x.movedim(1 if first else -1, 1) if channel_axis else x[:, None]
    return x.contiguous(), channel_axis


def read_images(
    X,
    n_axes,
    *,
    image_shape=None,
    n_channels=1,
    channels_first=False,
    device="cpu",
    **checks,
):
    """Validate a user's images, signals or rows of pixels, and convert them to tensors.

    Parameters
    ----------
    X : array-like, Tensor or list of them
        Two dimensions are rows of pixels; ``n_axes + 1`` dimensions are images without an axis of
        channels, ``n_axes + 2`` with one; a list holds images of different sizes. Unsigned integers
        that are not rows become fractions of their largest value.
    n_axes : int
        Number of axes of an image: 1 for signals, 2 for pictures, 3 for volumes or films. An array
        of three dimensions is a single volume if ``n_axes`` is 3.
    image_shape : tuple of int, default=None
        Shape of the image in a row, with channels last, such as that of the code maps of a fitted
        learner. By default a row is a single line of pixels.
    n_channels : int, default=1
        Number of channels of the images of the fit, if a learner is fitted. If it is above 1, an
        array of ``n_axes + 1`` dimensions whose last axis has this length is a single image.
    channels_first : bool, default=False
        Whether channels are the first axis of an image. An array of ``n_axes + 1`` dimensions is
        then a single image.
    device : torch.device or str, default="cpu"
        Device of the result.
    **checks : dict
        ``allow_nan``, ``estimator`` and ``largest`` of `check_rows`. With ``largest`` images are
        counts, and unsigned integers keep their values.

    Returns
    -------
    Images
        The images, all in float32, or all in float64 if any of them is.

    Raises
    ------
    ValueError, TypeError
        If the input has none of these forms, or holds values that are not allowed.
    """
    check = partial(check_rows, **checks)
    is_counts = checks.get("largest") is not None
    X = unpacked(X)
    kind = "array"
    has_items = isinstance(X, list | tuple) and len(X)
    if has_items and len(getattr(X[0], "shape", ())) >= n_axes:
        X = list(X)
        kind = "list"
    elif not hasattr(X, "shape") and np.asarray(X).ndim > 2:
        X = np.asarray(X)
    shape = tuple(getattr(X, "shape", ()))
    if len(shape) == 1:
        raise ValueError(
            f"X is one signal of {shape[0]} samples. Reshape your data: pass [X], a list of "
            "signals."
        )
    has_colours = len(shape) > 2 and shape[-1] == n_channels > 1
    if kind == "list":
        arrays = [
            (x if isinstance(x, torch.Tensor) else np.asanyarray(x))[None] for x in X
        ]
    elif len(shape) == n_axes == 3 or (
        len(shape) == n_axes + 1 and (channels_first or has_colours)
    ):
        arrays = [X[None]]
        kind = "image"
    elif len(shape) <= 2:  # with fewer than two dimensions check_rows raises its error
        rows = check(X)
        kind = "rows"
        channels_first = False
        shape = image_shape or (*[1] * (n_axes - 1), rows.shape[1])
        arrays = [rows.reshape(len(rows), *shape)]
    else:
        arrays = [X]
    checked = [
        _check_images(
            x, n_axes, device, check, first=channels_first, is_counts=is_counts
        )
        for x in arrays
    ]
    channels = {(x.shape[1], has_axis) for x, has_axis in checked}
    if len(channels) > 1:
        raise ValueError(
            "All images of a list need the same number of channels, and all or none an axis of "
            f"them. Got numbers of channels {sorted({n for n, _ in channels})}."
        )
    is_double = any(x.dtype == torch.float64 for x, _ in checked)
    dtype = torch.float64 if is_double else torch.float32
    _, channel_axis = checked[0]
    return Images([x.to(dtype) for x, _ in checked], kind, channel_axis, X)


def read_targets(y, images, read):  # -> list of (n_channels, *size), or None
    """Read the clean images that a denoiser learns from, one for each noisy image.

    Parameters
    ----------
    y : array-like, Tensor, list of images or None
        The user's targets, in any form that ``images`` may have.
    images : Images
        The noisy images.
    read : callable
        ``read(y, n_channels=n)`` returns the targets as `Images`: the method of the estimator that
        has read ``images``.

    Returns
    -------
    list of Tensor of shape (n_channels, *size), or None
        Targets with the dtype and on the device of the images. None if ``y`` is None, or if ``y``
        holds one label for each image, which tools of scikit-learn may pass.

    Raises
    ------
    ValueError
        If the shapes differ from the shapes of the images.
    """
    if y is None:
        return None
    is_list = isinstance(y, list | tuple) and len(y) > 0
    first = y[0] if is_list else y  # np.asarray(y) fails for images of different sizes
    if len(getattr(first, "shape", ()) or np.asarray(first).shape) + is_list < 2:
        return None  # y has one dimension: labels
    targets = read(y, n_channels=images.n_channels).singles()
    expected = [tuple(x.shape) for x in images.singles()]
    if [tuple(x.shape) for x in targets] != expected:
        raise ValueError(
            "Targets do not match the images. Pass one clean image of the same shape, "
            f"{expected[0]} with channels first, for each of the {len(expected)} noisy ones."
        )
    return [x.to(images.tensors[0]) for x in targets]


def extend(x, before, after):  # (n, n_channels, *size) -> larger by before + after
    """Continue images beyond their borders by reflection, also by more pixels than they have.

    ``before`` and ``after`` have a number of pixels for each axis of ``size``, to add at the start
    and at the end of the axis. The pixel at the border is repeated: c b a | a b c | c b a.
    """
    for axis, (left, right) in enumerate(zip(before, after, strict=True), start=2):
        n = x.shape[axis]
        # positions in a periodic image, each period of which is the axis and its mirror image
        index = torch.arange(-left, n + right, device=x.device) % (2 * n)
        x = x.index_select(axis, torch.where(index < n, index, 2 * n - 1 - index))
    return x
