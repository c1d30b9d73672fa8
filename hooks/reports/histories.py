"""Read the curves and texts of a whole run from its `JsonLines` file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any

from hooks.combining import Chain, chain
from trainer import Hook, TrainState
from trainer.checks.paths import to_absolute_path
from trainer.hook import SKIP
from trainer.host.rendering.panels import Curve
from trainer.host.safe_open import open_regular
from trainer.loop.shutdown import defer_close


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
    ...     read_curves(file.name), read_texts(file.name)
    ({'loss': Curve(epochs=[1], values=[0.5])}, {'said': {1: 'Once'}})
    """
    curves: dict[str, Curve] = {}
    for epoch, record in _iterate_records(path):
        for name, value in record.items():
            if name not in ("step", "epoch") and (value is None or isinstance(value, Real)):
                number_or_nan = math.nan if value is None else float(value)
                curves.setdefault(name, Curve()).add(epoch, number_or_nan)
    return curves


def read_texts(path: str | os.PathLike[str]) -> dict[str, dict[int, str]]:
    """Read the texts of all records, by name and epoch, as `read_curves` reads numbers."""
    texts: dict[str, dict[int, str]] = {}
    for epoch, record in _iterate_records(path):
        for name, value in record.items():
            if isinstance(value, str):
                texts.setdefault(name, {})[epoch] = value
    return texts


def read_pictures(path: str | os.PathLike[str]) -> list[tuple[str, int, str, str]]:
    """Read the last pictures of each kind: name, epoch, text of the same name, PNG in base64.

    The kind is the first two parts of a name: `mistakes/val`. The text of `mistakes/val/0/image` is
    that at `mistakes/val/0` of the same record, or "".
    """
    found: dict[str, list[tuple[str, int, str, str]]] = {}
    for epoch, record in _iterate_records(path):
        kinds: dict[str, list[tuple[str, int, str, str]]] = {}
        for name, value in record.items():
            if isinstance(value, dict) and isinstance(value.get("png"), str):
                text = record.get(name.removesuffix("/image"), "")
                picture = name, epoch, text if isinstance(text, str) else "", value["png"]
                kinds.setdefault("/".join(name.split("/")[:2]), []).append(picture)
        found |= kinds
    return [picture for pictures in found.values() for picture in pictures]


def _iterate_records(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the records of a `JsonLines` file, and the epoch of each, or its step without one."""
    file = open_regular(to_absolute_path(path, "read_curves"), follow=True)
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break
            try:
                record = json.loads(line)
                epoch = record.get("epoch", record["step"])
            except (ValueError, AttributeError, KeyError) as error:
                where = f"line {number} of {os.fspath(path)!r}"
                message = f"{where} is no record of JsonLines: {line!r:.100}"
                raise ValueError(message) from error
            yield epoch, record


Follow = Callable[[str, TrainState, Mapping[str, float]], None]
"""`(event, state, metrics)`, to follow how far a run comes."""


def call_on_finish(
    name: str,
    finish: Callable[[dict[str, Curve]], None],
    *,
    records: str | os.PathLike[str],
    expects: tuple[str, ...] = (),
    follow: Follow | None = None,
) -> Chain:
    """Make a hook that calls a function once when a run is over, also if it is interrupted.

    Args:
        name: of the hook.
        finish: called with the curves of the whole run at the `end`, or when hooks are closed if
            that was not reached.
        records: path of the `JsonLines` file, which must exist at the start.
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
        if not records.is_file():
            path = repr(str(records))
            raise FileNotFoundError(
                f"{name} reads the records in {path}, which nothing writes: give log_metrics a "
                f"hooks.JsonLines({path}), or give {name} the path of the existing one"
            )
        started = True

    def end() -> None:
        nonlocal started
        if started:  # it only starts on the main process
            started = False
            finish(read_curves(records))

    def close(error: BaseException | None) -> None:
        end()

    def close_last(error: BaseException | None) -> None:
        defer_close(close, error)  # when the writer of the records has closed, too

    between = [at(event, lambda: None) for event in ("epoch", "error") if follow]
    return chain(at("start", begin), *between, at("end", end, expects=expects, close=close_last))
