"""The table of runs: which runs, in which order, and their columns."""

from __future__ import annotations

import json
import math

import pytest


def names(out):
    """The runs in a table, from top to bottom."""
    lines = out.splitlines()
    rule = next(number for number, line in enumerate(lines) if line.startswith("─"))
    return [line.split()[0] for line in lines[rule + 1 : lines.index("", rule)]]


def test_runs_are_listed_the_newest_first(run, store):
    status, out, _ = run("runs")
    assert status == 0
    assert names(out) == ["beta", "alpha", "delta", "gamma"]
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert lines["alpha"].split()[1:8] == ["finished", "3/3", "0.2500", "at", "2", "0.7500", "at"]
    assert lines["gamma"].split()[1:3] == ["stalled", "1/9"]
    assert "6.7 min" in lines["alpha"]
    assert out.splitlines()[-1].endswith("1 running, 1 stalled, 1 failed")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--state", "failed", "running"], ["beta", "delta"]),
        (["--where", "optimizer.name=adamw"], ["alpha", "gamma"]),
        (["--where", "optimizer.name=adamw", "--where", "optimizer.rate<2"], ["alpha", "gamma"]),
        (["--where", "optimizer.rate>=2", "--state", "running"], ["beta"]),
        (["--where", "optimizer.name!=adamw"], ["beta", "delta"]),
        (["--sort", "val/loss"], ["beta", "alpha", "gamma", "delta"]),
        (["--sort", "val/accuracy"], ["beta", "alpha", "gamma", "delta"]),
        (["--sort", "val/loss", "--mode", "max"], ["gamma", "beta", "alpha", "delta"]),
        (["--sort", "held/accuracy"], ["alpha", "beta", "delta", "gamma"]),
        (["--sort", "name"], ["alpha", "beta", "delta", "gamma"]),
        (["--sort", "epoch"], ["alpha", "beta", "delta", "gamma"]),
    ],
)
def test_runs_are_filtered_and_sorted(run, store, words, expected):
    status, out, err = run("runs", *words)
    assert (status, err) == (0, "")
    assert names(out) == expected


def test_no_matching_run_is_no_error(run, store):
    status, out, _ = run("runs", "--where", "optimizer.name=lion")
    assert (status, out.startswith("0 of 4 runs")) == (0, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sort", "val/lose"], "Did you mean 'val/loss'"),
        (["--metrics", "x"], "no metric 'x' was recorded (there is: "),
        (["--sort", "gradients/norm/w"], "give --mode min or --mode max"),
        (["--where", "optimizer.nam=x"], "Did you mean 'optimizer.name'"),
        (["--where", "optimizer"], "a condition is SETTING=VALUE"),
        (["--where", "optimizer.rate > abc"], "cannot be compared with the text 'abc'"),
        (["--store", "nowhere"], "there is no store at"),
        (["--store", "mysql://x"], "got 'mysql://x'"),
    ],
)
def test_unknown_names_return_status_2(run, store, words, told):
    status, out, err = run("runs", *words)
    assert (status, out) == (2, "")
    assert told in err


def test_json_has_the_data_of_the_store(run, store):
    status, out, _ = run("runs", "--json", "--sort", "val/loss")
    rows = json.loads(out, parse_constant=pytest.fail)
    assert status == 0
    assert [row["name"] for row in rows] == ["beta", "alpha", "gamma", "delta"]
    kept = store.run("alpha")
    assert rows[1] | {"scores": None} == kept._asdict() | {"scores": None}
    assert rows[1]["scores"]["val/loss"] == {
        "last": 0.375,
        "best": 0.25,
        "epoch": 2,
        "mode": "min",
    }
    assert rows[2]["state"] == "stalled"
    assert rows[3]["scores"]["val/loss"]["last"] is None  # nan
    assert math.isnan(store.records("delta", ["val/loss"])[0].value)


def test_requested_metrics_become_columns(run, store):
    _, out, _ = run("runs", "--metrics", "gradients/norm/w", "time/epoch_seconds")
    assert out.split("\n")[0].split()[3:] == [
        "gradients/norm/w",
        "time/epoch_seconds",
        "age",
        "host",
    ]


def test_runs_of_several_kinds_have_scores_too(run, store):
    for number in range(2):
        store.register(f"p{number}", directory="/p", host="h", pid=1, time=0.0)
        store.write_records(f"p{number}", 1, 1, {"update/loss": 1.0, "time/epoch_seconds": 1.0})
    _, out, _ = run("runs")
    assert "val/loss" in out.splitlines()[0]


@pytest.mark.parametrize("width", [30, 44, 60, 80])
def test_narrow_terminals_show_the_most_important_columns(run, store, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = run("runs")
    assert all(len(line) <= width for line in out.splitlines())
    assert {"alpha", "beta", "delta", "gamma"} <= {
        line.split()[0] for line in out.splitlines() if line
    }
    assert "stalled" in out
    assert ("val/loss" in out) == (width >= 44)
