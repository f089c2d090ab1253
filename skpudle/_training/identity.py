"""Fingerprint a fit, to compare it with a checkpoint and across processes.

A checkpoint recognises its fit by the fingerprint, and processes that train together check that
their fits agree.
"""

import json
import zlib
from functools import partial
from itertools import chain

import numpy as np
import torch

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.batches import Samples
from skpudle._data.foreign import dictionary_of

# characters of a text of names
_LONGEST = 60

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
    """Return a fingerprint of data: their kind, their size and a checksum.

    Parameters
    ----------
    source : source of batches
        See `skpudle._data.batches`.
    samples : Samples, or collection of Tensor
        The data, or a part that identifies them.
    """
    kind = type(source).__name__.strip("_")
    if not isinstance(samples, Samples):
        return f"{kind} of {len(samples)} images, checksum {_checksum(samples)}"
    parts = samples.x.split(2**14)
    if samples.mask is not None:  # a gap holds its column's mean, a possible value
        parts = chain(parts, (part.bool() for part in samples.mask.split(2**14)))
    if samples.offset is not None:  # exposures
        parts = chain(parts, [samples.offset])
    if samples.target is not None:
        parts = chain(parts, [samples.target])
    if samples.weight is not None:
        parts = chain(parts, [samples.weight])
    first = getattr(source, "first_batch", None)
    batch = "" if first is None else f", the first batch of {first}"
    return f"{kind} of {len(samples)} samples{batch}, checksum {_checksum(parts)}"


def _listed(names):
    """Return names of features as one text, a long one with a checksum."""
    text = ", ".join(map(str, names))
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]} ... {zlib.crc32(text.encode()):08x}"


def task_of(estimator, method, data):
    """Return, by name, the facts that must agree among processes that train one dictionary.

    Parameters
    ----------
    estimator : estimator
        The estimator of one of these processes.
    method : {"fit", "partial_fit", "choose_alpha"}
        The method that was called.
    data : Data
        Its data: ``samples``, and names of features in ``inputs``.
    """
    samples, names = data.samples, data.inputs.get("feature_names_in_")
    if names is None:
        names = getattr(estimator, "feature_names_in_", ())
    task = {"class": type(estimator).__name__, "method": method}
    task |= {n: text for n, text in parameters_of(estimator).items() if n not in _OWN}
    task |= {"n_features": str(samples.x.shape[1]), "feature_names_in_": _listed(names)}
    if method == "fit" or not hasattr(estimator, "components_"):
        return task | {"dtype": str(samples.x.dtype).removeprefix("torch.")}
    learned = "components_", "alpha_", "n_steps_"
    return task | {name: _text(getattr(estimator, name, None)) for name in learned}


def rule_of(estimator):
    """Return the rule that ends training, which may change."""
    return plain(estimator.tol), int(estimator.n_iter_no_change)


def identity_of(estimator, data, team):
    """Return the fingerprint of a fit, by name. The first process compares it for all processes.

    Parameters
    ----------
    estimator : estimator
        The estimator to fit.
    data : str
        This process's data, from `data_of`.
    team : Team
        Processes that train together.
    """
    parameters = parameters_of(estimator)
    parts = team.gather_bytes(data.encode())
    random_state = parameters["random_state"]
    identity = {name: text for name, text in parameters.items() if name not in _FREE} | {
        "learner": type(estimator).__name__,
        "processes": len(parts),
        "data": "; ".join(part.decode() for part in parts),
    }
    if random_state.isdigit():
        identity["random_state"] = random_state
    return json.loads(team.first([json.dumps(identity).encode()])[0])


def check_same(stored, present, path):
    """Raise ValueError if a checkpoint belongs to another fit."""
    n_then, n_now = stored.get("processes"), present["processes"]
    if n_then != n_now:
        raise ValueError(
            f"The checkpoint {path} is of a fit with {n_then} processes, and there are {n_now} "
            "now. It holds the place of each process in its own share of the data, so only as many "
            f"can go on: start {n_then}, or pass resume=False to train from the start."
        )
    differ = [name for name in present if present[name] != stored.get(name)]
    if differ:
        pairs = "; ".join(f"{name}: {stored.get(name)}, now {present[name]}" for name in differ)
        raise ValueError(
            f"The checkpoint {path} belongs to another fit ({pairs}). Use another path, remove the "
            "file to train from the start, or pass resume=False to replace it."
        )
