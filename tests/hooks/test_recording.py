"""record: values computed from a state are written, with and without log_metrics."""

from __future__ import annotations

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console as RichConsole
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hooks
import trainer
from hooks.testing import check_hook
from hooks.writers.json_lines import JsonLines
from hooks.writers.values import Histogram, Image, Progress, Text


class Recorder:
    """Records all calls, in order."""

    def __init__(self):
        self.calls = []

    def resume(self, step, epoch):
        self.calls.append(("resume", step, epoch))

    def write(self, step, values):
        self.calls.append(("write", step, values))

    def flush(self):
        self.calls.append(("flush",))

    def close(self):
        self.calls.append(("close",))


def sample(state, metrics):
    """Return a text of the epoch, and a picture of the parameters."""
    return {
        "said": Text(f"of epoch {int(state.epoch)}"),
        "drawn": Image(jnp.abs(state.params["w"]).reshape(1, 2, 1)),
        "weights": Histogram(state.params["w"]),
        "size": jnp.abs(state.params["w"]).sum(),
    }


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_writes_a_value_under_its_name_and_several_below_it(state):
    recorder = Recorder()
    hooks.record("one", lambda state, metrics: Text("Once"), recorder)(state, {})
    hooks.record("some", sample, recorder)(state, trainer.Metrics(epochs=9))
    (_, step, one), (_, _, some) = recorder.calls
    assert (step, one) == (0, {"epoch": Progress(0), "one": Text("Once")})
    assert list(some) == ["epoch", "some/said", "some/drawn", "some/weights", "some/size"]
    assert some["epoch"] == Progress(0, 9)
    assert (type(some["some/size"]), some["some/size"]) == (float, 3.0)


