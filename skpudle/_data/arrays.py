"""The boundary between NumPy and torch: the only module that converts between them."""

import warnings
from math import frexp
from os import PathLike

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import validate_data

from skpudle._data.names import users_level
from skpudle._precision import kept_by_autograd

# Characters of an error: scikit-learn's, about a wrong parameter, may have 500 and the value.
_LONGEST = 800

# Numbers to square at a time: 8 MiB in float64, the cache of a processor core.
_NUMBERS_AT_A_TIME = 2**20

# Factor between the range of data and the range of their squares, since training squares residuals
# a hundred times smaller, and sums squares over batches. In float32 it learns from data of 1e-17 to
# 1e17 to the last digits, but not of 1e-19 and 1e18.
_ROOM = 1e4

# Largest power of two by which data may differ from 1: their eighth powers are in the range of
# float64.
_MOST_DOUBLINGS = 64

# A matrix looks like a picture if its sides differ by at most the first factor and have at least
# the second length, and if neighbours along both axes correlate by more than the third. Neighbours
# in 13 pictures correlate by at least 0.69; digits sorted by class correlate by 0.44 along one
# axis.
_MOST_ASPECT, _LEAST_SIDE, _PICTURES = 4, 16, 0.5
# Length of the sides of a corner, in which neighbours are compared.
_SIDE = 512

# words that names of dtypes of dates begin with, in NumPy, pandas and Polars
_DATES = "date", "time", "duration"

# Arrays and frames in memory have one of these; tensors and NumPy arrays are known by their type.
_OF_MEMORY = "__dataframe__", "iloc", "__array_namespace__"
_IN_MEMORY = np.ndarray | torch.Tensor | list | tuple

_NAN = (
    "Input X contains NaN, which is not taken for missing values here. Impute them, for example by "
    "sklearn.impute.SimpleImputer in a pipeline, or use PUDLEDictionaryLearning, which accepts NaN."
)


def shortened(text):
    """Cut the middle out of a long text, such as an error that prints a long value."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 100]} ... {text[-50:]}"


def is_in_memory(X):
    """Return whether X is an array, a tensor, a frame, or an object of Python that lists rows."""
    if isinstance(X, np.memmap):
        return False
    return isinstance(X, _IN_MEMORY) or any(hasattr(X, name) for name in _OF_MEMORY)


def resolve_device(device, X=None):
    """Return the torch device named ``device``.

    Parameters
    ----------
    device : str
        ``"auto"`` is the device of ``X`` if that is a tensor, else CUDA if present, else the CPU;
        otherwise a torch device such as ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
    X : object, default=None
        The user's input.

    Returns
    -------
    torch.device
        A device that exists.

    Raises
    ------
    ValueError
        If there is no such device; the message names the available devices.
    """
    if device == "auto":
        if isinstance(X, torch.Tensor):
            return X.device
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        available = ["cpu"]
        available += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        available += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(
            f"Device {device!r:.80} is unknown or not present. Pass 'auto' or one of {available}."
        ) from error


def input_attributes(X):
    """Return the attributes that scikit-learn sets from input, None where unknown.

    ``X=None`` means input without features.
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
    """Return a tensor in float64, which holds squares of float32; MPS has no float64."""
    return x if x.device.type == "mps" else x.double()


