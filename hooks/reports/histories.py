"""Read the curves of a whole run from its `JsonLines` file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from hooks.combining import Chain, chain
from trainer import Hook, TrainState
from trainer.checks.paths import to_absolute_path
from trainer.hook import SKIP
from trainer.host.safe_open import open_regular
from trainer.runs.panels import Curve


def read_curves(path: str | os.PathLike[str]) -> dict[str, Curve]:
    """Read the numbers of all records, in the order in which they were first written.

    A last line that a crash tore is left out; if a metric has two records at one epoch, the later
    one counts.

    Raises:
        ValueError: a line is no record of `JsonLines`.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w") as file:
    ...     _ = file.write('{"step": 9, "epoch": 1, "loss": 0.5, "said": "Once"}\\n{"st')
    ...     file.flush()
    ...     read_curves(file.name)
    {'loss': Curve(epochs=[1], values=[0.5])}
    """
    curves: dict[str, Curve] = {}
    with open(
        open_regular(to_absolute_path(path, "read_curves"), follow=True), encoding="utf-8"
    ) as file:
        for line_number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                break
            for name, epoch, value in _parse_line(path, line_number, line):
                curve = curves.setdefault(name, Curve())
                if curve.epochs and curve.epochs[-1] == epoch:
                    curve.values[-1] = value
                else:
                    curve.epochs.append(epoch)
                    curve.values.append(value)
    return curves


def _parse_line(
    path: str | os.PathLike[str], line_number: int, line: str
) -> list[tuple[str, float, float]]:
    """Return (name, epoch, value) of each number on a line; null is a non-finite number."""
    try:
        record = json.loads(line)
        epoch = record.get("epoch", record["step"])
    except (ValueError, AttributeError, KeyError) as error:
        message = (
            f"line {line_number} of {os.fspath(path)!r} is no record of JsonLines: {line!r:.100}"
        )
        raise ValueError(message) from error
    return [
        (name, epoch, math.nan if value is None else float(value))
        for name, value in record.items()
        if name not in ("step", "epoch") and (value is None or isinstance(value, Real))
    ]


Follow = Callable[[str, TrainState, Mapping[str, float]], None]
"""`(event, state, metrics)`, to follow how far a run comes."""


def call_on_finish(
    name: str,
    finish: Callable[[], None],
    *,
    records: str | os.PathLike[str],
    expects: tuple[str, ...] = (),
    follow: Follow | None = None,
) -> Chain:
    """Make a hook that calls a function once when a run is over, also if it is interrupted.

    Args:
        name: of the hook.
        finish: called at the `end`, or when hooks are closed if that was not reached.
        records: path of the file that it reads; the hook checks at the start that it exists.
        expects: metrics that something must write.
        follow: called at `start`, `epoch`, `end` and `error`.
    """
    started, records = False, to_absolute_path(records, name)

    def at(event: str, do: Callable[[], None], **more: Any) -> Hook:
        def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
            if follow:
                follow(event, state, metrics)
            do()
            return state

        shown = name if event == "end" else f"{name}/{event}"
        return Hook(run, shown, event=event, stage="observe", dry_run=SKIP, **more)

    def begin() -> None:
        nonlocal started
        require_records(records, name)
        started = True

    def end() -> None:
        nonlocal started
        if started:  # it only starts on the main process
            started = False
            finish()

    between = [at(event, lambda: None) for event in ("epoch", "error") if follow]
    return chain(
        at("start", begin), *between, at("end", end, expects=expects, close=lambda error: end())
    )


def require_records(path: str | os.PathLike[str], who: str) -> Path:
    """Check, before training, that something writes the records that will be read.

    Raises:
        FileNotFoundError: there is no such file, which `JsonLines` creates.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{who} reads the records in {os.fspath(path)!r}, which nothing writes: give "
            f"log_metrics a hooks.JsonLines({os.fspath(path)!r}), or give {who} the path of the "
            "existing one"
        )
    return Path(path)
