"""A writer of one JSON object per line, which a resumed run continues."""

from __future__ import annotations

import base64
import importlib.util
import json
import logging
import math
import os
from collections import deque
from collections.abc import Mapping
from numbers import Real
from pathlib import Path

import numpy as np

from hooks.writers.appending import AppendFile
from hooks.writers.images import encode_png
from hooks.writers.values import Image, Progress, Text, Value
from hooks.writers.writer import log_missing_history
from trainer.checks.paths import to_absolute_path
from trainer.host.atomic_files import atomic_replace, sync_folder
from trainer.host.background_worker import BackgroundWorker
from trainer.host.folders import make_folder
from trainer.host.safe_open import open_regular
from trainer.host.time_spans import span

log = logging.getLogger("entracte")


WRITTEN_WITHIN = 600.0
"""Seconds to wait for a disk that does not respond."""


LONGEST = 128
"""Pixels of the longer side of a picture that is kept, at most; of a longer one every n-th."""


class JsonLines:
    """Writes one JSON object per line: `{"step": 28, "epoch": 1, "train/loss": 0.31, ...}`.

    It keeps numbers, texts and pictures; NaN and the infinities become null. A picture becomes
    `{"png": ...}`, in base64, of at most 128 pixels a side, if Pillow is installed. A thread writes
    the lines, each whole, some hundredths of a second later. A resumed run drops the lines beyond
    its step or epoch, and a line torn by a crash; a fresh start drops all lines. If the file is
    deleted during a run, it is written again before the next checkpoint; if it is replaced, the run
    stops there.

    Args:
        path: of the file; the file and its folder are created.

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
        # Resolved: a link stays a link when the file is replaced.
        self.path = to_absolute_path(path, "JsonLines").resolve()
        self._file: AppendFile | None = None
        self._resumed: tuple[int, int] | None = None
        self._waiting: deque[tuple[int, Mapping[str, Value | dict[str, str]]]] = deque()
        self._worker = BackgroundWorker(
            "JsonLines", self._write_waiting, max_queued=256, time_limit=WRITTEN_WITHIN
        )
        make_folder(self.path.parent, "JsonLines")
        try:
            os.close(open_regular(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, follow=True))
            sync_folder(self.path.parent)
        except OSError as error:
            error.add_note(f"JsonLines cannot write to {str(self.path)!r}; give it another path")
            raise

    def resume(self, step: int, epoch: int) -> None:
        """Drop the lines beyond a step and epoch, and a torn last line, all at once or none.

        At epoch 0 all lines are dropped. A line that is no record raises ValueError.
        """
        if self._resumed == (step, epoch):  # by another hook that shares this writer
            return
        self.close()
        self._resumed = step, epoch
        with open(open_regular(self.path, follow=True), encoding="utf-8", errors="replace") as file:
            lines = list(file)
        kept = []
        for number, line in enumerate(lines, 1):
            line_step, line_epoch = _read_place(self.path, number, line)
            if epoch and line_step <= step and line_epoch <= epoch:
                kept.append(line)
        if len(kept) < len(lines):
            log.warning(
                "%s: dropping %d lines beyond step %d of epoch %d, where this run resumes",
                *(self.path, len(lines) - len(kept), step, epoch),
            )
            with atomic_replace(self.path) as beside, beside.open("w", encoding="utf-8") as file:
                file.writelines(kept)
        if epoch and not kept:
            log_missing_history(self.path, epoch)
        self._file = AppendFile(self.path, "JsonLines")  # open from now on: notices a deletion

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Queue a line; raise if an earlier one could not be written, which is tried again."""
        if self._resumed and step > self._resumed[0]:
            self._resumed = None
        self._worker.check()
        kept = {name: _encode_picture(value) for name, value in values.items()}
        self._waiting.append((step, kept))
        self._worker.put(None)

    def _write_waiting(self, _: None) -> None:
        """Append the lines that wait, in order; one that the disk refuses still waits."""
        with span("write", "JsonLines"):
            while self._waiting:
                try:
                    self._append(*self._waiting[0])
                except OSError:
                    raise
                except Exception:  # it is no record, whenever it is tried
                    self._waiting.popleft()
                    raise
                self._waiting.popleft()

    def dry_run(self, step: int, values: Mapping[str, Value]) -> None:
        """Append a line and remove it again."""
        self.wait()
        file, end = self._append(step, {n: _encode_picture(value) for n, value in values.items()})
        file.truncate(end)
        self.close()

    def _append(
        self, step: int, values: Mapping[str, Value | dict[str, str]]
    ) -> tuple[AppendFile, int]:
        """Append a line, and return the file and where the line begins."""
        record: dict[str, float | str | dict[str, str] | None] = {"step": step}
        for name, value in values.items():
            if isinstance(value, Real):
                record[name] = float(value) if math.isfinite(value) else None
            elif isinstance(value, Progress):
                record[name] = value.done
            elif isinstance(value, Text):
                record[name] = value.text
            elif isinstance(value, dict):
                record[name] = value
        if self._file is None:
            self._file = AppendFile(self.path, "JsonLines")
        return self._file, self._file.append(json.dumps(record).encode() + b"\n")

    def wait(self) -> None:
        """Wait until the lines are in the file; one that failed, and was raised, is tried again."""
        self._worker.flush()
        if self._waiting:
            self._worker.put(None)
            self._worker.flush()

    def history(self) -> list[dict[str, float]]:
        """Read the numbers of each recorded epoch, with its number at `epoch`; null becomes nan."""
        self.wait()
        epochs: dict[int, dict[str, float]] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record.get("epoch"):
                epochs.setdefault(record["epoch"], {}).update(
                    (name, math.nan if value is None else value)
                    for name, value in record.items()
                    if name != "step" and not isinstance(value, str | dict)
                )
        return list(epochs.values())

    def flush(self) -> None:
        """Wait until the lines are on the disk, in the file at the path; see `AppendFile.flush`."""
        self.wait()
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Write what is queued, end the thread, close the file; the next write opens it again."""
        try:
            self.wait()
        finally:
            self._waiting.clear()
            try:
                self._worker.close()
            finally:
                file, self._file, self._resumed = self._file, None, None
                if file is not None:
                    file.close()


def _encode_picture(value: Value) -> Value | dict[str, str]:
    """Encode a picture at once, since its pixels may change later; other values stay."""
    if not isinstance(value, Image) or importlib.util.find_spec("PIL") is None:
        return value
    stride = -(-max(value.pixels.shape[:2]) // LONGEST)
    small = Image(np.asarray(value.pixels[::stride, ::stride]))
    return {"png": base64.b64encode(encode_png(small)).decode()}


def _read_place(path: Path, number: int, line: str) -> tuple[float, float]:
    """Return (step, epoch) of a line; infinite if it is torn, epoch 0 if it names none."""
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
