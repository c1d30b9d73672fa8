"""Attention: rotary positions, heads, and the cache for decoding."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from models.initializers import lecun_normal

BASE = 10_000.0
"""Ratio of the longest wavelength of the rotary positions to the shortest."""

BLOCK = 64
"""Queries of a block, at least: shorter blocks take longer than the scores that they spare."""

MOST_BLOCKS = 4
"""More gain nothing up to 1,024 positions, and each takes its time to compile."""

Pair = tuple[jax.Array, jax.Array]


def compute_rotary(positions: jax.Array, size: int) -> Pair:
    """Compute the cosines and sines, float32 `[time, size / 2]`, that rotate heads of a size.

    >>> cosines, sines = compute_rotary(jnp.arange(3), 4)
    >>> cosines.shape, float(sines[0, 0]), round(float(sines[1, 0]), 4)
    ((3, 2), 0.0, 0.8415)
    """
    frequencies = BASE ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angles = positions[:, None].astype(jnp.float32) * frequencies[None]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(heads: jax.Array, rotary: Pair) -> jax.Array:
    """Rotate each pair of features by an angle proportional to the position.

    The product of a query and a key then depends only on the distance of their positions. Feature i
    of a head is paired with feature i + size / 2; the computation is in float32, the result in the
    dtype of the heads `[batch, time, heads, size]`.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", equation 34
    (2021).

    >>> one = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> apply_rotary(one, (jnp.zeros((1, 1)), jnp.ones((1, 1)))).ravel().tolist()
    [0.0, 1.0]
    """
    cosines, sines = (x[None, :, None] for x in rotary)
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate(rotated, axis=-1).astype(heads.dtype)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool = False,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Compute attention, with the fused kernel where the device has one; on a CPU in blocks.

    Args:
        query: `[batch, time, heads, size]`.
        key, value: `[batch, positions, heads, size]`.
        causal: whether queries see no later keys.
        mask: bool `[time, positions]`, true where a query sees a key; None: everywhere.

    Returns:
        `[batch, time, heads, size]`.
    """
    device, dtype = jax.devices()[0], query.dtype
    if dtype == jnp.float16 and device.platform == "cpu":
        # JAX requests a float16 product with float32 sums, which XLA on CPU does not support.
        query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    if device.platform == "cpu" and mask is None and query.dtype in (jnp.float32, jnp.float64):
        return attend_in_blocks(query, key, value, causal=causal).astype(dtype)
    fused = mask is None and has_kernel(device, dtype, query.shape[-1])
    mixed = jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=None if mask is None else mask[None, None],
        is_causal=causal,
        implementation="cudnn" if fused else "xla",
    )
    return mixed.astype(dtype)


