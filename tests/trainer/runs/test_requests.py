"""A request is asked for once, is one worker's at a time, and is answered once."""

import itertools
import math

import pytest

from trainer.runs import requests
from trainer.runs.requests import claim, create_request, extend, fail_request, finish, list_results

FULL = ["full"]


def asked(store, epoch=1, suite="full", checksum="abc"):
    """Ask for an epoch of run `one`."""
    create_request(store, "one", epoch, suite, checksum=checksum, time=100.0 + epoch)


def expire(store):
    """Let all leases run out."""
    store.connection.execute("UPDATE requests SET lease = ?", (store.connection.now() - 1,))


def states(store):
    """Give the state of each request by epoch."""
    return {request.epoch: request.state for request in requests.list_requests(store, "one")}


def test_a_request_goes_from_open_to_done(store):
    asked(store)
    before = store.connection.now()
    request = claim(store, "me", ["other", "full"], lease=60.0)
    assert request[:8] == ("one", 1, "full", "abc", "claimed", 101.0, 1, "me")
    assert before + 59 < request.lease < before + 70
    assert claim(store, "you", FULL, lease=60.0) is None
    assert finish(store, request, {"full/loss": 0.5, "nan": math.nan, "inf": -math.inf})
    (done,) = requests.list_requests(store)
    assert (done.state, done.worker, done.error) == ("done", "me", "")
    assert done.finished >= before
    found = list_results(store, "one")["full", 1]
    assert math.isnan(found.pop("nan"))
    assert found == {"full/loss": 0.5, "inf": -math.inf}
    assert not finish(store, request, {"full/loss": 0.6})
    assert not fail_request(store, request, "late", final=True)
    assert not extend(store, request, lease=60.0)
    assert list_results(store, "one")["full", 1]["full/loss"] == 0.5


def test_to_ask_again_changes_nothing_unless_the_checkpoint_changed(store):
    asked(store)
    request = claim(store, "me", FULL, lease=60.0)
    finish(store, request, {"loss": 0.5, "old": 1.0})
    before = requests.list_requests(store)
    asked(store)
    assert requests.list_requests(store) == before
    asked(store, checksum="another")
    assert states(store) == {1: "open"}
    assert list_results(store, "one") == {}
    again = claim(store, "me", FULL, lease=60.0)
    assert (again.tries, again.checksum) == (1, "another")
    assert finish(store, again, {"loss": 0.25})
    assert list_results(store, "one") == {("full", 1): {"loss": 0.25}}


def test_an_answer_about_a_checkpoint_that_was_replaced_is_refused(store):
    asked(store)
    request = claim(store, "me", FULL, lease=60.0)
    asked(store, checksum="another")
    assert not extend(store, request, lease=60.0)
    assert not finish(store, request, {"loss": 0.5})
    current = claim(store, "me", FULL, lease=60.0)
    assert current[6:8] == request[6:8]  # the same try, the same worker
    assert not finish(store, request, {"loss": 0.5})
    assert finish(store, current, {"loss": 0.25})


def test_the_oldest_is_taken_first_and_only_what_one_can_run(store):
    for epoch in (3, 1, 2):
        asked(store, epoch)
    asked(store, 0, suite="other")
    assert claim(store, "me", [], lease=60.0) is None
    taken = [claim(store, "me", FULL, lease=60.0) for _ in range(4)]
    assert [request and request.epoch for request in taken] == [1, 2, 3, None]


def test_a_lease_that_ran_out_is_anothers_to_take(store):
    asked(store)
    first = claim(store, "me", FULL, lease=60.0)
    assert extend(store, first, lease=120.0)
    assert claim(store, "you", FULL, lease=60.0) is None
    expire(store)
    second = claim(store, "you", FULL, lease=60.0)
    assert (second.worker, second.tries) == ("you", 2)
    for late in (
        lambda: finish(store, first, {"loss": 9.0}),
        lambda: extend(store, first, lease=60.0),
        lambda: fail_request(store, first, "late", final=True),
    ):
        assert not late()
    expire(store)  # but nobody took it
    assert finish(store, second, {"loss": 0.5})
    assert list_results(store, "one") == {("full", 1): {"loss": 0.5}}


def test_a_worker_of_the_same_name_is_told_apart_by_the_try(store):
    asked(store)
    first = claim(store, "me", FULL, lease=60.0)
    expire(store)
    second = claim(store, "me", FULL, lease=60.0)
    assert not finish(store, first, {"loss": 9.0})
    assert finish(store, second, {"loss": 0.5})


@pytest.mark.parametrize("dies", [True, False])
def test_tries_are_bounded(store, dies):
    asked(store)
    for number in range(1, 4):
        request = claim(store, "me", FULL, lease=60.0, tries=3)
        assert request.tries == number
        if dies:
            expire(store)
        else:
            assert fail_request(store, request, f"error {number}", final=False)
            assert states(store) == {1: "open"}
    assert claim(store, "me", FULL, lease=60.0, tries=3) is None
    (failed,) = requests.list_requests(store)
    assert failed.state == "failed"
    assert failed.error == ("each of its workers died or hung" if dies else "error 3")
    assert failed.finished
    assert not finish(store, request, {"loss": 1.0})
    asked(store, checksum="another")
    assert claim(store, "me", FULL, lease=60.0, tries=3).tries == 1


def test_what_cannot_be_mended_is_not_tried_again(store):
    asked(store)
    request = claim(store, "me", FULL, lease=60.0)
    assert fail_request(store, request, "ValueError: \x1b[2J\0", final=True)
    (failed,) = requests.list_requests(store, "one")
    assert (failed.state, failed.error) == ("failed", "ValueError: \x1b[2J\ufffd")
    assert claim(store, "me", FULL, lease=60.0) is None


def test_requests_are_those_of_a_run_or_all(store):
    asked(store)
    create_request(store, "two", 1, "full", checksum="abc", time=1.0)
    assert [request.run for request in requests.list_requests(store)] == ["two", "one"]
    assert [request.run for request in requests.list_requests(store, "one")] == ["one"]


WORKER = """
got = []
with Store(url) as store:
    say("ready")
    hear()
    while request := requests.claim(store, name, ["full"], lease=60.0):
        got.append((request.epoch, requests.finish(store, request, {name: 1.0})))
say(got)
"""


def test_no_two_workers_get_one_request(store, url, start):
    for epoch in range(40):
        asked(store, epoch)
    workers = [start(WORKER, url=url, name=f"worker {number}") for number in range(4)]
    assert [worker.hear() for worker in workers] == ["ready"] * 4
    for worker in workers:
        worker.say("go")
    got = list(itertools.chain(*(worker.hear() for worker in workers)))
    assert sorted(got) == [(epoch, True) for epoch in range(40)]
    assert set(states(store).values()) == {"done"}
    assert [len(scores) for scores in list_results(store, "one").values()] == [1] * 40
