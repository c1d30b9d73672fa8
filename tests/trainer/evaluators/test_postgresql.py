"""Evaluators on a server that is killed while they work."""

import logging
import signal
import threading

import _postgres
import pytest

from trainer.evaluators import Suite, WorkerSettings, list_workers, work
from trainer.runs import Store, requests
from trainer.runs.run_directory import describe_checkpoint


@pytest.fixture
def server():
    if _postgres.programs() is None:
        pytest.skip("no PostgreSQL: `initdb` and `postgres` are neither in PATH nor where they go")
    made = _postgres.Server()
    yield made
    made.close()


def test_a_server_that_is_killed_and_comes_back(server, project, start, val, caplog, until):
    url = server.url()
    with Store(url) as store:
        store.register("one", directory=str(project.run), host="", pid=1, time=0.0)
        for epoch in (1, 2):
            row = describe_checkpoint(project.run, epoch)
            store.write_checkpoint("one", row)
            requests.create_request(
                store, "one", epoch, "digits", checksum=row.checksum, time=epoch
            )

    def come_back():
        until(lambda: "waiting until it is back" in caplog.text)
        server.start()
        over.wait()  # it ends with the thread that started it

    def kill(state, metrics):
        if int(state.epoch) == 1:
            server.stop(signal.SIGKILL)
            threads.append(threading.Thread(target=come_back, daemon=True))
            threads[0].start()
        return state

    threads, over = [], threading.Event()
    suite = Suite("digits", start, val, hooks=lambda folder: kill)
    with caplog.at_level(logging.INFO, "entracte"):
        assert work(url, suite, WorkerSettings(pause=0.02), idle=0) == (2, 0, 0, 0)
    assert caplog.text.count("waiting until it is back") == 1
    assert "is back after" in caplog.text
    with Store(url) as store:
        assert requests.list_results(store, "one").keys() == {("digits", 1), ("digits", 2)}
        assert [request.tries for request in requests.list_requests(store)] == [1, 1]
        assert list_workers(store) == []
    over.set()
    threads[0].join()
