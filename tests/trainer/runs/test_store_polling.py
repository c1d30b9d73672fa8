"""Who looks at a store in the midst of training waits for no answer for long."""

import contextlib
import itertools
import os
import signal
import socket
import threading
import time

import jax.numpy as jnp
import pytest

import hooks
import trainer
from trainer.runs import Run, Store, Unreachable, recorder, store_polling
from trainer.runs.store_polling import StorePoller


@pytest.fixture
def onlooker(url):
    with contextlib.closing(StorePoller(url)) as made:
        yield made


@pytest.fixture
def looks(none_outlives):
    """See that no thread that asks outlives its test."""
    yield
    none_outlives("entracte-look")


@pytest.fixture
def freeze(database):
    """Give a function that freezes what serves others now, and one that lets all go on."""
    frozen = []
    with Store(database) as store:
        ((own,),) = store.connection.execute("SELECT pg_backend_pid()")

        def begin():
            asking = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            for (pid,) in store.connection.execute(asking):
                if pid != own:
                    os.kill(pid, signal.SIGSTOP)
                    frozen.append(pid)
            return list(frozen)

        def end():
            while frozen:
                os.kill(frozen.pop(), signal.SIGCONT)

        yield begin, end
        end()


def test_it_gives_what_the_store_says_over_one_connection(url, store, onlooker, looks):
    store.write_records("one", 1, 14, {"loss": 0.5})
    assert [record.value for record in onlooker.ask(Store.records, "one", ["loss"])] == [0.5]
    first = onlooker.ask(lambda store: store)
    assert onlooker.ask(lambda store: store) is first
    onlooker.close()
    assert onlooker.ask(lambda store: store) is not first


@pytest.mark.parametrize("error", [Unreachable("no"), TimeoutError("late"), KeyError("none")])
def test_what_fails_is_raised_and_the_store_is_opened_anew(store, onlooker, looks, error):
    def fail(store):
        opened.append(store)
        raise error

    opened = []
    with pytest.raises(type(error)) as raised:
        onlooker.ask(fail)
    assert raised.value is error
    assert onlooker.ask(lambda store: store) is not opened[0]


def test_a_store_that_is_not_there_is_not_made(tmp_path, looks):
    with contextlib.closing(StorePoller(f"sqlite:///{tmp_path}/none.sqlite")) as onlooker:
        for _ in range(2):
            with pytest.raises(FileNotFoundError, match="there is no store"):
                onlooker.ask(Store.runs)
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_frozen_is_waited_for_once(
    database, looks, freeze, eventually, monkeypatch
):
    monkeypatch.setattr(store_polling, "PATIENCE", 0.1)
    begin, end = freeze
    onlooker = StorePoller(database)
    eventually(lambda: _answers(onlooker))
    assert len(begin()) == 1
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"gives no answer in 0\.1 s"):
        onlooker.ask(Store.runs)
    for _ in range(100):
        with pytest.raises(Unreachable, match="has not answered yet"):
            onlooker.ask(Store.runs)
    assert time.monotonic() - began < 1
    end()
    eventually(lambda: _answers(onlooker))
    assert len(begin()) == 1  # the same connection, no other
    with pytest.raises(Unreachable, match="gives no answer"):
        onlooker.ask(Store.runs)
    onlooker.close()
    end()  # the connection is closed as soon as it says something: see `looks`


def _answers(onlooker):
    with contextlib.suppress(Unreachable):
        return onlooker.ask(Store.runs) == []
    return False


def test_a_server_that_is_frozen_does_not_hold_up_training(
    state, phase, database, tmp_path, looks, freeze, monkeypatch, soon, caplog
):
    monkeypatch.setattr(store_polling, "PATIENCE", 0.2)
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
    late = threading.Timer(20, end)  # else a run that is held up is so for ever
    late.start()
    try:
        trainer.fit(state, phase, epochs=9, hooks=[hooks.observe(freeze_at_3), *chain])
    finally:
        late.cancel()
    assert max(after - before for before, after in itertools.pairwise(seconds)) < 5
    assert caplog.text.count("cannot be read") == 1


def test_a_server_that_says_nothing_does_not_hold_up_a_run_that_goes_on(
    state, tmp_path, looks, monkeypatch
):
    """Whether a commit was asked for that is gone since is not known then, and the next one is."""
    monkeypatch.setattr(store_polling, "PATIENCE", 0.1)
    monkeypatch.setattr(Run, "_check", lambda run, **named: None)  # which is done before training
    monkeypatch.setattr(recorder, "CLOSING", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/a"
        asking = hooks.request_evaluation(Run(tmp_path / "one", store=url), "full")
        memory = {"request_evaluation/full": {"wanted": 2}}
        began = time.monotonic()
        asking.parts[0](state.replace(epoch=jnp.int32(3), hook_state=memory), {})  # at the start
        assert time.monotonic() - began < 1.5  # a connection alone is waited for 2 s
        for part in asking.parts:
            if part.close:
                part.close()
