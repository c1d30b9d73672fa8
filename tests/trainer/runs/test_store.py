"""A store keeps what is written, once, whoever writes it and however it is named."""

import json
import math
import os
import socket
import sqlite3
import time

import pytest

from trainer.runs import (
    Artifact,
    CheckpointRow,
    Record,
    Store,
    Unreachable,
    requests,
)
from trainer.runs.sql import table_versions
from trainer.runs.sql.connecting import connect

HOSTILE = [
    "val/loss'; DROP TABLE records; --",
    'a "quoted" \\ name',
    "two\nlines\ttabbed\r",
    "\x1b[2J\x1b]0;title\x07",
    "<script>alert(1)</script>",
    "[bold red]markup[/]",
    "Ünïcödé 日本 🦊",
    "%s %(name)s {0} ?",
    "",
    " ",
]
COMMIT = CheckpointRow(2, "/runs/one/checkpoints/2", 100, {"val/loss": 0.5}, "abc", "2026-01-01")


def register(store, run="one", **changes):
    """Record a run."""
    settings = {"directory": f"/runs/{run}", "host": "here", "pid": 1, "time": 10.0}
    store.register(run, **settings | changes)


def tables(store):
    """Return everything in a store."""
    names = ("runs", "records", "commits", "requests", "results", "artifacts", "workers")
    read = store.connection.execute
    return {name: sorted(map(repr, read(f"SELECT * FROM {name}"))) for name in names}


def write_all(store):
    """Write something of each kind."""
    register(store, config={"rate": 0.1}, environment={"python": "3"})
    store.heartbeat("one", time=11.0, epoch=1, step=14, epochs=3)
    store.write_records("one", 1, 14, {"val/loss": 0.5, "note": "good", "gone": math.nan})
    store.write_checkpoint("one", COMMIT)
    store.write_checkpoint("one", COMMIT._replace(epoch=1))
    store.mark_removed("one", [1, 7])
    store.write_artifact("one", Artifact("/runs/one/a.gif", "replay", 1, 14, 10))
    requests.create_request(store, "one", 2, "full", checksum="abc", time=12.0)
    store.end("one", "finished", time=13.0)


def test_writing_the_same_again_changes_nothing(store):
    write_all(store)
    before = tables(store)
    assert [len(rows) for rows in before.values()] == [1, 3, 2, 1, 0, 1, 0]
    write_all(store)
    assert tables(store) == before


def test_a_run_is_read_as_it_was_recorded(store):
    assert store.runs() == []
    write_all(store)
    register(store, "two", time=20.0)
    newer, older = store.runs()
    assert (newer.name, newer.config, newer.environment) == ("two", None, {})
    assert older == store.run("one")
    assert older._replace(environment={}) == type(older)(
        **{"name": "one", "directory": "/runs/one", "host": "here", "created": 10.0},
        **{"config": {"rate": 0.1}, "environment": {}, "state": "finished", "error": ""},
        **{"pid": 1, "epochs": 3, "epoch": 1, "step": 14, "beat": 13.0, "pause": 1.0},
    )
    assert older.environment == {"python": "3"}
    with pytest.raises(KeyError, match=r"no run 'three' in .* \(there is: two, one\)"):
        store.run("three")


def test_progress_is_known_from_heartbeats_and_from_records(store):
    register(store)
    register(store, "two")
    store.write_records("two", 9, 90, {"val/loss": 0.5})

    def progress():
        row = store.read_progress(store.run("one"))
        return row.epoch, row.step

    assert progress() == (0, 0)
    store.write_records("one", 1, 14, {"val/loss": 0.5, "a": 1.0})
    store.write_records("one", 1, 17, {"a": 1.0})
    assert progress() == (1, 17)
    store.heartbeat("one", time=11.0, epoch=1, step=20)
    assert progress() == (1, 20)
    store.write_records("one", 2, 28, {"note": "good"})
    assert progress() == (2, 28)
    store.rewind("one", 1, 14)
    assert progress() == (1, 14)


def test_a_run_that_resumes_keeps_its_creation_time(store):
    write_all(store)
    register(store, time=20.0, pid=2, config={"rate": 0.2})
    row = store.run("one")
    assert (row.created, row.beat, row.pid, row.state) == (10.0, 20.0, 2, "running")
    assert (row.config, row.epoch) == ({"rate": 0.2}, 1)
    assert row.pause is None


def test_a_run_without_heartbeats_has_stalled(store):
    register(store, host="elsewhere", time=100.0)
    row = store.run("one")
    assert [row.status(100.0 + after) for after in (0, 899, 901)] == [
        *("running", "running", "stalled")
    ]
    store.heartbeat("one", time=200.0, epoch=1, step=14)
    row = store.run("one")
    assert (row.pause, row.epochs) == (100.0, None)
    assert [row.status(200.0 + after) for after in (499, 501)] == ["running", "stalled"]
    store.heartbeat("one", time=201.0, epoch=2, step=28)
    assert [store.run("one").status(201.0 + after) for after in (59, 61)] == ["running", "stalled"]
    store.end("one", "failed", time=202.0, error="ValueError: no")
    row = store.run("one")
    assert (row.status(1e9), row.error) == ("failed", "ValueError: no")


