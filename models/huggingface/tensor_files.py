"""Files of tensors in the safetensors format: read and written piece by piece."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
"""The format's names of the dtypes that weights have."""

LONGEST_HEADER = 100_000_000
"""Bytes of the longest header that the format allows."""

PIECE = 1 << 20
"""Bytes that are read or written at once: they alone are on the host beside the result."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file."""

    file: Path
    dtype: str
    """In the format's words, `F32`."""
    shape: tuple[int, ...]
    start: int
    """The place of its first byte."""

    def read_into(self, out: np.ndarray, rows: slice, columns: slice, *, transposed: bool) -> None:
        """Copy rows and columns, cast to the array's dtype.

        Args:
            out: `[row, column]`, `[column, row]` if `transposed`, or `[row]` for a tensor of one
                dimension, whose rows are its elements.
            rows, columns: slices of the tensor, of step 1.
            transposed: whether the array is the transpose of the tensor.

        Raises:
            OSError: the file cannot be read.
        """
        dtype = DTYPES[self.dtype]
        out = out.T if transposed else out
        first, last, _ = rows.indices(self.shape[0])
        size = math.prod(self.shape[1:])
        several = max(PIECE // max(size * dtype.itemsize, 1), 1)
        with open(self.file, "rb", buffering=0) as file:
            for row in range(first, last, several):
                end = min(row + several, last)
                piece = np.empty((end - row, *self.shape[1:]), dtype)
                file.seek(self.start + row * size * dtype.itemsize)
                _fill(file, piece)
                out[row - first : end - first] = piece[:, columns] if piece.ndim > 1 else piece


def _fill(file: Any, piece: np.ndarray) -> None:
    left = piece.view(np.uint8).reshape(-1).data
    while left:
        if not (read := file.readinto(left)):
            raise OSError(f"{file.name} ends early: it was changed while it was read")
        left = left[read:]


def is_same(one: StoredTensor, other: StoredTensor) -> bool:
    """Return whether two tensors have the same shape, dtype and bytes."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    left = math.prod(one.shape) * DTYPES[one.dtype].itemsize if one.dtype in DTYPES else 0
    with open(one.file, "rb") as first, open(other.file, "rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        while left > 0:
            if first.read(min(left, PIECE)) != second.read(min(left, PIECE)):
                return False
            left -= PIECE
    return True


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Read what tensors a file holds; nothing in the file is executed, and every size is checked.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no intact safetensors file.
    """
    try:
        return _parse(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is no intact safetensors file: {error}; download or save it again"
        ) from None


def _parse(file: Path) -> dict[str, StoredTensor]:
    with open(file, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise ValueError(f"its {size:,} bytes cannot hold a header of {length:,}")
        header = json.loads(opened.read(length), object_pairs_hook=_require_unique)
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    header.pop("__metadata__", None)
    tensors, places = {}, []
    for name, entry in header.items():
        shape, (start, end), dtype = _parse_entry(name, entry)
        needed = math.prod(shape) * DTYPES[dtype].itemsize if dtype in DTYPES else end - start
        if end - start != needed:
            raise ValueError(f"{name} {dtype}{list(shape)} has {end - start:,} bytes")
        places.append((start, end))
        tensors[name] = StoredTensor(file, dtype, shape, 8 + length + start)
    expected = 0
    for start, end in sorted(places):
        if start != expected:
            raise ValueError(f"tensors overlap or leave a gap at byte {expected:,} of the data")
        expected = end
    if expected != size - 8 - length:
        raise ValueError(f"its tensors have {expected:,} bytes, and {size - 8 - length:,} follow")
    return tensors


def _require_unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("its header names something twice")
    return found


def _parse_entry(name: str, entry: Any) -> tuple[tuple[int, ...], tuple[int, int], str]:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    shape: Any = fields.get("shape")
    places: Any = fields.get("data_offsets")
    dtype: Any = fields.get("dtype")
    is_sound = isinstance(dtype, str) and _are_sizes(shape) and _are_sizes(places)
    if not is_sound or len(places) != 2 or places[0] > places[1]:
        raise ValueError(f"the entry of {name:.100} is {entry!r:.200}")
    return tuple(shape), (places[0], places[1]), dtype


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def write_tensors(
    file: Path, kinds: Mapping[str, tuple[Any, tuple[int, ...]]], make: Callable[[str], np.ndarray]
) -> None:
    """Write tensors to a new file, one after another, durably.

    Args:
        file: to write.
        kinds: dtype and shape of each, by name.
        make: returns a tensor by its name; called once for each, in order.

    Raises:
        OSError: the file exists, or cannot be written.
        TypeError: a dtype is none that the format has for weights.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers requires this value
    end = 0
    for name, (dtype, shape) in kinds.items():
        if np.dtype(dtype) not in names:
            raise TypeError(
                f"{name} is {np.dtype(dtype)}; cast it to one of {', '.join(map(str, names))}"
            )
        start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        place = {"dtype": names[np.dtype(dtype)], "shape": shape, "data_offsets": [start, end]}
        header[name] = place
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    with open(file, "xb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name in kinds:
            tensor = make(name)
            if (tensor.dtype, tensor.shape) != (np.dtype(kinds[name][0]), tuple(kinds[name][1])):
                raise TypeError(
                    f"{name} must be {kinds[name]}; got {tensor.dtype}{list(tensor.shape)}"
                )
            several = max(PIECE // max(tensor[:1].nbytes, 1), 1)
            for row in range(0, len(tensor), several):
                piece = np.ascontiguousarray(tensor[row : row + several])
                opened.write(piece.view(np.uint8).reshape(-1).data)
        opened.flush()
        os.fsync(opened.fileno())
