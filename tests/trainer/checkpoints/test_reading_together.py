"""Processes that read a checkpoint together, played by threads; two real ones: test_manager."""

import threading
from pathlib import Path

import jax
import pytest

from trainer.checkpoints import reading_together
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.select import read_first_intact

WHERE = Path("runs/a/checkpoints")
SECONDS = 20


@pytest.fixture
def together(monkeypatch, tmp_path):
    """Return a function that reads on two processes, and returns what each got or raised."""
    rank = threading.local()
    meeting = threading.Barrier(2, timeout=SECONDS)
    board = [None, None]
    for number in (2, 3):
        (tmp_path / str(number)).mkdir()

    def gather(values):
        board[rank.number] = tuple(values)
        meeting.wait()
        seen = list(board)
        meeting.wait()
        return seen

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: rank.number)
    monkeypatch.setattr(reading_together, "gather_values", gather)

    def run(*readers, numbers=(3, 2), choose=None):
        ends = [None, None]

        def one(number):
            rank.number = number
            choose_here = choose or (
                lambda read: read_first_intact(tmp_path, lambda: numbers, read)
            )
            try:
                ends[number] = reading_together.read_together(
                    WHERE, choose_here, readers[number], lambda found: found
                )
            except Exception as error:
                ends[number] = error

        threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        return ends

    return run


def intact(number):
    return number, 7


def damaged_at(wrong):
    def read(number):
        if number in wrong:
            raise DamagedCheckpoint(f"checkpoint {number}")
        return number, 7

    return read


def test_one_process_reads_by_itself():
    read = reading_together.read_together(WHERE, lambda read: read(3), intact, lambda found: found)
    assert read == (3, 7)


def test_all_read_what_the_main_process_chooses(together):
    assert together(intact, intact) == [(3, 7), (3, 7)]
    assert together(intact, intact, numbers=()) == [None, None]


@pytest.mark.parametrize("readers", [(intact, damaged_at({3})), (damaged_at({3}), intact)])
def test_damage_that_one_sees_is_skipped_by_all(together, readers):
    assert together(*readers) == [(2, 7), (2, 7)]


def test_if_none_is_intact_everywhere_all_raise(together):
    main, other = together(damaged_at({3}), damaged_at({2}))
    assert isinstance(main, DamagedCheckpoint)
    assert "process 1 finds it damaged" in str(main)
    assert "failed on process 0, whose own error says why" in str(other)


def test_other_contents_end_all(together):
    for end in together(intact, lambda number: (number, 8)):
        assert isinstance(end, RuntimeError)
        assert "read different checkpoints 3 in runs/a/checkpoints: the directory must" in str(end)


def test_another_error_of_one_ends_all_at_once(together):
    def fail(number):
        raise MemoryError("no room")

    main, other = together(intact, fail)
    assert isinstance(other, MemoryError)
    assert "checkpoint 3 in runs/a/checkpoints failed on process 1" in str(main)
    main, other = together(fail, intact)
    assert isinstance(main, MemoryError)
    assert "failed on process 0, whose own error says why" in str(other)


def test_a_failure_to_list_ends_all(together):
    def choose(read):
        raise FileNotFoundError("there is no checkpoint")

    main, other = together(intact, intact, choose=choose)
    assert isinstance(main, FileNotFoundError)
    assert "failed on process 0, whose own error says why" in str(other)
