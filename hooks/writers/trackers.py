"""What trackers share: a journal of what they are to be given, and the run's own files."""

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
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hooks.writers.images import encode_gif, encode_png
from hooks.writers.json_lines import JsonLines
from hooks.writers.values import Histogram, Image, Progress, Text, Value, Video
from trainer.checkpoints import Checkpoints, DamagedCheckpoint, wait_for_saves
from trainer.checkpoints.manifest import parse_scores
from trainer.host.atomic_files import atomic_replace
from trainer.host.folders import make_folder
from trainer.host.safe_open import open_regular, read_bytes
from trainer.rl.replay_files import list_replay_files

log = logging.getLogger("entracte")

MEDIA = re.compile(r"media/[0-9a-f]{16}/\d+\.(png|gif)")
"""Where pictures are kept, as lines name them."""

WRITTEN = "_written"
"""Under which a line of the journal says when it was written."""


class JournalValue(NamedTuple):
    """A value as a journal keeps it."""

    kind: str
    """`number`, `text`, `histogram`, `image` or `video`."""
    value: Any
    """A float; a str; numpy arrays (counts, edges); a Path of a PNG or a GIF."""


class JournalRow(NamedTuple):
    """All that was recorded at one step."""

    step: int
    unix_seconds: float
    values: dict[str, JournalValue]


class TrackerJournal:
    """Records that wait for a tracker: lines of JSON, and pictures as files beside them.

    It is durable and goes back with the run as `JsonLines` does, so that a tracker is given each
    record once, whatever stopped the run.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     journal = TrackerJournal(Path(folder), "a tracker")
    ...     journal.write(28, {"val/loss": 0.5, "sample": Text("Once upon a time")})
    ...     [row] = journal.rows()
    ...     journal.close(deliver=journal.mark_delivered)
    ...     print(row.step, row.values["val/loss"], row.values["sample"].value)
    28 JournalValue(kind='number', value=0.5) Once upon a time
    """

    def __init__(self, folder: Path, who: str, *, active: bool = True) -> None:
        """Open a journal.

        Args:
            folder: of its own; it is made.
            who: writes there, for messages.
            active: False to keep nothing, and make nothing.

        Raises:
            OSError: the folder cannot be written to.
        """
        self.folder, self._who = folder, who
        self._mark = folder / "delivered"
        self._lines: JsonLines | None = None
        self._seen = 0
        if active:
            make_folder(folder, who)
            self._lines = JsonLines(folder / "journal.jsonl")

    def resume(self, step: int, epoch: int) -> None:
        """Drop what lies beyond step and epoch."""
        if self._lines:
            self._lines.resume(step, epoch)

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Append what trackers can show; traces are not."""
        if self._lines:
            self._mark.unlink(missing_ok=True)
            self._lines.write(step, self._lined(step, values))

    def dry_run(self, step: int, values: Mapping[str, Value]) -> None:
        """Append values and take them away again; of pictures nothing is left either."""
        if self._lines:
            self._lines.dry_run(step, self._lined(step, values, keeping=False))

    def flush(self) -> None:
        """Wait until all is on the disk."""
        if self._lines:
            self._lines.flush()

    def close(self, deliver: Callable[[], None]) -> None:
        """Close the file and deliver what is new; a further write opens it again.

        By then the run is over, and what it gives must not be lost for a tracker's sake: a failure
        is logged, and the journal has all that the next attempt needs.
        """
        if not self._lines:
            return
        self._lines.close()
        try:
            if not self._delivered():
                deliver()
        except Exception:
            log.exception(
                "%s: the records were not delivered; they are in %s, and its deliver() tries again",
                self._who,
                self._lines.path,
            )

    def rows(self) -> list[JournalRow]:
        """Read what is on record, a step at a time. A line that is being written is left out."""
        found: dict[int, JournalRow] = {}
        if not self._lines:
            return []
        with open(open_regular(self._lines.path, follow=True), "rb") as file:
            content = file.read()
        self._seen = len(content)
        for line in content.split(b"\n")[:-1]:
            record = json.loads(line)
            step, written = int(record.pop("step")), float(record.pop(WRITTEN, 0.0))
            row = found.setdefault(step, JournalRow(step, written, {}))
            row.values.update(self._read(name, value) for name, value in record.items())
        return [found[step] for step in sorted(found)]

    def _delivered(self) -> bool:
        size = self._lines.path.stat().st_size if self._lines else 0
        return not size or (
            self._mark.exists() and read_bytes(self._mark, follow=True) == str(size).encode()
        )

    def mark_delivered(self) -> None:
        """Take note that the tracker has all that `rows` gave."""
        with atomic_replace(self._mark) as beside:
            beside.write_text(str(self._seen))

    @property
    def identity(self) -> str | None:
        """The run's identity in the tracker, kept from the first delivery on."""
        file = self.folder / "id"
        return read_bytes(file, follow=True).decode().strip() if file.exists() else None

    @identity.setter
    def identity(self, new: str) -> None:
        with atomic_replace(self.folder / "id") as beside:
            beside.write_text(new)

    def _lined(
        self, step: int, values: Mapping[str, Value], *, keeping: bool = True
    ) -> dict[str, Value]:
        """Give values as lines hold them, each under its kind and its name."""
        lined: dict[str, Value] = {WRITTEN: time.time()}
        for name, value in values.items():
            match value:
                case Text():
                    lined[f"text:{name}"] = value
                case Histogram():
                    lined[f"histogram:{name}"] = Text(json.dumps(_counted(value)))
                case Image():
                    file, content = self._media(step, name, "png"), encode_png(value)
                    lined[f"image:{name}"] = self._stored(file, content, keeping)
                case Video():
                    file, content = self._media(step, name, "gif"), encode_gif(value)
                    lined[f"video:{name}"] = self._stored(file, content, keeping)
                case Progress():
                    lined[name] = value
                case Real():  # JSON has none for those that are not finite
                    number = float(value)
                    finite = math.isfinite(number)
                    lined[f"number:{name}"] = number if finite else Text(repr(number))
        return lined

    def _media(self, step: int, name: str, ending: str) -> Path:
        """Give a picture's place: the same for a step that comes again, whatever the name holds."""
        digest = hashlib.blake2b(name.encode(errors="replace"), digest_size=8).hexdigest()
        return Path("media", digest, f"{step}.{ending}")

    def _stored(self, file: Path, content: bytes, keeping: bool) -> Text:
        if keeping:
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            with atomic_replace(self.folder / file) as beside:
                beside.write_bytes(content)
        return Text(str(file))

    def _read(self, name: str, value: Any) -> tuple[str, JournalValue]:
        kind, colon, plain = name.partition(":")
        if not colon:
            return name, JournalValue("number", float(value))  # how many epochs are done
        name = plain
        match kind:
            case "number":
                return name, JournalValue(kind, float(value))
            case "histogram":
                counts, edges = json.loads(value)
                return name, JournalValue(kind, (np.asarray(counts), np.asarray(edges)))
            case "image" | "video":
                if not MEDIA.fullmatch(value):  # what else is uploaded, the line would choose
                    raise ValueError(f"{value!r:.100} is no picture in {self.folder}")
                return name, JournalValue(kind, self.folder / value)
            case _:
                return name, JournalValue(kind, value)