def attend_in_blocks(
    query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool
) -> jax.Array:
    """Compute attention by batched products of each head, causal attention in blocks of queries.

    A causal block leaves out the keys after its last query, up to three eighths of all scores. The
    sums that normalise the weights divide the result, which is smaller than the weights.

    On a CPU of two cores it takes the forward and backward pass 0.70 times as long as
    `jax.nn.dot_product_attention` at 64 positions, 0.59 at 128, 0.25 at 256 and 1,024.

    Args:
        query: float32 or float64 `[batch, time, heads, size]`.
        key, value: `[batch, positions, heads, size]`.
        causal: whether queries see no later keys.

    Returns:
        `[batch, time, heads, size]`.

    >>> values = jnp.array([0.0, 1.0, 5.0]).reshape(1, 3, 1, 1)
    >>> same = jnp.zeros((1, 3, 1, 1))
    >>> attend_in_blocks(same, same, values, causal=True).ravel().tolist()
    [0.0, 0.5, 2.0]
    """
    time, size = query.shape[1], query.shape[3]
    query, key, value = (x.swapaxes(1, 2) for x in (query * size**-0.5, key, value))
    blocks = min(max(time // BLOCK, 1), MOST_BLOCKS) if causal else 1
    bounds = [time * number // blocks for number in range(blocks + 1)]
    mixed = []
    for start, stop in itertools.pairwise(bounds):
        some, seen = query[:, :, start:stop], stop if causal else key.shape[2]
        scores = _multiply(some, key[:, :, :seen], 3)
        if causal:
            earlier = jnp.arange(start, stop)[:, None] >= jnp.arange(scores.shape[3])[None]
            scores = jnp.where(earlier[None, None], scores, jnp.finfo(scores.dtype).min)
        weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1, keepdims=True)
        mixed.append(_multiply(weights, value[:, :, :seen], 2) / total)
    return jnp.concatenate(mixed, axis=2).swapaxes(1, 2)


def _multiply(left: jax.Array, right: jax.Array, axis: int) -> jax.Array:
    """Sum over the last axis of `[batch, heads, ...]` and an axis of another."""
    return lax.dot_general(left, right, (((3,), (axis,)), ((0, 1), (0, 1))))


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


class SelfAttention(nnx.Module):
    """Attention of a sequence to itself, or to earlier positions only (`causal`).

    The columns of the kernel `qkv` are those of query, key and value of the first head, then of the
    next: devices that split them hold whole heads, and exchange nothing to compute attention.
    """

    def __init__(
        self, width: int, heads: int, *, causal: bool, scale: float, rngs: nnx.Rngs
    ) -> None:
        self.heads, self.causal = heads, causal
        self.qkv = dense(width, 3 * width, rngs=rngs)
        self.out = dense(width, width, scale=scale, rngs=rngs)

    def __call__(
        self, x: jax.Array, rotary: Pair | None, cache: Pair | None, start: jax.Array | int
    ) -> tuple[jax.Array, Pair | None]:
        """Compute attention, `[batch, time, width]`, and return the cache with these tokens too.

        Args:
            x: `[batch, time, width]`.
            rotary: rotary positions of these tokens, or None for none.
            cache: keys and values `[batch, length, heads, size]` of earlier tokens, or None.
            start: () integer, the number of tokens in the cache.
        """
        batch, time, width = x.shape
        qkv = self.qkv(x.reshape(batch * time, width))
        qkv = qkv.reshape(batch, time, self.heads, 3 * width // self.heads)
        query, key, value = jnp.split(qkv, 3, axis=-1)
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        if cache is None:
            mixed = attend(query, key, value, causal=self.causal)
        else:
            key, value = (
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=1)
                for old, new in zip(cache, (key, value), strict=True)
            )
            cache = key, value
            seen = jnp.arange(key.shape[1])[None] <= start + jnp.arange(time)[:, None]
            mixed = attend(query, key, value, mask=seen)
        return self.out(mixed.reshape(batch * time, width)).reshape(x.shape), cache


class CrossAttention(nnx.Module):
    """Attention of a sequence to another, whose keys and values are computed once.

    The columns of the kernel `keys_values` are those of key and value of the first head, then of
    the next, as in `SelfAttention`.
    """

    def __init__(self, width: int, heads: int, *, scale: float, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.query = dense(width, width, rngs=rngs)
        self.keys_values = dense(width, 2 * width, rngs=rngs)
        self.out = dense(width, width, scale=scale, rngs=rngs)

    def project(self, other: jax.Array) -> Pair:
        """Compute keys and values `[batch, length, heads, size]` of `[batch, length, width]`."""
        batch, length, width = other.shape
        both = self.keys_values(other.reshape(batch * length, width))
        both = both.reshape(batch, length, self.heads, 2 * width // self.heads)
        key, value = jnp.split(both, 2, axis=-1)
        return key, value

    def __call__(self, x: jax.Array, projected: Pair) -> jax.Array:
        """Attend from `x` `[batch, time, width]` to keys and values of `project`."""
        batch, time, width = x.shape
        query = self.query(x.reshape(batch * time, width))
        query = query.reshape(batch, time, self.heads, width // self.heads)
        mixed = attend(query, *projected)
        return self.out(mixed.reshape(batch * time, width)).reshape(x.shape)


def dense(inputs: int, outputs: int, *, scale: float = 1.0, rngs: nnx.Rngs) -> nnx.Linear:
    """Build a layer without a bias, whose initial kernel has variance `scale**2 / inputs`."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return lecun_normal(key, shape, dtype) * jnp.asarray(scale, dtype)

    return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=draw, rngs=rngs)


def residual_scale(layers: int, branches: int) -> float:
    """Return the scale of residual branches that keeps the variance of their sum.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.3
    (2019).

    >>> residual_scale(8, 2)
    0.25
    """
    return 1 / math.sqrt(layers * branches)
