"""The format of a checkpoint: a tree of numbers, text and tensors as a file.

A file is an npz archive without pickled objects: arrays, and a JSON header that says where they
belong. A record, such as the state of a search, is stored by the name of its class and the values
of its fields; `RECORDS` lists the classes. The last 40 bytes are a mark and the SHA-256 of all
before, so that a file that was cut off or changed in a single bit is refused. A new file is written
next to the old one, forced to disk, and then renamed: a complete file exists at every moment.

A state from a file was written by a fit with the same parameters and data, as a checksum and the
identity of the fit tell. Compiled loops trust shapes and indices, so these are checked, and no
more: a file that somebody made by hand gives wrong atoms, and harms no memory.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import torch

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.files import named_errors, replace_file
from skpudle._training.loop import EpochTally, TrainingState
from skpudle.encoding._learned import LearnedEncoder
from skpudle.search._epoch import Codes
from skpudle.search._stream import Memory, StreamState
from skpudle.search.choose import SizePath, SizeTrial
from skpudle.search.find import PenaltyPath, Trial
from skpudle.search.held_out import Prediction
from skpudle.search.units import Units

MARK = b"skpudle1"

# Keys inside the header: references to a tensor and to an array of NumPy, the class of a record.
_TENSOR, _ARRAY, _RECORD = "<tensor>", "<array>", "<record>"

# Classes of records that a file may hold.
RECORDS = {
    kind.__name__: kind
    for kind in (
        Codes, EpochTally, LearnedEncoder, Memory, PenaltyPath, Prediction, SizePath,
        SizeTrial, StreamState, TrainingState, Trial, Units,
    )
}  # fmt: skip

# ---------------------------------------------------------------------------- arrays


def read_arrays(content):
    """Return the arrays of an npz archive by name, in no more memory than it has bytes.

    Parameters
    ----------
    content : bytes-like
        The archive.

    Returns
    -------
    dict of str to ndarray
        Its arrays.

    Raises
    ------
    ValueError
        If members are compressed or overlap, which could make them swell. Damaged archives raise
        errors of many kinds; see `named_errors`.
    """
    content = io.BytesIO(content)
    with zipfile.ZipFile(content) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its arrays are compressed; write them by np.savez")
    if sum(member.file_size for member in members) > content.getbuffer().nbytes:
        raise ValueError("its arrays are larger than the file")
    with np.load(content, allow_pickle=False) as stored:
        return dict(stored)


# ---------------------------------------------------------------------------- states


def values_of(record):  # -> dict, None for another object
    """Return the values of the fields of a record, by name."""
    if RECORDS.get(type(record).__name__) is not type(record):
        return None
    names = [one.name for one in fields(record)] if is_dataclass(record) else record._fields
    return {name: getattr(record, name) for name in names}


def _take_out(tree, arrays, path="state"):
    """Return the tree with references in place of its tensors, which go to ``arrays``."""
    if isinstance(tree, np.generic):
        tree = tree.item()
    values, is_tensor = values_of(tree), isinstance(tree, torch.Tensor)
    if values is not None:
        return {_RECORD: type(tree).__name__, "values": _take_out(values, arrays, path)}
    # NumPy has no bfloat16
    if isinstance(tree, np.ndarray) or (is_tensor and tree.dtype != torch.bfloat16):
        path = f"{path}#{len(arrays)}" if path in arrays else path
        arrays[path] = to_numpy(tree) if is_tensor else tree
        return {_TENSOR if is_tensor else _ARRAY: path}
    names = isinstance(tree, dict) and all(isinstance(key, str) for key in tree)
    if names and not any(key.startswith("<") for key in tree):
        return {key: _take_out(value, arrays, f"{path}.{key}") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_take_out(value, arrays, f"{path}.{i}") for i, value in enumerate(tree)]
    if tree is None or isinstance(tree, str | int | float):
        return tree
    raise ValueError(
        f"{path} is a {type(tree).__name__}, but a checkpoint holds tensors, numbers, text, None, "
        "records, and lists and dictionaries by names of them"
    )


def _put_back(tree, arrays):
    if isinstance(tree, dict):
        if tree.keys() == {_TENSOR}:
            return to_tensor(arrays.pop(tree[_TENSOR]))
        if tree.keys() == {_ARRAY}:
            return arrays.pop(tree[_ARRAY])
        values = {key: _put_back(value, arrays) for key, value in tree.items()}
        return RECORDS[values[_RECORD]](**values["values"]) if _RECORD in values else values
    if isinstance(tree, list):
        return tuple(_put_back(value, arrays) for value in tree)
    return tree


def pack(state):  # -> bytes-like
    """Return a state as the content of a file.

    Raises
    ------
    ValueError
        If it holds another type; the message says which and where.
    """
    arrays = {}
    header = json.dumps(_take_out(state, arrays)).encode()
    archive = io.BytesIO()
    np.savez(archive, header=np.frombuffer(header, np.uint8), **arrays)
    archive.write(MARK + hashlib.sha256(archive.getbuffer()).digest())
    return archive.getbuffer()


def unpack(content, file):  # bytes -> state
    """Return the state in the content of a file; errors name the file, and lists become tuples."""
    with named_checkpoint(file):
        archive, mark, digest = content[:-40], content[-40:-32], content[-32:]
        if mark != MARK or hashlib.sha256(archive).digest() != digest:
            raise ValueError(
                "its checksum is wrong, so it was cut off or changed, or is another kind of file"
            )
        arrays = read_arrays(archive)
        state = _put_back(json.loads(arrays.pop("header").tobytes()), arrays)
        if arrays:
            raise ValueError(f"nothing refers to its arrays {sorted(arrays)}")
        return state


def named_checkpoint(file):
    """Return a context that names the file in errors of reading a checkpoint."""
    return named_errors(
        file, "whole checkpoint", "Restore it, or remove it to train from the start."
    )


def _kinds(tree):  # -> shapes and dtypes of all arrays and tensors in nested records
    if hasattr(tree, "shape"):
        return [(tuple(tree.shape), tree.dtype)]
    parts = tree if isinstance(tree, tuple) else getattr(tree, "__dict__", {}).values()
    return [kind for part in parts for kind in _kinds(part)]


def check_kind(state, expected):
    """Raise ValueError unless two states have arrays of the same shapes and dtypes."""
    kinds = _kinds(state), _kinds(expected)
    if type(state) is not type(expected) or kinds[0] != kinds[1]:
        raise ValueError(f"its state has arrays {kinds[0]}, expected {kinds[1]}")


# ---------------------------------------------------------------------------- files


def write_checkpoint(path, state):
    """Write a state to a file, atomically.

    Parameters
    ----------
    path : str or path-like
        File to write. A file of that name is replaced at the very end, and keeps its mode; a link
        is followed. Until then a file of another name, which ends in ``.part``, is next to it.
    state : dict
        Tensors, arrays, numbers, text, None, records, and lists and dictionaries of them.

    Raises
    ------
    OSError
        If the file cannot be written; an older one then remains.
    ValueError
        If the state holds another type.
    """
    replace_file(path, pack(state))


def read_checkpoint(path):
    """Return the state in a file.

    Parameters
    ----------
    path : str or path-like
        A file of `write_checkpoint`.

    Returns
    -------
    dict
        The state, its tensors on the CPU.

    Raises
    ------
    OSError
        If there is no such file, or it cannot be read.
    ValueError
        If it is no complete checkpoint; the message names it.
    """
    return unpack(Path(path).read_bytes(), path)
