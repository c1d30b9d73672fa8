"""The command `watch`: show the state of runs and evaluators, now and as it changes."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

from rich.live import Live

from trainer.commands.lookup.snapshots import WatchSnapshot, render_snapshot, take_snapshot
from trainer.commands.lookup.stores import RunNames, StoreName, infer_store, resolve_store
from trainer.commands.terminal.calling import CommandError
from trainer.commands.terminal.output import make_console, print_json
from trainer.host.escaping import escape_text

SECONDS = 1.0
"""Seconds between two snapshots."""

FAILED, STALLED = 1, 3
"""Exit statuses, see `watch`."""


def watch(
    runs: RunNames = (),
    /,
    *,
    store: StoreName = None,
    once: bool = False,
    until: Literal["finished"] | None = None,
    json: bool = False,
) -> int:
    """Watch runs and evaluators live; a run without heartbeats is shown as stalled.

    It continues until Ctrl-C, or as --once and --until say. Exit status, for scripts: 0, all
    watched runs have finished or are running; 1, a run has failed or was interrupted; 3, none of
    these, but a run has stalled.

    Args:
        runs: names in the store, or paths of runs' directories; by default all running ones, and
            those that start.
        once: show one snapshot.
        until: continue until none of the runs is running.
        json: print JSON once, with --until at the end.
    """
    stores = {
        os.path.realpath(resolve_store(name)): name
        for name in (infer_store(run, store) for run in runs)
    }
    if len(stores) > 1:
        raise CommandError(
            f"these runs are in several stores, watch one: {escape_text(', '.join(stores))}"
        )
    console = make_console()
    snapshots = poll_snapshots(next(iter(stores.values()), store), runs, until)
    snapshot, problem = next(snapshots)
    if json:
        for later, _ in snapshots if until else ():
            snapshot = later
        print_json(_to_data(snapshot))
    elif once:
        console.print(render_snapshot(snapshot, console.width))
    else:
        first = render_snapshot(snapshot, console.width)
        with Live(first, console=console, auto_refresh=False) as live:
            for snapshot, problem in snapshots:
                live.update(render_snapshot(snapshot, console.width, problem), refresh=True)
        if not console.is_terminal:  # Live leaves its last line open there
            console.print()
    return exit_status([run.state for run in snapshot.runs])


def poll_snapshots(
    store: str | None, names: Sequence[str], until: str | None
) -> Iterator[tuple[WatchSnapshot, str]]:
    """Poll the store, as `watch` does.

    Yields:
        The newest snapshot, and, if it is not of now, why.

    Raises:
        CommandError: at the first poll, there is no such run, or the store cannot be reached.
    """
    snapshot, problem = take_snapshot(store, names, ()), ""
    while True:
        yield snapshot, problem
        if until is not None and not any(run.state == "running" for run in snapshot.runs):
            return
        time.sleep(SECONDS)
        watched = {run.row.name for run in snapshot.runs}
        try:
            snapshot, problem = take_snapshot(store, names, watched), ""
        except CommandError as refusal:  # a server may restart
            problem = str(refusal)


def exit_status(states: Collection[str]) -> int:
    """Return the exit status for the states of runs.

    >>> exit_status([]), exit_status(["finished", "stalled"]), exit_status(["failed", "stalled"])
    (0, 3, 1)
    """
    if {"failed", "interrupted"} & set(states):
        return FAILED
    return STALLED if "stalled" in states else 0


def _to_data(snapshot: WatchSnapshot) -> dict[str, Any]:
    return {
        "runs": [
            {
                "name": run.row.name,
                "state": run.state,
                "error": run.row.error,
                "epoch": run.row.epoch,
                "epochs": run.row.epochs,
                "step": run.row.step,
                "seconds_since_sign": snapshot.now - run.row.beat,
                "metrics": run.newest,
            }
            for run in snapshot.runs
        ],
        "evaluators": [
            row._asdict() | {"seconds_since_sign": snapshot.now - row.beat}
            for row in snapshot.workers
        ],
        "evaluations": dict(snapshot.requests),
    }
