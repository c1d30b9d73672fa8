"""Prefetching: the right results, computed ahead, and no error lost."""

import gc
import threading

import pytest

from trainer.data.iteration.index_loader import Prefetcher


def test_the_next_result_is_computed_ahead():
    begun = threading.Event()

    def work(key):
        if key == 2:
            begun.set()
        return -key

    ahead = Prefetcher(work)
    assert ahead(1, then=2) == -1
    assert begun.wait(30)
    assert ahead(2, then=3) == -2


def test_each_predicted_result_is_computed_once():
    keys = []
    ahead = Prefetcher(lambda key: keys.append(key))
    for key in range(4):
        ahead(key, then=key + 1)
    ahead(4, then=0)
    ahead(0, then=1)
    assert sorted(keys[:6]) == [0, 0, 1, 2, 3, 4]


def test_a_result_that_was_not_predicted_is_computed():
    ahead = Prefetcher(lambda key: key * 10)
    assert [ahead(1, then=2), ahead(7, then=8), ahead(7, then=8)] == [10, 70, 70]


def test_an_error_is_raised_by_the_call_for_its_result():
    def work(key):
        if key == 1:
            raise OSError("the disk is gone")
        return key

    ahead = Prefetcher(work)
    assert ahead(0, then=1) == 0
    with pytest.raises(OSError, match="the disk is gone"):
        ahead(1, then=2)
    assert ahead(2, then=3) == 2
    assert ahead(0, then=1) == 0
    assert ahead(4, then=5) == 4  # the failure of 1 is nobody's, as 1 was not asked for


def test_the_thread_ends_with_its_object():
    threads = []
    ahead = Prefetcher(lambda key: threads.append(threading.current_thread()))
    ahead(0, then=1)
    del ahead
    gc.collect()
    threads[0].join(30)
    assert not threads[0].is_alive()
    assert threads[0] is not threading.current_thread()
