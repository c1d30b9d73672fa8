"""Event files, as TensorBoard reads them: records with checksums, scalars many at a time.

A record is its length, a checksum of that, an `Event` message and a checksum of it. Built message
by message in Python, an epoch of 28 steps costs about 1 ms, which the training thread would wait
for, since one thread runs Python at a time. So events that hold the same tags are laid out once,
and filled in as one array: their checksums are a sum, in the arithmetic of bits, of what each bit
adds.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from tensorboardX.crc32c import CRC_TABLE, crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

TABLE = np.array(CRC_TABLE, np.uint32)
"""What a byte adds to a checksum (CRC-32C)."""

STEP_BYTES = 5
"""Of an encoded step: seven bits each, so that every int32 has the same length."""


def begin(directory: Path, *, after: int | None = None) -> IO[bytes]:
    """Open a new event file, which readers take after all that the directory holds.

    Args:
        directory: of the event files.
        after: a step: what earlier files hold beyond it is hidden from readers. None hides nothing.
    """
    stamps = [path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*")]
    stamp = max([int(time.time()), *(int(stamp) + 1 for stamp in stamps if stamp.isdecimal())])
    file = (directory / f"events.out.tfevents.{stamp}.entracte").open("xb")
    file.write(framed(Event(wall_time=time.time(), file_version="brain.Event:2")))
    if after is not None:
        start = SessionLog(status=SessionLog.START)
        file.write(framed(Event(wall_time=time.time(), step=after + 1, session_log=start)))
    file.flush()
    return file


def framed(event: Any) -> bytes:
    """Make a record of an `Event`."""
    message = event.SerializeToString()
    return _head(len(message)) + message + struct.pack("<I", masked_crc32c(message))


def scalar_records(
    wall_time: float, steps: Sequence[int] | np.ndarray, values: Mapping[str, Any]
) -> bytes:
    """Make a record for each step, with the scalars of all tags.

    Args:
        wall_time: in unix seconds, of all of them.
        steps: whole numbers `[steps]`, from 0 to 2**31 - 1.
        values: tag to floats `[steps]`.
    """
    layout = _layout(tuple(values))
    filled = np.empty((len(steps), len(layout.places)), np.uint8)
    filled[:, :8] = np.frombuffer(struct.pack("<d", wall_time), np.uint8)
    filled[:, 8:13] = _varints(np.asarray(steps))
    with np.errstate(over="ignore"):  # beyond float32 it is inf
        numbers = np.array([*values.values()], np.float64).T.astype("<f4", order="C")
    filled[:, 13:] = numbers.view(np.uint8)
    bits = np.unpackbits(filled, axis=1, bitorder="little")
    checksums = layout.checksum ^ np.bitwise_xor.reduce(bits * layout.effects, axis=1)
    records = np.empty((len(steps), len(layout.record)), np.uint8)
    records[:] = layout.record
    records[:, layout.places] = filled
    records[:, -4:] = _masked(checksums)[:, None].view(np.uint8)
    return records.tobytes()


@dataclasses.dataclass(frozen=True, eq=False)
class _Layout:
    """A record of scalars in which time, step and values are zero."""

    record: np.ndarray
    """uint8 `[bytes]`."""
    places: np.ndarray
    """Where time, step and values go, `[places]`."""
    checksum: np.uint32
    """Of the message, before masking."""
    effects: np.ndarray
    """What each bit in these places, lowest first, does to the checksum: uint32 `[8 places]`."""


@functools.lru_cache(maxsize=64)
def _layout(tags: tuple[str, ...]) -> _Layout:
    """Lay out an event with these tags: two that differ in all that varies show where it is."""
    one, two = (np.frombuffer(_filled(tags, byte), np.uint8) for byte in (1, 2))
    places = np.flatnonzero(one != two)
    message = one.copy()
    message[places] = 0
    effects = np.zeros((len(places), 8), np.uint32)
    seen = 0
    for place in range(len(message)):
        earlier = effects[:seen]
        effects[:seen] = TABLE[earlier & 255] ^ (earlier >> np.uint32(8))
        if seen < len(places) and places[seen] == place:
            effects[seen] = TABLE[1 << np.arange(8)]
            seen += 1
    record = _head(len(message)) + message.tobytes() + bytes(4)
    return _Layout(
        record=np.frombuffer(record, np.uint8),
        places=places + len(_head(0)),
        checksum=np.uint32(crc32c(message.tobytes())),
        effects=effects.ravel(),
    )


def _filled(tags: tuple[str, ...], byte: int) -> bytes:
    """Make an event whose time, step and values consist of this byte, below 128."""
    (number,) = struct.unpack("<f", bytes([byte] * 4))
    (wall_time,) = struct.unpack("<d", bytes([byte] * 8))
    step = sum(byte << 7 * place for place in range(STEP_BYTES))
    values = [Summary.Value(tag=tag, simple_value=number) for tag in tags]
    return Event(wall_time=wall_time, step=step, summary=Summary(value=values)).SerializeToString()


def _varints(steps: np.ndarray) -> np.ndarray:
    """Encode steps as protocol buffers do, all of one length: uint8 `[steps, STEP_BYTES]`."""
    sevens = (steps.astype(np.int64)[:, None] >> 7 * np.arange(STEP_BYTES)) & 127
    sevens[:, :-1] |= 128
    return sevens.astype(np.uint8)


def _masked(checksums: np.ndarray) -> np.ndarray:
    """Mask checksums as the format asks: uint32 `[records]`."""
    turned = (checksums >> np.uint32(15)) | (checksums << np.uint32(17))
    return (turned + np.uint32(0xA282EAD8)).astype("<u4")


def _head(length: int) -> bytes:
    """Make what stands before a message: its length and the checksum of that."""
    head = struct.pack("<Q", length)
    return head + struct.pack("<I", masked_crc32c(head))
