"""The present state of runs and evaluators, and exit statuses for scripts."""

from __future__ import annotations

import json
import time

import pytest

from trainer.commands import watch
from trainer.commands.lookup import snapshots
from trainer.evaluators.liveness import WorkerRow, record_heartbeat


def test_one_snapshot_shows_running_runs_and_evaluators(run, store):
    record_heartbeat(store, WorkerRow("worker", "h", 1, 0.0, "alpha, epoch 2", 1))
    status, out, err = run("watch", "--once")
    assert (status, err) == (watch.STALLED, "")
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert {"alpha", "delta"}.isdisjoint(lines)
    assert lines["beta"][1:6] == ["running", "2/9", "━━──────────", "5.2", "s"]
    assert lines["gamma"][1:3] == ["stalled", "1/9"]
    assert lines["worker"][1:5] == ["alpha,", "epoch", "2", "1"]
    assert "requested evaluations: 1 done, 1 open" in out


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (["alpha"], 0),
        (["beta"], 0),
        (["alpha", "gamma"], 3),
        (["gamma", "delta"], 1),
        (["nothing"], 2),
    ],
)
def test_the_exit_status_depends_on_the_states(run, store, runs, expected):
    assert run("watch", "--once", *runs)[0] == expected


def test_a_run_named_twice_is_watched_once(run, store):
    _, out, _ = run("watch", "--json", "alpha", "/elsewhere/alpha", "alpha", "beta")
    assert [one["name"] for one in json.loads(out)["runs"]] == ["alpha", "beta"]


def test_runs_are_watched_by_path_in_the_store_beside_them(run, store, tmp_path, monkeypatch):
    monkeypatch.delenv("ENTRACTE_STORE")
    folder = tmp_path / "alpha"
    folder.mkdir()
    assert run("watch", "--once", str(folder))[0] == 0
    status, _, err = run("watch", "--once", str(folder), "beta")
    assert (status, "these runs are in several stores" in err) == (2, True)


def test_it_waits_until_none_is_running(run, store, monkeypatch):
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        store.heartbeat("beta", time=time.time(), epoch=2 + len(looks), step=9, epochs=9)
        if len(looks) == 3:
            store.end("beta", "finished", time=time.time())

    monkeypatch.setattr(watch.time, "sleep", sleep)
    status, out, _ = run("watch", "alpha", "beta", "--until", "finished")
    assert (status, len(looks)) == (0, 3)
    assert "finished" in out
    status, out, _ = run("watch", "beta", "--until", "finished", "--json")
    assert json.loads(out)["runs"][0]["epoch"] == 5


def test_a_run_that_ends_while_watched_stays_shown(run, store, monkeypatch):
    monkeypatch.setattr(
        watch.time, "sleep", lambda seconds: store.end("beta", "failed", time=time.time())
    )
    store.end("gamma", "finished", time=time.time())
    assert run("watch", "--until", "finished")[0] == watch.FAILED


def test_it_continues_after_the_store_was_unreachable(run, store, monkeypatch):
    calls = []
    real = snapshots.open_store

    def sometimes(name):
        calls.append(name)
        if len(calls) == 2:
            raise watch.CommandError("the store is away")
        return real(name)

    def sleep(seconds):
        if len(calls) == 2:
            store.end("beta", "finished", time=time.time())

    monkeypatch.setattr(snapshots, "open_store", sometimes)
    monkeypatch.setattr(watch.time, "sleep", sleep)
    assert run("watch", "beta", "--until", "finished")[0] == 0
    assert len(calls) == 3


def test_ctrl_c_is_no_traceback(run, store, monkeypatch):
    def sleep(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", sleep)
    assert run("watch")[0] == 130


def test_json_has_the_data_of_the_store(run, store):
    status, out, _ = run("watch", "--json", "beta", "delta")
    found = json.loads(out, parse_constant=pytest.fail)
    assert status == 1
    assert [one["name"] for one in found["runs"]] == ["beta", "delta"]
    assert found["runs"][0]["metrics"]["val/loss"] == 0.125
    assert found["runs"][1]["error"] == "ValueError: nan"
    assert found["evaluations"] == {"done": 1, "open": 1}


def test_without_runs_it_says_so(run, store):
    for name in ("beta", "gamma"):
        store.remove(name)
    status, out, _ = run("watch", "--until", "finished")
    assert (status, "no run is in progress" in out) == (0, True)
