"""Writers: where records go, the kinds of values in them, and one that writes lines of JSON."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from hooks.writers.appending import AppendFile
from trainer.checks.paths import to_absolute_path
from trainer.host.atomic_files import atomic_replace, sync_folder
from trainer.host.safe_open import open_regular

log = logging.getLogger("entracte")


@dataclasses.dataclass(frozen=True)
class Progress:
    """How much of a whole is done: `values["epoch"]` of what `log_metrics` writes."""

    done: int
    total: int | None = None
    """None where it is not known."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """One value for each optimizer step up to the one written: the last belongs to it."""

    values: np.ndarray
    """Floats `[steps]`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """Numbers whose distribution is shown; those that are not finite are left out."""

    values: np.ndarray
    """Numbers of any shape."""


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """A picture.

    Raises:
        ValueError: the pixels are not `[height, width, channels]` with 1, 3 or 4 channels.
    """

    pixels: np.ndarray
    """`[height, width, channels]`, uint8, or floats from 0 to 1."""

    def __post_init__(self) -> None:
        shape = np.shape(self.pixels)
        if len(shape) != 3 or shape[2] not in (1, 3, 4):
            raise ValueError(
                "pixels must be [height, width, channels] with 1, 3 or 4 channels; "
                f"got shape {list(shape)}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """Pictures that follow one another, such as an episode.

    Raises:
        ValueError: the frames are not `[frames, height, width, channels]` with at least one frame
            and 1, 3 or 4 channels, or there are none or more than 50 a second.
    """

    frames: np.ndarray
    """`[frames, height, width, channels]`, uint8, or floats from 0 to 1."""
    fps: float
    """Frames a second, at most 50: viewers slow down what is faster."""

    def __post_init__(self) -> None:
        shape = np.shape(self.frames)
        if len(shape) != 4 or not shape[0] or shape[3] not in (1, 3, 4):
            raise ValueError(
                "frames must be [frames, height, width, channels] with at least 1 frame and 1, 3 "
                f"or 4 channels; got shape {list(shape)}"
            )
        if not 0 < self.fps <= 50:
            raise ValueError(f"fps must be above 0 and at most 50 frames a second; got {self.fps}")


@dataclasses.dataclass(frozen=True)
class Text:
    """A piece of writing, such as a sample of what the model says."""

    text: str


Value = float | Progress | Trace | Histogram | Image | Video | Text
"""What a writer may be given. It skips the kinds that it cannot show."""


@runtime_checkable
class Writer(Protocol):
    """What `log_metrics` writes to. One that shows scalars takes ten lines.

    A writer that keeps records also has `resume`, see `ResumableWriter`; one that can read them
    back also has `history`, as `JsonLines` does, for a `fit` that finds its run complete. After
    `close` it may be written to again: one writer serves several calls of `fit`.

    >>> class Printer:
    ...     def write(self, step, values):
    ...         scalars = {k: v for k, v in values.items() if isinstance(v, float)}
    ...         print(step, scalars)
    ...     def flush(self):
    ...         pass
    ...     def close(self):
    ...         pass
    >>> Printer().write(5, {"train/loss": 0.25, "sample": Text("Once upon a time")})
    5 {'train/loss': 0.25}
    """

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Record values, by name, at a step."""

    def flush(self) -> None:
        """Make all that was written durable: a commit of the state follows."""

    def close(self) -> None:
        """Finish, and release threads and files."""


@runtime_checkable
class ResumableWriter(Protocol):
    """A writer that keeps records: a run that goes on shall neither double nor lose one."""

    def resume(self, step: int, epoch: int) -> None:
        """Take it that the run goes on from here (0, 0: afresh): later records are superseded.

        Called at the start, before the first record beyond it; by each of the hooks that share the
        writer, so that a second call for the same place changes nothing.
        """


@runtime_checkable
class StartableWriter(Protocol):
    """A writer that shows how a run goes, before its first record too."""

    def begin(self, progress: Progress) -> None:
        """Take it that a run begins, or goes on, with so many epochs done.

        Called at the start, by each of the hooks that share the writer, where there is something to
        train.
        """


@runtime_checkable
class DryRunWriter(Protocol):
    """A writer that can try a record, for `fit(..., check=True)`.

    One that has only `resume` is told to resume and written to instead, since the run's own start
    supersedes the record; one without both is left alone.
    """

    def dry_run(self, step: int, values: Mapping[str, Value]) -> None:
        """Do all that `write` does, and leave nothing of it behind."""


class JsonLines:
    """Writes one JSON object a line: `{"step": 28, "epoch": 1, "train/loss": 0.31, ...}`.

    It shows numbers and texts. JSON has no number for NaN and the infinities: they become null.
    Every line is in the file at once. A run that goes on drops the lines beyond its step or epoch,
    and a line torn by a crash; one that starts afresh drops all. A file that is deleted in mid-run
    is written again before the next checkpoint; one that is replaced ends the run there.

    Args:
        path: of the file; it and its folder are made.

    Raises:
        OSError: the file cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lines = JsonLines(f"{folder}/metrics.jsonl")
    ...     lines.write(28, {"epoch": Progress(1, 20), "train/loss": 0.5, "gap": math.nan})
    ...     lines.close()
    ...     print(lines.path.read_text().strip())
    {"step": 28, "epoch": 1, "train/loss": 0.5, "gap": null}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = to_absolute_path(
            path, "JsonLines"
        ).resolve()  # a link stays one when the file is replaced
        self._file: AppendFile | None = None
        self._resumed: tuple[int, int] | None = None
        make_folder(self.path.parent, "JsonLines")
        try:
            os.close(open_regular(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, follow=True))
            sync_folder(self.path.parent)
        except OSError as error:
            error.add_note(f"JsonLines cannot write to {str(self.path)!r}; give it another path")
            raise

    def resume(self, step: int, epoch: int) -> None:
        """Drop the lines beyond step and epoch, and a torn last one, all at once or not at all.

        Before the first epoch is completed, nothing is on record: all lines are dropped.

        Raises:
            ValueError: the file holds lines that are no records.
        """
        if self._resumed == (step, epoch):  # by another hook that shares this writer
            return
        self.close()
        self._resumed = step, epoch
        with open(open_regular(self.path, follow=True), encoding="utf-8", errors="replace") as file:
            lines = list(file)
        places = [_place(self.path, number, line) for number, line in enumerate(lines, 1)]
        kept = [
            line
            for line, (at, when) in zip(lines, places, strict=True)
            if epoch and at <= step and when <= epoch
        ]
        if len(kept) < len(lines):
            log.warning(
                "%s: dropping %d lines beyond step %d of epoch %d, where this run goes on",
                self.path,
                len(lines) - len(kept),
                step,
                epoch,
            )
            with atomic_replace(self.path) as beside, beside.open("w", encoding="utf-8") as file:
                file.writelines(kept)
        if epoch and not kept:
            log_missing_history(self.path, epoch)
        self._file = AppendFile(self.path, "JsonLines")  # held from here on, lest it vanish unseen

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Append a line, or nothing of it where that fails."""
        if self._resumed and step > self._resumed[0]:
            self._resumed = None
        self._append(step, values)

    def dry_run(self, step: int, values: Mapping[str, Value]) -> None:
        """Append a line and take it away again."""
        file, end = self._append(step, values)
        file.truncate(end)
        self.close()

    def _append(self, step: int, values: Mapping[str, Value]) -> tuple[AppendFile, int]:
        """Append a line, and return the file and where the line begins."""
        record: dict[str, float | str | None] = {"step": step}
        for name, value in values.items():
            if isinstance(value, Real):
                record[name] = float(value) if math.isfinite(value) else None
            elif isinstance(value, Progress):
                record[name] = value.done
            elif isinstance(value, Text):
                record[name] = value.text
        if self._file is None:
            self._file = AppendFile(self.path, "JsonLines")
        return self._file, self._file.append(json.dumps(record).encode() + b"\n")

    def history(self) -> list[dict[str, float]]:
        """Read the numbers of each epoch on record, and its number at `epoch`; null is nan."""
        epochs: dict[int, dict[str, float]] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record.get("epoch"):
                epochs.setdefault(record["epoch"], {}).update(
                    (name, math.nan if value is None else value)
                    for name, value in record.items()
                    if name != "step" and not isinstance(value, str)
                )
        return list(epochs.values())

    def flush(self) -> None:
        """Wait until the lines are on the disk, in the file that is found at the path.

        Raises:
            OSError: the file was replaced or cut short in mid-run, or the disk fails. One that was
                deleted is written again.
        """
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Close the file; a further write opens it again."""
        file, self._file, self._resumed = self._file, None, None
        if file is not None:
            file.close()


def _place(path: Path, number: int, line: str) -> tuple[float, float]:
    """Give (step, epoch) of a line; infinite if it was torn, epoch 0 if it names none."""
    if not line.endswith("\n"):
        return math.inf, math.inf
    try:
        record = json.loads(line)
        return float(record["step"]), float(record.get("epoch", 0))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        error.add_note(
            f"line {number} of {str(path)!r} is no record with a step, so the file was not written "
            "by JsonLines; give it another path"
        )
        raise


def log_missing_history(place: Path, epoch: int) -> None:
    """Say that a run goes on whose records are not where a writer keeps them."""
    log.info(
        "%s: there is nothing in it of the %d epochs that this run has done: they were written "
        "elsewhere, or what was written is gone; it begins with epoch %d",
        *(place, epoch, epoch + 1),
    )


def make_folder(path: Path, who: str) -> None:
    """Make a folder, and see that files can be made in it.

    Raises:
        OSError: they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        error.add_note(f"{who} cannot write to the folder {str(path)!r}; give it another one")
        raise
