"""The dry run before a run: it finds what would fail late, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hooks
import trainer
from trainer import Checkpoints, Hook, Phase, data, fingerprint
from trainer.checkpoints.arrays import array_storage


def nothing(state, metrics):
    return state


def halve(state, metrics):
    return state.replace(params=jax.tree.map(lambda w: w / 2, state.params))


def timeless(record):
    return {name: value for name, value in record.items() if "time/" not in name}


def points(directory):
    """What a reader of the event files finds, by tag."""
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
        if "time/" not in tag
    }


@pytest.fixture
def everything(val):
    """All kinds of hooks, in a run directory."""

    def make(run):
        return hooks.chain(
            hooks.average_params(0.5),
            hooks.every(2, hooks.evaluate(val, sanity=True)),
            hooks.stop_early("val/loss", patience=5),
            hooks.once(hooks.every(3, halve)),
            hooks.background(hooks.log_metrics(hooks.JsonLines(run / "background.jsonl"))),
            hooks.log_metrics(hooks.JsonLines(run / "metrics.jsonl"), hooks.TensorBoard(run)),
            hooks.save_checkpoints(run, max_cost=None, best="train/loss"),
        )

    return make


def trained(run, start, train, make, *, dry_run, epochs=4):
    """Everything that a run leaves, to compare: state, history, records, checkpoints, files."""
    state, history = trainer.fit(start, train, epochs=epochs, hooks=make(run), dry_run=dry_run)
    lines = {
        name: [timeless(json.loads(line)) for line in (run / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "background.jsonl")
    }
    with Checkpoints(run, read_only=True) as checkpoints:
        commits = {
            number: (fingerprint(checkpoint.state), timeless(checkpoint.scores))
            for number in checkpoints.epochs()
            if (checkpoint := checkpoints.restore(state, epoch=number))
        }
    files = [p.name for p in run.rglob("*") if "tfevents" not in p.name]
    kept = fingerprint(state), [timeless(epoch) for epoch in history], lines, commits
    return *kept, points(run), sorted(files), len(list(run.glob("*tfevents*")))


def test_a_dry_run_changes_nothing_in_the_run(start, train, everything, tmp_path):
    plain = trained(tmp_path / "plain", start, train, everything, dry_run=False)
    checked = trained(tmp_path / "checked", start, train, everything, dry_run=True)
    assert plain == checked
    assert [line["epoch"] for line in plain[2]["metrics.jsonl"]] == [0, 1, 2, 3, 4]


def test_a_dry_run_changes_nothing_in_a_resumed_run(start, train, everything, tmp_path):
    trained(tmp_path / "a", start, train, everything, dry_run=False, epochs=2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    plain = trained(tmp_path / "a", start, train, everything, dry_run=False)
    assert plain == trained(tmp_path / "b", start, train, everything, dry_run=True)
    assert len(plain[1]) == 2


def test_what_would_fail_late_fails_before_anything_is_trained(state, phase, tmp_path):
    seen = []

    def misspelt(state, metrics):
        return state.replace(stop=metrics["train/los"] > 1)

    lines = hooks.log_metrics(hooks.JsonLines(tmp_path / "metrics.jsonl"))
    watch = hooks.on("error", lambda s, m: seen.append(s) or s)
    with pytest.raises(
        KeyError, match="no metric 'train/los'. Did you mean 'train/loss'"
    ) as raised:
        trainer.fit(
            state, phase, epochs=90, hooks=[lines, hooks.every(50, misspelt), watch], dry_run=True
        )
    assert raised.value.__notes__ == [
        "in hook 'misspelt' at 'epoch' of epoch 1",
        "in the dry run (hooks at the end of the epoch); nothing was trained or recorded",
    ]
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert seen == []


@pytest.mark.parametrize("event", ["start", "train", "epoch", "end"])
def test_hooks_of_every_event_are_called_once_with_the_metrics_so_far(state, phase, event):
    seen = []

    def look(state, metrics):
        seen.append((int(state.epoch), int(state.step), dict(metrics), metrics.epochs))
        raise LookupError("seen")

    with pytest.raises(LookupError) as raised:
        trainer.fit(state, phase, epochs=7, hooks=hooks.on(event, look), dry_run=True)
    ((epoch, step, metrics, epochs),) = seen
    assert epochs == 7
    assert (epoch, step) == {"start": (0, 0), "train": (0, 1)}.get(event, (1, 1))
    assert ("train/loss" in metrics) == (event != "start")
    assert ("time/hook/look" in metrics) == (event in ("epoch", "end"))
    assert f"at {event!r}" in raised.value.__notes__[0]


def test_a_gate_is_called_and_its_hook_runs_whatever_it_answers(state, phase):
    calls = []

    def count(state, metrics):
        calls.append(int(state.epoch))
        return state

    never = hooks.when(lambda state, metrics: False, count)
    trainer.fit(state, phase, epochs=2, hooks=never, dry_run=True)
    assert calls == [1]
    wrong = hooks.when(lambda state, metrics: metrics["train/los"] < 1, nothing)
    with pytest.raises(KeyError):
        trainer.fit(state, phase, epochs=2, hooks=hooks.every(2, wrong), dry_run=True)


def test_what_a_hook_returns_is_checked_by_its_stage(state, phase):
    meddler = hooks.every(30, hooks.observe(lambda s, m: s.replace(step=s.step + 1)))
    with pytest.raises(ValueError, match="'<lambda>' is of stage 'observe'.*it changed step"):
        trainer.fit(state, phase, epochs=40, hooks=meddler, dry_run=True)


def test_neither_stop_nor_interrupt_ends_the_run(state, phase):
    calls = []

    def end_the_first_time(state, metrics):
        calls.append(int(state.epoch))
        if len(calls) == 1:
            raise trainer.Interrupt("time is up")
        return state.replace(stop=len(calls) == 2)

    final, history = trainer.fit(state, phase, epochs=3, hooks=end_the_first_time, dry_run=True)
    assert calls == [1, 1]  # the second is the run's own
    assert (len(history), final.stop) == (1, True)
    stopping = hooks.every(9, lambda s, m: s.replace(stop=True))
    final, history = trainer.fit(state, phase, epochs=3, hooks=stopping, dry_run=True)
    assert (len(history), final.stop) == (3, False)


@pytest.mark.parametrize("donate", [True, False])
def test_phases_written_by_hand_run_whole_on_a_copy_and_compile_once(state, donate):
    def rollout(state, _):
        return state, state.params["w"] * jnp.arange(2.0), {"return": jnp.float32(5)}

    def update(state, experience):
        params = {**state.params, "w": state.params["w"] + experience}
        return state.replace(step=state.step + 2, params=params), None, {"loss": experience}

    def program():
        return [Phase("rollout", rollout), Phase("update", update)]

    outputs = []

    def look(state, metrics):
        outputs.append(np.asarray(metrics.output))
        return state

    checked = program()
    final, history = trainer.fit(
        state, checked, epochs=2, hooks=hooks.on("rollout", look), donate=donate, dry_run=True
    )
    plain, expected = trainer.fit(state, program(), epochs=2, donate=donate)
    assert fingerprint(final) == fingerprint(plain)
    assert [timeless(epoch) for epoch in history] == [timeless(epoch) for epoch in expected]
    assert [len(phase._shared.compiled) for phase in checked] == [1, 1]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert len(outputs) == 3


def test_a_phase_that_fails_is_named(state):
    def fail(state, _):
        jax.debug.callback(lambda w: 1 / 0, state.params["w"])
        return state, None, {}

    with pytest.raises(Exception, match="division by zero") as raised:
        trainer.fit(state, Phase("train", fail), epochs=1, dry_run=True)
    assert "in the dry run (phase 'train')" in raised.value.__notes__[-1]


def test_a_stream_is_read_from_the_same_place(task, start, digits):
    arrays = {name: np.asarray(array) for name, array in digits[0].arrays.items()}
    batches = [{n: a[i : i + 20] for n, a in arrays.items()} for i in range(0, 200, 20)]

    def run(dry_run, **settings):
        stream = data.Stream(batches, superbatch=2, **settings)
        return trainer.fit(start, trainer.training(task.step, stream), epochs=3, dry_run=dry_run)[0]

    for settings in ({"steps_per_epoch": 4}, {}):
        assert fingerprint(run(True, **settings)) == fingerprint(run(False, **settings))


def test_the_first_step_of_an_evaluation_is_its_first_batch(start, task, digits):
    from trainer.loop.dry_run import run_first_step

    val = trainer.evaluation(lambda *both: task.measure(*both), digits[1])
    batch = {name: array[:32] for name, array in digits[1].arrays.items()}
    _, _, measured = run_first_step(val, start)
    wanted = float(task.measure(start, batch)["loss"].mean())
    assert measured.read()[0]["val/loss"] == pytest.approx(wanted, rel=1e-6)
    assert val._shared.compiled == {}


def test_a_hook_state_that_cannot_be_saved_is_found(state, phase, tmp_path):
    odd = hooks.stateful("odd", lambda state: {"path": tmp_path}, lambda m, s, _: (m, s))
    saving = hooks.every(100, hooks.save_checkpoints(tmp_path / "run"))
    with pytest.raises(TypeError, match="all else cannot be saved; hook_state/odd/path") as raised:
        trainer.fit(state, phase, epochs=100, hooks=[odd, saving], dry_run=True)
    assert "in hook 'save_checkpoints' at 'epoch'" in raised.value.__notes__[0]


def test_a_disk_that_cannot_take_a_checkpoint_is_found(state, phase, tmp_path, monkeypatch):
    def full(path, data, ranges):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(array_storage, "save_arrays", full)
    saving = hooks.save_checkpoints(tmp_path)
    with pytest.raises(OSError, match="No space left") as raised:
        trainer.fit(state, phase, epochs=1, hooks=saving, dry_run=True)
    assert any("while saving epoch 1 to" in note for note in raised.value.__notes__)
    assert {path.name for path in tmp_path.rglob("*")} == {"checkpoints", "lock"}


def test_background_work_ends_within_the_dry_run(state, phase):
    def fail(state, metrics):
        raise LookupError("no answer")

    failing = hooks.every(70, hooks.background(hooks.observe(fail)))
    with pytest.raises(LookupError, match="no answer") as raised:
        trainer.fit(state, phase, epochs=99, hooks=failing, dry_run=True)
    assert "the dry run (hooks at the end of the epoch)" in raised.value.__notes__[-1]


def test_a_guarded_failure_is_logged_as_in_the_run(state, phase, caplog):
    def fail(state, metrics):
        raise LookupError("no answer")

    other = Hook(nothing, "other", stage="observe", dry_run=fail)
    _, history = trainer.fit(
        state, phase, epochs=1, hooks=hooks.guard([fail, other], retries=1), dry_run=True
    )
    assert len(history) == 1
    failures = [line for line in caplog.messages if "failed, try" in line]
    assert [line.split("'")[1] for line in failures] == [
        *["fail"] * 2,
        *["other"] * 2,
        *["fail"] * 2,
    ]


class Writer:
    """Keeps its calls."""

    def __init__(self):
        self.calls = []

    def write(self, step, values):
        self.calls.append(("write", step))

    def flush(self): ...

    def close(self): ...


class Resuming(Writer):
    def resume(self, step, epoch):
        self.calls.append(("resume", step))


class TryingOut(Resuming):
    def dry_run(self, step, values):
        self.calls.append(("dry_run", step, sorted(values)[:2]))


def test_writers_are_called_if_they_can_remove_the_record(state, phase):
    shown, kept, tried = Writer(), Resuming(), TryingOut()
    log = hooks.every(2, hooks.log_metrics(shown, kept, tried))
    trainer.fit(state, phase, epochs=2, hooks=log, dry_run=True)
    assert shown.calls == [("write", 2)]
    assert kept.calls == [("resume", 0), ("write", 1), ("resume", 0), ("write", 2)]
    assert tried.calls == [("dry_run", 1, ["epoch", "time/epoch_seconds"]), *kept.calls[2:]]


def test_a_hook_declares_what_a_dry_run_calls_and_saves_are_left_out(state, phase, caplog):
    caplog.set_level(logging.INFO, "entracte")
    calls = []

    def calling(name):
        def call(state, metrics):
            calls.append(name)
            return state

        return call

    @hooks.writes("rare")
    def rare(state, metrics):
        return state

    program = [
        Hook(calling("run"), "custom", dry_run=calling("instead")),
        Hook(calling("save"), "upload", stage="save"),
        rare,
        hooks.reads("rare")(calling("reader")),
    ]
    trainer.fit(state, phase, epochs=1, hooks=program, dry_run=True)
    assert calls == ["instead", "run", "save"]
    (message,) = [line for line in caplog.messages if line.startswith("dry run: ")]
    assert message.startswith("dry run: one step of train and 2 hooks, on this run's data, in ")
    assert message.endswith("; not called, since their metrics are missing or they save: "
                         "upload, call")  # fmt: skip


def test_a_run_with_nothing_to_train_makes_no_dry_run(state, phase, caplog):
    caplog.set_level(logging.INFO, "entracte")
    trainer.fit(state, phase, epochs=0, dry_run=True)
    trainer.fit(state.replace(stop=True), phase, epochs=3, dry_run=True)
    assert not [line for line in caplog.messages if line.startswith("dry run: ")]
