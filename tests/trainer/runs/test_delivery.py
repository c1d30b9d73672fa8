"""Queued lines reach the store, once, in order, as soon as the store accepts them."""

import contextlib
import json
import logging
import os
import signal
import socket
import sqlite3
import time

import pytest

from trainer.runs import Run, Store, Unreachable, delivery
from trainer.runs.delivery import DeliveryThread, deliver
from trainer.runs.disk_queue import DiskQueue, QueueClosed
from trainer.runs.run_directory import QUEUE
from trainer.runs.sql import table_versions
from trainer.runs.sql.connecting import connect


@pytest.fixture
def queue(tmp_path):
    """An empty queue."""
    made = DiskQueue(tmp_path / "queue.jsonl")
    yield made
    if made._file >= 0:
        made.close()


@pytest.fixture
def begun(tmp_path):
    """Return a function that creates run `one`."""
    with contextlib.ExitStack() as ending:

        def begin(**settings):
            run = Run(tmp_path / "runs" / "one", **settings)
            ending.callback(run.close)
            return run

        yield begin


@pytest.fixture
def threads(none_outlives):
    """Check that no delivery thread outlives its test."""
    yield
    none_outlives("entracte-store")


def record(queue, numbers):
    """Queue a record for each number."""
    for n in numbers:
        values = {"loss": n / 2}
        assert queue.put({"do": "records", "run": "one", "epoch": n, "step": n, "values": values})


def losses(url):
    """Return the losses in the store, times 2."""
    with Store(url) as store:
        return [record.value * 2 for record in store.records("one")]


def warnings(caplog):
    """Return the warnings of this library."""
    logged = [r for r in caplog.records if r.name == "entracte" and r.levelno >= logging.WARNING]
    return [record.getMessage() for record in logged]


def test_every_kind_of_line_is_applied(store, queue):
    one = {"run": "one"}
    row = {"path": "/c", "bytes": 1, "scores": {"a": 1.0}, "checksum": "x", "written": "now"}
    for line in (
        {"do": "register", "directory": "/one", "host": "here", "pid": 1, "time": 1.0, **one}
        | {"config": {"a": 1}, "environment": {}},
        {"do": "rewind", "epoch": 0, "step": 0, **one},
        {
            "do": "records",
            "epoch": 1,
            "step": 14,
            "values": {"loss": float("nan"), "t": "x"},
            **one,
        },
        {"do": "beat", "epoch": 1, "step": 14, "epochs": None, "time": 2.0, **one},
        *({"do": "commit", "epoch": epoch, **row, **one} for epoch in (1, 2, 3)),
        {"do": "commits", "epochs": [1, 3], **one},
        {"do": "artifact", "path": "/a", "kind": "plot", "epoch": 1, "step": 14, "bytes": 3, **one},
        {"do": "ask", "suite": "full", "epoch": 1, "checksum": "x", "time": 3.0, **one},
        {"do": "end", "state": "failed", "error": "no", "time": 4.0, **one},
    ):
        assert queue.put(line)
    assert deliver(store, queue) == 11
    assert queue.empty
    row = store.run("one")
    assert (row.state, row.error, row.epoch, row.pause, row.config) == (
        *("failed", "no", 1, 1.0, {"a": 1}),
    )
    assert [row.epoch for row in store.checkpoints("one", present=True)] == [1, 3]
    assert len(store.checkpoints("one")) == 3
    assert len(store.records("one")) == 2
    assert len(store.artifacts("one")) == 1
    assert deliver(store, queue) == 0


def test_a_batch_that_was_written_but_not_acknowledged_is_written_again(store, queue, monkeypatch):
    record(queue, range(5))
    monkeypatch.setattr(queue, "acknowledge", lambda place: 1 / 0)  # killed just before
    with pytest.raises(ZeroDivisionError):
        deliver(store, queue)
    monkeypatch.undo()
    assert len(store.records("one")) == 5
    record(queue, range(5, 7))
    assert deliver(store, queue) == 7
    assert [record.epoch for record in store.records("one")] == list(range(7))


@pytest.mark.parametrize(
    "line",
    [
        {"do": "something of a newer version", "run": "one"},
        {"do": "records", "run": "one", "epoch": 2**80, "step": 1, "values": {"loss": 1.0}},
        {"do": "records", "run": "one", "epoch": {}, "step": 1, "values": {"loss": 1.0}},
        {"do": "records", "run": "one", "epoch": 1, "step": 1, "values": {"loss": [1.0]}},
        {
            "do": "artifact",
            "run": "one",
            "path": None,
            "kind": "",
            "epoch": 1,
            "step": 1,
            "bytes": 1,
        },
        {"run": "one"},
        ["no", "line"],
        None,
    ],
)
def test_a_line_that_no_store_accepts_does_not_block_the_others(store, queue, caplog, line):
    record(queue, range(2))
    queue.put(line)
    record(queue, range(2, 4))
    assert deliver(store, queue) == 5
    assert [record.epoch for record in store.records("one")] == list(range(4))
    refused = queue.path.with_name("queue.refused.jsonl").read_text()
    assert json.loads(refused) == line
    (warning,) = warnings(caplog)
    assert "is kept in" in warning


