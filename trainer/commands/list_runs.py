"""The command `runs`: a table of the recorded runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from trainer.checks.modes import Mode, infer_mode
from trainer.commands.lookup.conditions import filter_runs
from trainer.commands.lookup.scores import (
    CurveSummary,
    check_metric_names,
    choose_key_metrics,
    require_mode,
    summarize_curve,
)
from trainer.commands.lookup.stores import StoreName, open_store
from trainer.commands.terminal.output import make_console, print_json, state_text
from trainer.host.amounts import format_duration, format_progress
from trainer.host.rendering.rich_tables import Column, make_table, safe_text
from trainer.host.rendering.sparklines import format_number
from trainer.runs.recorded_curves import metric_names, read_curves
from trainer.runs.rows import RunRow
from trainer.runs.store import Store

FIELDS = ("created", "name", "epoch")
"""Fields that runs may be sorted by, besides scores."""

SCORES = 2
"""Columns of scores if none are requested."""

SAMPLED = 50
"""Newest runs whose metrics are considered to choose these."""

COUNTED_STATES = ("running", "stalled", "failed")
"""States whose runs the last line counts."""


def runs(
    *,
    store: StoreName = None,
    state: tuple[Literal["running", "stalled", "finished", "interrupted", "failed"], ...] = (),
    where: tuple[str, ...] = (),
    sort: str = "created",
    mode: Mode | None = None,
    metrics: tuple[str, ...] = (),
    json: bool = False,
) -> int:
    """List the recorded runs, with their states and best scores.

    Args:
        state: only runs in one of these states.
        where: only runs whose configuration meets these conditions, such as optimizer.name=adamw
            or 'seed<3'; = != < <= > >=, between two numbers or two texts.
        sort: by a score, the best first, such as val/accuracy; or by created (the newest first),
            name, epoch.
        mode: which of two values of the sorting score is better, min or max, if its name does not
            tell.
        metrics: metrics whose best values and epochs are shown; by default losses and accuracies.
        json: print JSON.
    """
    with open_store(store) as opened:
        now = opened.connection.now()
        all_rows = opened.runs()
        rows = [row for row in all_rows if not state or row.status(now) in state]
        rows = [opened.read_progress(row) for row in (filter_runs(rows, where) if rows else rows)]
        modes = _choose_scores(opened, rows, all_rows, sort, mode, metrics)
        read = {row.name: read_curves(opened, row.name, list(modes)) for row in rows}
        scores = {
            run: {name: summarize_curve(curve, modes[name]) for name, curve in curves.items()}
            for run, curves in read.items()
        }
        place = opened.connection.label
    rows = _sort(rows, scores, sort, modes.get(sort))
    if json:
        print_json([_to_data(row, now, scores[row.name], modes) for row in rows])
        return 0
    console = make_console()
    if rows:
        progress = [safe_text(format_progress(row.epoch, row.epochs)) for row in rows]
        ages = [safe_text(format_duration(max(now - row.created, 1))) for row in rows]
        columns = [
            Column("run", [safe_text(row.name, "bold") for row in rows], priority=9, fold_width=24),
            Column("state", [state_text(row.status(now)) for row in rows], priority=8),
            Column("epoch", progress, "right", 7),
            *_make_score_columns([scores[row.name] for row in rows], modes),
            Column("age", ages, "right", 2),
            Column("host", [safe_text(row.host, "dim") for row in rows], priority=1),
        ]
        console.print(make_table(columns, console.width))
        console.print()
    counts = Counter(row.status(now) for row in rows)
    counted = "".join(f", {counts[one]} {one}" for one in COUNTED_STATES if counts[one])
    of = f" of {len(all_rows)}" if len(rows) < len(all_rows) else ""
    noun = "run" if len(all_rows) == 1 else "runs"
    console.print(safe_text(f"{len(rows)}{of} {noun} in {place}{counted}", "dim"))
    return 0


def _choose_scores(
    store: Store,
    rows: Sequence[RunRow],
    all_rows: Sequence[RunRow],
    sort: str,
    mode: Mode | None,
    metrics: Sequence[str],
) -> dict[str, Mode | None]:
    """Choose the scores to show, and return the mode of each."""
    sampled = all_rows if metrics or sort not in FIELDS else rows[:SAMPLED]
    names = Counter(name for row in sampled for name in metric_names(store, row.name))
    chosen = check_metric_names(metrics, names) if metrics else _choose_common(names)
    modes = {name: infer_mode(name) for name in chosen}
    if sort not in FIELDS:
        check_metric_names([sort], names, FIELDS)
        modes = {sort: None} | modes | {sort: require_mode(sort, mode)}
    return modes


def _choose_common(names: Counter[str]) -> list[str]:
    """Choose the most important metrics of those that most runs have.

    >>> _choose_common(Counter({"time/epoch_seconds": 9, "val/loss": 6, "update/loss": 3}))
    ['val/loss']
    """
    plain = {name: names[name] for name in choose_key_metrics(names, len(names))}
    most = max(plain.values(), default=0)
    return choose_key_metrics(
        [name for name, count in plain.items() if 4 * count >= 3 * most], SCORES
    )


def _to_data(
    row: RunRow, now: float, scores: Mapping[str, CurveSummary], modes: Mapping[str, Mode | None]
) -> dict[str, Any]:
    data = {name: found._asdict() | {"mode": modes[name]} for name, found in scores.items()}
    return row._asdict() | {"state": row.status(now), "scores": data}


def _sort(
    rows: Sequence[RunRow],
    scores: Mapping[str, Mapping[str, CurveSummary]],
    sort: str,
    mode: Mode | None,
) -> list[RunRow]:
    def score_key(row: RunRow) -> tuple[bool, float]:
        found = scores[row.name].get(sort)
        best = found and found.best
        return best is None, 0.0 if best is None else -best if mode == "max" else best

    keys: dict[str, Callable[[RunRow], Any]] = {
        "created": lambda row: 0,  # the store sorts them so
        "name": lambda row: row.name,
        "epoch": lambda row: -row.epoch,
    }
    return sorted(rows, key=keys.get(sort, score_key))


def _make_score_columns(
    scores: Sequence[Mapping[str, CurveSummary]], names: Iterable[str]
) -> Iterator[Column]:
    for place, name in enumerate(names):
        found = [row.get(name) for row in scores]
        bests = [one and (one.last if one.best is None else one.best) for one in found]
        values = [safe_text("" if best is None else format_number(best)) for best in bests]
        epochs = [f"at {one.epoch:,}" if one and one.epoch else "" for one in found]
        yield Column(name, values, "right", 6 - min(place, 3))
        yield Column("", [safe_text(epoch, "dim") for epoch in epochs], "left", 6 - min(place, 3))
