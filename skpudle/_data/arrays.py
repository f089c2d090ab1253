"""The boundary between NumPy and torch: check arrays of users, and convert arrays and tensors."""

from math import frexp

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import validate_data

from skpudle._compilation import blocks_of_rows
from skpudle._precision import kept_by_autograd

# The mean square of data has to stay by this factor inside the range of the dtype. Training squares
# residuals that are a hundred times smaller than the data, and sums squares over batches. Measured:
# in float32 training is exact for data of size 1e-17 to 1e17, but not for 1e-19 and 1e18.
_ROOM = 1e4

# Dtypes of dates and times have names that begin with one of these words, in NumPy, pandas, Polars.
_DATES = "date", "time", "duration"


def resolve_device(device, X=None, *, fitted=False):
    """Return the torch device named ``device``.

    Parameters
    ----------
    device : str
        ``"auto"`` is the device of ``X`` if ``X`` is a tensor, else CUDA if present, else the CPU.
        Other values are names of torch devices such as ``"cpu"``, ``"cuda:1"`` or ``"mps"``.
    X : object, default=None
        The user's input.
    fitted : bool, default=False
        Whether the learner is fitted already. A missing device is then replaced by the CPU, since
        the fit may have run on another machine.

    Returns
    -------
    torch.device
        A device that exists.

    Raises
    ------
    ValueError
        If the device is missing, unless ``fitted``.
    """
    if device == "auto":
        if isinstance(X, torch.Tensor):
            return X.device
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        if fitted:
            return torch.device("cpu")
        raise ValueError(f"Device {device!r:.80} is not present: {error}. Pass 'auto'.") from error


def input_attributes(X):
    """Return ``n_features_in_`` and ``feature_names_in_`` of input as a dict, None where unknown.

    ``X=None`` means input without features, such as images.
    """
    estimator = BaseEstimator()
    if X is not None:
        validate_data(estimator, X, skip_check_array=True)
    return dict.fromkeys(("n_features_in_", "feature_names_in_")) | vars(estimator)


def make_generator(random_state):
    """Return a torch generator on the CPU, seeded from ``random_state``."""
    seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
    return torch.Generator().manual_seed(int(seed))


def to_tensor(array, device="cpu", dtype=None):
    """Return an array as a tensor on ``device``, sharing memory where that is possible and safe.

    The dtype changes on the host, because the device may not support the dtype of the array.
    """
    if not isinstance(array, torch.Tensor):
        array = np.asarray(array)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()
        array = torch.from_numpy(array)
    return array.to(dtype).to(device)


def wide(x):
    """Return a tensor in float64, except on MPS, which has no float64: squares do not overflow."""
    return x if x.device.type == "mps" else x.double()


def to_numpy(tensor):
    """Return a tensor of any device and graph as an array that shares no memory with it."""
    return tensor.detach().cpu().resolve_neg().numpy().copy()


def host_array(X):
    """Return a tensor of any device and graph as an array; other objects unchanged."""
    return to_numpy(X) if isinstance(X, torch.Tensor) else X


def like_input(tensor, X):
    """Return an array, or a tensor on the device of ``X`` if ``X``, the user's input, is a tensor.

    The memory is that of ``tensor`` where the device allows it.
    """
    return tensor.to(X.device) if isinstance(X, torch.Tensor) else tensor.detach().cpu().numpy()


def split_missing(x, n_axes=None):  # -> x, mask of the same shape or None
    """Return data without NaN, and a mask: 1 where an entry is known, 0 where it was NaN.

    NaN is replaced by the mean of its column, for code that ignores the mask. With ``n_axes`` the
    data are images, and NaN is replaced by the mean of its channel, over the last ``n_axes`` axes.
    """
    if not torch.isnan(x.sum()):  # the sum is NaN if any entry is
        return x, None
    missing, axes = x.isnan(), 0 if n_axes is None else tuple(range(-n_axes, 0))
    mask = torch.ones_like(x).masked_fill_(missing, 0)
    x = x.masked_fill(missing, 0)
    n_known = mask.sum(axes, keepdim=True).clamp_min(1)
    return torch.where(missing, x.sum(axes, keepdim=True) / n_known, x, out=x), mask


def with_gaps(x, mask):  # the inverse of `split_missing`
    """Return data with NaN where ``mask`` is 0; ``mask=None`` means that all are known."""
    return x if mask is None else x.masked_fill(mask == 0, torch.nan)


def check_range(square, tensors):
    """Return ``square``, the mean square of the data, if training can square the data.

    ``tensors`` are the data. Data that are all zero pass.

    Raises
    ------
    ValueError
        If the data are so small or so large that squares would leave the range of their dtype.
    """
    limits = torch.finfo(tensors[0].dtype)
    if _ROOM * limits.tiny <= square <= limits.max / _ROOM:
        return square
    largest = max(abs(float(end)) for x in tensors for end in x.aminmax())
    if largest == 0:
        return square
    raise ValueError(
        f"{tensors[0].dtype} does not hold the squares of data whose largest number is "
        f"{largest:.3g}; scale the data, for example to a standard deviation of 1."
    )


