"""Monitoring: what a run takes of the machine, and a sign of life."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from hooks.combining import Chain, chain
from hooks.metric_logging import read_step_epoch
from hooks.writers.writer import make_folder
from trainer import Hook, TrainState
from trainer.checks.arguments import require_integer
from trainer.checks.paths import to_absolute_path
from trainer.host.safe_open import create_new
from trainer.runs import Run

GB = 1e9
"""Bytes."""

DEVICE_MEMORY = {
    "system/device_memory_gb": "bytes_in_use",
    "system/device_memory_peak_gb": "peak_bytes_in_use",
}
"""Scores, and what `Device.memory_stats` calls them."""


def watch_system(*, batch_size: int | None = None) -> Hook:
    """Score what the run takes of the machine; place it before `log_metrics`.

    `system/host_memory_gb` (resident) and `system/cpu_percent` (100 is one busy core) are this
    process's. `system/device_memory_gb` and `system/device_memory_peak_gb` are those of the fullest
    local device, on backends that tell: GPUs and TPUs do, CPUs do not. 1 GB is 1e9 bytes. They are
    read at most once a second, since a share of the CPU says nothing over less; until the next
    reading the last one stands.

    Args:
        batch_size: examples in a step; where given, `system/examples_per_second` is scored too.

    Raises:
        ImportError: psutil is not installed.
        ValueError: the batch size is below 1.

    >>> import jax
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> scores = watch_system(batch_size=64)(state, {"time/steps_per_second": 100.0}).scores
    >>> scores["system/examples_per_second"], scores["system/host_memory_gb"] > 0
    (6400.0, True)
    """
    try:
        import psutil
    except ImportError as error:
        error.add_note('watch_system needs psutil: pip install "entracte[monitoring]"')
        raise
    if batch_size is not None:
        require_integer("batch_size", batch_size, 1)
    process = psutil.Process()
    process.cpu_percent()  # gives 0, and starts the count
    reading: dict[str, float] = {}
    read_at = float("-inf")

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        nonlocal reading, read_at
        if time.monotonic() - read_at >= 1:
            reading, read_at = read(), time.monotonic()
        scores = {**state.scores, **reading}
        if batch_size is not None:
            scores["system/examples_per_second"] = batch_size * metrics["time/steps_per_second"]
        return state.replace(scores=scores)

    def read() -> dict[str, float]:
        return {
            "system/host_memory_gb": process.memory_info().rss / GB,
            "system/cpu_percent": process.cpu_percent(),
            **device_memory(),
        }

    def names(state: TrainState) -> tuple[str, ...]:
        speed = () if batch_size is None else ("system/examples_per_second",)
        return ("system/host_memory_gb", "system/cpu_percent", *device_memory(), *speed)

    reads = () if batch_size is None else ("time/steps_per_second",)
    return Hook(run, "watch_system", stage="observe", reads=reads, writes=names)


def device_memory() -> dict[str, float]:
    """Read the memory of the fullest local device; nothing where the backend does not tell."""
    known = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    return {
        score: max(stats[key] for stats in known) / GB
        for score, key in DEVICE_MEMORY.items()
        if known and all(key in stats for stats in known)
    }


def heartbeat(path: str | os.PathLike[str] | Run) -> Chain:
    """Leave a sign of life, in a JSON file or in the store, for whoever watches over the run.

    At `start`, `epoch` and `end`; of epochs shorter than a second not all are told.

    The file is replaced, so that a reader always finds a whole one: the time in unix seconds, the
    event, epoch, step, process id and host. A time that is old without the event `end` tells of a
    run that hangs or died. To replace it takes 0.4 ms on a disk.

    In the store it is the run's own row, from which `trainer.runs.RunRow.status` tells a run that
    stalled. There it says how the run ended too: `finished`, `interrupted`, or `failed` and of
    what.

    Args:
        path: of the file; its folder is made. Or the run on record, `trainer.runs.Run(directory)`.

    Raises:
        OSError: the folder cannot be written to, or the path is one itself.

    >>> import tempfile, jax
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = heartbeat(f"{folder}/alive.json")(state, {})
    ...     print(Path(folder, "alive.json").read_text())
    {"time": ..., "event": "epoch", "epoch": 0, "step": 0, "pid": ..., "host": "..."}
    """
    return _beat_of(path) if isinstance(path, Run) else _beat_in(to_absolute_path(path, "beat"))


def _beat_in(path: Path) -> Chain:
    make_folder(path.parent, "beat")
    if path.is_dir():
        raise IsADirectoryError(f"beat needs the path of a file; {str(path)!r} is a folder")
    beside = path.with_name(f"{path.name}.tmp")
    host = socket.gethostname()

    def tell(event: str, state: TrainState, metrics: Mapping[str, float]) -> None:
        step, epoch = read_step_epoch(state)
        sign = {
            "time": time.time(),
            "event": event,
            "epoch": epoch,
            "step": step,
            "pid": os.getpid(),
            "host": host,
        }
        with open(create_new(beside), "w", encoding="utf-8") as file:
            file.write(json.dumps(sign))
        os.replace(beside, path)

    return chain(_make_heartbeat_hooks(tell))


def _beat_of(run: Run) -> Chain:
    total: int | None = None

    def tell(event: str, state: TrainState, metrics: Mapping[str, float]) -> None:
        nonlocal total
        total = getattr(metrics, "epochs", None) or total  # unknown at the end of no epochs
        step, epoch = read_step_epoch(state)
        if event == "start":
            run.resume(epoch=epoch, step=step)
        run.heartbeat(epoch=epoch, step=step, epochs=total)
        if event == "end":
            run.end("finished")

    def fail(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        error = sys.exc_info()[1]
        if error is not None and run.is_recording:
            run.end("failed", f"{type(error).__name__}: {error}")
        return state

    told = Hook(fail, "beat/error", event="error", stage="observe", close=run.close)
    return chain(_make_heartbeat_hooks(tell), told)


def _make_heartbeat_hooks(
    tell: Callable[[str, TrainState, Mapping[str, float]], None],
) -> list[Hook]:
    """Make observers that tell at the start, at epochs, at most once a second, and at the end."""
    told = float("-inf")

    def at(event: str) -> Hook:
        def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
            nonlocal told
            now = time.monotonic()
            if event != "epoch" or now - told >= 1:
                told = now
                tell(event, state, metrics)
            return state

        name = f"beat/{event}"
        return Hook(run, name, event=event, stage="observe", dry_run=lambda state, metrics: state)

    return [at("start"), at("epoch"), at("end")]
