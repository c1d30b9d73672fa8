"""Rotary positions: the angle between a query and a key tells their distance."""

from __future__ import annotations

import jax
import jax.numpy as jnp

BASE = 10_000.0
"""Ratio of the longest wavelength of the rotary positions to the shortest."""

Pair = tuple[jax.Array, jax.Array]


def compute_rotary(positions: jax.Array, size: int) -> Pair:
    """Compute the cosines and sines, float32 `[..., time, size / 2]`, that rotate heads of a size.

    `positions` are numbers `[time]`, or `[batch, time]` where they differ between rows.

    >>> cosines, sines = compute_rotary(jnp.arange(3), 4)
    >>> cosines.shape, float(sines[0, 0]), round(float(sines[1, 0]), 4)
    ((3, 2), 0.0, 0.8415)
    """
    frequencies = BASE ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    shape = (1,) * positions.ndim + frequencies.shape
    angles = positions[..., None].astype(jnp.float32) * frequencies.reshape(shape)
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
    cosines, sines = (x.reshape(-1, *x.shape[-2:])[:, :, None] for x in rotary)
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate(rotated, axis=-1).astype(heads.dtype)