def test_a_run_whose_process_has_ended_has_stalled_as_seen_on_its_machine(store):
    for name, pid in (("living", os.getpid()), ("gone", 2**22 + 1), ("none", 2**40)):
        register(store, name, host=socket.gethostname(), pid=pid, time=100.0)
    states = {row.name: row.status(101.0) for row in store.runs()}
    assert states == {"living": "running", "gone": "stalled", "none": "stalled"}


def test_values_are_read_as_they_were_written(store):
    values = {
        "nan": math.nan,
        "inf": math.inf,
        "-inf": -math.inf,
        "tiny": 5e-324,
        "huge": 1.7976931348623157e308,
        "third": 1 / 3,
        "whole": 7,
        "text": "good\0\ud800 🦊",
        "none": None,
        "number": "0.5",
    }
    store.write_records("one", 1, 14, values)
    found = store.latest("one")
    assert found.keys() == values.keys()
    assert math.isnan(found["nan"].value)
    assert math.isnan(found["none"].value)
    assert found["text"].value == "good\ufffd? 🦊"
    for name in ("inf", "-inf", "tiny", "huge", "third", "whole", "number"):
        assert found[name] == Record(name, 1, 14, values[name])
    store.write_records("one", 1, 14, {"text": 0.25, "third": "now a text"})
    assert store.latest("one")["text"].value == 0.25
    assert store.latest("one")["third"].value == "now a text"


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_data_whatever_they_say(store, name):
    register(store, name, directory=name, host=name, config={name: name}, environment={name: name})
    store.write_records(name, 1, 14, {name: name, "other": 1.0})
    store.write_checkpoint(name, COMMIT._replace(path=name, scores={name: 1.0}, checksum=name))
    store.write_artifact(name, Artifact(name, name, 1, 14, 10))
    requests.create_request(store, name, 2, name, checksum=name, time=1.0)
    request = requests.claim_request(store, name, [name], lease=10.0)
    assert requests.finish_request(store, request, {name: 0.5})
    store.end(name, "failed", time=11.0, error=name)

    row = store.run(name)
    assert (row.directory, row.host, row.config, row.error) == (name, name, {name: name}, name)
    assert store.records(name, [name]) == [Record(name, 1, 14, name)]
    assert store.checkpoints(name)[0].scores == {name: 1.0}
    assert store.artifacts(name)[0].kind == name
    assert requests.list_requests(store, name or None)[0].worker == name
    assert requests.list_results(store, name) == {(name, 2): {name: 0.5}}
    store.remove(name)
    assert not any(tables(store).values())


def test_characters_that_no_database_stores_are_replaced(store):
    register(store, "a\0b\udcff")
    store.write_records("a\0b\udcff", 1, 14, {"c\0\ud800": 1.0})
    assert store.run("a\ufffdb?").name == "a\ufffdb?"
    assert store.records("a\0b\udcff", ["c\0\ud800"]) == [Record("c\ufffd?", 1, 14, 1.0)]


def test_long_names_stay_distinct(store):
    names = ["🦊" * 5000 + end for end in "ab"]
    for again in (0.0, 1.0):
        store.write_records("one", 1, 14, {names[0]: again, names[1]: again + 1})
    assert len(store.records("one")) == 2
    assert [store.records("one", [name])[0].value for name in names] == [1.0, 2.0]
    register(store, directory="/" + "d" * 5000)
    assert len(store.run("one").directory) == 5001


def test_a_run_that_resumes_replaces_what_is_beyond(store):
    register(store)
    for epoch in range(4):
        store.write_records("one", epoch, 14 * epoch, {"loss": float(epoch)})
        store.write_checkpoint("one", COMMIT._replace(epoch=epoch))
        store.write_artifact("one", Artifact(f"/{epoch}", "plot", epoch, 14 * epoch, 1))
        requests.create_request(store, "one", epoch, "full", checksum="abc", time=float(epoch))
    store.write_records("one", 1, 20, {"loss": 9.0})  # in the middle of the second epoch
    for _ in range(4):
        requests.finish_request(
            store, requests.claim_request(store, "me", ["full"], lease=9.0), {"a": 1.0}
        )
    store.write_records("two", 3, 42, {"loss": 3.0})
    store.rewind("one", 1, 14)
    assert [record.epoch for record in store.records("one")] == [0, 1]
    assert [row.epoch for row in store.checkpoints("one")] == [0, 1]
    assert [artifact.path for artifact in store.artifacts("one")] == ["/0", "/1"]
    assert [request.epoch for request in requests.list_requests(store, "one")] == [0, 1]
    assert list(requests.list_results(store, "one")) == [("full", 0), ("full", 1)]
    assert (store.run("one").epoch, store.run("one").step) == (1, 14)
    store.rewind("one", 0, 0)
    store.remove("one")
    assert len(store.records("two")) == 1
    assert sum(len(rows) for rows in tables(store).values()) == 1


