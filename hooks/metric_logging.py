"""Write each epoch's metrics to writers, without repeating a record in a resumed run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hooks.combining import Chain, chain
from hooks.writers.values import Progress, Trace, Value
from hooks.writers.writer import DryRunWriter, ResumableWriter, StartableWriter, Writer
from trainer import Hook, TrainState
from trainer.checks.arguments import describe_value
from trainer.host.time_spans import span
from trainer.state import read_epoch, read_step_count, read_step_epoch

Values = Callable[[TrainState, Mapping[str, float]], Mapping[str, Value]]
"""`(state, metrics) -> {name: value for a writer}`."""


def log_metrics(*writers: Writer) -> Chain:
    """Write each epoch's metrics to writers: consoles, files, trackers.

    At the `start` the writers learn where the run resumes, and get the scores from before training
    (`evaluate(..., sanity=True)`); at each `epoch` they get all metrics of the event and, under
    `steps/`, the per-step traces. List it after the observers whose scores it shall write.

    Args:
        writers: `Console()`, `JsonLines(path)`, or your own: see `Writer`.

    Raises:
        TypeError, ValueError: an argument is no writer; there is none.

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
        resume_writers("log_metrics", writers, initial_values=_collect_values),
        write_values("log_metrics", writers, _collect_values),
    )


def _collect_values(state: TrainState, metrics: Mapping[str, float]) -> Mapping[str, Value]:
    traces = getattr(metrics, "steps", {})
    return {**metrics, **{f"steps/{name}": Trace(trace) for name, trace in traces.items()}}


def check_writers(who: str, writers: Sequence[Any]) -> None:
    """Check that all are writers; raise TypeError if one is not."""
    for writer in writers:
        if not isinstance(writer, type) and isinstance(writer, Writer):
            continue
        remedy = ""
        if isinstance(writer, str | Path):
            remedy = f": TensorBoard({str(writer)!r}) or JsonLines(...) writes to a path"
        elif isinstance(writer, type):
            remedy = f": create one, {writer.__name__}(...)"
        elif isinstance(writer, list | tuple):
            remedy = f": pass them one by one, {who}(*writers)"
        raise TypeError(
            f"{who} takes writers, objects with write, flush and close; got "
            f"{describe_value(writer)}{remedy}"
        )


def resume_writers(
    name: str, writers: Sequence[Writer], *, initial_values: Values | None = None
) -> Hook:
    """Make a hook that resumes writers at the `start`; other hooks may share them.

    Args:
        name: of the hook that they belong to.
        writers: to resume.
        initial_values: what to write of the scores that earlier hooks computed before training.
    """

    def resume(state: TrainState, chosen: Sequence[Writer]) -> TrainState:
        for writer in chosen:
            if isinstance(writer, ResumableWriter):
                writer.resume(*read_step_epoch(state))
        return state

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        resume(state, writers)
        progress = Progress(read_epoch(state), getattr(metrics, "epochs", None))
        if not state.stop and progress.done != progress.total:
            for writer in writers:
                if isinstance(writer, StartableWriter):
                    writer.begin(progress)
        if initial_values and metrics and not progress.done:  # a resumed run must not repeat it
            values = _with_progress(state, metrics, initial_values)
            for writer in writers:
                writer.write(read_step_count(state), values)
        return state

    def dry_run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        return resume(state, [w for w in writers if not isinstance(w, DryRunWriter)])

    return Hook(run, f"{name}/start", event="start", stage="observe", dry_run=dry_run)


def write_values(name: str, writers: Sequence[Writer], values_of: Values) -> Hook:
    """Make a hook that writes values, and the run's progress as `epoch`, at the state's step.

    All writers are closed at the end, even if one fails. If one fails and is retried (`guard`),
    those before it, which have the record, are skipped.
    """
    failed_at: tuple[tuple[int, int], int] | None = None

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        nonlocal failed_at
        step, _ = place = read_step_epoch(state)
        first = failed_at[1] if failed_at and failed_at[0] == place else 0
        values = _with_progress(state, metrics, values_of)
        for number, writer in enumerate(writers[first:], first):
            failed_at = place, number
            with span("writer", type(writer).__name__):
                writer.write(step, values)
        failed_at = None
        return state

    def dry_run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        step, values = read_step_count(state), _with_progress(state, metrics, values_of)
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

    def close(error: BaseException | None) -> None:
        nonlocal failed_at
        failed_at = None  # a later run may resume from an earlier place
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
        """Return the history of the first writer that has one."""
        return next((writer.history() for writer in writers if hasattr(writer, "history")), [])

    return Hook(
        run, name, stage="observe", dry_run=dry_run, read_history=history, flush=flush, close=close
    )


def _with_progress(
    state: TrainState, metrics: Mapping[str, float], values_of: Values
) -> dict[str, Value]:
    progress = Progress(read_epoch(state), getattr(metrics, "epochs", None))
    return {"epoch": progress, **values_of(state, metrics)}
