"""Checks of what generates text: a decoder and its tokenizer."""

from __future__ import annotations

from typing import Any

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
