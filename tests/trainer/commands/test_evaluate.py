"""The command `evaluate`, as a user calls it."""

import logging

import pytest

from trainer.runs import requests

SUITES = """
import jax, numpy as np
from trainer import TrainState, data, evaluation
from trainer.evaluators import Suite

source = data.Arrays({"inputs": np.arange(5.0)}, batch_size=2)
state = TrainState.create(params={}, rng=jax.random.key(0))
phase = evaluation(lambda state, batch: {"x": batch["inputs"]}, source)
held, other = Suite("held", state, phase), Suite("other", state, phase)
broken = Suite("broken", state, evaluation(lambda state, batch: state.params["w"], source))
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "suites.py").write_text(SUITES)
    return "suites.py"


def test_without_requests_it_ends(store, run, file):
    before = logging.getLogger("entracte").handlers[:]
    status, _, told = run("evaluate", "--suite", f"{file}:other", "--idle", "0")
    assert status == 0
    assert told.count("waits for: other") == 1
    assert "WorkSummary(done=0, failed=0, opened=0, dropped=0)" in told
    assert logging.getLogger("entracte").handlers == before


def test_a_failed_evaluation_sets_the_exit_status(store, run, file):
    words = ("--idle", "0", "--pause", "0.001", "--tries", "2")
    status, _, told = run("evaluate", "--suite", f"{file}:held", *words)
    assert status == 1
    assert "there is no checkpoint 3 in /elsewhere/alpha/checkpoints" in told
    states = {r.epoch: (r.state, r.tries) for r in requests.list_requests(store, "alpha")}
    assert states == {2: ("done", 1), 3: ("failed", 2)}


def test_several_suites_and_named_runs(store, run, file):
    words = ("--idle", "0", "--pause", "0.001", "--tries", "1", "--runs", "alpha")
    status, _, told = run("evaluate", "--suite", f"{file}:other", f"{file}:held", *words)
    assert status == 1
    assert "waits for: other, held" in told
    asked = {(r.suite, r.epoch) for r in requests.list_requests(store, "alpha")}
    assert asked == {(suite, epoch) for suite in ("held", "other") for epoch in (2, 3)}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--suite", "suites.py:none"), "defines no 'none'"),
        (("--suite", "nowhere.py:held"), "there is no file"),
        (("--suite", "suites.py:held", "--store", "nowhere"), "there is no store at"),
        (("--suite", "suites.py:held", "--runs", "alph"), "Did you mean 'alpha'?"),
        (("--suite", "suites.py:held", "suites.py:held"), "names of their own"),
        (("--suite", "suites.py:held", "--lease", "0"), "lease must be positive"),
        ((), "--suite"),
    ],
)
def test_errors_of_the_user_are_named(store, run, file, words, says):
    status, _, told = run("evaluate", *words)
    assert status == 2
    assert says in told


def test_a_suite_that_fails_on_its_own_template_shows_the_traceback(store, run, file):
    with pytest.raises(KeyError) as failed:
        run("evaluate", "--suite", f"{file}:broken")
    assert "in suite 'broken', on its own template" in failed.value.__notes__
