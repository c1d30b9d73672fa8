"""A store that goes away and comes back."""

import logging
import os

import pytest

from trainer.evaluators.store_client import StoreClient, sleep_unless_stopped
from trainer.runs import Store, Unreachable


@pytest.fixture
def link(tmp_path):
    Store(tmp_path).close()
    link = StoreClient(str(tmp_path))
    yield link
    link.close()


def never():
    return False


def test_it_is_asked_again_and_that_is_told_once(link, caplog):
    stores = []

    def away_at_first(store, what):
        stores.append(store)
        if len(stores) < 4:
            raise Unreachable("no answer")
        return what

    with caplog.at_level(logging.INFO, "entracte"):
        assert link.call_with_retry(away_at_first, "there", pause=0.001, stop=never) == "there"
    assert len({id(store.connection) for store in stores}) == 4  # opened anew each time
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0] == "no answer: waiting until it is back"
    assert "is back after 0 s" in said[1]


def test_it_is_given_up_where_that_is_wanted(link):
    asked = []

    def away(store):
        asked.append(store)
        raise Unreachable("no answer")

    assert link.call_with_retry(away, pause=0.001, stop=lambda: len(asked) > 2) is None
    assert len(asked) == 3


def test_a_file_that_vanishes_is_away_and_comes_back(link, tmp_path):
    file = tmp_path / "store.sqlite"
    link.close()
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(Unreachable, match="there is no store"):
        link.ask(Store.runs)
    os.rename(tmp_path / "elsewhere", file)
    assert link.ask(Store.runs) == []


def test_other_failures_are_raised(link):
    with pytest.raises(KeyError, match="no run 'x'"):
        link.call_with_retry(Store.run, "x", pause=0.001, stop=never)


def test_a_pause_ends_where_there_is_no_reason_for_it():
    looks = []
    sleep_unless_stopped(1000, lambda: looks.append(1) or len(looks) > 1)
    assert len(looks) == 2
