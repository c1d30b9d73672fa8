"""A run records at once, whatever the store does, and each record is in the store once."""

import logging
import math
import os
import random
import re
import shutil
import socket
import threading
import time

import jax
import numpy as np
import pytest

from trainer import Checkpoints
from trainer.checkpoints import manifest
from trainer.checkpoints.storage import directory_lock
from trainer.checkpoints.storage.directory_lock import DirectoryInUse, find_holder, lock_directory
from trainer.runs import Run, Store, Unreachable, deliver_queue, recorder, requests

GONE = "postgresql://me@127.0.0.1:1/a"


@pytest.fixture
def begun(tmp_path):
    """Return a function that creates run `one` in `runs`; the run is closed at the end."""
    made = []

    def begin(**settings):
        made.append(Run(tmp_path / "runs" / "one", **settings))
        return made[-1]

    yield begin
    for run in made:
        run.close()


@pytest.fixture
def gone(tmp_path, monkeypatch):
    """A recorded run whose store is away."""
    Run(tmp_path / "runs" / "one").close()
    with Store(tmp_path / "runs"):
        pass
    run = Run(tmp_path / "runs" / "one")
    run.heartbeat(epoch=0, step=0)
    run.close()
    os.rename(tmp_path / "runs" / "store.sqlite", tmp_path / "away.sqlite")
    monkeypatch.setattr(recorder, "CLOSE_SECONDS", 0.1)
    (tmp_path / "runs" / "store.sqlite").mkdir()

    def back():
        (tmp_path / "runs" / "store.sqlite").rmdir()
        os.rename(tmp_path / "away.sqlite", tmp_path / "runs" / "store.sqlite")

    return back


def save(tmp_path, state, *epochs):
    """Save checkpoints of run `one`."""
    checkpoints = Checkpoints(tmp_path / "runs" / "one", keep=2)
    for epoch in epochs:
        checkpoints.save(
            state.replace(epoch=state.epoch + epoch, step=state.step + 14 * epoch),
            scores={"val/loss": 1.0 / epoch},
        )
    checkpoints.close()


def test_records_are_in_the_store_when_the_run_is_closed(url, begun):
    run = begun(store=url, config={"widths": (8, 8)})
    assert not run.is_recording
    run.resume(epoch=0, step=0)
    assert run.is_recording
    run.record(
        np.int64(1), np.int32(14), {"a": np.float32(0.5), "b": math.nan, "c": "text", "d": 1}
    )
    run.heartbeat(epoch=1, step=np.int64(14), epochs=2)
    run.end("finished")
    run.close()
    assert not run.is_recording
    with Store(url) as store:
        row = store.run("one")
        values = {record.name: record.value for record in store.records("one")}
    assert math.isnan(values.pop("b"))
    assert values == {"a": 0.5, "c": "text", "d": 1.0}
    assert (row.state, row.config, row.epochs, row.epoch) == ("finished", {"widths": [8, 8]}, 2, 1)
    assert (row.host, row.pid) == (socket.gethostname(), os.getpid())
    assert row.environment["jax"] == jax.__version__
    run.close()
    assert (run.directory / "queue.jsonl").stat().st_size < 20


def test_a_run_that_resumes_replaces_and_never_duplicates(url, begun):
    for went_on, last in ((0, 5), (3, 7)):
        run = begun(store=url)
        run.resume(epoch=went_on, step=14 * went_on)
        for epoch in range(went_on + 1, last + 1):
            run.record(epoch, 14 * epoch, {"loss": 10.0 * went_on + epoch})
        run.close()
    with Store(url) as store:
        found = [record.value for record in store.records("one")]
    assert found == [1, 2, 3, 34, 35, 36, 37]


def test_hooks_that_share_a_run_resume_it_once(begun):
    run = begun()
    run.resume(epoch=2, step=28)
    run.record(2, 28, {"at the start": 1.0})
    run.resume(epoch=2, step=28)
    run.record(3, 42, {"loss": 1.0})
    run.close()
    with Store(run.url) as store:
        assert [record.epoch for record in store.records("one")] == [2, 3]


