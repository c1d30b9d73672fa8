"""The command `show`: everything about a recorded run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from hooks.writers.console_layout import supports_unicode
from trainer.checks.modes import ASIDE, infer_mode
from trainer.commands.lookup.scores import as_json, check_metric_names
from trainer.commands.lookup.stores import RunName, StoreName, open_run
from trainer.commands.terminal.braille import COLORS, plot
from trainer.commands.terminal.output import make_console, print_json, state_text
from trainer.commands.terminal.sections import (
    make_artifact_table,
    make_checkpoint_table,
    make_evaluation_table,
    make_hook_time_table,
    make_score_table,
)
from trainer.configuration.setting_rows import format_settings
from trainer.host.amounts import format_age, format_progress
from trainer.host.rich_tables import make_key_value_table, safe_lines, safe_text
from trainer.runs.metric_curves import read_curves
from trainer.runs.panels import HOOK_PREFIX, Curve, assign_colors, finite_values, group_panels
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
        sections: list[tuple[str, RenderableType | None]] = [
            ("", _make_head(opened, row)),
            ("Curves", _draw_plots(console, panels, draw_all=bool(chosen))),
            ("Scores", make_score_table(curves, chosen, console.width)),
            ("Time in hooks", make_hook_time_table(curves, console.width)),
            ("Checkpoints", make_checkpoint_table(opened, row.name, console.width)),
            ("Evaluations", make_evaluation_table(opened, row.name, console.width)),
            ("Artifacts", make_artifact_table(opened, row.name, console.width)),
            ("Configuration", _make_rows(format_settings(row.config))),
            ("Environment", _make_rows(row.environment)),
        ]
    for title, body in sections:
        if body is not None:
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
        "scores": as_json(plain, {name: infer_mode(name) for name in plain}),
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
    if not panels or not supports_unicode(console):
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


def _make_rows(rows: Mapping[str, str]) -> Table | None:
    return make_key_value_table([*rows.items()]) if rows else None
