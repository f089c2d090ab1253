"""Check users' arrays, and convert between NumPy arrays and torch tensors.

Only this module converts arrays to tensors and back, which ``tests/test_project.py`` checks.
"""

import sys
import warnings
from functools import partial
from math import frexp
from os import PathLike

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import _check_sample_weight, validate_data

from skpudle._compilation import blocks_of_rows
from skpudle._precision import kept_by_autograd

# `check_range`: the mean square of data has to be at least this factor away from both ends of the
# dtype's range, because training squares residuals that are a hundred times smaller than the data,
# and sums squares over batches. Measured: in float32 training is exact for data of size 1e-17 to
# 1e17, but not for 1e-19 and 1e18.
_ROOM = 1e4

# `check_rows` refuses dates and times, which would otherwise become numbers without a notice. In
# NumPy, pandas and Polars the names of their dtypes begin with one of these words.
_DATES = "date", "time", "duration"

# Warnings point at the first line of code outside of these packages: this package, and packages
# that call or wrap its methods.
_WRAPPERS = {"skpudle", "sklearn", "torch", "contextlib"}


def users_level():
    """Return the ``stacklevel`` (int) that makes a warning point at the line of the user's code.

    Write ``warnings.warn(message, stacklevel=users_level())``: the level is counted from the
    function that calls `users_level`.
    """
    frame = sys._getframe(1)
    level = 1
    while frame.f_back is not None and (
        frame.f_globals.get("__name__", "").partition(".")[0] in _WRAPPERS
    ):
        frame = frame.f_back
        level = level + 1
    return level


def warn(message, category=UserWarning):
    """Issue a warning that points at the user's line instead of a line of this package."""
    warnings.warn(message, category, stacklevel=users_level())


def resolve_device(device, X=None, *, fitted=False):
    """Choose the torch device on which a learner computes.

    Parameters
    ----------
    device : str
        ``"auto"`` is the device of ``X`` if ``X`` is a tensor, else CUDA if present, else the CPU.
        Other values are names of torch devices such as ``"cpu"``, ``"cuda:1"`` or ``"mps"``.
    X : object, default=None
        The user's input, which only ``"auto"`` looks at.
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
        raise ValueError(
            f"Device {device!r:.80} is not present: {error}. Pass 'auto', 'cpu', or 'cuda' for a "
            "GPU of NVIDIA."
        ) from error


def input_attributes(X):
    """Return the attributes that scikit-learn expects of an estimator that is fitted to ``X``.

    ``X`` is array-like of shape (n_samples, n_features), or None for input without features, such
    as images. The result is a dict of ``n_features_in_``, an int, and ``feature_names_in_``, an
    array of shape (n_features,). Both are None if ``X`` is None, and the names if ``X`` has none.
    """
    estimator = BaseEstimator()
    if X is not None:
        validate_data(estimator, X, skip_check_array=True)
    return dict.fromkeys(("n_features_in_", "feature_names_in_")) | vars(estimator)


def make_generator(random_state):
    """Return a torch generator on the CPU, seeded from scikit-learn's parameter ``random_state``.

    A `RandomState` instance advances by one draw, so that the next call gives another seed.
    """
    seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
    return torch.Generator().manual_seed(int(seed))


def to_tensor(array, device="cpu", dtype=None):
    """Convert an array or tensor to a tensor on ``device``, without a copy if possible.

    Read-only arrays are copied, because code that changes the tensor would write to them, and so
    are arrays with negative strides, which torch refuses. Otherwise a tensor on the CPU shares the
    memory of the array. ``dtype=None`` keeps the dtype. The dtype changes before the copy to the
    device, because the device may not support the dtype of the array.
    """
    if not isinstance(array, torch.Tensor):
        array = np.asarray(array)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()
        array = torch.from_numpy(array)
    return array.to(dtype).to(device)


def wide(x):
    """Return a tensor in float64, so that squares of its entries do not overflow.

    A tensor on the device MPS, which has no float64, is returned unchanged.
    """
    return x if x.device.type == "mps" else x.double()


def to_numpy(tensor):
    """Return a copy of a tensor as an array; the tensor may be on any device and require grad."""
    return tensor.detach().cpu().resolve_neg().numpy().copy()


def host_array(X):
    """Return a tensor as an array, by `to_numpy`, and any other object unchanged."""
    return to_numpy(X) if isinstance(X, torch.Tensor) else X


def like_input(tensor, X):
    """Return a result in the container of the user's input ``X``.

    ``tensor``, of any shape, stays a tensor and goes to the device of ``X`` if ``X`` is a tensor.
    Otherwise it becomes an array. The result may share memory with ``tensor``.
    """
    return (
        tensor.to(X.device)
        if isinstance(X, torch.Tensor)
        else tensor.detach().cpu().numpy()
    )


def split_missing(x, n_axes=None):  # -> x, mask of the same shape or None
    """Split data with NaN into complete data and a mask of their known entries.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features) or (..., *size)
        Data. NaN marks a missing entry.
    n_axes : int, default=None
        Number of axes of ``size``, for images; None for rows.

    Returns
    -------
    x : Tensor of the same shape
        The data with NaN replaced by the mean of the known entries, which suits code that ignores
        the mask: in rows the mean of the column, in images that of the same image and channel.
        Without known entries the mean is 0. Data without NaN are returned as they are, not copied.
    mask : Tensor of the same shape, or None
        1 where an entry is known, 0 where it was NaN. None if no entry is NaN.
    """
    if not torch.isnan(x.sum()):  # the sum is NaN if any entry is
        return x, None
    missing = x.isnan()
    axes = 0 if n_axes is None else tuple(range(-n_axes, 0))
    mask = torch.ones_like(x).masked_fill_(missing, 0)
    x = x.masked_fill(missing, 0)
    n_known = mask.sum(axes, keepdim=True).clamp_min(1)
    return torch.where(missing, x.sum(axes, keepdim=True) / n_known, x, out=x), mask


def with_gaps(
    x, mask
):  # Tensor, mask of the same shape or None -> Tensor of the same shape
    """Put NaN back where ``mask`` is 0: the inverse of `split_missing`."""
    return x if mask is None else x.masked_fill(mask == 0, torch.nan)


def check_range(square, tensors):
    """Raise an error for data that are so small or so large that training cannot square them.

    Parameters
    ----------
    square : float
        The mean square of the data, of an entry or of a whole sample.
    tensors : list of Tensor
        The data, of one dtype. Data that are all zero pass.

    Returns
    -------
    float
        ``square``.

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
    """Return the mean squared norm of rows, by which learners measure the size of their data.

    ``weight`` says how often each row counts; None is once.

    Raises
    ------
    ValueError
        If the data are so small or so large that squares would leave the range of their dtype.
    """
    squares = torch.cat([x[rows].square().sum(1) for rows in blocks_of_rows(*x.shape)])
    mean = squares.mean() if weight is None else (weight * squares).sum() / weight.sum()
    return check_range(float(mean), [x])


