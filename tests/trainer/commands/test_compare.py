"""Differences of runs, and which is better."""

from __future__ import annotations

import json

import pytest


def test_differences_are_shown_and_the_best_is_marked(run, store):
    status, out, err = run("compare", "alpha", "beta")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["optimizer.name", "adamw", "sgd"] in lines
    assert ["val/loss", "0.2500", "at", "2", "0.1250", "at", "2", "*"] in lines
    assert ["val/loss,", "last", "0.3750", "0.1250"] in lines
    assert ["val/accuracy", "0.7500", "at", "2", "0.8750", "at", "2", "*"] in lines
    assert ["held/accuracy", "0.8750", "at", "2"] in lines
    environment = out.splitlines().index("Environment")
    assert out.splitlines()[environment + 1] == "no difference"


def test_a_missing_setting_differs_from_null(run, store):
    store.register(
        "bare", directory="/b", host="h", pid=1, time=0.0, config={"optimizer": {"name": None}}
    )
    _, out, _ = run("compare", "alpha", "bare")
    lines = [line.split() for line in out.splitlines()]
    assert ["optimizer.name", "adamw", "null"] in lines
    assert ["optimizer.rate", "1", "none"] in lines
    _, out, _ = run("compare", "alpha", "bare", "--json")
    assert json.loads(out)["config"] == {
        "optimizer.name": {"alpha": "adamw", "bare": None},
        "optimizer.rate": {"alpha": 1},
    }


def test_json_names_the_best(run, store):
    status, out, _ = run("compare", "alpha", "beta", "delta", "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert status == 0
    assert found["scores"]["val/loss"]["best"] == ["beta"]
    assert found["scores"]["val/loss"]["runs"]["alpha"] == {"last": 0.375, "best": 0.25, "epoch": 2}
    assert found["scores"]["val/loss"]["runs"]["delta"]["best"] is None
    assert found["runs"]["alpha"]["seconds"] == 1.5


def test_chosen_metrics_are_compared_in_the_given_mode(run, store):
    _, out, _ = run("compare", "alpha", "beta", "--metrics", "gradients/norm/w", "--mode", "min")
    assert "val/loss" not in out
    assert ["gradients/norm/w", "2.000", "at", "1", "2.000", "at", "1"] in [
        line.split() for line in out.splitlines()
    ]


@pytest.mark.parametrize(
    "words", [[], ["alpha"], ["alpha", "alpha"], ["alpha", "/elsewhere/alpha"]]
)
def test_it_needs_two_runs(run, store, words):
    status, _, err = run("compare", *words)
    assert (status, "give two runs or more" in err) == (2, True)
    assert ("these are all alpha" in err) == (len(words) == 2)


def test_a_run_named_twice_is_compared_once(run, store):
    _, out, _ = run("compare", "alpha", "beta", "/elsewhere/alpha", "--json")
    assert list(json.loads(out)["runs"]) == ["alpha", "beta"]
