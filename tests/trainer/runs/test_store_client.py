"""Clients of a store: they reopen what failed, and training waits for no answer for long."""

import contextlib
import itertools
import logging
import os
import signal
import socket
import threading
import time

import jax.numpy as jnp
import pytest

import hooks
import trainer
from trainer.runs import Run, Store, Unreachable, recorder, store_client
from trainer.runs.sql.connecting import resolve_store_url
from trainer.runs.store_client import StoreClient, StorePoller, sleep_unless_stopped


@pytest.fixture
def poller(url):
    with contextlib.closing(StorePoller(url)) as made:
        yield made


@pytest.fixture
def no_leaks(none_outlives):
    """Check that no polling thread outlives its test."""
    yield
    none_outlives("entracte-poll")


@pytest.fixture
def freeze(database):
    """Return a function that freezes the server's other processes, and one that resumes them."""
    frozen = []
    with Store(database) as store:
        ((own,),) = store.connection.execute("SELECT pg_backend_pid()")

        def begin():
            query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            for (pid,) in store.connection.execute(query):
                if pid != own:
                    os.kill(pid, signal.SIGSTOP)
                    frozen.append(pid)
            return list(frozen)

        def end():
            while frozen:
                os.kill(frozen.pop(), signal.SIGCONT)

        yield begin, end
        end()


def test_all_calls_use_one_connection(url, store, poller, no_leaks):
    store.write_records("one", 1, 14, {"loss": 0.5})
    assert [record.value for record in poller.call(Store.records, "one", ["loss"])] == [0.5]
    first = poller.call(lambda store: store)
    assert poller.call(lambda store: store) is first
    poller.close()
    assert poller.call(lambda store: store) is not first


@pytest.mark.parametrize("error", [Unreachable("no"), TimeoutError("late"), KeyError("none")])
def test_a_failure_is_raised_and_the_store_is_reopened(store, poller, no_leaks, error):
    def fail(store):
        opened.append(store)
        raise error

    opened = []
    with pytest.raises(type(error)) as raised:
        poller.call(fail)
    assert raised.value is error
    assert poller.call(lambda store: store) is not opened[0]


def test_a_store_that_does_not_exist_is_not_created(tmp_path, no_leaks):
    with contextlib.closing(StorePoller(f"sqlite:///{tmp_path}/none.sqlite")) as poller:
        for _ in range(2):
            with pytest.raises(Unreachable, match="there is no store"):
                poller.call(Store.runs)
    assert not list(tmp_path.iterdir())


def test_a_frozen_server_is_waited_for_once(database, no_leaks, freeze, eventually, monkeypatch):
    monkeypatch.setattr(store_client, "POLL_SECONDS", 0.1)
    begin, end = freeze
    poller = StorePoller(database)
    eventually(lambda: _answers(poller))
    assert len(begin()) == 1
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"gives no answer in 0\.1 s"):
        poller.call(Store.runs)
    for _ in range(100):
        with pytest.raises(Unreachable, match="has not answered yet"):
            poller.call(Store.runs)
    assert time.monotonic() - began < 1
    end()
    eventually(lambda: _answers(poller))
    assert len(begin()) == 1  # the same connection, no other
    with pytest.raises(Unreachable, match="gives no answer"):
        poller.call(Store.runs)
    poller.close()
    end()  # the connection is closed as soon as it answers: see `no_leaks`


def _answers(poller):
    with contextlib.suppress(Unreachable):
        return poller.call(Store.runs) == []
    return False


def test_a_frozen_server_does_not_delay_training(
    state, phase, database, tmp_path, no_leaks, freeze, monkeypatch, soon, caplog
):
    monkeypatch.setattr(store_client, "POLL_SECONDS", 0.2)
    begin, end = freeze
    run = Run(tmp_path / "one", store=database)
    seconds = []

    def freeze_at_3(state, metrics):
        if int(state.epoch) == 3:
            assert begin()
        seconds.append(time.monotonic())
        return state

    chain = [
        hooks.collect_scores(run, "full"),
        hooks.request_evaluation(run, "full"),
        hooks.save_checkpoints(run.directory, max_cost=None, keep=9),
    ]
    late = threading.Timer(20, end)  # else a delayed run would wait for ever
    late.start()
    try:
        trainer.fit(state, phase, epochs=9, hooks=[hooks.observe(freeze_at_3), *chain])
    finally:
        late.cancel()
    assert max(after - before for before, after in itertools.pairwise(seconds)) < 5
    assert caplog.text.count("cannot be read") == 1


def test_a_silent_server_does_not_delay_a_run_that_resumes(state, tmp_path, no_leaks, monkeypatch):
    """Whether a removed checkpoint was requested is not known then, and the next one is."""
    monkeypatch.setattr(store_client, "POLL_SECONDS", 0.1)
    monkeypatch.setattr("trainer.runs.run.find_run_name", lambda url, folder, name, **_: name)
    monkeypatch.setattr(recorder, "CLOSE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/a"
        requesting = hooks.request_evaluation(Run(tmp_path / "one", store=url), "full")
        hook_state = {"request_evaluation/full": {"wanted": 2}}
        began = time.monotonic()
        requesting.parts[0](
            state.replace(epoch=jnp.int32(3), hook_state=hook_state), {}
        )  # at the start
        assert time.monotonic() - began < 1.5  # a connection alone is waited for 2 s
        for part in requesting.parts:
            if part.close:
                part.close(None)


# --- retries


@pytest.fixture
def client(tmp_path):
    Store(tmp_path).close()
    client = StoreClient(resolve_store_url(tmp_path))
    yield client
    client.close()


def never():
    return False


def test_a_store_that_is_away_is_called_again_which_is_logged_once(client, caplog):
    stores = []

    def away_at_first(store, what):
        stores.append(store)
        if len(stores) < 4:
            raise Unreachable("no answer")
        return what

    with caplog.at_level(logging.INFO, "entracte"):
        assert client.call_with_retry(away_at_first, "there", pause=0.001, stop=never) == "there"
    assert len({id(store.connection) for store in stores}) == 4  # reopened each time
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0] == "no answer: waiting until it is back"
    assert "is back after 0 s" in messages[1]


def test_it_stops_trying_when_it_should(client):
    calls = []

    def away(store):
        calls.append(store)
        raise Unreachable("no answer")

    assert client.call_with_retry(away, pause=0.001, stop=lambda: len(calls) > 2) is None
    assert len(calls) == 3


def test_a_file_that_disappears_is_away_until_it_is_back(client, tmp_path):
    file = tmp_path / "store.sqlite"
    client.close()
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(Unreachable, match="there is no store"):
        client.call(Store.runs)
    os.rename(tmp_path / "elsewhere", file)
    assert client.call(Store.runs) == []


def test_other_failures_are_raised(client):
    with pytest.raises(KeyError, match="no run 'x'"):
        client.call_with_retry(Store.run, "x", pause=0.001, stop=never)


def test_a_pause_ends_when_it_should_stop():
    checks = []
    sleep_unless_stopped(1000, lambda: checks.append(1) or len(checks) > 1)
    assert len(checks) == 2
