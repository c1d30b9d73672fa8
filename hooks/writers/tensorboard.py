"""A writer for TensorBoard: event files of numbers, pictures and texts, written on a thread."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from hooks.writers import event_files
from hooks.writers.appending import AppendFile
from hooks.writers.confusion_texts import join_confusion
from hooks.writers.images import encode_gif, to_uint8
from hooks.writers.values import Histogram, Image, Progress, Text, Trace, Value, Video
from hooks.writers.writer import log_missing_history
from trainer.checks.paths import to_absolute_path
from trainer.host.background_worker import BackgroundWorker
from trainer.host.folders import make_folder
from trainer.host.time_spans import span

POINTS = 1000
"""Values of a trace to write at a time, at most; each takes the thread 50 us."""

WRITTEN_WITHIN = 600.0
"""Seconds to wait for a disk that does not respond."""


class TensorBoard:
    """Writes event files for TensorBoard, off the training thread.

    Numbers, pictures, videos, texts and histograms are written at their step, the values of a trace
    at the step of each; of a longer trace, 1,000 evenly picked values, the last among them. A
    confusion matrix (`val/confusion/2/7`, ...) is one table at `val/confusion`, among the texts. A
    resumed run truncates earlier files at its step, so that every reader finds each point once; a
    fresh start renames them to names that readers skip. Pictures and videos need Pillow, `pip
    install "entracte[images]"`.

    Args:
        directory: of the event files; it is created.

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
        """Truncate earlier files at this step, or set them aside, and create a new one."""
        if self._resumed == (step, epoch):  # by another hook that shares this writer
            return
        self.close()
        self._since = step
        if epoch:
            if not event_files.truncate_files(self.directory, step, epoch):
                log_missing_history(self.directory, epoch)
        else:
            event_files.archive_files(self.directory)
        # Live readers have read more; a fresh start writes again what was measured before training.
        self._file = event_files.open_event_file(self.directory, step + 1 if epoch else 0)
        self._resumed = step, epoch

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Queue values. Arrays are copied, since training may reuse their memory."""
        if self._resumed and step > self._resumed[0]:
            self._resumed = None
        copies = {tag: _copy_arrays(value) for tag, value in values.items()}
        self._worker.put((time.time(), step, copies))

    def dry_run(self, step: int, values: Mapping[str, Value]) -> None:
        """Write values to a temporary file, and remove it again."""
        beside = tempfile.TemporaryDirectory(prefix="check-", dir=self.directory)
        with beside as folder, contextlib.closing(TensorBoard(folder)) as trial:
            trial.write(step, values)

    def flush(self) -> None:
        """Wait until everything queued is on the disk, at its path; see `AppendFile.flush`."""
        self._worker.flush()
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Write what is queued, end the thread, close the file; the next write starts another."""
        try:
            self._worker.close()
        finally:
            file, self._file = self._file, None
            self._since, self._written = 0, {}
            self._resumed = self._progress = None
            if file is not None:
                event_files.close_event_file(file)

    def _record(self, item: tuple[float, int, dict[str, Value]]) -> None:
        """Write the values of one `write`."""
        with span("write", "TensorBoard"):
            file = self._file = self._file or event_files.open_event_file(self.directory, None)
            events = self._build_events(*item)
            file.append(event_files.encode_records(event for _, event in sorted(events.items())))

    def _build_events(
        self, wall_time: float, step: int, values: Mapping[str, Value]
    ) -> dict[int, Any]:
        """Return an event per step, with all values of that step."""
        from tensorboardX.proto.event_pb2 import Event

        events: dict[int, Any] = {}

        def values_at(place: int) -> Any:
            if place not in events:
                events[place] = Event(wall_time=wall_time, step=place)
            return events[place].summary.value

        for tag, value in join_confusion(values).items():
            match value:
                case Trace():
                    since = self._written.get(tag, self._since)
                    self._written[tag] = step
                    steps, picked = select_trace_points(len(value.values), step, since=since)
                    numbers = np.asarray(value.values, np.float64)[picked]
                    for place, number in zip(steps.tolist(), numbers.tolist(), strict=True):
                        values_at(place).add(tag=tag, simple_value=number)
                case Histogram() | Image() | Video() | Text():
                    values_at(step).append(_build_summary(tag, value))
                case Progress():
                    if self._progress != (step, value.done):  # or another hook wrote it
                        values_at(step).add(tag=tag, simple_value=value.done)
                    self._progress = step, value.done
                case _:
                    values_at(step).add(tag=tag, simple_value=value)  # inf beyond float32
        return events


def select_trace_points(length: int, step: int, *, since: int) -> tuple[np.ndarray, np.ndarray]:
    """Select which values of a trace to write, and at which steps.

    A trace with more values than there were steps since the last write, such as a rollout's, is
    spread over these steps, so that it never overlaps the previous one.

    Args:
        length: of the trace.
        step: at its end.
        since: the step of the last write.

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


def _copy_arrays(value: Value) -> Value:
    if isinstance(value, Image):
        return Image(np.array(value.pixels))
    if isinstance(value, Video):
        return Video(np.array(value.frames), value.fps)
    if isinstance(value, Trace | Histogram):
        return type(value)(np.array(value.values))
    return value


def _build_summary(tag: str, value: Histogram | Image | Video | Text) -> Any:
    """Build the message of a value that is no number."""
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.summary import image, make_histogram, text

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
