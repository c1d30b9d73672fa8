"""Mixing values by the products of queries and keys: fused, or in blocks."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from models.language.visibility import Visibility

BLOCK = 64
"""Queries of a block, at least: shorter blocks take longer than the scores that they spare."""

MOST_BLOCKS = 4
"""More gain nothing up to 1,024 positions, and each takes its time to compile."""


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility | None = None,
    *,
    window: jax.Array | int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Compute attention, with the fused kernel where the device has one.

    Args:
        query: `[batch, time, heads, size]`.
        key, value: `[batch, positions, kv_heads, size]`; each of their heads serves as many heads
            of the query, which follow each other.
        visibility: which keys each query sees; None for all.
        window: number of keys that each query sees, its own included; None for no such limit.
        scale: multiplies scores; None for `size**-0.5`.
        softcap: scores `s` become `softcap * tanh(s / softcap)`; None for `s`.

    Returns:
        `[batch, time, heads, size]`, in the dtype of the query.
    """
    device, dtype = jax.devices()[0], query.dtype
    if dtype == jnp.float16 and device.platform == "cpu":
        # XLA on CPU does not support a float16 product with float32 sums.
        query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    masked = isinstance(window, jax.Array)  # the kernel itself knows the order, and fixed windows
    if visibility is not None and visibility.query_segments is not None:
        masked = True
    # With a mask it takes only even lengths. A cache is read for a few queries, without it.
    fits = not masked or query.shape[1] % 2 == key.shape[1] % 2 == 0
    fits = fits and (visibility is None or visibility.start is None) and softcap is None
    if not (fits and has_kernel(device, dtype, query.shape[-1])):
        mixed = attend_in_blocks(
            query, key, value, visibility, window=window, scale=scale, softcap=softcap
        )
        return mixed.astype(dtype)
    mask = None
    if visibility is not None and masked:
        mask = visibility.compute_mask((0, query.shape[1]), key.shape[1], window)[:, None]
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=mask,
        scale=scale,
        is_causal=visibility is not None and mask is None,
        local_window_size=(window - 1, 0) if mask is None and isinstance(window, int) else None,
        implementation="cudnn",
    )


def attend_in_blocks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility | None,
    *,
    window: jax.Array | int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Compute attention by batched products of each head, on a CPU in blocks of queries.

    A block leaves out the keys after its last query, up to three eighths of all scores. The sums
    that normalise the weights divide the result, which is smaller than the weights. Scores and sums
    are float32 at least.

    On a CPU of two cores it takes the forward and backward pass 0.70 times as long as
    `jax.nn.dot_product_attention` at 64 positions, 0.59 at 128, 0.25 at 256 and 1,024.

    Args:
        query, key, value, visibility, window, scale, softcap: as in `attend`.

    Returns:
        `[batch, time, heads, size]`, float32 at least.

    >>> values = jnp.array([0.0, 1.0, 5.0]).reshape(1, 3, 1, 1)
    >>> same = jnp.zeros((1, 3, 1, 1))
    >>> attend_in_blocks(same, same, values, Visibility()).ravel().tolist()
    [0.0, 0.5, 2.0]
    """
    batch, time, heads, size = query.shape
    scale = size**-0.5 if scale is None else scale
    query, key, value = (x.swapaxes(1, 2) for x in (query * scale, key, value))
    groups = heads // key.shape[1]
    cut = visibility is not None and visibility.start is None
    cut = cut and jax.devices()[0].platform == "cpu"
    blocks = min(max(time // BLOCK, 1), MOST_BLOCKS) if cut else 1
    bounds = [time * number // blocks for number in range(blocks + 1)]
    mixed = []
    for start, stop in itertools.pairwise(bounds):
        seen = min(stop, key.shape[2]) if cut else key.shape[2]
        # The heads of a group have the same keys, so they are rows of one product.
        rows = query[:, :, start:stop].reshape(batch, heads // groups, -1, size)
        scores = _multiply(rows, key[:, :, :seen], 3)
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        if visibility is not None:
            mask = visibility.compute_mask((start, stop), seen, window)[:, None]
            scores = scores.reshape(batch, heads, stop - start, seen)
            scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
            scores = scores.reshape(batch, heads // groups, -1, seen)
        weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1, keepdims=True)
        some = _multiply(weights.astype(value.dtype), value[:, :, :seen], 2) / total
        mixed.append(some.reshape(batch, heads, stop - start, size))
    return jnp.concatenate(mixed, axis=2).swapaxes(1, 2)


def _multiply(left: jax.Array, right: jax.Array, axis: int) -> jax.Array:
    """Sum over the last axis of `[batch, heads, ...]` and an axis of another; float32 at least."""
    sums = jnp.promote_types(left.dtype, jnp.float32)
    axes = (((3,), (axis,)), ((0, 1), (0, 1)))
    return lax.dot_general(left, right, axes, preferred_element_type=sums)


def has_kernel(device: Any, dtype: Any, size: int) -> bool:
    """Return whether cuDNN has an attention kernel for this device, dtype and head size.

    It has one for 16-bit floats on NVIDIA GPUs of compute capability 8.0 or more. `jax.nn` does not
    choose it by itself (0.10 to 0.12).

    >>> has_kernel(jax.devices("cpu")[0], jnp.bfloat16, 64)
    False
    """
    capability = str(getattr(device, "compute_capability", ""))
    try:
        nvidia = float(capability) >= 8.0
    except ValueError:  # none, or the name of another vendor's chip
        return False
    return nvidia and dtype in (jnp.bfloat16, jnp.float16) and size % 8 == 0 and size <= 128
