"""A decoder-only transformer: a language model."""

from __future__ import annotations

from flax import nnx

from models.argument_checks import require_size
from models.language.architecture import Architecture
from models.language.blocks import TransformerConfig
from models.language.decoding import Decoder, make_decoder
from models.language.text_decoder import TextDecoder
from models.language.text_inputs import parse_text
from models.language.text_settings import TextSettings
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
    architecture: Architecture | None = None,
) -> Decoder:
    """Build a transformer that predicts the next token of a text, and generates text.

    Each block is causal self-attention with rotary positions and a dense branch with a GELU; each
    normalises its input and adds its result to it. No layer has a bias. Everything is computed in
    the dtype of the parameters, except norms, softmax and logits, which are float32. What other
    families of transformers do otherwise is set by an `Architecture`.

    Args:
        vocabulary: number of tokens in the vocabulary.
        context: number of tokens of the longest text; a limit without a cost.
        layers: number of blocks.
        heads: attention heads of each block; `width / heads` must be whole and even, unless the
            architecture has a `head_size`.
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
        architecture: what differs between families of transformers; None for its defaults.

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
        ValueError: a setting is out of range, `heads` does not divide `width` into even sizes, or
            `kv_heads` does not divide `heads`; on a call, the inputs have another form, or are more
            tokens than `context`.

    Source: Vaswani et al., "Attention Is All You Need" (2017), with the changes that
    `TransformerBlock` and `apply_rotary` name.

    >>> import jax
    >>> import jax.numpy as jnp
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
    architecture = Architecture() if architecture is None else architecture
    shape = TransformerConfig(
        "transformer", layers, heads, width, hidden, dropout, remat, scan, architecture
    )

    def make(rngs: nnx.Rngs) -> TextDecoder:
        return TextDecoder(vocabulary, context, shape, tied=tied, rngs=rngs)

    def check(inputs: PyTree) -> None:
        parse_text("transformer", inputs, context)

    return make_decoder(
        make,
        check,
        TextSettings(vocabulary, context, layers, heads, width, hidden, tied, architecture),
    )
