"""Checks of what reads and generates text: a decoder, and the texts that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.arguments import check_range, describe_value
from trainer.host.exception_notes import annotate_errors


def require_sampler(network: Any, who: str) -> None:
    """Raise TypeError unless a network samples text."""
    if not callable(getattr(network, "sample", None)):
        raise TypeError(
            f"{who} samples answers from a decoder, such as models.transformer returns; got "
            f"{describe_value(network)} without a function sample"
        )


def check_context(network: Any, tokens: int, remedy: str) -> None:
    """Raise ValueError if so many tokens of a text exceed the context that its network states.

    >>> from types import SimpleNamespace
    >>> network = SimpleNamespace(settings=SimpleNamespace(context=4))
    >>> check_context(network, 5, "cut it")
    Traceback (most recent call last):
    ValueError: a text of 5 tokens exceeds the network's context of 4: cut it
    """
    context = getattr(getattr(network, "settings", None), "context", None)
    if context is not None and tokens > context:
        raise ValueError(
            f"a text of {tokens} tokens exceeds the network's context of {context}: {remedy}"
        )


def check_positions(network: Any, inputs: Any) -> None:
    """Raise ValueError if a text is longer than the context that its network states.

    Only texts with `positions`, int `[batch, time]`, are checked: a network checks the shape of
    others itself.
    """
    if not isinstance(inputs, Mapping) or "positions" not in inputs:
        return
    longest = int(np.asarray(inputs["positions"]).max(initial=-1)) + 1
    check_context(
        network,
        longest,
        "cut texts to at most so many, as the length of data.chat does, or build the network for "
        "more",
    )


def check_prompts(
    network: Any,
    params: Any,
    model_state: Any,
    prompts: Mapping[str, Any],
    length: int,
    who: str,
) -> int:
    """Check that a network reads prompts and what it generates after them.

    Args:
        network: a decoder.
        params, model_state: its variables; only shapes and dtypes are read.
        prompts: `tokens`, left-padded to the longest, int `[prompt, time]`, and their `lengths`,
            int `[prompt]`; on the host.
        length: tokens that are generated at most.
        who: what generates, for messages.

    Returns:
        The size of its vocabulary.

    Raises:
        ValueError: the longest prompt and what follows it exceed the context, a token is not in the
            vocabulary, or the network does not return logits.
    """
    longest = int(np.argmax(prompts["lengths"]))
    read = int(prompts["lengths"][longest])
    whole = read + length
    remedy = (
        f"{who} continues prompt {longest}, the longest, of {read} tokens, with up to {length}; "
        "leave out long prompts, or take a smaller length"
    )
    check_context(network, whole, remedy)

    def apply(params: Any, model_state: Any) -> Any:
        zeros = jnp.zeros((1, whole), jnp.int32)
        inputs = {"tokens": zeros, "segments": zeros, "positions": zeros}
        return network.apply(params, model_state, inputs, key=None, train=False)[0]

    with annotate_errors(remedy):
        logits = jax.eval_shape(apply, params, model_state)
    shape: tuple[int, ...] = getattr(logits, "shape", ())
    if len(shape) != 3:
        raise ValueError(
            f"{who} needs a network that returns logits [batch, time, vocabulary]; got "
            f"{describe_value(logits)}"
        )
    check_range(f"{who}: tokens of prompts", np.asarray(prompts["tokens"]), shape[2], "tokens")
    return shape[2]
