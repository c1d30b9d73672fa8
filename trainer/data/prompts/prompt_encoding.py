"""Prompts as tokens: texts, messages that a chat template writes, or tokens themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trainer.checks.arguments import describe_value
from trainer.data.conversations.opening_tokenizers import read_tokenizer
from trainer.data.conversations.text_tokenizer import TextTokenizer
from trainer.host.exception_notes import annotate_errors


class Prompt(NamedTuple):
    """What a model continues."""

    text: str
    """As it is shown; of messages what the template writes."""
    tokens: list[int]


def prepare_tokenizer(tokenizer: Any, who: str) -> Any:
    """Return what encodes prompts and decodes answers.

    Args:
        tokenizer: what `data.open_tokenizer` takes or returns, or any object with `encode(text)`,
            which returns token ids or a record with `ids`, and `decode(ids)`.
        who: what needs it, for messages.

    Raises:
        TypeError: it is something else.
        ImportError, OSError, ValueError: as `data.open_tokenizer`.

    >>> prepare_tokenizer(3, "show_samples")
    Traceback (most recent call last):
    TypeError: show_samples needs a tokenizer: a directory, what data.open_tokenizer returns, or ...
    """
    library = type(tokenizer).__module__.partition(".")[0]
    if isinstance(tokenizer, TextTokenizer | str | os.PathLike) or library == "tokenizers":
        return read_tokenizer(tokenizer, who)
    methods = ("encode", "decode")
    if missing := [name for name in methods if not callable(getattr(tokenizer, name, None))]:
        raise TypeError(
            f"{who} needs a tokenizer: a directory, what data.open_tokenizer returns, or an object "
            f"with encode(text) and decode(ids); {describe_value(tokenizer)} has no {missing[0]}"
        )
    return tokenizer


def encode_prompt(
    tokenizer: Any, prompt: Any, who: str, variables: Mapping[str, Any] | None = None
) -> Prompt:
    """Tokenize a prompt.

    Args:
        tokenizer: from `prepare_tokenizer`.
        prompt: a text, token ids, or a list of messages `{"role": ..., "content": ...}`, which the
            chat template of an opened tokenizer writes, up to the beginning of an answer.
        who: what needs it, for messages.
        variables: what else the template reads, such as `tools`.

    Raises:
        TypeError, ValueError: it is no prompt, has no token, or the template fails.

    >>> from types import SimpleNamespace
    >>> letters = SimpleNamespace(encode=lambda text: [ord(x) for x in text])
    >>> encode_prompt(letters, "bc", "grpo")
    Prompt(text='bc', tokens=[98, 99])
    """
    required = f"{who}: a prompt is a text, a list of messages, or token ids"
    if isinstance(prompt, str):
        text, tokens = prompt, _read_ids(tokenizer.encode(prompt))
    elif not isinstance(prompt, Sequence | np.ndarray):
        raise TypeError(f"{required}; got {describe_value(prompt)}")
    elif any(isinstance(one, Mapping) for one in prompt):
        if not isinstance(tokenizer, TextTokenizer):
            raise TypeError(
                f"{who}: a prompt of messages needs a tokenizer with a chat template; got "
                f"{describe_value(tokenizer)}: pass the directory of the weights, or what "
                "data.open_tokenizer returns"
            )
        messages, given = list(prompt), dict(variables or {})
        text = tokenizer.render_prompt(messages, **given)
        tokens = tokenizer.encode(messages, **given)
    elif all(isinstance(one, int | np.integer) for one in prompt):
        tokens = _read_ids(prompt)
        text = str(tokenizer.decode(tokens)) if tokens else ""
    else:
        raise TypeError(f"{required}; got {describe_value(prompt)} of others")
    if not tokens:
        raise ValueError(f"{who}: a prompt needs at least one token; got {prompt!r:.100}")
    return Prompt(text, tokens)


def encode_prompts(tokenizer: Any, prompts: Any, who: str) -> list[Prompt]:
    """Tokenize prompts, for which see `encode_prompt`.

    Raises:
        TypeError, ValueError: one of them is no prompt, or there is none.
    """
    form = '["2+3=", ...] or [[{"role": "user", "content": "2+3?"}], ...]'
    require_prompts(prompts, who, form)
    encoded = []
    for number, prompt in enumerate(prompts):
        with annotate_errors(f"in prompt {number}"):
            encoded.append(encode_prompt(tokenizer, prompt, who))
    return encoded


def require_prompts(prompts: Any, who: str, form: str, where: str = "") -> None:
    """Raise TypeError or ValueError unless these are prompts, and not the messages of one.

    Args:
        prompts: what was given.
        who: what needs them, for messages.
        form: how they are written, for messages.
        where: which of several, for messages.
    """
    listed = isinstance(prompts, Sequence) and not isinstance(prompts, str)
    if listed and prompts and all(isinstance(x, Mapping) and "role" in x for x in prompts):
        raise TypeError(
            f"{who} takes prompts{where} as {form}; got the messages of one: put them in a list"
        )
    if not listed:
        raise TypeError(f"{who} takes prompts{where} as {form}; got {describe_value(prompts)}")
    if not prompts:
        raise ValueError(f"{who} needs at least one prompt{where}; got none")


def _read_ids(encoded: Any) -> list[int]:
    """Return tokens of what a tokenizer returned, or a user gave."""
    return [int(token) for token in getattr(encoded, "ids", encoded)]
