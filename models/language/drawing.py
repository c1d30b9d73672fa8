"""Draw tokens by their probabilities: temperature, top k, and top p."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 128
"""Tokens whose weights are summed before one of them is looked for."""

ONE = 0x3F800000
"""The bits of 1.0 as float32, read as an integer. Those of smaller positive numbers are less."""


class TokenDraw(NamedTuple):
    """A token for each row, and how likely it was."""

    tokens: jax.Array
    """int32 `[batch]`."""
    log_probs: jax.Array
    """float32 `[batch]`."""


def draw_tokens(
    logits: jax.Array,
    key: jax.Array,
    *,
    temperature: jax.Array | float,
    top_k: int | None,
    top_p: jax.Array | float | None,
) -> TokenDraw:
    """Draw a token for each row.

    Args:
        logits: float32 `[batch, vocabulary]`.
        key: () typed key.
        temperature: divides the logits; the number 0 takes the likeliest token, as an array that
            is 0 does, which draws one of several that are equally likely.
        top_k: number of likeliest tokens to draw from; None for all.
        top_p: share of the probability, among those, of the fewest likeliest tokens to draw from;
            None for all.

    Returns:
        The tokens, with the logarithms of their probabilities among all of the vocabulary.

    >>> logits = jnp.log(jnp.array([[0.2, 0.7, 0.1]]))
    >>> drawn = draw_tokens(logits, jax.random.key(0), temperature=1.0, top_k=None, top_p=0.6)
    >>> drawn.tokens.tolist(), round(float(jnp.exp(drawn.log_probs)[0]), 3)
    ([1], 0.7)
    """
    greedy = isinstance(temperature, int | float) and temperature == 0
    scaled = logits - logits.max(-1, keepdims=True)  # first: a small temperature overflows them
    if not greedy:
        scaled /= jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny)
    weights = jnp.exp(scaled)
    if greedy:
        places = jnp.arange(logits.shape[-1], dtype=jnp.int32)
        tokens = jnp.where(scaled == 0, places, len(places) - 1).min(
            -1
        )  # argmax takes 5 times this
    elif top_k is not None and top_k < logits.shape[-1]:
        values, likeliest = lax.top_k(scaled, top_k)
        rank = draw_by_weight(keep_top_p(jnp.exp(values), top_p), key)
        tokens = jnp.take_along_axis(likeliest, rank[:, None], axis=-1)[:, 0].astype(jnp.int32)
    else:
        tokens = draw_by_weight(keep_top_p(weights, top_p), key)
    chosen = jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    return TokenDraw(tokens, chosen - jnp.log(weights.sum(-1)))


def keep_top_p(weights: jax.Array, top_p: jax.Array | float | None) -> jax.Array:
    """Set all weights to 0 but the fewest largest that make up a share of their sum.

    Equal weights are kept together. The smallest that is kept is found by bisection of its bits,
    which takes 30 sums of the weights; sorting a large vocabulary takes longer.

    Args:
        weights: float32 `[batch, n]`, from 0 to 1.
        top_p: the share; None for 1.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", section 3.1 (2020).

    >>> keep_top_p(jnp.array([[0.25, 1.0, 0.5, 0.25]]), 0.6).tolist()
    [[0.0, 1.0, 0.5, 0.0]]
    """
    if top_p is None:
        return weights
    bits = lax.bitcast_convert_type(weights, jnp.int32)
    least = top_p * weights.sum(-1, keepdims=True)

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) // 2
        enough = jnp.where(bits >= middle, weights, 0).sum(-1, keepdims=True) >= least
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    shape = (len(weights), 1)
    bounds = jnp.zeros(shape, jnp.int32), jnp.full(shape, ONE + 1, jnp.int32)
    smallest, _ = lax.fori_loop(0, 30, halve, bounds)
    return jnp.where(bits >= smallest, weights, 0)


def draw_by_weight(weights: jax.Array, key: jax.Array) -> jax.Array:
    """Draw a place of each row, int32 `[batch]`, with probabilities proportional to weights.

    One random number a row is looked up in the sums of the weights, first those of blocks: drawing
    one for each weight takes longer than the rest of a step of a small network.

    Args:
        weights: float32 `[batch, n]`, none below 0, not all 0 in a row.
        key: () typed key.

    >>> draw_by_weight(jnp.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]]), jax.random.key(0)).tolist()
    [1, 0]
    """
    batch, count = weights.shape
    share = jax.random.uniform(key, (batch, 1), weights.dtype)
    if count <= 2 * BLOCK:
        sums = jnp.cumsum(weights, axis=-1)
        return _look_up(sums, share * sums[:, -1:])
    blocks = jnp.pad(weights, ((0, 0), (0, -count % BLOCK))).reshape(batch, -1, BLOCK)
    sums = jnp.cumsum(blocks.sum(-1), axis=-1)
    threshold = share * sums[:, -1:]
    block = _look_up(sums, threshold)[:, None]
    before = jnp.where(block > 0, jnp.take_along_axis(sums, jnp.maximum(block - 1, 0), 1), 0)
    inside = jnp.take_along_axis(blocks, block[:, :, None], axis=1)[:, 0]
    return block[:, 0] * BLOCK + _look_up(jnp.cumsum(inside, axis=-1), threshold - before)


def _look_up(sums: jax.Array, thresholds: jax.Array) -> jax.Array:
    """Return the first place of each row whose sum exceeds the threshold `[batch, 1]`.

    Rounding may bring a threshold up to the last sum, which it must stay below.
    """
    below = jnp.nextafter(sums[:, -1:], jnp.zeros_like(sums[:, -1:]))
    place = (sums <= jnp.minimum(thresholds, below)).sum(-1).astype(jnp.int32)
    return jnp.minimum(place, sums.shape[-1] - 1)  # weights that are not finite have no place
