"""TensorBoard: numbers, pictures and texts in event files, written on a thread of their own."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import image, make_histogram, text

from hooks.worker import BackgroundWorker
from hooks.writers import event_files
from hooks.writers.appending import AppendFile
from hooks.writers.images import encode_gif, to_uint8
from hooks.writers.writer import (
    Histogram,
    Image,
    Progress,
    Text,
    Trace,
    Value,
    Video,
    log_missing_history,
    make_folder,
)
from trainer.checks.paths import to_absolute_path

POINTS = 1000
"""Of a trace, at most so many values are written at a time; each step takes the thread 50 us."""

WRITTEN_WITHIN = 600.0
"""Seconds after which a disk that takes no more is given up."""


class TensorBoard:
    """Writes event files for TensorBoard, off the training thread.

    Numbers, pictures, videos, texts and histograms stand at the step written, the values of a trace
    at their own steps; of more than 1,000, as many evenly picked ones, the last among them. Each
    run writes a file of its own. One that goes on cuts what earlier files hold beyond its step, so
    that every reader finds each point once; one that starts afresh sets them aside, under names
    that readers pass over. A video is a picture that moves. Both need Pillow,
    `pip install "entracte[images]"`.

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
        self.directory = to_absolute_path(directory, "TensorBoard")
        make_folder(self.directory, "TensorBoard")
        self._file: AppendFile | None = None
        self._since, self._written = 0, dict[str, int]()
        self._resumed: tuple[int, int] | None = None
        self._progress: tuple[int, int] | None = None
        self._worker = BackgroundWorker(
            "TensorBoard", self._record, max_queued=64, time_limit=WRITTEN_WITHIN
        )

    def resume(self, step: int, epoch: int) -> None:
        """Cut earlier files at this step, or set them aside, and begin one."""
        if self._resumed == (step, epoch):  # by another hook that shares this writer
            return
        self.close()
        self._since = step
        if epoch:
            if not event_files.truncate_files(self.directory, step, epoch):
                log_missing_history(self.directory, epoch)
        else:
            event_files.archive_files(self.directory)
        # Who reads along has read more: afresh, what was measured before training comes again.
        self._file = event_files.open_event_file(self.directory, step + 1 if epoch else 0)
        self._resumed = step, epoch

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Queue values. Arrays are copied, since training may take back the memory of its own."""
        if self._resumed and step > self._resumed[0]:
            self._resumed = None
        held = {tag: _held(value) for tag, value in values.items()}
        self._worker.put((time.time(), step, held))

    def dry_run(self, step: int, values: Mapping[str, Value]) -> None:
        """Write values to a file beside the others, and take it away again."""
        with tempfile.TemporaryDirectory(prefix="check-", dir=self.directory) as folder:
            trial = TensorBoard(folder)
            try:
                trial.write(step, values)
            finally:
                trial.close()

    def flush(self) -> None:
        """Wait until all that was queued is on the disk, in the file that is found at its path.

        Raises:
            OSError: the file was replaced or cut short in mid-run, or the disk fails. One that was
                deleted is written again.
        """
        self._worker.flush()
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Write what is queued, end the thread, close the file; a further write begins another."""
        try:
            self._worker.close()
        finally:
            file, self._file = self._file, None
            self._since, self._written = 0, {}
            self._resumed = self._progress = None
            if file is not None:
                event_files.close_event_file(file)

    def _record(self, item: tuple[float, int, dict[str, Value]]) -> None:
        """Write what was queued by one `write`: one event a step, with all that stands there."""
        wall_time, step, values = item
        file = self._file = self._file or event_files.open_event_file(self.directory, None)
        events: dict[int, Any] = {}

        def at(place: int) -> Any:
            if place not in events:
                events[place] = Event(wall_time=wall_time, step=place)
            return events[place].summary.value

        for tag, value in values.items():
            match value:
                case Trace():
                    since = self._written.get(tag, self._since)
                    self._written[tag] = step
                    steps, picked = select_trace_points(len(value.values), step, since=since)
                    numbers = np.asarray(value.values, np.float64)[picked]
                    for place, number in zip(steps.tolist(), numbers.tolist(), strict=True):
                        at(place).add(tag=tag, simple_value=number)
                case Histogram() | Image() | Video() | Text():
                    at(step).append(_summary(tag, value))
                case Progress():
                    if self._progress != (step, value.done):  # else another hook wrote it
                        at(step).add(tag=tag, simple_value=value.done)
                    self._progress = step, value.done
                case _:
                    at(step).add(tag=tag, simple_value=value)  # beyond float32 it is inf
        file.append(event_files.encode_records(event for _, event in sorted(events.items())))


def select_trace_points(length: int, step: int, *, since: int) -> tuple[np.ndarray, np.ndarray]:
    """Say which values of a trace to write, and at which steps.

    A trace that is finer than the steps since it was last written, as a rollout's may be, is spread
    over them, so that it never runs into the one before.

    Args:
        length: of the trace.
        step: at its end.
        since: the step at which it was last written.

    Returns:
        (steps, indices into the trace), both `[points]` and increasing.

    >>> select_trace_points(3, 12, since=9)
    (array([10, 11, 12]), array([0, 1, 2]))
    >>> select_trace_points(8, 12, since=8)
    (array([ 9, 10, 11, 12]), array([1, 3, 5, 7]))
    """
    span = min(length, step - since)
    points = max(min(span, POINTS), 0)
    ends = np.arange(1, points + 1)
    return step - span + ends * span // max(points, 1), ends * length // max(points, 1) - 1


def _held(value: Value) -> Value:
    if isinstance(value, Image):
        return Image(np.array(value.pixels))
    if isinstance(value, Video):
        return Video(np.array(value.frames), value.fps)
    if isinstance(value, Trace | Histogram):
        return type(value)(np.array(value.values))
    return value


def _summary(tag: str, value: Histogram | Image | Video | Text) -> Any:
    """Make the message of what is no number."""
    match value:
        case Text():
            encodable = value.text.encode(errors="backslashreplace").decode()
            return text(tag, encodable).value[0]
        case Image():
            return image(tag, to_uint8(value.pixels), dataformats="HWC").value[0]
        case Video():
            _, height, width, _ = value.frames.shape
            moving = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=encode_gif(value)
            )
            return Summary.Value(tag=tag, image=moving)
        case Histogram():
            numbers = np.asarray(value.values, np.float64)
            histogram = make_histogram(numbers[np.isfinite(numbers)], bins=64)
            return Summary.Value(tag=tag, histo=histogram)
