"""TensorBoard: numbers, pictures and texts in event files, written on a thread of their own."""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import make_histogram, text

from hooks.eventfiles import begin, framed, scalar_records
from hooks.worker import Worker
from hooks.writers import Histogram, Image, Progress, Text, Trace, Value, make_folder

POINTS = 1000
"""Of a trace, at most so many values are written at a time."""


class TensorBoard:
    """Writes event files for TensorBoard, off the training thread.

    Numbers, pictures, texts and histograms stand at the step written, the values of a trace at
    their own steps; of more than 1,000, as many evenly picked ones, the last among them. Each run
    writes a file of its own. One that goes on hides what earlier files hold beyond its step, so
    that a reader finds each point once; one that starts afresh hides it all.

    Args:
        directory: of the event files; it is made.

    Raises:
        OSError: the directory cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     board = TensorBoard(folder)
    ...     board.write(28, {"train/loss": 0.5, "sample": Text("Once upon a time")})
    ...     board.close()
    ...     print([file.name[:20] for file in board.directory.iterdir()])
    ['events.out.tfevents.']
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        make_folder(self.directory, "TensorBoard")
        self._file: IO[bytes] | None = None
        self._since, self._written = 0, dict[str, int]()
        self._worker = Worker("TensorBoard", self._record, waiting=64)

    def resume(self, step: int) -> None:
        """Begin a file that hides what earlier ones hold beyond this step."""
        self.close()
        self._since = step
        self._file = begin(self.directory, after=step)

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Queue values. Arrays are copied, since training may take back the memory of its own."""
        held = {tag: _held(value) for tag, value in values.items()}
        self._worker.put((time.time(), step, held))

    def flush(self) -> None:
        """Wait until all that was queued is on the disk."""
        self._worker.flush()
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write what is queued, end the thread, close the file; a further write begins another."""
        try:
            self._worker.close()
        finally:
            file, self._file = self._file, None
            self._since, self._written = 0, {}
            if file is not None:
                file.close()

    def _record(self, item: tuple[float, int, dict[str, Value]]) -> None:
        """Write what was queued by one `write`."""
        wall_time, step, values = item
        if self._file is None:
            self._file = begin(self.directory)
        scalars: dict[str, Any] = {}
        traces: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        others = []
        for tag, value in values.items():
            if isinstance(value, Trace):
                since = self._written.get(tag, self._since)
                self._written[tag] = step
                traces.setdefault((len(value.values), since), {})[tag] = value.values
            elif isinstance(value, Progress):
                scalars[tag] = [value.done]
            elif isinstance(value, Histogram | Image | Text):
                others.append(_summary(tag, value))
            else:
                scalars[tag] = [value]
        self._file.write(scalar_records(wall_time, [step], scalars))
        for (length, since), named in traces.items():
            steps, picked = places(length, step, since=since)
            points = {tag: trace[picked] for tag, trace in named.items()}
            self._file.write(scalar_records(wall_time, steps, points))
        if others:
            event = Event(wall_time=wall_time, step=step, summary=Summary(value=others))
            self._file.write(framed(event))
        self._file.flush()


def places(length: int, step: int, *, since: int) -> tuple[np.ndarray, np.ndarray]:
    """Say which values of a trace to write, and at which steps.

    A trace that is finer than the steps since it was last written, as a rollout's may be, is spread
    over them, so that it never runs into the one before.

    Args:
        length: of the trace.
        step: at its end.
        since: the step at which it was last written.

    Returns:
        (steps, indices into the trace), both `[points]` and increasing.

    >>> places(3, 12, since=9)
    (array([10, 11, 12]), array([0, 1, 2]))
    >>> places(8, 12, since=8)
    (array([ 9, 10, 11, 12]), array([1, 3, 5, 7]))
    """
    span = min(length, step - since)
    points = max(min(span, POINTS), 0)
    ends = np.arange(1, points + 1)
    return step - span + ends * span // max(points, 1), ends * length // max(points, 1) - 1


def png(pixels: np.ndarray) -> bytes:
    """Encode `[height, width, channels]`, uint8 or floats from 0 to 1, as a PNG file.

    >>> png(np.zeros((1, 1, 3)))[:4]
    b'\x89PNG'
    """
    if pixels.dtype != np.uint8:
        pixels = (np.clip(np.nan_to_num(pixels), 0, 1) * 255).round().astype(np.uint8)
    height, width, channels = pixels.shape
    kind = {1: 0, 3: 2, 4: 6}[channels]
    unfiltered = np.zeros((height, 1), np.uint8)
    rows = np.concatenate([unfiltered, pixels.reshape(height, width * channels)], axis=1)

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b"")


def _held(value: Value) -> Value:
    if isinstance(value, Image):
        return Image(np.array(value.pixels))
    if isinstance(value, Trace | Histogram):
        return type(value)(np.array(value.values))
    return value


def _summary(tag: str, value: Histogram | Image | Text) -> Any:
    if isinstance(value, Text):
        return text(tag, value.text).value[0]
    if isinstance(value, Image):
        height, width, channels = value.pixels.shape
        encoded = Summary.Image(
            height=height,
            width=width,
            colorspace=channels,
            encoded_image_string=png(value.pixels),
        )
        return Summary.Value(tag=tag, image=encoded)
    numbers = value.values.astype(np.float64)
    histogram = make_histogram(numbers[np.isfinite(numbers)], bins=64)
    return Summary.Value(tag=tag, histo=histogram)
