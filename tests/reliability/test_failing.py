"""Any failure: the error is raised, error hooks receive a state, everything is closed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer
from trainer import data

STEPS = 4
BATCHES = [{"inputs": np.full((2, 1), n, np.float32)} for n in range(STEPS)]


def step(state, batch):
    """Count the batches in the parameters."""
    return state.replace(step=state.step + 1, params=state.params + 1), {"loss": state.params}


@pytest.fixture
def begin():
    return trainer.TrainState.create(params=jnp.zeros(()), rng=jax.random.key(0))


@pytest.fixture
def seen():
    """The records of the hook of `look`: (epoch, parameters, error)."""
    return []


@pytest.fixture
def look(seen):
    def look(state, metrics):
        seen.append((int(state.epoch), float(state.params), str(sys.exception())))
        return state

    return hooks.on("error", look)


def fail_at_3(state, metrics):
    if int(state.epoch) == 3:
        raise OSError("the hook fails")
    return state


class Writer:
    """A writer that fails in one of its functions at the end of epoch 3."""

    def __init__(self, fails):
        self.fails, self.step = fails, 0

    def write(self, step, values):
        self.step = step
        self.fail("write")

    def flush(self):
        self.fail("flush")

    def close(self):
        pass

    def fail(self, what):
        if what == self.fails and self.step == 3 * STEPS:
            raise OSError(f"{what} fails")


SAVE = trainer.Hook(lambda state, metrics: state, "checkpoint", stage="save")
FAULTS = {
    "control hook": (fail_at_3, "the hook fails"),
    "observer": (hooks.observe(fail_at_3), "the hook fails"),
    "observer in the background": (hooks.background(hooks.observe(fail_at_3)), "the hook fails"),
    "writer": (hooks.log_metrics(Writer("write")), "write fails"),
    "flush before a checkpoint": (hooks.log_metrics(Writer("flush")), "flush fails"),
    "checkpoint": (trainer.Hook(fail_at_3, "failing", stage="save"), "the hook fails"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_failed_hook_error_hooks_see_its_event_and_all_is_closed(begin, look, seen, fault):
    failing, said = FAULTS[fault]
    closed = []
    ends = [
        trainer.Hook(lambda s, m: s, name, close=lambda error, name=name: closed.append(name))
        for name in ("first", "last")
    ]
    phase = trainer.training(step, data.Stream(BATCHES))
    chain = [ends[0], failing, SAVE, look, ends[1]]
    with pytest.raises(OSError, match=said) as raised:
        trainer.fit(begin, phase, epochs=6, hooks=chain)
    assert any("of epoch 3" in note for note in raised.value.__notes__)
    assert seen == [(3, 3 * STEPS, said)]
    assert closed == ["last", "first"]


def breaking_off(seed, epoch):
    """A third epoch that fails during training, after its state was donated."""
    for number, batch in enumerate(BATCHES):
        if epoch == 2 and number == 2:
            raise OSError("the disk is gone")
        yield batch


@pytest.fixture
def breaking():
    return trainer.training(step, data.Stream(breaking_off, superbatch=1))


def test_after_a_failed_phase_error_hooks_see_the_last_checkpoint(
    begin, look, seen, breaking, tmp_path, caplog
):
    count = hooks.stateful("count", lambda state: 0, lambda n, s, m: (n + 1, s))
    reported = []
    tell = hooks.on(
        "error", lambda s, m: reported.append((s.hook_state["count"], m["train/loss"])) or s
    )
    saving = hooks.save_checkpoints(tmp_path, max_cost=None)
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.fit(begin, breaking, epochs=6, hooks=[count, saving, look, tell])
    assert seen == [(2, 2 * STEPS, "the disk is gone")]
    assert reported == [(2, 5.5)]
    assert "the failed phase had used up the state: error hooks see epoch 2" in caplog.text


def test_without_a_checkpoint_they_see_the_state_passed_to_fit(begin, look, seen, breaking):
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.fit(begin, breaking, epochs=6, hooks=look)
    assert seen == [(0, 0, "the disk is gone")]


def test_without_donation_they_see_the_newest_state(begin, look, seen, breaking):
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.fit(begin, breaking, epochs=6, hooks=look, donate=False)
    assert seen == [(2, 2 * STEPS, "the disk is gone")]


def test_without_a_readable_checkpoint_they_see_the_first_state(
    begin, look, seen, tmp_path, caplog
):
    checkpoints = tmp_path / "checkpoints"

    def damaging(seed, epoch):
        for batch in breaking_off(seed, epoch):
            limit = time.monotonic() + 60
            while epoch == 2 and not (checkpoints / "2").exists() and time.monotonic() < limit:
                time.sleep(0.01)  # until the save of epoch 2 has ended
            if epoch == 2:
                for path in checkpoints.glob("*/manifest.json"):
                    path.unlink()
            yield batch

    phase = trainer.training(step, data.Stream(damaging, superbatch=1))
    saving = hooks.save_checkpoints(tmp_path, max_cost=None)
    with pytest.raises(OSError, match="the disk is gone") as raised:
        trainer.fit(begin, phase, epochs=6, hooks=[saving, look])
    assert raised.value.__notes__ == ["in phase 'train' of epoch 3"]
    assert "no checkpoint is intact" in caplog.text
    assert seen == [(0, 0, "the disk is gone")]


def test_a_failure_of_the_last_save_is_seen_too(begin, look, seen, tmp_path, monkeypatch):
    def fail(self, *checkpoint):
        raise OSError("the disk is full")

    monkeypatch.setattr(trainer.Checkpoints, "_write", fail)
    phase = trainer.training(step, data.Stream(BATCHES))
    saving = hooks.save_checkpoints(tmp_path, max_cost=None)
    with pytest.raises(OSError, match="the disk is full"):
        trainer.fit(begin, phase, epochs=1, hooks=[saving, look])
    assert seen == [(1, STEPS, "the disk is full")]


def test_every_hook_is_closed_although_an_error_hook_ends_the_process(begin, breaking):
    closed = []

    def leave(state, metrics):
        raise SystemExit(3)

    last = trainer.Hook(lambda s, m: s, "last", close=lambda error: closed.append("last"))
    with pytest.raises(SystemExit):
        trainer.fit(begin, breaking, epochs=6, hooks=[hooks.on("error", leave), last])
    assert closed == ["last"]


def test_an_observer_that_hangs_ends_the_run_within_its_limit(begin, look, seen):
    release = threading.Event()
    hang = hooks.background(hooks.observe(lambda s, m: release.wait() and s), time_limit=0.3)
    phase = trainer.training(step, data.Stream(BATCHES))
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="took longer than its limit of 0.3 seconds"):
        trainer.fit(begin, phase, epochs=10**6, hooks=[hang, look])
    assert time.monotonic() - began < 30
    assert len(seen) == 1
    release.set()


HANGING = """
import threading
import jax, jax.numpy as jnp
import hooks, trainer

@hooks.observe
def hang(state, metrics):
    threading.Event().wait()

def step(state, data):
    return state.replace(step=state.step + 1), None, {}

state = trainer.TrainState.create(params=jnp.zeros(()), rng=jax.random.key(0))
trainer.fit(
    state, trainer.Phase("train", step), epochs=1, hooks=hooks.background(hang, time_limit=0.3)
)
"""


def test_an_observer_that_hangs_does_not_outlive_the_process():
    command = [sys.executable, "-c", HANGING]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 1
    assert "TimeoutError: 'hang' took longer than its limit of 0.3 seconds" in child.stderr
    assert child.stderr.count("Traceback") == 1
