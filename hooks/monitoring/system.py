"""Monitoring: a run's use of the machine, and a heartbeat."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from hooks.combining import Chain, chain
from trainer import Hook, TrainState
from trainer.checks.arguments import require_integer
from trainer.checks.paths import to_absolute_path
from trainer.hook import SKIP
from trainer.host.extras import require_extra
from trainer.host.folders import make_folder
from trainer.host.safe_open import create_new
from trainer.runs import Run
from trainer.state import read_step_epoch

GB = 1e9
"""Bytes."""

Report = Callable[[str, int, int, int | None], None]
"""`(event, step, epoch, epochs in all)`."""

DEVICE_MEMORY = {"device_memory_gb": "bytes_in_use", "device_memory_peak_gb": "peak_bytes_in_use"}
"""Scores under `system/`, and their keys in `Device.memory_stats`."""


def watch_system(*, batch_size: int | None = None) -> Hook:
    """Score the run's use of the machine; place it before `log_metrics`.

    `system/host_memory_gb` (resident) and `system/cpu_percent` (100 is one busy core) are of this
    process. `system/device_memory_gb` and `system/device_memory_peak_gb` are of the fullest local
    device, on GPUs and TPUs. 1 GB is 1e9 bytes. They are read at most once a second, since a
    shorter CPU measurement says nothing; in between, the last reading is scored again.

    Args:
        batch_size: examples per step; if given, `system/examples_per_second` is scored too.

    Raises:
        ImportError: psutil is not installed.
        ValueError: the batch size is below 1.

    >>> import jax
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> scores = watch_system(batch_size=64)(state, {"time/steps_per_second": 100.0}).scores
    >>> scores["system/examples_per_second"], scores["system/host_memory_gb"] > 0
    (6400.0, True)
    """
    with require_extra("monitoring", "watch_system", "psutil"):
        import psutil
    if batch_size is not None:
        require_integer("batch_size", batch_size, 1)
    process = psutil.Process()
    process.cpu_percent()  # returns 0, and starts the measurement
    reading: dict[str, float] = {}
    read_at = float("-inf")

    def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        nonlocal reading, read_at
        if time.monotonic() - read_at >= 1:
            reading = {
                "system/host_memory_gb": process.memory_info().rss / GB,
                "system/cpu_percent": process.cpu_percent(),
                **device_memory(),
            }
            read_at = time.monotonic()
        scores = {**state.scores, **reading}
        if batch_size is not None:
            scores["system/examples_per_second"] = batch_size * metrics["time/steps_per_second"]
        return state.replace(scores=scores)

    def names(state: TrainState) -> tuple[str, ...]:
        speed = () if batch_size is None else ("system/examples_per_second",)
        return ("system/host_memory_gb", "system/cpu_percent", *device_memory(), *speed)

    reads = () if batch_size is None else ("time/steps_per_second",)
    return Hook(run, "watch_system", stage="observe", reads=reads, writes=names)


def device_memory() -> dict[str, float]:
    """Read the memory of the fullest local device; empty if the backend does not report it."""
    reported = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    return {
        f"system/{score}": max(stats[key] for stats in reported) / GB
        for score, key in DEVICE_MEMORY.items()
        if reported and all(key in stats for stats in reported)
    }


def heartbeat(path: str | os.PathLike[str] | Run) -> Chain:
    """Write a heartbeat to a JSON file or to the store, for whoever supervises the run.

    It is written at `start`, `epoch` and `end`, at epochs at most once a second. The file is
    replaced atomically, in 0.4 ms on a disk: the time in unix seconds, the event, epoch, step,
    process id and host. An old time without the event `end` means that the run hangs or died.

    In the store it is the run's own row, from which `trainer.runs.RunRow.status` recognizes a
    stalled run. It also says how the run ended: `finished`, `interrupted`, or `failed` and why.

    Args:
        path: of the file; its folder is created. Or a recorded run, `trainer.runs.Run(directory)`.

    Raises:
        OSError: the folder cannot be written to, or the path is one itself.

    >>> import tempfile
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = heartbeat(f"{folder}/alive.json")(state, {})
    ...     print(Path(folder, "alive.json").read_text())
    {"time": ..., "event": "epoch", "epoch": 0, "step": 0, "pid": ..., "host": "..."}
    """
    if isinstance(path, Run):
        report, close = _report_to_store(path), path.close
    else:
        report, close = _report_to_file(to_absolute_path(path, "heartbeat")), None
    reported_at = float("-inf")

    def at(event: str, **more: Any) -> Hook:
        def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
            nonlocal reported_at
            now = time.monotonic()
            if event != "epoch" or now - reported_at >= 1:
                reported_at = now
                report(event, *read_step_epoch(state), getattr(metrics, "epochs", None))
            return state

        name = f"heartbeat/{event}"
        return Hook(run, name, event=event, stage="observe", dry_run=SKIP, **more)

    return chain(at("start"), at("epoch"), at("end", close=close))


def _report_to_file(path: Path) -> Report:
    make_folder(path.parent, "heartbeat")
    if path.is_dir():
        raise IsADirectoryError(f"heartbeat needs the path of a file; {str(path)!r} is a folder")
    beside = path.with_name(f"{path.name}.tmp")
    host = socket.gethostname()

    def report(event: str, step: int, epoch: int, epochs: int | None) -> None:
        content = {"time": time.time(), "event": event, "epoch": epoch, "step": step}
        content |= {"pid": os.getpid(), "host": host}
        with open(create_new(beside), "w", encoding="utf-8") as file:
            file.write(json.dumps(content))
        os.replace(beside, path)

    return report


def _report_to_store(run: Run) -> Report:
    total: int | None = None

    def report(event: str, step: int, epoch: int, epochs: int | None) -> None:
        nonlocal total
        total = epochs or total  # unknown at the end of no epochs
        if event == "start":
            run.resume(epoch=epoch, step=step)
        run.heartbeat(epoch=epoch, step=step, epochs=total)
        if event == "end":
            run.end("finished")

    return report
