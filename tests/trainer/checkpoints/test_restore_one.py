"""Processes that read checkpoints together. Two real ones are in test_run.py."""

from pathlib import Path

import jax
import numpy as np
import pytest

from trainer.checkpoints import restore_one
from trainer.host import exchange

WHERE = Path("runs/a/checkpoints")


def read(number, digest=7):
    return restore_one.read_on_all_processes(WHERE, lambda: (number, digest), lambda found: found)


@pytest.fixture
def other(monkeypatch):
    """Pretend that there is another process, which found this, or failed."""

    def pretend(number, digest=7, *, failed=False):
        def gathered(mine):
            theirs = mine.copy()
            if failed:
                theirs = exchange.pack_message("reading", failure=ValueError("damaged"))
            elif mine[2]:  # words
                theirs[4:8] = np.array([number, digest], np.int64).view(np.uint32)
            return np.array([mine, theirs])

        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(exchange, "_gather", gathered)

    return pretend


def test_one_process_agrees_with_itself():
    assert read(3) == (3, 7)


def test_processes_that_read_the_same_continue(other):
    other(3)
    assert read(3) == (3, 7)


@pytest.mark.parametrize(
    ("mine", "theirs", "told"),
    [
        ((3, 7), (2, 7), "process 0 that of epoch 3, process 1 that of epoch 2;"),
        ((-1, 0), (3, 7), "process 0 none, process 1 that of epoch 3;"),
        ((3, 7), (3, 2**62 - 1), "process 1 that of epoch 3, with other contents;"),
    ],
)
def test_processes_that_read_different_checkpoints_all_raise(other, mine, theirs, told):
    other(*theirs)
    with pytest.raises(RuntimeError, match=f"different checkpoints in {WHERE}: .*{told}"):
        read(*mine)
    other(*mine)
    with pytest.raises(RuntimeError, match="different checkpoints"):
        read(*theirs)


def test_if_one_process_fails_all_fail(other):
    other(0, failed=True)
    with pytest.raises(RuntimeError, match="failed on process 1, whose own error says why"):
        read(3)
    with pytest.raises(ZeroDivisionError):
        restore_one.read_on_all_processes(WHERE, lambda: 1 / 0, lambda found: found)
