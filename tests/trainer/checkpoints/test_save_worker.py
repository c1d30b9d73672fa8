import logging
import threading

import pytest

from trainer.checkpoints import save_worker as workers
from trainer.checkpoints.arrays import two_threads
from trainer.checkpoints.save_worker import SaveWorker


def test_one_task_at_a_time_in_order():
    worker, done, gate = SaveWorker("test"), [], threading.Event()
    worker.start(lambda: (gate.wait(10), done.append(1)))
    threading.Timer(0.05, gate.set).start()  # while `start` waits for the first task
    worker.start(lambda: done.append(2))
    worker.join()
    assert done == [1, 2]


def test_checking_does_not_wait():
    worker, gate, opened = SaveWorker("test"), threading.Event(), []
    worker.start(lambda: opened.append(gate.wait(10)))
    worker.check()
    gate.set()
    worker.wait()
    assert opened == [True]  # had `check` waited, the task would have given up on the gate


@pytest.mark.parametrize("asking", ["start", "check", "wait"])
def test_a_failure_is_raised_once_with_a_note(asking):
    worker, failure = SaveWorker("test"), KeyError("x")

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


def test_seconds_include_the_task_in_progress():
    worker, gate = SaveWorker("test"), threading.Event()
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
    slow, failing = SaveWorker("slow"), SaveWorker("failing")
    slow.start(lambda: (gate.wait(10), done.append(1)))
    failing.start(lambda: 1 / 0)
    gate.set()
    workers._finish()
    assert done == [1]
    assert "failing failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(ZeroDivisionError):
        failing.wait()


class WordlessError(Exception):
    """A failure for which there is no memory to say more."""

    def add_note(self, note):
        raise MemoryError


def test_a_thread_that_dies_without_a_result_is_an_error_at_once(monkeypatch):
    monkeypatch.setattr(workers, "_run", lambda task: None)
    worker = SaveWorker("test")
    worker.start(lambda: None, "while failing")
    with pytest.raises(RuntimeError, match="the thread of test died without a result") as raised:
        worker.wait()
    assert raised.value.__notes__ == ["while failing"]
    worker.wait()


def test_a_failure_without_memory_for_a_note_is_still_raised():
    worker, failure = SaveWorker("test"), WordlessError()

    def fail():
        raise failure

    worker.start(fail)
    with pytest.raises(WordlessError):
        worker.wait()


def test_without_memory_for_a_thread_none_is_started(monkeypatch):
    def refuse(*arguments):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(two_threads.mmap, "mmap", refuse)
    worker = SaveWorker("test")
    with pytest.raises(MemoryError, match="no memory left for a thread") as raised:
        worker.start(lambda: None, "while saving")
    assert raised.value.__notes__ == ["while saving"]
    worker.wait()


@pytest.mark.parametrize("asking", ["start", "check", "wait"])
def test_a_task_that_exceeds_its_limit_is_abandoned(asking):
    worker, gate, told = (
        SaveWorker("test", time_limit=0.05, remedy=": mend it"),
        threading.Event(),
        [],
    )
    worker.start(lambda: (gate.wait(30), told.append(worker.is_abandoned())), "while hanging")
    task = worker._task
    task.thread.join(0.06)
    ask = (lambda: worker.start(lambda: None)) if asking == "start" else getattr(worker, asking)
    with pytest.raises(TimeoutError, match=r"limit of 0\.05 seconds: mend it") as raised:
        ask()
    assert raised.value.__notes__ == ["while hanging"]
    worker.check()
    worker.wait()
    workers._finish()  # the end of the process waits for it no more
    with pytest.raises(RuntimeError, match="was abandoned while hanging and still runs"):
        worker.start(lambda: None)
    gate.set()
    task.thread.join(10)
    assert told == [True]
    worker._limit = None
    worker.start(lambda: told.append(worker.is_abandoned()))
    worker.wait()
    assert told == [True, False]


def test_a_task_within_its_limit_is_left_alone():
    worker = SaveWorker("test", time_limit=30)
    worker.start(lambda: None)
    worker.check()
    worker.wait()
