"""Sections of what is shown of a run: scores, times, commits, evaluations, artifacts."""

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
"""Of a commit or an evaluation, so many are shown."""


def make_score_table(
    curves: Mapping[str, Curve], chosen: Sequence[str], width: int
) -> Table | None:
    """Sum up each metric: its last value, the lowest, the highest, and which is the best.

    Args:
        curves: of all metrics.
        chosen: those that were asked for; if there are none, all but times and the machine's.
        width: of the console, in characters.
    """
    within = group_panels(curves, chosen or None).values()
    kept = [id(curve) for found in within for curve in found.values()]
    names = sorted((name for name in curves if id(curves[name]) in kept), key=rank_metric)
    courses = [curves[name].summary for name in names]

    def extreme(values: Sequence[tuple[float, int]], mode: str) -> tuple[list[Text], list[Text]]:
        styles = [BEST if infer_mode(name) == mode else "" for name in names]
        return (
            [
                safe_text(format_number(v), style) if e else Text()
                for (v, e), style in zip(values, styles, strict=True)
            ],
            [safe_text(f"at {e:,}" if e else "", "dim") for _, e in values],
        )

    lowest, low_at = extreme([course.lowest for course in courses], "min")
    highest, high_at = extreme([course.highest for course in courses], "max")
    columns = [
        Column("metric", [safe_text(name) for name in names], priority=9, fold_width=20),
        Column("last", [safe_text(format_number(course.last)) for course in courses], "right", 8),
        Column("lowest", lowest, "right", 7),
        Column("", low_at, priority=6),
        Column("highest", highest, "right", 7),
        Column("", high_at, priority=6),
    ]
    return make_table(columns, width) if names else None


def make_hook_time_table(curves: Mapping[str, Curve], width: int) -> Table | None:
    """Show each hook's times, the costliest first, and what they are of phases and hooks."""
    hooks = hook_times(curves)
    columns = [
        Column("hook", [safe_text(hook.name) for hook in hooks], priority=9, fold_width=20),
        Column("in all", [safe_text(format_duration(hook.seconds)) for hook in hooks], "right", 8),
        Column("an epoch", [safe_text(format_duration(hook.each)) for hook in hooks], "right", 7),
        Column("of the run", [safe_text(f"{hook.share:.2%}") for hook in hooks], "right", 6),
    ]
    return make_table(columns, width) if hooks else None


def make_checkpoint_table(store: Store, run: str, width: int) -> Table | None:
    """List the checkpoints that are there, their scores, and which is the best by each."""
    rows = store.checkpoints(run, present=True)
    names = choose_key_metrics(
        {name for row in rows for name in row.scores if infer_mode(name)}, SCORES
    )
    columns = [
        Column("epoch", [safe_text(f"{row.epoch:,}") for row in rows], "right", 9),
        Column("size", [safe_text(format_bytes(row.bytes)) for row in rows], "right", 8),
        *_scores_of([row.scores for row in rows], names),
        Column("written", [safe_text(row.written[:19].replace("T", " "), "dim") for row in rows]),
    ]
    return make_table(columns, width) if rows else None


def make_evaluation_table(store: Store, run: str, width: int) -> Table | None:
    """List what was asked of evaluators, and what they found."""
    rows, found = list_requests(store, run), list_results(store, run)
    scores = [found.get((row.suite, row.epoch), {}) for row in rows]
    names = choose_key_metrics({name for one in scores for name in one}, SCORES)
    columns = [
        Column("suite", [safe_text(row.suite) for row in rows], priority=9),
        Column("epoch", [safe_text(f"{row.epoch:,}") for row in rows], "right", 9),
        Column("state", [state_text(row.state) for row in rows], priority=8),
        *_scores_of(scores, names),
        Column("tries", [safe_text(row.tries, "dim") for row in rows], "right", 1),
        Column("worker", [safe_text(row.worker, "dim") for row in rows]),
    ]
    if any(row.error for row in rows):
        columns.append(
            Column("error", [safe_lines(row.error, "red") for row in rows], "left", 7, 30)
        )
    return make_table(columns, width) if rows else None


def make_artifact_table(store: Store, run: str, width: int) -> Table | None:
    """List the files that a run left."""
    rows = store.artifacts(run)
    columns = [
        Column("kind", [safe_text(row.kind) for row in rows], priority=8),
        Column("epoch", [safe_text(f"{row.epoch:,}") for row in rows], "right", 7),
        Column("size", [safe_text(format_bytes(row.bytes)) for row in rows], "right", 6),
        Column("path", [safe_text(os.path.relpath(row.path)) for row in rows], "left", 9, 30),
    ]
    return make_table(columns, width) if rows else None


def _scores_of(scores: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[Column]:
    """Make a column for each score, its best value marked."""
    columns = []
    for place, name in enumerate(names):
        values = [one.get(name) for one in scores]
        best = find_best(values, infer_mode(name))
        cells = [
            safe_text("" if value is None else format_number(value), BEST if row in best else "")
            for row, value in enumerate(values)
        ]
        columns.append(Column(name, cells, "right", 6 - place))
    return columns
