"""Fingerprint a fit: a checkpoint recognises its fit by it."""

import zlib
from functools import partial

import numpy as np
import torch

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.batches import Samples
from skpudle._data.foreign import dictionary_of

# parameters that may differ between processes that train one dictionary
_OWN = {"device", "random_state", "verbose"}


# parameters that may change between an interrupted fit and the resumed one
_FREE = {
    "device",
    "max_iter",
    "n_iter_no_change",
    "random_state",  # compared if it is a number
    "split_sign",
    "tol",
    "transform_algorithm",
    "transform_alpha",
    "transform_min_gain",
    "transform_n_nonzero_coefs",
    "transform_tol",
    "verbose",
}


def plain(value):
    """Return NumPy's numbers as Python's, dictionaries in the order of names, partials as texts."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, partial):
        return f"{_text(value.func)} {_text(value.args)} {_text(value.keywords)}"
    if isinstance(value, dict):
        return {name: plain(value[name]) for name in sorted(value, key=str)}
    return value


def _text(value):
    value = plain(value)
    if hasattr(value, "__array__") or isinstance(value, torch.Tensor | list):
        return f"{np.shape(value)} {_checksum([to_tensor(value)])}"
    simple = value is None or isinstance(value, bool | int | float | str | tuple | dict)
    return repr(value) if simple else getattr(value, "__qualname__", type(value).__qualname__)


def parameters_of(estimator):
    """Return the parameters of an estimator, by name, as short texts."""
    parameters = estimator.get_params(deep=False)
    if "dict_init" in parameters:
        parameters["dict_init"] = dictionary_of(parameters["dict_init"])
    return {name: _text(value) for name, value in parameters.items()}


def _checksum(tensors):
    checksum = 0
    for tensor in tensors:
        array = np.ascontiguousarray(to_numpy(tensor))
        checksum = zlib.crc32(f"{array.shape} {array.dtype}".encode(), checksum)
        checksum = zlib.crc32(array.reshape(-1).view(np.uint8), checksum)
    return f"{checksum:08x}"


def data_of(source, samples):
    """Return a fingerprint of data: their kind, their size, and a checksum of the first and last.

    Parameters
    ----------
    source : source of batches
        See `skpudle._data.batches`.
    samples : Samples, or sequence of Tensor
        The data, or a part that identifies them.
    """
    kind, n = type(source).__name__.strip("_"), len(samples)
    if not isinstance(samples, Samples):
        images = list(samples)  # and their targets and masks
        ends = [*images[::n], images[-1]]
        return f"{kind} of {n} images, checksum of the first and last {_checksum(ends)}"
    parts = samples.x, samples.mask, samples.offset, samples.target, samples.weight
    ends = [part[end] for part in parts if part is not None for end in (0, -1)]
    first = getattr(source, "first_batch", None)
    batch = "" if first is None else f", the first batch of {first}"
    shape = f"{n} samples of {samples.x.shape[1]} features"
    return f"{kind} of {shape}{batch}, checksum of the first and last {_checksum(ends)}"


def task_of(estimator, data):
    """Return, as a text, what processes that fit one dictionary must have in common.

    Parameters
    ----------
    estimator : estimator
        The estimator of one of these processes.
    data : Data
        Its data: ``samples``, and names of features in ``inputs``.
    """
    x, names = data.samples.x, data.inputs.get("feature_names_in_")
    texts = {n: text for n, text in parameters_of(estimator).items() if n not in _OWN}
    listed = "" if names is None else ", ".join(map(str, names))
    given = f"{x.shape[1]} features of {x.dtype} {listed}"
    return f"{type(estimator).__name__}({texts}) to {given}"


def rule_of(estimator):
    """Return the rule that ends training, which may change."""
    return plain(estimator.tol), int(estimator.n_iter_no_change)


def identity_of(estimator, data):
    """Return the fingerprint of a fit, by name.

    Parameters
    ----------
    estimator : estimator
        The estimator to fit.
    data : str
        Its data, from `data_of`.
    """
    parameters = parameters_of(estimator)
    identity = {name: text for name, text in parameters.items() if name not in _FREE}
    identity |= {"learner": type(estimator).__name__, "data": data}
    if parameters["random_state"].isdigit():
        identity["random_state"] = parameters["random_state"]
    return identity


def check_same(stored, present, path):
    """Raise ValueError if a checkpoint belongs to another fit."""
    differ = [name for name in present if present[name] != stored.get(name)]
    if differ:
        pairs = "; ".join(f"{name}: {stored.get(name)}, now {present[name]}" for name in differ)
        raise ValueError(
            f"The checkpoint {path} belongs to another fit ({pairs}). Use another path, remove the "
            "file to train from the start, or pass resume=False to replace it."
        )
