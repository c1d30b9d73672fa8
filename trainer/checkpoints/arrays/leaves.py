"""The leaves of a saved tree: scalars with their values, arrays with the pieces they lie in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from trainer.checks.pytrees import format_path
from trainer.host.escaping import escape_text
from trainer.state import PyTree, TrainState

ALIGNMENT = 64
"""Pieces of arrays start at multiples of it, for fast copies; zeros fill the gaps."""

Box = tuple[tuple[int, int], ...]
"""A part of an array: `(start, stop)` along each dimension."""


@dataclass(frozen=True)
class Piece:
    """A box of an array, and where its bytes begin in the buffer or file of its process."""

    offset: int
    box: Box | None = None
    """None: the whole array."""
    checksum: str = ""
    """xxh3_64 of the bytes and the gap after them, 16 hexadecimal digits."""
    file: str = ""
    """A file that checkpoints share, of `piece_files`; "": the one that its process wrote for this
    checkpoint alone."""


@dataclass(frozen=True)
class Leaf:
    """One leaf of a saved tree: an array with its pieces, or a scalar with its value.

    >>> str(Leaf("params/w", "float32", (2, 3)))
    'float32[2, 3]'
    """

    path: str
    type: str
    """dtype of an array or key, `numpy.<dtype>` of a numpy scalar, or a Python type's name."""
    shape: tuple[int, ...] | None = None
    """None for scalars."""
    itemsize: int = 0
    """Bytes of an element of an array."""
    pieces: tuple[Piece, ...] = ()
    """Of an array: those that one process wrote."""
    value: Any = None
    """A scalar as JSON that keeps every bit (see `encode_scalar`)."""

    def __str__(self) -> str:
        kind = escape_text(self.type)
        return kind if self.shape is None else f"{kind}{list(self.shape)}"

    def count_bytes(self, box: Box | None = None) -> int:
        """Count the bytes of a box, or of the whole array.

        >>> Leaf("w", "float32", (2, 3), 4).count_bytes(((0, 1), (0, 3)))
        12
        """
        return math.prod(get_box_shape(self.shape or (), box)) * self.itemsize

    def get_box(self, piece: Piece) -> Box:
        """Return the box of a piece, also of one that is the whole array."""
        return to_box((), self.shape or ()) if piece.box is None else piece.box


def get_box_shape(shape: tuple[int, ...], box: Box | None) -> tuple[int, ...]:
    """Return the shape of a box of an array; None is the whole array."""
    return shape if box is None else tuple(stop - start for start, stop in box)


def to_box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    """Return the box that an index of slices selects.

    >>> to_box((slice(2, 4),), (8, 3))
    ((2, 4), (0, 3))
    """
    index = (*index, *[slice(None)] * (len(shape) - len(index)))
    return tuple(side.indices(size)[:2] for side, size in zip(index, shape, strict=True))


def intersect_boxes(one: Box, other: Box) -> Box | None:
    """Return the box that two boxes share; None if they share no element.

    >>> intersect_boxes(((0, 4),), ((2, 8),)), intersect_boxes(((0, 4),), ((4, 8),))
    (((2, 4),), None)
    """
    sides = [
        (max(a), min(b))
        for a, b in (zip(*pair, strict=True) for pair in zip(one, other, strict=True))
    ]
    return None if any(start >= stop for start, stop in sides) else tuple(sides)


