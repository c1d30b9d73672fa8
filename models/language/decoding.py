"""The contract of decoders, which read and predict one token after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx

from models.language.sampling import DecodeStep, InitCache, Sample, make_sample
from models.language.text_settings import TextSettings
from models.network import Apply, Init, PyTree
from models.nnx import from_nnx, make_assembler


class LoRAConfig(NamedTuple):
    """The adapters of a network, made by `models.lora`."""

    rank: int
    alpha: float
    layers: tuple[str, ...]
    """The paths of the layers that have one, such as `blocks/0/attention/query`."""

    @property
    def scale(self) -> float:
        """What the product of an adapter's factors is multiplied by."""
        return self.alpha / self.rank


class Decoder(NamedTuple):
    """A network of tokens with three more pure functions, for generating text with a cache.

    The first two fields are those of a `Network`, so it can be used as one. The others keep in a
    cache what attention needs of earlier tokens: reading a text piece by piece computes the same
    logits as `apply` for the whole text.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import models
    >>> decoder = models.transformer(vocabulary=5, context=8, layers=1, heads=2, width=8)
    >>> tokens = jnp.array([[0, 1, 2, 3]])
    >>> params, _ = jax.jit(decoder.init)(jax.random.key(0), tokens)
    >>> whole, _ = decoder.apply(params, {}, tokens, key=None, train=False)
    >>> decode_step = jax.jit(decoder.decode_step)
    >>> cache = decoder.init_cache(params, {}, tokens, 4)
    >>> first, cache = decode_step(params, {}, cache, tokens[:, :3])
    >>> second, cache = decode_step(params, {}, cache, tokens[:, 3:])
    >>> bool(jnp.allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-5))
    True
    """

    init: Init
    """As `Network.init`."""

    apply: Apply
    """As `Network.apply`; the outputs are logits `[batch, time, vocabulary]`, float32."""

    init_cache: InitCache
    """`(params, model_state, inputs, length) -> cache`, for `length` tokens in all, a Python int.

    `inputs` are the network's, or a part of them: tokens only provide the batch size, other inputs
    (an image) are encoded once. The cache is a pytree of arrays of fixed shapes; zeros appended to
    them, up to the shapes of a longer cache, make it one.
    """

    decode_step: DecodeStep
    """`(params, model_state, cache, inputs) -> (logits, cache)` for the next tokens of each row.

    `inputs` are tokens, integer `[batch, n]`, which continue the segment that was read last, or a
    dict of `tokens`, `segments` and `positions`. Prompts of different lengths are read in one call,
    padded on the left with segment 0. The logits are `[batch, n, vocabulary]`, float32; all are nan
    if the tokens exceed the cache's length.
    """

    sample: Sample
    """`(params, model_state, prompt, *, key, length, ...) -> Sampled`: draw what follows prompts.

    Args:
        prompt: the network's inputs; prompts of different lengths are padded on the left, with
            segment 0.
        key: () typed key.
        length: largest number of tokens to draw for each row, a Python int.
        temperature: divides the logits; the number 0 takes the likeliest token.
        top_k: number of likeliest tokens to draw from, a Python int; None for all.
        top_p: share of the probability, among those, of the fewest likeliest tokens to draw from;
            None for all.
        stop: tokens, Python ints, at which a row stops. The loop ends when all rows have.
    """

    settings: TextSettings | None = None
    """What the decoder computes, for `models.to_huggingface`; None if not of
    `models.transformer`."""

    adapt: Callable[[Callable[[nnx.Module], None]], Decoder] | None = None
    """`(change) -> decoder` of the modules that a function changes in place, as `models.lora` does;
    None where the network is not made of modules."""

    lora: LoRAConfig | None = None
    """The adapters, where there are any."""


def make_decoder(
    make: Callable[[nnx.Rngs], Any],
    check: Callable[[PyTree], object],
    settings: TextSettings | None = None,
) -> Decoder:
    """Build a decoder from an NNX module of fixed sizes with the methods of a `Decoder`.

    `make` is `rngs -> module`; `check` raises if the inputs, passed as shapes, do not suit it;
    `settings` are those of the decoder.
    """

    def build(rngs: nnx.Rngs, example: PyTree) -> nnx.Module:
        check(example)
        return make(rngs)

    network = from_nnx(build)
    assemble = make_assembler(lambda rngs, example: make(rngs))

    def bind(params: PyTree, model_state: PyTree) -> Any:
        module, _ = assemble(params, model_state, None, None)
        module.eval()
        return module

    def init_cache(params: PyTree, model_state: PyTree, inputs: PyTree, length: int, /) -> PyTree:
        return bind(params, model_state).init_cache(inputs, length)

    def decode_step(params: PyTree, model_state: PyTree, cache: PyTree, inputs: PyTree, /) -> Any:
        return bind(params, model_state).decode_step(cache, inputs)

    def adapt(change: Callable[[nnx.Module], None]) -> Decoder:
        def make_changed(rngs: nnx.Rngs) -> Any:
            module = make(rngs)
            change(module)
            return module

        return make_decoder(make_changed, check, settings)

    sample = make_sample(init_cache, decode_step)
    return Decoder(
        network.init, network.apply, init_cache, decode_step, sample, settings, adapt=adapt
    )
