"""The curves of a run, read from its records, and the hook that uses them when it is over."""

from __future__ import annotations

import math

import numpy as np
import pytest

import trainer
from hooks.reports.histories import call_on_finish, read_curves, read_pictures, read_texts
from hooks.writers.json_lines import JsonLines
from hooks.writers.values import Image, Progress, Text


@pytest.fixture
def records(tmp_path):
    """Three epochs, as `log_metrics` and `record` write them."""
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for epoch, loss in ((1, 2.0), (2, math.nan), (3, 1.0)):
        if epoch == 2:
            sample = {"epoch": Progress(2, 3), "sample": Text("Once"), "length": 4.0}
            lines.write(20, sample)
        lines.write(10 * epoch, {"epoch": Progress(epoch, 3), "train/loss": loss})
    lines.close()
    return lines.path


def test_numbers_become_curves_and_null_is_nan(records):
    curves = read_curves(records)
    assert list(curves) == ["train/loss", "length"]
    assert curves["train/loss"].epochs == [1, 2, 3]
    assert curves["train/loss"].values == pytest.approx([2.0, math.nan, 1.0], nan_ok=True)
    assert (curves["length"].epochs, curves["length"].values) == ([2], [4.0])
    course = curves["train/loss"].summary
    assert (course.last, course.lowest, course.highest) == (1.0, (1.0, 3), (2.0, 1))


def test_the_last_pictures_of_each_kind_come_with_their_texts(tmp_path):
    lines, picture = JsonLines(tmp_path / "lines.jsonl"), Image(np.zeros((2, 2, 1)))
    worst = {f"mistakes/val/{n}": Text(f"number {n}") for n in range(2)}
    pictures = {f"mistakes/val/{n}/image": picture for n in range(2)}
    lines.write(1, {"epoch": Progress(1), "sample/digit": picture} | worst | pictures)
    lines.write(2, {"epoch": Progress(2)} | {name: worst[name] for name in ("mistakes/val/0",)})
    lines.write(3, {"epoch": Progress(3), "mistakes/val/0/image": picture} | worst)
    lines.close()
    found = read_pictures(lines.path)
    assert [one[:3] for one in found] == [
        ("sample/digit", 1, ""),
        ("mistakes/val/0/image", 3, "number 0"),
    ]
    assert read_curves(lines.path) == {}
    assert list(read_texts(lines.path)) == ["mistakes/val/0", "mistakes/val/1"]


def test_a_torn_last_line_is_left_out_and_a_later_record_counts(records):
    with records.open("a") as file:
        file.write('{"step": 30, "epoch": 3, "train/loss": 0.5}\n{"step": 40, "epoch": 4, "tra')
    assert read_curves(records)["train/loss"].values[1:] == pytest.approx([math.nan, 0.5], nan_ok=1)
    assert len(read_curves(records)["train/loss"].values) == 3


def test_steps_replace_missing_epochs(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"step": 7, "loss": 1}\n')
    assert read_curves(tmp_path / "own.jsonl")["loss"].epochs == [7]


@pytest.mark.parametrize("line", ["nothing", "[1]", '{"loss": 1.0}'])
def test_a_malformed_line_is_an_error_that_names_it(records, line):
    with records.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=r"line 5 of .*metrics.jsonl' is no record of JsonLines"):
        read_curves(records)


def _over(records, **more):
    calls = []

    def tell(curves):
        assert isinstance(curves, dict)
        calls.append("over")

    return calls, call_on_finish("tell", tell, records=records, **more)


def test_it_is_called_once_at_the_end(state, phase, records):
    calls, hook = _over(records)
    for epochs in (2, 2, 3):  # the second has nothing left to train, but its records exist
        trainer.fit(state, phase, epochs=epochs, hooks=hook)
    assert calls == ["over"] * 3


def test_it_is_called_after_an_interrupt_and_after_a_failure(state, phase, records):
    def end_with(error):
        def end(state, metrics):
            raise error

        return end

    calls, hook = _over(records)
    trainer.fit(state, phase, epochs=2, hooks=[hook, end_with(trainer.Interrupt("enough"))])
    assert calls == ["over"]
    with pytest.raises(OSError, match="full"):
        trainer.fit(state, phase, epochs=2, hooks=[hook, end_with(OSError("full"))])
    assert calls == ["over"] * 2


def test_without_records_it_fails_before_training_with_a_remedy(state, phase, tmp_path):
    calls, hook = _over(tmp_path / "metrics.jsonl")
    with pytest.raises(FileNotFoundError, match=r"tell reads .* give\s+log_metrics a hooks.JsonLi"):
        trainer.fit(state, phase, epochs=1, hooks=hook)
    assert calls == []


def test_it_follows_how_far_a_run_comes(state, phase, records):
    seen = []
    _, hook = _over(records, follow=lambda event, state, metrics: seen.append(event))
    trainer.fit(state, phase, epochs=2, hooks=hook)
    assert seen == ["start", "epoch", "epoch", "end"]
