"""TensorBoard, read back with TensorBoard's own reader."""

from __future__ import annotations

import io
import math
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

import trainer
from hooks.metric_logging import log_metrics
from hooks.testing import check_hook
from hooks.writers.tensorboard import POINTS, TensorBoard, select_trace_points
from hooks.writers.values import Histogram, Image, Progress, Text, Trace, Video
from hooks.writers.writer import ResumableWriter, Writer


def read(directory):
    """Read all event files of a directory, keeping every point."""
    everything = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)
    return EventAccumulator(str(directory), size_guidance=everything).Reload()


def points(directory, tag):
    return [(event.step, event.value) for event in read(directory).Scalars(tag)]


@pytest.fixture
def board(tmp_path):
    board = TensorBoard(tmp_path / "runs")
    yield board
    board.close()


def test_it_is_a_writer_that_resumes(board):
    assert isinstance(board, Writer)
    assert isinstance(board, ResumableWriter)


def test_numbers_are_written_at_their_step(board):
    board.write(28, {"epoch": Progress(1, 20), "train/loss": 0.5, "gap": math.inf})
    board.write(56, {"epoch": Progress(2, 20), "train/loss": 0.25, "gap": 1e300})
    board.flush()
    assert points(board.directory, "train/loss") == [(28, 0.5), (56, 0.25)]
    assert points(board.directory, "epoch") == [(28, 1), (56, 2)]
    assert points(board.directory, "gap") == [(28, math.inf), (56, math.inf)]


def test_values_of_a_trace_are_written_at_their_own_steps(board):
    board.write(3, {"steps/loss": Trace(np.array([3.0, 2.0, 1.0]))})
    board.write(5, {"steps/loss": Trace(np.array([0.5, 0.25]))})
    board.flush()
    expected = [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5), (5, 0.25)]
    assert points(board.directory, "steps/loss") == expected


def test_a_long_trace_is_sampled_evenly(board):
    board.write(5 * POINTS, {"steps/loss": Trace(np.arange(5 * POINTS) + 1.0)})
    board.flush()
    expected = [(5 * n, 5.0 * n) for n in range(1, POINTS + 1)]
    assert points(board.directory, "steps/loss") == expected


def test_a_trace_finer_than_steps_never_overlaps_the_previous_one(board):
    for step in (2, 4):
        board.write(step, {"steps/return": Trace(np.arange(100.0))})
    board.flush()
    found = points(board.directory, "steps/return")
    assert found == [(1, 49.0), (2, 99.0), (3, 49.0), (4, 99.0)]


@given(length=st.integers(0, 5000), since=st.integers(0, 5000), gap=st.integers(0, 5000))
def test_sampled_indices_are_within_the_trace_and_steps_after_the_last_write(length, since, gap):
    steps, picked = select_trace_points(length, since + gap, since=since)
    assert len(steps) == len(picked) == min(length, gap, POINTS)
    if len(steps):
        assert (np.diff(steps) > 0).all()
        assert (np.diff(picked) > 0).all()
        assert steps[0] > since
        assert (steps[-1], picked[-1]) == (since + gap, length - 1)
        assert picked[0] >= 0
    if length <= min(gap, POINTS):
        np.testing.assert_array_equal(picked, np.arange(length))
        np.testing.assert_array_equal(steps, since + gap - length + 1 + picked)


def test_texts_histograms_and_images_are_shown(board):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    weights = np.array([[1.0, 2.0], [2.0, math.nan]])
    board.write(7, {"said": Text("Once"), "weights": Histogram(weights), "digit": Image(pixels)})
    board.flush()
    found = read(board.directory)
    (said,) = found.Tensors("said/text_summary")
    assert tensor_util.make_ndarray(said.tensor_proto).tolist() == [b"Once"]
    (histogram,) = found.Histograms("weights")
    assert histogram.step == 7
    assert histogram.histogram_value.num == 3
    assert histogram.histogram_value.sum == 5.0
    (image,) = found.Images("digit")
    assert (image.step, image.height, image.width) == (7, 2, 4)
    np.testing.assert_array_equal(decoded(image.encoded_image_string), pixels)


