"""One process at a time trains in a run's directory, and a dead one holds nothing."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from trainer import Checkpoints
from trainer.checkpoints import DamagedCheckpoint
from trainer.checkpoints.storage import directory_lock
from trainer.checkpoints.storage.directory_lock import (
    DirectoryInUse,
    find_holder,
    lock_directory,
    lock_for_recording,
)
from trainer.host import exchange
from trainer.host.exchange import pack_message

CHILD = """
import os, signal, sys, warnings
from trainer.checkpoints.storage.directory_lock import (
    find_holder, lock_directory, lock_for_recording)

run = sys.argv[1]
release = lock_directory(run)
again = lock_for_recording(os.path.join(run, "..", os.path.basename(run)))
release(), release()
print(find_holder(run), flush=True)
warnings.simplefilter("ignore")  # of a fork beside JAX's threads
if not os.fork():
    again()
    print(os.getpid(), find_holder(run, by_others=True), flush=True)
    sys.stdin.read()
    os._exit(0)
signal.pause()
"""


@pytest.fixture
def short(monkeypatch):
    """Do not wait for another process to end."""
    monkeypatch.setattr(directory_lock, "PATIENCE", 0.0)


def test_a_dead_process_holds_nothing_though_its_forked_child_lives(short, state, tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first:
        try:
            holder = first.stdout.readline().strip()
            assert holder.startswith(f"pid {first.pid} on ")
            forked, seen_there = first.stdout.readline().strip().split(" ", 1)
            assert (
                find_holder(tmp_path)
                == find_holder(tmp_path, by_others=True)
                == seen_there
                == holder
            )
            with pytest.raises(DirectoryInUse, match="give this run another directory") as refused:
                lock_directory(tmp_path)
            assert f"{tmp_path} is in use: {holder} trains there" in str(refused.value)
            left = tmp_path / "checkpoints" / "3.replaced"
            left.mkdir(parents=True)
            checkpoints = Checkpoints(tmp_path)
            assert checkpoints.restore(state) is None
            assert left.exists()  # between the renames of a process that lives

            first.send_signal(signal.SIGKILL)
            first.wait(10)
            os.kill(int(forked), 0)  # it lives
            assert find_holder(tmp_path) is None
            release = lock_directory(tmp_path)
            assert find_holder(tmp_path).startswith(f"pid {os.getpid()} on ")
            with pytest.raises(DamagedCheckpoint, match="checkpoint 3"):
                checkpoints.restore(state)
            assert not left.exists()
            release()
        finally:
            first.kill()
            first.stdin.close()


def test_one_process_may_lock_several_times_but_once_to_train(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "run")
    first, second = lock_directory(tmp_path / "run"), lock_for_recording(tmp_path / "alias")
    with pytest.raises(
        DirectoryInUse, match="a hook of this very run, .* give each a directory of its own"
    ):
        lock_directory(tmp_path / "alias")
    first()
    first()
    assert find_holder(tmp_path / "run") == find_holder(tmp_path / "alias")
    assert f"pid {os.getpid()} on " in find_holder(tmp_path / "run")
    assert find_holder(tmp_path / "run", by_others=True) is None
    second()
    assert find_holder(tmp_path / "run") is None
    assert (tmp_path / "run" / "lock").stat().st_size == 0
    lock_directory(tmp_path / "run")()


def test_a_missing_run_has_no_holder(tmp_path):
    assert find_holder(tmp_path / "none") is None
    (tmp_path / "file").touch()
    assert find_holder(tmp_path / "file") is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", ["link", "second name", "pipe", "folder"])
def test_a_lock_that_is_no_regular_file_is_refused_and_left_alone(tmp_path, kind):
    file, other = tmp_path / "lock", tmp_path / "theirs"
    other.write_text("theirs")
    {
        "link": lambda: file.symlink_to(other),
        "second name": lambda: file.hardlink_to(other),
        "pipe": lambda: os.mkfifo(file),
        "folder": file.mkdir,
    }[kind]()
    for ask in (lock_directory, find_holder):
        with pytest.raises(OSError) as raised:  # noqa: PT011 - each kind has its own
            ask(tmp_path)
        assert "remove what is there" in raised.value.__notes__[0]
    assert other.read_text() == "theirs"


def test_unexpected_text_in_the_lock_is_not_repeated(short, tmp_path, monkeypatch):
    def refuse(descriptor, flags):
        raise BlockingIOError(errno.EAGAIN, "held")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    for said in (b"", b"\x1b[2Jpid 1 on host since 2000", b"pid 1 on a\xff\nb since 1"):
        (tmp_path / "lock").write_bytes(said)
        assert find_holder(tmp_path) == "another process"
    with pytest.raises(DirectoryInUse, match="another process trains there"):
        lock_directory(tmp_path)


def test_a_file_system_without_locks_is_reported_once(tmp_path, monkeypatch, caplog):
    def unknown(descriptor, flags):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(directory_lock, "_warned", False)
    monkeypatch.setattr(fcntl, "lockf", unknown)
    for _ in range(2):
        lock_directory(tmp_path)()
    (told,) = caplog.records
    assert "knows no locks (No locks available)" in told.getMessage()
    assert find_holder(tmp_path) is None


def test_other_errors_are_raised(tmp_path, monkeypatch):
    def fail(descriptor, flags):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "lockf", fail)
    (tmp_path / "lock").touch()
    for ask in (lock_directory, find_holder):
        with pytest.raises(OSError, match="Input/output error"):
            ask(tmp_path)


def test_a_full_disk_names_the_lock(tmp_path, monkeypatch):
    def full(descriptor, data, place):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=f"bytes are needed and .* are free: '{tmp_path}/lock'"):
        lock_directory(tmp_path)
    monkeypatch.undo()
    lock_directory(tmp_path)()


def test_if_the_main_process_is_refused_no_process_continues(tmp_path, monkeypatch):
    monkeypatch.setattr(directory_lock, "is_main_process", lambda: False)
    lock_directory(tmp_path)()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    failed = {"what": f"locking {tmp_path}", "failure": OSError("no room")}
    monkeypatch.setattr(exchange, "_gather", lambda mine: np.array([pack_message(**failed), mine]))
    with pytest.raises(RuntimeError, match="locking .* failed on process 0, whose own .*no room"):
        lock_directory(tmp_path)
    assert not list(tmp_path.iterdir())


def in_a_thread(do):
    """Call a function in a thread of its own, and give what it raised."""
    raised = []

    def run():
        try:
            do()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


def test_another_thread_may_record_but_not_train(tmp_path):
    release = lock_directory(tmp_path)
    (refused,) = in_a_thread(lambda: lock_directory(tmp_path))
    assert isinstance(refused, DirectoryInUse)
    assert f"{tmp_path} is in use: another thread of this process" in str(refused)
    assert not in_a_thread(lambda: directory_lock.lock_for_recording(tmp_path)())
    release()
    assert not in_a_thread(lambda: lock_directory(tmp_path)())
    again = directory_lock.lock_for_recording(tmp_path)  # who records keeps none from training
    assert not in_a_thread(lambda: lock_directory(tmp_path)())
    again()
    assert find_holder(tmp_path) is None


@pytest.mark.parametrize("holder", [False, True], ids=["removed", "taken by another"])
def test_a_removed_lock_is_noticed(short, tmp_path, holder):
    release = lock_directory(tmp_path)
    release.check()
    (tmp_path / "lock").unlink()
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    what = "was removed while the run had it: another process may train there"
    if holder:
        with subprocess.Popen(command, **pipes) as other:
            other.stdout.readline()
            said = rf"was replaced by another file .* pid {other.pid} on \S+ .* trains there now"
            with pytest.raises(DirectoryInUse, match=said):
                release.check()
            other.kill()
            other.stdin.close()
        what = "was replaced by another file while the run had it: another process may train"
    with pytest.raises(DirectoryInUse, match=what) as raised:
        release.check()
    assert "nothing is saved any more" in str(raised.value)
    release()
    again = lock_directory(tmp_path)
    again.check()
    again()


def test_without_locks_a_removed_file_is_not_noticed(tmp_path, monkeypatch):
    def unknown(descriptor, flags):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unknown)
    taken = lock_directory(tmp_path)
    (tmp_path / "lock").unlink()
    taken.check()
    taken()
