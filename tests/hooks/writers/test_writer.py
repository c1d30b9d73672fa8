"""Values for writers, and JsonLines."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks.writers.appending import AppendFile
from hooks.writers.json_lines import JsonLines
from hooks.writers.values import Histogram, Image, Progress, Text, Trace, Video
from hooks.writers.writer import ResumableWriter, Writer


class Printer:
    """A custom writer in ten lines."""

    def write(self, step, values):
        print(step, {name: value for name, value in values.items() if isinstance(value, float)})

    def flush(self):
        pass

    def close(self):
        pass


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "metrics.jsonl"


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def fill(path, steps):
    lines = JsonLines(path)
    for step in steps:
        lines.write(step, {"loss": step / 2})
    lines.close()
    return lines


def test_a_custom_writer_needs_three_methods():
    assert isinstance(Printer(), Writer)
    assert not isinstance(Printer(), ResumableWriter)


def test_json_lines_is_a_writer_that_resumes(path):
    assert isinstance(JsonLines(path), Writer)
    assert isinstance(JsonLines(path), ResumableWriter)


def test_a_line_has_step_epoch_numbers_and_texts_and_skips_the_rest(path):
    lines = JsonLines(path)
    lines.write(
        28,
        {
            "epoch": Progress(1, 20),
            "train/loss": 0.5,
            "count": np.int32(3),
            "share": np.float32(0.25),
            "sample": Text("Once"),
            "steps/train/loss": Trace(np.ones(28)),
            "weights": Histogram(np.ones(3)),
            "film": Video(np.zeros((1, 8, 8, 1)), fps=1),
        },
    )
    lines.close()
    assert list(read(path)[0].items()) == [
        ("step", 28),
        ("epoch", 1),
        ("train/loss", 0.5),
        ("count", 3.0),
        ("share", 0.25),
        ("sample", "Once"),
    ]


def test_pictures_are_kept_as_they_are_when_written_and_small(path):
    lines, pixels = JsonLines(path), np.zeros((300, 200, 1), np.uint8)
    pixels[3, 3] = 255
    lines.write(1, {"epoch": Progress(1, 2), "loss": 1.0, "photo": Image(pixels)})
    pixels[:] = 7  # while the line may wait
    assert lines.history() == [{"epoch": 1, "loss": 1.0}]
    lines.close()
    png = base64.b64decode(read(path)[0]["photo"]["png"])
    shown = np.asarray(PIL.Image.open(io.BytesIO(png)))
    np.testing.assert_array_equal(shown, np.eye(1, 6700, 68, dtype=np.uint8).reshape(100, 67) * 255)


def test_non_finite_numbers_become_null(path):
    lines = JsonLines(path)
    lines.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})
    lines.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    record = json.loads(path.read_text(), parse_constant=refuse)
    assert record == {"step": 1, "a": None, "b": None, "c": None, "d": 1.0}


@pytest.mark.parametrize("wait", [JsonLines.wait, JsonLines.flush, JsonLines.history])
def test_lines_are_in_the_file_once_somebody_waits_for_them(path, wait):
    lines = JsonLines(path)
    for step in range(20):
        lines.write(step, {"loss": 1.0})
    wait(lines)
    assert [record["step"] for record in read(path)] == list(range(20))
    lines.close()


def test_a_line_is_written_though_nobody_waits_for_it(path):
    lines = JsonLines(path)
    lines.write(1, {"loss": 1.0})
    deadline = time.monotonic() + 60
    while not read(path) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert read(path) == [{"step": 1, "loss": 1.0}]
    lines.close()


def test_what_is_written_does_not_follow_later_changes(path):
    lines, values = JsonLines(path), {"loss": 1.0}
    lines.write(1, values)
    values["loss"] = 2.0
    lines.close()
    assert read(path) == [{"step": 1, "loss": 1.0}]


def test_a_line_that_the_disk_refused_is_raised_and_tried_again_in_its_place(path, monkeypatch):
    lines, append = JsonLines(path), AppendFile.append
    lines.write(1, {"loss": 1.0})
    lines.wait()
    monkeypatch.setattr(AppendFile, "append", lambda *_: (_ for _ in ()).throw(OSError("full")))
    lines.write(2, {"loss": 1.0})
    with pytest.raises(OSError, match="full"):
        lines.flush()
    monkeypatch.setattr(AppendFile, "append", append)
    lines.write(3, {"loss": 1.0})
    lines.close()
    assert [record["step"] for record in read(path)] == [1, 2, 3]


def test_a_value_that_is_no_json_is_raised_and_not_tried_again(path):
    lines = JsonLines(path)
    lines.write(1, {"said": Text(object())})
    with pytest.raises(TypeError):
        lines.flush()
    lines.write(2, {"loss": 1.0})
    lines.close()
    assert [record["step"] for record in read(path)] == [2]


def test_flush_and_close_before_any_write_do_nothing(path):
    lines = JsonLines(path)
    lines.flush()
    lines.close()
    assert path.read_text() == ""


def test_it_can_write_after_close(path):
    lines = fill(path, [1])
    lines.write(2, {"loss": 1.0})
    lines.close()
    assert [record["step"] for record in read(path)] == [1, 2]


@given(steps=st.lists(st.integers(0, 50), max_size=20), at=st.integers(0, 50))
def test_resuming_drops_exactly_the_records_beyond_the_step(steps, at):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metrics.jsonl")
        lines = fill(path, steps)
        lines.resume(at, 99)
        lines.write(at + 1, {"loss": 0.0})
        lines.close()
        expected = [step for step in steps if step <= at] + [at + 1]
        assert [record["step"] for record in read(path)] == expected


def test_epochs_without_steps_are_distinguished(path):
    """Such as a program that only evaluates, or only plays."""
    lines = JsonLines(path)
    for epoch in (1, 2, 3):
        lines.write(0, {"epoch": Progress(epoch), "loss": 1.0})
    lines.resume(0, 2)
    lines.write(0, {"epoch": Progress(3), "loss": 2.0})
    lines.close()
    assert [(record["epoch"], record["loss"]) for record in read(path)] == [(1, 1), (2, 1), (3, 2)]


@pytest.mark.parametrize("kept", [1, 8, 17])
def test_resuming_drops_a_line_that_a_crash_tore(path, kept):
    fill(path, [1, 2])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept])
    JsonLines(path).resume(9, 99)
    assert path.read_bytes() == whole


def test_resuming_logs_how_much_it_drops(path, caplog):
    fill(path, [1, 2, 3])
    with caplog.at_level(logging.WARNING, "entracte"):
        JsonLines(path).resume(1, 99)
    assert f"{path}: dropping 2 lines beyond step 1" in caplog.text


def test_a_file_with_nothing_to_drop_is_unchanged(path, caplog):
    fill(path, [1, 2])
    before = path.stat().st_ino, path.stat().st_mtime_ns
    with caplog.at_level(logging.WARNING, "entracte"):
        JsonLines(path).resume(2, 99)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    assert not caplog.records


def test_resuming_replaces_the_file_and_never_shortens_it_in_place(path):
    """A reader that has it open still sees the complete file."""
    fill(path, [1, 2, 3])
    with path.open() as reader:
        JsonLines(path).resume(1, 99)
        assert len(reader.readlines()) == 3
    assert len(read(path)) == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"loss": 1.0}', '{"step": null}'])
def test_a_file_of_another_format_is_refused_and_unchanged(path, line):
    lines = fill(path, [1])
    path.write_text(path.read_text() + line + "\n")
    before = path.read_text()
    with pytest.raises((ValueError, TypeError, KeyError)) as raised:
        lines.resume(0, 99)
    assert "line 2 of" in raised.value.__notes__[0]
    assert "give it another path" in raised.value.__notes__[0]
    assert path.read_text() == before


def test_a_folder_that_cannot_be_created_is_an_error_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as raised:
        JsonLines(tmp_path / "file" / "metrics.jsonl")
    assert "JsonLines cannot write to the folder" in raised.value.__notes__[0]


def test_a_path_that_is_a_folder_is_an_error_at_once(tmp_path):
    with pytest.raises(IsADirectoryError) as raised:
        JsonLines(tmp_path)
    assert "give it another path" in raised.value.__notes__[0]


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 2), (2, 8, 8, 3)])
def test_pixels_need_height_width_and_channels(shape):
    with pytest.raises(ValueError, match="pixels must be"):
        Image(np.zeros(shape))


@pytest.mark.parametrize("shape", [(8, 8, 3), (0, 8, 8, 3), (2, 8, 8, 2)])
def test_frames_need_pictures_of_height_width_and_channels(shape):
    with pytest.raises(ValueError, match="frames must be"):
        Video(np.zeros(shape), fps=10)


@pytest.mark.parametrize("fps", [0, -1, 51, math.nan])
def test_frame_rates_above_50_are_refused(fps):
    with pytest.raises(ValueError, match="fps must be above 0 and at most 50"):
        Video(np.zeros((1, 2, 2, 3)), fps)


def test_a_dry_run_leaves_the_file_unchanged(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.write(1, {"loss": 0.5})
    lines.wait()
    before = lines.path.read_bytes()
    lines.dry_run(9, {"loss": 0.25})
    assert lines.path.read_bytes() == before
    with pytest.raises(TypeError):
        lines.dry_run(9, {"said": Text(object())})
    lines.write(2, {"loss": 0.5})
    lines.close()
    assert [json.loads(line)["step"] for line in lines.path.read_text().splitlines()] == [1, 2]


def test_a_fresh_run_keeps_no_line_and_a_second_resume_drops_nothing(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for _ in range(2):
        for _ in range(2):  # by two hooks that share it
            lines.resume(0, 0)
            lines.write(0, {"epoch": Progress(0), "val/loss": 0.5})
        lines.write(3, {"epoch": Progress(1)})
        lines.close()
    steps = [json.loads(line)["step"] for line in lines.path.read_text().splitlines()]
    assert steps == [0, 0, 3]
