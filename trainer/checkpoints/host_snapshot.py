"""Copy a state's arrays into one buffer of bytes on the host, and back."""

from __future__ import annotations

import _thread
import contextlib
import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import xxhash
from jax.experimental import multihost_utils

from trainer.checkpoints.manifest import DamagedCheckpoint, Leaf, Section, decode_scalar
from trainer.checkpoints.save_worker import has_room_for_thread
from trainer.checks.pytrees import is_key

ALIGNMENT = 64
"""Arrays start at multiples of it, for fast copies; zeros fill the gaps."""

_TWO_THREADS = 2**24
"""Bytes from which a second thread pays off: one thread copies that many in about 3 ms."""


def copy_to_host(
    sections: Mapping[str, Section], buffer: np.ndarray
) -> tuple[dict[str, list[Leaf]], np.ndarray]:
    """Copy the arrays of a state into a buffer on the host, one after another.

    Nothing refers to the state's own arrays afterwards, so training may donate them.

    Args:
        sections: of a state, from `manifest.flatten_state`.
        buffer: uint8 [bytes], overwritten if it is large enough. Reusing one matters: a fresh one
            faults in every page, which takes several times as long as the copy.

    Returns:
        The leaves by section, with the offset of each array's bytes, and the buffer.
    """
    taken: dict[str, list[Leaf]] = {name: [] for name in sections}
    arrays: list[tuple[Leaf, Any]] = []
    end = 0
    for name, (leaves, values, _) in sections.items():
        for leaf, value in zip(leaves, values, strict=True):
            if leaf.shape is not None:
                if isinstance(value, jax.Array) and value.is_deleted():
                    raise RuntimeError(f"{leaf.path} was deleted: training donated it; copy it")
                array = jax.random.key_data(value) if is_key(value) else value
                leaf = replace(leaf, offset=end)
                end = align(end + leaf.bytes)
                arrays.append((leaf, array))
            taken[name].append(leaf)
    if buffer.nbytes < end:
        buffer = np.empty(end, np.uint8)
    jobs = [
        (_view(buffer, leaf, array.dtype, array.shape), index, piece)
        for leaf, array in arrays
        for index, piece in _pieces(array)
    ]
    _map_in_threads(_copy, jobs, end)
    for leaf, _ in arrays:
        buffer[leaf.offset + leaf.bytes : align(leaf.offset + leaf.bytes)] = 0
    return taken, buffer


def _pieces(array: Any) -> Iterator[tuple[tuple[slice, ...], Any]]:
    """Yield the pieces of an array, each with its index in the array.

    The pieces of a jax array are separate objects over the same buffers: a numpy view is cached on
    the object that it was taken from, and while it lives the buffer cannot be donated. An array
    that is sharded over processes is gathered, so all processes must call this.
    """
    if isinstance(array, np.ndarray):
        yield (), array
    elif array.is_fully_replicated:
        yield (), array.addressable_data(0)
    elif array.is_fully_addressable:
        yield from ((s.index, s.data) for s in array.addressable_shards if s.replica_id == 0)
    else:
        yield (), multihost_utils.process_allgather(array, tiled=True)


def _copy(job: tuple[np.ndarray, Any, Any]) -> None:
    whole, index, piece = job
    whole[index] = np.asarray(piece)


