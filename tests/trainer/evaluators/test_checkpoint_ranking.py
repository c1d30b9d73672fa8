"""The best checkpoint, by any score."""

import math

import pytest

from trainer.evaluators import best_checkpoint, work
from trainer.runs import requests


@pytest.fixture
def evaluated(project, suite):
    """A run with two evaluated checkpoints."""
    project.request(2, 3)
    assert work(project.folder, suite, idle=0).done == 2
    return project


def test_scores_of_training_and_of_a_suite(evaluated, store):
    best = best_checkpoint(store, "one", "val/loss", suite="")
    assert (best.checkpoint.epoch, best.value, best.suite) == (3, 1 / 3, "")
    assert best_checkpoint(store, "one", "val/loss", suite="", mode="max").checkpoint.epoch == 1
    found = {
        epoch: s["val/accuracy"] for (_, epoch), s in requests.list_results(store, "one").items()
    }
    best = best_checkpoint(store, "one", "val/accuracy", mode="max")
    assert best.suite == "digits"
    assert best.checkpoint.epoch == max(found, key=found.get)
    assert best.value == max(found.values())


def test_a_score_of_two_sources_needs_its_suite(evaluated, store):
    with pytest.raises(ValueError, match="'val/loss' of run 'one' was measured by '', 'digits'"):
        best_checkpoint(store, "one", "val/loss")


def test_removed_and_replaced_checkpoints_do_not_count(evaluated, store):
    evaluated.remove(3)
    assert best_checkpoint(store, "one", "val/loss", suite="").checkpoint.epoch == 2
    (two,) = (row for row in store.checkpoints("one") if row.epoch == 2)
    store.write_checkpoint("one", two._replace(checksum="another", scores={"val/loss": math.nan}))
    assert best_checkpoint(store, "one", "val/loss").checkpoint.epoch == 1
    with pytest.raises(ValueError, match="no checkpoint of run 'one'.*'val/accuracy'"):
        best_checkpoint(store, "one", "val/accuracy")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("two", "val/loss"), KeyError, "no run 'two'.*one"),
        (("one", "bleu"), ValueError, r"a score 'bleu' .*\(there is: val/accuracy, val/loss\)"),
    ],
)
def test_unknown_runs_scores_and_suites_are_refused(evaluated, store, arguments, error, says):
    with pytest.raises(error, match=says):
        best_checkpoint(store, *arguments)


def test_a_mode_is_min_or_max(store):
    with pytest.raises(ValueError, match="'min' or 'max', .*; got 'least'"):
        best_checkpoint(store, "one", "val/loss", mode="least")
