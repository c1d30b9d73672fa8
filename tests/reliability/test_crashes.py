"""Runs that are killed with SIGKILL: at every place of an event, and at random instants."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import _crashing as crashing
import forking
import pytest
from _bucket_server import bucket_server
from _killed_programs import STEPS
from _killed_sources import LIBRARIES, SOURCES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LIMIT = 120


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A function that starts a run in a directory, and the results of an uninterrupted one."""
    start = forking.starter(crashing.run, tmp_path_factory.mktemp("cache"))
    directory = tmp_path_factory.mktemp("whole")
    assert crashing.completed(start(directory), LIMIT)
    return start, crashing.left(directory)


def test_an_uninterrupted_run_leaves_each_record_once(whole):
    _, left = whole
    assert [epoch for epoch, _ in left.lines] == list(range(1, crashing.EPOCHS + 1))
    assert all("val/accuracy" in values for _, values in left.lines)
    assert left.points["val/loss"] == [
        (values["step"], pytest.approx(values["val/loss"], rel=1e-6)) for _, values in left.lines
    ]
    steps = STEPS * crashing.EPOCHS
    assert [step for step, _ in left.points["steps/train/loss"]] == list(range(1, steps + 1))


def test_law_5_killed_between_any_two_stages_of_an_event(whole, tmp_path):
    """One run, killed at each place, resumed until it is killed at the next, then completed."""
    start, wanted = whole
    places = ["flush", *(place for place in crashing.PLACES if place != "flush")]
    for number, place in enumerate(places, 1):  # first where it counts flushes of its own process
        epoch = 3 * number
        killed = start(tmp_path, (place, epoch))
        killed.join(LIMIT)
        assert killed.exitcode == -signal.SIGKILL, place
        newest = crashing.newest(tmp_path) + (place != "saving")
        assert newest in (epoch - 1, epoch), place  # a save may be under way
    assert crashing.completed(start(tmp_path), LIMIT)
    assert crashing.left(tmp_path) == wanted


def test_killed_in_a_save_to_a_bucket(whole, tmp_path):
    start, wanted = whole
    with bucket_server() as bucket:
        killed = start(tmp_path, ("saving", 5), bucket)
        killed.join(LIMIT)
        assert killed.exitcode == -signal.SIGKILL
        assert crashing.completed(start(tmp_path, None, bucket), LIMIT)
    assert crashing.left(tmp_path) == wanted
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.soak
@pytest.mark.parametrize(
    ("script", "count"),
    [
        ("crash_survival", "--kills=60"),
        ("crash_survival", "--bucket --kills=60"),
        ("corruption", "--damages=2000"),
        *(("crash_survival", f"--program={name} --kills=10") for name in SOURCES),
    ],
)
def test_many_at_random(tmp_path, script, count):
    """Fails if the benchmark ends with another status than 0; prints its seed."""
    program = count.removeprefix("--program=").split()[0]
    pytest.importorskip(LIBRARIES.get(program, "jax"))
    seed = f"--seed={int(time.time())}"
    print(f"{script}.py {count} {seed}")
    command = [
        sys.executable,
        BENCHMARKS / f"{script}.py",
        *count.split(),
        seed,
        "--results",
        tmp_path,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads((tmp_path / f"{script}.json").read_text())["bars"]