def _view(buffer: np.ndarray, leaf: Leaf, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return buffer[leaf.offset : leaf.offset + leaf.bytes].view(dtype).reshape(shape)


def _map_in_threads(function: Any, jobs: Sequence[Any], size: int) -> list[Any]:
    """Map over jobs, on two threads where there are enough bytes; numpy and xxhash free the GIL.

    If the second thread cannot start, or dies for lack of memory (in a pool nobody would notice),
    the first one does all jobs.
    """
    results: list[Any] = [_MISSING] * len(jobs)
    left, busy = deque(range(len(jobs))), threading.Lock()

    def take() -> bool:
        try:
            number = left.popleft()
        except IndexError:
            return False
        results[number] = function(jobs[number])
        return True

    def help_out() -> None:
        with contextlib.suppress(Exception):  # the first thread does that job again, and raises it
            more = True
            while more:
                with busy:  # locked before a job is taken: when it is free, no job is in progress
                    more = take()

    if size >= _TWO_THREADS and len(jobs) > 1 and has_room_for_thread():
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(help_out, ())
    while take():
        pass
    with busy:
        pass
    return [
        function(job) if result is _MISSING else result
        for job, result in zip(jobs, results, strict=True)
    ]


_MISSING = object()


def count_bytes(leaves: Iterable[Leaf]) -> int:
    """Count the bytes of arrays and the gaps after them."""
    return max((align(leaf.offset + leaf.bytes) for leaf in leaves), default=0)


def align(count: int) -> int:
    """Round up to a multiple of `ALIGNMENT`."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def add_checksums(leaves: Sequence[Leaf], buffer: np.ndarray) -> list[Leaf]:
    """Return the leaves with the xxh3_64 of their arrays' bytes and the gaps after them.

    >>> add_checksums([Leaf("w", "uint8", (2,), bytes=2)], np.zeros(64, np.uint8))[0].checksum
    '2ffb6918c12c256e'
    """

    def checksum(leaf: Leaf) -> Leaf:
        if leaf.shape is None:
            return leaf
        content = buffer[leaf.offset : align(leaf.offset + leaf.bytes)].data
        return replace(leaf, checksum=xxhash.xxh3_64_hexdigest(content))

    return _map_in_threads(checksum, leaves, count_bytes(leaves))


def verify_checksums(leaves: Sequence[Leaf], buffer: np.ndarray) -> None:
    """Check that arrays are, bit for bit, what was saved.

    Raises:
        DamagedCheckpoint: some are not; lists all of them.
    """
    found = add_checksums(leaves, buffer)
    if wrong := [leaf.path for leaf, now in zip(leaves, found, strict=True) if leaf != now]:
        raise DamagedCheckpoint(f"checksums differ at {', '.join(wrong)}")


def view_array(leaf: Leaf, buffer: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the array of a leaf as a view of the buffer, or raise if its bytes do not fit."""
    assert leaf.shape is not None
    if leaf.bytes != math.prod(leaf.shape) * dtype.itemsize:
        raise DamagedCheckpoint(f"{leaf.path} cannot be a {leaf} of {leaf.bytes} bytes")
    return _view(buffer, leaf, dtype, leaf.shape)


def rebuild_section(
    saved: Sequence[Leaf],
    buffer: np.ndarray,
    wanted: Sequence[Leaf],
    targets: Sequence[Any],
    structure: Any,
) -> Any:
    """Rebuild a section, each leaf with the kind and device of the target's leaf.

    Args:
        saved: the leaves as they were saved; they match `wanted`, in any order.
        buffer: uint8 [bytes], as it was saved. The result does not refer to it.
        wanted, targets, structure: the target, as a `Section`.
    """
    by_path = {leaf.path: leaf for leaf in saved}
    return structure.unflatten(
        _restore_leaf(by_path[leaf.path], buffer, target)
        for leaf, target in zip(wanted, targets, strict=True)
    )


def _restore_leaf(leaf: Leaf, buffer: np.ndarray, target: Any) -> Any:
    if leaf.shape is None:
        return decode_scalar(leaf)
    if is_key(target):
        data = jax.eval_shape(jax.random.key_data, target)
        host = _view(buffer, leaf, data.dtype, data.shape)
        impl = jax.random.key_impl(target)
        return jax.random.wrap_key_data(put_like(host, target), impl=impl)
    host = _view(buffer, leaf, target.dtype, leaf.shape)
    return host.copy() if isinstance(target, np.ndarray) else put_like(host, target)


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