def unit_of(square):
    """Choose the power of two that a search divides its data by, so that float64 holds its powers.

    A search computes fourth powers of the data. ``square``, a float, is the mean squared norm of a
    sample. The result is a float, about the root of ``square``, or 1 if this root is between about
    ``2**-64`` and ``2**64``. It must be a power of two: division by it is exact, so results do not
    depend on the unit.
    """
    # `frexp` returns a mantissa and an exponent of 2; the root has half of the exponent
    exponent = frexp(square)[1] // 2
    # Between 2**-64 and 2**64 the data need no division: even eighth powers of such numbers are in
    # the range of float64.
    return 1.0 if abs(exponent) <= 64 else 2.0**exponent


def unpacked(X):
    """Convert an image of the library Pillow to an array, so that it is read like any array.

    The array has the shape (height, width[, n_channels]). A list or tuple of such images becomes a
    list of arrays, and other data are returned unchanged.

    Raises
    ------
    ValueError
        If the pixels of an image are numbers of colours in a palette.
    """
    if isinstance(X, list | tuple) and len(X) and hasattr(X[0], "getbands"):
        return [unpacked(image) for image in X]
    if not hasattr(X, "getbands"):
        return X
    if X.mode.startswith("P"):
        raise ValueError(
            f"X has mode {X.mode!r}, of a palette. Pass image.convert('RGB')."
        )
    return np.asarray(X)


def refuse_text(X):
    """Raise ValueError if ``X`` is a text, a dict, or rows of several lengths, or has text in it.

    Of a data frame with a column of text the message names the column.
    """
    if isinstance(X, str | bytes | PathLike):
        raise ValueError(
            f"X is the text {X!r:.50}. Read the file, and pass its numbers."
        )
    # A sparse array in the form of scipy's dok_array is also a dict.
    if isinstance(X, dict) and not hasattr(X, "shape"):
        raise ValueError("X is a dict. Pass an array, or pandas.DataFrame(X).")
    if isinstance(X, list | tuple):
        lengths = {len(row) for row in X if isinstance(row, list | tuple)}
        if len(lengths) > 1:
            raise ValueError(
                f"Rows of X have from {min(lengths)} to {max(lengths)} entries. Pass rows of one "
                "length, with NaN for missing entries."
            )
    # a column of a data frame may hold numbers as objects or as text, which can be converted
    dtypes = getattr(X, "dtypes", ())
    for name, dtype in zip(getattr(X, "columns", ()), dtypes):
        if str(dtype).lower().startswith(("object", "str", "category")):
            try:
                np.asarray(X[name]).astype(np.float64)
            except ValueError as error:
                raise ValueError(
                    f"Column {name!r} of X has text: {error}. Leave it out, or encode it as "
                    "numbers."
                ) from error


