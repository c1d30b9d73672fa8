"""Conditions on the configurations of runs, such as `optimizer.name=adamw`."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.commands.lookup.stores import suggestion
from trainer.commands.terminal.calling import CommandError
from trainer.configuration.setting_rows import flatten_settings, format_setting
from trainer.host.escaping import escape_text
from trainer.runs.rows import RunRow

COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def filter_runs(rows: Sequence[RunRow], conditions: Sequence[str]) -> list[RunRow]:
    """Choose the runs whose configuration fulfils all conditions, such as `optimizer.name=adamw`.

    Args:
        rows: of the runs.
        conditions: a setting's path, one of = != < <= > >=, and a value, as JSON or bare text. A
            run without the setting fulfils none but `!=`. What is smaller is known of two numbers
            and of two texts: a run whose setting is of the other kind, or null, fulfils none of
            < <= > >=.

    Raises:
        Refused: a condition is none, or no run has such a setting, or those that there are, are
            all of another kind than the value.
    """
    configs = {row.name: flatten_settings(row.config) for row in rows}
    holds = [_condition(condition, configs) for condition in conditions]
    return [row for row in rows if all(hold(configs[row.name]) for hold in holds)]


def _condition(
    condition: str, configs: Mapping[str, Mapping[str, Any]]
) -> Callable[[Mapping[str, Any]], bool]:
    parts = re.fullmatch(r"([^=!<>]+)(!=|<=|>=|==|=|<|>)(.*)", condition, re.DOTALL)
    if parts is None:
        raise CommandError(
            f"a condition is SETTING=VALUE, or with != < <= > >=, quoted for the shell; got "
            f"'{escape_text(condition)}'"
        )
    path, sign, bare = (part.strip() for part in parts.groups())
    known = sorted({name for config in configs.values() for name in config})
    if path not in known:
        raise CommandError(
            f"no run's configuration has the setting '{escape_text(path)}'{suggestion(path, known)}"
        )
    wanted, compare = _read(bare), COMPARE[sign]
    ordered = sign[0] in "<>"
    if ordered:
        _comparable(path, sign, wanted, configs)

    def holds(config: Mapping[str, Any]) -> bool:
        if path not in config:
            return sign == "!="
        value = config[path]
        same = _kind(value) == _kind(wanted)
        if not ordered:
            return compare(
                bare in (format_setting(value), str(value)) or (same and value == wanted), True
            )
        return same and compare(value, wanted)

    return holds


def _comparable(
    path: str, sign: str, wanted: Any, configs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse to compare what is of two kinds in every run that has the setting."""
    found = {run: config.get(path) for run, config in configs.items()}
    there = {run: value for run, value in found.items() if value is not None}
    kind = _kind(wanted)
    if not there or (kind in ("number", "text") and kind in map(_kind, there.values())):
        return
    run, value = next(iter(there.items()))
    raise CommandError(
        f"{sign} compares two numbers, or two texts: '{escape_text(path)}' is {_told(value)} in "
        "run "
        f"'{escape_text(run)}', and cannot be compared with {_told(wanted)}"
    )


def _kind(value: Any) -> str:
    """Say of which kind a value of JSON is, for two of one kind can be compared.

    >>> [_kind(value) for value in (3, 0.5, "adamw", True, [1])]
    ['number', 'number', 'text', 'truth', '']
    """
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else ""


def _told(value: Any) -> str:
    """Name a value by its kind and as it is spelled."""
    kind = _kind(value)
    spelled = f"'{escape_text(value)}'" if kind == "text" else escape_text(format_setting(value))
    return f"the {kind} {spelled}" if kind else spelled


def _read(bare: str) -> Any:
    try:
        return json.loads(bare)
    except ValueError:
        return bare
