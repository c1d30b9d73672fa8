"""Calls to a store that goes away and comes back."""

import logging
import os

import pytest

from trainer.evaluators.retrying import call_with_retry, sleep_unless_stopped
from trainer.runs import Store, Unreachable
from trainer.runs.connecting import resolve_store_url
from trainer.runs.store_client import StoreClient


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
        assert call_with_retry(client, away_at_first, "there", pause=0.001, stop=never) == "there"
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

    assert call_with_retry(client, away, pause=0.001, stop=lambda: len(calls) > 2) is None
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
        call_with_retry(client, Store.run, "x", pause=0.001, stop=never)


def test_a_pause_ends_when_it_should_stop():
    checks = []
    sleep_unless_stopped(1000, lambda: checks.append(1) or len(checks) > 1)
    assert len(checks) == 2
