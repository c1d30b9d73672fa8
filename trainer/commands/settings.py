"""Configurations of runs: as rows, and conditions on them."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.commands.calling import Refused
from trainer.commands.stores import suggestion
from trainer.runs.rows import RunRow
from trainer.runs.text import shown

COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def settings(config: Any) -> dict[str, Any]:
    """Lay a nested configuration out as rows: its path, with dots, to the value.

    >>> settings({"optimizer": {"name": "adamw", "betas": [0.9, 0.99]}, "hooks": [{"n": 5}, "x"]})
    {'optimizer.name': 'adamw', 'optimizer.betas': [0.9, 0.99], 'hooks.0.n': 5, 'hooks.1': 'x'}
    """
    rows: dict[str, Any] = {}

    def add(path: str, value: Any) -> None:
        if isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                add(f"{path}.{key}" if path else str(key), inner)
        elif path:
            rows[path] = value

    add("", config)
    return rows


def written(value: Any) -> str:
    """Write a setting as one says it: texts bare, the rest as JSON.

    >>> written("adamw"), written([0.9, 0.99]), written(None)
    ('adamw', '[0.9, 0.99]', 'null')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def selected(rows: Sequence[RunRow], conditions: Sequence[str]) -> list[RunRow]:
    """Choose the runs whose configuration fulfils all conditions, such as `optimizer.name=adamw`.

    Args:
        rows: of the runs.
        conditions: a setting's path, one of = != < <= > >=, and a value, as JSON or bare text. A
            run without the setting fulfils none but `!=`.

    Raises:
        Refused: a condition is none, or no run has such a setting.
    """
    configs = [settings(row.config) for row in rows]
    for condition in conditions:
        holds = _condition(condition, sorted({path for config in configs for path in config}))
        kept = [number for number, config in enumerate(configs) if holds(config)]
        rows, configs = [rows[n] for n in kept], [configs[n] for n in kept]
        if not rows:
            break
    return list(rows)


def _condition(condition: str, known: list[str]) -> Callable[[Mapping[str, Any]], bool]:
    parts = re.fullmatch(r"([^=!<>]+)(!=|<=|>=|=|<|>)(.*)", condition, re.DOTALL)
    if parts is None:
        raise Refused(
            f"a condition is SETTING=VALUE, or with != < <= > >=, quoted for the shell; got "
            f"'{shown(condition)}'"
        )
    path, sign, bare = parts.groups()
    if path not in known:
        raise Refused(
            f"no run's configuration has the setting '{shown(path)}'; {suggestion(path, known)}"
        )
    compare = COMPARE[sign]

    def holds(config: Mapping[str, Any]) -> bool:
        if path not in config:
            return sign == "!="
        value = config[path]
        if sign in ("=", "!="):
            return compare(bare in (written(value), str(value)) or value == _read(bare), True)
        wanted = _read(bare)
        number = (int, float)
        if isinstance(value, number) and isinstance(wanted, number):
            return compare(value, wanted)
        return isinstance(value, str) and compare(value, bare)

    return holds


def _read(bare: str) -> Any:
    try:
        return json.loads(bare)
    except ValueError:
        return bare
