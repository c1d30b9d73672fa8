"""Contents of arrays as a line of text: shape, dtype and a hash; large arrays are sampled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash

from trainer.checks.pytrees import is_key

WHOLE = 2**26
"""Bytes up to which a whole array is hashed, in about 10 ms; larger ones are sampled."""

_SAMPLES, _SAMPLE_BYTES = 64, 2**20


def hash_array(array: Any) -> str:
    """Describe an array by shape, dtype and a hash of its contents, or of samples.

    >>> hash_array(np.zeros(3)), hash_array(jnp.zeros(3, jnp.int32))
    ('float64[3] 743df94ee4c78a2a', 'int32[3] c4998f9169c2a4f0')
    """
    if is_key(array):
        array = jax.random.key_data(array)
    described = f"{array.dtype}{list(array.shape)}"
    whole = get_local_data(array)
    if whole is None or array.dtype.hasobject:
        return described
    if whole.nbytes <= WHOLE or not whole.shape:
        return f"{described} {hash_bytes([_bytes(whole)])}"
    rows = len(whole)
    count = min(max(1, _SAMPLE_BYTES * rows // whole.nbytes), rows)
    starts = [number * (rows - count) // (_SAMPLES - 1) for number in range(_SAMPLES)]
    return f"{described} {hash_bytes(_bytes(_slice(whole, start, count)) for start in starts)}"


def _slice(array: Any, start: int, count: int) -> Any:
    if isinstance(array, np.ndarray):
        return array[start : start + count]
    return jax.lax.dynamic_slice_in_dim(array, jnp.int32(start), count)


def get_local_data(array: Any) -> Any:
    """Return the data of an array if this process has all of it, else None."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return array
    return array.addressable_data(0) if array.is_fully_replicated else None


def _bytes(array: Any) -> memoryview:
    return np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8).data


def hash_bytes(pieces: Iterable[Any]) -> str:
    """Return a hash of pieces of bytes: 16 hexadecimal digits."""
    digest = xxhash.xxh3_64()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
