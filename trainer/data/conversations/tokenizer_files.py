"""The files of a tokenizer, as they come with weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trainer.checks.arguments import describe_value
from trainer.checks.paths import to_absolute_path
from trainer.host.safe_open import read_bytes

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
GENERATION = "generation_config.json"

MOST_BYTES = 2**28
"""The most bytes of a file that is read here; tokenizers have up to some 40 million."""


class TokenizerFiles(NamedTuple):
    """What the files say."""

    name: str
    """What messages call the tokenizer."""
    content: dict[str, Any]
    """Of `tokenizer.json`."""
    special_tokens: dict[str, str] | None
    """The special tokens by name, `bos_token`; None if there is no `tokenizer_config.json`."""
    template: str | None
    """The chat template; None if there is none."""
    ends: tuple[int, ...]
    """The tokens that end a text by `generation_config.json`."""


def read_tokenizer_files(tokenizer: str | os.PathLike[str], who: str) -> TokenizerFiles:
    """Read `tokenizer.json`, and what lies beside it.

    Args:
        tokenizer: the path of a `tokenizer.json`, or of its directory.
        who: what needs it, for messages.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is damaged.
    """
    file = _find_file(to_absolute_path(tokenizer, who), who)
    folder, content = file.parent, _read_json(file)
    config = _read_json(folder / CONFIG) if (folder / CONFIG).exists() else None
    return TokenizerFiles(
        name=str(file),
        content=content,
        special_tokens=None if config is None else _list_special_tokens(config),
        template=_read_template(folder, config),
        ends=_read_ends(folder / GENERATION),
    )


def _find_file(path: Path, who: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{who} needs a {TOKENIZER}, or a directory that has one; there is no {path}"
        )
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


def _list_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens of a configuration by name; each is a text, or has `content`."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


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


def _read_ends(file: Path) -> tuple[int, ...]:
    """Return the tokens that end a text by the file of how to generate, which may be missing."""
    found = _read_json(file).get("eos_token_id") if file.exists() else None
    ends = [] if found is None else found if isinstance(found, list) else [found]
    if any(type(one) is not int for one in ends):
        raise ValueError(f"eos_token_id of {file} must be a token, or a list of such; got {found}")
    return tuple(ends)
