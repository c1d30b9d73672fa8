"""The driver of the measurements on a GPU: limits of time, failures, and what is kept."""

import json
import subprocess
import sys
import time
from pathlib import Path

import _gpu_table
import gpu
import pytest

WRITES = """
import json, pathlib
rates = {"median": 8.0, "quartiles": [7.0, 9.0]}
bare = {name: {"median": rate, "quartiles": [rate, rate]}
        for name, rate in (("bare JAX, one scan", 10.0), ("bare JAX, one dispatch", 5.0))}
record = {"benchmark": "fast", "device": "a GPU", "measured": {"mlp": {"library": rates, **bare}}}
pathlib.Path(r"{results}", "fast.json").write_text(json.dumps(record))
"""
DEAF = """
import pathlib, signal, subprocess, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
print("began", flush=True)
pathlib.Path(r"{results}", "child.txt").write_text(str(child.pid))
time.sleep(60)
"""


def section(name, code, limit=30.0, **options):
    return gpu.Section(name, ("-c", code), limit, **options)


def is_running(pid):
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    return "State:\tZ" not in status


def run(folder, *sections, seconds=100.0):
    record = gpu.run_sections(sections, folder, seconds=seconds, quick=False)
    assert json.loads((folder / "gpu.json").read_text()) == record
    return record["sections"], (folder / "table.txt").read_text()


def test_a_section_that_fails_is_reported_with_its_last_lines_and_the_others_go_on(tmp_path):
    found, table = run(
        tmp_path,
        section("broken", "print('so far'); raise SystemExit('no memory')"),
        section("fast", WRITES),
    )
    assert found["broken"]["status"] == "failed"
    assert found["broken"]["last_lines"] == ["so far", "no memory"]
    assert found["fast"]["status"] == "passed"
    assert "last_lines" not in found["fast"]
    assert (tmp_path / "logs" / "broken.txt").read_text() == "so far\nno memory\n"
    assert [line.split()[:2] for line in table.splitlines()[1:3]] == [
        ["broken", "failed"],
        ["fast", "passed"],
    ]


def test_figures_stand_beside_the_fastest_bare_jax(tmp_path):
    _, table = run(tmp_path, section("fast", WRITES))
    rows = [line.split() for line in table.splitlines() if line.startswith("fast ")]
    assert rows[0][-2:] == ["a", "GPU"]
    assert rows[1] == ["fast", "mlp,", "library", "8", "7", "to", "9", "0.8"]
    assert [row[-1] for row in rows[2:]] == ["1", "0.5"]


def test_a_section_that_exceeds_its_time_is_killed_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.3)
    began = time.monotonic()
    found, _ = run(tmp_path, section("slow", DEAF, limit=3.0), section("fast", WRITES))
    assert time.monotonic() - began < 30
    assert found["slow"]["status"] == "out of time"
    assert found["slow"]["last_lines"] == ["began"]
    assert found["fast"]["status"] == "passed"
    pid = int((tmp_path / "sections" / "slow" / "child.txt").read_text())
    assert not is_running(pid)


def test_no_section_is_started_without_time(tmp_path):
    sections = (section("fast", WRITES), section("another", WRITES))
    found, table = run(tmp_path, *sections, seconds=gpu.GRACE + gpu.LEAST - 1)
    assert {one["status"] for one in found.values()} == {"not started"}
    assert "no time was left" in table


def test_nothing_is_started_without_what_all_need(tmp_path):
    found, _ = run(
        tmp_path,
        section("device", "raise SystemExit('a GPU is required')", required=True),
        section("fast", WRITES),
    )
    assert found["device"]["last_lines"] == ["a GPU is required"]
    assert found["fast"] == {"status": "not started", "why": "it needs device, which failed"}


def test_results_are_kept_as_soon_as_a_section_ends(tmp_path):
    code = f"import json; raise SystemExit(json.load(open(r'{tmp_path}/gpu.json'))['sections'])"
    found, _ = run(tmp_path, section("fast", WRITES), section("reader", code))
    assert found["reader"]["last_lines"] == [str({"fast": found["fast"]})]


def test_flags_reach_the_section_beside_those_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--one=1")
    code = "import os; raise SystemExit(os.environ['XLA_FLAGS'])"
    found, _ = run(tmp_path, section("laws", code, flags="--two=2"))
    assert found["laws"]["last_lines"] == ["--one=1 --two=2"]


def test_counts_of_tests_are_read_also_from_half_a_report(tmp_path):
    report = tmp_path / "tests.xml"
    report.write_text('<testsuites><testsuite tests="9" failures="1" errors="0" skipped="2"/>')
    assert "unreadable" in gpu.read(report)
    report.write_text(report.read_text() + "</testsuites>")
    counts = {"tests": 9, "failures": 1, "errors": 0, "skipped": 2}
    assert gpu.read(report) == {"benchmark": "tests", **counts}


def test_the_limits_of_sections_are_known_and_the_device_comes_first():
    sections = gpu.make_sections(quick=False)
    assert [one.name for one in sections if one.required] == ["device_limits"]
    assert sections[0].required
    assert max(one.limit for one in sections) < gpu.TOTAL
    assert gpu.DETERMINISTIC in {one.flags for one in sections}
    for one in sections:
        places = [part for part in one.arguments if part.startswith(("benchmarks/", "tests/"))]
        assert places
        assert all((gpu.ROOT / place).exists() for place in places)


def test_a_ratio_needs_a_baseline():
    medians = {("mlp", "library"): (8.0,), ("cnn", "bare JAX"): (4.0,)}
    assert _gpu_table.compare(("mlp", "library"), medians) == ""
    assert _gpu_table.compare(("cnn", "bare JAX"), medians) == "1"


@pytest.mark.soak
def test_all_sections_pass_in_a_quick_run(tmp_path):
    command = [sys.executable, gpu.__file__, tmp_path, "--quick", "--seconds", "460"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stdout
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert [*record["sections"]] == [one.name for one in gpu.make_sections(quick=True)]
    assert all(found["results"] for found in record["sections"].values())
    assert record["quick"]
