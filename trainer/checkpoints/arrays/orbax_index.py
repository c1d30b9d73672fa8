"""The files beside the bytes of arrays with which plain Orbax restores them by their paths.

Each box of an array is an uncompressed chunk of a zarr array as it lies there, so that an index is
all that Orbax lacks. It is for other programs: this library never reads it.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from trainer.checkpoints.arrays.grids import find_chunk
from trainer.checkpoints.arrays.leaves import Box, Leaf
from trainer.checkpoints.arrays.ocdbt import MANIFEST, NODES, Place, build_index

METADATA = "_METADATA"
"""The file with the tree that the arrays make up."""

INDEX_FILES = (METADATA, MANIFEST, NODES)

_DICT = 2
"""How Orbax calls the key of a dictionary."""


def build_orbax_index(written: Mapping[str, Iterable[Leaf]]) -> dict[str, bytes]:
    """Build the files with which plain Orbax restores the arrays of a checkpoint.

    Keys are restored as their data, scalars of Python and numpy are left out, as are text, times,
    arrays whose pieces make up no regular grid, and paths with characters that do not print.

    Args:
        written: name of the file of bytes of each process to the leaves with its pieces; pieces in
            files that checkpoints share name these.

    Returns:
        Name to content, for the folder of these files; it depends on no value of an array.

    >>> leaf = Leaf("params/w", "float32", (2, 3), 4, ())
    >>> sorted(build_orbax_index({"process_0": [leaf]}))
    ['_METADATA', 'manifest.ocdbt', 'nodes.ocdbt']
    """
    leaves: dict[str, Leaf] = {}
    places: dict[str, dict[Box, Place]] = {}
    for file, group in written.items():
        for leaf in map(_as_numbers, group):
            if leaf.shape is not None and _is_listable(leaf.path):
                leaves[leaf.path] = leaf
                boxes = places.setdefault(leaf.path, {})
                for piece in leaf.pieces:
                    box = leaf.get_box(piece)
                    boxes[box] = Place(piece.file or file, piece.offset, leaf.count_bytes(box))
    values: dict[str, bytes | Place] = {}
    rows: dict[str, Any] = {}
    for path, keys in _split_paths(leaves).items():
        shape, boxes = leaves[path].shape or (), places[path]
        dtype, chunk = _to_zarr_dtype(leaves[path].type), find_chunk(shape, list(boxes))
        if dtype is None or chunk is None:
            continue
        name = ".".join(keys)
        values[f"{name}/.zarray"] = _encode_zarray(shape, chunk, dtype)
        if math.prod(shape):
            for box, place in boxes.items():
                at = ".".join(str(a // n) for (a, _), n in zip(box, chunk, strict=True))
                values[f"{name}/{at or 0}"] = place
        rows[str(keys)] = {
            "key_metadata": [{"key": key, "key_type": _DICT} for key in keys],
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
    tree = {
        "tree_metadata": rows,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    return {METADATA: json.dumps(tree).encode(), **build_index(values)}


def _as_numbers(leaf: Leaf) -> Leaf:
    """Return the leaf of the data of keys for one of keys; any other as it is."""
    if leaf.shape is None or not leaf.type.startswith("key<"):
        return leaf
    words = leaf.itemsize // 4
    pieces = [
        piece if piece.box is None else replace(piece, box=(*piece.box, (0, words)))
        for piece in leaf.pieces
    ]
    return Leaf(leaf.path, "uint32", (*leaf.shape, words), 4, tuple(pieces))


def _is_listable(path: str) -> bool:
    """Return whether the format holds a path: UTF-8, with its length in 16 bits."""
    return len(path) < 2**13 and path.isprintable()


def _split_paths(paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Split paths into keys; a path stays whole where Orbax would take two for one.

    >>> _split_paths(["w/a.b", "w/a/b", "w/c"])
    {'w/a.b': ('w/a.b',), 'w/a/b': ('w/a/b',), 'w/c': ('w', 'c')}
    """
    split = {path: tuple(path.split("/")) for path in paths}
    names = Counter(".".join(keys) for keys in split.values())
    inner = {keys[:n] for keys in split.values() for n in range(1, len(keys))}
    return {
        path: (path,) if names[".".join(keys)] > 1 or keys in inner else keys
        for path, keys in split.items()
    }


@functools.cache
def _to_zarr_dtype(name: str) -> str | None:
    """Return how zarr calls a dtype; None if Orbax cannot read it.

    >>> _to_zarr_dtype("float32"), _to_zarr_dtype("bfloat16"), _to_zarr_dtype("<U3")
    ('<f4', 'bfloat16', None)
    """
    if name in _EXTENSIONS:
        return name
    dtype = np.dtype(name)
    return dtype.str if dtype.kind in "biufc" and name != "longdouble" else None


_EXTENSIONS = (
    *("bfloat16", "int2", "int4", "float4_e2m1fn", "float8_e3m4", "float8_e4m3b11fnuz"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
"""The dtypes that numpy lacks and TensorStore's zarr driver reads by name."""


def _encode_zarray(shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> bytes:
    description = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": chunk,
        "dtype": dtype,
        "order": "C",
        "compressor": None,
        "fill_value": None,
        "filters": None,
        "dimension_separator": ".",
    }
    return json.dumps(description, separators=(",", ":")).encode()
