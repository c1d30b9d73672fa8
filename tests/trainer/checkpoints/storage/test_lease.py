"""One process has the lease of a run in a bucket, and one that is gone loses it."""

import json
import os
import subprocess
import sys
import threading
import time
import warnings

import pytest

from trainer.checkpoints.storage import lease
from trainer.checkpoints.storage.bucket_path import BucketError, BucketPath
from trainer.checkpoints.storage.directory_lock import DirectoryInUse
from trainer.checkpoints.storage.lease import check_lease, find_lease_holder, take_lease

CHILD = """
import sys, time
from trainer.checkpoints.storage.lease import take_lease
from trainer.checkpoints.storage.run_paths import to_run_path

take_lease(to_run_path(sys.argv[1]))
print("taken", flush=True)
time.sleep(100)
"""


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    """A tenth of the times of a real run, or less."""
    for name, seconds in (("RENEW", 0.2), ("TRUST", 1.0), ("STALE", 2.0), ("SETTLE", 0.1)):
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)


def write_lease(bucket, **content):
    """Write what another machine's process would have written."""
    (bucket / "lock").write_bytes(json.dumps({"holder": "pid 7 on x", **content}).encode())


def test_it_is_taken_once_renewed_and_released(bucket):
    held = take_lease(bucket)
    assert "pid" in (find_lease_holder(bucket) or "")
    assert find_lease_holder(bucket, by_others=True) is None
    assert held.by_this_thread()
    with pytest.raises(DirectoryInUse, match="of this process saves there"):
        take_lease(bucket)
    first = (bucket / "lock").read_bytes()
    time.sleep(0.6)
    assert (bucket / "lock").read_bytes() != first
    held.check()
    check_lease(bucket)
    held()
    held()
    assert find_lease_holder(bucket) is None
    assert not (bucket / "lock").exists()
    take_lease(bucket)()


def test_one_that_is_renewed_is_respected(bucket):
    ended = threading.Event()

    def renew():
        number = 0
        while not ended.wait(0.3):
            write_lease(bucket, renewals=(number := number + 1))

    write_lease(bucket)
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(DirectoryInUse, match="is in use: pid 7 on x trains there"):
            take_lease(bucket)
    finally:
        ended.set()
        thread.join()
    assert find_lease_holder(bucket) == "pid 7 on x trains there"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"holder": 5}', b"\x00\xff", None])
def test_one_that_is_not_renewed_is_taken_when_it_is_stale(bucket, content, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.4)
    write_lease(bucket)
    if content is not None:
        (bucket / "lock").write_bytes(content)
    began = time.monotonic()
    take_lease(bucket)()
    assert time.monotonic() - began >= lease.STALE_SECONDS


def test_one_of_a_killed_process_of_this_machine_is_taken_at_once(bucket, monkeypatch):
    command = [sys.executable, "-c", CHILD, str(bucket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "taken\n"
        assert f"pid {child.pid} on" in find_lease_holder(bucket)
        child.kill()
    assert find_lease_holder(bucket) is None
    monkeypatch.setattr(lease, "STALE_SECONDS", 1000.0)
    take_lease(bucket)()


def test_one_of_a_process_whose_parent_did_not_ask_how_it_ended_is_taken(bucket, monkeypatch):
    command = [sys.executable, "-c", CHILD, str(bucket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "taken\n"
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        monkeypatch.setattr(lease, "STALE_SECONDS", 1000.0)
        take_lease(bucket)()


def test_one_is_still_held_when_the_answer_to_a_renewal_was_lost(bucket, monkeypatch):
    held, replace, lost = take_lease(bucket), BucketPath.replace, []

    def lose_answer(self, *arguments):
        lost.append(replace(self, *arguments))
        monkeypatch.setattr(BucketPath, "replace", replace)
        raise BucketError("no answer")

    monkeypatch.setattr(BucketPath, "replace", lose_answer)
    time.sleep(0.7)
    held.check()
    written = json.loads((bucket / "lock").read_bytes())
    assert lost[0]
    assert written["renewals"] >= 2
    held()
    assert not (bucket / "lock").exists()


def test_one_that_this_process_could_not_release_is_taken_again_at_once(bucket, monkeypatch):
    held = take_lease(bucket)
    with monkeypatch.context() as patch:
        patch.setattr(BucketPath, "replace", fail)  # before a request is made
        held()
    assert (bucket / "lock").exists()
    monkeypatch.setattr(lease, "STALE_SECONDS", 1000.0)
    take_lease(bucket)()


def test_an_interrupt_while_it_is_taken_leaves_none(bucket, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lease.time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            take_lease(bucket)
    assert not (bucket / "lock").exists()
    take_lease(bucket)()


def test_a_forked_child_releases_nothing(bucket):
    held = take_lease(bucket)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fork beside JAX's threads
        child = os.fork()
    if child == 0:
        held()
        held.check()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    time.sleep(0.5)
    held.check()
    assert find_lease_holder(bucket)
    held()


def test_who_lost_it_saves_nothing_more(bucket):
    held = take_lease(bucket)
    write_lease(bucket)
    time.sleep(0.5)
    with pytest.raises(DirectoryInUse, match=r"was lost .*: pid 7 on x trains there.*it resumes"):
        held.check()
    with pytest.raises(DirectoryInUse):
        check_lease(bucket)
    held()
    assert b"pid 7 on x" in (bucket / "lock").read_bytes()


def test_who_cannot_renew_it_saves_nothing(bucket, monkeypatch):
    held = take_lease(bucket)
    with monkeypatch.context() as patch:
        patch.setattr(BucketPath, "replace", fail)
        time.sleep(1.2)
        with pytest.raises(BucketError, match="no network"):
            held.check()
    held()


def fail(self, request, seconds=0):
    """Fail as without a network."""
    raise BucketError("no network")
