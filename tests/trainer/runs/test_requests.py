"""A request is created once, belongs to one worker at a time, and is answered once."""

import itertools
import math

import pytest

from trainer.runs import requests
from trainer.runs.requests import (
    Answer,
    claim_request,
    create_request,
    extend_lease,
    fail_request,
    finish_request,
    list_answers,
    list_results,
)

FULL = ["full"]


def request_epoch(store, epoch=1, suite="full", checksum="abc"):
    """Request the evaluation of an epoch of run `one`."""
    create_request(store, "one", epoch, suite, checksum=checksum, time=100.0 + epoch)


def expire(store):
    """Let all leases expire."""
    store.connection.execute("UPDATE requests SET lease = ?", (store.connection.now() - 1,))


def states(store):
    """Return the state of each request by epoch."""
    return {request.epoch: request.state for request in requests.list_requests(store, "one")}


def test_a_request_goes_from_open_to_done(store):
    request_epoch(store)
    before = store.connection.now()
    request = claim_request(store, "me", ["other", "full"], lease=60.0)
    assert request[:8] == ("one", 1, "full", "abc", "claimed", 101.0, 1, "me")
    assert before + 59 < request.lease < before + 70
    assert claim_request(store, "you", FULL, lease=60.0) is None
    assert finish_request(store, request, {"full/loss": 0.5, "nan": math.nan, "inf": -math.inf})
    (done,) = requests.list_requests(store)
    assert (done.state, done.worker, done.error) == ("done", "me", "")
    assert done.finished >= before
    found = list_results(store, "one")["full", 1]
    assert math.isnan(found.pop("nan"))
    assert found == {"full/loss": 0.5, "inf": -math.inf}
    assert not finish_request(store, request, {"full/loss": 0.6})
    assert not fail_request(store, request, "late", final=True)
    assert not extend_lease(store, request, lease=60.0)
    assert list_results(store, "one")["full", 1]["full/loss"] == 0.5


def test_a_second_request_changes_nothing_unless_the_checkpoint_changed(store):
    request_epoch(store)
    request = claim_request(store, "me", FULL, lease=60.0)
    finish_request(store, request, {"loss": 0.5, "old": 1.0})
    before = requests.list_requests(store)
    request_epoch(store)
    assert requests.list_requests(store) == before
    request_epoch(store, checksum="another")
    assert states(store) == {1: "open"}
    assert list_results(store, "one") == {}
    again = claim_request(store, "me", FULL, lease=60.0)
    assert (again.tries, again.checksum) == (1, "another")
    assert finish_request(store, again, {"loss": 0.25})
    assert list_results(store, "one") == {("full", 1): {"loss": 0.25}}


def test_an_answer_about_a_checkpoint_that_was_replaced_is_refused(store):
    request_epoch(store)
    request = claim_request(store, "me", FULL, lease=60.0)
    request_epoch(store, checksum="another")
    assert not extend_lease(store, request, lease=60.0)
    assert not finish_request(store, request, {"loss": 0.5})
    current = claim_request(store, "me", FULL, lease=60.0)
    assert current[6:8] == request[6:8]  # the same try, the same worker
    assert not finish_request(store, request, {"loss": 0.5})
    assert finish_request(store, current, {"loss": 0.25})


def test_the_oldest_is_claimed_first_among_those_that_a_worker_can_run(store):
    for epoch in (3, 1, 2):
        request_epoch(store, epoch)
    request_epoch(store, 0, suite="other")
    assert claim_request(store, "me", [], lease=60.0) is None
    claimed = [claim_request(store, "me", FULL, lease=60.0) for _ in range(4)]
    assert [request and request.epoch for request in claimed] == [1, 2, 3, None]


def test_another_worker_claims_a_request_whose_lease_has_expired(store):
    request_epoch(store)
    first = claim_request(store, "me", FULL, lease=60.0)
    assert extend_lease(store, first, lease=120.0)
    assert claim_request(store, "you", FULL, lease=60.0) is None
    expire(store)
    second = claim_request(store, "you", FULL, lease=60.0)
    assert (second.worker, second.tries) == ("you", 2)
    for late in (
        lambda: finish_request(store, first, {"loss": 9.0}),
        lambda: extend_lease(store, first, lease=60.0),
        lambda: fail_request(store, first, "late", final=True),
    ):
        assert not late()
    expire(store)  # but nobody claimed it
    assert finish_request(store, second, {"loss": 0.5})
    assert list_results(store, "one") == {("full", 1): {"loss": 0.5}}


