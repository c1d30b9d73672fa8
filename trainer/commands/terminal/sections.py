"""Tables about a run: scores, times, checkpoints, evaluations, artifacts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from trainer.checks.modes import infer_mode
from trainer.commands.lookup.scores import choose_key_metrics, find_best
from trainer.commands.terminal.output import state_text
from trainer.host.amounts import format_bytes, format_duration
from trainer.host.rich_tables import Column, make_table, safe_lines, safe_text
from trainer.runs.panels import Curve, group_panels, hook_times
from trainer.runs.requests import list_requests, list_results
from trainer.runs.sparklines import format_number, rank_metric
from trainer.runs.store import Store

BEST = "bold green"

SCORES = 4
"""Scores of a checkpoint or an evaluation to show."""


def make_score_table(
    curves: Mapping[str, Curve], chosen: Sequence[str], width: int
) -> Table | None:
    """Summarize each metric: its last, lowest and highest value, and which is the best.

    Args:
        curves: of all metrics.
        chosen: requested metrics; if empty, all except times and the machine's.
        width: of the console, in characters.
    """
    panels = group_panels(curves, chosen or None).values()
    kept = [id(curve) for panel in panels for curve in panel.values()]
    names = sorted((name for name in curves if id(curves[name]) in kept), key=rank_metric)
    summaries = [curves[name].summary for name in names]
    lasts = [safe_text(format_number(summary.last)) for summary in summaries]
    columns = [
        Column("metric", [safe_text(name) for name in names], priority=9, fold_width=20),
        Column("last", lasts, "right", 8),
    ]
    for head, mode, extremes in (
        ("lowest", "min", [summary.lowest for summary in summaries]),
        ("highest", "max", [summary.highest for summary in summaries]),
    ):
        values = [
            safe_text(format_number(value), BEST if infer_mode(name) == mode else "")
            if epoch
            else Text()
            for name, (value, epoch) in zip(names, extremes, strict=True)
        ]
        epochs = [safe_text(f"at {epoch:,}" if epoch else "", "dim") for _, epoch in extremes]
        columns += [Column(head, values, "right", 7), Column("", epochs, priority=6)]
    return make_table(columns, width) if names else None


def make_hook_time_table(curves: Mapping[str, Curve], width: int) -> Table | None:
    """Show each hook's time, the costliest first, and its share of the time of phases and hooks."""
    hooks = hook_times(curves)
    columns = [
        Column("hook", [safe_text(hook.name) for hook in hooks], priority=9, fold_width=20),
        Column("in all", [safe_text(format_duration(hook.seconds)) for hook in hooks], "right", 8),
        Column("an epoch", [safe_text(format_duration(hook.each)) for hook in hooks], "right", 7),
        Column("of the run", [safe_text(f"{hook.share:.2%}") for hook in hooks], "right", 6),
    ]
    return make_table(columns, width) if hooks else None


def make_checkpoint_table(store: Store, run: str, width: int) -> Table | None:
    """List the checkpoints that still exist, their scores, and the best by each score."""
    rows = store.checkpoints(run, present=True)
    names = choose_key_metrics(
        {name for row in rows for name in row.scores if infer_mode(name)}, SCORES
    )
    columns = [
        Column("epoch", [safe_text(f"{row.epoch:,}") for row in rows], "right", 9),
        Column("size", [safe_text(format_bytes(row.bytes)) for row in rows], "right", 8),
        *_make_score_columns([row.scores for row in rows], names),
        Column("written", [safe_text(row.written[:19].replace("T", " "), "dim") for row in rows]),
    ]
    return make_table(columns, width) if rows else None


def make_evaluation_table(store: Store, run: str, width: int) -> Table | None:
    """List requested evaluations and their results."""
    rows, results = list_requests(store, run), list_results(store, run)
    scores = [results.get((row.suite, row.epoch), {}) for row in rows]
    names = choose_key_metrics({name for result in scores for name in result}, SCORES)
    columns = [
        Column("suite", [safe_text(row.suite) for row in rows], priority=9),
        Column("epoch", [safe_text(f"{row.epoch:,}") for row in rows], "right", 9),
        Column("state", [state_text(row.state) for row in rows], priority=8),
        *_make_score_columns(scores, names),
        Column("tries", [safe_text(row.tries, "dim") for row in rows], "right", 1),
        Column("worker", [safe_text(row.worker, "dim") for row in rows]),
    ]
    if any(row.error for row in rows):
        columns.append(
            Column("error", [safe_lines(row.error, "red") for row in rows], "left", 7, 30)
        )
    return make_table(columns, width) if rows else None


def make_artifact_table(store: Store, run: str, width: int) -> Table | None:
    """List the files of a run."""
    rows = store.artifacts(run)
    columns = [
        Column("kind", [safe_text(row.kind) for row in rows], priority=8),
        Column("epoch", [safe_text(f"{row.epoch:,}") for row in rows], "right", 7),
        Column("size", [safe_text(format_bytes(row.bytes)) for row in rows], "right", 6),
        Column("path", [safe_text(os.path.relpath(row.path)) for row in rows], "left", 9, 30),
    ]
    return make_table(columns, width) if rows else None


def _make_score_columns(
    scores: Sequence[Mapping[str, float]], names: Sequence[str]
) -> list[Column]:
    """Make a column per score, with its best value marked."""
    columns = []
    for place, name in enumerate(names):
        values = [row.get(name) for row in scores]
        best = find_best(values, infer_mode(name))
        cells = [
            safe_text("" if value is None else format_number(value), BEST if row in best else "")
            for row, value in enumerate(values)
        ]
        columns.append(Column(name, cells, "right", 6 - place))
    return columns
