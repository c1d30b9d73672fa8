"""TensorBoard's event files: made, cut where a run goes on, set aside where one starts afresh.

A file is a row of records: the length (8 bytes, little endian) and its checksum (4), the message,
its checksum (4).
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import re
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from hooks.writers.appending import AppendFile
from trainer.host.atomic_files import atomic_replace, explain_disk_full, sync_folder
from trainer.host.safe_open import open_regular

log = logging.getLogger("entracte")

OWN = re.compile(r"(?:events\.out\.tfevents|superseded\.events)\.(\d{10,})\..*\.(\d{6})")
"""File names that `open_event_file` gives: seconds and number. Other files are left alone."""

EPOCH = "epoch"
"""The tag whose value is the number of epochs that are done."""

CHUNK = 2**20
"""Bytes that are copied at once."""

_open: set[Path] = set()
"""Files that writers of this process have open; other writers leave them alone."""


class RecordScan(NamedTuple):
    """What stays of a file."""

    kept: list[tuple[int, int]]
    """Where it begins and ends, apart from one another."""
    dropped: int
    """How many records do not."""
    damaged: int | None
    """The byte from which on it cannot be read; None if all of it can."""


def encode_records(events: Iterable[Event]) -> bytes:
    """Return messages as records, one after another."""
    parts = []
    for event in events:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        parts += [length, _checksum(length), data, _checksum(data)]
    return b"".join(parts)


def open_event_file(directory: Path, hidden_from: int | None) -> AppendFile:
    """Begin a file that readers take for later than those that are there.

    Args:
        directory: of the files.
        hidden_from: step from which on those who read along forget what they have read; None keeps
            all.
    """
    names = [OWN.fullmatch(path.name) for path in directory.iterdir()]
    made = [(int(found[1]), int(found[2])) for found in names if found]
    seconds = max([int(time.time()), *(second for second, _ in made)])  # clocks are set back
    number = max([-1, *(number for _, number in made)]) + 1
    name = f"events.out.tfevents.{seconds}.{socket.gethostname()}.{number:06d}"
    head = [Event(wall_time=time.time(), file_version="brain.Event:2")]
    beside = any(path.parent == directory for path in _open)  # what it wrote is of this run
    if hidden_from is not None and not beside:
        hidden = Event(wall_time=time.time(), step=hidden_from)
        hidden.session_log.status = 1  # START
        head.append(hidden)
    file = AppendFile(directory / name, "TensorBoard")
    try:
        file.append(encode_records(head))
        sync_folder(directory)
    except BaseException:
        file.close()
        raise
    _open.add(file.path)
    return file


def close_event_file(file: AppendFile) -> None:
    """Close a file that `open_event_file` made."""
    _open.discard(file.path)
    file.close()


def archive_files(directory: Path) -> None:
    """Rename the files of an earlier run, so that readers pass them over.

    Killed in between, some are set aside and the rest are the next time.
    """
    files = _own(directory)
    for path in files:
        path.rename(path.with_name(path.name.replace("events.out.tfevents", "superseded.events")))
    if files:
        sync_folder(directory)
        log.warning(
            "%s: this run starts afresh, and the %d event files of an earlier one are set aside: "
            "they are named superseded.events.* now, which TensorBoard passes over",
            directory,
            len(files),
        )


def truncate_files(directory: Path, step: int, epoch: int) -> bool:
    """Drop the records beyond a step or an epoch, and one torn by a crash.

    Each file is replaced at once, so that one killed in between is cut the next time.

    Args:
        directory: of the files.
        step: the last that stays.
        epoch: the last that stays, for programs whose step stands still.

    Returns:
        Whether there are files.
    """
    dropped, files = 0, _own(directory)
    for path in files:
        with open(open_regular(path, follow=True), "rb") as file, _mapped(file) as content:
            found = _cut(content, step, epoch)
            if found.kept == [(0, len(content))]:
                continue
            if found.damaged is not None:
                aside = path.with_name(path.name.replace("events.out.tfevents", "damaged.events"))
                log.warning(
                    "%s is damaged from byte %d on: it is kept as %s, and what can be read of it "
                    "stays",
                    *(path, found.damaged, aside.name),
                )
                _replace(aside, content, [(0, len(content))])
            _replace(path, content, found.kept)
        dropped += found.dropped
    if dropped:
        log.warning(
            "%s: dropping %d records beyond step %d of epoch %d, where this run goes on",
            *(directory, dropped, step, epoch),
        )
    return bool(files)


def _own(directory: Path) -> list[Path]:
    """List the files that are read and that no writer of this process has open, in their order."""
    return sorted(
        path
        for path in directory.glob("events.out.tfevents.*")
        if OWN.fullmatch(path.name) and path not in _open and path.is_file()
    )


def _mapped(file: BinaryIO) -> contextlib.AbstractContextManager[bytes | mmap.mmap]:
    if not os.fstat(file.fileno()).st_size:
        return contextlib.nullcontext(b"")  # of which there is no map
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _cut(content: bytes | mmap.mmap, step: int, epoch: int) -> RecordScan:
    kept, dropped, done, place = [(0, 0)], 0, 0.0, 0
    while place + 12 <= len(content):
        length = content[place : place + 8]
        end = place + 16 + int(struct.unpack("<Q", length)[0])
        sound = _checksum(length) == content[place + 8 : place + 12]
        if sound and end > len(content):
            break  # torn
        try:
            event = Event.FromString(content[place + 12 : end - 4]) if sound else None
        except DecodeError:
            event = None
        if event is None:
            return RecordScan(kept, dropped, place)
        done = next((v.simple_value for v in event.summary.value if v.tag == EPOCH), done)
        if event.HasField("summary") and (event.step > step or done > epoch):
            dropped += 1
        elif kept[-1][1] == place:
            kept[-1] = kept[-1][0], end
        else:
            kept.append((place, end))
        place = end
    return RecordScan(kept, dropped, None)


def _replace(path: Path, content: bytes | mmap.mmap, kept: list[tuple[int, int]]) -> None:
    """Write parts of a file to another, which appears at once."""
    size = sum(end - begin for begin, end in kept)
    # Under a name that readers pass over.
    with (
        explain_disk_full(size, path),
        atomic_replace(path, beside="cutting") as target,
        target.open("wb") as file,
    ):
        for begin, end in kept:
            for place in range(begin, end, CHUNK):
                file.write(content[place : min(place + CHUNK, end)])


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))
