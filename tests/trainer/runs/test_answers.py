"""What evaluations came to, as the run that asked looks for it."""

from __future__ import annotations

import math

from trainer.runs.answers import Answer, list_answers
from trainer.runs.requests import claim, create_request, fail_request, finish


def asked(store, *epochs, run="digits", suite="full"):
    for epoch in epochs:
        create_request(store, run, epoch, suite, checksum=f"of {epoch}", time=float(epoch))
    return [claim(store, "worker", [suite], lease=60) for _ in epochs]


def test_answers_are_those_that_are_final_by_epoch(store):
    second, third, fifth, _ = asked(store, 2, 3, 5, 8)
    finish(store, fifth, {"full/loss": 0.5, "full/gap": math.nan})
    fail_request(store, second, "no such file", final=True)
    fail_request(store, third, "try again", final=False)
    failed, done = list_answers(store, "digits", "full", after=0)
    assert failed == Answer(2, "of 2", "no such file", {})
    assert (done.epoch, done.checksum, done.error) == (5, "of 5", None)
    assert math.isnan(done.scores.pop("full/gap"))
    assert done.scores == {"full/loss": 0.5}


def test_they_are_of_later_epochs_and_of_one_run_and_suite(store):
    for run, suite in (("digits", "full"), ("digits", "quick"), ("letters", "full")):
        for request in asked(store, 1, 2, run=run, suite=suite):
            finish(store, request, {"a": 1.0})
    assert [one.epoch for one in list_answers(store, "digits", "full", after=1)] == [2]
    assert list_answers(store, "digits", "full", after=2) == []
    assert list_answers(store, "it's", "' OR 1=1 --", after=0) == []


def test_a_suite_that_scores_nothing_has_answered(store):
    (request,) = asked(store, 1)
    finish(store, request, {})
    assert list_answers(store, "digits", "full", after=0) == [Answer(1, "of 1", None, {})]
