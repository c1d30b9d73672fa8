"""The tokens that end an answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

log = logging.getLogger("entracte")


def choose_stop(stop: Sequence[int] | None, tokenizer: Any, who: str) -> tuple[int, ...]:
    """Return the tokens that end an answer: those that the user gives, or the tokenizer names.

    A notice says so if there are none.

    Args:
        stop: what the user gives; None: what the tokenizer names as its `stop`.
        tokenizer: what `data.open_tokenizer` returns; others name no tokens.
        who: what needs them, for messages.

    >>> from types import SimpleNamespace
    >>> choose_stop(None, SimpleNamespace(stop=(2, 5)), "grpo"), choose_stop([3], None, "grpo")
    ((2, 5), (3,))
    """
    if stop is not None:
        return tuple(map(int, stop))
    named = tuple(getattr(tokenizer, "stop", ()))
    if not named:
        log.info(
            "%s: the tokenizer names no token that ends an answer, so each is as long as it may "
            "be: pass stop=, or the directory of the weights as the tokenizer; stop=() is silent",
            who,
        )
    return named
