"""A block that takes too long is stopped, and the process's own alarms are restored."""

import contextlib
import signal
import threading
import time

import pytest

from trainer.evaluators import WorkerSettings, evaluator, work
from trainer.evaluators.suite import Suite
from trainer.evaluators.time_limits import limit_time
from trainer.runs import requests


def suite_of(start, val, look):
    def hook(state, metrics):
        look(int(state.epoch))
        return state

    return Suite("digits", start, val, hooks=lambda folder: hook)


def spin():
    end = time.monotonic() + 20
    while time.monotonic() < end:
        pass


@pytest.mark.parametrize("hang", [threading.Event().wait, spin, lambda: time.sleep(20)])
def test_a_wait_in_python_is_stopped(hang):
    before = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"its limit of 0\.05 seconds"), limit_time(0.05):
        hang()
    assert time.monotonic() - began < 10
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_block_that_ends_in_time_is_not_disturbed_later():
    for limit in (60, None):
        with limit_time(limit):
            pass
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_another_thread_has_no_limit():
    def run():
        with limit_time(0.01):
            time.sleep(0.05)
        done.append(True)

    done = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done


def test_a_request_that_hangs_fails_and_the_worker_continues(project, store, start, val, caplog):
    suite = suite_of(start, val, lambda epoch: epoch == 2 and spin())
    project.request(1)
    assert work(project.folder, suite, idle=0).done == 1  # which compiles, however long it takes
    project.request(2, 3)
    assert work(project.folder, suite, WorkerSettings(limit=2.0, tries=1), idle=0) == (1, 1, 0, 0)
    hung, after = requests.list_requests(store, "one")[1:]
    assert (hung.state, after.state) == ("failed", "done")
    assert hung.error.startswith("TimeoutError: it took longer than its limit of 2 seconds")


def test_a_request_that_cannot_be_stopped_is_left_to_others(
    project, store, start, val, monkeypatch, caplog
):
    monkeypatch.setattr(evaluator, "limit_time", lambda seconds: contextlib.nullcontext())
    claimed = []

    def hang(epoch):
        end = time.monotonic() + 10
        while not claimed and time.monotonic() < end:
            if request := requests.claim_request(store, "other", ["digits"], lease=60):
                claimed.append(request)
            time.sleep(0.01)

    project.request(1)
    suite = suite_of(start, val, hang)
    assert work(project.folder, suite, WorkerSettings(lease=0.2, limit=0.1), idle=0) == (0, 0, 0, 1)
    assert requests.finish_request(store, claimed[0], {"val/loss": 1.0})
    assert "or is no longer extended" in caplog.text
