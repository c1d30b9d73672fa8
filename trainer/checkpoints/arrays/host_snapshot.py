"""Copy a state's arrays into one buffer of bytes on the host, and check these bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import jax
import numpy as np
import xxhash

from trainer.checkpoints.arrays.copied_arrays import CopiedArrays
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.leaves import (
    Box,
    Leaf,
    Piece,
    Section,
    align,
    get_box_shape,
    to_box,
)
from trainer.checkpoints.arrays.two_threads import map_in_threads
from trainer.checks.pytrees import is_key
from trainer.host.processes import is_main_process
from trainer.placement.gathering import is_split_over_processes


def copy_to_host(
    sections: Mapping[str, Section], buffer: np.ndarray, copied: CopiedArrays
) -> tuple[dict[str, list[Leaf]], np.ndarray]:
    """Copy what this process saves of a state's arrays into a buffer on the host, piece by piece.

    Nothing refers to the state's own arrays afterwards, so training may donate them. It is no
    collective.

    Args:
        sections: of a state, from `leaves.flatten_state`.
        buffer: uint8 [bytes], overwritten if it is large enough. Reusing one matters: a fresh one
            faults in every page, which takes several times as long as the copy.
        copied: what the last copy left in the buffer, which stays there; then what this one did.

    Returns:
        The leaves by section, with the pieces that this process has, and the buffer.
    """
    taken: dict[str, list[Leaf]] = {name: [] for name in sections}
    jobs: dict[str, list[tuple[int, Any, Any, Any]]] = {}
    gaps: list[tuple[int, int]] = []
    end = 0
    for name, (leaves, values, _) in sections.items():
        for leaf, value in zip(leaves, values, strict=True):
            if leaf.shape is not None:
                if isinstance(value, jax.Array) and value.is_deleted():
                    raise RuntimeError(f"{leaf.path} was deleted: training donated it; copy it")
                pieces = []
                for box, blocks in _list_pieces(value):
                    pieces.append(Piece(end, box))
                    shape = get_box_shape(leaf.shape, box)
                    jobs.setdefault(leaf.path, []).extend((end, shape, *x) for x in blocks)
                    stop = end + leaf.count_bytes(box)
                    end = align(stop)
                    gaps.append((stop, end))
                leaf = replace(leaf, pieces=tuple(pieces))
            taken[name].append(leaf)
    if buffer.nbytes < end:
        buffer = np.empty(end, np.uint8)
        copied.clear()
    for name, (_, values, _) in sections.items():
        for place, (leaf, value) in enumerate(zip(taken[name], values, strict=True)):
            if (known := copied.find(leaf, value)) is not None:
                taken[name][place] = replace(leaf, pieces=known)
                jobs.pop(leaf.path, None)
    copied.clear()  # if this copy fails, the buffer holds nothing for certain
    map_in_threads(lambda job: _copy(buffer, *job), [*chain(*jobs.values())], end)
    for start, stop in gaps:
        buffer[start:stop] = 0
    for name, (_, values, _) in sections.items():
        copied.add(taken[name], values)
    return taken, buffer


def count_writers(sections: Mapping[str, Section]) -> int:
    """Count the processes that write a part: all if an array is split over them, else one."""
    values = (value for _, values, _ in sections.values() for value in values)
    return jax.process_count() if any(map(is_split_over_processes, values)) else 1


def _list_pieces(array: Any) -> Iterator[tuple[Box | None, list[tuple[Any, Any]]]]:
    """Yield the pieces of an array that this process saves: box, and blocks with their index in it.

    The main process saves whole what it holds whole. An array that is split over processes is saved
    by each of them: the shards of which it holds the first replica. Blocks are separate objects
    over the same buffers: a numpy view is cached on the object that it was taken from, and while it
    lives the buffer cannot be donated.
    """
    if not is_split_over_processes(array):
        if not is_main_process():
            return
        if isinstance(array, np.ndarray):
            yield None, [((), array)]
        elif array.is_fully_replicated:
            yield None, [((), array.addressable_data(0))]
        else:
            yield None, [(s.index, s.data) for s in array.addressable_shards if s.replica_id == 0]
        return
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            index = shard.index[: array.ndim]  # of typed keys it has an axis more
            yield to_box(index, array.shape), [((), shard.data)]


def _copy(buffer: np.ndarray, offset: int, shape: tuple[int, ...], index: Any, block: Any) -> None:
    """Copy a block of a piece of this shape into the buffer."""
    data = np.asarray(jax.random.key_data(block) if is_key(block) else block)
    if is_key(block):  # a key is several numbers
        shape = (*shape, *data.shape[block.ndim :])
    _view(buffer, offset, data.dtype, shape)[index] = data


def _view(buffer: np.ndarray, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    return buffer[offset : offset + size].view(dtype).reshape(shape)


def count_bytes(leaves: Iterable[Leaf]) -> int:
    """Count the bytes of all pieces and the gaps after them."""
    return max((stop for leaf in leaves for _, stop in list_ranges(leaf)), default=0)


def list_ranges(leaf: Leaf) -> list[tuple[int, int]]:
    """List where each piece of a leaf, with the gap after it, starts and stops in the buffer."""
    return [(x.offset, align(x.offset + leaf.count_bytes(x.box))) for x in leaf.pieces]


def add_checksums(leaves: Sequence[Leaf], buffer: np.ndarray) -> list[Leaf]:
    """Return the leaves with the xxh3_64 of their pieces' bytes and the gaps after them.

    Pieces that have a checksum keep it.

    >>> leaf = Leaf("w", "uint8", (2,), 1, (Piece(0),))
    >>> add_checksums([leaf], np.zeros(64, np.uint8))[0].pieces[0].checksum
    '2ffb6918c12c256e'
    """

    def checksum(leaf: Leaf) -> Leaf:
        checked = [
            x if x.checksum else replace(x, checksum=xxhash.xxh3_64_hexdigest(buffer[a:b].data))
            for x, (a, b) in zip(leaf.pieces, list_ranges(leaf), strict=True)
        ]
        return replace(leaf, pieces=tuple(checked)) if checked else leaf

    return map_in_threads(checksum, leaves, count_bytes(leaves))


def verify_checksums(leaves: Sequence[Leaf], buffer: np.ndarray) -> None:
    """Check that arrays are, bit for bit, what was saved.

    Raises:
        DamagedCheckpoint: some are not; lists all of them.
    """
    found = add_checksums([*map(_drop_checksums, leaves)], buffer)
    if wrong := [leaf.path for leaf, now in zip(leaves, found, strict=True) if leaf != now]:
        raise DamagedCheckpoint(f"checksums differ at {', '.join(wrong)}")


def _drop_checksums(leaf: Leaf) -> Leaf:
    return replace(leaf, pieces=tuple(replace(piece, checksum="") for piece in leaf.pieces))
