"""Values that are computed once, also on several threads."""

import threading
from concurrent import futures

import pytest

from trainer.host.computed_once import ComputedOnce


def test_threads_that_ask_at_once_share_one_value():
    began, go = threading.Event(), threading.Event()

    def compute():
        began.set()
        assert go.wait(60)
        return object()

    value = ComputedOnce(compute)
    with futures.ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(value.get) for _ in range(3)]
        assert began.wait(60)
        assert not value.known
        go.set()
        assert len({id(one.result(60)) for one in asked}) == 1
    assert value.known


def test_after_an_error_the_next_one_tries_again():
    results = iter([1 / 3, None])
    tries = []

    def compute():
        tries.append(next(results))
        if len(tries) == 1:
            raise RuntimeError("no memory")
        return "compiled"

    value = ComputedOnce(compute)
    with pytest.raises(RuntimeError, match="no memory"):
        value.get()
    assert not value.known
    assert [value.get(), value.get(), len(tries)] == ["compiled", "compiled", 2]
