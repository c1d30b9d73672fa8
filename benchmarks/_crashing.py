"""A run to be killed: a small program, hooks of every kind, and what it leaves behind."""

import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optax
from _bucket_server import Bucket
from _killed_programs import PROGRAMS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hooks
import trainer
from trainer.checkpoints.storage.run_paths import RunPath, list_names

EPOCHS = 30

FINAL = "final.txt"

logging.getLogger("tensorboard").setLevel(logging.ERROR)  # or it reports each hidden point


def run(
    directory: str,
    fatal: tuple[str, int] | None = None,
    bucket: Bucket | None = None,
    *,
    program: str = "digits",
    overlap: bool = False,
) -> None:
    """Train to the end, or on from where a run in this directory was, and leave its fingerprint.

    Evaluation, averages, early stopping, a hook that acts once and one in the background: all that
    remembers or records.

    Args:
        directory: where all of it goes.
        fatal: place in an event, of `PLACES`, and epoch at which the process kills itself.
        bucket: where the checkpoints go instead, under the name of the directory.
        program: what it trains, of `PROGRAMS`.
        overlap: whether the next epoch is computed while hooks run.
    """
    if bucket is not None:
        os.environ.update(bucket.environment)
    logging.getLogger("entracte").setLevel(logging.ERROR)
    before, after = suicide(*fatal) if fatal else ((), ())
    begin, train, val = PROGRAMS[program](Path(directory))
    state, _ = trainer.fit(
        begin,
        train,
        epochs=EPOCHS,
        hooks=[
            before,
            chain(
                Path(directory),
                val,
                find_run(Path(directory), bucket),
            ),
            after,
        ],
        overlap=overlap,
    )
    partial = Path(directory, FINAL + ".tmp")
    partial.write_text(trainer.fingerprint(state))
    partial.replace(Path(directory, FINAL))


def find_run(directory: Path, bucket: Bucket | None) -> RunPath:
    """Return where the checkpoints of a run go."""
    return directory if bucket is None else bucket.path(directory.name)


def chain(directory: Path, phase: trainer.Phase, checkpoints: RunPath) -> Any:
    """Return hooks of every kind, all writing below the directory, and checkpoints as given."""

    def halve_rate(state, metrics):
        rate = optax.tree.get(state.opt_state, "learning_rate")
        return state.replace(opt_state=optax.tree.set(state.opt_state, learning_rate=rate / 2))

    def count(hook_state, state, metrics):
        return hook_state + 1, state

    return hooks.chain(
        hooks.roll_back_on_nan(),
        hooks.average_params(),
        hooks.evaluate(phase),
        hooks.stop_early("val/loss", patience=EPOCHS),
        hooks.when(lambda state, metrics: metrics["val/accuracy"] > 0.9, hooks.once(halve_rate)),
        hooks.every_steps(20, hooks.stateful("count", lambda state: 0, count)),
        hooks.background(hooks.observe(lambda state, metrics: state)),
        hooks.log_metrics(
            hooks.JsonLines(directory / "metrics.jsonl"), hooks.TensorBoard(directory / "board")
        ),
        hooks.save_checkpoints(checkpoints, keep=2, best="val/loss", max_cost=None),
    )


PLACES = ("phase", "control", "observe", "recorded", "flush", "save", "saving")
"""Places within an event, in order of time, between any two of which a run may die."""