def tensors_of(values):
    """Return a dictionary with its arrays as tensors, and other values unchanged."""
    return {
        name: to_tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


def to_numpy(tensor):
    """Return an independent array; `Tensor.numpy` would share the optimiser's memory."""
    return tensor.detach().cpu().resolve_neg().numpy().copy()


def host_array(X):
    """Return a tensor of any device and graph as an array; other objects unchanged."""
    refuse_sparse(X)
    return to_numpy(X) if isinstance(X, torch.Tensor) else X


def like_input(tensor, X):
    """Return ``tensor`` as a container of the same kind as the user's ``X``."""
    return tensor.to(X.device) if isinstance(X, torch.Tensor) else to_numpy(tensor)


def handed_over(tensor, X):
    """See `like_input`; without a copy, for a tensor that the caller does not keep."""
    return tensor.to(X.device) if isinstance(X, torch.Tensor) else tensor.cpu().numpy()


def split_missing(x):  # (n, m) -> (n, m), mask (n, m) or None
    """Return data without NaN, and their mask, 1 for known entries; None if all are known.

    Gaps get the mean of their column, for code that ignores the mask.
    """
    if not torch.isnan(x.sum()):  # without gaps, one pass
        return x, None
    missing = x.isnan()
    mask = torch.ones_like(x).masked_fill_(missing, 0)
    x = x.masked_fill(missing, 0)
    return torch.where(missing, x.sum(0) / mask.sum(0).clamp_min(1), x, out=x), mask


def with_gaps(x, mask):  # the inverse of `split_missing`
    """Return data with NaN for missing entries."""
    return x if mask is None else x.masked_fill(mask == 0, torch.nan)


def check_range(square, tensors):
    """Return the mean square of data if training can square them in their dtype.

    Raises
    ------
    ValueError
        If it, or squares in training, leave the range of the dtype. Data of zeros pass.
    """
    limits = torch.finfo(tensors[0].dtype)
    if _ROOM * limits.tiny <= square <= limits.max / _ROOM:
        return square
    largest = max(abs(float(end)) for x in tensors for end in x.aminmax())
    if largest == 0:
        return square
    raise ValueError(
        f"Data as {'small' if square < 1 else 'large'} as {largest:.3g} are not learned from in "
        f"{tensors[0].dtype}, which does not hold their squares; scale the data, for example to a "
        "standard deviation of 1."
    )


def mean_square(x, weight=None):  # (n, m), (n,) -> float
    """Return the mean squared norm of rows, the unit of training; rows may have weights.

    Raises
    ------
    ValueError
        As in `check_range`.
    """
    n_rows = max(1, _NUMBERS_AT_A_TIME // x.shape[1])
    squares = torch.cat([rows.square().sum(1) for rows in x.split(n_rows)])
    mean = squares.mean() if weight is None else (weight * squares).sum() / weight.sum()
    return check_range(float(mean), [x])


def unit_of(square):
    """Return a power of two to divide data of this mean squared norm by for a search.

    It is 1 unless fourth powers of the data, which a search computes, would leave the range of
    float64. Dividing by a power of two is exact, so the result does not depend on it.
    """
    exponent = frexp(square)[1] // 2
    return 1.0 if abs(exponent) <= _MOST_DOUBLINGS else 2.0**exponent


def unpacked(X):
    """Return an image of Pillow, or each of a list of them, as an array; other data unchanged.

    Raises
    ------
    ValueError
        If an image has a palette, whose numbers are no colours.
    """
    if isinstance(X, list | tuple) and len(X) and hasattr(X[0], "getbands"):
        return [unpacked(image) for image in X]
    if not hasattr(X, "getbands"):
        return X
    if X.mode.startswith("P"):
        raise ValueError(
            f"X is a picture of mode {X.mode!r}, whose numbers are places in a palette. Pass "
            "image.convert('RGB')."
        )
    return np.asarray(X)


def _refuse_no_numbers(X):
    """Raise TypeError for input without numbers: None, names of files, columns."""
    first = X[0] if isinstance(X, list | tuple) and len(X) else X
    if first is None:
        raise TypeError(
            f"X is {'None' if X is None else 'a list of None'}, which holds no data. Pass an array "
            "of shape (n_samples, n_features), or a list of images."
        )
    if isinstance(first, str | bytes | PathLike):
        raise TypeError(
            f"X holds the text {str(first)!r:.80}, and files are not opened here. Pass what they "
            "hold: numpy.load(path), pandas.read_csv(path), or numpy.asarray(PIL.Image.open(path)) "
            "for a picture."
        )
    if isinstance(X, dict):
        raise TypeError(
            f"X is a dictionary with the keys {[*X]!r:.80}. Pass one of its arrays, or "
            "pandas.DataFrame(X) if each is a column."
        )


def _more_axes(shape):
    return ValueError(
        f"X has the shape {shape}, and rows are expected, (n_samples, n_features). If each X[i] is "
        "a sample, pass X.reshape(len(X), -1); for atoms at any place of pictures or signals use "
        "ConvPUDLEDictionaryLearning, for patches of a picture skpudle.images.extract."
    )


def _neighbours_agree(x, axis):  # (n, m) -> bool
    """Return whether neighbours along an axis correlate as in pictures."""
    x = x - x.mean(axis, keepdims=True)
    first, second = x.take(range(1, x.shape[axis]), axis), x.take(range(x.shape[axis] - 1), axis)
    energy = (np.square(first).sum() * np.square(second).sum()) ** 0.5
    return energy > 0 and (first * second).sum() > _PICTURES * energy


def looks_like_picture(X):
    """Return whether a matrix looks like one grey picture, not like rows that are samples.

    Sides are alike, numbers are unsigned integers or from 0 to 1, and neighbours are similar along
    both axes. Samples in any order are not similar to their neighbours.
    """
    in_memory = isinstance(X, np.ndarray | torch.Tensor) and not isinstance(X, np.memmap)
    shape = tuple(X.shape) if in_memory else ()
    if len(shape) != 2 or min(shape) < _LEAST_SIDE or max(shape) > _MOST_ASPECT * min(shape):
        return False
    corner = host_array(X[:_SIDE, :_SIDE])
    if corner.dtype.kind not in "uf":
        return False
    in_units = corner.dtype.kind == "u" or (corner.min() >= 0 and corner.max() <= 1)
    corner = corner.astype(np.float64)
    return bool(in_units and _neighbours_agree(corner, 0) and _neighbours_agree(corner, 1))


def check_no_picture(X):
    """Refuse a grey picture where each row is a sample: X, the input of a fit.

    Raises
    ------
    ValueError
        If the matrix looks like a picture and holds unsigned integers.

    Warns
    -----
    UserWarning
        If it looks like one and holds numbers from 0 to 1.
    """
    if not looks_like_picture(X):
        return
    rows, columns = X.shape
    found = f"X looks like one grey picture, and each of its {rows} rows would be a sample"
    mend = (
        f"of {columns} features. Pass its patches, skpudle.images.extract(X), or [X] to "
        "ConvPUDLEDictionaryLearning"
    )
    if "uint" in str(X.dtype):
        raise ValueError(f"{found} {mend}; if each row is a sample, pass X.astype(float).")
    warnings.warn(
        f"{found} {mend}; if each row is a sample, pass rows in any order, "
        "sklearn.utils.shuffle(X), which does not look like one.",
        stacklevel=users_level(),
    )


def _with_gaps(X):
    """Return a masked array as an array with NaN for masked entries."""
    if not np.ma.is_masked(X):
        return X.data
    return X.astype(X.dtype if X.dtype == np.float32 else np.float64).filled(np.nan)


def refuse_sparse(X):
    """Raise an error for sparse tensors."""
    if isinstance(X, torch.Tensor) and X.layout is not torch.strided:
        raise TypeError(
            f"A dense tensor is required, got one of layout {X.layout}. Use .to_dense()."
        )


def _refuse_no_rows(X):
    """Raise an error for objects that make, hold or list batches, and are no array of rows."""
    if hasattr(X, "obs") and hasattr(X, "X"):
        raise TypeError(
            f"X is a {type(X).__name__}, which holds annotations next to its data. Pass adata.X."
        )
    if callable(X):
        raise TypeError(
            f"X is {getattr(X, '__name__', type(X).__name__)}, which is to be called, not data. "
            "Pass its result, or, if that is a generator, an object with an __iter__ that calls it."
        )
    if isinstance(X, list | tuple) and len(X) and getattr(X[0], "ndim", 1) == 2:
        raise ValueError(
            f"X is a {type(X).__name__} of {len(X)} arrays, and a list is one array of rows. Pass "
            "numpy.concatenate of them, an object with an __iter__ that yields them, or each to "
            "partial_fit."
        )


def as_array_like(X):
    """Return the user's X, a picture of Pillow as an array.

    Raises
    ------
    TypeError, ValueError
        If it is no data, and holds none: a text, a dictionary, a function, a list of batches.
    """
    if isinstance(X, torch.Tensor):
        refuse_sparse(X)
    elif not isinstance(X, np.ndarray):
        _refuse_no_numbers(X)
        _refuse_no_rows(X)
        X = unpacked(X) if hasattr(X, "getbands") else X
    return X


def _check_array(X, estimator, *, copy, allow_nan):
    finite = "allow-nan" if allow_nan else True
    options = {"dtype": [np.float64, np.float32], "order": "C", "ensure_all_finite": finite}
    try:
        return check_array(X, estimator=estimator, copy=copy, **options)
    except ValueError as error:
        if "contains NaN" in str(error):
            raise ValueError(_NAN) from error
        if "unique column names" in str(error):
            names = [str(name) for name in X.columns]
            equal = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(
                f"X has columns of equal names, {equal!r:.200}. Give each column a name of its "
                "own, or pass an array, X.to_numpy()."
            ) from error
        if "at least one array" in str(error):
            raise ValueError("X has no columns. Pass a frame with columns of numbers.") from error
        if "could not convert string" in str(error):
            raise _of_texts(X) from error
        if len(str(error)) > _LONGEST:
            raise ValueError(shortened(str(error))) from None
        raise


def _check_largest(X, largest):
    """Raise ValueError if data are negative or above the largest value; NaN passes."""
    if (X < 0).any():
        raise ValueError(
            f"Negative values in data passed as X, such as {float(X[X < 0][0]):.4g}: counts and "
            "fractions have none. For other numbers pass loss='gaussian', or Gaussian noise."
        )
    too_large = X > largest  # noqa: SIM300 (X is no constant)
    if too_large.any():
        raise ValueError(
            f"X has values such as {float(X[too_large][0]):.4g}, above n_trials={largest:g}: the "
            "binomial loss is for numbers of successes, or for fractions with n_trials=1. Pass a "
            "larger n_trials, or loss='poisson' for counts without a limit."
        )


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
    X = as_array_like(X)
    one = np.asarray(X[0]) if isinstance(X, list | tuple) and len(X) else X
    shape = tuple(getattr(one, "shape", ()))
    shape = shape if one is X else (len(X), *shape)
    if len(shape) == 1 and hasattr(X, "shape"):
        raise _one_axis(X)
    if len(shape) > 2:
        raise _more_axes(shape)
    kinds = one.dtypes if hasattr(one, "dtypes") else [getattr(one, "dtype", "")]
    if dates := [i for i, kind in enumerate(kinds) if str(kind).lower().startswith(_DATES)]:
        raise _of_dates(one, dates)
    if isinstance(X, torch.Tensor):
        X = _check_tensor(X, estimator, copy=copy, allow_nan=allow_nan)
    else:
        X = _with_gaps(X) if isinstance(X, np.ma.MaskedArray) else X
        X = _check_array(X, estimator, copy=copy, allow_nan=allow_nan)
    if largest is not None:
        _check_largest(X, largest)
    return X


def _of_dates(X, places):
    if hasattr(X, "dtypes"):
        names = [str(X.columns[i]) for i in places[:10]]
        found = f"dates or times in columns {names}{' ...' if len(places) > 10 else ''}"
    else:
        found = f"the dtype {X.dtype}"
    return TypeError(
        f"X has {found}, which would be numbers of an unknown unit, and NaT a large one. Leave "
        "them out, or pass numbers, such as seconds since the first date."
    )


def _is_number(value):
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _of_texts(X):
    if hasattr(X, "columns"):
        columns = {str(name): np.asarray(X[name]).tolist() for name in X.columns}
    else:
        columns = {str(i): column for i, column in enumerate(zip(*np.asarray(X).tolist()))}
    found = ((name, value) for name, column in columns.items() for value in column)
    texts = {}
    for name, value in found:
        if not _is_number(value) and value is not None:
            texts.setdefault(name, value)
    names = ", ".join(f"{name!r}" for name in [*texts][:10])
    return ValueError(
        f"X has text in the columns {names}{' ...' if len(texts) > 10 else ''}, such as "
        f"{next(iter(texts.values()), '')!r:.50}. Leave these columns out, as "
        "X.select_dtypes('number') of pandas does, or make numbers of them, for example by "
        "sklearn.preprocessing.OneHotEncoder."
    )


def _one_axis(X):
    return ValueError(
        f"Expected 2D array, got 1D array of {len(X)} numbers. If it is one row, Reshape your "
        "data: X.reshape(1, -1). If it is a signal, learn atoms at any position, by "
        "ConvPUDLEDictionaryLearning(8, atom_shape=100, stride=1).fit([X]), or cut windows, which "
        "are rows: numpy.lib.stride_tricks.sliding_window_view(X, 100)[::10]."
    )


def _check_tensor(X, estimator, *, copy, allow_nan):
    if X.is_complex():
        raise ValueError(f"Complex data not supported, got a tensor of dtype {X.dtype}.")
    X = X.detach().resolve_neg()  # the imaginary part of a conjugate has a lazy sign
    if X.dtype not in (torch.float32, torch.float64):
        X = X.double()
    if X.device.type == "cpu":
        return to_tensor(_check_array(X.numpy(), estimator, copy=copy, allow_nan=allow_nan))
    # on another device scikit-learn checks only the shape, on an array without memory
    check_array(np.broadcast_to(0.0, X.shape), estimator=estimator, ensure_all_finite=False)
    if not torch.isfinite(X.sum()):  # the host asks the device once if all is finite
        if X.isinf().any():
            raise ValueError("Input X contains infinity. Remove samples with infinite values.")
        if not allow_nan and X.isnan().any():
            raise ValueError(_NAN)
    return X.clone() if copy else kept_by_autograd(X).contiguous()