def check_rows(
    X,
    *,
    estimator=None,
    largest=None,
    copy=False,
    allow_nan=False,
):
    """Validate a user's rows of numbers, and convert them to floating point.

    Parameters
    ----------
    X : array-like or Tensor of shape (n_samples, n_features)
        The user's input. Masked entries of a masked array become NaN.
    estimator : object, default=None
        The learner, whose name error messages have.
    largest : float, default=None
        If not None, values must be from 0 to this number.
    copy : bool, default=False
        Whether the result must not share memory with ``X``.
    allow_nan : bool, default=False
        Whether to accept NaN.

    Returns
    -------
    ndarray or Tensor of shape (n_samples, n_features)
        A tensor, on its device, if ``X`` is a tensor, else an array. float32 stays; everything else
        becomes float64, as in scikit-learn.

    Raises
    ------
    ValueError, TypeError
        If ``X`` is not an array of two dimensions with finite numbers (or NaN, if allowed), or if
        values are text, dates, or not from 0 to ``largest``.
    """
    # in a list of rows the first row tells the dtype
    first = np.asarray(X[0]) if isinstance(X, list | tuple) and len(X) else X
    dtypes = first.dtypes if hasattr(first, "dtypes") else [getattr(first, "dtype", "")]
    if any(str(dtype).lower().startswith(_DATES) for dtype in dtypes):
        raise TypeError(
            "X has dates or times. Leave them out, or pass numbers, such as seconds since a date."
        )
    refuse_text(X)
    if isinstance(X, np.ma.MaskedArray):
        X = X.astype(X.dtype if X.dtype == np.float32 else np.float64).filled(np.nan)
    check = partial(
        check_array,
        dtype=[np.float64, np.float32],
        order="C",
        copy=copy,
        ensure_all_finite="allow-nan" if allow_nan else True,
        estimator=estimator,
        input_name="X",
    )
    if isinstance(X, torch.Tensor):
        X = _check_tensor(X, check, estimator, copy, allow_nan)
    else:
        X = check(X)
    if largest is not None:
        _check_counts(X, largest)
    return X


def check_numbers(
    values,
    name,
    n,
    *,
    positive=False,
    of="features",
):  # -> Tensor (n,)
    """Check a user's argument with one number for each feature or row, such as exposures of rows.

    Parameters
    ----------
    values : array-like or Tensor of shape (n,)
        The numbers.
    name : str
        Name of the parameter, for error messages.
    n : int
        Expected length.
    positive : bool, default=False
        Whether all numbers have to be above 0.
    of : str, default="features"
        What the numbers belong to, in the plural, for error messages.

    Returns
    -------
    Tensor of shape (n,)
        The numbers, in float64 on the CPU.

    Raises
    ------
    ValueError
        If the numbers are not finite, not an array of ``n`` numbers, or, with
        ``positive``, not all positive.
    """
    numbers = check_array(
        host_array(values), dtype=np.float64, ensure_2d=False, input_name=name
    )
    if numbers.shape != (n,) or (positive and not (numbers > 0).all()):
        raise ValueError(
            f"{name} of shape {numbers.shape} is not an array of {'positive ' * positive}numbers. "
            f"Pass one for each of the {n} {of}."
        )
    return to_tensor(numbers)


def _check_counts(X, largest):  # (n_samples, n_features)
    """Raise ValueError if a count is negative, or above ``largest``; missing entries (NaN) pass."""
    lowest = float(np.nanmin(host_array(X), initial=0.0))
    if lowest < 0:
        raise ValueError(
            f"Negative values in data passed as X, down to {lowest:.4g}: counts are not negative. "
            "Pass counts, or take PUDLEDictionaryLearning (images: load_denoiser('gaussian'))."
        )
    highest = float(np.nanmax(host_array(X), initial=0.0))
    if highest > largest:
        raise ValueError(
            f"X has values up to {highest:.4g}, above the {largest:g} trials of an entry. Pass the "
            "number of trials as n_trials."
        )


