"""A store of each kind: a file, and a database of a real server if one is installed."""

import contextlib
import threading
import time

import _crashing
import _postgres
import pytest

from trainer.runs import Run, Store, delivery, recorder

LIMIT = 30
"""Seconds that a test waits at most."""

PREFACE = """
import json, logging, os, signal, sys, time
from pathlib import Path
from trainer.runs import *
from trainer.runs import delivery, disk_queue, recorder, requests
from trainer.runs.sql import table_versions
say, hear = pipe.send, pipe.recv
"""


@pytest.fixture(scope="session")
def server():
    """A PostgreSQL server for the whole session; tests are skipped if it is not installed."""
    if _postgres.programs() is None:
        pytest.skip(
            "no PostgreSQL: `initdb` and `postgres` are neither in PATH nor in the usual folders"
        )
    made = _postgres.Server()
    yield made
    made.close()


@pytest.fixture
def database(server):
    """The URL of an empty database."""
    import psycopg

    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        connection.execute("DROP SCHEMA IF EXISTS entracte CASCADE")
    return server.url()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """The URL of an empty store, of either kind."""
    if request.param == "postgresql":
        return request.getfixturevalue("database")
    return f"sqlite:///{tmp_path}/runs/store.sqlite"


@pytest.fixture
def store(url):
    """An empty store, of either kind."""
    with Store(url) as made:
        yield made


@pytest.fixture
def run(url, tmp_path):
    """A run named `one`, in the directory `runs`."""
    made = Run(tmp_path / "runs" / "one", store=url)
    yield made
    made.close()


@pytest.fixture
def soon(monkeypatch):
    """Retry a store that is away at once, and wait for nothing at the end."""
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.02, 0.05))
    monkeypatch.setattr(recorder, "CLOSE_SECONDS", 0.2)


@pytest.fixture
def eventually():
    """Return a function that waits until a condition holds, and returns its value."""

    def wait(found, limit=LIMIT):
        deadline = time.monotonic() + limit
        while True:
            with contextlib.suppress(LookupError):
                if result := found():
                    return result
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {limit} s")
            time.sleep(0.01)

    return wait


@pytest.fixture
def none_outlives():
    """Return a function that checks that the threads of a name end."""

    def check(name):
        for thread in threading.enumerate():
            if thread.name == name:
                thread.join(10)
                assert not thread.is_alive()

    return check


@pytest.fixture(scope="session")
def _processes():
    """A server that forks processes in which everything is imported; all tests share it."""
    return _crashing.nursery()


@pytest.fixture
def start(_processes):
    """Return a function that starts a process; its code can use `say`, `hear` and the arguments."""
    started = []

    def begin(code, **given):
        here, there = _processes.Pipe()
        process = _processes.Process(target=exec, args=(PREFACE + code, {"pipe": there, **given}))
        process.start()
        there.close()
        process.say, process.poll, process.hear = here.send, here.poll, lambda: _receive(here)
        started.append((process, here))
        return process

    yield begin
    for process, here in started:
        process.kill()
        process.join(LIMIT)
        here.close()


def _receive(pipe):
    assert pipe.poll(LIMIT), f"no message within {LIMIT} s"
    return pipe.recv()
