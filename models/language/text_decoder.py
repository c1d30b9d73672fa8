"""The network of a decoder-only transformer: embeddings, blocks and logits."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.argument_checks import require_size
from models.initializers import lecun_normal
from models.language.attention import TokenPlaces
from models.language.blocks import TransformerConfig, init_caches, make_blocks, project, run_blocks
from models.language.layers import FeatureNorm, dense
from models.language.rotary import compute_rotary
from models.language.text_inputs import TextInputs, parse_text
from models.language.visibility import Visibility
from models.network import PyTree


class TextDecoder(nnx.Module):
    """Tokens to logits, alone or attending to the output of an encoder (`cross`)."""

    def __init__(
        self,
        vocabulary: int,
        context: int,
        shape: TransformerConfig,
        *,
        tied: bool,
        cross: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.context, self.shape = context, shape
        embed = partial(nnx.Embed, features=shape.width, embedding_init=_embeddings, rngs=rngs)
        self.embed = embed(vocabulary)
        self.positions = embed(context) if shape.architecture.positions == "learned" else None
        self.dropout = nnx.Dropout(shape.dropout, rngs=rngs) if shape.dropout else None
        self.blocks = make_blocks(shape, cross=cross, rngs=rngs)
        self.norm = FeatureNorm(shape.width, shape.architecture, rngs=rngs)
        self.head = None if tied else dense(shape.width, vocabulary, rngs=rngs)

    def __call__(self, inputs: PyTree, encoded: jax.Array | None = None) -> jax.Array:
        """Compute logits `[batch, time, vocabulary]` for tokens, or a dict with their segments.

        `encoded`, `[batch, length, width]`, is what the cross-attention of the blocks reads.
        """
        text = parse_text(self.shape.owner, inputs, self.context)
        segments, positions = text.segments, text.positions
        visibility = Visibility(None, segments, segments, positions, positions)
        if positions is None:
            positions = jnp.arange(text.tokens.shape[1])
        x, _ = run_blocks(
            self.blocks,
            self.shape,
            self._embed(text, positions),
            self._place(positions, visibility),
            projected=None if encoded is None else project(self.blocks, encoded),
            remat=self.shape.remat,
        )
        return self._compute_logits(x)

    def init_cache(self, inputs: PyTree, length: int, encoded: jax.Array | None = None) -> PyTree:
        """Build an empty cache for `length` tokens in all; the inputs provide the batch size.

        A text that is read without segments is segment 1, from position 0.
        """
        require_size(self.shape.owner, "length", length)
        if length > self.context:
            raise ValueError(
                f"{self.shape.owner}: {length} tokens in all, prompt and continuation, exceed the "
                f"context of {self.context}; shorten either, or enlarge the context"
            )
        batch = len(jax.tree.leaves(inputs)[0])
        cache = {
            "texts": init_caches(self.blocks, self.shape, batch, length),
            "read": jnp.zeros((), jnp.int32),
            "segments": jnp.zeros((batch, length), jnp.int32),
            "positions": jnp.zeros((batch, length), jnp.int32),
            "segment": jnp.ones(batch, jnp.int32),
            "position": jnp.zeros(batch, jnp.int32),
        }
        return cache if encoded is None else cache | {"encoded": project(self.blocks, encoded)}

    def decode_step(self, cache: Any, inputs: PyTree) -> tuple[jax.Array, PyTree]:
        """Compute logits `[batch, n, vocabulary]` of the next tokens; return the cache too."""
        read, length = cache["read"], cache["segments"].shape[1]
        text = parse_text(self.shape.owner, inputs, length)
        segments, positions = _continue_text(text, cache)
        all_segments, all_positions = (
            jax.lax.dynamic_update_slice_in_dim(cache[name], new, read, axis=1)
            for name, new in (("segments", segments), ("positions", positions))
        )
        visibility = Visibility(read, segments, all_segments, positions, all_positions)
        x, texts = run_blocks(
            self.blocks,
            self.shape,
            self._embed(TextInputs(text.tokens, segments, positions), positions),
            self._place(positions, visibility),
            caches=cache["texts"],
            projected=cache.get("encoded"),
        )
        after = {
            "texts": texts,
            "read": read + text.tokens.shape[1],
            "segments": all_segments,
            "positions": all_positions,
            "segment": segments[:, -1],
            "position": positions[:, -1] + 1,
        }
        logits = jnp.where(after["read"] <= length, self._compute_logits(x), jnp.nan)
        return logits, cache | after

    def _embed(self, text: TextInputs, positions: jax.Array) -> jax.Array:
        tokens, outside = text.tokens, text.tokens < 0  # those would count from the end
        if text.segments is not None:
            padding = text.segments == 0
            tokens, positions = (jnp.where(padding, 0, x) for x in (tokens, positions))
            outside = outside | (positions < 0) | (positions >= self.context)
            outside = outside & ~padding
        table, scale = self.embed.embedding[...], self.shape.architecture.embedding_scale
        # Those past the end give nan.
        x = jnp.take(table, jnp.where(outside, len(table), tokens), axis=0)
        x = x * (math.sqrt(self.shape.width) if scale is None else scale)
        if self.positions is not None:
            added = jnp.take(self.positions.embedding[...], positions, axis=0)
            x = x + added.reshape(-1, *x.shape[1:])
        return x if self.dropout is None else self.dropout(x)

    def _place(self, positions: jax.Array, visibility: Visibility) -> TokenPlaces:
        settings = self.shape.architecture
        if settings.positions == "learned":
            return TokenPlaces(visibility=visibility)
        size, local = self.shape.head_size, None
        if settings.local_rotary_base is not None:
            local = compute_rotary(positions, size, settings.local_rotary_base)
        rotary = compute_rotary(positions, size, settings.rotary_base, settings.rotary_scaling)
        return TokenPlaces(rotary, local, visibility)

    def _compute_logits(self, x: jax.Array) -> jax.Array:
        batch, time, width = x.shape
        weights = self.embed.embedding[...].T if self.head is None else self.head.kernel[...]
        flat = self.norm(x).reshape(batch * time, width)
        logits = jnp.dot(flat, weights, preferred_element_type=jnp.float32)
        softcap = self.shape.architecture.logit_softcap
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        return logits.reshape(batch, time, -1)


def _continue_text(text: TextInputs, cache: Any) -> tuple[jax.Array, jax.Array]:
    """Return the segments and positions of a text: without any, those after what was read."""
    if text.segments is not None and text.positions is not None:
        return text.segments.astype(jnp.int32), text.positions.astype(jnp.int32)
    segments = jnp.broadcast_to(cache["segment"][:, None], text.tokens.shape)
    steps = jnp.arange(text.tokens.shape[1], dtype=jnp.int32)
    return segments, cache["position"][:, None] + steps[None]


def _embeddings(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Draw embeddings of variance 1 / width: tied, they give logits of variance 1."""
    return lecun_normal(key, shape[::-1], dtype).reshape(shape)
