"""Everything about a recorded run, on one screen."""

from __future__ import annotations

import json

import pytest

from trainer.runs import CheckpointRow, requests


def section(out, title):
    """The lines of a section."""
    lines = out.splitlines()
    start = lines.index(title) + 1
    return lines[start : lines.index("", start) if "" in lines[start:] else None]


def test_it_shows_everything_recorded(run, store):
    status, out, err = run("show", "alpha")
    assert (status, err) == (0, "")
    assert "finished" in out
    assert "3/3, step 30" in out
    assert section(out, "Curves")[0].split()[:3] == ["loss", "━", "val"]
    scores = {line.split()[0]: line.split()[1:] for line in section(out, "Scores")[2:]}
    assert scores["val/loss"] == ["0.3750", "0.2500", "at", "2", "0.5000", "at", "1"]
    assert scores["held/accuracy"] == ["0.8750", "0.8750", "at", "2", "0.8750", "at", "2"]
    times = section(out, "Time in hooks")[2].split()
    assert times == ["evaluate/val", "750", "ms", "250", "ms", "33.33%"]
    checkpoints = [line.split() for line in section(out, "Checkpoints")[2:]]
    assert [row[:4] for row in checkpoints] == [
        ["2", "2.0", "kB", "0.2500"],
        ["3", "2.0", "kB", "0.3125"],
    ]
    evaluations = [line.split()[:4] for line in section(out, "Evaluations")[2:]]
    assert evaluations == [["held", "2", "done", "0.8750"], ["held", "3", "open", "0"]]
    assert section(out, "Artifacts")[2].split()[:3] == ["replay", "3", "5"]
    assert [line.split() for line in section(out, "Configuration")] == [
        ["optimizer.name", "adamw"],
        ["optimizer.rate", "1"],
    ]
    assert section(out, "Environment")[0].split() == ["jax", "0.10.2"]


def test_checkpoints_show_no_times_and_validation_first(run, store):
    scores = {"time/hook/stop_at_return/val/return": 1.0, "train/loss": 0.5, "val/loss": 0.25}
    store.write_checkpoint(
        "alpha", CheckpointRow(3, "/elsewhere/3", 2000, scores, "3", "2025-01-01")
    )
    _, out, _ = run("show", "alpha")
    head = section(out, "Checkpoints")[0].split()
    assert head == ["epoch", "size", "val/loss", "train/loss", "written"]


def test_empty_sections_are_left_out(run, store):
    store.register("new", directory="/n", host="h", pid=1, time=0.0)
    status, out, _ = run("show", "new")
    assert status == 0
    assert "Curves" not in out
    assert "Configuration" not in out


def test_a_failed_run_shows_its_error(run, store):
    _, out, _ = run("show", "delta")
    assert "ValueError: nan" in out
    assert "no finite value" in out


def test_an_error_of_several_lines_keeps_its_lines(run, store):
    store.end("delta", "failed", time=1.0, error="ValueError: it does not fit:\n  w\x1b[2J")
    requests.fail_request(
        store, requests.claim_request(store, "w", ["held"], lease=60), "no\n  wanted", final=True
    )
    _, out, _ = run("show", "delta")
    lines = [line.strip() for line in out.splitlines()]
    at = next(n for n, line in enumerate(lines) if line.endswith("ValueError: it does not fit:"))
    assert lines[at + 1] == r"w\x1b[2J"
    _, out, _ = run("show", "alpha")
    assert section(out, "Evaluations")[-1].split() == ["wanted"]


def test_only_chosen_metrics_are_shown(run, store):
    _, out, _ = run("show", "alpha", "--metrics", "val/accuracy", "time/epoch_seconds")
    assert [line.split()[0] for line in section(out, "Scores")[2:]] == [
        "val/accuracy",
        "time/epoch_seconds",
    ]
    assert run("show", "alpha", "--metrics", "val/accurasy")[0] == 2


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_the_terminal(run, store, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = run("show", "alpha")
    assert all(len(line) <= width for line in out.splitlines())


def test_without_utf_8_only_numbers_are_shown(run, store, monkeypatch):
    monkeypatch.setattr("rich.console.Console.encoding", "ascii")
    _, out, _ = run("show", "alpha")
    assert "Curves" not in out
    assert "Scores" in out


def test_json_has_the_data_of_the_store(run, store):
    status, out, _ = run("show", "alpha", "--json", "--metrics", "val/loss")
    found = json.loads(out, parse_constant=pytest.fail)
    assert status == 0
    assert found["config"] == store.run("alpha").config
    assert found["curves"] == {"val/loss": {"epochs": [1, 2, 3], "values": [0.5, 0.25, 0.375]}}
    assert found["scores"]["val/accuracy"] == {
        "last": 0.625,
        "best": 0.75,
        "epoch": 2,
        "mode": "max",
    }
    assert found["hook_seconds"] == {"evaluate/val": 0.75}
    assert found["commits"] == [commit._asdict() for commit in store.checkpoints("alpha")]
    assert [one["scores"] for one in found["evaluations"]] == [{"held/accuracy": 0.875}, {}]
    assert found["artifacts"][0]["kind"] == "replay"