def test_the_try_distinguishes_workers_of_one_name(store):
    request_epoch(store)
    first = claim_request(store, "me", FULL, lease=60.0)
    expire(store)
    second = claim_request(store, "me", FULL, lease=60.0)
    assert not finish_request(store, first, {"loss": 9.0})
    assert finish_request(store, second, {"loss": 0.5})


@pytest.mark.parametrize("dies", [True, False])
def test_tries_are_limited(store, dies):
    request_epoch(store)
    for number in range(1, 4):
        request = claim_request(store, "me", FULL, lease=60.0, tries=3)
        assert request.tries == number
        if dies:
            expire(store)
        else:
            assert fail_request(store, request, f"error {number}", final=False)
            assert states(store) == {1: "open"}
    assert claim_request(store, "me", FULL, lease=60.0, tries=3) is None
    (failed,) = requests.list_requests(store)
    assert failed.state == "failed"
    assert failed.error == ("each of its workers died or hung" if dies else "error 3")
    assert failed.finished
    assert not finish_request(store, request, {"loss": 1.0})
    request_epoch(store, checksum="another")
    assert claim_request(store, "me", FULL, lease=60.0, tries=3).tries == 1


def test_a_final_failure_is_not_retried(store):
    request_epoch(store)
    request = claim_request(store, "me", FULL, lease=60.0)
    assert fail_request(store, request, "ValueError: \x1b[2J\0", final=True)
    (failed,) = requests.list_requests(store, "one")
    assert (failed.state, failed.error) == ("failed", "ValueError: \x1b[2J\ufffd")
    assert claim_request(store, "me", FULL, lease=60.0) is None


def test_requests_are_listed_for_one_run_or_all(store):
    request_epoch(store)
    create_request(store, "two", 1, "full", checksum="abc", time=1.0)
    assert [request.run for request in requests.list_requests(store)] == ["two", "one"]
    assert [request.run for request in requests.list_requests(store, "one")] == ["one"]


WORKER = """
got = []
with Store(url) as store:
    say("ready")
    hear()
    while request := requests.claim_request(store, name, ["full"], lease=60.0):
        got.append((request.epoch, requests.finish_request(store, request, {name: 1.0})))
say(got)
"""


def test_no_two_workers_get_one_request(store, url, start):
    for epoch in range(40):
        request_epoch(store, epoch)
    workers = [start(WORKER, url=url, name=f"worker {number}") for number in range(4)]
    assert [worker.hear() for worker in workers] == ["ready"] * 4
    for worker in workers:
        worker.say("go")
    got = list(itertools.chain(*(worker.hear() for worker in workers)))
    assert sorted(got) == [(epoch, True) for epoch in range(40)]
    assert set(states(store).values()) == {"done"}
    assert [len(scores) for scores in list_results(store, "one").values()] == [1] * 40


# --- answers


def claim_epochs(store, *epochs, run="digits", suite="full"):
    """Request and claim the evaluation of epochs."""
    for epoch in epochs:
        create_request(store, run, epoch, suite, checksum=f"of {epoch}", time=float(epoch))
    return [claim_request(store, "worker", [suite], lease=60) for _ in epochs]


def test_answers_are_final_outcomes_by_epoch(store):
    second, third, fifth, _ = claim_epochs(store, 2, 3, 5, 8)
    finish_request(store, fifth, {"full/loss": 0.5, "full/gap": math.nan})
    fail_request(store, second, "no such file", final=True)
    fail_request(store, third, "try again", final=False)
    failed, done = list_answers(store, "digits", "full", after=0)
    assert failed == Answer(2, "of 2", "no such file", {})
    assert (done.epoch, done.checksum, done.error) == (5, "of 5", None)
    assert math.isnan(done.scores.pop("full/gap"))
    assert done.scores == {"full/loss": 0.5}


def test_answers_belong_to_later_epochs_of_one_run_and_suite(store):
    for run, suite in (("digits", "full"), ("digits", "quick"), ("letters", "full")):
        for request in claim_epochs(store, 1, 2, run=run, suite=suite):
            finish_request(store, request, {"a": 1.0})
    assert [one.epoch for one in list_answers(store, "digits", "full", after=1)] == [2]
    assert list_answers(store, "digits", "full", after=2) == []
    assert list_answers(store, "it's", "' OR 1=1 --", after=0) == []


def test_a_suite_without_scores_has_answered_too(store):
    (request,) = claim_epochs(store, 1)
    finish_request(store, request, {})
    assert list_answers(store, "digits", "full", after=0) == [Answer(1, "of 1", None, {})]
