"""Generate text: sample one token after another from a decoder."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.argument_checks import require_size
from models.language.decoding import Decoder
from models.language.text_inputs import KEYS
from models.network import PyTree


def generate(
    decoder: Decoder,
    params: PyTree,
    prompt: PyTree,
    *,
    length: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    model_state: PyTree | None = None,
) -> jax.Array:
    """Generate the tokens that follow a prompt.

    Reading the prompt and generating is one compiled function for each shape of the prompt and each
    `length` and `top_k`; those of the eight decoders used last are cached.

    Args:
        decoder: from `transformer` or `captioner`.
        params: its parameters.
        prompt: the decoder's inputs: tokens, integer `[batch, time]` with at least one token, or a
            dict with them under `tokens` and the other inputs, such as `image`, or `segments` and
            `positions`: prompts of different lengths are padded on the left, with segment 0.
        length: number of tokens to generate.
        key: () typed key; the same key generates the same tokens.
        temperature: divides the logits; below 1 likely tokens become more likely, and 0 takes
            the likeliest.
        top_k: number of likeliest tokens to draw from; None for all.
        model_state: the decoder's model state; None for none.

    Returns:
        The tokens that follow, int32 `[batch, length]`.

    Raises:
        TypeError: `length` or `top_k` is no whole number.
        ValueError: a setting is out of range, the prompt has no token, or the prompt and its
            continuation exceed the decoder's context.

    >>> import models
    >>> decoder = models.transformer(vocabulary=5, context=8, layers=1, heads=2, width=8)
    >>> prompt = jnp.array([[0, 1, 2], [3, 4, 0]])
    >>> params, _ = jax.jit(decoder.init)(jax.random.key(0), prompt)
    >>> generate(decoder, params, prompt, length=5, key=jax.random.key(1), top_k=3).shape
    (2, 5)
    """
    require_size("generate", "length", length)
    if not 0 <= temperature < math.inf:
        raise ValueError(f"generate: temperature must be 0 or more, and finite; got {temperature}")
    if top_k is not None:
        require_size("generate", "top_k", top_k)
    tokens = prompt["tokens"] if isinstance(prompt, Mapping) else prompt
    if jnp.ndim(tokens) != 2 or not jnp.shape(tokens)[1]:
        raise ValueError(
            "generate needs a prompt [batch, time] of at least one token, such as that which "
            f"starts every text; got shape {jnp.shape(tokens)}"
        )
    return _compile_generate(decoder)(
        params,
        {} if model_state is None else model_state,
        jax.tree.map(jnp.asarray, prompt),
        key,
        float(temperature),
        length=length,
        top_k=top_k,
        greedy=temperature == 0,
    )


@functools.lru_cache(maxsize=8)  # bounded, so that unused decoders are freed
def _compile_generate(decoder: Decoder) -> Any:
    @functools.partial(jax.jit, static_argnames=("length", "top_k", "greedy"))
    def write(
        params: PyTree,
        model_state: PyTree,
        prompt: PyTree,
        key: jax.Array,
        temperature: jax.Array,
        *,
        length: int,
        top_k: int | None,
        greedy: bool,
    ) -> jax.Array:
        named = isinstance(prompt, Mapping)
        tokens = prompt["tokens"] if named else prompt

        def pick(logits: jax.Array, key: jax.Array) -> jax.Array:
            if greedy:
                return logits.argmax(-1).astype(jnp.int32)
            if top_k is None or top_k >= logits.shape[-1]:
                return jax.random.categorical(key, logits / temperature).astype(jnp.int32)
            values, likeliest = jax.lax.top_k(logits, top_k)
            rank = jax.random.categorical(key, values / temperature)
            return jnp.take_along_axis(likeliest, rank[:, None], axis=-1)[:, 0].astype(jnp.int32)

        def step(carry: tuple[PyTree, jax.Array], key: jax.Array) -> Any:
            cache, token = carry
            logits, cache = decoder.decode_step(params, model_state, cache, token[:, None])
            token = pick(logits[:, -1], key)
            return (cache, token), token

        cache = decoder.init_cache(params, model_state, prompt, tokens.shape[1] + length)
        text = {name: prompt[name] for name in KEYS & prompt.keys()} if named else prompt
        logits, cache = decoder.decode_step(params, model_state, cache, text)
        keys = jax.random.split(key, length)
        first = pick(logits[:, -1], keys[0])
        _, rest = jax.lax.scan(step, (cache, first), keys[1:])
        return jnp.concatenate([first[:, None], rest.T], axis=1)

    return write
