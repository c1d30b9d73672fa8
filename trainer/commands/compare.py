"""The command `compare`: in what runs differ, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.text import Text

from trainer.checks.modes import Mode, infer_mode
from trainer.commands.lookup.scores import (
    check_metric_names,
    choose_key_metrics,
    find_best,
    summarize_curve,
)
from trainer.commands.lookup.stores import RunNames, open_run
from trainer.commands.terminal.calling import CommandError
from trainer.commands.terminal.output import make_console, print_json, state_text
from trainer.commands.terminal.sections import BEST
from trainer.configuration.setting_rows import flatten_settings, format_setting
from trainer.host.amounts import format_duration, format_progress
from trainer.host.escaping import escape_text
from trainer.host.rich_tables import Column, make_table, safe_text
from trainer.runs.metric_curves import read_curves
from trainer.runs.panels import Curve, finite_values
from trainer.runs.rows import RunRow
from trainer.runs.sparklines import format_number

MARK = " *"
"""Behind what is the best of all runs."""


class _Absent:
    """Stands where a run has no such setting."""

    def __repr__(self) -> str:
        return "<absent>"


ABSENT = _Absent()


class Compared(NamedTuple):
    """A run, and what was measured of it."""

    row: RunRow
    state: str
    curves: dict[str, Curve]


def compare(
    runs: RunNames,
    /,
    *,
    store: str | None = None,
    metrics: tuple[str, ...] = (),
    mode: Mode | None = None,
    json: bool = False,
) -> int:
    """Compare runs: in which settings and versions they differ, and what each reached.

    Args:
        runs: two or more names in the store, or paths of runs' directories.
        store: directory of the runs, file *.sqlite, or postgresql://USER@HOST/DATABASE; else
            $ENTRACTE_STORE, else runs/.
        metrics: those to compare; all but times and gradients if none are given.
        mode: which of two values of them is better, min or max, where their names do not tell.
        json: print JSON.
    """
    read = [_read(run, store) for run in runs]
    compared = [*{(one.row.directory, one.row.name): one for one in read}.values()]
    if len(compared) < 2:
        these = f"; these are all {escape_text(compared[0].row.name)}" if len(read) > 1 else ""
        raise CommandError(
            f"give two runs or more, before --metrics: python -m trainer compare RUN RUN{these}"
        )
    named = [one.row.name for one in compared]
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise CommandError(
            f"two of these runs are named {escape_text(twice)}, so that no table could tell them "
            "apart"
        )
    recorded = {name for one in compared for name in one.curves}
    names = (
        check_metric_names(metrics, recorded)
        if metrics
        else choose_key_metrics(recorded, len(recorded))
    )
    modes = {name: infer_mode(name) or mode for name in names}
    config = _differing([flatten_settings(one.row.config) for one in compared])
    environment = _differing([one.row.environment for one in compared])
    if json:
        print_json(_data(compared, config, environment, modes))
        return 0
    console = make_console()
    tables = {
        "Runs": _facts(compared),
        "Configuration": {name: [_cell(v) for v in row] for name, row in config.items()},
        "Environment": {name: [_cell(v) for v in row] for name, row in environment.items()},
        "Results": _results(compared, modes),
    }
    for title, rows in tables.items():
        console.print(safe_text(title, "bold underline"))
        columns = [Column("", [safe_text(name) for name in rows], priority=9, fold_width=20)]
        for place, one in enumerate(compared):
            cells = [row[place] for row in rows.values()]
            columns.append(Column(one.row.name, cells, "left", 9, 14))
        console.print(
            make_table(columns, console.width) if rows else safe_text("no difference", "dim")
        )
        console.print()
    if any(cell.plain.endswith(MARK) for row in tables["Results"].values() for cell in row):
        console.print(safe_text(f"{MARK.strip()} the best of these runs", "dim"))
    return 0


def _read(run: str, store: str | None) -> Compared:
    with open_run(run, store) as (there, row):
        return Compared(row, row.status(there.connection.now()), read_curves(there, row.name))


def _differing(all_of_them: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Give the rows that are not the same in all, with each one's value.

    >>> _differing([{"seed": 0, "size": 8}, {"seed": 1, "size": 8, "new": None}])
    {'seed': [0, 1], 'new': [<absent>, None]}
    """
    names = dict.fromkeys(name for one in all_of_them for name in one)
    rows = {name: [one.get(name, ABSENT) for one in all_of_them] for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def _facts(compared: Sequence[Compared]) -> dict[str, list[Text]]:
    rows: dict[str, list[Text]] = {
        "state": [state_text(one.state) for one in compared],
        "epoch": [safe_text(format_progress(one.row.epoch, one.row.epochs)) for one in compared],
        "step": [safe_text(f"{one.row.step:,}") for one in compared],
    }
    spent = [_seconds(one) for one in compared]
    if any(spent):
        rows["training"] = [
            safe_text(format_duration(seconds) if seconds else "") for seconds in spent
        ]
    return rows


def _seconds(one: Compared) -> float:
    return sum(finite_values(one.curves.get("time/epoch_seconds", Curve())))


def _results(
    compared: Sequence[Compared], modes: Mapping[str, Mode | None]
) -> dict[str, list[Text]]:
    """Give two rows a metric: the best of each run and its epoch, and the last."""
    rows: dict[str, list[Text]] = {}
    for name, mode in modes.items():
        found = [
            summarize_curve(one.curves[name], mode) if name in one.curves else None
            for one in compared
        ]
        if mode is not None:
            winners = find_best([one and one.best for one in found], mode)
            rows[name] = [
                safe_text(
                    f"{format_number(one.best)} at {one.epoch:,}{MARK if place in winners else ''}",
                    BEST if place in winners else "",
                )
                if one and one.best is not None
                else Text()
                for place, one in enumerate(found)
            ]
        label = name if mode is None else f"{name}, last"
        rows[label] = [
            safe_text(format_number(one.last) if one else "", "dim" if mode else "")
            for one in found
        ]
    return rows


def _cell(value: Any) -> Text:
    return safe_text("none", "dim italic") if value is ABSENT else safe_text(format_setting(value))


def _data(
    compared: Sequence[Compared],
    config: Mapping[str, Sequence[Any]],
    environment: Mapping[str, Sequence[Any]],
    modes: Mapping[str, Mode | None],
) -> dict[str, Any]:
    def by_run(row: Sequence[Any]) -> dict[str, Any]:
        return {
            one.row.name: value
            for one, value in zip(compared, row, strict=True)
            if value is not ABSENT
        }

    scores = {}
    for name, mode in modes.items():
        has = {one.row.name: one.curves[name] for one in compared if name in one.curves}
        found = {run: summarize_curve(curve, mode) for run, curve in has.items()}
        winners = find_best([one.best for one in found.values()], mode)
        scores[name] = {
            "mode": mode,
            "best": [list(found)[place] for place in winners],
            "runs": {run: one._asdict() for run, one in found.items()},
        }
    return {
        "runs": {
            one.row.name: {
                "state": one.state,
                "epoch": one.row.epoch,
                "epochs": one.row.epochs,
                "step": one.row.step,
                "seconds": _seconds(one),
            }
            for one in compared
        },
        "config": {name: by_run(row) for name, row in config.items()},
        "environment": {name: by_run(row) for name, row in environment.items()},
        "scores": scores,
    }
