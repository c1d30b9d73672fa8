"""Fixtures that the tests of several hooks share."""

from __future__ import annotations

import pytest

import hooks
import trainer


class Recorder:
    """Keeps all that is written."""

    def __init__(self):
        self.written = []

    def write(self, step, values):
        self.written.append((step, values))

    def flush(self):
        pass

    def close(self):
        pass


@pytest.fixture
def recorder():
    """A writer that keeps all that is written, in `written`."""
    return Recorder()


@pytest.fixture
def check_resumes(tmp_path):
    """Return a function that checks law 5: interrupted at any epoch, a run ends with the same bits.

    It takes a function that makes the hook, since a process that resumes makes a new one, and
    returns the state of the uninterrupted run.
    """

    def check(make, state, program, *, epochs=5):
        whole, _ = trainer.fit(state, program, epochs=epochs, hooks=make())
        for number in range(1, epochs):

            def end_early(state, metrics, number=number):
                if int(state.epoch) == number:
                    raise trainer.Interrupt("enough")
                return state

            saving = hooks.save_checkpoints(tmp_path / str(number), max_cost=None)
            part, _ = trainer.fit(state, program, epochs=epochs, hooks=[make(), end_early, saving])
            assert int(part.epoch) == number
            saving = hooks.save_checkpoints(tmp_path / str(number), max_cost=None)
            end, history = trainer.fit(state, program, epochs=epochs, hooks=[make(), saving])
            assert len(history) == epochs - number
            assert trainer.fingerprint(end) == trainer.fingerprint(whole)
        return whole

    return check
