"""A decoder-only transformer: a language model."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.argument_checks import require_size
from models.initializers import lecun_normal
from models.language.blocks import TransformerConfig, init_caches, make_blocks, project, run_blocks
from models.language.decoding import Decoder, make_decoder
from models.language.layers import dense
from models.language.rotary import compute_rotary
from models.language.text_inputs import TextInputs, parse_text
from models.language.visibility import Visibility
from models.network import PyTree


def transformer(
    *,
    vocabulary: int,
    context: int,
    layers: int = 4,
    heads: int = 4,
    width: int = 128,
    hidden: int | None = None,
    dropout: float = 0.0,
    tied: bool = True,
    remat: bool = False,
    scan: bool = False,
) -> Decoder:
    """Build a transformer that predicts the next token of a text, and generates text.

    Each block is causal self-attention with rotary positions and a dense branch with a GELU; each
    normalises its input and adds its result to it. No layer has a bias. Everything is computed in
    the dtype of the parameters, except norms, softmax and logits, which are float32.

    Args:
        vocabulary: number of tokens in the vocabulary.
        context: number of tokens of the longest text; a limit without a cost.
        layers: number of blocks.
        heads: attention heads of each block; `width / heads` must be whole and even.
        width: features of a token between the blocks.
        hidden: features of the dense branch; None for `4 * width`.
        dropout: probability, at least 0 and less than 1, of dropping a feature of the embeddings
            and of a branch's result, in training.
        tied: whether the embeddings are also the weights of the logits.
        remat: whether to store only the inputs of blocks for the backward pass, and recompute the
            rest: less memory, and a step takes up to a third longer.
        scan: whether to run the blocks as one `lax.scan` over parameters stacked under `blocks`, so
            that the time to compile does not depend on the depth; a step takes 1.3 times as long on
            CPU. Otherwise they are under `blocks/0`, `blocks/1` and so on, with the same initial
            values.

    Returns:
        A decoder from tokens, integer `[batch, time]`, to logits `[batch, time, vocabulary]` of
        the token after each, float32, without model state. The logits of a token outside the
        vocabulary are nan.

        Instead of tokens it takes a dict of `tokens`, `segments` and `positions`, all integer
        `[batch, time]`, for several texts in a row and for padding: a token sees only its own
        segment, whose positions count from 0. Segment 0 is padding, whose tokens may be anything;
        its logits are finite and mean nothing. Such a row may be longer than `context`, while the
        logits of a position outside it are nan.

    Raises:
        TypeError: a size is no whole number.
        ValueError: a setting is out of range, `heads` does not divide `width` into even sizes; on
            a call, the inputs have another form, or are more tokens than `context`.

    Source: Vaswani et al., "Attention Is All You Need" (2017), with the changes that
    `TransformerBlock` and `apply_rotary` name.

    >>> decoder = transformer(vocabulary=5, context=8, layers=2, heads=2, width=8)
    >>> tokens = jnp.array([[0, 1, 2, 3]])
    >>> params, model_state = jax.jit(decoder.init)(jax.random.key(0), tokens)
    >>> sorted(params), sorted(params["blocks"]["1"])
    (['blocks', 'embed', 'norm'], ['attention', 'attention_norm', 'dense_norm', 'down', 'up'])
    >>> decoder.apply(params, model_state, tokens, key=None, train=False)[0].shape
    (1, 4, 5)
    """
    require_size("transformer", "vocabulary", vocabulary)
    require_size("transformer", "context", context)
    hidden = 4 * width if hidden is None else hidden
    shape = TransformerConfig("transformer", layers, heads, width, hidden, dropout, remat, scan)

    def make(rngs: nnx.Rngs) -> TextDecoder:
        return TextDecoder(vocabulary, context, shape, tied=tied, rngs=rngs)

    return make_decoder(make, lambda inputs: parse_text("transformer", inputs, context))


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
        self.embed = nnx.Embed(vocabulary, shape.width, embedding_init=_embeddings, rngs=rngs)
        self.dropout = nnx.Dropout(shape.dropout, rngs=rngs) if shape.dropout else None
        self.blocks = make_blocks(shape, cross=cross, rngs=rngs)
        self.norm = nnx.RMSNorm(shape.width, rngs=rngs)
        self.head = None if tied else dense(shape.width, vocabulary, rngs=rngs)

    def __call__(self, inputs: PyTree, encoded: jax.Array | None = None) -> jax.Array:
        """Compute logits `[batch, time, vocabulary]` for tokens, or a dict with their segments.

        `encoded`, `[batch, length, width]`, is what the cross-attention of the blocks reads.
        """
        text = parse_text(self.shape.owner, inputs, self.context)
        positions = text.positions
        if positions is None:
            positions = jnp.arange(text.tokens.shape[1])
        x, _ = run_blocks(
            self.blocks,
            self._embed(text),
            projected=None if encoded is None else project(self.blocks, encoded),
            rotary=compute_rotary(positions, self.shape.head_size),
            visibility=Visibility(None, text.segments, text.segments),
            remat=self.shape.remat,
        )
        return self._logits(x)

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
            "segment": jnp.ones(batch, jnp.int32),
            "position": jnp.zeros(batch, jnp.int32),
        }
        return cache if encoded is None else cache | {"encoded": project(self.blocks, encoded)}

    def decode_step(self, cache: Any, inputs: PyTree) -> tuple[jax.Array, PyTree]:
        """Compute logits `[batch, n, vocabulary]` of the next tokens; return the cache too."""
        length = cache["segments"].shape[1]
        text, segments, positions = _continue_text(
            parse_text(self.shape.owner, inputs, length), cache
        )
        read, count = cache["read"], text.tokens.shape[1]
        seen = jax.lax.dynamic_update_slice_in_dim(cache["segments"], segments, read, axis=1)
        x, texts = run_blocks(
            self.blocks,
            self._embed(text),
            caches=cache["texts"],
            projected=cache.get("encoded"),
            rotary=compute_rotary(positions, self.shape.head_size),
            visibility=Visibility(read, segments, seen),
        )
        after = {
            "texts": texts,
            "read": read + count,
            "segments": seen,
            "segment": segments[:, -1],
            "position": positions[:, -1] + 1,
        }
        return jnp.where(read + count <= length, self._logits(x), jnp.nan), cache | after

    def _embed(self, text: TextInputs) -> jax.Array:
        table, tokens = self.embed.embedding[...], text.tokens
        outside = tokens < 0  # negative indices would count from the end
        if text.segments is not None and text.positions is not None:
            padding = text.segments == 0
            tokens = jnp.where(padding, 0, tokens)
            outside = ~padding & (outside | (text.positions < 0) | (text.positions >= self.context))
        # Those past the end give nan.
        x = jnp.take(table, jnp.where(outside, len(table), tokens), axis=0)
        x = x * math.sqrt(self.shape.width)
        return x if self.dropout is None else self.dropout(x)

    def _logits(self, x: jax.Array) -> jax.Array:
        batch, time, width = x.shape
        weights = self.embed.embedding[...].T if self.head is None else self.head.kernel[...]
        flat = self.norm(x).reshape(batch * time, width)
        logits = jnp.dot(flat, weights, preferred_element_type=jnp.float32)
        return logits.reshape(batch, time, -1)


def _continue_text(text: TextInputs, cache: Any) -> tuple[TextInputs, jax.Array, jax.Array]:
    """Return a text with segments and positions: without any, those after what was read."""
    if text.segments is not None and text.positions is not None:
        segments, positions = (x.astype(jnp.int32) for x in (text.segments, text.positions))
    else:
        segments = jnp.broadcast_to(cache["segment"][:, None], text.tokens.shape)
        steps = jnp.arange(text.tokens.shape[1], dtype=jnp.int32)
        positions = cache["position"][:, None] + steps[None]
    return TextInputs(text.tokens, segments, positions), segments, positions


def _embeddings(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Draw embeddings of variance 1 / width: tied, they give logits of variance 1."""
    return lecun_normal(key, shape[::-1], dtype).reshape(shape)
