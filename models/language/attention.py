"""Attention layers: of a text to itself, with a cache for decoding, and to another sequence."""

from __future__ import annotations

import jax
from flax import nnx

from models.language.attention_kernels import attend
from models.language.layers import dense
from models.language.rotary import Pair, apply_rotary
from models.language.visibility import Visibility


class SelfAttention(nnx.Module):
    """Attention of a sequence to itself.

    The columns of the kernels `query`, `key` and `value` are those of the first head, then of the
    next: devices that split them hold whole heads, and exchange nothing to compute attention.
    """

    def __init__(self, width: int, heads: int, *, scale: float, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.query = dense(width, width, rngs=rngs)
        self.key = dense(width, width, rngs=rngs)
        self.value = dense(width, width, rngs=rngs)
        self.out = dense(width, width, scale=scale, rngs=rngs)

    def __call__(
        self, x: jax.Array, rotary: Pair | None, cache: Pair | None, visibility: Visibility | None
    ) -> tuple[jax.Array, Pair | None]:
        """Compute attention, `[batch, time, width]`, and return the cache with these tokens too.

        Args:
            x: `[batch, time, width]`.
            rotary: rotary positions of these tokens, or None for none.
            cache: keys and values `[batch, length, heads, size]` of earlier tokens, or None.
            visibility: what each token sees, of the cache if there is one; None for all.
        """
        batch, time, width = x.shape
        flat = x.reshape(batch * time, width)
        query, key, value = (
            layer(flat).reshape(batch, time, self.heads, width // self.heads)
            for layer in (self.query, self.key, self.value)
        )
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        if cache is not None and visibility is not None and visibility.start is not None:
            start = visibility.start
            key, value = (
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=1)
                for old, new in zip(cache, (key, value), strict=True)
            )
            cache = key, value
        mixed = attend(query, key, value, visibility)
        return self.out(mixed.reshape(batch * time, width)).reshape(x.shape), cache


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
