import logging
import threading

import pytest

from trainer.checkpoints import worker as workers
from trainer.checkpoints.worker import Worker


def test_one_task_at_a_time_in_order():
    worker, done, gate = Worker("test"), [], threading.Event()
    worker.start(lambda: (gate.wait(10), done.append(1)))
    gate.set()
    worker.start(lambda: done.append(2))
    worker.join()
    assert done == [1, 2]


def test_checking_does_not_wait():
    worker, gate = Worker("test"), threading.Event()
    worker.start(lambda: gate.wait(10))
    worker.check()
    gate.set()
    worker.wait()


@pytest.mark.parametrize("asking", ["start", "check", "wait"])
def test_a_failure_is_raised_once_as_it_was_with_a_note(asking):
    worker, failure = Worker("test"), KeyError("x")

    def fail():
        raise failure

    worker.start(fail, "while failing")
    worker.join()
    ask = (lambda: worker.start(lambda: None)) if asking == "start" else getattr(worker, asking)
    with pytest.raises(KeyError) as raised:
        ask()
    assert raised.value is failure
    assert failure.__notes__ == ["while failing"]
    worker.check()
    worker.wait()


def test_seconds_count_what_is_under_way():
    worker, gate = Worker("test"), threading.Event()
    assert worker.seconds == 0
    worker.start(lambda: gate.wait(10))
    before = worker.seconds
    assert 0 < before < worker.seconds
    gate.set()
    worker.join()
    assert worker.seconds == worker.seconds > before


def test_at_the_end_of_the_process_tasks_are_finished_and_failures_logged(caplog):
    caplog.set_level(logging.ERROR, "entracte")
    done, gate = [], threading.Event()
    slow, failing = Worker("slow"), Worker("failing")
    slow.start(lambda: (gate.wait(10), done.append(1)))
    failing.start(lambda: 1 / 0)
    gate.set()
    workers._finish()
    assert done == [1]
    assert "failing failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(ZeroDivisionError):
        failing.wait()
