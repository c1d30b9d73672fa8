"""The command `compare`: how runs differ, and what each reached."""

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
from trainer.commands.lookup.stores import RunNames, StoreName, open_run
from trainer.commands.terminal.calling import CommandError
from trainer.commands.terminal.output import BEST, make_console, print_json, state_text
from trainer.configuration.setting_rows import flatten_settings, format_setting
from trainer.host.amounts import format_duration, format_progress
from trainer.host.escaping import escape_text
from trainer.host.rendering.panels import Curve, sum_epoch_seconds
from trainer.host.rendering.rich_tables import Column, make_table, safe_text
from trainer.host.rendering.sparklines import format_number
from trainer.runs.recorded_curves import read_curves
from trainer.runs.rows import RunRow

MARK = " *"
"""Marks the best of all runs."""


class ComparedRun(NamedTuple):
    """A run and its metrics."""

    row: RunRow
    state: str
    curves: dict[str, Curve]


def compare(
    runs: RunNames,
    /,
    *,
    store: StoreName = None,
    metrics: tuple[str, ...] = (),
    mode: Mode | None = None,
    json: bool = False,
) -> int:
    """Compare runs: which settings and versions differ, and what each reached.

    Args:
        runs: two or more names in the store, or paths of runs' directories.
        metrics: metrics to compare; by default all except times and gradients.
        mode: which of two values is better, min or max, if a metric's name does not tell.
        json: print JSON.
    """
    loaded = [_load(run, store) for run in runs]
    compared = [*{(run.row.directory, run.row.name): run for run in loaded}.values()]
    if len(compared) < 2:
        these = f"; these are all {escape_text(compared[0].row.name)}" if len(loaded) > 1 else ""
        raise CommandError(
            f"give two runs or more, before --metrics: entracte compare RUN RUN{these}"
        )
    run_names = [run.row.name for run in compared]
    if twice := next((name for name in run_names if run_names.count(name) > 1), None):
        raise CommandError(
            f"two of these runs are named {escape_text(twice)}, so a table could not distinguish "
            "them"
        )
    recorded = {name for run in compared for name in run.curves}
    names = (
        check_metric_names(metrics, recorded)
        if metrics
        else choose_key_metrics(recorded, len(recorded))
    )
    modes = {name: infer_mode(name) or mode for name in names}
    config = _find_differences({run.row.name: flatten_settings(run.row.config) for run in compared})
    environment = _find_differences({run.row.name: run.row.environment for run in compared})
    if json:
        print_json(_to_data(compared, config, environment, modes))
        return 0
    console = make_console()
    tables = {
        "Runs": _make_run_rows(compared),
        "Configuration": _make_setting_rows(config, run_names),
        "Environment": _make_setting_rows(environment, run_names),
        "Results": _make_result_rows(compared, modes),
    }
    for title, rows in tables.items():
        console.print(safe_text(title, "bold underline"))
        columns = [Column("", [safe_text(name) for name in rows], priority=9, fold_width=20)]
        for name, *cells in zip(run_names, *rows.values(), strict=True):
            columns.append(Column(name, cells, "left", 9, 14))
        console.print(
            make_table(columns, console.width) if rows else safe_text("no difference", "dim")
        )
        console.print()
    if any(cell.plain.endswith(MARK) for row in tables["Results"].values() for cell in row):
        console.print(safe_text(f"{MARK.strip()} the best of these runs", "dim"))
    return 0


def _load(run: str, store: str | None) -> ComparedRun:
    with open_run(run, store) as (opened, row):
        state = row.status(opened.connection.now())
        return ComparedRun(row, state, read_curves(opened, row.name))


def _find_differences(by_run: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each setting that differs, with its value in each run that has it.

    >>> _find_differences({"a": {"seed": 0, "size": 8}, "b": {"seed": 1, "size": 8, "new": None}})
    {'seed': {'a': 0, 'b': 1}, 'new': {'b': None}}
    """
    rows: dict[str, dict[str, Any]] = {}
    for run, settings in by_run.items():
        for name, value in settings.items():
            rows.setdefault(name, {})[run] = value
    firsts = {name: next(iter(row.values())) for name, row in rows.items()}
    return {
        name: row
        for name, row in rows.items()
        if len(row) < len(by_run) or any(value != firsts[name] for value in row.values())
    }


def _make_setting_rows(
    differences: Mapping[str, Mapping[str, Any]], runs: Sequence[str]
) -> dict[str, list[Text]]:
    absent = Text("none", "dim italic")
    return {
        name: [safe_text(format_setting(row[run])) if run in row else absent for run in runs]
        for name, row in differences.items()
    }


def _make_run_rows(compared: Sequence[ComparedRun]) -> dict[str, list[Text]]:
    rows: dict[str, list[Text]] = {
        "state": [state_text(run.state) for run in compared],
        "epoch": [safe_text(format_progress(run.row.epoch, run.row.epochs)) for run in compared],
        "step": [safe_text(f"{run.row.step:,}") for run in compared],
    }
    spent = [sum_epoch_seconds(run.curves) for run in compared]
    if any(spent):
        rows["training"] = [
            safe_text(format_duration(seconds) if seconds else "") for seconds in spent
        ]
    return rows


def _make_result_rows(
    compared: Sequence[ComparedRun], modes: Mapping[str, Mode | None]
) -> dict[str, list[Text]]:
    """Make two rows per metric: each run's best value and its epoch, and its last value."""
    rows: dict[str, list[Text]] = {}
    for name, mode in modes.items():
        summaries = [
            summarize_curve(run.curves[name], mode) if name in run.curves else None
            for run in compared
        ]
        if mode is not None:
            winners = find_best([found and found.best for found in summaries], mode)
            rows[name] = [
                safe_text(
                    f"{format_number(found.best)} at {found.epoch:,}"
                    f"{MARK if place in winners else ''}",
                    BEST if place in winners else "",
                )
                if found and found.best is not None
                else Text()
                for place, found in enumerate(summaries)
            ]
        label = name if mode is None else f"{name}, last"
        rows[label] = [
            safe_text(format_number(found.last) if found else "", "dim" if mode else "")
            for found in summaries
        ]
    return rows


def _to_data(
    compared: Sequence[ComparedRun],
    config: Mapping[str, Mapping[str, Any]],
    environment: Mapping[str, Mapping[str, Any]],
    modes: Mapping[str, Mode | None],
) -> dict[str, Any]:
    scores = {}
    for name, mode in modes.items():
        curves = {run.row.name: run.curves[name] for run in compared if name in run.curves}
        summaries = {run: summarize_curve(curve, mode) for run, curve in curves.items()}
        winners = find_best([found.best for found in summaries.values()], mode)
        scores[name] = {
            "mode": mode,
            "best": [list(summaries)[place] for place in winners],
            "runs": {run: found._asdict() for run, found in summaries.items()},
        }
    return {
        "runs": {
            run.row.name: {
                "state": run.state,
                "epoch": run.row.epoch,
                "epochs": run.row.epochs,
                "step": run.row.step,
                "seconds": sum_epoch_seconds(run.curves),
            }
            for run in compared
        },
        "config": config,
        "environment": environment,
        "scores": scores,
    }