def test_checkpoints_are_listed_as_they_come_and_go(begun, tmp_path, state, eventually):
    save(tmp_path, state, 1)
    run = begun()
    run.resume(epoch=1, step=14)
    save(tmp_path, state, 2, 3)
    run.heartbeat(epoch=3, step=42)
    run.close()
    with Store(run.url) as store:
        rows = store.checkpoints("one", present=True)
        assert [row.epoch for row in rows] == [2, 3]
        assert rows[1].path == str(run.directory / "checkpoints" / "3")
        assert rows[1].scores == {"val/loss": 1.0 / 3}
        assert rows[1].bytes > 100
    shutil.rmtree(run.directory / "checkpoints" / "3")  # while the run records nothing
    again = begun()
    again.resume(epoch=2, step=28)
    again.close()
    with Store(run.url) as store:
        assert [row.epoch for row in store.checkpoints("one", present=True)] == [2]


def test_a_checkpoint_is_recorded_when_its_evaluation_is_requested(begun, tmp_path, state):
    save(tmp_path, state, 1)
    run = begun()
    assert run.request_evaluation("full", 1)
    assert run.request_evaluation("full", 1)
    assert not run.request_evaluation("full", 2)
    run.close()
    with Store(run.url) as store:
        (request,) = requests.list_requests(store, "one")
        assert request.checksum == store.checkpoints("one")[0].checksum


def test_a_file_that_the_run_wrote_is_recorded(begun, tmp_path):
    run = begun()
    (tmp_path / "a.gif").write_bytes(b"1234")
    run.record_artifact(tmp_path / "a.gif", "replay", epoch=1, step=14)
    run.close()
    with Store(run.url) as store:
        assert store.artifacts("one") == [(str(tmp_path / "a.gif"), "replay", 1, 14, 4)]


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (ValueError("no"), "failed", "ValueError: no"),
        (KeyboardInterrupt(), "interrupted", ""),
        (SystemExit(143), "interrupted", ""),
    ],
)
def test_an_exception_decides_how_a_run_ended(begun, error, state, reason):
    run = begun()
    run.heartbeat(epoch=1, step=14)
    run.close(error)
    with Store(run.url) as store:
        assert store.run("one")[6:8] == (state, reason)


def test_an_earlier_error_is_no_failure_of_this_run(begun):
    run = begun()
    try:
        raise ValueError("of another run")
    except ValueError:
        run.heartbeat(epoch=1, step=14)
        run.close()
    with Store(run.url) as store:
        assert store.run("one").state == "interrupted"


# --- checkpoints that cannot be described


def change_manifest(checkpoint, **changes):
    """Change fields of a manifest, with the right checksum; None leaves a field out."""
    file = checkpoint / "manifest.json"
    content = manifest.decode_manifest(file.read_bytes()) | changes
    file.write_bytes(
        manifest.encode_manifest(
            {name: value for name, value in content.items() if value is not None}
        )
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"written": None}, "its time cannot be None"),
        ({"written": [1]}, r"its time cannot be \[1\]"),
        ({"written": "soon"}, "its time cannot be 'soon'"),
        ({"format": 99}, "is of format 99, and this version reads up to"),
        ({"scores": None}, "its scores cannot be None"),
    ],
)
def test_an_invalid_manifest_is_logged_once_and_blocks_no_delivery(
    begun, tmp_path, state, caplog, monkeypatch, change, reason
):
    monkeypatch.setattr(recorder, "LIST_SECONDS", 0.0)
    save(tmp_path, state, 1, 2)
    change_manifest(tmp_path / "runs" / "one" / "checkpoints" / "1", **change)
    run = begun()
    run.resume(epoch=2, step=28)
    for epoch in (3, 4):
        run.record(epoch, 14 * epoch, {"loss": 0.5})
        run._open().relist()
    assert not run.request_evaluation("full", 1)
    assert run.request_evaluation("full", 2)
    run.close()
    with Store(run.url) as store:
        assert [record.epoch for record in store.records("one")] == [3, 4]
        assert [row.epoch for row in store.checkpoints("one")] == [2]
        assert [request.epoch for request in requests.list_requests(store, "one")] == [2]
    warned = [r.getMessage() for r in caplog.records if "not recorded of run 'one'" in r.message]
    assert len(warned) == 1
    assert re.search(reason, warned[0])


# --- one owner


def test_a_second_run_in_one_directory_is_refused_while_the_first_records(begun, tmp_path):
    first, second = begun(), begun()
    first.heartbeat(epoch=1, step=14)
    for act in (
        lambda: second.heartbeat(epoch=1, step=14),
        lambda: second.resume(epoch=0, step=0),
        lambda: second.record(1, 14, {"loss": 1.0}),
    ):
        with pytest.raises(DirectoryInUse, match="is recorded by another Run in this process"):
            act()
    with Store(first.url) as store:
        assert deliver_queue(store, first.directory) == 0
    first.close()
    second.heartbeat(epoch=2, step=28)
    second.close()
    assert find_holder(first.directory) is None