@pytest.mark.parametrize("value", ["Once", None, np.ones(3), object(), {"said": b"Once"}])
def test_a_value_unknown_to_writers_is_refused(state, value):
    hook = hooks.record("sample", lambda state, metrics: value, Recorder())
    with pytest.raises(TypeError, match=r"record\('sample'\).* writes a Text, an Image"):
        hook(state, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", sample, Recorder()), "needs a name"),
        (("sample", sample), r"needs a writer: record\('sample', make"),
        (("sample", Text("Once"), Recorder()), "needs a function"),
        (("sample", sample, print), "takes writers"),
    ],
)
def test_invalid_arguments_are_refused_at_once(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        hooks.record(*arguments)


def test_alone_it_starts_flushes_and_closes_its_writers(state, phase):
    recorder = Recorder()
    hook = hooks.every(2, hooks.record("sample", sample, recorder))
    trainer.fit(state, phase, epochs=4, hooks=hook)
    assert [call[:2] for call in recorder.calls] == [
        ("resume", 0),
        ("write", 2),
        ("write", 4),
        ("flush",),
        ("flush",),
        ("close",),
    ]


def _chain(folder, console):
    lines, board = JsonLines(folder / "metrics.jsonl"), hooks.TensorBoard(folder)
    return hooks.chain(
        hooks.every(2, hooks.record("sample", sample, lines, board, console)),
        hooks.log_metrics(console, board, lines),
        hooks.save_checkpoints(folder / "run", max_cost=None),
    )


def test_with_log_metrics_a_resumed_run_records_each_value_once(state, phase, tmp_path):
    console = hooks.Console(console=RichConsole(file=io.StringIO()))
    for epochs in (3, 5):
        trainer.fit(state, phase, epochs=epochs, hooks=_chain(tmp_path, console))
    records = read(tmp_path / "metrics.jsonl")
    said = [
        (record["step"], record["sample/said"]) for record in records if "sample/said" in record
    ]
    assert said == [(2, "of epoch 2"), (4, "of epoch 4")]
    assert [r["step"] for r in records if "train/loss" in r] == [1, 2, 3, 4, 5]

    kinds = ("images", "tensors", "histograms", "scalars")
    board = EventAccumulator(str(tmp_path), size_guidance=dict.fromkeys(kinds, 0)).Reload()
    assert [event.step for event in board.Tensors("sample/said/text_summary")] == [2, 4]
    assert [event.step for event in board.Images("sample/drawn")] == [2, 4]
    assert [event.step for event in board.Histograms("sample/weights")] == [2, 4]
    assert [event.step for event in board.Scalars("epoch")] == [1, 2, 3, 4, 5]
    assert len(list(tmp_path.glob("events.*"))) == 2

    text = console._console.file.getvalue()
    assert text.count("    of epoch ") == 2
    tables = [line.split()[:4] for line in text.splitlines() if " epochs, " in line]
    assert tables == [["3/3", "epochs,", "3", "steps,"], ["5/5", "epochs,", "5", "steps,"]]


def test_alone_a_resumed_run_replaces_records_beyond_the_checkpoint(state, phase, tmp_path):
    """Also if no phase counts steps, so that only epochs distinguish records."""
    evaluated = trainer.Phase(
        "play", lambda state, data: (state, None, {"size": state.params["b"]})
    )
    lines = JsonLines(tmp_path / "samples.jsonl")
    hook = hooks.record("sample", sample, lines)
    second, _ = trainer.fit(state, evaluated, epochs=2, hooks=hook)
    trainer.fit(second, evaluated, epochs=3, hooks=hook)
    trainer.fit(second, evaluated, epochs=4, hooks=hook)
    assert [record["epoch"] for record in read(lines.path)] == [1, 2, 3, 4]


def test_retrying_a_writer_skips_those_before_it(state, phase):
    class Flaky(Recorder):
        tries = 0

        def write(self, step, values):
            self.tries += 1
            if self.tries == 2:
                raise OSError("no answer")
            super().write(step, values)

    first, flaky = Recorder(), Flaky()
    hook = hooks.guard(hooks.record("sample", sample, first, flaky), retries=1)
    trainer.fit(state, phase, epochs=3, hooks=hook)
    for recorder in (first, flaky):
        assert [call[1] for call in recorder.calls if call[0] == "write"] == [1, 2, 3]


def test_no_writer_fails_on_any_text_of_a_model(state, tmp_path):
    said = Text("half a character \udc80, \x1b[2J and \0")
    writers = [JsonLines(tmp_path / "a.jsonl"), hooks.TensorBoard(tmp_path)]
    writers.append(hooks.Console(console=RichConsole(file=io.StringIO())))
    hooks.record("sample", lambda state, metrics: said, *writers)(state, {})
    for writer in writers:
        writer.flush()
        writer.close()
    (event,) = EventAccumulator(str(tmp_path)).Reload().Tensors("sample/text_summary")
    assert event.tensor_proto.string_val[0].startswith(b"half a character \\udc80")


def test_a_grid_has_rows_of_pictures_separated_by_lines():
    pictures = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 1, 2, 3), np.uint8
    )
    grid = hooks.image_grid(pictures, columns=3).pixels
    assert (grid.shape, grid.dtype) == ((3, 8, 3), np.uint8)
    assert grid[..., 0].tolist() == [
        [1, 1, 0, 2, 2, 0, 3, 3],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [4, 4, 0, 5, 5, 0, 0, 0],
    ]
    assert hooks.image_grid(pictures[:1]).pixels.tolist() == pictures[0].tolist()


@pytest.mark.parametrize(
    ("shape", "columns"), [((8, 8, 1), None), ((0, 8, 8, 1), None), ((2, 8, 8, 1), 0)]
)
def test_arrays_that_make_no_grid_are_refused(shape, columns):
    with pytest.raises(ValueError, match="image_grid needs pixels"):
        hooks.image_grid(np.ones(shape), columns=columns)


def test_it_holds_the_laws(state, tmp_path):
    check_hook(hooks.record("sample", sample, JsonLines(tmp_path / "a.jsonl")), state, {})


def test_recording_changes_nothing(start, train, tmp_path):
    make = lambda state, metrics: Histogram(state.params["w"])  # noqa: E731
    plain, _ = trainer.fit(start, train, epochs=2)
    hook = hooks.record("weights", make, hooks.TensorBoard(tmp_path))
    recorded, _ = trainer.fit(start, train, epochs=2, hooks=hook)
    assert trainer.fingerprint(plain) == trainer.fingerprint(recorded)