def test_bytes_that_are_not_a_line_are_set_aside(store, queue, caplog):
    record(queue, [0])
    with queue.path.open("ab") as file:
        file.write(b"\0\xff\x1b[2J\n")
    queue.close()
    again = DiskQueue(queue.path)
    record(again, [1])
    deliver(store, again)
    again.close()
    assert len(store.records("one")) == 2
    assert queue.path.with_name("queue.refused.jsonl").read_bytes() == b"\0\xff\x1b[2J\n"
    assert "\x1b" not in caplog.text


def test_a_queue_that_is_closed_meanwhile_is_not_delivered_twice(store, queue, monkeypatch):
    record(queue, range(3))
    write = Store.write_many_records

    def closing(store, records):
        write(store, records)
        queue.close()

    monkeypatch.setattr(Store, "write_many_records", closing)
    with pytest.raises(QueueClosed):
        deliver(store, queue)
    monkeypatch.undo()
    assert store.records("one") == []
    again = DiskQueue(queue.path)
    assert deliver(store, again) == 3
    again.close()


def test_a_thread_delivers_and_ends(url, queue, eventually, threads):
    prepared = []
    thread = DeliveryThread(url, queue, lambda: prepared.append(len(losses(url))))
    thread.start()
    for n in range(3):
        record(queue, [n])
        thread.wake()
        eventually(lambda n=n: losses(url) == list(range(n + 1)))
    record(queue, [3])
    assert thread.close(10)
    assert queue.empty
    assert losses(url) == list(range(4))
    assert prepared[-1] >= 3


def test_a_failure_to_prepare_is_logged_and_retried(url, queue, soon, caplog, threads, eventually):
    tries = iter([OSError("first"), ValueError("second"), None, None, None])

    def prepare():
        if error := next(tries):
            raise error

    record(queue, [0])
    assert losses(url) == []  # it exists
    thread = DeliveryThread(url, queue, prepare)
    thread.start()
    eventually(lambda: queue.empty)
    assert thread.close(10)
    assert losses(url) == [0]
    (warning,) = warnings(caplog)
    assert "first: what is recorded is queued in" in warning


# --- a store that is locked, or away


def lock_sqlite(url):
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other.close


def lock_postgresql(url):
    other = connect(url)
    transaction = other.transaction()
    transaction.__enter__()
    other.execute("LOCK TABLE records, runs")
    return lambda: (transaction.__exit__(None, None, None), other.close())


@pytest.fixture
def impatient(monkeypatch):
    """Wait only briefly for locks."""
    monkeypatch.setattr(delivery, "TIMEOUT", 1.0)


def test_a_locked_store_delays_no_record(url, run, soon, impatient, eventually, caplog):
    run.resume(epoch=0, step=0)
    run.record(1, 1, {"loss": 0.5})
    eventually(lambda: losses(url) == [1])
    unlock = (lock_sqlite if url.startswith("sqlite") else lock_postgresql)(url)
    try:
        longest = 0.0
        for n in range(2, 300):
            began = time.perf_counter()
            run.record(n, n, {"loss": n / 2})
            longest = max(longest, time.perf_counter() - began)
        eventually(lambda: "lock" in caplog.text)
        assert longest < 0.7  # less than the time limit for the lock
        if url.startswith("sqlite"):
            assert losses(url) == [1]
    finally:
        unlock()
    eventually(lambda: losses(url) == list(range(1, 300)))
    (warning,) = warnings(caplog)
    assert "queue.jsonl, and delivered when the store" in warning


@pytest.fixture
def restarting(server):
    """The server; it is started again after the test."""
    yield server
    server.stop()
    server.start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_server_that_was_away_receives_everything(
    number, database, restarting, begun, soon, eventually, caplog
):
    run = begun(store=database)
    recorded = []

    def record():
        for n in range(len(recorded), len(recorded) + 20):
            run.record(n, n, {"loss": n / 2})
            recorded.append(n)
        return "cannot be reached" in caplog.text

    record()
    restarting.stop(number)
    eventually(record)  # a process of the server may continue for a moment
    restarting.start()
    record()
    eventually(lambda: losses(database) == recorded)
    restarting.stop(number)
    record()
    run.close()
    restarting.start()
    again = begun(store=database)
    again.heartbeat(epoch=1, step=1)
    eventually(lambda: losses(database) == recorded)
    again.close()
    with Store(database) as store:
        assert store.run("one").state == "interrupted"