def test_a_confusion_matrix_is_one_table(board):
    cells = {f"val/confusion/{label}/{predicted}": 1.0 for label in "01" for predicted in "01"}
    board.write(7, {"val/loss": 0.5, **cells})
    board.flush()
    found = read(board.directory)
    assert found.Tags()["scalars"] == ["val/loss"]
    (table,) = found.Tensors("val/confusion/text_summary")
    rows = [b"| class, predicted | 0 | 1 |", b"|---|---|---|", b"| **0** | 1 | 1 |"]
    text = tensor_util.make_ndarray(table.tensor_proto).tolist()
    assert text == [b"\n".join([*rows, b"| **1** | 1 | 1 |"])]


def decoded(encoded):
    """Decode a PNG."""
    return np.asarray(PIL.Image.open(io.BytesIO(encoded)))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_floats_are_pixels_from_0_to_1(board, channels):
    shades = np.array([-1.0, 0.0, 0.5, 1.0, 2.0, math.nan])
    board.write(1, {"digit": Image(np.repeat(shades[None, :, None], channels, axis=2))})
    board.flush()
    (image,) = read(board.directory).Images("digit")
    row = decoded(image.encoded_image_string).reshape(6, -1)[:, -1]
    assert row.tolist() == [0, 0, 128, 255, 255, 0]


def test_arrays_are_copied_when_written(board):
    weights, trace, pixels = np.ones(3), np.ones(2), np.ones((1, 1, 1), np.uint8)
    on_device = jnp.ones(4)
    board.write(2, {"a": Histogram(weights), "b": Trace(trace), "c": Image(pixels)})
    board.write(3, {"d": Histogram(on_device)})
    weights[:], trace[:], pixels[:] = 0, 0, 0
    on_device.delete()
    board.flush()
    found = read(board.directory)
    assert found.Histograms("a")[0].histogram_value.sum == 3
    assert [event.value for event in found.Scalars("b")] == [1, 1]
    assert decoded(found.Images("c")[0].encoded_image_string).max() == 1
    assert found.Histograms("d")[0].histogram_value.sum == 4


def test_after_flush_everything_is_in_the_file(board):
    for step in range(1, 200):
        board.write(step, {"loss": 1.0 / step})
    board.flush()
    assert len(points(board.directory, "loss")) == 199


def test_live_readers_need_not_wait_for_a_flush(board):
    for step in (1, 2):
        board.write(step, {"loss": 1.0})
        board._worker.flush()
        assert points(board.directory, "loss")[-1] == (step, 1.0)


def test_flush_and_close_before_any_write_do_nothing(board):
    board.flush()
    board.close()
    assert list(board.directory.iterdir()) == []


def test_a_resumed_run_drops_records_beyond_its_step(board):
    """A crash after step 4, and the newest checkpoint at 2: steps 3 and 4 are repeated."""
    board.resume(0, 0)
    for step in (2, 4):
        board.write(step, {"loss": 1.0, "steps/loss": Trace(np.ones(2))})
    board.close()
    again = TensorBoard(board.directory)
    again.resume(2, 1)
    for step in (4, 6):
        again.write(step, {"loss": 2.0, "steps/loss": Trace(np.full(2, 2.0))})
    again.close()
    assert len(list(board.directory.iterdir())) == 2
    assert points(board.directory, "loss") == [(2, 1.0), (4, 2.0), (6, 2.0)]
    steps = [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0), (6, 2.0)]
    assert points(board.directory, "steps/loss") == steps


def test_runs_within_one_second_are_read_in_their_order(board):
    for value in range(5):
        board.resume(0, 0)
        board.write(1, {"loss": float(value)})
        board.close()
    assert len(list(board.directory.iterdir())) == 5
    assert points(board.directory, "loss") == [(1, 4.0)]