def mean_square(x, weight=None):  # (n, m), (n,) -> float
    """Return the mean squared norm of rows, the unit of training; rows may have weights.

    Raises
    ------
    ValueError
        As in `check_range`.
    """
    squares = torch.cat([x[rows].square().sum(1) for rows in blocks_of_rows(*x.shape)])
    mean = squares.mean() if weight is None else (weight * squares).sum() / weight.sum()
    return check_range(float(mean), [x])


def unit_of(square):
    """Return the power of two that a search divides data by, from their mean squared norm.

    The power is 1 for data of usual size. Otherwise fourth powers of the data, which a search
    computes, could leave the range of float64. Dividing by a power of two is exact, so the result
    does not depend on it.
    """
    exponent = frexp(square)[1] // 2
    # Data between 2**-64 and 2**64: even their eighth powers are in the range of float64.
    return 1.0 if abs(exponent) <= 64 else 2.0**exponent


def unpacked(X):
    """Return an image of Pillow as an array, and a list of such images as a list of arrays.

    Other data are returned unchanged.
    """
    if isinstance(X, list | tuple) and len(X) and hasattr(X[0], "getbands"):
        return [unpacked(image) for image in X]
    if not hasattr(X, "getbands"):
        return X
    if X.mode.startswith("P"):
        raise ValueError(f"X has mode {X.mode!r}, of a palette. Pass image.convert('RGB').")
    return np.asarray(X)


def check_rows(X, *, estimator=None, largest=None, copy=False, allow_nan=False):
    """Validate rows of numbers; return an array, or a tensor for a tensor.

    Parameters
    ----------
    X : array-like or Tensor of shape (n_samples, n_features)
        The user's input. Masked entries of a masked array are NaN.
    estimator : object, default=None
        Named in error messages.
    largest : float, default=None
        If not None, values must be from 0 to this.
    copy : bool, default=False
        Whether to always copy.
    allow_nan : bool, default=False
        Whether to accept NaN.

    Returns
    -------
    ndarray or Tensor of shape (n_samples, n_features)
        float32 stays; everything else becomes float64, as in scikit-learn.

    Raises
    ------
    ValueError, TypeError
        As in `sklearn.utils.check_array`, or if values are dates or not in the range.
    """
    first = np.asarray(X[0]) if isinstance(X, list | tuple) and len(X) else X
    kinds = first.dtypes if hasattr(first, "dtypes") else [getattr(first, "dtype", "")]
    if any(str(kind).lower().startswith(_DATES) for kind in kinds):
        raise TypeError(
            "X has dates or times. Leave them out, or pass numbers, such as seconds since a date."
        )
    finite = "allow-nan" if allow_nan else True
    options = {"dtype": [np.float64, np.float32], "order": "C", "estimator": estimator}
    options |= {"ensure_all_finite": finite, "copy": copy, "input_name": "X"}
    if isinstance(X, np.ma.MaskedArray):
        X = X.astype(X.dtype if X.dtype == np.float32 else np.float64).filled(np.nan)
    tensor = isinstance(X, torch.Tensor)
    X = _check_tensor(X, options, allow_nan) if tensor else check_array(X, **options)
    # comparisons with NaN are False, so that missing entries pass
    if largest is not None and ((X < 0).any() or (largest < X).any()):
        raise ValueError(
            f"Negative values in data passed as X, or values above {largest:g}. Pass other data."
        )
    return X


def check_numbers(values, name, n, *, positive=False, of="features"):  # -> Tensor (n,)
    """Check numbers that a user gives, one for each feature or each row.

    Raises
    ------
    ValueError
        If the numbers are not finite, not an array of ``n`` numbers, or, with
        ``positive``, not all positive.
    """
    numbers = check_array(host_array(values), dtype=np.float64, ensure_2d=False, input_name=name)
    if numbers.shape != (n,) or (positive and not (numbers > 0).all()):
        raise ValueError(
            f"{name} of shape {numbers.shape} is no array of {'positive ' * positive}numbers. Pass "
            f"one for each of the {n} {of}."
        )
    return to_tensor(numbers)


def _check_tensor(X, options, allow_nan):  # (n, n_features) -> the same, on its device
    """Check a tensor as `check_array` checks an array; ``options`` are those of `check_array`."""
    if X.is_complex():
        raise ValueError(f"Complex data not supported, got a tensor of dtype {X.dtype}.")
    # torch leaves the sign of such a tensor as the imaginary part of a conjugate for later
    X = X.detach().resolve_neg()
    if X.dtype not in (torch.float32, torch.float64):
        X = X.double()
    if X.device.type == "cpu":
        return to_tensor(check_array(X.numpy(), **options))
    # Scikit-learn checks only the shape of a tensor on another device, by an array of this shape
    # that takes no memory.
    check_array(np.broadcast_to(0.0, X.shape), estimator=options["estimator"])
    # For finite data one number is read from the device: a sum with inf or NaN is not finite.
    if not torch.isfinite(X.sum()) and (X.isinf().any() or not allow_nan):
        raise ValueError("Input X contains infinity or NaN. Remove these samples.")
    return X.clone() if options["copy"] else kept_by_autograd(X).contiguous()
