"""A run's use of the machine, and its heartbeat."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer
from hooks.base import observe
from hooks.monitoring import system
from hooks.monitoring.system import heartbeat, watch_system
from hooks.testing import check_hook
from trainer.runs import Run, Store

HOST = ("system/host_memory_gb", "system/cpu_percent")
DEVICE = ("system/device_memory_gb", "system/device_memory_peak_gb")


class Device:
    """A device that reports its memory."""

    def __init__(self, **stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats or None


@pytest.fixture
def devices(monkeypatch):
    """Sets the local devices."""
    return lambda *found: monkeypatch.setattr(jax, "local_devices", lambda: list(found))


@pytest.fixture
def clock(monkeypatch):
    """Sets the seconds that have passed for the monitoring hooks."""
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr(system, "time", clock)
    return lambda seconds: now.__setitem__(0, 100.0 + seconds)


def test_memory_and_cpu_of_this_process_are_scored(state, clock):
    hook = watch_system()
    before = hook(state, {}).scores
    held = np.ones(25_000_000)  # 0.2 GB
    busy_until = time.process_time() + 0.1
    while time.process_time() < busy_until:
        held += 1
    clock(1.0)
    after = hook(state, {}).scores
    assert tuple(after) == HOST
    assert 0.1 < after["system/host_memory_gb"] - before["system/host_memory_gb"] < 0.5
    assert after["system/cpu_percent"] > 0


def test_the_fullest_device_counts(state, devices):
    devices(
        Device(bytes_in_use=10**9, peak_bytes_in_use=4 * 10**9),
        Device(bytes_in_use=2 * 10**9, peak_bytes_in_use=3 * 10**9),
    )
    scores = watch_system()(state, {}).scores
    assert [scores[name] for name in DEVICE] == [2.0, 4.0]


@pytest.mark.parametrize(
    ("stats", "written"),
    [
        ({}, ()),
        ({"bytes_in_use": 1}, DEVICE[:1]),
        ({"bytes_in_use": 1, "peak_bytes_in_use": 1}, DEVICE),
    ],
)
def test_it_declares_exactly_what_it_writes(state, devices, stats, written):
    devices(Device(**stats))
    hook = watch_system()
    assert hook.writes(state) == HOST + written
    assert tuple(hook(state, {}).scores) == HOST + written


def test_examples_per_second_follow_from_the_batch_size(state):
    hook = watch_system(batch_size=64)
    assert hook.writes(state)[-1] == "system/examples_per_second"
    after = hook(state, {"time/steps_per_second": 10.0})
    assert after.scores["system/examples_per_second"] == 640.0
    assert hook(state, {}) is state


def test_other_scores_are_kept(state):
    assert watch_system()(state.replace(scores={"val/loss": 1.0}), {}).scores["val/loss"] == 1.0


def test_it_reads_once_a_second(state, clock, devices):
    hook = watch_system()
    found = []
    for seconds, used in ((0, 1), (0.9, 2), (1.0, 3), (1.9, 4), (2.0, 5)):
        devices(Device(bytes_in_use=used * 1e9))
        clock(seconds)
        found.append(hook(state, {}).scores["system/device_memory_gb"])
    assert found == [1, 1, 3, 3, 5]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_examples(batch_size):
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        watch_system(batch_size=batch_size)


def test_without_psutil_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ImportError) as raised:
        watch_system()
    assert 'pip install "entracte[monitoring]"' in raised.value.__notes__[0]


def test_later_observers_see_the_scores(state, phase):
    seen = []

    @observe
    def look(state, metrics):
        seen.append(metrics["system/examples_per_second"] / metrics["time/steps_per_second"])
        return state

    _, history = trainer.fit(state, phase, epochs=2, hooks=[watch_system(batch_size=8), look])
    assert seen == pytest.approx([8, 8])
    assert history[0]["system/host_memory_gb"] > 0


def test_watching_holds_the_laws(state):
    check_hook(watch_system(batch_size=2), state, {"time/steps_per_second": 1.0})


def test_a_heartbeat_has_time_place_and_process(state, tmp_path):
    path = tmp_path / "run" / "alive.json"
    before = time.time()
    now = state.replace(step=jnp.int32(84), epoch=jnp.int32(3))
    assert heartbeat(path)(now, {}) is now
    sign = json.loads(path.read_text())
    assert before <= sign.pop("time") <= time.time()
    assert sign == {
        "event": "epoch",
        "epoch": 3,
        "step": 84,
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }


def test_heartbeats_are_written_at_start_epochs_and_end(state, phase, tmp_path, clock):
    path = tmp_path / "alive.json"
    signs = []

    def look(state, metrics):
        sign = json.loads(path.read_text())
        signs.append((sign["event"], sign["epoch"], sign["step"]))
        clock(len(signs))
        return state

    looks = [
        trainer.Hook(look, f"look/{event}", event=event, stage="observe")
        for event in ("start", "epoch", "end")
    ]
    trainer.fit(state, phase, epochs=2, hooks=[heartbeat(path), *looks])
    assert signs == [("start", 0, 0), ("epoch", 1, 1), ("epoch", 2, 2), ("end", 2, 2)]
    assert list(tmp_path.iterdir()) == [path]


def test_short_epochs_write_one_heartbeat_a_second(state, tmp_path, clock):
    path = tmp_path / "alive.json"
    hook = heartbeat(path)
    told = []
    for epoch, seconds in enumerate((0, 0.5, 1.0, 1.9, 2.0)):
        clock(seconds)
        hook(state.replace(epoch=jnp.int32(epoch)), {})
        told.append(json.loads(path.read_text())["epoch"])
    assert told == [0, 0, 2, 2, 4]


def test_a_reader_finds_the_old_heartbeat_or_the_new_one(state, tmp_path, clock):
    path = tmp_path / "alive.json"
    hook = heartbeat(path)
    hook(state, {})
    clock(1)
    with path.open() as reader:
        hook(state.replace(step=jnp.int32(10**9)), {})
        assert json.loads(reader.read())["step"] == 0
    assert json.loads(path.read_text())["step"] == 10**9


def test_a_heartbeat_without_a_valid_file_is_an_error_at_once(tmp_path):
    with pytest.raises(IsADirectoryError, match="needs the path of a file"):
        heartbeat(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as raised:
        heartbeat(tmp_path / "file" / "alive.json")
    assert "heartbeat cannot write to the folder" in raised.value.__notes__[0]


def test_a_heartbeat_holds_the_laws(state, tmp_path):
    check_hook(heartbeat(tmp_path / "alive.json"), state, {})


def test_a_dry_run_writes_no_heartbeat(state, phase, tmp_path):
    def fail(state, metrics):
        raise RuntimeError("no")

    chain = hooks.chain(heartbeat(tmp_path / "alive.json"), hooks.on("end", fail))
    with pytest.raises(RuntimeError):
        trainer.fit(state, phase, epochs=1, hooks=chain, dry_run=True)
    assert not (tmp_path / "alive.json").exists()


class TestOnRecord:
    """The heartbeat of a run in a store, and how the run ended."""

    @pytest.fixture
    def run(self, tmp_path):
        return Run(tmp_path / "digits")

    def row(self, run):
        with Store(run.url) as store:
            return store.run(run.name)

    def test_it_records_progress_and_that_the_run_finished(self, state, phase, run):
        trainer.fit(state, phase, epochs=3, hooks=heartbeat(run))
        row = self.row(run)
        assert (row.epoch, row.step, row.epochs, row.pid) == (3, 3, 3, os.getpid())
        assert (row.state, row.error) == ("finished", "")
        assert time.time() - row.beat < 60

    def test_a_run_stopped_by_a_hook_is_finished(self, state, phase, run):
        def stop(state, metrics):
            return state.replace(stop=True)

        trainer.fit(state, phase, epochs=9, hooks=[stop, heartbeat(run)])
        row = self.row(run)
        assert (row.state, row.epoch, row.epochs) == ("finished", 1, 9)

    def test_a_run_with_nothing_to_train_keeps_its_total(self, state, phase, run):
        trainer.fit(state, phase, epochs=2, hooks=heartbeat(run))
        done = state.replace(epoch=jnp.int32(2), step=jnp.int32(2))
        trainer.fit(done, phase, epochs=2, hooks=heartbeat(run))
        row = self.row(run)
        assert (row.state, row.epoch, row.epochs) == ("finished", 2, 2)

    @pytest.mark.parametrize(
        ("error", "ended"),
        [
            (trainer.Interrupt("enough"), ("interrupted", "")),
            (KeyboardInterrupt(), ("interrupted", "")),
            (ValueError("a\x1b[2J"), ("failed", "ValueError: a\x1b[2J")),
        ],
    )
    def test_it_records_how_a_run_ended(self, state, phase, run, error, ended):
        def fail(state, metrics):
            raise error

        with contextlib.suppress(ValueError, KeyboardInterrupt):
            trainer.fit(state, phase, epochs=3, hooks=[heartbeat(run), fail])
        row = self.row(run)
        assert (row.state, row.error) == ended

    def test_a_run_that_fails_after_its_end_is_failed(self, state, phase, run):
        def fail(state, metrics):
            raise ValueError("late")

        with pytest.raises(ValueError, match="late"):
            trainer.fit(
                state, phase, epochs=1, hooks=[heartbeat(run), hooks.on("end", observe(fail))]
            )
        assert (self.row(run).state, self.row(run).error) == ("failed", "ValueError: late")

    def test_a_refused_run_is_not_recorded(self, state, phase, run):
        with pytest.raises(ValueError, match="which nothing writes"):
            trainer.fit(
                state,
                phase,
                epochs=1,
                hooks=[heartbeat(run), hooks.stop_early("val/loss", patience=1)],
            )
        with Store(run.url) as store:
            assert store.runs() == []

    def test_short_epochs_write_one_heartbeat_a_second(self, state, run, clock, monkeypatch):
        told = []
        monkeypatch.setattr(Run, "heartbeat", lambda self, **sign: told.append(sign["epoch"]))
        hook = heartbeat(run)
        for epoch, seconds in enumerate((0, 0.5, 1.0, 1.9, 2.0)):
            clock(seconds)
            hook(state.replace(epoch=jnp.int32(epoch)), {})
        assert told == [0, 2, 4]

    def test_it_holds_the_laws(self, state, run):
        check_hook(heartbeat(run), state, {})
        assert self.row(run).state == "finished"
