"""Generate text on the host: check the settings, compile once, and stream tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.language.decoding import Decoder
from models.language.sampling import (
    Sampled,
    SamplingSettings,
    SamplingState,
    advance,
    begin,
    check_sampling,
    enlarge_cache,
)
from models.network import PyTree

OnToken = Callable[[int, np.ndarray], object]
"""`(step, tokens)`, the step from 0 and int32 `[batch]`."""


def generate(
    decoder: Decoder,
    params: PyTree,
    prompt: PyTree,
    *,
    length: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[int] = (),
    model_state: PyTree | None = None,
    on_token: OnToken | None = None,
) -> Sampled:
    """Generate the tokens that follow prompts.

    Reading the prompts and generating is one compiled function for each shape of the prompts and
    each `length`, `top_k` and `stop`; those of the eight decoders used last are cached. With
    `on_token` each step is one, for any `length`, and the loop runs on the host.

    Args:
        decoder: from `transformer`, `captioner` or `lora`.
        params: its parameters.
        prompt: a list of prompts, each a sequence of tokens, of any lengths, such as `encode` of
            `trainer.data.open_tokenizer` returns for a text or messages; or the decoder's inputs:
            tokens, integer `[batch, time]` with at least one token, or a dict with them under
            `tokens` and the other inputs, such as `image`, or `segments` and `positions`: prompts
            of different lengths are padded on the left, with segment 0.
        length: largest number of tokens to generate for each prompt.
        key: () typed key; the same key generates the same tokens.
        temperature: divides the logits; below 1 likely tokens become more likely, and 0 takes
            the likeliest.
        top_k: number of likeliest tokens to draw from; None for all.
        top_p: share of the probability, among those, of the fewest likeliest tokens to draw from;
            None for all.
        stop: tokens at which a text stops, such as `stop` of an opened tokenizer. Generating ends
            when all texts have.
        model_state: the decoder's model state; None for {}.
        on_token: called after each step with its number, from 0, and the tokens that it drew,
            int32 `[batch]`, 0 for texts that have stopped. What it raises ends the generation.

    Returns:
        The tokens that follow, their log-probabilities, and how many they are.

    Raises:
        TypeError: `length` or `top_k` is no whole number.
        ValueError: a setting is out of range, a prompt has no token, a stop token is not in the
            vocabulary, or the longest prompt and its continuation exceed the decoder's context.

    >>> import models
    >>> decoder = models.transformer(vocabulary=5, context=8, layers=1, heads=2, width=8)
    >>> params, _ = jax.jit(decoder.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    >>> key = jax.random.key(1)
    >>> sampled = generate(decoder, params, [[0, 1, 2], [3]], length=5, key=key, top_k=3)
    >>> sampled.tokens.shape, sampled.lengths.tolist()
    ((2, 5), [5, 5])
    """
    settings = SamplingSettings(key, temperature, top_k, top_p, tuple(map(int, stop)))
    check_sampling("generate", length, settings)
    inputs = jax.tree.map(jnp.asarray, _pad(prompt) if isinstance(prompt, list) else prompt)
    tokens = inputs["tokens"] if isinstance(inputs, Mapping) else inputs
    if jnp.ndim(tokens) != 2 or not jnp.shape(tokens)[1]:
        raise ValueError(
            "generate needs prompts [batch, time] of at least one token, such as that which "
            f"starts every text; got shape {jnp.shape(tokens)}"
        )
    variables = params, {} if model_state is None else model_state
    fixed = {"top_k": top_k, "stop": settings.stop, "greedy": temperature == 0}
    drawing = key, float(temperature), None if top_p is None else float(top_p)
    if on_token is None:
        return _compile_sample(decoder)(variables, inputs, drawing, length=length, **fixed)
    first, following = _compile_steps(decoder)
    state = first(variables, inputs, length=length)
    for step in range(length):
        state = following(variables, state, drawing, **fixed)
        on_token(step, np.asarray(state.sampled.tokens)[:, step])
        if np.asarray(state.stopped).all():
            break
    return state.sampled


def _pad(prompts: Sequence[Sequence[int]]) -> PyTree:
    """Pad prompts on the left to the longest, in a dict; without segments if that pads none.

    >>> {name: rows.tolist() for name, rows in _pad([[5, 6], [7]]).items()}
    {'tokens': [[5, 6], [0, 7]], 'segments': [[1, 1], [0, 1]], 'positions': [[0, 1], [0, 0]]}
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    if not len(prompts) or not lengths.all():
        raise ValueError(
            "generate needs a prompt of at least one token for each text, such as that which "
            f"starts every text; got prompts of {lengths.tolist()} tokens"
        )
    before = lengths.max() - lengths
    places = np.arange(lengths.max(), dtype=np.int32)[None] - before[:, None].astype(np.int32)
    rows = [np.concatenate([[0] * pad, one]) for pad, one in zip(before, prompts, strict=True)]
    tokens = np.stack(rows)
    if not np.array_equal(tokens, tokens.astype(np.int32)):
        raise ValueError("generate takes whole numbers as tokens; got others in a prompt")
    if not before.any():
        return tokens.astype(np.int32)
    segments = (places >= 0).astype(np.int32)
    return {
        "tokens": tokens.astype(np.int32),
        "segments": segments,
        "positions": np.maximum(places, 0),
    }


@functools.lru_cache(maxsize=8)  # bounded, so that unused decoders are freed
def _compile_sample(decoder: Decoder) -> Any:
    @functools.partial(jax.jit, static_argnames=("length", "top_k", "stop", "greedy"))
    def write(
        variables: tuple[PyTree, PyTree],
        prompt: PyTree,
        drawing: tuple[jax.Array, jax.Array, jax.Array | None],
        *,
        length: int,
        top_k: int | None,
        stop: tuple[int, ...],
        greedy: bool,
    ) -> Sampled:
        key, temperature, top_p = drawing
        return decoder.sample(
            *variables,
            prompt,
            key=key,
            length=length,
            temperature=0 if greedy else temperature,
            top_k=top_k,
            top_p=top_p,
            stop=stop,
        )

    return write


@functools.lru_cache(maxsize=8)
def _compile_steps(decoder: Decoder) -> Any:
    @functools.partial(jax.jit, static_argnames="length")
    def first(variables: tuple[PyTree, PyTree], prompt: PyTree, *, length: int) -> SamplingState:
        state = begin(decoder.init_cache, decoder.decode_step, variables, prompt, length)
        return enlarge_cache(decoder.init_cache, variables, prompt, state, length)

    @functools.partial(jax.jit, static_argnames=("top_k", "stop", "greedy"), donate_argnums=1)
    def following(
        variables: tuple[PyTree, PyTree],
        state: SamplingState,
        drawing: tuple[jax.Array, jax.Array, jax.Array | None],
        *,
        top_k: int | None,
        stop: tuple[int, ...],
        greedy: bool,
    ) -> SamplingState:
        key, temperature, top_p = drawing
        settings = SamplingSettings(key, 0 if greedy else temperature, top_k, top_p, stop)
        return advance(decoder.decode_step, variables, state, settings)

    return first, following
