"""Finding stores and runs, undelivered queues, and hostile names."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest

from trainer.commands.lookup import stores
from trainer.commands.lookup.stores import EMPTY, find_run, open_run, open_store
from trainer.commands.terminal.calling import CommandError
from trainer.runs import Run, Store
from trainer.runs.run_directory import QUEUE

HOSTILE = "\x1b[2J[bold red]x\u202e"
"""Clears the screen, is markup, and turns the direction of writing."""


def recorded(directory, name=None, **values):
    """Record a run like its own process."""
    run = Run(directory, name=name)
    run.record(1, 10, values)
    run.close()


def test_a_run_is_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.delenv("ENTRACTE_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    recorded(tmp_path / "runs" / "one", loss=0.5)
    recorded(tmp_path / "other" / "one", loss=0.25)
    for run, store, loss in (
        ("one", None, 0.5),
        ("runs/one", None, 0.5),
        ("runs/one/", None, 0.5),
        ("other/one", None, 0.25),
        (str(tmp_path / "other" / "one"), None, 0.25),
        ("one", "other", 0.25),
        ("one", "other/store.sqlite", 0.25),
    ):
        with open_run(run, store) as (there, row):
            assert [record.value for record in there.records(row.name)] == [loss]
    monkeypatch.setenv("ENTRACTE_STORE", "other")
    with open_run("one", None) as (there, row):
        assert there.records(row.name)[0].value == 0.25


def test_a_directory_that_was_moved_with_its_store_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("ENTRACTE_STORE", raising=False)
    recorded(tmp_path / "runs" / "one", loss=0.5)
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    with open_run(str(tmp_path / "moved" / "one"), None) as (_, row):
        assert row.directory == str(tmp_path / "runs" / "one")


def test_an_unknown_run_is_named_with_similar_ones(store):
    with pytest.raises(CommandError, match="no run 'alpa' in .* Did you mean 'alpha'?"):
        find_run(store, "alpa")
    with pytest.raises(CommandError, match="no run 'x' in .* .there is: beta, alpha, delta, gamma"):
        find_run(store, "x")


def test_each_command_shows_the_newest_epoch_of_heartbeats_and_records(store, run):
    def told():
        return [
            next(one for one in json.loads(run("runs", "--json")[1]) if one["name"] == "beta"),
            json.loads(run("show", "beta", "--json")[1]),
            json.loads(run("watch", "beta", "--json")[1])["runs"][0],
            json.loads(run("compare", "alpha", "beta", "--json")[1])["runs"]["beta"],
        ]

    assert {(one["epoch"], one["step"]) for one in told()} == {(2, 20)}
    store.write_records("beta", 4, 43, {"val/loss": 0.5})
    assert {(one["epoch"], one["step"]) for one in told()} == {(4, 43)}
    store.heartbeat("beta", time=1.0, epoch=5, step=50)
    assert {(one["epoch"], one["step"]) for one in told()} == {(5, 50)}


def test_a_missing_store_explains_how_to_create_one(tmp_path, monkeypatch):
    monkeypatch.delenv("ENTRACTE_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(CommandError, match=r"(?s)runs/store.sqlite.*trainer.runs.Run\("),
        open_store(None),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def left(tmp_path, monkeypatch):
    """A run that ended while its store was locked: a record is still in its queue."""
    recorded(tmp_path / "one", loss=0.5)
    assert (tmp_path / "one" / QUEUE).stat().st_size <= EMPTY
    run = Run(tmp_path / "one")
    monkeypatch.setattr("trainer.runs.recorder.CLOSE_SECONDS", 0.0)
    with Store(tmp_path) as store, store.connection.transaction():  # blocks the thread
        run.record(2, 20, {"loss": 0.25})
        run.end("finished")
        run.close()
        store.end("one", "finished", time=1.0)
    monkeypatch.setenv("ENTRACTE_STORE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    stores._warn.cache_clear()
    return tmp_path / "one" / QUEUE


def losses(folder):
    with Store(folder, read_only=True) as store:
        return [record.value for record in store.records("one")]


def test_reading_delivers_nothing_and_names_the_command_that_does(left, run, tmp_path):
    before, told = left.read_bytes(), ""
    for words in (["runs"], ["show", "one"], ["watch", "--once"], ["export", "one", "--to", "out"]):
        status, _, err = run(*words)
        told += err
        assert status in (0, 1), err
    assert told == (
        "the last records of one are not in the store, but in queues in the runs' directories: "
        "entracte deliver\n"
    )
    assert (left.read_bytes(), losses(tmp_path)) == (before, [0.5])
    status, out, err = run("deliver")
    assert (status, err) == (0, "")
    assert re.fullmatch(r"one \d lines delivered\n", out)
    assert (left.stat().st_size <= EMPTY, losses(tmp_path)) == (True, [0.5, 0.25])
    assert run("deliver") == (0, "nothing waits to be delivered\n", "")
    assert run("runs")[2] == ""


def test_a_run_that_was_moved_is_delivered_by_its_path(left, run, tmp_path):
    (tmp_path / "one").rename(tmp_path / "moved")
    with Store(tmp_path) as store:
        store.connection.execute("UPDATE runs SET name = 'moved' WHERE name = 'one'")
    status, out, _ = run("deliver", str(tmp_path / "moved"), "--json")
    assert (status, json.loads(out)[0]["run"], json.loads(out)[0]["error"]) == (0, "moved", "")
    assert losses(tmp_path) == [0.5, 0.25]


def test_a_run_unknown_to_the_store_is_delivered_by_its_path(left, run, tmp_path, monkeypatch):
    monkeypatch.setenv("ENTRACTE_STORE", str(tmp_path / "another"))
    with Store(tmp_path / "another"):
        assert run("deliver") == (0, "nothing waits to be delivered\n", "")
    status, out, err = run("deliver", str(tmp_path / "one"))
    assert (status, err, out.endswith("delivered\n")) == (0, "", True)
    assert losses(tmp_path / "another") == [0.25]


def test_a_queue_of_another_user_explains_how_to_deliver_it(left, run, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    status, out, _ = run("deliver")
    assert status == 1
    assert "as the user who trained, or name the run by the path of its directory" in out
    assert run("deliver", str(left.parent))[0] == 0


def test_a_queue_that_cannot_be_delivered_stays_and_the_reason_is_printed(left, run, tmp_path):
    before = left.read_bytes()
    (tmp_path / "one" / "lock").unlink(missing_ok=True)
    (tmp_path / "one" / "lock").mkdir()
    status, out, _ = run("deliver")
    assert (status, left.read_bytes()) == (1, before)
    assert out.startswith("one stays in its queue: ")
    assert "lock" in out


def test_hostile_names_cannot_control_the_terminal(store, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    config = {HOSTILE: HOSTILE}
    store.register(
        HOSTILE, directory=HOSTILE, host=HOSTILE, pid=1, time=0.0, config=config, environment=config
    )
    store.write_records(
        HOSTILE, 1, 1, {f"{HOSTILE}/loss": 0.5, HOSTILE: 1.0, "time/hook/" + HOSTILE: 1}
    )
    store.end(HOSTILE, "failed", time=1.0, error=HOSTILE)
    for words in (
        ["runs"],
        ["runs", "--sort", HOSTILE],
        ["show", HOSTILE],
        ["compare", HOSTILE, "alpha"],
        ["watch", "--once", HOSTILE],
        ["show", "x" + HOSTILE],
        ["runs", "--where", HOSTILE],
    ):
        _, out, err = run(*words)
        assert "\x1b" not in out + err
        assert "\u202e" not in out + err
        assert r"\x1b[2J[bold red]x\u202e" in out + err
