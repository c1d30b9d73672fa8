"""log_metrics: what is written, when, and that a resumed run repeats no record."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer
from hooks.metric_logging import log_metrics
from hooks.testing import check_hook
from hooks.writers.json_lines import JsonLines
from hooks.writers.values import Progress, Trace


class Recorder:
    """Records all calls, in order."""

    def __init__(self, calls=None, *, fail=()):
        self.calls = [] if calls is None else calls
        self.fail = fail

    def resume(self, step, epoch):
        self.calls.append(("resume", step, epoch))

    def write(self, step, values):
        self.calls.append(("write", step, values))

    def flush(self):
        self.calls.append(("flush",))

    def close(self):
        self.calls.append(("close",))
        if "close" in self.fail:
            raise OSError("cannot close")


class Bare:
    """A writer without `resume`."""

    def __init__(self):
        self.steps = []

    def write(self, step, values):
        self.steps.append(step)

    def flush(self):
        pass

    def close(self):
        pass


def test_without_writers_it_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"log_metrics\(hooks.Console\(\)\)"):
        log_metrics()


@pytest.mark.parametrize("wrong", [JsonLines, "metrics.jsonl", print])
def test_an_object_that_is_no_writer_is_refused(wrong):
    with pytest.raises(TypeError, match="write, flush and close"):
        log_metrics(wrong)


def test_it_lists_its_parts():
    assert str(log_metrics(Bare())).splitlines()[1:] == [
        "start  observe  log_metrics/start",
        "epoch  observe  log_metrics",
    ]


def test_resumable_writers_learn_where_the_run_resumes(state):
    recorder = Recorder()
    hook = log_metrics(Bare(), recorder)
    hook(state.replace(step=jnp.int32(84), epoch=jnp.int32(3)), {}, "start")
    assert recorder.calls == [("resume", 84, 3)]


def test_an_epoch_is_written_at_its_step_with_its_traces(state):
    recorder = Recorder()
    trace = np.array([1.0, 0.5], np.float32)
    metrics = trainer.Metrics({"train/loss": 0.75}, steps={"train/loss": trace}, epochs=9)
    now = state.replace(step=jnp.int32(6), epoch=jnp.int32(3))
    assert log_metrics(recorder)(now, metrics) is now
    ((_, step, values),) = recorder.calls
    assert type(step) is int
    assert step == 6
    assert list(values) == ["epoch", "train/loss", "steps/train/loss"]
    assert values["epoch"] == Progress(3, 9)
    assert values["train/loss"] == 0.75
    assert isinstance(values["steps/train/loss"], Trace)
    assert values["steps/train/loss"].values is trace


def test_a_plain_dict_is_enough(state):
    recorder = Recorder()
    log_metrics(recorder)(state, {"loss": 1.0})
    assert recorder.calls == [("write", 0, {"epoch": Progress(0, None), "loss": 1.0})]


def test_a_fit_starts_writes_and_closes_all_writers(state, phase):
    recorder = Recorder()
    trainer.fit(state, phase, epochs=2, hooks=log_metrics(recorder))
    calls = [call[0] for call in recorder.calls]
    assert calls == ["resume", "write", "write", "flush", "flush", "close"]
    values = recorder.calls[2][2]
    assert values["epoch"] == Progress(2, 2)
    assert {"train/loss", "time/epoch_seconds", "time/hook/log_metrics"} <= values.keys()


def test_writers_are_flushed_before_a_save(state, phase):
    recorder = Recorder()

    def save(state, metrics):
        recorder.calls.append(("save",))
        return state

    save = trainer.Hook(save, "save", stage="save")
    trainer.fit(state, phase, epochs=1, hooks=[save, log_metrics(recorder)])
    calls = [call[0] for call in recorder.calls]
    assert calls == ["resume", "write", "flush", "save", "flush", "flush", "close"]


def test_retrying_a_writer_skips_those_before_it(state, phase, tmp_path):
    class Flaky(Bare):
        tries = 0

        def write(self, step, values):
            self.tries += 1
            if self.tries == 2:
                raise OSError("no answer")
            super().write(step, values)

    lines, flaky = JsonLines(tmp_path / "metrics.jsonl"), Flaky()
    guarded = hooks.guard(log_metrics(lines, flaky), retries=1)
    trainer.fit(state, phase, epochs=3, hooks=guarded)
    written = [json.loads(line)["epoch"] for line in lines.path.read_text().splitlines()]
    assert (written, flaky.steps) == ([1, 2, 3], [1, 2, 3])


def test_writers_are_closed_when_a_run_fails(state, phase):
    recorder = Recorder()

    def fail(state, metrics):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        trainer.fit(state, phase, epochs=2, hooks=[fail, log_metrics(recorder)])
    assert recorder.calls[-1] == ("close",)


def test_all_writers_are_closed_even_if_some_fail():
    calls = []
    writers = [Recorder(calls, fail=["close"]), Recorder(calls, fail=["close"]), Recorder(calls)]
    closing = [part.close for part in log_metrics(*writers).parts if part.close]
    assert len(closing) == 1
    with pytest.raises(OSError, match="cannot close") as raised:
        closing[0](None)
    assert calls == [("close",)] * 3
    assert "and closing <" in raised.value.__notes__[0]
    assert "failed: OSError('cannot close')" in raised.value.__notes__[0]


def test_triggers_govern_the_writing_and_not_the_start(state, phase):
    recorder = Recorder()
    trainer.fit(state, phase, epochs=5, hooks=hooks.every(2, log_metrics(recorder)))
    assert [call[:2] for call in recorder.calls] == [
        ("resume", 0),
        ("write", 2),
        ("write", 4),
        ("flush",),
        ("flush",),
        ("close",),
    ]


def test_it_holds_the_laws(state, tmp_path):
    check_hook(log_metrics(Recorder(), JsonLines(tmp_path / "a.jsonl")), state, {"loss": 1.0})


def test_logging_changes_nothing(task, digits, tmp_path):
    program = trainer.training(task.step, digits[0])
    first = task.init(jax.random.key(0), digits[0].example)
    plain, _ = trainer.fit(first, program, epochs=2)
    logged, _ = trainer.fit(
        first, program, epochs=2, hooks=log_metrics(JsonLines(tmp_path / "a.jsonl"))
    )
    assert trainer.fingerprint(plain) == trainer.fingerprint(logged)


def test_a_resumed_run_neither_duplicates_nor_loses_a_line(state, phase, tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = log_metrics(JsonLines(path))
    second, _ = trainer.fit(state, phase, epochs=2, hooks=lines)
    trainer.fit(second, phase, epochs=3, hooks=lines)
    trainer.fit(second, phase, epochs=4, hooks=log_metrics(JsonLines(path)))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(record["step"], record["epoch"]) for record in records] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
    ]


def test_a_fresh_run_replaces_the_lines_of_an_earlier_one(state, phase, tmp_path):
    path = tmp_path / "metrics.jsonl"
    for epochs in (3, 2):
        trainer.fit(state, phase, epochs=epochs, hooks=log_metrics(JsonLines(path)))
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_crash_between_record_and_save_duplicates_nothing(state, phase, tmp_path):
    """Epoch 3 is recorded when the run fails, but not saved, so it runs again."""
    path = tmp_path / "metrics.jsonl"

    def fail(state, metrics):
        if int(state.epoch) == 3:
            raise RuntimeError("power cut")
        return state

    def run(*more):
        lines = log_metrics(JsonLines(path))
        saving = hooks.save_checkpoints(tmp_path, max_cost=None)
        return trainer.fit(state, phase, epochs=4, hooks=[saving, lines, *more])

    with pytest.raises(RuntimeError, match="power cut"):
        run(hooks.observe(fail))
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2, 3]
    _, history = run()
    assert len(history) == 2
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_writer_that_failed_in_an_earlier_run_loses_no_record(state, phase, tmp_path):
    class Flaky:
        failing = True

        def write(self, step, values):
            if step == 2 and self.failing:
                self.failing = False
                raise OSError("gone")

        def flush(self): ...

        def close(self): ...

    path = tmp_path / "lines.jsonl"
    chain = hooks.chain(
        hooks.log_metrics(hooks.JsonLines(path), Flaky()),
        hooks.save_checkpoints(tmp_path / "run", max_cost=None),
    )
    with pytest.raises(OSError, match="gone"):
        trainer.fit(state, phase, epochs=4, hooks=chain)
    trainer.fit(state, phase, epochs=4, hooks=chain)
    epochs = [json.loads(line)["epoch"] for line in path.read_text().splitlines()]
    assert epochs == [1, 2, 3, 4]


def test_scores_at_the_start_are_recorded_once(state, phase, tmp_path):
    @hooks.writes("size")
    def look(state, metrics):
        return state.replace(scores={**state.scores, "size": 1.0})

    path = tmp_path / "lines.jsonl"
    for epochs in (1, 2, 3):
        chain = hooks.chain(
            hooks.on("start", look),
            hooks.log_metrics(hooks.JsonLines(path)),
            hooks.save_checkpoints(tmp_path / "run", max_cost=None),
        )
        trainer.fit(state, phase, epochs=epochs, hooks=chain)
    epochs = [json.loads(line)["epoch"] for line in path.read_text().splitlines()]
    assert epochs == [0, 1, 2, 3]
