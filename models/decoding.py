"""The contract of decoders, which generate one token after another, and sampling from them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from models.argument_checks import require_size
from models.network import Apply, Init, PyTree
from models.nnx import from_nnx, make_assembler


class Decoder(NamedTuple):
    """A network of tokens with two more pure functions, for generating text with a cache.

    The first two fields are those of a `Network`, so it can be used as one. The others keep in a
    cache what attention needs of earlier tokens: reading a text piece by piece computes the same
    logits as `apply` for the whole text.

    >>> import models
    >>> decoder = models.transformer(vocabulary=5, context=8, layers=1, heads=2, width=8)
    >>> tokens = jnp.array([[0, 1, 2, 3]])
    >>> params, _ = jax.jit(decoder.init)(jax.random.key(0), tokens)
    >>> whole, _ = decoder.apply(params, {}, tokens, key=None, train=False)
    >>> decode_step = jax.jit(decoder.decode_step)
    >>> first, cache = decode_step(params, decoder.init_cache(params, tokens, 4), tokens[:, :3])
    >>> second, cache = decode_step(params, cache, tokens[:, 3:])
    >>> bool(jnp.allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-5))
    True
    """

    init: Init
    """As `Network.init`."""

    apply: Apply
    """As `Network.apply`; the outputs are logits `[batch, time, vocabulary]`, float32."""

    init_cache: Callable[[PyTree, PyTree, int], PyTree]
    """`(params, inputs, length) -> cache`, for `length` tokens in all, a Python int.

    `inputs` are the network's, or a part of them: tokens only provide the batch size, other inputs
    (an image) are encoded once. The cache is a pytree of arrays of fixed shapes.
    """

    decode_step: Callable[[PyTree, PyTree, jax.Array], tuple[jax.Array, PyTree]]
    """`(params, cache, tokens) -> (logits, cache)` for the next tokens, integer `[batch, n]`.

    The logits are `[batch, n, vocabulary]`, float32; all are nan if the tokens exceed the cache's
    length.
    """


def make_decoder(make: Callable[[nnx.Rngs], Any], check: Callable[[PyTree], None]) -> Decoder:
    """Build a decoder from an NNX module of fixed sizes with the methods of a `Decoder`.

    `make` is `rngs -> module`; `check` raises if the inputs, passed as shapes, do not suit it.
    """

    def build(rngs: nnx.Rngs, example: PyTree) -> nnx.Module:
        check(example)
        return make(rngs)

    network = from_nnx(build)
    assemble = make_assembler(lambda rngs, example: make(rngs))

    def bound(params: PyTree) -> Any:
        module, _ = assemble(params, {}, None, None)
        module.eval()
        return module

    def init_cache(params: PyTree, inputs: PyTree, length: int, /) -> PyTree:
        return bound(params).init_cache(inputs, length)

    def decode_step(params: PyTree, cache: PyTree, tokens: jax.Array, /) -> Any:
        return bound(params).decode_step(cache, tokens)

    return Decoder(network.init, network.apply, init_cache, decode_step)


def generate(
    decoder: Decoder,
    params: PyTree,
    prompt: PyTree,
    *,
    length: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> jax.Array:
    """Generate the tokens that follow a prompt.

    Reading the prompt and generating is one compiled function for each shape of the prompt and each
    `length` and `top_k`; those of the eight decoders used last are cached.

    Args:
        decoder: from `transformer` or `captioner`.
        params: its parameters.
        prompt: the decoder's inputs: tokens, integer `[batch, time]` with at least one token, or a
            dict with them under `tokens` and the other inputs, such as `image`.
        length: number of tokens to generate.
        key: () typed key; the same key generates the same tokens.
        temperature: divides the logits; below 1 likely tokens become more likely, and 0 takes
            the likeliest.
        top_k: number of likeliest tokens to draw from; None for all.

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
        prompt: PyTree,
        key: jax.Array,
        temperature: jax.Array,
        *,
        length: int,
        top_k: int | None,
        greedy: bool,
    ) -> jax.Array:
        tokens = prompt["tokens"] if isinstance(prompt, Mapping) else prompt

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
            logits, cache = decoder.decode_step(params, cache, token[:, None])
            token = pick(logits[:, -1], key)
            return (cache, token), token

        cache = decoder.init_cache(params, prompt, tokens.shape[1] + length)
        logits, cache = decoder.decode_step(params, cache, tokens)
        keys = jax.random.split(key, length)
        first = pick(logits[:, -1], keys[0])
        _, rest = jax.lax.scan(step, (cache, first), keys[1:])
        return jnp.concatenate([first[:, None], rest.T], axis=1)

    return write


def require_tokens(owner: str, tokens: Any, longest: int) -> None:
    """Raise ValueError if tokens, or their shape, are no integers `[batch, time]`, or too many.

    >>> require_tokens("transformer", jnp.ones((2, 9), jnp.int32), 8)
    Traceback (most recent call last):
        ...
    ValueError: transformer: 9 tokens are more than the limit of 8; pass shorter texts
    """
    shape, dtype = getattr(tokens, "shape", None), getattr(tokens, "dtype", type(tokens).__name__)
    if shape is None or len(shape) != 2 or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"{owner} takes integer tokens [batch, time]; got {dtype}{list(shape or ())}"
        )
    if shape[1] > longest:
        raise ValueError(
            f"{owner}: {shape[1]} tokens are more than the limit of {longest}; pass shorter texts"
        )