def test_records_are_selected_and_ordered(store):
    for epoch in (2, 1, 3):
        store.write_records("one", epoch, 14 * epoch, {"b": 1.0, "a": float(epoch)})
    assert [r[:3] for r in store.records("one", since=2)] == [
        *(("a", 2, 28), ("b", 2, 28), ("a", 3, 42), ("b", 3, 42))
    ]
    assert [r.value for r in store.records("one", ["a", "none"])] == [1.0, 2.0, 3.0]
    assert store.records("one", []) == []
    assert store.latest("one")["a"] == Record("a", 3, 42, 3.0)


def test_removed_checkpoints_stay_recorded(store):
    write_all(store)
    assert [row.epoch for row in store.checkpoints("one")] == [1, 2]
    assert store.checkpoints("one", present=True) == [COMMIT]
    store.write_checkpoint("one", COMMIT._replace(epoch=1))
    assert len(store.checkpoints("one", present=True)) == 2


def test_a_transaction_that_fails_leaves_nothing(store):
    def write(name):
        with store.connection.transaction():
            register(store, name)
            store.write_records(name, 1, 14, {"loss": 1.0})
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        write("one")
    assert store.runs() == []
    with store.connection.transaction():
        register(store)
        with pytest.raises(ArithmeticError):
            write("two")
        store.write_records("one", 1, 14, {"loss": 1.0})
    assert [row.name for row in store.runs()] == ["one"]
    assert (len(store.records("one")), len(store.records("two"))) == (1, 0)


def test_a_value_that_a_database_refuses_is_not_unreachable(store):
    with pytest.raises(Exception, match="too large|out of range") as raised:
        store.write_records("one", 2**80, 14, {"good": 1.0})
    assert not isinstance(raised.value, Unreachable)
    assert store.records("one") == []


# --- several at once


WRITER = """
for begin in range(0, count, 10):
    with Store(url) as store:  # opened by all at once, repeatedly
        store.register(name, directory=f"/{name}", host="here", pid=1, time=1.0)
        for epoch in range(begin, begin + 10):
            store.write_records(name, epoch, epoch, {"loss": epoch / 2})
            store.write_records("shared", epoch, epoch, {name: 1.0, "same": 1.0})
            assert store.latest(name)["loss"].epoch == epoch
say("done")
"""


def test_many_write_and_read_at_once_and_nothing_is_lost(url, start):
    count = 20
    names = [f"writer {number}" for number in range(8)]
    writers = [start(WRITER, url=url, name=name, count=count) for name in names]
    assert [writer.hear() for writer in writers] == ["done"] * 8
    with Store(url, create=False) as store:
        assert len(store.runs()) == 8
        for name in names:
            assert [record.value for record in store.records(name)] == [n / 2 for n in range(count)]
        assert len(store.records("shared")) == 9 * count


# --- versions

MIGRATOR = """
added = "ALTER TABLE runs ADD COLUMN mood TEXT", "UPDATE runs SET mood = 'glad'"
table_versions.MIGRATIONS += (added,)
table_versions.VERSION += 1
say("ready")
hear()
with Store(url) as store:
    rows = store.connection.execute("SELECT name, mood FROM runs")
    say((rows, table_versions.read_version(store.connection)))
"""


def test_the_first_process_upgrades_an_older_store(url, start):
    with Store(url) as store:
        write_all(store)
        before = tables(store)
    migrators = [start(MIGRATOR, url=url) for _ in range(4)]
    assert [migrator.hear() for migrator in migrators] == ["ready"] * 4
    for migrator in migrators:
        migrator.say("go")
    assert [migrator.hear() for migrator in migrators] == [
        ([("one", "glad")], table_versions.VERSION + 1)
    ] * 4
    with pytest.raises(
        ValueError,
        match=f"has version {table_versions.VERSION + 1} of the tables, and this library knows",
    ):
        Store(url)
    connection = connect(url)
    connection.execute("ALTER TABLE runs DROP COLUMN mood")
    connection.execute(
        "UPDATE meta SET value = ? WHERE key = 'schema'", (str(table_versions.VERSION),)
    )
    connection.close()
    with Store(url) as store:
        assert tables(store) == before


