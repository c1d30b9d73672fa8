"""The doctor: findings, remedies and the exit status."""

from __future__ import annotations

import json
import sqlite3
import sys

import jax
import pytest

from trainer.commands import doctor
from trainer.commands.lookup import machine_checks


def found(run, *words):
    status, out, _ = run("doctor", "--json", *words)
    return status, {one["subject"]: one for one in json.loads(out)}


def test_a_sound_machine_passes_all_checks(run, store):
    status, findings = found(run)
    assert status == 0, findings
    assert "the same bits" in findings["self-test"]["found"]
    assert findings["store"]["found"].endswith("stalled: gamma")
    assert {"Python", "libraries", "devices", "memory", "compilation cache", "SQLite", "disk"} < {
        *findings
    }
    assert f"jax {jax.__version__}" in findings["libraries"]["found"]


def test_lines_show_findings_and_remedies(run, store):
    status, out, _ = run("doctor", "--quick")
    assert status == 0
    assert "self-test" not in out
    assert "→ start them again" in out
    assert out.endswith("all is well\n")


def test_a_resumed_training_that_differs_is_detected(run, store, monkeypatch):
    restore = doctor.restore

    def spoilt(directory, target):
        state = restore(directory, target)
        return state.replace(params={**state.params, "b": state.params["b"] + 1e-7})

    monkeypatch.setattr(doctor, "restore", spoilt)
    status, findings = found(run)
    assert status == 1
    assert findings["self-test"]["verdict"] == "wrong"
    assert "does not end with the bits" in findings["self-test"]["found"]


def test_an_old_or_missing_library_is_wrong(run, store, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 30, 0))
    monkeypatch.setattr(
        machine_checks.metadata,
        "requires",
        lambda name: ["jax>=99", "nosuch>1", 'x>=9; extra == "y"'],
    )
    monkeypatch.setitem(sys.modules, "psutil", None)
    status, findings = found(run, "--quick", "--store", "nowhere")
    assert status == 1
    verdicts = {subject: one["verdict"] for subject, one in findings.items()}
    wrong = {subject for subject, verdict in verdicts.items() if verdict == "wrong"}
    assert wrong == {"SQLite", "jax", "nosuch", "store"}
    assert findings["jax"]["remedy"] == 'pip install "jax>=99"'
    assert verdicts["memory"] == "note"


def test_a_failing_check_is_a_finding(run, store, monkeypatch):
    def fails():
        raise RuntimeError("no device")

    monkeypatch.setattr(machine_checks, "devices", fails)
    status, out, _ = run("doctor", "--quick")
    assert status == 1
    assert "RuntimeError: no device" in out
    assert out.endswith("wrong: devices\n")


def test_a_cache_is_reported_with_its_size(tmp_path):
    (tmp_path / "program").write_bytes(b"x" * 2000)
    before = getattr(jax.config, machine_checks.CACHE)
    jax.config.update(machine_checks.CACHE, str(tmp_path))
    try:
        (finding,) = machine_checks.cache()
    finally:
        jax.config.update(machine_checks.CACHE, before)
    assert finding.verdict == "good"
    assert finding.found == f"{tmp_path}: 1 files, 2.0 kB"


@pytest.mark.parametrize(
    ("version", "bounds", "expected"),
    [("1.2rc1", ">=1.2", True), ("1.2", "!=1.2.0", False), ("0.9", ">0.10", False)],
)
def test_versions_are_compared_as_numbers(version, bounds, expected):
    assert machine_checks.is_within_bounds(version, bounds) is expected
