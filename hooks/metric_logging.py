"""Logging: what an epoch measured goes to writers, and a resumed run repeats no record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hooks.combining import Chain, chain
from hooks.writers.values import Progress, Trace, Value
from hooks.writers.writer import DryRunWriter, ResumableWriter, StartableWriter, Writer
from trainer import Hook, TrainState
from trainer.checks.arguments import describe_value
from trainer.host.time_spans import span
from trainer.state import read_step_count

Values = Callable[[TrainState, Mapping[str, float]], Mapping[str, Value]]
"""`(state, metrics) -> {name: what a writer may be given}`."""


def log_metrics(*writers: Writer) -> Chain:
    """Write each epoch's metrics to writers: consoles, files, trackers.

    Two parts: at the `start` the writers learn from where the run goes on, and are given what was
    found out before training (`evaluate(..., sanity=True)`); at each `epoch` they are given all
    metrics of the event and, under `steps/`, the per-step traces. Hooks whose scores are to be
    written stand before it; of control hooks the place does not matter.

    Args:
        writers: `Console()`, `JsonLines(path)`, `TensorBoard(directory)`, or one's own: see
            `Writer`.

    Raises:
        ValueError: there is no writer.
        TypeError: something is none.

    >>> from hooks.writers.console import Console
    >>> print(log_metrics(Console()))
    event  stage    hook               reads  writes
    start  observe  log_metrics/start
    epoch  observe  log_metrics
    """
    if not writers:
        raise ValueError("log_metrics needs a writer: log_metrics(hooks.Console())")
    check_writers("log_metrics", writers)
    return chain(
        resume_writers("log_metrics", writers, scores_of=_collect_values),
        write_values("log_metrics", writers, _collect_values),
    )


def _collect_values(state: TrainState, metrics: Mapping[str, float]) -> Mapping[str, Value]:
    traces = getattr(metrics, "steps", {})
    return {**metrics, **{f"steps/{name}": Trace(trace) for name, trace in traces.items()}}


def check_writers(who: str, writers: Sequence[Any]) -> None:
    """Refuse what is no writer.

    Raises:
        TypeError: something is none.
    """
    for writer in writers:
        if isinstance(writer, type) or not isinstance(writer, Writer):
            remedy = ""
            if isinstance(writer, str | Path):
                remedy = f": TensorBoard({str(writer)!r}) or JsonLines(...) writes to a path"
            elif isinstance(writer, type):
                remedy = f": make one, {writer.__name__}(...)"
            elif isinstance(writer, list | tuple):
                remedy = f": give them one by one, {who}(*writers)"
            raise TypeError(
                f"{who} takes writers, objects with write, flush and close; got "
                f"{describe_value(writer)}"
                f"{remedy}"
            )


def resume_writers(
    name: str, writers: Sequence[Writer], *, scores_of: Values | None = None
) -> Hook:
    """Tell writers that keep records, at the `start`, from where the run goes on.

    It harms none to be told twice, by hooks that share it.

    Args:
        name: of the hook that they belong to.
        writers: to tell.
        scores_of: what to write then of what hooks before this one found out, where they did.
    """

    def resume(state: TrainState, chosen: Sequence[Writer]) -> TrainState:
        for writer in chosen:
            if isinstance(writer, ResumableWriter):
                writer.resume(*read_step_epoch(state))
        return state

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        resume(state, writers)
        progress = Progress(read_step_epoch(state)[1], getattr(metrics, "epochs", None))
        if not state.stop and progress.done != progress.total:
            for writer in writers:
                if isinstance(writer, StartableWriter):
                    writer.begin(progress)
        if (
            scores_of and metrics and not read_step_epoch(state)[1]
        ):  # or a run that goes on repeats it
            for writer in writers:
                writer.write(read_step_epoch(state)[0], _with_progress(state, metrics, scores_of))
        return state

    def dry_run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        return resume(state, [w for w in writers if not isinstance(w, DryRunWriter)])

    return Hook(run, f"{name}/start", event="start", stage="observe", dry_run=dry_run)


def write_values(name: str, writers: Sequence[Writer], values_of: Values) -> Hook:
    """Write values, and under `epoch` how far the run is, at the state's step.

    Writers are flushed before a commit, and closed at the end, all of them whatever fails. If one
    fails and is tried again (`guard`), those before it, which have the record, are not.
    """
    broken_off: tuple[tuple[int, int], int] | None = None

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        nonlocal broken_off
        step, _ = place = read_step_epoch(state)
        begin = broken_off[1] if broken_off and broken_off[0] == place else 0
        values = _with_progress(state, metrics, values_of)
        for number, writer in enumerate(writers[begin:], begin):
            broken_off = place, number
            with span("writer", type(writer).__name__):
                writer.write(step, values)
        broken_off = None
        return state

    def dry_run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        step, values = read_step_epoch(state)[0], _with_progress(state, metrics, values_of)
        for writer in writers:
            if isinstance(writer, DryRunWriter):
                writer.dry_run(step, values)
            elif isinstance(writer, ResumableWriter):  # it resumes again when the run starts
                writer.write(step, values)
        return state

    def flush() -> None:
        for writer in writers:
            with span("writer", type(writer).__name__):
                writer.flush()

    def close() -> None:
        nonlocal broken_off
        broken_off = None  # a later run goes on from an earlier place
        failed: Exception | None = None
        for writer in writers:
            try:
                with span("writer", type(writer).__name__):
                    writer.close()
            except Exception as error:
                if failed is None:
                    failed = error
                else:
                    failed.add_note(f"and closing {writer!r} failed: {error!r}")
        if failed is not None:
            raise failed

    def history() -> list[dict[str, float]]:
        """Read what the first writer that can gives back."""
        known = (writer.history() for writer in writers if hasattr(writer, "history"))
        return next(known, [])

    return Hook(
        run,
        name,
        stage="observe",
        dry_run=dry_run,
        read_history=history,
        flush=flush,
        close=close,
    )


def _with_progress(
    state: TrainState, metrics: Mapping[str, float], values_of: Values
) -> dict[str, Value]:
    progress = Progress(read_step_epoch(state)[1], getattr(metrics, "epochs", None))
    return {"epoch": progress, **values_of(state, metrics)}


def read_step_epoch(state: TrainState) -> tuple[int, int]:
    """Read (step, epoch). Through numpy it takes 3 us each, by `int` of the array 10 to 20."""
    return read_step_count(state), int(np.asarray(state.epoch))
