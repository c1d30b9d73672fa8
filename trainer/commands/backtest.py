"""The command `backtest`: what would these hooks have done in that run?"""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

from hooks.backtesting.not_recorded import NotRecorded
from hooks.backtesting.past_runs import PastRun, read_past_run
from hooks.backtesting.rerun import Backtest, run_backtest
from trainer import Hook, TrainState
from trainer.checks.arguments import can_call_with
from trainer.checks.modes import infer_mode
from trainer.checks.pytrees import describe_leaf, is_key
from trainer.commands.lookup.scores import choose_key_metrics, summarize_curve
from trainer.commands.lookup.stores import RunName, StoreName, open_run
from trainer.commands.terminal.braille import COLORS, plot
from trainer.commands.terminal.calling import LOAD_ERRORS, CommandError, convert_errors
from trainer.commands.terminal.output import make_console, print_json
from trainer.evaluators.suite_loading import load_named
from trainer.hook import flatten_hooks
from trainer.host.amounts import format_duration
from trainer.host.escaping import escape_lines, escape_text
from trainer.host.rendering.panels import Curve, assign_colors, group_panels
from trainer.host.rendering.rich_tables import Column, make_key_value_table, make_table, safe_text
from trainer.host.rendering.sparklines import format_number
from trainer.state import PyTree

CHANGES = 8
"""Changes of a number to list, at most; more are drawn as a curve."""

SCORES = 6
"""Metrics to show of the epoch where a run would have ended."""

SMALL = 16
"""Numbers of an array to print, at most; of a larger array shape and type are printed."""


def backtest(
    run: RunName,
    /,
    *,
    hooks: str,
    state: str | None = None,
    observers: bool = False,
    store: StoreName = None,
    json: bool = False,
) -> int:
    """Run hooks again over a recorded run, without training: when would they have stopped it?

    Args:
        run: its name, or the path of its directory.
        hooks: FILE:NAME of a hook, a chain, or a function without arguments that returns one.
        state: FILE:NAME of the state that the run began with, or of a function without arguments
            that returns it: for hooks that set the learning rate, or read parameters at epochs that
            have checkpoints.
        observers: run observers too, such as log_metrics; they write where they always do.
        json: print JSON.
    """
    parts = _load_hooks(hooks)
    chosen = [part for part in parts if observers or part.stage != "observe"]
    if not chosen:
        raise CommandError(
            f"all hooks of {escape_text(hooks)} are observers, which only --observers runs"
        )
    template = None if state is None else _load_state(state)
    with open_run(run, store) as (there, row):
        past = read_past_run(there, row)
    began = time.perf_counter()
    try:
        result = run_backtest(chosen, past, template)
    except (NotRecorded, ValueError) as error:
        if not isinstance(error, NotRecorded) and hasattr(error, "__notes__"):
            raise  # a hook's own failure, with where it happened
        message = escape_lines(error)
        raise CommandError(
            message.replace("state=task.init(key, example)", "--state FILE:NAME")
        ) from error
    seconds = time.perf_counter() - began
    if json:
        print_json(_to_data(result) | {"seconds": seconds})
        return 0
    _print(make_console(), result, past, seconds, left_out=len(parts) - len(chosen))
    return 0


def _load_hooks(named: str) -> tuple[Hook, ...]:
    loaded = _load(named)
    try:
        return flatten_hooks(loaded)
    except TypeError as error:
        raise CommandError(
            f"{escape_text(named)} must be a hook or a chain: {escape_text(error)}"
        ) from error


def _load_state(named: str) -> TrainState:
    loaded = _load(named)
    if not isinstance(loaded, TrainState):
        raise CommandError(
            f"{escape_text(named)} must be a TrainState, or a function that returns one; got "
            f"{escape_text(repr(loaded))[:100]}"
        )
    return loaded


def _load(named: str) -> Any:
    """Load an object; call it if it is a function without required arguments, as no hook is."""
    with convert_errors(*LOAD_ERRORS):
        loaded = load_named(named)
    return loaded() if inspect.isfunction(loaded) and can_call_with(loaded, 0) else loaded


def _to_data(result: Backtest) -> dict[str, Any]:
    epochs = [
        epoch._asdict() | {"hook_state": _simplify(epoch.hook_state)} for epoch in result.epochs
    ]
    return result._asdict() | {"epochs": epochs}


def _simplify(tree: PyTree) -> Any:
    """Convert a hook state to data that JSON and people can read."""
    if hasattr(tree, "_asdict"):
        tree = tree._asdict()
    if isinstance(tree, Mapping):
        return {str(name): _simplify(part) for name, part in tree.items()}
    if isinstance(tree, list | tuple):
        return [_simplify(part) for part in tree]
    if isinstance(tree, jax.Array | np.ndarray | np.generic):
        large = is_key(tree) or tree.size > SMALL
        return describe_leaf(tree) if large else np.asarray(tree).tolist()
    return tree if isinstance(tree, bool | int | float | str) else repr(tree)