@pytest.mark.parametrize("away", ["nothing", "a folder", "a text", "another store"])
def test_a_file_that_was_away_receives_everything(away, tmp_path, begun, soon, eventually, caplog):
    runs = tmp_path / "runs"
    run, path = begun(store=runs), runs / "store.sqlite"
    run.record(0, 0, {"loss": 0.0})
    eventually(lambda: losses(runs) == [0])
    aside = tmp_path / "aside"
    aside.mkdir()
    for file in runs.glob("store*"):
        file.rename(aside / file.name)
    if away == "a text":
        path.write_text("no store")
    elif away == "a folder":
        path.mkdir()
    elif away == "another store":
        with Store(aside) as other:
            other.connection.execute("VACUUM INTO ?", (str(path),))
    for n in range(1, 20):
        run.record(n, n, {"loss": n / 2})
    eventually(lambda: "is queued in" in caplog.text)
    if away == "another store":
        eventually(lambda: losses(runs) == list(range(20)))
        return
    assert losses(aside) == [0]
    for file in runs.glob("store*"):
        file.rmdir() if file.is_dir() else file.unlink()
    for file in aside.iterdir():
        file.rename(runs / file.name)
    eventually(lambda: losses(runs) == list(range(20)))


def test_a_newer_store_is_waited_for_too(tmp_path, begun, soon, eventually, caplog):
    run = begun(store=tmp_path / "runs")
    with Store(tmp_path / "runs") as store:
        store.connection.execute("UPDATE meta SET value = '99'")
    run.record(1, 1, {"loss": 0.5})
    eventually(lambda: "version 99" in caplog.text)
    with sqlite3.connect(tmp_path / "runs" / "store.sqlite") as database:
        database.execute(f"UPDATE meta SET value = '{table_versions.VERSION}'")
    database.close()
    eventually(lambda: losses(tmp_path / "runs") == [1])


# --- a server that never answers


@pytest.fixture
def silent():
    """The URL of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"postgresql://me@127.0.0.1:{listening.getsockname()[1]}/a"


def test_a_thread_that_hangs_blocks_nobody_and_touches_no_file(
    silent, queue, tmp_path, monkeypatch, threads
):
    monkeypatch.setattr(delivery, "TIMEOUT", 2.0)  # the shortest that a connection waits
    record(queue, range(2))
    thread = DeliveryThread(silent, queue, lambda: None)
    thread.start()
    began = time.monotonic()
    assert not thread.close(0.2)
    assert time.monotonic() - began < 1.5
    numbers = {queue._file, queue._folder}
    queue.close()
    others = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("other", "another")]
    assert set(others) == numbers  # which belong to other files now
    thread._thread.join(20)
    assert not thread._thread.is_alive()
    for other in others:
        assert os.fstat(other).st_size == 0
        os.close(other)


STUCK = """
recorder.CLOSE_SECONDS = 0.5
run = Run(directory, store=url)
run.record(1, 1, {"loss": 0.5})
say("begun")
hear()
run.record(2, 2, {"loss": 1.0})
began = time.monotonic()
run.close()
say(time.monotonic() - began)
"""


def test_a_process_can_end_while_the_server_is_frozen(database, tmp_path, start, eventually, soon):
    with Store(database) as store, Store(database) as other:
        process = start(STUCK, directory=tmp_path / "one", url=database)
        assert process.hear() == "begun"
        eventually(lambda: store.records("one"))
        asking = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        own = {
            n
            for s in (store, other)
            for ((n,),) in [s.connection.execute("SELECT pg_backend_pid()")]
        }
        (frozen,) = {n for (n,) in store.connection.execute(asking)} - own
        os.kill(frozen, signal.SIGSTOP)
        try:
            process.say("go")
            assert 0.4 < process.hear() < 5
            process.join(20)
            assert process.exitcode == 0
        finally:
            os.kill(frozen, signal.SIGCONT)
    assert QUEUE in os.listdir(tmp_path / "one")


def test_a_direct_call_raises_if_the_store_is_away(silent):
    began = time.monotonic()
    with pytest.raises(Unreachable, match="timeout"):
        Store(silent, timeout=0.1)
    assert time.monotonic() - began < 10


def test_a_server_has_no_connection_of_a_run_that_records_nothing(database, begun, eventually):
    run = begun(store=database)

    def connections():
        where = "application_name = 'entracte' AND pid <> pg_backend_pid()"
        with contextlib.closing(connect(database)) as connection:
            statement = f"SELECT count(*) FROM pg_stat_activity WHERE {where}"
            return connection.execute(statement)[0][0]

    for epoch in (1, 2):
        run.record(epoch, epoch, {"loss": epoch / 2})
        eventually(lambda: losses(database) == [*range(1, epoch + 1)])  # noqa: B023
        eventually(lambda: not connections())
