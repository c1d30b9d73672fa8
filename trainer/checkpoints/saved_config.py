"""A run's configuration as saved in checkpoints: plain JSON, compared key by key."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from trainer.host.escaping import escape_text
from trainer.host.redaction import redact_settings

UNCOMPARED_KEYS = ("epochs", "run")
"""Keys of a configuration that may differ between a checkpoint and the run that restores it."""

_DEEPEST = 100
"""The deepest nesting; a deeper value contains itself, or is a mistake."""


def normalize_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as it would be read back from JSON.

    Tuples become lists, paths strings, numpy's scalars Python's, and numbers that are not finite
    the words `NaN`, `Infinity` and `-Infinity`. Passwords become `***` (`trainer.host.redaction`).

    >>> normalize_config({"widths": (8, 8), "clip": float("inf"), "rate": np.float32(0.5)})
    {'widths': [8, 8], 'clip': 'Infinity', 'rate': 0.5}

    Raises:
        TypeError: JSON has no such value or key; the message has its path.
        ValueError: two keys of a mapping have the same text, or it is nested too deeply.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping of settings; got {type(config).__name__}")
    return dict(redact_settings(_mapping(config, ())))


def _mapping(config: Mapping[Any, Any], path: tuple[str, ...]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in config.items():
        if not isinstance(key, str | int | float | bool | None):
            raise TypeError(
                f"config is kept as JSON, whose keys are texts; got the key {key!r:.100} at "
                f"{_at(path)}"
            )
        name = key if isinstance(key, str) else json.dumps(key)
        if name in plain:
            raise ValueError(f"config has two keys {name!r} at {_at(path)}, a text and a number")
        plain[str(name)] = _value(value, (*path, str(name)))
    return plain


def _value(value: Any, path: tuple[str, ...]) -> Any:
    if len(path) > _DEEPEST:
        raise ValueError(
            f"config is nested more than {_DEEPEST} levels deep, or contains itself: at "
            f"{_at(path[:4])}/..."
        )
    if isinstance(value, np.generic):
        value = value.item()  # still one of numpy's, or bytes, for a long double or a structure
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if value is None or isinstance(value, bool | int | float | str):
        return json.loads(json.dumps(value))  # a member of an enumeration becomes its plain value
    if isinstance(value, Mapping):
        return _mapping(value, path)
    if isinstance(value, list | tuple):
        return [_value(part, (*path, str(place))) for place, part in enumerate(value)]
    if isinstance(value, os.PathLike) and isinstance(text := os.fspath(value), str):
        return text
    raise TypeError(
        f"config is kept as JSON: numbers, texts, None, lists and mappings of them; {_at(path)} is "
        f"{type(value).__module__}.{type(value).__qualname__}: give it as one of these, such as "
        "array.tolist() or str(value)"
    )


def _at(path: tuple[str, ...]) -> str:
    return repr("/".join(path)) if path else "its top"


def config_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the keys of a configuration whose values differ, but for `epochs` and `run`.

    >>> config_differences({"model": {"width": 8}, "epochs": 2}, {"model": {"width": 9}})
    ['model/width: saved 8, now 9']
    """

    def flat(value: Any, path: str = "") -> dict[str, str]:
        if isinstance(value, dict) and value:
            prefix = f"{path}/" if path else ""
            pairs = (flat(inner, f"{prefix}{key}").items() for key, inner in value.items())
            return {path: text for items in pairs for path, text in items}
        return {path: json.dumps(value)}

    before, after = (
        flat({key: plain[key] for key in plain if key not in UNCOMPARED_KEYS})
        for plain in map(normalize_config, (saved, now))
    )
    return [
        f"{escape_text(key) or 'config'}: saved {before.get(key, 'nothing')}, "
        f"now {after.get(key, 'nothing')}"
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    ]