def align(count: int) -> int:
    """Round up to a multiple of `ALIGNMENT`."""
    return -(-count // ALIGNMENT) * ALIGNMENT


Section = tuple[list[Leaf], list[Any], Any]
"""A part of a state, restored or left out as a whole: its leaves, their values, the structure."""


def describe_leaf(path: str, value: Any) -> Leaf:
    """Describe a leaf without reading an array's contents.

    >>> describe_leaf("hook_state/best", 0.5)
    Leaf(path='hook_state/best', type='float', shape=None, itemsize=0, pieces=(),
         value='0x1.0000000000000p-1')

    Raises:
        TypeError: a value of this type cannot be saved.
    """
    if isinstance(value, jax.Array) or (type(value) is np.ndarray and not value.dtype.hasobject):
        return Leaf(path, str(value.dtype), tuple(value.shape), value.dtype.itemsize)
    if isinstance(value, np.generic) and not isinstance(value, np.flexible | np.object_):
        return Leaf(path, f"numpy.{value.dtype}", value=value.tobytes().hex())
    if value is None or type(value) in (bool, int, float, str):
        name = "None" if value is None else type(value).__name__
        return Leaf(path, name, value=encode_scalar(value))
    raise TypeError(
        f"a state holds arrays, numbers, strings and None, all else cannot be saved; {path} is "
        f"{type(value).__module__}.{type(value).__qualname__}: keep it in a closure"
    )


def encode_scalar(value: bool | int | float | str | None) -> bool | str | None:
    """Return a Python scalar as JSON that keeps every bit: numbers in hexadecimal."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return hex(value)
    return value.hex() if isinstance(value, float) else value


def decode_scalar(leaf: Leaf) -> Any:
    """Return the scalar that `describe_leaf` encoded, type and bits unchanged.

    >>> decode_scalar(describe_leaf("x", float("-inf"))), decode_scalar(describe_leaf("x",
    ...     np.int8(-3)))
    (-inf, np.int8(-3))
    """
    if leaf.type.startswith("numpy."):
        dtype = np.dtype(leaf.type.removeprefix("numpy."))
        return np.frombuffer(bytes.fromhex(leaf.value), dtype)[0]
    if leaf.type == "int":
        return int(leaf.value, 16)
    return float.fromhex(leaf.value) if leaf.type == "float" else leaf.value


def flatten_section(name: str, tree: PyTree) -> Section:
    """Flatten one section of a state; None is a leaf, since no type may change to or from it.

    Raises:
        TypeError: a leaf cannot be saved.
        ValueError: two leaves share a path.
    """
    section = _flatten(name, tree)
    _check_paths(section[0])
    return section


def _flatten(name: str, tree: PyTree) -> Section:
    prefix = tuple(jax.tree_util.DictKey(part) for part in name.split("/", 1)) if name else ()
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    leaves = [describe_leaf(format_path((*prefix, *path)), value) for path, value in pairs]
    return leaves, [value for _, value in pairs], structure


def flatten_state(state: TrainState) -> dict[str, Section]:
    """Flatten a state: without host dictionaries at "", hook states at `hook_state/<name>`.

    Scores belong to an event and are not saved.

    Raises:
        TypeError, ValueError: as `flatten_section`; paths of two sections may not be equal either.
    """
    sections = {"": state.replace(scores={}, hook_state={})}
    sections |= {f"hook_state/{name}": tree for name, tree in state.hook_state.items()}
    flat = {name: _flatten(name, tree) for name, tree in sections.items()}
    _check_paths([leaf for leaves, _, _ in flat.values() for leaf in leaves])
    return flat


def _check_paths(leaves: Iterable[Leaf]) -> None:
    """Raise ValueError if two leaves share a path."""
    counts = Counter(leaf.path for leaf in leaves)
    if twice := sorted(path for path, count in counts.items() if count > 1):
        raise ValueError(
            f"two leaves share a path, so that neither could be found again: {', '.join(twice)}"
        )


def compare_leaves(saved: Iterable[Leaf], wanted: Iterable[Leaf]) -> list[str]:
    """List each path whose leaf is missing on one side, or has another type or shape.

    >>> compare_leaves([Leaf("w", "float32", (2,))], [Leaf("w", "float32", (3,)), Leaf("n", "int")])
    ['w: saved float32[2], wanted float32[3]', 'n: saved nothing, wanted int']
    """
    before = {leaf.path: str(leaf) for leaf in saved}
    after = {leaf.path: str(leaf) for leaf in wanted}
    return [
        f"{escape_text(path)}: saved {before.get(path, 'nothing')}, wanted "
        f"{after.get(path, 'nothing')}"
        for path in before | after
        if before.get(path) != after.get(path)
    ]
