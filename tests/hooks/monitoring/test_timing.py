"""record_times: scores, a table and a trace of a run, however it ends, without changing it."""

from __future__ import annotations

import json
import os
import signal
import time

import jax
import numpy as np
import pytest

import hooks
import trainer
from hooks.monitoring import time_tables, timing
from hooks.testing import check_hook
from trainer import data
from trainer.host import time_spans
from trainer.host.time_spans import span


@pytest.fixture(autouse=True)
def _nobody_listens_afterwards():
    yield
    assert time_spans._listeners == ()


@pytest.fixture(autouse=True)
def _every_row_is_shown(monkeypatch):
    monkeypatch.setattr(time_tables, "SHOWN", 0.0)


def nothing(state, metrics):
    return state


def fed(name, pieces):
    """A phase whose data a host function produces; it measures its data."""
    feed = data.source.Feed(pieces, np.float32(0), None, None, lambda state, check: None)
    phase = trainer.Phase(name, lambda state, given: (state, None, {"given": given}))
    phase.__dict__["feed"] = feed
    return phase


def nested(events):
    """Check that two events of a track are nested or do not overlap."""
    events = [event for event in events if event["ph"] == "X"]
    for tid in {event["tid"] for event in events}:
        track = [event for event in events if event["tid"] == tid]
        track.sort(key=lambda event: (event["ts"], -event["dur"]))
        around = []
        for event in track:
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            end = round(1e3 * (event["ts"] + event["dur"]))
            while around and around[-1] <= round(1e3 * event["ts"]):
                around.pop()
            assert not around or end <= around[-1], event
            around.append(end)
    return True


def test_scores_reach_the_writers_and_hooks_are_not_counted_twice(state, phase, tmp_path):
    lines = hooks.JsonLines(tmp_path / "metrics.jsonl")
    chain = [hooks.record_times(), nothing, hooks.log_metrics(lines)]
    _, history = trainer.fit(state, phase, epochs=3, hooks=chain)
    records = [json.loads(line) for line in lines.path.read_text().splitlines()]
    fresh = {f"time/{kind}/train" for kind in ("compile", "data", "dispatch", "wait")}
    assert fresh <= records[0].keys()
    assert "time/writer/JsonLines" not in records[0]
    assert all(records[1][name] > 0 for name in {"time/writer/JsonLines", "time/wait/train"})
    assert [record["time/compile/train"] > 0 for record in records] == [True, False, False]
    assert records[2]["time/compile/train"] == 0.0  # scored again, so that its curve continues
    extra = {name for name in history[-1] if name.startswith("time/")} - fresh
    assert extra == {
        "time/epoch_seconds",
        "time/steps_per_second",
        "time/writer/JsonLines",
        *(f"time/hook/{name}" for name in ("record_times", "record_times/start", "nothing")),
        *(f"time/hook/{name}" for name in ("log_metrics", "log_metrics/start")),
    }


def test_the_parts_of_an_epoch_explain_its_seconds(state):
    def pieces(state, check, position):
        time.sleep(0.02)
        yield np.float32(1), None
        time.sleep(0.02)
        yield np.float32(2), None

    def look(state, metrics):
        time.sleep(0.02)
        return state

    chain = [hooks.on("play", look), hooks.record_times()]
    _, history = trainer.fit(state, fed("play", pieces), epochs=10, hooks=chain)
    parts = [f"time/{kind}/play" for kind in ("data", "dispatch", "wait")] + ["time/hook/look"]
    rests = []
    for metrics in history:
        assert metrics["time/data/play"] >= 0.04
        explained = sum(metrics[part] for part in parts)
        assert explained <= metrics["time/epoch_seconds"]
        rests.append(1 - explained / metrics["time/epoch_seconds"])
    assert min(rests) < 0.1  # in an epoch that a busy machine did not interrupt