def test_several_processes_create_a_store_at_once(url, start):
    makers = [start("say('ready'), hear(), say(Store(url).runs())", url=url) for _ in range(4)]
    assert [maker.hear() for maker in makers] == ["ready"] * 4
    for maker in makers:
        maker.say("go")
    assert [maker.hear() for maker in makers] == [[]] * 4


def test_a_file_without_tables_is_a_store_of_version_0(tmp_path):
    path = tmp_path / "all.db"
    path.touch()
    with pytest.raises(FileNotFoundError, match="nothing has written one"):
        Store(path, create=False)
    with Store(path) as store:
        assert table_versions.read_version(store.connection) == table_versions.VERSION
        register(store)
    with sqlite3.connect(path) as database:
        (mode,) = database.execute("PRAGMA journal_mode").fetchone()
    database.close()
    assert mode == "wal"


def test_a_migration_that_fails_leaves_the_store_as_it_was(url, monkeypatch):
    with Store(url) as store:
        write_all(store)
        before = tables(store)
    broken = ("ALTER TABLE runs ADD COLUMN mood TEXT", "UPDATE nothing SET at = 1")
    monkeypatch.setattr(table_versions, "MIGRATIONS", (*table_versions.MIGRATIONS, broken))
    monkeypatch.setattr(table_versions, "VERSION", table_versions.VERSION + 1)
    with pytest.raises(Unreachable, match="nothing"):
        Store(url)
    monkeypatch.undo()
    with Store(url) as store:
        assert tables(store) == before


# --- files that are no store


def test_a_missing_store_is_not_created_to_read_it(tmp_path, database):
    for place in (tmp_path / "runs", f"sqlite:///{tmp_path}/other.sqlite", database):
        with pytest.raises(FileNotFoundError, match="there is no store"):
            Store(place, create=False)
    assert list(tmp_path.iterdir()) == []
    connection = connect(database)
    schemas = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname = 'entracte'")
    connection.close()
    assert schemas == []


def test_other_files_are_not_taken_for_a_store(tmp_path):
    text, folder = tmp_path / "text.db", tmp_path / "folder.db"
    text.write_text("no store " * 1000)
    folder.mkdir()
    began = time.monotonic()
    with pytest.raises(Unreachable, match="not the file of a store, or damaged"):
        Store(text)
    with pytest.raises(Unreachable, match="it is a folder, and must be a file"):
        Store(folder)
    assert time.monotonic() - began < 2  # it does not wait for a lock
    assert text.read_text() == "no store " * 1000


def test_a_locked_store_is_waited_for_and_then_unreachable(tmp_path):
    with Store(tmp_path) as store:
        register(store)
    other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with Store(tmp_path, timeout=0.1) as store:
        assert store.run("one").name == "one"  # readers do not wait
        with pytest.raises(Unreachable, match="locked"):
            register(store, "two")
        other.execute("COMMIT")
        register(store, "two")
    other.close()


def test_a_locked_table_is_waited_for_and_then_unreachable(database):
    with Store(database, timeout=0.1) as store:
        register(store)
        other = connect(database)
        with other.transaction():
            other.execute("LOCK TABLE runs")
            with pytest.raises(Unreachable, match="lock timeout"):
                register(store, "two")
        register(store, "two")
        other.close()


def test_a_replaced_file_is_not_written_to(tmp_path):
    with Store(tmp_path) as store:
        register(store)
        os.rename(tmp_path / "store.sqlite", tmp_path / "moved.sqlite")
        for _ in range(2):
            with pytest.raises(Unreachable, match="No such file"):
                register(store, "two")
            with pytest.raises(Unreachable, match="No such file"):
                store.runs()
        with Store(tmp_path):
            pass
        with pytest.raises(Unreachable, match="replaced by another file"):
            store.write_records("two", 1, 14, {"loss": 1.0})


def test_a_lost_connection_is_reopened(database):
    with Store(database) as store, Store(database) as other:
        register(store)
        killing = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
        assert other.connection.execute(killing) == [(True,)]
        with pytest.raises(Unreachable, match="terminating connection"):
            store.runs()
        assert len(store.runs()) == 1
        assert other.connection.execute(killing) == [(True,)]

        def write():
            with store.connection.transaction():
                with pytest.raises(Unreachable):
                    register(store, "two")
                register(store, "three")  # the transaction is lost

        with pytest.raises(Unreachable):
            write()
        assert len(store.runs()) == 1


def test_a_password_is_not_shown(monkeypatch):
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    url = "postgresql://me:secret@127.0.0.1:1/runs?password=secret"
    with pytest.raises(Unreachable, match=r"me:\*\*\*@127") as raised:
        Store(url)
    assert "secret" not in str(raised.value)


def test_text_is_stored_as_json(store):
    config = {"a": ["ü\0\ud800", 1.5, None, True]}
    register(store, config=config)
    assert json.dumps(store.run("one").config) == json.dumps(config)
