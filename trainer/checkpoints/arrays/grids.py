"""Grids over arrays: which process wrote which cell of an array that is split over processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.checkpoints.arrays.leaves import Box, Leaf, get_box_shape


def find_chunk(shape: tuple[int, ...], boxes: Sequence[Box]) -> tuple[int, ...] | None:
    """Return the shape of the boxes if they are all cells of a grid over an array, else None.

    >>> find_chunk((4, 6), [((0, 2), (0, 6)), ((2, 4), (0, 6))])
    (2, 6)
    >>> find_chunk((3,), [((0, 2),), ((2, 3),)])
    """
    if not math.prod(shape):
        return tuple(max(size, 1) for size in shape)
    if not boxes:
        return None
    chunk = get_box_shape(shape, boxes[0])
    regular = all(
        start % size == 0 and stop - start == size
        for box in boxes
        for (start, stop), size in zip(box, chunk, strict=True)
    )
    return chunk if regular and len(boxes) * math.prod(chunk) == math.prod(shape) else None


def describe_holders(written: Sequence[Sequence[Leaf]]) -> list[dict[str, Any]]:
    """Describe, as plain JSON data, which process wrote which cell of arrays that are split.

    Arrays of equal grids and processes share a row. Those that the main process wrote alone, and
    those whose pieces make up no grid, have none.

    Args:
        written: the leaves with the pieces that process 0, 1, ... wrote.

    Returns:
        Rows: `grid` is the number of cells along each dimension, `processes` lists who wrote each
        cell, in row-major order, `paths` the arrays.

    >>> from trainer.checkpoints.arrays.leaves import Piece
    >>> halves = [[Leaf("w", "float32", (8, 3), 4, (Piece(0, ((n, n + 4), (0, 3))),))]
    ...           for n in (0, 4)]
    >>> describe_holders(halves)
    [{'grid': [2, 1], 'processes': [0, 1], 'paths': ['w']}]
    """
    holders: dict[str, dict[Box, int]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for process, leaves in enumerate(written):
        for leaf in leaves:
            if leaf.shape is not None and leaf.count_bytes():
                shapes[leaf.path] = leaf.shape
                boxes = holders.setdefault(leaf.path, {})
                boxes.update((leaf.get_box(piece), process) for piece in leaf.pieces)
    rows: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for path, boxes in holders.items():
        chunk = find_chunk(shapes[path], [*boxes])
        if chunk is not None and any(boxes.values()):
            grid = tuple(size // n for size, n in zip(shapes[path], chunk, strict=True))
            rows.setdefault((grid, tuple(boxes[x] for x in sorted(boxes))), []).append(path)
    return [
        {"grid": [*grid], "processes": [*processes], "paths": paths}
        for (grid, processes), paths in rows.items()
    ]


def find_holders(
    holders: Sequence[Mapping[str, Any]],
    leaves: Sequence[Leaf],
    needed: Mapping[str, Sequence[Box]],
) -> set[int]:
    """Find the processes that wrote what overlaps boxes of arrays, as far as rows tell.

    Args:
        holders: from `describe_holders`.
        leaves: with the shapes of the arrays.
        needed: boxes by path.

    >>> rows = [{"grid": [4], "processes": [0, 1, 2, 3], "paths": ["w"]}]
    >>> find_holders(rows, [Leaf("w", "float32", (8,), 4)], {"w": [((3, 5),)]})
    {1, 2}
    """
    shapes = {leaf.path: leaf.shape or () for leaf in leaves}
    found: set[int] = set()
    for row in holders:
        grid = row["grid"]
        processes = np.array(row["processes"]).reshape(grid)
        for path in row["paths"]:
            shape = shapes.get(path, ())
            if len(shape) != len(grid) or not math.prod(shape):
                continue
            for box in dict.fromkeys(needed.get(path, ())):
                index = tuple(
                    slice(start * n // size, -(-stop * n // size))
                    for (start, stop), n, size in zip(box, grid, shape, strict=True)
                )
                found.update(processes[index].ravel().tolist())
    return found
