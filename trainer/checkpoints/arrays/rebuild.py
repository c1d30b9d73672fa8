"""Rebuild trees from pieces of arrays, each leaf where the target's leaf lies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.leaves import (
    ALIGNMENT,
    Box,
    Leaf,
    decode_scalar,
    get_box_shape,
    intersect_boxes,
    to_box,
)
from trainer.checks.pytrees import is_key
from trainer.placement.gathering import is_split_over_processes

Block = tuple[Box, np.ndarray]
"""A box of an array, and its bytes, uint8 [bytes]."""


def rebuild_section(
    saved: Sequence[Leaf],
    blocks: Mapping[str, Sequence[Block]],
    wanted: Sequence[Leaf],
    targets: Sequence[Any],
    structure: Any,
) -> Any:
    """Rebuild a section, each leaf with the kind and devices of the target's leaf.

    Args:
        saved: the leaves as they were saved; they match `wanted`, in any order.
        blocks: by path, those that cover what this process needs. The result does not refer to
            them.
        wanted, targets, structure: the target, as a `Section`.
    """
    by_path = {leaf.path: leaf for leaf in saved}
    return structure.unflatten(
        _restore_leaf(by_path[leaf.path], blocks.get(leaf.path, ()), target)
        for leaf, target in zip(wanted, targets, strict=True)
    )


def list_needed_boxes(target: Any, shape: tuple[int, ...]) -> list[Box]:
    """List the boxes of an array that this process needs to make one like the target.

    >>> list_needed_boxes(np.ones((2, 3)), (2, 3))
    [((0, 2), (0, 3))]
    """
    if not is_split_over_processes(target):
        return [to_box((), shape)]
    indices = target.sharding.addressable_devices_indices_map(shape).values()
    return [*dict.fromkeys(to_box(index, shape) for index in indices)]


def _restore_leaf(leaf: Leaf, blocks: Sequence[Block], target: Any) -> Any:
    try:
        return _restore_value(leaf, blocks, target)
    except DamagedCheckpoint as damage:
        raise DamagedCheckpoint(f"{damage}, {leaf.path}") from damage


def _restore_value(leaf: Leaf, blocks: Sequence[Block], target: Any) -> Any:
    if leaf.shape is None:
        return decode_scalar(leaf)
    if not is_key(target):
        return _restore_array(blocks, target.dtype, leaf.shape, target)
    data = jax.eval_shape(jax.random.key_data, target)
    restored = _restore_array(blocks, data.dtype, data.shape, target)
    return jax.random.wrap_key_data(restored, impl=jax.random.key_impl(target))


def _restore_array(
    blocks: Sequence[Block], dtype: np.dtype, shape: tuple[int, ...], target: Any
) -> Any:
    if not is_split_over_processes(target):
        host = assemble(blocks, dtype, shape)
        return host.copy() if isinstance(target, np.ndarray) else put_like(host, target)

    def restore_shard(index: Any) -> np.ndarray:
        return assemble(blocks, dtype, shape, to_box(index, shape)).copy()

    return jax.make_array_from_callback(shape, target.sharding, restore_shard)


def assemble(
    blocks: Sequence[Block], dtype: np.dtype, shape: tuple[int, ...], box: Box | None = None
) -> np.ndarray:
    """Assemble a box of an array from blocks that cover it; a view of a block where one does.

    Args:
        blocks: their boxes may lack the last dimensions, those of the data of a key.
        dtype, shape: of the array.
        box: None: the whole array.

    Raises:
        DamagedCheckpoint: they do not cover it: some overlap.

    >>> rows = [(((n, n + 1), (0, 2)), np.full(2, n, np.uint8)) for n in range(3)]
    >>> assemble(rows, np.dtype(np.uint8), (3, 2), ((1, 3), (0, 1))).tolist()
    [[1], [2]]
    """
    box = to_box((), shape) if box is None else box
    out: np.ndarray = np.zeros(0, dtype)
    covered: np.ndarray = np.zeros(0, bool)
    for at, data in blocks:
        at = (*at, *box[len(at) :])
        if at == box:
            return data.view(dtype).reshape(get_box_shape(shape, box))
        if (shared := intersect_boxes(at, box)) is not None:
            block = data.view(dtype).reshape(get_box_shape(shape, at))[_index(shared, at)]
            if shared == box:
                return block
            if not covered.size:
                out, covered = (np.zeros(get_box_shape(shape, box), kind) for kind in (dtype, bool))
            out[_index(shared, box)] = block
            covered[_index(shared, box)] = True
    if covered.sum() < math.prod(get_box_shape(shape, box)):
        raise DamagedCheckpoint(f"its pieces do not cover an array of shape {list(shape)}")
    return out.reshape(get_box_shape(shape, box))


def _index(inner: Box, outer: Box) -> tuple[slice, ...]:
    """Return the index of a box in an array that is itself a box."""
    sides = zip(inner, outer, strict=True)
    return tuple(slice(start - first, stop - first) for (start, stop), (first, _) in sides)


def put_like(host: np.ndarray, target: jax.Array) -> jax.Array:
    """Put an array on the target's devices, and leave it uncommitted if the target is.

    The result does not refer to the host's array.
    """
    if not target.is_fully_addressable:
        return jax.make_array_from_callback(host.shape, target.sharding, lambda i: host[i].copy())
    if len(target.sharding.device_set) > 1:
        host = host.copy()
    elif host.ctypes.data % ALIGNMENT == 0:
        host = _copy_unaligned(host)
    return jax.device_put(host, target.sharding if target.committed else None)


def _copy_unaligned(host: np.ndarray) -> np.ndarray:
    """Copy to an unaligned address, so that JAX copies the array.

    On CPU it adopts an aligned numpy array as its own buffer, which could not be donated, and would
    keep the whole buffer in memory.
    """
    room = np.empty(host.nbytes + 2 * ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT + ALIGNMENT // 2
    shifted = room[start : start + host.nbytes].view(host.dtype).reshape(host.shape)
    shifted[...] = host
    return shifted