def _print(
    console: Console, result: Backtest, past: PastRun, seconds: float, *, left_out: int
) -> None:
    known = len([epoch for epoch in past.epochs if epoch.epoch > 0])
    count = f"{len(result.epochs):,} of {known:,} recorded epochs"
    took = f"{count}, backtested in {format_duration(seconds)}"
    console.print(safe_text(result.run, "bold"), safe_text(took, "dim"), soft_wrap=True)
    style = "bold green" if result.stop_epoch is None else "bold yellow"
    console.print(safe_text(_describe_end(result), style))
    if left_out:
        parts = "1 observing part was" if left_out == 1 else f"{left_out} observing parts were"
        console.print(safe_text(f"{parts} left out: --observers runs them", "dim"))
    if result.stop_epoch is not None:
        table = make_table(_compare_end(result, past), console.width)
        if table.row_count:
            console.print(table)
    _print_changes(console, "set", {e.epoch: e.hyperparams for e in result.epochs})
    _print_changes(console, "scored", {e.epoch: e.scores for e in result.epochs})
    if result.epochs and result.epochs[-1].hook_state:
        console.print()
        console.print(safe_text(f"hook states after epoch {result.epochs[-1].epoch}", "bold"))
        states = result.epochs[-1].hook_state
        rows = [(name, _format(_simplify(tree))) for name, tree in states.items()]
        console.print(make_key_value_table(rows))


def _describe_end(result: Backtest) -> str:
    if result.stop_epoch is None:
        return "these hooks would have let it continue"
    where = f"at epoch {result.stop_epoch:,} by {result.stopped_by}"
    stopped = result.stop_reason == "stop"
    return f"stopped {where}" if stopped else f"interrupted {where}: {result.stop_reason}"


def _compare_end(result: Backtest, past: PastRun) -> list[Column]:
    """Compare the metrics at the epoch where the run would have ended with those of all epochs."""
    curves = _collect_curves({epoch.epoch: epoch.metrics for epoch in past.epochs})
    names = choose_key_metrics(curves, SCORES)
    at_end = next((e.metrics for e in past.epochs if e.epoch == result.stop_epoch), {})
    summaries = [summarize_curve(curves[name], infer_mode(name)) for name in names]
    ends = [safe_text(format_number(at_end[name]) if name in at_end else "") for name in names]
    bests = [
        safe_text("" if found.best is None else f"{format_number(found.best)} at {found.epoch:,}")
        for found in summaries
    ]
    lasts = [safe_text(format_number(found.last)) for found in summaries]
    return [
        Column("metric", [safe_text(name) for name in names], priority=9),
        Column(f"at epoch {result.stop_epoch:,}", ends, "right", 8),
        Column("best of the run", bests, "right", 7),
        Column("last", lasts, "right", 6),
    ]


def _collect_curves(by_epoch: Mapping[int, Mapping[str, float]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for epoch, values in by_epoch.items():
        for name, value in values.items():
            curves.setdefault(name, Curve()).add(epoch, value)
    return curves


def _print_changes(
    console: Console, what: str, by_epoch: Mapping[int, Mapping[str, float]]
) -> None:
    """List what changed, or draw it if it changed often."""
    often: dict[str, Curve] = {}
    for name, curve in _collect_curves(by_epoch).items():
        changes = [
            (epoch, before, after)
            for (_, before), (epoch, after) in itertools.pairwise(
                zip(curve.epochs, curve.values, strict=True)
            )
            if before != after
        ]
        if len(changes) > CHANGES:
            often[name] = curve
        elif changes:
            steps = (
                f"{format_number(after)} after epoch {epoch:,.0f}" for epoch, _, after in changes
            )
            console.print(
                safe_text(name, "bold"),
                safe_text(f"{what}: {format_number(changes[0][1])}, {', '.join(steps)}"),
            )
    panels = group_panels(often, list(often))
    colors = assign_colors(panels, COLORS)
    for panel, curves in panels.items():
        width = min(console.width, 100)
        console.print()
        console.print(plot(panel, curves, width=width, height=6, colors=colors))


def _format(data: Any) -> str:
    """Format a hook state on one line, cut if it is long."""
    if isinstance(data, Mapping):
        return ", ".join(f"{name} {_format(part)}" for name, part in data.items())[:300]
    if isinstance(data, Sequence) and not isinstance(data, str):
        return f"[{', '.join(map(_format, data))}]"[:300]
    return format_number(data) if isinstance(data, float) else str(data)[:300]
