"""The command `show`: everything about a recorded run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.checks.modes import infer_mode
from trainer.commands.lookup.scores import (
    SCORES,
    check_metric_names,
    choose_key_metrics,
    make_score_columns,
    summarize_curve,
)
from trainer.commands.lookup.stores import RunName, StoreName, open_run
from trainer.commands.terminal.braille import COLORS, plot
from trainer.commands.terminal.output import BEST, make_console, print_json, state_text
from trainer.configuration.setting_rows import format_settings
from trainer.host.amounts import format_age, format_bytes, format_duration, format_progress
from trainer.host.rendering.panels import (
    ASIDE,
    HOOK_PREFIX,
    Curve,
    assign_colors,
    finite_values,
    group_panels,
    hook_times,
)
from trainer.host.rendering.rich_tables import (
    Column,
    make_key_value_table,
    make_table,
    safe_lines,
    safe_text,
)
from trainer.host.rendering.sparklines import format_number, rank_metric
from trainer.runs.recorded_curves import read_curves
from trainer.runs.requests import list_requests, list_results
from trainer.runs.rows import RunRow
from trainer.runs.store import Store

PLOTS = 6
"""Plots to draw if no metrics are requested."""

PLOT_WIDTH, PLOT_HEIGHT = 36, 8
"""Least width of a plot in characters, and its height in lines."""


def show(
    run: RunName,
    /,
    *,
    store: StoreName = None,
    metrics: tuple[str, ...] = (),
    json: bool = False,
) -> int:
    """Show a run: curves, scores, hook times, checkpoints, evaluations, configuration, environment.

    Args:
        run: its name in the store, or the path of its directory.
        metrics: metrics whose curves and scores are shown; by default losses and accuracies come
            first, and times are left out.
        json: print JSON: the run's row, scores, hook_seconds, commits, evaluations, artifacts, and
            the curves of the requested metrics.
    """
    with open_run(run, store) as (opened, row):
        curves = read_curves(opened, row.name)
        chosen = check_metric_names(metrics, curves) if metrics else []
        if json:
            print_json(_to_data(opened, row, curves, chosen))
            return 0
        console = make_console()
        panels = group_panels(curves, chosen or None)
        sections: list[tuple[str, Table | None]] = [
            ("", _make_head(opened, row)),
            ("Curves", _draw_plots(console, panels, draw_all=bool(chosen))),
            ("Scores", _make_score_table(curves, chosen, console.width)),
            ("Time in hooks", _make_hook_time_table(curves, console.width)),
            ("Checkpoints", _make_checkpoint_table(opened, row.name, console.width)),
            ("Evaluations", _make_evaluation_table(opened, row.name, console.width)),
            ("Artifacts", _make_artifact_table(opened, row.name, console.width)),
            ("Configuration", make_key_value_table([*format_settings(row.config).items()])),
            ("Environment", make_key_value_table([*row.environment.items()])),
        ]
    for title, body in sections:
        if body is not None and body.row_count:
            if title:
                console.print()
                console.print(safe_text(title, "bold underline"))
            console.print(body)
    return 0


def _to_data(
    store: Store, row: RunRow, curves: Mapping[str, Curve], chosen: Sequence[str]
) -> dict[str, Any]:
    results = list_results(store, row.name)
    plain = {name: curve for name, curve in curves.items() if not name.startswith(ASIDE)}
    return row._asdict() | {
        "state": row.status(store.connection.now()),
        "scores": {
            name: summarize_curve(curve, mode)._asdict() | {"mode": mode}
            for name, curve in plain.items()
            for mode in [infer_mode(name)]
        },
        "hook_seconds": {
            name.removeprefix(HOOK_PREFIX): sum(finite_values(curve))
            for name, curve in curves.items()
            if name.startswith(HOOK_PREFIX)
        },
        "commits": [saved._asdict() for saved in store.checkpoints(row.name, present=True)],
        "evaluations": [
            request._asdict() | {"scores": results.get((request.suite, request.epoch), {})}
            for request in list_requests(store, row.name)
        ],
        "artifacts": [artifact._asdict() for artifact in store.artifacts(row.name)],
        "curves": {
            name: {"epochs": curves[name].epochs, "values": curves[name].values} for name in chosen
        },
    }


def _make_head(store: Store, row: RunRow) -> Table:
    now = store.connection.now()
    facts: list[tuple[str, object]] = [
        ("run", safe_text(row.name, "bold")),
        ("state", state_text(row.status(now))),
        ("error", safe_lines(row.error, "red")),
        ("epoch", f"{format_progress(row.epoch, row.epochs).strip()}, step {row.step:,}"),
        ("started", format_age(now - row.created)),
        ("last heartbeat", format_age(now - row.beat)),
        ("process", f"{row.pid} on {row.host}"),
        ("directory", row.directory),
        ("store", store.connection.label),
    ]
    return make_key_value_table([fact for fact in facts if str(fact[1])])


def _draw_plots(
    console: Console, panels: Mapping[str, Mapping[str, Curve]], *, draw_all: bool
) -> Table | None:
    """Draw panels side by side, as many as there is room for."""
    if not panels or console.options.ascii_only:
        return None
    titles = list(panels) if draw_all else list(panels)[:PLOTS]
    columns = min(max(console.width // (PLOT_WIDTH + 2), 1), 3, len(titles))
    width = min(console.width // columns - 2, 2 * PLOT_WIDTH)
    colors = assign_colors(panels, COLORS)
    plots = [
        plot(title, panels[title], width=width, height=PLOT_HEIGHT, colors=colors)
        for title in titles
    ]
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(columns):
        grid.add_column(width=width, no_wrap=True)
    for first in range(0, len(plots), columns):
        if first:
            grid.add_row()
        grid.add_row(*plots[first : first + columns])
    if left := [title for title in panels if title not in titles]:
        grid.add_row(safe_text(f"and {len(left)} more: --metrics", "dim"))
    return grid


def _make_score_table(curves: Mapping[str, Curve], chosen: Sequence[str], width: int) -> Table:
    """Summarize each metric, the chosen ones if any: its last, lowest, highest and best value."""
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
    return make_table(columns, width)


def _make_hook_time_table(curves: Mapping[str, Curve], width: int) -> Table:
    """Show each hook's time, the costliest first, and its share of the time of phases and hooks."""
    hooks = hook_times(curves)
    columns = [
        Column("hook", [safe_text(hook.name) for hook in hooks], priority=9, fold_width=20),
        Column("in all", [safe_text(format_duration(hook.seconds)) for hook in hooks], "right", 8),
        Column("an epoch", [safe_text(format_duration(hook.each)) for hook in hooks], "right", 7),
        Column("of the run", [safe_text(f"{hook.share:.2%}") for hook in hooks], "right", 6),
    ]
    return make_table(columns, width)