def check_sample_weight(sample_weight, n_samples):  # -> Tensor (n_samples,), float64
    """Check the user's ``sample_weight`` and convert it to one weight for each sample.

    ``sample_weight`` is array-like of shape (n_samples,), or a number for all samples.

    Raises
    ------
    ValueError
        If the shape is another one, or weights are negative, not finite, or all zero.
    """
    weight = host_array(sample_weight)
    # scikit-learn's function looks only at the number of these rows
    rows = np.empty((n_samples, 0))
    weight = _check_sample_weight(
        weight, rows, dtype=np.float64, ensure_non_negative=True
    )
    # scikit-learn checks this itself from version 1.9 on
    if weight.size and not weight.any():
        raise ValueError("All weights are zero. Pass at least one non-zero weight.")
    return to_tensor(weight)


def _check_tensor(
    X,
    check,
    estimator,
    copy,
    allow_nan,
):  # -> the same, on its device
    """Check a user's tensor for `check_rows`, as scikit-learn's `check_array` checks an array.

    ``check(array)`` is `check_array` with the options of `check_rows`, whose arguments the others
    are. A tensor on the CPU passes it; of other tensors less is checked, to save time.
    """
    if X.is_complex():
        raise ValueError(
            f"Complex data not supported, got a tensor of dtype {X.dtype}."
        )
    # Torch computes z.conj().imag without a copy: the memory of the result has the wrong sign, and
    # a flag notes it. NumPy has no such flag, so `resolve_neg` has to change the sign in memory.
    X = X.detach().resolve_neg()
    if X.dtype not in (torch.float32, torch.float64):
        X = X.double()
    if X.device.type == "cpu":
        return to_tensor(check(X.numpy()))
    # A copy of all data from the device, for scikit-learn's checks, would be slow. So check_array
    # checks only the shape, by an array of zeros that takes no memory.
    check_array(np.broadcast_to(0.0, X.shape), estimator=estimator)
    # If the sum is finite, so are all entries, and only this number is copied from the device.
    # Otherwise the entries are looked at, since a sum of finite entries can overflow.
    if not X.sum().isfinite() and not (~X.isinf() if allow_nan else X.isfinite()).all():
        raise ValueError("Input X contains infinity or NaN. Remove these samples.")
    return X.clone() if copy else kept_by_autograd(X).contiguous()


def dictionary_of(source):
    """Return the atoms of a user's argument that may be a fitted learner or an array of atoms.

    Parameters
    ----------
    source : estimator, SPORCO learner, array-like or Tensor
        A fitted learner of this package or of scikit-learn (with ``components_``), a
        `~sklearn.decomposition.SparseCoder` (with ``dictionary``), a learner of SPORCO (with
        ``getdict``), or the atoms themselves.

    Returns
    -------
    array-like of shape (n_components, n_features)
        Atoms as rows: an array for a tensor or a learner of SPORCO, otherwise as they are stored or
        given. Atoms of images have the shape of the learner's ``components_``.

    Raises
    ------
    ValueError
        If a learner is not fitted. A clone of a fitted learner, as a grid search makes, is not.
    """
    if isinstance(source, torch.Tensor):
        return to_numpy(source)
    if hasattr(source, "getdict"):
        # in SPORCO the last axis is that of the atoms, and axes of length 1 may come before it
        atoms = np.asarray(source.getdict())
        return (np.squeeze(atoms) if atoms.ndim > 2 else atoms).T
    for name in ("components_", "dictionary"):
        if hasattr(source, name):
            return getattr(source, name)
    if hasattr(source, "fit"):
        raise ValueError(
            f"{type(source).__name__} is not fitted: `clone` forgets the fit of a parameter. Pass "
            "its components_, or wrap it in sklearn.frozen.FrozenEstimator."
        )
    return source


def given_atoms(dict_init, n_components, x, name="dict_init"):
    """Check the atoms that a user gives as initial dictionary, and convert them to a tensor.

    Parameters
    ----------
    dict_init : array-like or learner
        Atoms as rows, or a learner that `dictionary_of` takes.
    n_components : int or None
        Required number of atoms; None for any.
    x : Tensor of shape (n_samples, n_features)
        The data; only the number of features, the dtype and the device matter.
    name : str, default="dict_init"
        The parameter's name, for error messages.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Atoms of any norm, of the dtype and on the device of ``x``.

    Raises
    ------
    ValueError
        If the shape is wrong, or an atom is zero or not finite.
    """
    atoms = check_array(dictionary_of(dict_init), dtype=np.float64, input_name=name)
    atoms = to_tensor(atoms, x.device, x.dtype)
    if atoms.shape != (n_components or len(atoms), x.shape[1]):
        raise ValueError(
            f"{name} has shape {tuple(atoms.shape)}, expected (n_components, n_features) = "
            f"{(n_components, x.shape[1])}. Pass one atom per row."
        )
    if not atoms.any(1).all():
        raise ValueError(f"{name} has atoms of zeros. Drop or replace these rows.")
    return atoms