def test_another_process_is_refused(begun, tmp_path, start, monkeypatch):
    monkeypatch.setattr(directory_lock, "PATIENCE", 0.0)
    code = "run = Run(path); run.heartbeat(epoch=1, step=1); say('begun'); hear()"
    process = start(code, path=tmp_path / "runs" / "one")
    assert process.hear() == "begun"
    run = begun()
    with pytest.raises(DirectoryInUse, match=f"in use: pid {process.pid} on "):
        run.heartbeat(epoch=1, step=14)
    assert not run.is_recording
    process.kill()
    process.join()
    run.heartbeat(epoch=1, step=14)


def test_this_process_may_have_locked_the_directory_already(begun, tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    release = lock_directory(tmp_path / "runs" / "one")
    run = begun()
    run.heartbeat(epoch=1, step=14)
    release()
    assert find_holder(run.directory)
    run.close()
    assert find_holder(run.directory) is None


def test_a_removed_lock_is_reported_before_a_save(begun):
    run = begun()
    run.record(1, 14, {"loss": 0.5})
    (run.directory / "lock").unlink()
    with pytest.raises(DirectoryInUse, match="was removed while the run had it"):
        run.flush()


def test_only_the_main_process_records_and_waits_for_no_other(begun, monkeypatch, tmp_path):
    def gathered(*arguments):
        raise AssertionError("the others do not take part")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("trainer.host.exchange._gather", gathered)
    run = begun()
    run.resume(epoch=0, step=0)
    run.record(1, 14, {"loss": 0.5})
    run.close()
    with Store(run.url) as store:
        assert len(store.records("one")) == 1
        assert deliver_queue(store, run.directory) == 0
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    other = Run(tmp_path / "elsewhere" / "one")  # created by all
    other.flush()
    other.close()
    assert not (tmp_path / "elsewhere").exists()


def test_threads_may_share_it(begun):
    run = begun()
    barrier = threading.Barrier(4)

    def record(thread):
        barrier.wait()
        for n in range(50):
            run.record(n, n, {f"loss {thread}": float(n)})

    threads = [threading.Thread(target=record, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.close()
    with Store(run.url) as store:
        assert len(store.records("one")) == 200


# --- names


def test_a_name_that_exists_is_refused(url, begun, tmp_path):
    run = begun(store=url)
    run.heartbeat(epoch=1, step=14)
    run.close()
    assert begun(store=url).name == "one"  # the same directory
    other = tmp_path / "others" / "one"
    with pytest.raises(ValueError, match=r"a run named 'one' is recorded .* give this one another"):
        Run(other, store=url)
    assert not other.exists()
    assert Run(other, store=url, name="another").name == "another"


def test_a_directory_that_was_moved_is_the_same_run(begun, tmp_path):
    run = begun()
    run.heartbeat(epoch=1, step=14)
    run.close()
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = Run(tmp_path / "moved" / "one")
    moved.heartbeat(epoch=2, step=28)
    moved.close()
    with Store(moved.url) as store:
        (row,) = store.runs()
    assert (row.directory, row.epoch) == (str(tmp_path / "moved" / "one"), 2)


def test_another_path_to_the_same_directory_is_the_same_run(begun, tmp_path):
    run = begun()
    run.heartbeat(epoch=1, step=14)
    run.close()
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    assert Run(tmp_path / "link" / "one").name == "one"


def test_a_run_of_another_machine_is_another_run(database, begun):
    with Store(database) as store:
        store.register("one", directory="/nowhere", host="elsewhere", pid=1, time=1.0)
    with pytest.raises(ValueError, match="from '/nowhere'"):
        begun(store=database)


def test_a_password_on_the_command_line_is_not_recorded(begun, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--store", "postgresql://me:secret@host/a"])
    run = begun()
    run.heartbeat(epoch=1, step=14)
    run.close()
    with Store(run.url) as store:
        assert store.run("one").environment["command"].endswith("postgresql://me:***@host/a")


# --- a store that is away


def test_a_store_that_never_answered_is_an_error_before_training(tmp_path):
    with pytest.raises(Unreachable, match="127.0.0.1") as raised:
        Run(tmp_path / "one", store=GONE)
    assert "has never been recorded: start the store" in raised.value.__notes__[0]
    assert not (tmp_path / "one").exists()


def test_a_recorded_run_trains_on_without_its_store(gone, begun, soon, tmp_path, caplog):
    run = begun()
    assert "what this run records is queued in" in caplog.text
    run.resume(epoch=0, step=0)
    for n in range(1, 30):
        run.record(n, n, {"loss": n / 2})
    run.close()
    assert "the rest stays in" in caplog.text
    gone()
    with Store(tmp_path / "runs", create=False) as store:
        assert deliver_queue(store, run.directory) >= 32
        assert [record.value for record in store.records("one")] == [n / 2 for n in range(1, 30)]
        assert store.run("one").state == "interrupted"
        assert deliver_queue(store, run.directory) == 0
        assert deliver_queue(store, tmp_path / "none") == 0


def test_a_full_queue_is_reported_once_and_training_continues(
    gone, begun, soon, tmp_path, caplog, eventually
):
    run = begun(limit=40_000)
    run.resume(epoch=0, step=0)
    count = 500
    for n in range(count):
        run.record(n, n, {"loss": n / 2, "note": "x" * 80})
        assert (run.directory / "queue.jsonl").stat().st_size <= 40_000
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "is full: what run 'one' records from here on is lost" in errors[0]
    run.end("finished")  # important: it has room
    gone()
    with Store(tmp_path / "runs", create=False) as store:
        accepted = eventually(lambda: len(store.records("one", ["loss"])))
        assert 50 < accepted < 250
        assert [r.epoch for r in store.records("one", ["loss"])] == list(range(accepted))
        eventually(lambda: store.run("one").state == "finished")
        eventually(lambda: (run.directory / "queue.jsonl").stat().st_size < 20)
        run.record(count, count, {"loss": 1.0})
        assert f"has room again: {count - accepted} lines of run 'one' were lost" in caplog.text
        eventually(lambda: store.latest("one")["loss"].epoch == count)


# --- a process that is killed

RECORDER = """
delivery.BATCH_SECONDS = gathering
run = Run(path, store=url)
run.resume(epoch=first, step=first)
for n in range(first + 1, 10**9):
    run.record(n, n, {"loss": n / 2, "note": "x" * (n % 500)})
    run.heartbeat(epoch=n, step=n)
    say(n)
    time.sleep(pause)
"""


def kill_while_recording(url, path, start, kills, seed):
    """Kill a process that records, repeatedly; check that all accepted records arrive."""
    instants, accepted = random.Random(seed), 0
    for _ in range(kills):
        given = {"url": url, "path": path, "first": accepted}
        process = start(RECORDER, **given, gathering=0.001, pause=0.0005)
        for _ in range(instants.randint(1, 200)):  # deliveries are under way at most of them
            accepted = process.hear()
        process.kill()
        process.join()
        try:
            while True:
                accepted = process.hear()
        except EOFError:
            pass
        with Store(url) as store:
            deliver_queue(store, path)
            records = store.records("one", ["loss"])
        # One more may have been accepted, which the process could not report.
        assert [record.epoch for record in records[:accepted]] == list(range(1, accepted + 1))
        assert [record.value for record in records] == [r.epoch / 2 for r in records]
        assert len(records) - accepted in (0, 1)
    return accepted


def test_another_process_delivers_what_a_killed_one_accepted(url, tmp_path, start):
    assert kill_while_recording(url, tmp_path / "runs" / "one", start, kills=3, seed=0) > 0


@pytest.mark.soak
def test_what_many_killed_processes_accepted_is_delivered(url, tmp_path, start):
    path = tmp_path / "runs" / "one"
    accepted = kill_while_recording(url, path, start, kills=100, seed=time.time_ns())
    print(f"\n{url.partition(':')[0]}: 100 kills, {accepted} records, lost 0, doubled 0")


def test_the_next_process_delivers_what_a_killed_one_left(begun, tmp_path, start):
    path = tmp_path / "runs" / "one"
    given = {"url": None, "path": path, "first": 0}
    process = start(RECORDER, **given, gathering=60.0, pause=0.0)  # it delivers nothing
    while process.hear() < 50:
        pass
    process.kill()
    process.join()
    run = begun()
    run.heartbeat(epoch=50, step=50)
    run.close()
    with Store(run.url) as store:
        assert len(store.records("one", ["loss"])) >= 50
