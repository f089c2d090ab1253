"""The format of a checkpoint: a tree of numbers, text and tensors as a file.

A file is an npz archive without pickled objects: arrays, and a JSON header with their places. The
last 40 bytes are a mark and the SHA-256 of all bytes before, so that a truncated or changed file is
refused. A new file is written next to the old one, forced to disk, and then renamed: a complete
file exists at every moment.
"""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.files import named_errors, replace_file

__all__ = [
    "MARK",
    "named_checkpoint",
    "pack",
    "read_arrays",
    "read_checkpoint",
    "unpack",
    "write_checkpoint",
]

MARK = b"skpudle1"

_ARRAY = "<array>"  # the key of a reference to an array inside the header

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


def _take_out(tree, arrays, path="state"):
    """Return the tree with references in place of its tensors, which go to ``arrays``."""
    if isinstance(tree, np.generic):
        tree = tree.item()
    if isinstance(tree, torch.Tensor) and tree.dtype != torch.bfloat16:  # NumPy has no bfloat16
        path = f"{path}#{len(arrays)}" if path in arrays else path
        arrays[path] = to_numpy(tree)
        return {_ARRAY: path}
    if isinstance(tree, dict) and all(isinstance(key, str) and key != _ARRAY for key in tree):
        return {key: _take_out(value, arrays, f"{path}.{key}") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_take_out(value, arrays, f"{path}.{i}") for i, value in enumerate(tree)]
    if tree is None or isinstance(tree, str | int | float):
        return tree
    raise ValueError(
        f"{path} is a {type(tree).__name__}, but a checkpoint holds tensors, numbers, text, None, "
        "and lists and dictionaries by names of them"
    )


def _put_back(tree, arrays, device):
    if isinstance(tree, dict):
        if tree.keys() == {_ARRAY}:
            return to_tensor(arrays.pop(tree[_ARRAY]), device)
        return {key: _put_back(value, arrays, device) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_put_back(value, arrays, device) for value in tree]
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


def unpack(content, file, device="cpu"):  # bytes -> state
    """Return the state in the content of a file; errors name the file."""
    with named_checkpoint(file):
        archive, mark, digest = content[:-40], content[-40:-32], content[-32:]
        if mark != MARK or hashlib.sha256(archive).digest() != digest:
            raise ValueError(
                "its checksum is wrong, so it was cut off or changed, or is another kind of file"
            )
        arrays = read_arrays(archive)
        state = _put_back(json.loads(arrays.pop("header").tobytes()), arrays, device)
        if arrays:
            raise ValueError(f"nothing refers to its arrays {sorted(arrays)}")
        return state


def named_checkpoint(file):
    """Return `named_errors` for a checkpoint."""
    return named_errors(
        file, "whole checkpoint", "Restore it, or remove it to train from the start."
    )


# ---------------------------------------------------------------------------- files


def write_checkpoint(path, state):
    """Write a state to a file, atomically.

    Parameters
    ----------
    path : str or path-like
        File to write. A file of that name is replaced at the very end, and keeps its mode; a link
        is followed. Until then a file of another name, which ends in ``.part``, is next to it.
    state : dict
        Tensors, numbers, text, None, and lists and dictionaries of them.

    Raises
    ------
    OSError
        If the file cannot be written; an older one then remains.
    ValueError
        If the state holds another type.
    """
    replace_file(path, pack(state))


def read_checkpoint(path, device="cpu"):
    """Return the state in a file.

    Parameters
    ----------
    path : str or path-like
        A file of `write_checkpoint`.
    device : str or torch.device, default="cpu"
        Device of its tensors.

    Returns
    -------
    dict
        The state.

    Raises
    ------
    OSError
        If there is no such file, or it cannot be read.
    ValueError
        If it is no complete checkpoint; the message names it.
    """
    return unpack(Path(path).read_bytes(), path, device)
