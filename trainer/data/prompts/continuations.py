"""The text of tokens that continue a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def decode_continuation(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """Decode the tokens that follow a prompt, with the spaces that they have after it.

    Tokenizers of the kind of Llama's drop a space where a text begins.

    Args:
        tokenizer: with `decode(ids)`.
        prompt: the tokens before.
        tokens: to decode.

    >>> from types import SimpleNamespace
    >>> words = SimpleNamespace(decode=lambda ids: " ".join("to be or not".split()[n] for n in ids))
    >>> decode_continuation(words, [0, 1], [2, 3])
    ' or not'
    """
    whole, before = str(tokenizer.decode([*prompt, *tokens])), str(tokenizer.decode([*prompt]))
    if whole.startswith(before):
        return whole[len(before) :]
    return str(tokenizer.decode([*tokens]))
