"""What the writers for trackers share: a journal of records that wait, and a run's own files."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from hooks.writers.images import encode_gif, encode_png
from hooks.writers.json_lines import JsonLines
from hooks.writers.values import Histogram, Image, Progress, Text, Value, Video
from trainer.checkpoints import Checkpoints, DamagedCheckpoint, wait_for_saves
from trainer.checkpoints.manifest import parse_scores
from trainer.checkpoints.select import get_local_checkpoint_folder
from trainer.host.atomic_files import atomic_replace
from trainer.host.extras import install_command
from trainer.host.folders import make_folder
from trainer.host.safe_open import open_regular, read_bytes
from trainer.rl.replays.replay_files import list_replay_files

log = logging.getLogger("entracte")

MEDIA = re.compile(r"media/[0-9a-f]{16}/\d+\.(png|gif)")
"""Paths of pictures in the journal's lines."""

WRITTEN = "_written"
"""Key of the time at which a line of the journal was written."""


class JournalValue(NamedTuple):
    """A value in a journal."""

    kind: str
    """`number`, `text`, `histogram`, `image` or `video`."""
    value: Any
    """A float; a str; numpy arrays (counts, edges); a Path of a PNG or a GIF."""


class JournalRow(NamedTuple):
    """All values recorded at one step."""

    step: int
    unix_seconds: float
    values: dict[str, JournalValue]


class JournaledWriter(Protocol):
    """A writer whose records wait in a journal until the run is over, and are then delivered.

    The journal has lines of JSON, and pictures as files beside them. It is durable and resumes as
    `JsonLines` does, so that a tracker gets each record once, however the run was interrupted.

    >>> import tempfile
    >>> class Tracker(JournaledWriter):
    ...     def deliver(self):
    ...         [row] = self.rows()
    ...         print(row.step, row.values["val/loss"], row.values["sample"].value)
    ...         self.mark_delivered()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tracker = Tracker()
    ...     tracker.open_journal(Path(folder))
    ...     tracker.write(28, {"val/loss": 0.5, "sample": Text("Once upon a time")})
    ...     tracker.close()
    28 JournalValue(kind='number', value=0.5) Once upon a time
    """

    folder: Path
    """Of the journal."""
    _lines: JsonLines | None = None
    """None if nothing is recorded."""
    _bytes_read: int = 0

    def deliver(self) -> None:
        """Deliver all records that the tracker lacks."""

    def open_journal(self, folder: Path, *, active: bool = True) -> None:
        """Open the journal in a folder of its own, and create it; record nothing unless active."""
        self.folder = folder
        if active:
            make_folder(folder, type(self).__name__)
            self._lines = JsonLines(folder / "journal.jsonl")

    def resume(self, step: int, epoch: int) -> None:
        """Drop what lies beyond a step and epoch."""
        if self._lines:
            self._lines.resume(step, epoch)

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Append the values that trackers can show, all but traces, to the journal."""
        if self._lines:
            self._mark.unlink(missing_ok=True)
            self._lines.write(step, self._encode(step, values))

    def dry_run(self, step: int, values: Mapping[str, Value]) -> None:
        """Append values and remove them again; no picture is written."""
        if self._lines:
            self._lines.dry_run(step, self._encode(step, values, store=False))

    def flush(self) -> None:
        """Wait until the journal is on the disk."""
        if self._lines:
            self._lines.flush()

    def close(self) -> None:
        """Close the journal and deliver what is new; the next write opens it again.

        By then the run is over, and a tracker's failure must not lose its result: the failure is
        logged, and the journal has everything that the next attempt needs.
        """
        if not self._lines:
            return
        self._lines.close()
        size = self._lines.path.stat().st_size
        try:
            mark = read_bytes(self._mark, follow=True) if self._mark.exists() else b""
            if size and mark != str(size).encode():
                self.deliver()
        except Exception:
            log.exception(
                "%s: the records were not delivered; they are in %s, and its deliver() tries again",
                *(type(self).__name__, self._lines.path),
            )

    def rows(self) -> list[JournalRow]:
        """Read all records, one row per step, without a line that is being written."""
        if not self._lines:
            return []
        self._lines.wait()
        rows: dict[int, JournalRow] = {}
        with open(open_regular(self._lines.path, follow=True), "rb") as file:
            content = file.read()
        self._bytes_read = len(content)
        for line in content.split(b"\n")[:-1]:
            record = json.loads(line)
            step, written = int(record.pop("step")), float(record.pop(WRITTEN, 0.0))
            row = rows.setdefault(step, JournalRow(step, written, {}))
            row.values.update(self._decode(name, value) for name, value in record.items())
        return [rows[step] for step in sorted(rows)]

    @property
    def _mark(self) -> Path:
        """The file that says how many bytes of the journal were delivered."""
        return self.folder / "delivered"

    def mark_delivered(self) -> None:
        """Remember that the tracker has everything that `rows` returned."""
        with atomic_replace(self._mark) as beside:
            beside.write_text(str(self._bytes_read))

    @property
    def identity(self) -> str | None:
        """The run's id in the tracker, stored at the first delivery."""
        file = self.folder / "id"
        return read_bytes(file, follow=True).decode().strip() if file.exists() else None

    @identity.setter
    def identity(self, new: str) -> None:
        with atomic_replace(self.folder / "id") as beside:
            beside.write_text(new)

    def _encode(
        self, step: int, values: Mapping[str, Value], *, store: bool = True
    ) -> dict[str, Value]:
        """Encode values for a line, each under `kind:name`; store pictures as files."""

        def write(name: str, ending: str, content: bytes) -> Text:
            """Write a picture's file; its path is valid for any name, and the same if repeated."""
            digest = hashlib.blake2b(name.encode(errors="replace"), digest_size=8).hexdigest()
            file = self.folder / "media" / digest / f"{step}.{ending}"
            if store:
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_replace(file) as beside:
                    beside.write_bytes(content)
            return Text(str(file.relative_to(self.folder)))

        encoded: dict[str, Value] = {WRITTEN: time.time()}
        for name, value in values.items():
            match value:
                case Text():
                    encoded[f"text:{name}"] = value
                case Histogram():
                    encoded[f"histogram:{name}"] = Text(json.dumps(_count(value)))
                case Image():
                    encoded[f"image:{name}"] = write(name, "png", encode_png(value))
                case Video():
                    encoded[f"video:{name}"] = write(name, "gif", encode_gif(value))
                case Progress():
                    encoded[name] = value
                case Real():  # JSON has no non-finite numbers
                    number = float(value)
                    finite = math.isfinite(number)
                    encoded[f"number:{name}"] = number if finite else Text(repr(number))
        return encoded

    def _decode(self, key: str, value: Any) -> tuple[str, JournalValue]:
        kind, colon, name = key.partition(":")
        if not colon:
            return key, JournalValue("number", float(value))  # the number of completed epochs
        match kind:
            case "number":
                return name, JournalValue(kind, float(value))
            case "histogram":
                counts, edges = json.loads(value)
                return name, JournalValue(kind, (np.asarray(counts), np.asarray(edges)))
            case "image" | "video":
                if not MEDIA.fullmatch(value):  # or a line could have any file uploaded
                    raise ValueError(f"{value!r:.100} is no picture in {self.folder}")
                return name, JournalValue(kind, self.folder / value)
            case _:
                return name, JournalValue(kind, value)


