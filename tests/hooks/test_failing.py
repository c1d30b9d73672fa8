"""Guarded and background hooks."""

import logging
import threading

import chex
import jax
import numpy as np
import pytest

import hooks
import trainer
from trainer import Hook, Interrupt


def failing(times, seen=None):
    """A hook that fails this many times, then stops the run."""
    left = [times]

    def fail(state, metrics):
        if left[0]:
            left[0] -= 1
            raise OSError("no answer")
        return state.replace(stop=True)

    return fail


@pytest.mark.parametrize(
    ("failures", "retries", "stops"), [(0, 0, True), (1, 0, False), (1, 1, True), (3, 2, False)]
)
def test_a_guard_retries_then_logs(state, caplog, failures, retries, stops):
    after = hooks.guard(failing(failures), retries=retries)(state, {})
    assert after.stop == stops
    assert (after is state) != stops
    assert caplog.text.count("Traceback") == min(failures, retries + 1)


def test_a_guard_lets_interrupts_and_broken_contracts_through(state, phase):
    def interrupt(state, metrics):
        raise Interrupt("enough")

    with pytest.raises(Interrupt):
        hooks.guard(interrupt)(state, {})
    with pytest.raises(TypeError, match="must return a TrainState"):
        trainer.fit(state, phase, epochs=1, hooks=hooks.guard(lambda state, metrics: None))


def test_a_guard_is_refused_for_saves_and_for_negative_retries():
    with pytest.raises(ValueError, match="hook 'save' saves and cannot be guarded"):
        hooks.guard(Hook(lambda state, metrics: state, "save", stage="save"))
    with pytest.raises(ValueError, match="at least 0"):
        hooks.guard(failing(0), retries=-1)


def test_a_guard_is_refused_for_control_hooks_on_several_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="on several processes"):
        hooks.guard(failing(0))
    hooks.guard(hooks.observe(failing(0)))


def test_a_background_observer_sees_every_event_in_order_on_another_thread(start, train):
    seen = []

    @hooks.observe
    def look(state, metrics):
        assert threading.current_thread() is not threading.main_thread()
        assert isinstance(state.params["w"], np.ndarray)
        seen.append((int(state.epoch), metrics["train/loss"], float(state.params["w"].sum())))
        return state

    expected = []

    def note(state, metrics):
        total = float(np.array(state.params["w"]).sum())
        expected.append((int(state.epoch), metrics["train/loss"], total))
        return state

    state, phase = start, train
    trainer.fit(state, phase, epochs=5, hooks=[hooks.background(look), note])
    assert seen == expected


def test_law_3_a_background_observer_changes_nothing(start, train):
    state, phase = start, train
    alone, _ = trainer.fit(state, phase, epochs=3)
    look = hooks.background(hooks.observe(lambda state, metrics: state))
    watched, _ = trainer.fit(state, phase, epochs=3, hooks=look)
    assert trainer.fingerprint(alone) == trainer.fingerprint(watched)


def test_a_failure_in_the_background_is_raised_at_the_next_event(state, phase):
    failed = threading.Event()

    @hooks.observe
    def fail(state, metrics):
        failed.set()
        raise LookupError("lost in the background")

    def wait(state, metrics):
        if int(state.epoch) == 2:
            failed.wait(60)
        return state

    quiet = hooks.background(fail)
    epochs = []
    count = hooks.observe(lambda state, metrics: epochs.append(int(state.epoch)) or state)
    with pytest.raises(LookupError, match="lost in the background") as raised:
        trainer.fit(state, phase, epochs=50, hooks=[wait, quiet, count])
    assert len(epochs) < 50
    assert "on the worker thread of 'fail'" in raised.value.__notes__


def test_a_failure_of_the_last_event_is_raised_when_the_run_closes(state, phase):
    @hooks.observe
    def fail(state, metrics):
        raise LookupError("lost at the last")

    with pytest.raises(LookupError, match="lost at the last"):
        trainer.fit(state, phase, epochs=1, hooks=hooks.background(fail))


def test_its_thread_ends_with_the_run_and_starts_again_with_the_next(state, phase):
    seen = []
    look = hooks.background(hooks.observe(lambda s, m: seen.append(int(s.epoch)) or s))
    before = threading.active_count()
    for epochs in (2, 4):
        state, _ = trainer.fit(state, phase, epochs=epochs, hooks=look)
        assert threading.active_count() == before
    assert seen == [1, 2, 3, 4]


def test_records_in_the_background_are_written_before_a_save(state, phase):
    seen = []
    look = hooks.background(hooks.observe(lambda s, m: seen.append(int(s.epoch)) or s))

    def save(state, metrics):
        assert seen == list(range(1, int(state.epoch) + 1))
        return state

    trainer.fit(state, phase, epochs=5, hooks=[Hook(save, "save", stage="save"), look])


def test_a_rollouts_output_is_copied_for_the_background(state):
    seen = []

    def rollout(state, data):
        return state, {"steps": state.params["w"] + 1}, {"return": state.params["w"].sum()}

    look = hooks.on(
        "rollout",
        hooks.background(hooks.observe(lambda s, m: seen.append(m.output["steps"]) or s)),
    )
    trainer.fit(state, trainer.Phase("rollout", rollout), epochs=2, hooks=look)
    assert all(isinstance(steps, np.ndarray) for steps in seen)
    chex.assert_trees_all_equal(seen, [np.array([2.0, -1.0], np.float32)] * 2)


@pytest.mark.parametrize(
    "hook",
    [
        lambda state, metrics: state,
        hooks.observe(hooks.stateful("m", lambda state: 0, lambda m, s, _: (m, s))),
        hooks.observe(hooks.writes("a")(lambda state, metrics: state)),
    ],
)
def test_only_observers_without_hook_state_and_scores_run_in_the_background(hook):
    with pytest.raises(
        ValueError, match="background takes observers without hook state and scores"
    ):
        hooks.background(hook)


def test_an_error_is_logged_with_its_hook(state, caplog):
    caplog.set_level(logging.ERROR, "entracte")
    hooks.guard(failing(1))(state, {})
    assert "hook 'fail' failed, try 1 of 1" in caplog.text