def test_a_failure_on_the_thread_surfaces_and_later_values_are_written(board):
    board.write(1, {"loss": "low"})
    with pytest.raises(TypeError, match="real number") as raised:
        board.flush()
    assert "on the worker thread of 'TensorBoard'" in raised.value.__notes__
    board.write(2, {"loss": 1.0})
    board.flush()
    assert points(board.directory, "loss") == [(2, 1.0)]


def test_a_directory_that_cannot_be_created_is_an_error_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as raised:
        TensorBoard(tmp_path / "file" / "runs")
    assert "TensorBoard cannot write to the folder" in raised.value.__notes__[0]


def test_it_holds_the_laws(state, tmp_path):
    check_hook(log_metrics(TensorBoard(tmp_path)), state, {"loss": 1.0})


def test_a_resumed_fit_neither_duplicates_nor_loses_a_point(task, digits, tmp_path):
    program = trainer.training(task.step, digits[0])
    board = log_metrics(TensorBoard(tmp_path))
    start = task.init(jax.random.key(0), digits[0].example)
    second, _ = trainer.fit(start, program, epochs=2, hooks=board)
    trainer.fit(second, program, epochs=3, hooks=board)
    _, history = trainer.fit(second, program, epochs=4, hooks=log_metrics(TensorBoard(tmp_path)))
    per_epoch = int(second.step) // 2
    losses = points(tmp_path, "train/loss")
    assert [step for step, _ in losses] == [per_epoch * n for n in (1, 2, 3, 4)]
    assert losses[3][1] == pytest.approx(history[1]["train/loss"], rel=1e-6)
    traced = points(tmp_path, "steps/train/loss")
    assert [step for step, _ in traced] == list(range(1, 4 * per_epoch + 1))
    last = [value for _, value in traced[-per_epoch:]]
    assert np.mean(last) == pytest.approx(history[1]["train/loss"], rel=1e-5)
    assert points(tmp_path, "epoch") == [(per_epoch * n, n) for n in (1, 2, 3, 4)]


KILLED = """
import os, signal, sys
from hooks.writers.tensorboard import TensorBoard
board = TensorBoard(sys.argv[1])
board.resume(0, 0)
for step in range(1, 6):
    board.write(step, {"loss": 1.0})
    if step == 3:
        board.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_flushed_survives_kill_9(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert [step for step, _ in points(tmp_path, "loss")][:3] == [1, 2, 3]
    board = TensorBoard(tmp_path)
    board.resume(3, 1)
    board.write(4, {"loss": 2.0})
    board.close()
    assert points(tmp_path, "loss") == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


def test_a_dry_run_leaves_nothing_and_fails_like_a_real_write(board):
    board.dry_run(3, {"loss": 1.0, "said": Text("so"), "steps/loss": Trace(np.ones(3))})
    assert list(board.directory.iterdir()) == []
    with pytest.raises(TypeError, match="real number"):
        board.dry_run(3, {"loss": "low"})
    assert list(board.directory.iterdir()) == []


def test_a_fresh_run_hides_what_was_measured_before_an_earlier_ones_training(board):
    for value in (1.0, 2.0):
        board.resume(0, 0)
        board.write(0, {"val/loss": value})
        board.resume(0, 0)  # by another hook that shares it
        board.write(4, {"val/loss": value})
        board.close()
    assert points(board.directory, "val/loss") == [(0, 2.0), (4, 2.0)]


def test_a_video_is_an_animation_of_frames_copied_when_written(board):
    frames = np.zeros((3, 4, 5, 3), np.uint8)
    frames[:, 0, 0, 0] = (10, 20, 30)
    board.write(7, {"episode": Video(frames, fps=10)})
    frames[:] = 0
    board.flush()
    (video,) = read(board.directory).Images("episode")
    assert (video.step, video.height, video.width) == (7, 4, 5)
    moving = PIL.Image.open(io.BytesIO(video.encoded_image_string))
    shown = []
    for number in range(moving.n_frames):
        moving.seek(number)
        shown.append(moving.convert("RGB").getpixel((0, 0)))
    assert shown == [(10, 0, 0), (20, 0, 0), (30, 0, 0)]