def is_available(who: str, extra: str, enabled: bool, *packages: str) -> bool:
    """Say whether a tracker is to be used and can be; where it is inactive, say so in the log."""
    if not enabled:
        log.info("%s is disabled: it is inactive and records nothing", who)
        return False
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            log.warning(
                '%s is inactive and records nothing (%s); install it: pip install "entracte[%s]"',
                who,
                error,
                extra,
            )
            return False
    return True


def link_artifacts(run: Path, folder: Path) -> dict[int, dict[str, float]]:
    """Collect a run's complete commits and replays, as they are now, without copying their bytes.

    They are hard links, where the file system has them: the run may remove its own. A save of this
    process that is under way is waited for; one of another process is no commit yet.

    Args:
        run: the run's directory.
        folder: replaced; it then has `checkpoints/<epoch>` and `replays`, where there are any.

    Returns:
        The epochs of the commits, ascending, and the scores of each.
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
                source = checkpoints.directory / str(epoch)
                shutil.copytree(source, copy, copy_function=_link, ignore=_neither)
                scores[epoch] = parse_scores(manifest)
            except (DamagedCheckpoint, OSError, shutil.Error) as error:  # or removed meanwhile
                log.warning("commit %d of %s is no artifact: %s", epoch, run, error)
                shutil.rmtree(copy, ignore_errors=True)
    if (run / "replays").is_dir():
        (folder / "replays").mkdir()
        replays = [file for _, file in list_replay_files(run / "replays")]
        for file in (file for file in replays if stat.S_ISREG(file.lstat().st_mode)):
            _link(str(file), str(folder / "replays" / file.name))
    return scores


def _neither(folder: str, names: list[str]) -> list[str]:
    """Name what is neither a file nor a folder: a link's target would be uploaded, a pipe waits."""
    kinds = {name: os.lstat(os.path.join(folder, name)).st_mode for name in names}
    return [n for n, mode in kinds.items() if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))]


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # of another disk, or of a file system without them
        shutil.copy2(source, target)


def _counted(histogram: Histogram) -> list[list[float]]:
    """Give counts and edges of 64 bins."""
    numbers = np.asarray(histogram.values, np.float64)
    counts, edges = np.histogram(numbers[np.isfinite(numbers)], bins=64)
    return [counts.tolist(), edges.tolist()]
