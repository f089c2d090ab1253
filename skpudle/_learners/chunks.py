"""Functions of rows, some rows at a time, so that what they need fits into memory."""

import torch

from skpudle._data.arrays import handed_over

__all__ = ["PART", "in_chunks", "in_one_piece"]

# Rows of data that are not in memory that are encoded at a time, and of codes that are decoded.
PART = 8192


def _is_out_of_memory(error):
    kinds = MemoryError | torch.cuda.OutOfMemoryError
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def in_chunks(function, rows, device, size):
    """Yield ``function(x, mask, offset)`` of some `Rows`, of half as many out of memory."""
    given = rows.x, rows.mask, rows.offset
    start, size = 0, min(size, len(rows.x))
    while start < len(rows.x):
        part = slice(start, start + size)
        try:
            result = function(*(t if t is None else t[part].to(device) for t in given))
        except (MemoryError, RuntimeError) as error:
            if size == 1 or not _is_out_of_memory(error):
                raise
            size //= 2
            continue
        yield result
        start += size


def in_one_piece(chunks, n_rows, X):
    """Return results for chunks of rows as one array or tensor, where X is."""
    result, start = None, 0
    for chunk in chunks:
        if result is None:
            # once for all, where a list of parts would need the memory twice; and for an array
            # on the host, since all may not fit where a part of them does
            device = X.device if isinstance(X, torch.Tensor) else "cpu"
            result = chunk.new_empty(n_rows, chunk.shape[1], device=device)
        result[start : start + len(chunk)] = chunk
        start += len(chunk)
    return handed_over(result, X)