def _count(histogram: Histogram) -> list[list[float]]:
    """Return counts and edges of 64 bins."""
    numbers = np.asarray(histogram.values, np.float64)
    counts, edges = np.histogram(numbers[np.isfinite(numbers)], bins=64)
    return [counts.tolist(), edges.tolist()]


def is_available(who: str, extra: str, enabled: bool, *packages: str) -> bool:
    """Return whether a tracker is enabled and installed; if not, log that it is inactive."""
    if not enabled:
        log.info("%s is disabled: it is inactive and records nothing", who)
        return False
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            log.warning(
                "%s is inactive and records nothing (%s); install it: %s",
                *(who, error, install_command(extra)),
            )
            return False
    return True


def link_artifacts(run: Path, folder: Path) -> dict[int, dict[str, float]]:
    """Collect a run's complete checkpoints and replays in a folder, by hard links if possible.

    A save of this process that is in progress is waited for; one of another process is left out.

    Args:
        run: the run's directory.
        folder: replaced; it then has `checkpoints/<epoch>` and `replays`, if there are any.

    Returns:
        The epochs of the checkpoints, ascending, and the scores of each.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    wait_for_saves()
    scores: dict[int, dict[str, float]] = {}
    with Checkpoints(run, read_only=True) as checkpoints:
        for epoch in checkpoints.epochs():
            copy = folder / "checkpoints" / str(epoch)
            try:
                manifest = checkpoints.manifest(epoch)
                source = get_local_checkpoint_folder(run) / str(epoch)
                shutil.copytree(source, copy, copy_function=_link, ignore=_list_special_files)
                scores[epoch] = parse_scores(manifest)
            except (DamagedCheckpoint, OSError, shutil.Error) as error:  # or removed meanwhile
                log.warning("checkpoint %d of %s is no artifact: %s", epoch, run, error)
                shutil.rmtree(copy, ignore_errors=True)
    if (run / "replays").is_dir():
        (folder / "replays").mkdir()
        for _, file in list_replay_files(run / "replays"):
            if stat.S_ISREG(file.lstat().st_mode):
                _link(str(file), str(folder / "replays" / file.name))
    return scores


def _list_special_files(folder: str, names: list[str]) -> list[str]:
    """List what is no file or folder: a link's target would be uploaded, a pipe would block."""
    kinds = {name: os.lstat(os.path.join(folder, name)).st_mode for name in names}
    return [n for n, mode in kinds.items() if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))]


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # on another disk, or on a file system without hard links
        shutil.copy2(source, target)
