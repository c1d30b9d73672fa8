"""Attention layers: of a text to itself, with a cache for decoding, and to another sequence."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from models.language.architecture import Architecture
from models.language.attention_kernels import attend
from models.language.layers import FeatureNorm, dense
from models.language.rotary import Pair, apply_rotary
from models.language.visibility import Visibility

ENDLESS = 2**30
"""A window that hides nothing."""


class TokenPlaces(NamedTuple):
    """Where the tokens of a text stand, and what they see; the default sees everything."""

    rotary: Pair | None = None
    """Rotary positions, or None for none."""
    local_rotary: Pair | None = None
    """Those of layers with a window, or None for the same."""
    visibility: Visibility | None = None
    """What each token sees, of the cache if there is one; None for all."""

    def select_rotary(self, windowed: jax.Array | bool) -> Pair | None:
        """Return the rotary positions of a layer with or without a window."""
        if self.rotary is None or self.local_rotary is None:
            return self.rotary
        if isinstance(windowed, bool):
            return self.local_rotary if windowed else self.rotary
        local, everywhere = self.local_rotary, self.rotary
        return jax.tree.map(lambda a, b: jnp.where(windowed, a, b), local, everywhere)


class SelfAttention(nnx.Module):
    """Attention of a sequence to itself.

    The columns of the kernels `query`, `key` and `value` are those of the first head, then of the
    next: devices that split them hold whole heads, and exchange nothing to compute attention.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        architecture: Architecture,
        *,
        scale: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.architecture = architecture
        self.size = architecture.head_size or width // heads
        inner = heads * self.size
        outer = self.size * (architecture.kv_heads or heads)
        bias = architecture.attention_bias
        self.query = dense(width, inner, bias=bias, rngs=rngs)
        self.key = dense(width, outer, bias=bias, rngs=rngs)
        self.value = dense(width, outer, bias=bias, rngs=rngs)
        self.out = dense(inner, width, scale=scale, bias=architecture.out_bias, rngs=rngs)
        self.query_norm, self.key_norm = (
            FeatureNorm(self.size, architecture, rngs=rngs) if architecture.qk_norm else None
            for _ in range(2)
        )

    def __call__(
        self, x: jax.Array, cache: Pair | None, places: TokenPlaces, windowed: jax.Array | bool
    ) -> tuple[jax.Array, Pair | None]:
        """Compute attention, `[batch, time, width]`, and return the cache with these tokens too.

        Args:
            x: `[batch, time, width]`.
            cache: keys `[batch, kv_heads, size, length]` and values `[batch, kv_heads, length,
                size]` of earlier tokens, or None.
            places: of these tokens.
            windowed: whether the layer has a window, a bool or () bool.
        """
        batch, time, width = x.shape
        flat = x.reshape(batch * time, width)
        query, key, value = (
            layer(flat).reshape(batch, time, -1, self.size)
            for layer in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        rotary, visibility = places.select_rotary(windowed), places.visibility
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        if cache is not None and visibility is not None and visibility.start is not None:
            cache = _update(cache, (key, value), visibility.start)
            key, value = cache[0].transpose(0, 3, 1, 2), cache[1].swapaxes(1, 2)
        mixed = attend(
            query,
            key,
            value,
            visibility,
            window=self._find_window(windowed),
            scale=self.architecture.query_scale,
            softcap=self.architecture.attention_softcap,
        )
        return self.out(mixed.reshape(batch * time, -1)).reshape(x.shape), cache

    def _find_window(self, windowed: jax.Array | bool) -> jax.Array | int | None:
        window = self.architecture.window
        if window is None or isinstance(windowed, bool):
            return window if windowed else None
        return jnp.where(windowed, window, ENDLESS)


def _update(cache: Pair, new: Pair, start: jax.Array) -> Pair:
    """Write keys and values `[batch, time, kv_heads, size]` into a cache.

    The products with the query and with the weights read it as it lies, heads first: otherwise a
    CPU copies the whole cache at every step. Keys with the size last take a third longer to
    generate from.
    """
    key, value = (x.astype(old.dtype) for old, x in zip(cache, new, strict=True))
    return (
        jax.lax.dynamic_update_slice_in_dim(cache[0], key.transpose(0, 2, 3, 1), start, axis=3),
        jax.lax.dynamic_update_slice_in_dim(cache[1], value.swapaxes(1, 2), start, axis=2),
    )


class CrossAttention(nnx.Module):
    """Attention of a sequence to another, whose keys and values are computed once."""

    def __init__(self, width: int, heads: int, *, scale: float, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.query = dense(width, width, rngs=rngs)
        self.key = dense(width, width, rngs=rngs)
        self.value = dense(width, width, rngs=rngs)
        self.out = dense(width, width, scale=scale, rngs=rngs)

    def project(self, other: jax.Array) -> Pair:
        """Compute keys and values `[batch, length, heads, size]` of `[batch, length, width]`."""
        return self._split(self.key, other), self._split(self.value, other)

    def __call__(self, x: jax.Array, projected: Pair) -> jax.Array:
        """Attend from `x` `[batch, time, width]` to keys and values of `project`."""
        mixed = attend(self._split(self.query, x), *projected)
        return self.out(mixed.reshape(-1, x.shape[-1])).reshape(x.shape)

    def _split(self, layer: nnx.Linear, x: jax.Array) -> jax.Array:
        batch, time, width = x.shape
        heads = layer(x.reshape(batch * time, width))
        return heads.reshape(batch, time, self.heads, width // self.heads)
