"""Attention: rotary positions, heads, and what decoding keeps of the tokens before."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.initializers import lecun_normal

BASE = 10_000.0
"""Ratio of the longest wavelength of the rotary positions to the shortest."""

Pair = tuple[jax.Array, jax.Array]


def compute_rotary(positions: jax.Array, size: int) -> Pair:
    """Return the cosines and sines that turn heads at these positions.

    Args:
        positions: integer `[time]`.
        size: of a head; even.

    Returns:
        Two float32 arrays `[time, size / 2]`.

    >>> cosines, sines = compute_rotary(jnp.arange(3), 4)
    >>> cosines.shape, float(sines[0, 0]), round(float(sines[1, 0]), 4)
    ((3, 2), 0.0, 0.8415)
    """
    frequencies = BASE ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angles = positions[:, None].astype(jnp.float32) * frequencies[None]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(heads: jax.Array, turn: Pair) -> jax.Array:
    """Turn each pair of features by an angle that grows with the position.

    The product of a query and a key then depends on their positions by the distance alone. The
    halves of a head are paired, feature i with i + size / 2; it is computed in float32.

    Args:
        heads: `[batch, time, heads, size]`, queries or keys.
        turn: of `compute_rotary`.

    Returns:
        The heads turned, in the shape and dtype that they had.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", equation 34
    (2021).

    >>> one = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> apply_rotary(one, (jnp.zeros((1, 1)), jnp.ones((1, 1)))).ravel().tolist()
    [0.0, 1.0]
    """
    cosines, sines = (x[None, :, None] for x in turn)
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate(turned, axis=-1).astype(heads.dtype)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool = False,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Attend, by the fused kernel where the device has one for these heads.

    Args:
        query: `[batch, time, heads, size]`.
        key, value: `[batch, places, heads, size]`.
        causal: no query sees a key after it.
        mask: bool `[time, places]`, true where a query sees a key; all where None.

    Returns:
        `[batch, time, heads, size]`.
    """
    device, dtype = jax.devices()[0], query.dtype
    if dtype == jnp.float16 and device.platform == "cpu":
        # JAX asks for a product of float16 that sums in float32, which XLA on CPU does not have.
        query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
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


def has_kernel(device: Any, dtype: Any, size: int) -> bool:
    """Return whether cuDNN attends to heads of this dtype and size on a device.

    That is so of halves on NVIDIA's GPUs of compute capability 8.0 or more. `jax.nn` chooses none
    by itself (0.10 to 0.12).

    >>> has_kernel(jax.devices("cpu")[0], jnp.bfloat16, 64)
    False
    """
    capability = str(getattr(device, "compute_capability", ""))
    try:
        nvidia = float(capability) >= 8.0
    except ValueError:  # none, or the name of another maker's chip
        return False
    return nvidia and dtype in (jnp.bfloat16, jnp.float16) and size % 8 == 0 and size <= 128


class SelfAttention(nnx.Module):
    """Attention of a sequence to itself, or to what came before (`causal`)."""

    def __init__(
        self, width: int, heads: int, *, causal: bool, scale: float, rngs: nnx.Rngs
    ) -> None:
        self.heads = heads
        self.causal = causal
        self.qkv = dense(width, 3 * width, rngs=rngs)
        self.out = dense(width, width, scale=scale, rngs=rngs)

    def __call__(
        self, x: jax.Array, turn: Pair | None, cache: Pair | None, start: jax.Array | int
    ) -> tuple[jax.Array, Pair | None]:
        """Attend.

        Args:
            x: `[batch, time, width]`.
            turn: rotary positions of these tokens, or None for none.
            cache: keys and values `[batch, length, heads, size]` of the tokens before, or None.
            start: () integer, how many tokens the cache holds.

        Returns:
            `[batch, time, width]`, and the cache with these tokens in it.
        """
        batch, time, width = x.shape
        shape = (batch, time, self.heads, width // self.heads)
        qkv = self.qkv(x.reshape(batch * time, width))
        query, key, value = (part.reshape(shape) for part in jnp.split(qkv, 3, axis=-1))
        if turn is not None:
            query, key = apply_rotary(query, turn), apply_rotary(key, turn)
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
    """Attention of a sequence to another, whose keys and values are made once."""

    def __init__(self, width: int, heads: int, *, scale: float, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.query = dense(width, width, rngs=rngs)
        self.keys_values = dense(width, 2 * width, rngs=rngs)
        self.out = dense(width, width, scale=scale, rngs=rngs)

    def project(self, other: jax.Array) -> Pair:
        """Return keys and values `[batch, places, heads, size]` for `[batch, places, width]`."""
        batch, places, width = other.shape
        shape = (batch, places, self.heads, width // self.heads)
        both = self.keys_values(other.reshape(batch * places, width))
        key, value = jnp.split(both, 2, axis=-1)
        return key.reshape(shape), value.reshape(shape)

    def __call__(self, x: jax.Array, memory: Pair) -> jax.Array:
        """Attend from `x` `[batch, time, width]` to what `project` made."""
        batch, time, width = x.shape
        query = self.query(x.reshape(batch * time, width))
        query = query.reshape(batch, time, self.heads, width // self.heads)
        mixed = attend(query, *memory)
        return self.out(mixed.reshape(batch * time, width)).reshape(x.shape)


def dense(inputs: int, outputs: int, *, scale: float = 1.0, rngs: nnx.Rngs) -> nnx.Linear:
    """Make a layer without a bias, whose initial kernel has variance `scale**2 / inputs`."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return lecun_normal(key, shape, dtype) * jnp.asarray(scale, dtype)

    return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=draw, rngs=rngs)


def residual_scale(layers: int, branches: int) -> float:
    """Return the scale of what branches add, so that the sum stays of the size of one.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.3
    (2019).

    >>> residual_scale(8, 2)
    0.25
    """
    return 1 / math.sqrt(layers * branches)
