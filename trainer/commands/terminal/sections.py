"""Sections of what is shown of a run: scores, times, commits, evaluations, artifacts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from trainer.checks.modes import mode_of
from trainer.commands.lookup.scores import better, telling
from trainer.commands.terminal.output import Column, lasting, lines, size, state_text, table, text
from trainer.runs.panels import Curve, hook_times, panels
from trainer.runs.requests import requests, results
from trainer.runs.sparklines import number, rank
from trainer.runs.store import Store

BEST = "bold green"

SCORES = 4
"""Of a commit or an evaluation, so many are shown."""


def scores(curves: Mapping[str, Curve], chosen: Sequence[str], width: int) -> Table | None:
    """Sum up each metric: its last value, the lowest, the highest, and which is the best.

    Args:
        curves: of all metrics.
        chosen: those that were asked for; if there are none, all but times and the machine's.
        width: of the console, in characters.
    """
    within = panels(curves, chosen or None).values()
    kept = [id(curve) for found in within for curve in found.values()]
    names = sorted((name for name in curves if id(curves[name]) in kept), key=rank)
    courses = [curves[name].course for name in names]

    def extreme(values: Sequence[tuple[float, int]], mode: str) -> tuple[list[Text], list[Text]]:
        styles = [BEST if mode_of(name) == mode else "" for name in names]
        return (
            [
                text(number(v), style) if e else Text()
                for (v, e), style in zip(values, styles, strict=True)
            ],
            [text(f"at {e:,}" if e else "", "dim") for _, e in values],
        )

    lowest, low_at = extreme([course.lowest for course in courses], "min")
    highest, high_at = extreme([course.highest for course in courses], "max")
    columns = [
        Column("metric", [text(name) for name in names], matters=9, folds=20),
        Column("last", [text(number(course.last)) for course in courses], "right", 8),
        Column("lowest", lowest, "right", 7),
        Column("", low_at, matters=6),
        Column("highest", highest, "right", 7),
        Column("", high_at, matters=6),
    ]
    return table(columns, width) if names else None


def times(curves: Mapping[str, Curve], width: int) -> Table | None:
    """Show each hook's times, the costliest first, and what they are of phases and hooks."""
    hooks = hook_times(curves)
    columns = [
        Column("hook", [text(hook.name) for hook in hooks], matters=9, folds=20),
        Column("in all", [text(lasting(hook.seconds)) for hook in hooks], "right", 8),
        Column("an epoch", [text(lasting(hook.each)) for hook in hooks], "right", 7),
        Column("of the run", [text(f"{hook.share:.2%}") for hook in hooks], "right", 6),
    ]
    return table(columns, width) if hooks else None


def commits(store: Store, run: str, width: int) -> Table | None:
    """List the checkpoints that are there, their scores, and which is the best by each."""
    rows = store.commits(run, present=True)
    names = telling({name for row in rows for name in row.scores if mode_of(name)}, SCORES)
    columns = [
        Column("epoch", [text(f"{row.epoch:,}") for row in rows], "right", 9),
        Column("size", [text(size(row.bytes)) for row in rows], "right", 8),
        *_scores_of([row.scores for row in rows], names),
        Column("written", [text(row.written[:19].replace("T", " "), "dim") for row in rows]),
    ]
    return table(columns, width) if rows else None


def evaluations(store: Store, run: str, width: int) -> Table | None:
    """List what was asked of evaluators, and what they found."""
    rows, found = requests(store, run), results(store, run)
    scores = [found.get((row.suite, row.epoch), {}) for row in rows]
    names = telling({name for one in scores for name in one}, SCORES)
    columns = [
        Column("suite", [text(row.suite) for row in rows], matters=9),
        Column("epoch", [text(f"{row.epoch:,}") for row in rows], "right", 9),
        Column("state", [state_text(row.state) for row in rows], matters=8),
        *_scores_of(scores, names),
        Column("tries", [text(row.tries, "dim") for row in rows], "right", 1),
        Column("worker", [text(row.worker, "dim") for row in rows]),
    ]
    if any(row.error for row in rows):
        columns.append(Column("error", [lines(row.error, "red") for row in rows], "left", 7, 30))
    return table(columns, width) if rows else None


def artifacts(store: Store, run: str, width: int) -> Table | None:
    """List the files that a run left."""
    rows = store.artifacts(run)
    columns = [
        Column("kind", [text(row.kind) for row in rows], matters=8),
        Column("epoch", [text(f"{row.epoch:,}") for row in rows], "right", 7),
        Column("size", [text(size(row.bytes)) for row in rows], "right", 6),
        Column("path", [text(os.path.relpath(row.path)) for row in rows], "left", 9, 30),
    ]
    return table(columns, width) if rows else None


def _scores_of(scores: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[Column]:
    """Make a column for each score, its best value marked."""
    columns = []
    for place, name in enumerate(names):
        values = [one.get(name) for one in scores]
        best = better(values, mode_of(name))
        cells = [
            text("" if value is None else number(value), BEST if row in best else "")
            for row, value in enumerate(values)
        ]
        columns.append(Column(name, cells, "right", 6 - place))
    return columns
