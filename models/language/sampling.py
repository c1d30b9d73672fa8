"""Sample text: draw one token after another from a decoder."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from models.argument_checks import require_size
from models.language.drawing import draw_tokens
from models.language.text_inputs import KEYS
from models.network import PyTree

InitCache = Callable[[PyTree, PyTree, PyTree, int], PyTree]
DecodeStep = Callable[[PyTree, PyTree, PyTree, PyTree], tuple[jax.Array, PyTree]]
LONG = 64
"""Tokens from which a continuation is drawn in two loops. The first has room in its cache for half
of them: each step reads the whole cache, which may take longer than the parameters."""

Sample = Callable[..., "Sampled"]
"""See `Decoder.sample`."""

Variables = tuple[PyTree, PyTree]
"""Parameters and model state."""


class Sampled(NamedTuple):
    """The tokens that follow prompts; after the end of a row all is 0."""

    tokens: jax.Array
    """int32 `[batch, length]`."""
    log_probs: jax.Array
    """Logarithm of the probability of each, float32 `[batch, length]`, among all tokens of the
    vocabulary, at the temperature that they were drawn at (at 1 where that is 0)."""
    lengths: jax.Array
    """Number of tokens of each row, int32 `[batch]`, the stop token included."""


class SamplingSettings(NamedTuple):
    """How tokens are drawn, as `Decoder.sample` describes it."""

    key: jax.Array
    temperature: jax.Array | float
    top_k: int | None
    top_p: jax.Array | float | None
    stop: Sequence[int]


class SamplingState(NamedTuple):
    """What is sampled so far, and what the next step reads."""

    step: jax.Array
    """() int32, the number of steps."""
    cache: PyTree
    following: PyTree
    """The last token of each row, `[batch, 1]`, as inputs of the decoder."""
    stopped: jax.Array
    """Whether each row has stopped, bool `[batch]`."""
    sampled: Sampled


def make_sample(init_cache: InitCache, decode_step: DecodeStep) -> Sample:
    """Build the field `sample` of a decoder from two others: a loop that ends when all rows have.

    >>> import models
    >>> decoder = models.transformer(vocabulary=5, context=8, layers=1, heads=2, width=8)
    >>> prompt = jnp.array([[0, 1, 2], [3, 4, 0]])
    >>> params, _ = jax.jit(decoder.init)(jax.random.key(0), prompt)
    >>> sample = make_sample(decoder.init_cache, decoder.decode_step)
    >>> sampled = sample(params, {}, prompt, key=jax.random.key(1), length=4)
    >>> sampled.tokens.shape, sampled.log_probs.shape, sampled.lengths.tolist()
    ((2, 4), (2, 4), [4, 4])
    """

    def sample(
        params: PyTree,
        model_state: PyTree,
        prompt: PyTree,
        /,
        *,
        key: jax.Array,
        length: int,
        temperature: jax.Array | float = 1.0,
        top_k: int | None = None,
        top_p: jax.Array | float | None = None,
        stop: Sequence[int] = (),
    ) -> Sampled:
        settings = SamplingSettings(key, temperature, top_k, top_p, stop)
        check_sampling("sample", length, settings)
        variables = params, model_state

        def step(state: SamplingState) -> SamplingState:
            return advance(decode_step, variables, state, settings)

        def is_unfinished(limit: int, state: SamplingState) -> jax.Array:
            return (state.step < limit) & ~state.stopped.all()

        state = begin(init_cache, decode_step, variables, prompt, length)
        for limit in (length // 2, length) if length >= LONG else (length,):
            state = enlarge_cache(init_cache, variables, prompt, state, limit)
            state = lax.while_loop(functools.partial(is_unfinished, limit), step, state)
        return state.sampled

    return sample


def check_sampling(owner: str, length: int, settings: SamplingSettings) -> None:
    """Raise ValueError or TypeError for a setting out of range; arrays are not looked at."""
    require_size(owner, "length", length)
    _, temperature, top_k, top_p, _ = settings
    if isinstance(temperature, int | float) and not 0 <= temperature < math.inf:
        raise ValueError(f"{owner}: temperature must be 0 or more, and finite; got {temperature}")
    if top_k is not None:
        require_size(owner, "top_k", top_k)
    if isinstance(top_p, int | float) and not 0 < top_p <= 1:
        raise ValueError(f"{owner}: top_p must be above 0 and at most 1; got {top_p}")


def begin(
    init_cache: InitCache,
    decode_step: DecodeStep,
    variables: Variables,
    prompt: PyTree,
    length: int,
) -> SamplingState:
    """Read all of the prompts but their last token, whose logits the first step computes.

    So the logits of the other tokens are not computed, of which a large vocabulary has many. The
    cache has room for the prompts alone, which so do not attend to what is yet empty.
    """
    text: dict[str, jax.Array] | jax.Array = prompt
    if isinstance(prompt, Mapping):
        text = {name: prompt[name] for name in KEYS & prompt.keys()}
    text = jax.tree.map(_widen, text)
    batch, time = jax.tree.leaves(text)[0].shape
    cache = init_cache(*variables, prompt, max(time - 1, 1))
    if time > 1:
        _, cache = decode_step(*variables, cache, jax.tree.map(lambda x: x[:, :-1], text))
    nothing = jnp.zeros((batch, length), jnp.int32)
    return SamplingState(
        step=jnp.zeros((), jnp.int32),
        cache=cache,
        following=jax.tree.map(lambda x: x[:, -1:], text),
        stopped=jnp.zeros(batch, bool),
        sampled=Sampled(nothing, nothing.astype(jnp.float32), jnp.zeros(batch, jnp.int32)),
    )


def enlarge_cache(
    init_cache: InitCache, variables: Variables, prompt: PyTree, state: SamplingState, length: int
) -> SamplingState:
    """Give the cache room for the prompts and so many tokens after them.

    Raises:
        ValueError: they exceed the decoder's context.
    """
    time = (prompt["tokens"] if isinstance(prompt, Mapping) else prompt).shape[1]
    whole = jax.eval_shape(lambda: init_cache(*variables, prompt, time + length))

    def append_zeros(array: jax.Array, whole: jax.ShapeDtypeStruct) -> jax.Array:
        more = zip(array.shape, whole.shape, strict=True)
        zero = jnp.zeros((), array.dtype)
        return lax.pad(array, zero, [(0, after - before, 0) for before, after in more])

    return state._replace(cache=jax.tree.map(append_zeros, state.cache, whole))


def _widen(array: jax.Array) -> jax.Array:
    integers = jnp.issubdtype(array.dtype, jnp.integer)
    return array.astype(jnp.int32) if integers else array  # the decoder refuses others


def advance(
    decode_step: DecodeStep,
    variables: Variables,
    state: SamplingState,
    settings: SamplingSettings,
) -> SamplingState:
    """Draw the next token of each row that has not stopped.

    Raises:
        ValueError: a stop token is not in the vocabulary.
    """
    step, cache, following, stopped, sampled = state
    logits, cache = decode_step(*variables, cache, following)
    if settings.stop and not 0 <= min(settings.stop) <= max(settings.stop) < logits.shape[-1]:
        raise ValueError(
            f"stop tokens must be in the vocabulary, from 0 to {logits.shape[-1] - 1}; "
            f"got {list(settings.stop)}"
        )
    drawn = draw_tokens(
        logits[:, -1],
        jax.random.fold_in(settings.key, step),
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
    )
    tokens, log_probs = (jnp.where(stopped, jnp.zeros_like(x), x) for x in drawn)
    all_tokens, all_log_probs = (
        lax.dynamic_update_slice_in_dim(rows, new[:, None], step, axis=1)
        for rows, new in zip(sampled[:2], (tokens, log_probs), strict=True)
    )
    sampled = Sampled(all_tokens, all_log_probs, sampled.lengths + ~stopped)
    for token in settings.stop:
        stopped = stopped | (tokens == token)
    if isinstance(following, Mapping):
        following = {name: x + (name == "positions") for name, x in following.items()}
        following["tokens"] = tokens[:, None]
    else:
        following = tokens[:, None]
    return SamplingState(step + 1, cache, following, stopped, sampled)