def _make_checkpoint_table(store: Store, run: str, width: int) -> Table:
    """List the checkpoints that still exist, their scores, and the best by each score."""
    rows = store.checkpoints(run, present=True)
    names = choose_key_metrics(
        {name for row in rows for name in row.scores if infer_mode(name)}, SCORES
    )
    columns = [
        Column("epoch", [safe_text(f"{row.epoch:,}") for row in rows], "right", 9),
        Column("size", [safe_text(format_bytes(row.bytes)) for row in rows], "right", 8),
        *make_score_columns([row.scores for row in rows], names),
        Column("written", [safe_text(row.written[:19].replace("T", " "), "dim") for row in rows]),
    ]
    return make_table(columns, width)


def _make_evaluation_table(store: Store, run: str, width: int) -> Table:
    """List requested evaluations and their results."""
    rows, results = list_requests(store, run), list_results(store, run)
    scores = [results.get((row.suite, row.epoch), {}) for row in rows]
    names = choose_key_metrics({name for result in scores for name in result}, SCORES)
    columns = [
        Column("suite", [safe_text(row.suite) for row in rows], priority=9),
        Column("epoch", [safe_text(f"{row.epoch:,}") for row in rows], "right", 9),
        Column("state", [state_text(row.state) for row in rows], priority=8),
        *make_score_columns(scores, names),
        Column("tries", [safe_text(row.tries, "dim") for row in rows], "right", 1),
        Column("worker", [safe_text(row.worker, "dim") for row in rows]),
    ]
    if any(row.error for row in rows):
        columns.append(
            Column("error", [safe_lines(row.error, "red") for row in rows], "left", 7, 30)
        )
    return make_table(columns, width)


def _make_artifact_table(store: Store, run: str, width: int) -> Table:
    """List the files of a run."""
    rows = store.artifacts(run)
    columns = [
        Column("kind", [safe_text(row.kind) for row in rows], priority=8),
        Column("epoch", [safe_text(f"{row.epoch:,}") for row in rows], "right", 7),
        Column("size", [safe_text(format_bytes(row.bytes)) for row in rows], "right", 6),
        Column("path", [safe_text(os.path.relpath(row.path)) for row in rows], "left", 9, 30),
    ]
    return make_table(columns, width)
