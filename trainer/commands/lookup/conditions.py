"""Conditions on the configurations of runs, such as `optimizer.name=adamw`."""

from __future__ import annotations

import contextlib
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.commands.lookup.stores import suggest
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
    """Select the runs whose configuration meets all conditions, such as `optimizer.name=adamw`.

    A condition is a setting's path, one of = != < <= > >=, and a value, as JSON or bare text. A run
    without the setting only meets `!=`. The operators < <= > >= compare two numbers or two texts: a
    run whose setting is of the other kind, or null, meets none of them.

    Raises:
        CommandError: a condition is malformed, no run has such a setting, or all runs' settings are
            of another kind than the value.
    """
    configs = {row.name: flatten_settings(row.config) for row in rows}
    tests = [_parse_condition(condition, configs) for condition in conditions]
    return [row for row in rows if all(test(configs[row.name]) for test in tests)]


def _parse_condition(
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
            f"no run's configuration has the setting '{escape_text(path)}'{suggest(path, known)}"
        )
    wanted: Any = bare
    with contextlib.suppress(ValueError):
        wanted = json.loads(bare)
    compare = COMPARE[sign]
    ordered = sign[0] in "<>"
    if ordered:
        _check_comparable(path, sign, wanted, configs)

    def holds(config: Mapping[str, Any]) -> bool:
        if path not in config:
            return sign == "!="
        value = config[path]
        same = _kind(value) == _kind(wanted)
        if ordered:
            return same and compare(value, wanted)
        spelled = bare in (format_setting(value), str(value))
        return compare(spelled or (same and value == wanted), True)

    return holds


def _check_comparable(
    path: str, sign: str, wanted: Any, configs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Check that the setting has the value's kind in at least one run."""
    settings = {run: config.get(path) for run, config in configs.items()}
    known = {run: value for run, value in settings.items() if value is not None}
    kind = _kind(wanted)
    if not known or (kind in ("number", "text") and kind in map(_kind, known.values())):
        return
    run, value = next(iter(known.items()))
    raise CommandError(
        f"{sign} compares two numbers, or two texts: '{escape_text(path)}' is {_describe(value)} "
        f"in run '{escape_text(run)}', and cannot be compared with {_describe(wanted)}"
    )


def _kind(value: Any) -> str:
    """Return the kind of a JSON value; two values of one kind can be compared.

    >>> [_kind(value) for value in (3, 0.5, "adamw", True, [1])]
    ['number', 'number', 'text', 'truth', '']
    """
    return {bool: "truth", int: "number", float: "number", str: "text"}.get(type(value), "")


def _describe(value: Any) -> str:
    """Describe a value by its kind and its spelling."""
    kind = _kind(value)
    spelled = f"'{escape_text(value)}'" if kind == "text" else escape_text(format_setting(value))
    return f"the {kind} {spelled}" if kind else spelled
