"""The trials of guarantees: damages, what they conclude from what processes left, the table."""

import doctest

import _guarantee_table
import _measuring
import guarantees
import numpy as np
import pytest
from _starting import ContestantError
from _trials import Done, TrainerProcess
from guarantee_trials import trial


class FakeProcess:
    """Answer as a trainer whose checkpoint is a file with the step to begin at.

    Args:
        restore: from the bytes of the newest checkpoint to the step; it may raise.
    """

    must, kill = TrainerProcess.must, TrainerProcess.kill

    def __init__(self, restore):
        self.restore = restore

    def do(self, task, folder, fatal=None, pause=0.0, **settings):
        newest = folder / "saved" / "newest"
        if task == "find_newest":
            return Done(0, {"path": str(newest)}, "")
        if fatal:
            newest.parent.mkdir(parents=True)
            newest.write_bytes(bytes([44] * 100))
            return Done(-9, {}, "")
        try:
            began, value = self.restore(newest.read_bytes())
        except OSError as error:
            return Done(0, {"error": str(error)}, "")
        np.savez(folder / "final.npz", np.float32([value]))
        return Done(0, {"began": began, "steps": 88 - began}, "")


def restore_any(content):
    return 44, sum(content)


def restore_sound(content):
    return (44 if content == bytes([44] * 100) else 22), 7


def restore_or_begin(content):
    return (44 if content == bytes([44] * 100) else 0), 7


def restore_or_raise(content):
    if content != bytes([44] * 100):
        raise OSError("damaged")
    return 44, 7


@pytest.mark.parametrize(
    ("restore", "outcome"),
    [
        (restore_any, "silently wrong"),
        (restore_sound, "the one before is used"),
        (restore_or_begin, "begins anew"),
        (restore_or_raise, "error"),
        (lambda content: (44, 7), "no effect"),
    ],
)
def test_what_was_restored_is_told_by_step_and_bits(restore, outcome, tmp_path):
    damages = [guarantees.flip_bit(0), guarantees.flip_bit(1), guarantees.truncate]
    assert guarantees.try_damage(FakeProcess(restore), tmp_path, damages) == [outcome] * 3


def test_a_process_that_was_not_killed_is_an_error(tmp_path):
    process = FakeProcess(restore_any)
    process.do = lambda task, folder, **settings: Done(0, {"steps": 3}, "")
    with pytest.raises(ContestantError, match="it was not killed"):
        process.kill(tmp_path, fatal=5)


def test_a_flip_changes_one_bit_of_one_file_and_a_cut_halves_the_largest(tmp_path):
    small, large = tmp_path / "small", tmp_path / "folder" / "large"
    large.parent.mkdir()
    for seed in range(20):
        small.write_bytes(bytes(10))
        large.write_bytes(bytes(90))
        guarantees.flip_bit(seed)(tmp_path)
        content = small.read_bytes() + large.read_bytes()
        assert len(content) == 100
        assert sum(byte.bit_count() for byte in content) == 1
    guarantees.truncate(tmp_path)
    assert (small.stat().st_size, large.stat().st_size) == (10, 45)


def test_early_stopping_has_one_right_answer():
    best = trial.SCRIPTED.index(min(trial.SCRIPTED))
    assert list(trial.SCRIPTED[best:]) == sorted(trial.SCRIPTED[best:])
    right = best + 1 + trial.PATIENCE
    first, last = (step / trial.BATCHES for step in (min(guarantees.STOPPING_KILLS), right * 22))
    assert best + 1 <= first < last == 5
    assert max(guarantees.STOPPING_KILLS) < right * trial.BATCHES


def test_kills_lie_within_epochs():
    for step in (*guarantees.KILLS, *guarantees.STOPPING_KILLS, guarantees.DAMAGED_AT):
        assert step % trial.BATCHES
    assert min(guarantees.KILLS) > trial.BATCHES  # or there is nothing to resume from
    for step in (*guarantees.KILLS, guarantees.DAMAGED_AT):  # with saves after each half
        assert step % trial.HALF_EPOCH


def test_the_functions_that_write_cells_are_right():
    assert doctest.testmod(_guarantee_table).failed == 0


def test_rates_are_those_of_the_race_where_there_are_any():
    names = list(guarantees.ENTRANTS)
    record = {"cells": {name: {} for name in names}, "ratios": {names[-1]: {"median": 4.0}}}
    own, lightning = (guarantees.ENTRANTS[name].rate for name in names[:2])
    guarantees.add_rates(record, {own: {"median": 100.0}, lightning: {"median": 8.0}})
    rates = [cells.get("rate") for cells in record["cells"].values()]
    assert rates == ["1", "0.08", None, None, "0.25"]


def test_the_table_has_a_column_for_each_trainer_and_names_means_and_who_is_left_out():
    cells = {"Entracte": {"resume": "3 of 3", "rate": "1"}, "Keras on JAX": {"resume": "0 of 3"}}
    record = {
        "cells": cells,
        "means": {"Entracte": "`save_checkpoints`", "Keras on JAX": "`BackupAndRestore`"},
        "tried": {"kills": (15, 40), "stopping": (51,), "flips": 3},
        "left_out": {"Lightning": "torch is not installed"},
        **_measuring.environment(),
    }
    lines = _guarantee_table.render(record).splitlines()
    assert lines[0] == "| | Entracte | Keras on JAX |"
    assert lines[2] == f"| {_guarantee_table.ROWS['resume']} | 3 of 3 | 0 of 3 |"
    assert lines[3] == f"| {_guarantee_table.ROWS['rate']} | 1 |  |"
    assert "Left out: Lightning: torch is not installed." in lines
    assert "Keras on JAX: `BackupAndRestore`." in lines
    assert any(line.startswith("Steps after which runs were killed: 15 and 40;") for line in lines)
