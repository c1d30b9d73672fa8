"""TensorBoard's event files: create, truncate for a resumed run, archive for a fresh start.

A file is a sequence of records: the length (8 bytes, little endian) and its checksum (4), the
message, its checksum (4).
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
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from hooks.writers.appending import CHUNK, AppendFile
from trainer.host.atomic_files import atomic_replace, explain_disk_full, sync_folder
from trainer.host.safe_open import open_regular

if TYPE_CHECKING:  # imported where files are written: it takes 0.1 s
    from tensorboardX.proto.event_pb2 import Event

log = logging.getLogger("entracte")

OWN = re.compile(r"(?:events\.out\.tfevents|superseded\.events)\.(\d{10,})\..*\.(\d{6})")
"""Names of files from `open_event_file`: seconds and number. Other files are left alone."""

EPOCH = "epoch"
"""The tag whose value is the number of completed epochs."""

_open: set[Path] = set()
"""Files that writers of this process have open; other writers do not touch them."""


class RecordScan(NamedTuple):
    """Which records of a file to keep."""

    kept: list[tuple[int, int]]
    """Byte ranges to keep, begin and end, separate from one another."""
    dropped: int
    """Number of records to drop."""
    damaged: int | None
    """The first byte that cannot be read; None if all of the file can be read."""


def encode_records(events: Iterable[Event]) -> bytes:
    """Encode messages as records, one after another."""
    parts = []
    for event in events:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        parts += [length, _checksum(length), data, _checksum(data)]
    return b"".join(parts)


def open_event_file(directory: Path, hidden_from: int | None) -> AppendFile:
    """Create a file that readers sort after the existing ones.

    Args:
        directory: of the files.
        hidden_from: step from which on live readers forget what they have read; None keeps all.
    """
    from tensorboardX.proto.event_pb2 import Event

    names = [OWN.fullmatch(path.name) for path in directory.iterdir()]
    existing = [(int(match[1]), int(match[2])) for match in names if match]
    seconds = max([int(time.time()), *(second for second, _ in existing)])  # clocks are set back
    number = max([-1, *(number for _, number in existing)]) + 1
    name = f"events.out.tfevents.{seconds}.{socket.gethostname()}.{number:06d}"
    head = [Event(wall_time=time.time(), file_version="brain.Event:2")]
    shared = any(path.parent == directory for path in _open)  # by another writer of this run
    if hidden_from is not None and not shared:
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
    """Close a file that `open_event_file` returned."""
    _open.discard(file.path)
    file.close()


def archive_files(directory: Path) -> None:
    """Rename the files of an earlier run, so that readers skip them; a next call does the rest."""
    files = _list_closed_files(directory)
    for path in files:
        path.rename(path.with_name(path.name.replace("events.out.tfevents", "superseded.events")))
    if files:
        sync_folder(directory)
        log.warning(
            "%s: this run starts fresh, and the %d event files of an earlier one are set aside: "
            "they are now named superseded.events.*, which TensorBoard skips",
            *(directory, len(files)),
        )


def truncate_files(directory: Path, step: int, epoch: int) -> bool:
    """Drop the records beyond a step or epoch, or torn by a crash; return whether there are files.

    Each file is replaced atomically; after a kill in between, the next call truncates the rest.

    Args:
        directory: of the files.
        step: the last to keep.
        epoch: the last to keep, for programs that do not count steps.
    """
    dropped, files = 0, _list_closed_files(directory)
    for path in files:
        with open(open_regular(path, follow=True), "rb") as file, _mapped(file) as content:
            scan = _scan_records(content, step, epoch)
            if scan.kept == [(0, len(content))]:
                continue
            if scan.damaged is not None:
                aside = path.with_name(path.name.replace("events.out.tfevents", "damaged.events"))
                log.warning(
                    "%s is damaged from byte %d on: it is kept as %s, and its readable part stays",
                    *(path, scan.damaged, aside.name),
                )
                _replace(aside, content, [(0, len(content))])
            _replace(path, content, scan.kept)
        dropped += scan.dropped
    if dropped:
        log.warning(
            "%s: dropping %d records beyond step %d of epoch %d, where this run resumes",
            *(directory, dropped, step, epoch),
        )
    return bool(files)


def _list_closed_files(directory: Path) -> list[Path]:
    """List, in order, the files that readers read and no writer of this process has open."""
    return sorted(
        path
        for path in directory.glob("events.out.tfevents.*")
        if OWN.fullmatch(path.name) and path not in _open and path.is_file()
    )


def _mapped(file: BinaryIO) -> contextlib.AbstractContextManager[bytes | mmap.mmap]:
    if not os.fstat(file.fileno()).st_size:
        return contextlib.nullcontext(b"")  # an empty file cannot be mapped
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _scan_records(content: bytes | mmap.mmap, step: int, epoch: int) -> RecordScan:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorboardX.proto.event_pb2 import Event

    kept, dropped, done, place = [(0, 0)], 0, 0.0, 0
    while place + 12 <= len(content):
        length = content[place : place + 8]
        end = place + 16 + int(struct.unpack("<Q", length)[0])
        intact = _checksum(length) == content[place + 8 : place + 12]
        if intact and end > len(content):
            break  # torn
        try:
            event = Event.FromString(content[place + 12 : end - 4]) if intact else None
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
    """Replace a file atomically by parts of a content."""
    size = sum(end - begin for begin, end in kept)
    # The temporary name is one that readers skip.
    with (
        explain_disk_full(size, path),
        atomic_replace(path, beside="cutting") as target,
        target.open("wb") as file,
    ):
        for begin, end in kept:
            for place in range(begin, end, CHUNK):
                file.write(content[place : min(place + CHUNK, end)])


def _checksum(data: bytes) -> bytes:
    from tensorboardX.record_writer import masked_crc32c

    return struct.pack("<I", masked_crc32c(data))