def test_it_changes_no_bit_and_compiles_nothing(state, phase, tmp_path):
    plain, history = trainer.fit(state, phase, epochs=3)
    timed, again = trainer.fit(
        state, phase, epochs=3, hooks=hooks.record_times(tmp_path / "t.json")
    )
    assert trainer.fingerprint(plain) == trainer.fingerprint(timed)
    assert len(phase._shared.compiled) == 1
    for one, other in zip(history, again, strict=True):
        assert one.items() - other.items() <= {(k, v) for k, v in one.items() if "time/" in k}


def test_the_trace_opens_and_nests(state, phase, tmp_path):
    hostile = 'say("hi")\n[red]\udc80\x1b[2J'
    hook = hooks.Hook(nothing, hostile, stage="observe")
    chain = hooks.chain(
        hooks.record_times(tmp_path / "deep" / "trace.json"),
        hooks.background(hook),
        hooks.background(hook),
        hooks.save_checkpoints(tmp_path, max_cost=None),
    )
    trainer.fit(state, phase, epochs=3, hooks=chain)
    trace = json.loads((tmp_path / "deep" / "trace.json").read_text(encoding="ascii"))
    assert trace["otherData"] == {"spans left out": 0}
    events = trace["traceEvents"]
    assert nested(events)
    assert {event["ph"] for event in events} == {"M", "X"}
    assert {event["pid"] for event in events} == {os.getpid()}
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    told = 'say("hi")\n[red]?\x1b[2J'
    assert next(iter(names.values())) == "MainThread"
    assert set(names.values()) == {"MainThread", "entracte-save", told}
    assert list(names.values()).count(told) == 2
    shown = [(names[e["tid"]], e["name"], e["cat"]) for e in events if e["ph"] == "X"]
    assert shown.count(("MainThread", "wait train", "wait")) == 3
    assert shown.count(("entracte-save", "save write", "save")) == 3
    assert shown.count((told, f"hook {told}", "hook")) == 6
    epochs = [e["args"]["number"] for e in events if e["name"] == "epoch"]
    assert epochs == [1, 2, 3]


def test_the_table_is_printed_when_everything_is_closed(state, phase, tmp_path, capsys):
    console = hooks.Console()
    saving = hooks.save_checkpoints(tmp_path, max_cost=None)
    trainer.fit(
        state, phase, epochs=2, hooks=[hooks.record_times(), hooks.log_metrics(console), saving]
    )
    out = capsys.readouterr().out
    table = out[out.index("time of") :]
    lines = {line[: line.index("  ", 8)].rstrip(): line.split() for line in table.splitlines()[2:]}
    assert out.index("epoch 2/2") < out.index("train/loss  ") < out.index("time of")
    assert next(iter(lines)) == "run"
    assert lines["  epoch"][-3:-2] == ["2"]
    found = [" ".join(cells[:2]) for cells in lines.values()]
    assert {"thread entracte-save", "save write", "event epoch", "compile train"} <= set(found)


@pytest.mark.parametrize("how", ["fails", "is interrupted", "is ended by a signal"])
def test_an_interrupted_run_prints_its_table(state, phase, tmp_path, capsys, how):
    def cut(state, metrics):
        if int(state.epoch) == 2:
            if how == "fails":
                raise OSError("no disk")
            if how == "is interrupted":
                raise trainer.Interrupt("time is up")
            os.kill(os.getpid(), signal.SIGTERM)
        return state

    path = tmp_path / "trace.json"

    def run():
        trainer.fit(state, phase, epochs=9, hooks=[cut, hooks.record_times(path)])

    if how == "is interrupted":
        run()
    else:
        with pytest.raises(OSError if how == "fails" else SystemExit):
            run()
    events = json.loads(path.read_text())["traceEvents"]
    assert nested(events)
    assert [e["args"]["number"] for e in events if e["name"] == "epoch"] == [1, 2]
    assert "  event epoch" in capsys.readouterr().out


