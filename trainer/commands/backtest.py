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
from trainer.checks.modes import infer_mode
from trainer.checks.pytrees import describe_leaf
from trainer.commands.lookup.scores import choose_key_metrics, summarize_curve
from trainer.commands.lookup.stores import RunName, open_run
from trainer.commands.terminal.braille import colors_of, plot
from trainer.commands.terminal.calling import CommandError, convert_load_errors
from trainer.commands.terminal.output import make_console, print_json
from trainer.evaluators.suite_loading import load_named
from trainer.hook import flatten_hooks
from trainer.host.escaping import escape_lines, escape_text
from trainer.host.rich_tables import Column, make_key_value_table, make_table, safe_text
from trainer.runs.panels import Curve, group_panels
from trainer.runs.sparklines import format_number
from trainer.state import PyTree

CHANGES = 8
"""So many changes of a number are listed; of more a curve is drawn."""

SCORES = 6
"""Metrics that are shown of where a run would have ended."""

SMALL = 16
"""Numbers of an array that are printed; of a larger one shape and type."""


def backtest(
    run: RunName,
    /,
    *,
    hooks: str,
    state: str | None = None,
    observers: bool = False,
    store: str | None = None,
    json: bool = False,
) -> int:
    """Run hooks again over a run on record, without training: when would they have stopped it?

    Args:
        run: its name, or the path of its directory.
        hooks: FILE:NAME of a hook, a chain, or a function without arguments that makes one.
        state: FILE:NAME of the state that the run began with, or of a function without arguments
            that makes it: for hooks that set the learning rate, or read parameters where there are
            commits.
        observers: run observers too, such as log_metrics; they write where they always do.
        store: directory of the runs, file *.sqlite, or postgresql://USER@HOST/DATABASE; else
            $ENTRACTE_STORE, else runs/.
        json: print JSON.
    """
    parts = _hooks_of(hooks)
    chosen = [part for part in parts if observers or part.stage != "observe"]
    if not chosen:
        raise CommandError(
            f"all hooks of {escape_text(hooks)} are observers, which --observers runs too"
        )
    template = None if state is None else _state_of(state)
    with open_run(run, store) as (there, row):
        past = read_past_run(there, row)
    began = time.perf_counter()
    try:
        found = run_backtest(chosen, past, template)
    except (NotRecorded, ValueError) as error:
        if not isinstance(error, NotRecorded) and hasattr(error, "__notes__"):
            raise  # a hook's own failure, with where it happened
        told = escape_lines(error)
        raise CommandError(
            told.replace("state=task.init(key, example)", "--state FILE:NAME")
        ) from error
    seconds = time.perf_counter() - began
    if json:
        print_json(_as_json(found) | {"seconds": seconds})
        return 0
    _print(make_console(), found, past, seconds, left_out=len(parts) - len(chosen))
    return 0


def _hooks_of(named: str) -> tuple[Hook, ...]:
    found = _made(named)
    try:
        return flatten_hooks(found)
    except TypeError as error:
        raise CommandError(
            f"{escape_text(named)} must be a hook or a chain: {escape_text(error)}"
        ) from error


def _state_of(named: str) -> TrainState:
    found = _made(named)
    if not isinstance(found, TrainState):
        raise CommandError(
            f"{escape_text(named)} must be a TrainState, or a function that makes one; got "
            f"{escape_text(repr(found))[:100]}"
        )
    return found


def _made(named: str) -> Any:
    """Load what is named; call it if it is a function that needs no arguments, as no hook is."""
    with convert_load_errors():
        found = load_named(named)
    if not inspect.isfunction(found):
        return found
    try:
        inspect.signature(found).bind()
    except TypeError:
        return found
    return found()


def _as_json(found: Backtest) -> dict[str, Any]:
    epochs = [epoch._asdict() | {"hook_state": _plain(epoch.hook_state)} for epoch in found.epochs]
    return found._asdict() | {"epochs": epochs}


