"""The command `report`: a page about a run, of what the store has of it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from hooks.reports.report_page import Report, ReportTable, format_duration, render_page
from trainer.commands.lookup.scores import choose_key_metrics
from trainer.commands.lookup.stores import RunName, is_path, open_run
from trainer.commands.terminal.calling import CommandError, parse_local_path
from trainer.commands.terminal.sections import SCORES
from trainer.configuration.setting_rows import format_settings
from trainer.host.amounts import format_bytes
from trainer.host.atomic_files import atomic_replace
from trainer.host.escaping import escape_text
from trainer.runs import RunRow, Store
from trainer.runs.artifacts import to_stored_path
from trainer.runs.metric_curves import read_curves
from trainer.runs.panels import finite_values
from trainer.runs.requests import list_requests, list_results
from trainer.runs.sparklines import format_number
from trainer.runs.text import to_file_name

ROWS = 50
"""Of a table, at most so many are shown."""


def report(run: RunName, /, *, to: str | None = None, store: str | None = None) -> int:
    """Write a page about a run: curves, scores, configuration, environment, times, commits.

    One HTML file that needs nothing else, of what is on record by now.

    Args:
        run: its name, or the path of its directory.
        to: path of the page; else report.html in the run's directory, if that is how the run is
            given, or NAME.html in this one.
        store: directory of the runs, file *.sqlite, or postgresql://USER@HOST/DATABASE; else
            $ENTRACTE_STORE, else runs/.
    """
    page_file = None if to is None else parse_local_path(to, "--to")
    with open_run(run, store) as (there, row):
        written = render_page(build_report(there, row))
    # A directory that the store names is not written to: whoever wrote the store would choose it.
    given = is_path(run) and os.path.isdir(run)
    here = (
        parse_local_path(run, "a run") / "report.html"
        if given
        else Path(f"{to_file_name(row.name)}.html")
    )
    path = page_file or here
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_replace(path.absolute()) as beside:
            beside.write_text(written, encoding="utf-8", errors="xmlcharrefreplace")
    except OSError as error:
        raise CommandError(
            f"the page cannot be written to {escape_text(path)}: {escape_text(error)}"
        ) from error
    print(escape_text(path))
    return 0


def build_report(store: Store, row: RunRow) -> Report:
    """Put together what a page tells of a run."""
    curves = read_curves(store, row.name)
    times = finite_values(curves["time/epoch_seconds"]) if "time/epoch_seconds" in curves else []
    outcome = {
        "outcome": row.status(store.connection.now()),
        **({"error": row.error} if row.error else {}),
        "epochs": f"{row.epoch:,}" if row.epochs is None else f"{row.epoch:,} of {row.epochs:,}",
        "steps": f"{row.step:,}",
        "training time": format_duration(sum(times)),
        "began": _when(row.created),
        "written": _when(time.time()),
    }
    return Report(
        title=row.name,
        outcome=outcome,
        curves=curves,
        config=format_settings(row.config),
        environment={"directory": row.directory, **row.environment},
        tables=dict(
            [
                _last("Commits", _commits(store, row.name)),
                _last("Evaluations", _evaluations(store, row.name)),
                _last("Files", _files(store, row)),
            ]
        ),
    )


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def _commits(store: Store, run: str) -> ReportTable:
    """List the checkpoints that are still there."""
    return ReportTable(
        words=("scores",),
        heads=("written", "epoch", "size", "scores"),
        rows=[
            (
                commit.written.replace("T", " ")[:19],
                f"{commit.epoch:,}",
                format_bytes(commit.bytes),
                _told(commit.scores),
            )
            for commit in store.checkpoints(run, present=True)
        ],
    )


def _evaluations(store: Store, run: str) -> ReportTable:
    found = list_results(store, run)
    return ReportTable(
        words=("found",),
        heads=("suite", "epoch", "state", "tries", "found"),
        rows=[
            (
                request.suite,
                f"{request.epoch:,}",
                request.state,
                f"{request.tries}",
                _told(found.get((request.suite, request.epoch), {})) or request.error,
            )
            for request in list_requests(store, run)
        ],
    )


def _told(scores: Mapping[str, float]) -> str:
    """Write the scores that tell the most."""
    names = choose_key_metrics(scores, SCORES)
    return ", ".join(f"{name} {format_number(scores[name])}" for name in names)


def _files(store: Store, row: RunRow) -> ReportTable:
    return ReportTable(
        heads=("file", "kind", "epoch", "size"),
        rows=[
            (
                to_stored_path(row.directory, file.path),
                file.kind,
                f"{file.epoch:,}",
                format_bytes(file.bytes),
            )
            for file in store.artifacts(row.name)
        ],
    )


def _last(title: str, table: ReportTable) -> tuple[str, ReportTable]:
    """Keep of many rows the last ones, and say so."""
    count = len(table.rows)
    if count <= ROWS:
        return title, table
    return f"{title}: the last {ROWS} of {count:,}", table._replace(rows=table.rows[-ROWS:])
