"""The best checkpoint, by whichever score."""

import math

import pytest

from trainer.evaluators import best_commit, work
from trainer.runs import requests


@pytest.fixture
def evaluated(project, suite):
    """A run of which two commits were evaluated."""
    project.ask(2, 3)
    assert work(project.folder, suite, idle=0).done == 2
    return project


def test_by_training_and_by_a_suite(evaluated, store):
    best = best_commit(store, "one", "val/loss", suite="")
    assert (best.commit.epoch, best.value, best.suite) == (3, 1 / 3, "")
    assert best_commit(store, "one", "val/loss", suite="", mode="max").commit.epoch == 1
    found = {
        epoch: s["val/accuracy"] for (_, epoch), s in requests.list_results(store, "one").items()
    }
    best = best_commit(store, "one", "val/accuracy", mode="max")
    assert best.suite == "digits"
    assert best.commit.epoch == max(found, key=found.get)
    assert best.value == max(found.values())


def test_a_score_of_two_must_be_told_apart(evaluated, store):
    with pytest.raises(ValueError, match="'val/loss' of run 'one' was found by '', 'digits'"):
        best_commit(store, "one", "val/loss")


def test_what_is_gone_or_was_replaced_does_not_count(evaluated, store):
    evaluated.remove(3)
    assert best_commit(store, "one", "val/loss", suite="").commit.epoch == 2
    (two,) = (commit for commit in store.commits("one") if commit.epoch == 2)
    store.write_commit("one", two._replace(checksum="another", scores={"val/loss": math.nan}))
    assert best_commit(store, "one", "val/loss").commit.epoch == 1
    with pytest.raises(ValueError, match="no commit of run 'one'.*'val/accuracy'"):
        best_commit(store, "one", "val/accuracy")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("two", "val/loss"), KeyError, "no run 'two'.*one"),
        (("one", "bleu"), ValueError, r"a score 'bleu' .*\(there is: val/accuracy, val/loss\)"),
    ],
)
def test_what_there_is_not(evaluated, store, arguments, error, says):
    with pytest.raises(error, match=says):
        best_commit(store, *arguments)


def test_a_mode_is_min_or_max(store):
    with pytest.raises(ValueError, match="'min' or 'max', .*; got 'least'"):
        best_commit(store, "one", "val/loss", mode="least")
