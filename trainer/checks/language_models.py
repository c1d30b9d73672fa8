"""Checks of what reads and generates text: a decoder, its tokenizer, and its texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trainer.checks.arguments import describe_value


def require_sampler(network: Any, who: str) -> None:
    """Raise TypeError unless a network samples text."""
    if not callable(getattr(network, "sample", None)):
        raise TypeError(
            f"{who} samples answers from a decoder, such as models.transformer returns; got "
            f"{describe_value(network)} without a function sample"
        )


def require_tokenizer(tokenizer: Any, who: str) -> None:
    """Raise TypeError unless a tokenizer encodes and decodes.

    >>> require_tokenizer("words.json", "show_samples")
    Traceback (most recent call last):
    TypeError: show_samples needs a tokenizer with encode(text) and decode(ids), ...
    """
    methods = ("encode", "decode")
    if missing := [name for name in methods if not callable(getattr(tokenizer, name, None))]:
        raise TypeError(
            f"{who} needs a tokenizer with encode(text) and decode(ids), such as "
            f"tokenizers.Tokenizer; {describe_value(tokenizer)} has no {missing[0]}"
        )


def check_positions(network: Any, inputs: Any) -> None:
    """Raise ValueError if a text is longer than the context that its network states.

    Only texts with `positions`, int `[batch, time]`, are checked: a network checks the shape of
    others itself.

    >>> from types import SimpleNamespace
    >>> network = SimpleNamespace(settings=SimpleNamespace(context=4))
    >>> check_positions(network, {"positions": np.array([[0, 1, 2, 3, 4, 0]])})
    Traceback (most recent call last):
    ValueError: a text of 5 tokens exceeds the network's context of 4: cut texts to at most so ...
    """
    context = getattr(getattr(network, "settings", None), "context", None)
    if context is None or not isinstance(inputs, Mapping) or "positions" not in inputs:
        return
    longest = int(np.asarray(inputs["positions"]).max(initial=-1)) + 1
    if longest > context:
        raise ValueError(
            f"a text of {longest} tokens exceeds the network's context of {context}: cut texts to "
            "at most so many, as the length of data.chat does, or build the network for more"
        )
