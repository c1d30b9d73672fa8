"""The command `replay`: what would these hooks have done in that run?"""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

from hooks.backtesting.not_recorded import NotOnRecord
from hooks.backtesting.past_runs import PastRun, read_run
from hooks.backtesting.rerun import Replay, replayed
from trainer import Hook, TrainState
from trainer.checks.modes import mode_of
from trainer.checks.pytrees import described
from trainer.commands.lookup.scores import reached, telling
from trainer.commands.lookup.stores import RunName, located
from trainer.commands.terminal.braille import colors_of, plot
from trainer.commands.terminal.calling import Refused, loading
from trainer.commands.terminal.output import Column, pairs, print_json, screen, table, text
from trainer.evaluators.suite_loading import load_named
from trainer.hook import parts_of
from trainer.host.escaping import shown, shown_lines
from trainer.runs.panels import Curve, panels
from trainer.runs.sparklines import number
from trainer.state import PyTree

CHANGES = 8
"""So many changes of a number are listed; of more a curve is drawn."""

SCORES = 6
"""Metrics that are shown of where a run would have ended."""

SMALL = 16
"""Numbers of an array that are printed; of a larger one shape and type."""


def replay(
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
        raise Refused(f"all hooks of {shown(hooks)} are observers, which --observers runs too")
    template = None if state is None else _state_of(state)
    with located(run, store) as (there, row):
        past = read_run(there, row)
    began = time.perf_counter()
    try:
        found = replayed(chosen, past, template)
    except (NotOnRecord, ValueError) as error:
        if not isinstance(error, NotOnRecord) and hasattr(error, "__notes__"):
            raise  # a hook's own failure, with where it happened
        told = shown_lines(error)
        raise Refused(told.replace("state=task.init(key, example)", "--state FILE:NAME")) from error
    seconds = time.perf_counter() - began
    if json:
        print_json(_as_json(found) | {"seconds": seconds})
        return 0
    _print(screen(), found, past, seconds, left_out=len(parts) - len(chosen))
    return 0


def _hooks_of(named: str) -> tuple[Hook, ...]:
    found = _made(named)
    try:
        return parts_of(found)
    except TypeError as error:
        raise Refused(f"{shown(named)} must be a hook or a chain: {shown(error)}") from error


def _state_of(named: str) -> TrainState:
    found = _made(named)
    if not isinstance(found, TrainState):
        raise Refused(
            f"{shown(named)} must be a TrainState, or a function that makes one; got "
            f"{shown(repr(found))[:100]}"
        )
    return found


def _made(named: str) -> Any:
    """Load what is named; call it if it is a function that needs no arguments, as no hook is."""
    with loading():
        found = load_named(named)
    if not inspect.isfunction(found):
        return found
    try:
        inspect.signature(found).bind()
    except TypeError:
        return found
    return found()


def _as_json(found: Replay) -> dict[str, Any]:
    epochs = [epoch._asdict() | {"memory": _plain(epoch.memory)} for epoch in found.epochs]
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
        return described(memory) if large else np.asarray(memory).tolist()
    return memory if isinstance(memory, bool | int | float | str) else repr(memory)


def _print(
    console: Console, found: Replay, past: PastRun, seconds: float, *, left_out: int
) -> None:
    known = len([epoch for epoch in past.epochs if epoch.epoch > 0])
    took = (
        f"{len(found.epochs):,} of {known:,} epochs on record, replayed in {1000 * seconds:.0f} ms"
    )
    console.print(text(found.run, "bold"), text(took, "dim"), soft_wrap=True)
    console.print(text(_verdict(found), "bold green" if found.ended is None else "bold yellow"))
    if left_out:
        many = f"{left_out} parts that observe were" if left_out > 1 else "1 part that observes was"
        console.print(text(f"{many} left out: --observers runs them", "dim"))
    if found.ended is not None and (columns := _there(found, past)):
        console.print(table(columns, console.width))
    _print_courses(console, "set", {e.epoch: e.hyperparams for e in found.epochs})
    _print_courses(console, "scored", {e.epoch: e.scores for e in found.epochs})
    if found.epochs and found.epochs[-1].memory:
        console.print()
        console.print(text(f"remembered after epoch {found.epochs[-1].epoch}", "bold"))
        rows = [(name, _told(_plain(part))) for name, part in found.epochs[-1].memory.items()]
        console.print(pairs(rows))


def _verdict(found: Replay) -> str:
    if found.ended is None:
        return "these hooks would have let it go on"
    if found.why == "stop":
        return f"stopped at epoch {found.ended:,} by {found.by}"
    return f"interrupted at epoch {found.ended:,} by {found.by}: {found.why}"


def _there(found: Replay, past: PastRun) -> list[Column]:
    """Show what the run had reached where it would have ended, and what it reached later."""
    curves = _curves({epoch.epoch: epoch.metrics for epoch in past.epochs})
    names = telling(curves, SCORES)
    here = next((e.metrics for e in past.epochs if e.epoch == found.ended), {})
    sums = [reached(curves[name], mode_of(name)) for name in names]
    if not names:
        return []
    return [
        Column("metric", [text(name) for name in names], matters=9),
        Column(
            f"at epoch {found.ended:,}",
            [text(number(here[name]) if name in here else "") for name in names],
            "right",
            8,
        ),
        Column(
            "best of the run",
            [
                text("" if one.best is None else f"{number(one.best)} at {one.epoch:,}")
                for one in sums
            ],
            "right",
            7,
        ),
        Column("last", [text(number(one.last)) for one in sums], "right", 6),
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
            steps = (f"{number(after)} after epoch {epoch:,.0f}" for epoch, _, after in changes)
            console.print(
                text(name, "bold"), text(f"{what}: {number(changes[0][1])}, {', '.join(steps)}")
            )
    found = panels(often, list(often))
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
    return number(plain) if isinstance(plain, float) else str(plain)[:300]