def test_without_training_the_last_trace_stays(state, phase, tmp_path, capsys):
    hook = hooks.record_times(tmp_path / "trace.json")
    done, _ = trainer.fit(state, phase, epochs=2, hooks=hook)
    before = (tmp_path / "trace.json").read_text()
    capsys.readouterr()
    trainer.fit(done, phase, epochs=2, hooks=hook)
    with pytest.raises(ValueError, match="nothing writes before it"):
        trainer.fit(done, phase, epochs=3, hooks=[hook, hooks.reads("missing")(nothing)])
    assert (tmp_path / "trace.json").read_text() == before
    assert capsys.readouterr().out == ""
    trainer.fit(done, phase, epochs=3, hooks=hook)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [e["args"]["number"] for e in events if e["name"] == "epoch"] == [3]


def test_a_long_run_keeps_the_newest_spans_and_all_sums(
    state, phase, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(timing, "KEPT", 20)
    trainer.fit(state, phase, epochs=30, hooks=hooks.record_times(tmp_path / "trace.json"))
    trace = json.loads((tmp_path / "trace.json").read_text())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(events) == 20
    assert trace["otherData"]["spans left out"] > 100
    assert [e["args"]["number"] for e in events if e["name"] == "epoch"][-2:] == [29, 30]
    assert nested(events)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  epoch")]
    assert "30" in row.split()


def test_a_trace_that_cannot_be_written_is_an_error_and_the_table_is_printed(
    state, phase, tmp_path, capsys
):
    (tmp_path / "runs").mkdir()
    hook = hooks.record_times(tmp_path / "runs" / "trace.json")
    (tmp_path / "runs").rmdir()
    with pytest.raises(FileNotFoundError) as raised:
        trainer.fit(state, phase, epochs=1, hooks=hook)
    assert "in closing hook 'record_times/start'" in raised.value.__notes__
    assert "time of" in capsys.readouterr().out


@pytest.mark.parametrize("path", [".", "file/trace.json"])
def test_an_invalid_path_is_refused_at_once(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"folder|exists|directory") as raised:
        hooks.record_times(tmp_path / path)
    assert "record_times" in "".join([str(raised.value), *getattr(raised.value, "__notes__", [])])


def test_two_of_them_work_also_with_a_run_within_a_hook(state, phase, tmp_path, capsys):
    def train_another(outer, metrics):
        trainer.fit(state, phase, epochs=1, hooks=hooks.record_times())
        return outer

    both = [hooks.record_times(tmp_path / "a.json"), hooks.record_times(tmp_path / "b.json")]
    trainer.fit(state, phase, epochs=1, hooks=[train_another, *both])
    for name in ("a.json", "b.json"):
        events = json.loads((tmp_path / name).read_text())["traceEvents"]
        assert nested(events)
        assert [e["name"] for e in events].count("wait train") == 2
    tables = capsys.readouterr().out.split("time of")[1:]
    assert ["hook train_another" in table for table in tables] == [True, True, True]


def test_every_second_epoch_it_scores_the_time_of_both(state, phase):
    chain = [hooks.every(2, hooks.record_times())]
    _, history = trainer.fit(state, phase, epochs=4, hooks=chain)
    assert ["time/wait/train" in metrics for metrics in history] == [False, True, False, True]


def test_it_stays_on_the_training_thread():
    with pytest.raises(ValueError, match="'record_times' is one with them"):
        hooks.background(hooks.record_times())


def test_custom_spans_are_timed(state, phase):
    def sample(state, metrics):
        with span("sample", "beam/4"):
            return state

    _, history = trainer.fit(state, phase, epochs=1, hooks=[sample, hooks.record_times()])
    assert history[0]["time/sample/beam/4"] > 0


def test_a_process_that_does_not_observe_prints_nothing(tmp_path, capsys):
    hook = hooks.record_times(tmp_path / "trace.json")
    for part in hook.parts:
        if part.close:
            part.close(None)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "trace.json").exists()


def test_the_check_before_a_run_leaves_it_alone(state, phase, tmp_path, capsys):
    trainer.fit(state, phase, epochs=1, hooks=hooks.record_times(tmp_path / "t.json"), dry_run=True)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert [e["name"] for e in events].count("wait train") == 1
    assert capsys.readouterr().out.count("time of") == 1


def test_it_holds_the_laws(state):
    check_hook(hooks.record_times(), state, {})
    jax.block_until_ready(state.params)
