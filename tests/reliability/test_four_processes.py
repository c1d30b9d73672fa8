"""Four processes with one device each, alone and continued by two with two devices each."""

from __future__ import annotations

import shutil
import signal

import pytest
from pairs import Pair
from test_two_processes import CHILD, EPOCHS, finished, records

pytestmark = pytest.mark.soak

READING = CHILD.replace("if count > 1 and rank == 0:", "if refused:")
"""It may find that nothing is left to train."""


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """An uninterrupted run of four processes: its directory, and the last line of each."""
    run = tmp_path_factory.mktemp("four")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield run, finished(run, count=4)


def get_fingerprint(line):
    """Return the fingerprint of the final state; the names of hook states differ by process."""
    return line.split()[1]


def get_accuracy(line):
    return float(line.split()[-1])


def test_all_four_end_with_the_same_and_equal_one_device(four, tmp_path):
    run, lines = four
    assert len(set(lines[1:])) == 1
    assert [record["epoch"] for record in records(run)] == list(range(1, EPOCHS + 1))
    child = CHILD.replace("4 // count", "1").replace("assert not kept", "assert kept")
    finished(tmp_path, child=child, count=1)
    many, one = records(run)[0], records(tmp_path)[0]  # 44 updates: then rounding grows
    assert many.keys() == one.keys()
    assert [many[key] for key in one] == pytest.approx([*one.values()], rel=1e-4)


@pytest.mark.parametrize(
    ("victim", "number"), [(0, signal.SIGKILL), (3, signal.SIGKILL), (2, signal.SIGTERM)]
)
def test_four_that_are_interrupted_resume_bit_for_bit(four, tmp_path, victim, number):
    with Pair(CHILD, tmp_path, count=4, pause=1.0) as processes:
        processes.reach(3)
        processes.processes[victim].send_signal(number)
        ends = processes.ended()
    statuses = [status for status, _ in ends]
    if number == signal.SIGTERM:
        assert statuses == [128 + number] * 4
    else:
        assert statuses[victim] == -number
        assert 0 not in statuses
    assert finished(tmp_path, count=4) == four[1]
    assert records(tmp_path) == records(four[0])


def test_two_with_two_devices_each_restore_the_same_bits(four, tmp_path):
    run = shutil.copytree(four[0], tmp_path / "run")
    lines = finished(run, child=READING, count=2)
    assert {get_fingerprint(line) for line in lines[1:]} == {get_fingerprint(four[1][1])}
    assert get_fingerprint(lines[0]) == get_fingerprint(four[1][0])
    assert records(run) == records(four[0])


def test_two_with_two_devices_each_train_on_to_the_same_results(four, tmp_path):
    with Pair(CHILD, tmp_path, count=4, pause=1.0) as processes:
        processes.reach(3)
        processes.processes[1].send_signal(signal.SIGTERM)
        processes.ended()
    lines = finished(tmp_path, count=2)
    assert get_accuracy(lines[0]) == pytest.approx(get_accuracy(four[1][0]), abs=0.03)
    here, there = records(tmp_path), records(four[0])
    assert [record["step"] for record in here] == [record["step"] for record in there]
    assert [r["train/loss"] for r in here] == pytest.approx(
        [r["train/loss"] for r in there], rel=0.02
    )
