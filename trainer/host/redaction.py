"""Remove passwords from settings, commands and messages before they are shown or saved."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
"""Replaces a secret."""

_SECRET = {"password", "passwords", "passwd", "passphrase", "pwd", "secret", "secrets"}
_SECRET |= {"credential", "credentials", "apikey"}
_KEYS = {"api", "access", "private", "secret", "account", "signing", "ssh"}
_TOKENS = {"api", "access", "auth", "bearer", "refresh", "session", "personal", "bot", "oauth"}
_TOKENS |= {"jwt", "user", "admin", "service", "db", "login", "id", "hub", "hf", "huggingface"}
_TOKENS |= {"wandb", "mlflow", "github", "gitlab", "slack", "telegram", "openai", "anthropic"}
"""Words before `key` and `token` that make them secret: a token of a text is not."""

_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_WHOLE = re.compile(r"(\w[\w+.-]*://[^:/@]*):.*@", re.DOTALL)
_WITHIN = re.compile(r"(://[^:/@\s]*):[^\s]*@")
_BARE = re.compile(r"(https?://)[^:/@\s]+@")
_PARAMETER = re.compile(r"(password=|[?&](?:\w*(?:secret|token|key|signature|passwd))=)[^&\s]*")


def redact_text(text: str) -> str:
    """Return a URL, or text with URLs, without passwords and tokens.

    >>> redact_text("postgresql://me:secret@host:5432/runs?sslmode=require&password=too")
    'postgresql://me:***@host:5432/runs?sslmode=require&password=***'
    >>> redact_text("cloned from https://ghp_0123@github.com/me/it")
    'cloned from https://***@github.com/me/it'
    """
    if "://" not in text and "password=" not in text:  # nearly all
        return text
    text = _WHOLE.sub(r"\1:***@", text, count=1) if _WHOLE.match(text) else text
    text = _BARE.sub(r"\1***@", _WITHIN.sub(r"\1:***@", text))
    return _PARAMETER.sub(r"\1***", text)


def is_secret(name: str) -> bool:
    """Return whether a setting of this name holds a secret; paths have dots.

    >>> [is_secret(name) for name in ("db.password", "hf_token", "apiKey", "credentials.user")]
    [True, True, True, True]
    >>> [is_secret(name) for name in ("pad_token", "tokens", "key", "max_tokens", "store")]
    [False, False, False, False, False]
    """
    words = [word.lower() for word in _WORD.findall(name)]
    pairs = zip(["", *words], words, strict=False)
    return words == ["token"] or any(
        word in _SECRET
        or (word == "key" and before in _KEYS)
        or (word == "token" and before in _TOKENS)
        for before, word in pairs
    )


def redact_settings(value: Any, name: str = "") -> Any:
    """Return settings of the same structure with secret texts and numbers replaced.

    A text without a password stays unchanged, so that settings can still be compared; two that
    differ in their password alone become equal. `value` is plain data, nested to any depth, and
    `name` that of its setting.

    >>> redact_settings({"store": "postgresql://me:pw@host/runs", "hub": {"token": "hf_1"}, "n": 3})
    {'store': 'postgresql://me:***@host/runs', 'hub': {'token': '***'}, 'n': 3}
    """
    if isinstance(value, Mapping):
        return {
            key: redact_settings(inner, f"{name}.{key}" if is_secret(name) else str(key))
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        parts = [redact_settings(part, name) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    if value is None or isinstance(value, bool) or value == "":
        return value
    if isinstance(value, str | bytes | int | float) and is_secret(name):
        return HIDDEN
    return redact_text(value) if isinstance(value, str) else value


def redact_command(words: Sequence[str]) -> list[str]:
    """Return a command line without passwords in URLs and values of secret flags.

    >>> redact_command(["train.py", "--hub-token", "hf_1", "--db.password=pw", "--rate", "0.1"])
    ['train.py', '--hub-token', '***', '--db.password=***', '--rate', '0.1']
    """
    shown: list[str] = []
    hide = False
    for word in words:
        name, given, value = word.partition("=")
        option = name.startswith("-")
        if hide and not option:
            shown.append(HIDDEN)
        elif given and value and re.fullmatch(r"-*[\w.-]+", name) and is_secret(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(redact_text(word))
        hide = option and not given and is_secret(name)
    return shown
