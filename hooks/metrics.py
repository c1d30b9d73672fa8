"""Logging: what an epoch measured goes to writers, and a resumed run repeats no record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hooks.combining import Chain, chain
from hooks.writers import Progress, Resumes, Trace, Value, Writer
from trainer import Hook, TrainState


def log_metrics(*writers: Writer) -> Chain:
    """Write each epoch's metrics to writers: consoles, files, trackers.

    Two parts: at the `start` the writers learn from where the run goes on; at each `epoch`
    they are given all metrics of the event and, under `steps/`, the per-step traces. Hooks whose
    scores are to be written stand before it; of control hooks the place does not matter.

    Args:
        writers: `Console()`, `JsonLines(path)`, `TensorBoard(directory)`, or one's own: see
            `Writer`.

    Raises:
        ValueError: there is no writer.
        TypeError: something is none.

    >>> from hooks.console import Console
    >>> print(log_metrics(Console()))
    event  stage    hook               reads  writes
    start  observe  log_metrics/start
    epoch  observe  log_metrics
    """
    if not writers:
        raise ValueError("log_metrics needs a writer: log_metrics(hooks.Console())")
    for writer in writers:
        if isinstance(writer, type) or not isinstance(writer, Writer):
            raise TypeError(
                f"log_metrics takes writers, objects with write, flush and close; got {writer!r}"
            )
    return chain(resume_writers(writers), write_metrics(writers))


def resume_writers(writers: Sequence[Writer]) -> Hook:
    """Tell writers that keep records, at the `start`, from where the run goes on."""

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        step, epoch = counts(state)
        for writer in writers:
            if isinstance(writer, Resumes):
                writer.resume(step, epoch)
        return state

    return Hook(run, "log_metrics/start", event="start", stage="observe")


def write_metrics(writers: Sequence[Writer]) -> Hook:
    """Write the metrics and traces of an `epoch` at its last step.

    Writers are flushed before a commit, and closed at the end, all of them whatever fails. If one
    fails and is tried again (`guard`), those before it, which have the record, are not.
    """
    broken_off: tuple[tuple[int, int], int] | None = None

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        nonlocal broken_off
        step, epoch = place = counts(state)
        begin = broken_off[1] if broken_off and broken_off[0] == place else 0
        progress = Progress(epoch, getattr(metrics, "epochs", None))
        values: dict[str, Value] = {"epoch": progress, **metrics}
        for name, trace in getattr(metrics, "steps", {}).items():
            values[f"steps/{name}"] = Trace(trace)
        for number, writer in enumerate(writers[begin:], begin):
            broken_off = place, number
            writer.write(step, values)
        broken_off = None
        return state

    def flush() -> None:
        for writer in writers:
            writer.flush()

    def close() -> None:
        failed: Exception | None = None
        for writer in writers:
            try:
                writer.close()
            except Exception as error:
                if failed is None:
                    failed = error
                else:
                    failed.add_note(f"and closing {writer!r} failed: {error!r}")
        if failed is not None:
            raise failed

    return Hook(run, "log_metrics", stage="observe", flush=flush, close=close)


def counts(state: TrainState) -> tuple[int, int]:
    """Read (step, epoch). Through numpy it takes 3 us each, by `int` of the array 10 to 20."""
    return int(np.asarray(state.step)), int(np.asarray(state.epoch))
