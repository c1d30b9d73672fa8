"""A process that waits for one that failed is ended, with the reason."""

import logging
import threading

import pytest

from trainer.host import failure_watch
from trainer.host.failure_watch import FailureWatch


class Service:
    """What the processes of a run tell each other."""

    def __init__(self):
        self.told = {}

    def key_value_set(self, name, value):
        self.told[name] = value

    def key_value_dir_get(self, folder):
        return [(name, value) for name, value in self.told.items() if name.startswith(folder)]


@pytest.fixture
def service(monkeypatch):
    """The service of two processes, looked at without waiting; `ended` is set instead of ending."""
    shared = Service()
    shared.ended = threading.Event()
    monkeypatch.setattr(failure_watch, "_find_client", lambda: shared)
    monkeypatch.setattr(failure_watch, "PAUSE", 0.01)
    monkeypatch.setattr(failure_watch, "GRACE", 0.05)
    monkeypatch.setattr(failure_watch.os, "_exit", lambda status: shared.ended.set())
    return shared


def of_one_run(monkeypatch, number):
    """Make the watch of a process of a run."""
    monkeypatch.setattr(failure_watch, "_numbers", iter([number]))
    return FailureWatch()


def test_a_failure_ends_a_process_that_waits_and_not_one_that_has_left(
    service, monkeypatch, caplog
):
    failed, waiting, left = (of_one_run(monkeypatch, 3) for _ in range(3))
    left.close()
    error = OSError("no room")
    error.add_note("in phase 'train'")
    with caplog.at_level(logging.ERROR, "entracte"):
        failed.report(error)
        assert service.ended.wait(10)
    waiting.close()
    assert "process 0 failed" in caplog.text
    assert "OSError: no room; in phase 'train'" in caplog.text


def test_a_failure_of_an_earlier_run_does_not_count(service, monkeypatch):
    of_one_run(monkeypatch, 3).report(OSError("no room"))
    later = of_one_run(monkeypatch, 4)
    assert not service.ended.wait(0.2)
    later.close()


def test_a_process_that_leaves_within_the_grace_ends_by_itself(service, monkeypatch):
    monkeypatch.setattr(failure_watch, "GRACE", 60.0)
    watch = of_one_run(monkeypatch, 5)
    of_one_run(monkeypatch, 5).report(OSError("no room"))
    watch.report(RuntimeError("another process failed"))
    assert not service.ended.is_set()
    assert len(service.told) == 1
