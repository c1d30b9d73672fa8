"""The contract of decoders, which read and predict one token after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

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