def _plain(memory: PyTree) -> Any:
    """Give what JSON and people can read of a memory."""
    if hasattr(memory, "_asdict"):
        memory = memory._asdict()
    if isinstance(memory, Mapping):
        return {str(name): _plain(part) for name, part in memory.items()}
    if isinstance(memory, list | tuple):
        return [_plain(part) for part in memory]
    if isinstance(memory, jax.Array | np.ndarray | np.generic):
        keys = jax.dtypes.issubdtype(memory.dtype, jax.dtypes.prng_key)
        large = keys or memory.size > SMALL
        return describe_leaf(memory) if large else np.asarray(memory).tolist()
    return memory if isinstance(memory, bool | int | float | str) else repr(memory)


def _print(
    console: Console, found: Backtest, past: PastRun, seconds: float, *, left_out: int
) -> None:
    known = len([epoch for epoch in past.epochs if epoch.epoch > 0])
    took = (
        f"{len(found.epochs):,} of {known:,} epochs on record, replayed in {1000 * seconds:.0f} ms"
    )
    console.print(safe_text(found.run, "bold"), safe_text(took, "dim"), soft_wrap=True)
    console.print(
        safe_text(_verdict(found), "bold green" if found.stop_epoch is None else "bold yellow")
    )
    if left_out:
        many = f"{left_out} parts that observe were" if left_out > 1 else "1 part that observes was"
        console.print(safe_text(f"{many} left out: --observers runs them", "dim"))
    if found.stop_epoch is not None and (columns := _there(found, past)):
        console.print(make_table(columns, console.width))
    _print_courses(console, "set", {e.epoch: e.hyperparams for e in found.epochs})
    _print_courses(console, "scored", {e.epoch: e.scores for e in found.epochs})
    if found.epochs and found.epochs[-1].hook_state:
        console.print()
        console.print(safe_text(f"remembered after epoch {found.epochs[-1].epoch}", "bold"))
        rows = [(name, _told(_plain(part))) for name, part in found.epochs[-1].hook_state.items()]
        console.print(make_key_value_table(rows))


def _verdict(found: Backtest) -> str:
    if found.stop_epoch is None:
        return "these hooks would have let it go on"
    if found.stop_reason == "stop":
        return f"stopped at epoch {found.stop_epoch:,} by {found.stopped_by}"
    return f"interrupted at epoch {found.stop_epoch:,} by {found.stopped_by}: {found.stop_reason}"


def _there(found: Backtest, past: PastRun) -> list[Column]:
    """Show what the run had reached where it would have ended, and what it reached later."""
    curves = _curves({epoch.epoch: epoch.metrics for epoch in past.epochs})
    names = choose_key_metrics(curves, SCORES)
    here = next((e.metrics for e in past.epochs if e.epoch == found.stop_epoch), {})
    sums = [summarize_curve(curves[name], infer_mode(name)) for name in names]
    if not names:
        return []
    return [
        Column("metric", [safe_text(name) for name in names], priority=9),
        Column(
            f"at epoch {found.stop_epoch:,}",
            [safe_text(format_number(here[name]) if name in here else "") for name in names],
            "right",
            8,
        ),
        Column(
            "best of the run",
            [
                safe_text("" if one.best is None else f"{format_number(one.best)} at {one.epoch:,}")
                for one in sums
            ],
            "right",
            7,
        ),
        Column("last", [safe_text(format_number(one.last)) for one in sums], "right", 6),
    ]


def _curves(by_epoch: Mapping[int, Mapping[str, float]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for epoch, values in by_epoch.items():
        for name, value in values.items():
            curve = curves.setdefault(name, Curve())
            curve.epochs.append(epoch)
            curve.values.append(value)
    return curves


def _print_courses(
    console: Console, what: str, by_epoch: Mapping[int, Mapping[str, float]]
) -> None:
    """List what changed, or draw it where it changed often."""
    often: dict[str, Curve] = {}
    for name, curve in _curves(by_epoch).items():
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
    found = group_panels(often, list(often))
    colors = colors_of(found)
    for panel, curves in found.items():
        width = min(console.width, 100)
        console.print()
        console.print(plot(panel, curves, width=width, height=6, colors=colors))


def _told(plain: Any) -> str:
    """Write a memory on a line, the first of what is long."""
    if isinstance(plain, Mapping):
        return ", ".join(f"{name} {_told(part)}" for name, part in plain.items())[:300]
    if isinstance(plain, Sequence) and not isinstance(plain, str):
        return f"[{', '.join(map(_told, plain))}]"[:300]
    return format_number(plain) if isinstance(plain, float) else str(plain)[:300]
