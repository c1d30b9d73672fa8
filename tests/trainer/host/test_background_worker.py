"""The worker thread: order, waiting, and failures that are raised once."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from trainer.host import background_worker
from trainer.host.background_worker import BackgroundWorker


@pytest.fixture
def gate():
    """An event for which the worker's function waits."""
    return threading.Event()


def test_items_are_processed_in_order_on_another_thread():
    seen = []
    worker = BackgroundWorker(
        "seen", lambda item: seen.append((item, threading.get_ident())), max_queued=3, time_limit=60
    )
    for item in range(50):
        worker.put(item)
    worker.close()
    assert [item for item, _ in seen] == list(range(50))
    assert threading.get_ident() not in {thread for _, thread in seen}


def test_flush_waits_for_all_queued_items():
    seen = []
    worker = BackgroundWorker("seen", seen.append, max_queued=100, time_limit=60)
    for item in range(100):
        worker.put(item)
    worker.flush()
    assert len(seen) == 100
    worker.close()


def test_flush_and_close_without_items_start_no_thread():
    before = threading.active_count()
    worker = BackgroundWorker("idle", print, max_queued=1, time_limit=60)
    worker.flush()
    worker.close()
    assert threading.active_count() == before


def test_close_ends_the_thread_and_put_starts_another():
    seen = []
    worker = BackgroundWorker("again", seen.append, max_queued=1, time_limit=60)
    before = threading.active_count()
    for item in range(3):
        worker.put(item)
        worker.close()
        assert threading.active_count() == before
    assert seen == [0, 1, 2]


def test_none_is_an_item_too():
    seen = []
    worker = BackgroundWorker("none", seen.append, max_queued=1, time_limit=60)
    worker.put(None)
    worker.close()
    assert seen == [None]


@pytest.mark.parametrize("surface", ["put", "flush", "close"])
def test_a_failure_is_raised_once_by_what_comes_next(surface):
    failed = threading.Event()

    def fail(item):
        failed.set()
        raise OSError("disk full")

    worker = BackgroundWorker("fail", fail, max_queued=2, time_limit=60)
    worker.put(1)
    failed.wait()
    worker._thread.items.join()
    with pytest.raises(OSError, match="disk full") as raised:
        worker.put(2) if surface == "put" else getattr(worker, surface)()
    assert raised.value.__notes__ == ["on the worker thread of 'fail'"]
    worker.close()


def test_items_queued_behind_a_failure_are_dropped_and_later_ones_are_not(gate):
    seen = []

    def work(item):
        gate.wait()
        if item == "bad":
            raise ValueError(item)
        seen.append(item)

    worker = BackgroundWorker("work", work, max_queued=4, time_limit=60)
    for item in ("first", "bad", "behind"):
        worker.put(item)
    gate.set()
    with pytest.raises(ValueError, match="bad"):
        worker.flush()
    worker.put("later")
    worker.close()
    assert seen == ["first", "later"]


def test_put_waits_while_the_queue_is_full(gate):
    started = threading.Event()

    def work(item):
        started.set()
        gate.wait()

    worker = BackgroundWorker("slow", work, max_queued=1, time_limit=60)
    worker.put(1)
    started.wait()
    worker.put(2)
    assert worker._thread.items.full()
    gate.set()
    worker.put(3)
    worker.close()


@pytest.mark.parametrize("surface", ["check", "put", "flush", "close"])
def test_an_item_that_hangs_is_left_behind_and_reported_once(gate, surface):
    started = threading.Event()

    def hang(item):
        started.set()
        gate.wait()

    worker = BackgroundWorker("hang", hang, max_queued=1, time_limit=0.1)

    def ask():
        while surface == "check":
            worker.check()
        worker.put(3) if surface == "put" else getattr(worker, surface)()

    worker.put(1)
    worker.put(2)
    started.wait()
    with pytest.raises(TimeoutError, match="'hang' took longer than its limit of 0.1 seconds"):
        ask()
    worker.close()
    gate.set()


def test_after_one_that_hung_another_thread_takes_over(gate):
    seen = []
    worker = BackgroundWorker(
        "once", lambda item: item() or seen.append(item), max_queued=1, time_limit=0.1
    )
    worker.put(gate.wait)
    with pytest.raises(TimeoutError):
        worker.flush()
    worker.put(lambda: None)
    worker.close()
    assert len(seen) == 1
    gate.set()


def test_many_items_within_the_limit_may_take_longer_together():
    processed, began = [], time.monotonic()

    def process(item):
        time.sleep(0.1)
        processed.append(item)

    worker = BackgroundWorker("steady", process, max_queued=20, time_limit=1.0)
    for item in range(12):
        worker.put(item)
    worker.close()
    assert processed == list(range(12))
    assert time.monotonic() - began > 1.0


def test_checking_raises_a_failure_and_does_not_wait():
    def fail(item):
        raise OSError("disk full")

    worker = BackgroundWorker("fail", fail, max_queued=1, time_limit=60)
    worker.check()
    worker.put(1)
    worker._thread.items.join()
    with pytest.raises(OSError, match="disk full"):
        worker.check()
    worker.check()
    worker.close()


def test_the_thread_continues_after_any_exception():
    """As asyncio's cancellation, which is no Exception."""
    seen = []

    def work(item):
        if item == "bad":
            raise asyncio.CancelledError
        seen.append(item)

    worker = BackgroundWorker("work", work, max_queued=4, time_limit=60)
    worker.put("bad")
    with pytest.raises(asyncio.CancelledError):
        worker.flush()
    worker.put("later")
    worker.close()
    assert seen == ["later"]


def test_a_thread_that_was_left_behind_processes_nothing_more(gate):
    seen, ended = [], threading.Event()

    def work(item):
        seen.append(item)
        if item == "hangs":
            gate.wait()
            ended.set()

    worker = BackgroundWorker("work", work, max_queued=4, time_limit=0.1)
    worker.put("hangs")
    worker.put("lost")
    behind = worker._thread.thread
    with pytest.raises(TimeoutError):
        worker.flush()
    worker.put("new")
    worker.flush()
    gate.set()
    behind.join(10)
    assert not behind.is_alive()
    worker.close()
    assert seen == ["hangs", "new"]


@pytest.mark.parametrize("surface", ["flush", "close", "put"])
def test_nobody_waits_for_a_pause(monkeypatch, surface):
    monkeypatch.setattr(background_worker, "PAUSE", threading.TIMEOUT_MAX)
    seen = []
    worker = BackgroundWorker("seen", seen.append, max_queued=2, time_limit=60)
    for item in range(6):
        worker.put(item)  # waits for a place from the third or fourth on
        if surface != "put":
            getattr(worker, surface)()
            assert seen == list(range(item + 1))
    worker.close()
    assert seen == list(range(6))


def test_an_item_is_processed_though_nobody_waits(gate):
    worker = BackgroundWorker("open", lambda item: gate.set(), max_queued=1, time_limit=60)
    worker.put(1)
    assert gate.wait(60)
    worker.close()
