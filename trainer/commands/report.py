"""The command `report`: write a page about a recorded run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from hooks.reports.report_page import Report, ReportTable, write_page
from hooks.reports.text_tables import tabulate_texts
from trainer.commands.lookup.scores import SCORES, choose_key_metrics
from trainer.commands.lookup.stores import RunName, StoreName, is_path, open_run
from trainer.commands.terminal.calling import CommandError, parse_local_path
from trainer.configuration.setting_rows import format_settings
from trainer.host.amounts import format_bytes, format_duration, format_time
from trainer.host.escaping import escape_text
from trainer.host.rendering.panels import sum_epoch_seconds
from trainer.host.rendering.sparklines import format_number
from trainer.runs import RunRow, Store
from trainer.runs.recorded_curves import read_curves, read_texts
from trainer.runs.requests import list_requests, list_results
from trainer.runs.run_directory import to_stored_path
from trainer.runs.text import to_file_name

ROWS = 50
"""Rows of a table to show, at most."""


def report(run: RunName, /, *, to: str | None = None, store: StoreName = None) -> int:
    """Write a page about a run: curves, scores, texts, configuration, times, checkpoints.

    One self-contained HTML file with what was recorded so far.

    Args:
        run: its name, or the path of its directory.
        to: path of the page; by default report.html in the run's directory, if the run is given by
            its path, else NAME.html in this folder.
    """
    path = None if to is None else parse_local_path(to, "--to")
    with open_run(run, store) as (opened, row):
        built = build_report(opened, row)
    # Not written to a directory that only the store names: whoever wrote the store could choose it.
    if path is None and is_path(run) and Path(run).is_dir():
        path = parse_local_path(run, "a run") / "report.html"
    path = path or Path(f"{to_file_name(row.name)}.html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(path.absolute(), built)
    except OSError as error:
        raise CommandError(
            f"the page cannot be written to {escape_text(path)}: {escape_text(error)}"
        ) from error
    print(escape_text(path))
    return 0


def build_report(store: Store, row: RunRow) -> Report:
    """Collect the content of a page about a run."""
    curves = read_curves(store, row.name)
    outcome = {
        "outcome": row.status(store.connection.now()),
        **({"error": row.error} if row.error else {}),
        "epochs": f"{row.epoch:,}" if row.epochs is None else f"{row.epoch:,} of {row.epochs:,}",
        "steps": f"{row.step:,}",
        "training time": format_duration(sum_epoch_seconds(curves), digits=3),
        "began": format_time(row.created),
        "written": format_time(time.time()),
    }
    return Report(
        title=row.name,
        outcome=outcome,
        curves=curves,
        config=format_settings(row.config),
        environment={"directory": row.directory, **row.environment},
        tables=dict(_keep_last(title, table) for title, table in _list_tables(store, row)),
    )


def _list_tables(store: Store, row: RunRow) -> Iterator[tuple[str, ReportTable]]:
    """Yield the tables of texts, existing checkpoints, evaluations and files, with their titles."""
    yield "Texts", tabulate_texts(read_texts(store, row.name))
    checkpoints = [
        (
            checkpoint.written.replace("T", " ")[:19],
            f"{checkpoint.epoch:,}",
            format_bytes(checkpoint.bytes),
            _format_scores(checkpoint.scores),
        )
        for checkpoint in store.checkpoints(row.name, present=True)
    ]
    heads = ("written", "epoch", "size", "scores")
    yield "Checkpoints", ReportTable(heads, checkpoints, words=("scores",))
    results = list_results(store, row.name)
    evaluations = [
        (
            request.suite,
            f"{request.epoch:,}",
            request.state,
            f"{request.tries}",
            _format_scores(results.get((request.suite, request.epoch), {})) or request.error,
        )
        for request in list_requests(store, row.name)
    ]
    columns = ("suite", "epoch", "state", "tries", "result")
    yield "Evaluations", ReportTable(columns, evaluations, words=("result",))
    files = [
        (
            to_stored_path(row.directory, file.path),
            file.kind,
            f"{file.epoch:,}",
            format_bytes(file.bytes),
        )
        for file in store.artifacts(row.name)
    ]
    yield "Files", ReportTable(("file", "kind", "epoch", "size"), files)


def _format_scores(scores: Mapping[str, float]) -> str:
    """Format the most important scores."""
    names = choose_key_metrics(scores, SCORES)
    return ", ".join(f"{name} {format_number(scores[name])}" for name in names)


def _keep_last(title: str, table: ReportTable) -> tuple[str, ReportTable]:
    """Keep only the last of many rows, and say so in the title."""
    count = len(table.rows)
    if count <= ROWS:
        return title, table
    return f"{title}: the last {ROWS} of {count:,}", table._replace(rows=table.rows[-ROWS:])
