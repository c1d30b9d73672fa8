"""The worker thread: order, waiting, and failures that surface once."""

from __future__ import annotations

import threading

import pytest

from hooks.worker import Worker


@pytest.fixture
def gate():
    """An event for which the worker's function waits."""
    return threading.Event()


def test_items_are_worked_off_in_order_on_another_thread():
    seen = []
    worker = Worker("seen", lambda item: seen.append((item, threading.get_ident())), waiting=3)
    for item in range(50):
        worker.put(item)
    worker.close()
    assert [item for item, _ in seen] == list(range(50))
    assert threading.get_ident() not in {thread for _, thread in seen}


def test_flush_waits_for_all_that_is_queued():
    seen = []
    worker = Worker("seen", seen.append, waiting=100)
    for item in range(100):
        worker.put(item)
    worker.flush()
    assert len(seen) == 100
    worker.close()


def test_flush_and_close_without_items_start_no_thread():
    before = threading.active_count()
    worker = Worker("idle", print, waiting=1)
    worker.flush()
    worker.close()
    assert threading.active_count() == before


def test_close_ends_the_thread_and_put_starts_another():
    seen = []
    worker = Worker("again", seen.append, waiting=1)
    before = threading.active_count()
    for item in range(3):
        worker.put(item)
        worker.close()
        assert threading.active_count() == before
    assert seen == [0, 1, 2]


def test_none_is_an_item_too():
    seen = []
    worker = Worker("none", seen.append, waiting=1)
    worker.put(None)
    worker.close()
    assert seen == [None]


@pytest.mark.parametrize("surface", ["put", "flush", "close"])
def test_a_failure_is_raised_once_by_what_comes_next(surface):
    failed = threading.Event()

    def fail(item):
        failed.set()
        raise OSError("disk full")

    worker = Worker("fail", fail, waiting=2)
    worker.put(1)
    failed.wait()
    worker._items.join()
    with pytest.raises(OSError, match="disk full") as raised:
        worker.put(2) if surface == "put" else getattr(worker, surface)()
    assert raised.value.__notes__ == ["on the worker thread of 'fail'"]
    worker.close()


def test_what_waits_behind_a_failure_is_skipped_and_what_comes_later_is_not(gate):
    seen = []

    def work(item):
        gate.wait()
        if item == "bad":
            raise ValueError(item)
        seen.append(item)

    worker = Worker("work", work, waiting=4)
    for item in ("first", "bad", "behind"):
        worker.put(item)
    gate.set()
    with pytest.raises(ValueError, match="bad"):
        worker.flush()
    worker.put("later")
    worker.close()
    assert seen == ["first", "later"]


def test_put_waits_where_items_come_too_fast(gate):
    started = threading.Event()

    def work(item):
        started.set()
        gate.wait()

    worker = Worker("slow", work, waiting=1)
    worker.put(1)
    started.wait()
    worker.put(2)
    assert worker._items.full()
    gate.set()
    worker.put(3)
    worker.close()
