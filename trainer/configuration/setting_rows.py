"""Settings as rows: a configuration flattened, and each value formatted for display."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from trainer.host.redaction import redact_settings

PLAIN = (bool, int, float, list, tuple, dict, type(None))
"""Types that are formatted as JSON."""


def flatten_settings(config: Any) -> dict[str, Any]:
    """Flatten a nested configuration: path with dots to value, without passwords.

    It consists of mappings, sequences and dataclasses; None if there is none.

    >>> flatten_settings({"optimizer": {"name": "adamw", "betas": [0.9, 0.99]},
    ...     "hooks": [{"n": 5}, "x"]})
    {'optimizer.name': 'adamw', 'optimizer.betas': [0.9, 0.99], 'hooks.0.n': 5, 'hooks.1': 'x'}
    """
    rows: dict[str, Any] = {}

    def add(path: str, value: Any) -> None:
        if isinstance(value, list | tuple) and any(_nests(part) for part in value):
            value = dict(enumerate(value))
        if _is_dataclass(value):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                add(f"{path}.{key}" if path else str(key), inner)
        elif path:
            rows[path] = redact_settings(value, path)

    add("", config)
    return rows


def format_setting(value: Any) -> str:
    """Format a setting: text as it is, the rest as JSON.

    >>> format_setting("adamw"), format_setting([0.9, 0.99]), format_setting(None)
    ('adamw', '[0.9, 0.99]', 'null')
    """
    if not isinstance(value, PLAIN):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def format_settings(config: Any) -> dict[str, str]:
    """Format each setting of a configuration, path to text.

    >>> format_settings({"optimizer": {"name": "adamw", "clip": None}, "shape": (8, 8)})
    {'optimizer.name': 'adamw', 'optimizer.clip': 'null', 'shape': '[8, 8]'}
    """
    return {path: format_setting(value) for path, value in flatten_settings(config).items()}


def _nests(part: Any) -> bool:
    return isinstance(part, Mapping | list | tuple) or _is_dataclass(part)


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