def suicide(place: str, epoch: int) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return hooks, to be listed first and last, of which one kills the process."""
    flushes = 0

    def die(state, metrics):
        if int(state.epoch) == epoch - (place == "phase"):
            os.kill(os.getpid(), signal.SIGKILL)
        return state

    def die_flushing():
        nonlocal flushes
        flushes += 1
        if flushes == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    hook = {
        "phase": hooks.on("train", die),
        "control": trainer.Hook(die, "die"),
        "observe": hooks.observe(die),
        "recorded": hooks.observe(die),
        "flush": trainer.Hook(lambda state, metrics: state, "die", flush=die_flushing),
        "save": trainer.Hook(die, "die", stage="save"),
        "saving": trainer.Hook(die, "die", stage="save"),
    }[place]
    first = place in ("phase", "observe", "save")
    return ((hook,), ()) if first else ((), (hook,))


class Left(NamedTuple):
    """What a finished run left: its fingerprint, and its records in order, without times."""

    fingerprint: str
    lines: list[tuple[int, dict[str, float]]]
    """Of the JSON file: (epoch, metrics)."""
    points: dict[str, list[tuple[int, float]]]
    """Of TensorBoard: tag to (step, value), as its own reader returns them."""


def left(directory: Path) -> Left:
    """Read what a finished run left."""
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    lines = [
        (r["epoch"], {name: r[name] for name in sorted(r) if not name.startswith("time/")})
        for r in records
    ]
    board = EventAccumulator(str(directory / "board"), size_guidance={"scalars": 0})
    board.Reload()
    points = {
        tag: [(event.step, event.value) for event in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
        if not tag.startswith("time/")
    }
    return Left((directory / FINAL).read_text(), lines, points)


def lost_and_doubled(wanted: Left, got: Left) -> tuple[int, int]:
    """Count records that are missing or differ, and those that are there more than once."""
    lost = doubled = 0
    for want, have in (
        (wanted.lines, got.lines),
        *((wanted.points[tag], got.points.get(tag, [])) for tag in wanted.points),
    ):
        lost += sum(record not in have for record in want)
        doubled += max(len(have) - len({place for place, _ in have}), 0)
    return lost, doubled


def nursery(*libraries: str) -> Any:
    """Return a context whose processes start with all libraries imported, without JAX's backend."""
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    context = multiprocessing.get_context("forkserver")
    preloaded = ["_crashing", "rich.logging", "sklearn.datasets", "tyro", *libraries]
    context.set_forkserver_preload(preloaded)
    return context


def started(context: Any, directory: Path, bucket: Bucket | None = None, **options: Any) -> Any:
    """Start a process that runs in this directory; the options are those of `run`."""
    arguments = str(directory), None, bucket
    process = context.Process(target=run, args=arguments, kwargs=options)
    process.start()
    return process


def completed(process: Any, limit: float) -> bool:
    """Wait for a process, and say whether it ended well; one that hangs is killed."""
    process.join(limit)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode == 0


def await_chain(process: Any, directory: Path) -> None:
    """Wait until a run has made its hooks: libraries are imported, and compiling is next."""
    while process.is_alive() and not (directory / "board").exists():
        time.sleep(0.0005)


def kill_after(process: Any, directory: Path, seconds: float) -> bool:
    """Kill a process so long after it made its hooks; say whether it was still there."""
    await_chain(process, directory)
    process.join(seconds)
    return _kill(process)


def kill_in_save(process: Any, run: RunPath, epoch: int, seconds: float) -> bool:
    """Kill a process some time after it began to save an epoch, or a later one."""
    while process.is_alive() and newest(run, begun=True) < epoch:
        time.sleep(0.0002)
    time.sleep(seconds)
    return _kill(process)


def newest(run: RunPath, *, begun: bool = False) -> int:
    """Return the epoch of the newest checkpoint; 0 if there is none.

    Args:
        run: where its checkpoints are.
        begun: let those count that are being written.
    """
    names = _list(run / "checkpoints")
    if begun:
        staged = {name for name in names if name.endswith(".staged")}
        if not isinstance(run, Path):
            staged = _list(run / "data")
        names |= {name.split(".")[0] for name in staged}
    return max((int(name) for name in names if name.isdigit()), default=0)


def _list(folder: RunPath) -> set[str]:
    return set() if isinstance(folder, Path) and not folder.exists() else list_names(folder)


def _kill(process: Any) -> bool:
    if alive := process.is_alive():
        process.kill()
    process.join()
    return alive and process.exitcode == -signal.SIGKILL
