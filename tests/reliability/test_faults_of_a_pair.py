"""Two processes with two devices each and a split state: killed, stopped, out of space, damaged."""

from __future__ import annotations

import os
import random
import resource
import signal
import time

import pytest
from _bucket_server import bucket_server
from pairs import Pair
from test_two_processes import CHILD, finished, records, whole  # noqa: F401 - a fixture

from trainer.checkpoints import publishing
from trainer.checkpoints.storage.run_paths import remove_tree

KILLS = int(os.environ.get("ENTRACTE_KILLS", "12"))

pytestmark = pytest.mark.soak


def test_kills_at_random_instants_lose_nothing_and_change_no_bit(whole, tmp_path):  # noqa: F811
    kill_often(KILLS, CHILD, tmp_path, tmp_path)
    assert finished(tmp_path) == whole[1]
    assert records(tmp_path) == records(whole[0])


def test_kills_lose_nothing_in_a_bucket(whole, tmp_path, monkeypatch):  # noqa: F811
    with bucket_server() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        checkpoints = bucket.path("run")
        child = CHILD.replace("save_checkpoints(run,", f"save_checkpoints({str(checkpoints)!r},")
        assert child != CHILD
        kill_often(max(KILLS // 4, 1), child, tmp_path, checkpoints)
        assert finished(tmp_path, child=child) == whole[1]
    assert records(tmp_path) == records(whole[0])
    assert not (tmp_path / "checkpoints").exists()


def kill_often(kills, child, run, checkpoints):
    """Kill one or both processes of a run at random instants, and start it again."""
    draw = random.Random(0)
    for number in range(kills):
        with Pair(child, run, pause=0.2) as pair:
            victims = pair.processes  # at the start: one alone would wait to be joined
            if number % 4:
                pair.reach(max(saved(checkpoints), default=0) + 1)
                victims = draw.choice([pair.processes[:1], pair.processes[1:], pair.processes])
            time.sleep(draw.uniform(0, 1.5))
            for victim in victims:
                victim.kill()
            pair.ended()
        if max(saved(checkpoints), default=0) >= 7:  # begin again, or nothing is left to kill
            remove_tree(checkpoints / "checkpoints")
            (run / "metrics.jsonl").unlink()


def saved(run):
    """List the checkpoints that are published."""
    return publishing.list_epochs(run / "checkpoints")


def test_a_process_that_is_stopped_for_ever_ends_the_other(whole, tmp_path):  # noqa: F811
    with Pair(CHILD, tmp_path, pause=1.0) as pair:
        pair.reach(3)
        pair.processes[1].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        pair.processes[0].wait(60)
        assert time.monotonic() - began < 30
        assert pair.processes[0].returncode not in (0, None)
    assert finished(tmp_path) == whole[1]
    assert records(tmp_path) == records(whole[0])


def test_a_process_without_space_ends_both_with_its_reason(whole, tmp_path):  # noqa: F811
    with Pair(CHILD, tmp_path, pause=1.0) as pair:
        pair.reach(3)
        resource.prlimit(pair.processes[1].pid, resource.RLIMIT_FSIZE, (1000, 1000))
        ends = pair.ended()
        assert all(status not in (0, None) for status, _ in ends), ends
        assert "File too large" in pair.read_errors()[0]
    assert max(saved(tmp_path)) in (2, 3, 4)
    assert finished(tmp_path) == whole[1]
    assert records(tmp_path) == records(whole[0])


@pytest.mark.parametrize("name", ["arrays/process_0", "arrays/process_1", "part_1.json"])
def test_damage_that_one_of_them_sees_is_walked_past_by_both(whole, tmp_path, name):  # noqa: F811
    with Pair(CHILD, tmp_path, pause=1.0) as pair:
        pair.reach(5)
        for process in pair.processes:
            process.send_signal(signal.SIGTERM)
        pair.ended()
    newest = max(saved(tmp_path))
    file = tmp_path / "checkpoints" / str(newest) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert finished(tmp_path) == whole[1]
    assert records(tmp_path) == records(whole[0])
