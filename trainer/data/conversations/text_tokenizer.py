"""Tokenizers of the library `tokenizers`, with the files that lie beside one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trainer.checks.arguments import describe_value
from trainer.checks.paths import to_absolute_path
from trainer.host.extras import require_extra
from trainer.host.safe_open import read_bytes

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"

MOST_BYTES = 2**28
"""The most bytes of a file that is read here; tokenizers have up to some 40 million."""


class TextTokenizer(NamedTuple):
    """A tokenizer, and what the files beside it say."""

    name: str
    """What messages call it."""
    encoder: Any
    """A `tokenizers.Tokenizer` that neither adds special tokens, pads nor truncates."""
    before: tuple[int, ...]
    """The special tokens that begin a text, such as `<s>`."""
    eos: int | None
    """The token that ends a text; None if the files name none."""
    vocabulary: int
    """One more than the largest token."""
    special_tokens: Mapping[str, str] | None
    """The special tokens by name, `bos_token`; None if there is no `tokenizer_config.json`."""
    template: str | None
    """The chat template; None if there is none."""


def open_tokenizer(tokenizer: Any, who: str) -> TextTokenizer:
    """Open a tokenizer, and read `tokenizer_config.json` and the chat template beside its file.

    Args:
        tokenizer: a `tokenizers.Tokenizer`, the path of a `tokenizer.json`, or of its directory.
        who: what needs it, for messages.

    Raises:
        ImportError: `tokenizers` is not installed.
        OSError: a file is missing or cannot be read.
        TypeError: it is something else.
        ValueError: a file is damaged, or names an end of text that is no token.

    >>> import tokenizers
    >>> words = tokenizers.models.WordLevel({"to": 0, "be": 1}, unk_token="to")
    >>> opened = open_tokenizer(tokenizers.Tokenizer(words), "data.chat")
    >>> opened.vocabulary, opened.eos, opened.encoder.encode("be").ids
    (2, None, [1])
    """
    with require_extra("language", who, "tokenizers"):
        import tokenizers
    config: dict[str, Any] | None = None
    template = None
    if isinstance(tokenizer, tokenizers.Tokenizer):
        name, content = "the tokenizer", json.loads(tokenizer.to_str())
    elif isinstance(tokenizer, str | os.PathLike):
        file = _find_file(to_absolute_path(tokenizer, who), who)
        name, content = str(file), _read_json(file)
        if (beside := file.parent / CONFIG).exists():
            config = _read_json(beside)
        template = _read_template(file.parent, config)
    else:
        inner = (
            ": pass tokenizer.backend_tokenizer" if hasattr(tokenizer, "backend_tokenizer") else ""
        )
        raise TypeError(
            f"{who} takes a tokenizers.Tokenizer, a {TOKENIZER}, or a directory that has one; got "
            f"{describe_value(tokenizer)}{inner}"
        )
    special_tokens = None if config is None else _list_special_tokens(config)
    whole, encoder = _build(tokenizers, content, name)
    eos = None
    if special_tokens and (text := special_tokens.get("eos_token")):
        eos = encoder.token_to_id(text)
        if eos is None:
            raise ValueError(f"{CONFIG} names eos_token {text!r}, which {name} does not know")
    return TextTokenizer(
        name=name,
        encoder=encoder,
        before=_find_beginning(whole),
        eos=eos,
        vocabulary=max(encoder.get_vocab(with_added_tokens=True).values(), default=-1) + 1,
        special_tokens=special_tokens,
        template=template,
    )


def _find_file(path: Path, who: str) -> Path:
    if not path.is_dir():
        return path
    if (path / TOKENIZER).exists():
        return path / TOKENIZER
    raise FileNotFoundError(
        f"{who} needs a {TOKENIZER} in {path}; there is none: transformers writes one by "
        f"AutoTokenizer.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(file, follow=True, most=MOST_BYTES))
    except ValueError as error:
        raise ValueError(f"{file} must be JSON; it is not: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must be a JSON object; got {describe_value(content)}")
    return content


def _read_template(folder: Path, config: Mapping[str, Any] | None) -> str | None:
    """Return the chat template of a directory: its own file counts before the configuration."""
    if (file := folder / TEMPLATE).exists():
        return read_bytes(file, follow=True).decode()
    found = (config or {}).get("chat_template")
    if isinstance(found, list):  # several by name
        by_name = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = by_name.get("default")
    if found is not None and not isinstance(found, str):
        raise ValueError(
            f"chat_template of {folder / CONFIG} must be a text; got {describe_value(found)}"
        )
    return found


def _list_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens of a configuration by name; each is a text, or has `content`."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _build(tokenizers: Any, content: dict[str, Any], name: str) -> tuple[Any, Any]:
    """Return the tokenizer as it is, and one without padding, truncation and special tokens.

    A post-processor may also cut spaces off the offsets of tokens, and there is no way to ask it
    not to.
    """
    plain = {**content, "padding": None, "truncation": None, "post_processor": None}
    try:
        return tuple(tokenizers.Tokenizer.from_str(json.dumps(one)) for one in (content, plain))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(
            f"{name} must be a tokenizer of the library tokenizers: {error}"
        ) from error


def _find_beginning(whole: Any) -> tuple[int, ...]:
    """Return the special tokens that a tokenizer puts before a text."""
    encoded = whole.encode("a")
    count = 0
    while count < len(encoded.ids) and encoded.special_tokens_mask[count]:
        count += 1
    return tuple(encoded.ids[:count])
