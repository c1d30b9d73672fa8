"""Ending a run."""

import logging
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hooks
import hooks.control.stopping
import trainer
from hooks import testing
from trainer import Metrics, data


def count_values(hook, state, values, name="val/loss"):
    """Return after how many values the hook stops, or None."""
    for number, value in enumerate(values, 1):
        state = hook(state, {name: value})
        if state.stop:
            return number
    return None


@pytest.mark.parametrize(
    ("values", "settings", "ends"),
    [
        ([3, 2, 1, 0], {"patience": 1}, None),
        ([1, 1], {"patience": 1}, 2),
        ([1, 2, 3], {"patience": 2}, 3),
        ([1, 2, 0.5, 2, 3], {"patience": 2}, 5),
        ([1, 2, 3], {"patience": 2, "mode": "max"}, None),
        ([3, 2, 1], {"patience": 2, "mode": "max"}, 3),
        ([1, 0.95, 0.9], {"patience": 2, "min_delta": 0.2}, 3),
        ([1, math.nan, math.nan], {"patience": 2}, 3),
        ([math.nan, math.nan], {"patience": 2}, 2),
        ([math.inf, 1.0, 2.0], {"patience": 2}, None),
    ],
)
def test_it_stops_after_patience_evaluations_without_improvement(state, values, settings, ends):
    assert count_values(hooks.stop_early("val/loss", **settings), state, values) == ends


@given(st.lists(st.floats(-1e6, 1e6), max_size=12), st.integers(1, 4))
def test_it_stops_as_soon_as_the_best_is_patience_evaluations_old(values, patience):
    state = trainer.TrainState.create(params={}, rng=jax.random.key(0))
    expected, best, since = None, math.inf, 0
    for number, value in enumerate(values, 1):
        best, since = (value, 0) if value < best else (best, since + 1)
        if since == patience:
            expected = number
            break
    assert count_values(hooks.stop_early("val/loss", patience=patience), state, values) == expected


def test_it_counts_evaluations_and_not_epochs(state):
    hook = hooks.stop_early("val/loss", patience=2)
    state = hook(state, {"val/loss": 1.0})
    assert hook(state, {"train/loss": 9.0}) is state


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"patience": 0}, "patience must be a whole number of at least 1"),
        ({"patience": 1, "mode": "best"}, "'min' or 'max'"),
        ({"patience": 1, "min_delta": -1}, "not be negative"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        hooks.stop_early("val/loss", **settings)


def test_law_7_two_that_stop_decide_the_same_in_either_order(state, phase):
    early = hooks.stop_early("train/loss", patience=1, mode="max")
    at_three = lambda s, m: s.replace(stop=s.stop or int(s.epoch) == 3)  # noqa: E731
    ends = [
        trainer.fit(state, phase, epochs=9, hooks=order)[0]
        for order in ([early, at_three], [at_three, early])
    ]
    assert trainer.fingerprint(ends[0]) == trainer.fingerprint(ends[1])
    assert int(ends[0].epoch) == 2


def test_stop_on_nan_ignores_finite_metrics(state):
    metrics = Metrics({"train/loss": 1.0}, steps={"train/loss": np.array([1.0, 2.0])})
    assert hooks.stop_on_nan()(state, metrics) is state


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_stop_on_nan_names_the_first_step_and_metric(state, caplog, wrong):
    caplog.set_level(logging.ERROR, "entracte")
    steps = {
        "train/loss": np.array([1.0, 2.0, wrong, wrong]),
        "train/grad_norm": np.array([1.0, wrong, wrong, wrong]),
    }
    metrics = Metrics({"train/loss": wrong, "train/grad_norm": wrong}, steps=steps)
    after = hooks.stop_on_nan()(state.replace(step=jnp.int32(40)), metrics)
    assert after.stop
    assert "train/grad_norm is not finite at step 38" in caplog.text


def test_stop_on_nan_ends_a_run_that_diverges(state, caplog):
    def step(state, batch):
        """Gradient descent on w**2 / 2 with a rate of 1e9: w is -1e9 times what it was."""
        w = state.params["w"] * batch["inputs"].mean()
        return state.replace(step=state.step + 1, params={"w": w}), {"loss": (w**2).sum()}

    source = data.Arrays({"inputs": np.full(4, 1 - 1e9, np.float32)}, 1)
    state = state.replace(params={"w": jnp.ones(2)})
    phase = trainer.training(step, source)
    state, history = trainer.fit(state, phase, epochs=9, hooks=hooks.stop_on_nan())
    assert state.stop
    assert len(history) == 1
    assert "train/loss is not finite at step 3" in caplog.text  # 1e54 is beyond float32


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(
        hooks.control.stopping, "time", SimpleNamespace(monotonic=lambda: clock.now)
    )
    return clock


def _epochs(clock, seconds):
    """A hook that makes each epoch take this many seconds of the clock."""

    def pass_time(state, metrics):
        clock.now += seconds[int(state.epoch) - 1]
        return state

    return pass_time


@pytest.mark.parametrize(
    ("seconds", "limit", "ends"),
    [
        ([1.0] * 6, 3.5, 3),  # 3 have passed, and another would make 4
        ([1.0] * 6, 3.0, 3),  # the third fits exactly
        ([1.0] * 6, 9.0, 6),
        ([1.0, 4.0, 1.0, 1.0, 1.0, 1.0], 9.5, 3),  # 6 and the longest, 4
        ([9.0] * 6, 5.0, 1),
        ([1.0] * 6, 6.0, 6),
    ],
)
def test_time_limit_interrupts_before_the_epoch_that_would_not_fit(
    state, phase, clock, seconds, limit, ends
):
    chain = [_epochs(clock, seconds), hooks.time_limit(limit)]
    after, history = trainer.fit(state, phase, epochs=6, hooks=chain)
    assert len(history) == int(after.epoch) == ends
    assert not after.stop


def test_time_limit_counts_from_start_and_leaves_out_compilation(state, clock):
    hook = hooks.time_limit(10.0)
    clock.now += 50  # between making the hook and fit
    hook(state, {}, "start")
    clock.now += 6  # compilation, and an epoch of one second
    assert hook(state, {"time/epoch_seconds": 1.0}) is state
    clock.now += 3
    with pytest.raises(
        trainer.Interrupt, match="of 10 s 9 have passed, and an epoch takes up to 3"
    ):
        hook(state, {"time/epoch_seconds": 1.0})
    hook(state, {}, "start")  # the same chain in another run
    assert hook(state, {"time/epoch_seconds": 1.0}) is state


def test_the_next_run_resumes_after_a_time_limit_and_runs_end_hooks_once(
    state, phase, clock, tmp_path
):
    ended = []

    def note(state, metrics):
        ended.append(int(state.epoch))
        return state

    def run():
        chain = [
            _epochs(clock, [1.0] * 6),
            hooks.time_limit(2.5),
            hooks.on("end", note),
            hooks.save_checkpoints(tmp_path, max_cost=None),
        ]
        return trainer.fit(state, phase, epochs=6, hooks=chain)

    lengths = [len(run()[1]) for _ in range(3)]
    assert lengths == [2, 2, 2]
    assert ended == [6]  # nothing is interrupted after the last epoch
    alone, _ = trainer.fit(state, phase, epochs=6)
    assert trainer.fingerprint(run()[0]) == trainer.fingerprint(alone)


def test_time_limit_does_not_interrupt_a_run_that_stops(state, clock):
    clock.now += 99
    hook, stopped = hooks.time_limit(1.0), state.replace(stop=True)
    assert hook(stopped, {"time/epoch_seconds": 9.0}) is stopped


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan])
def test_a_limit_that_is_not_positive_is_refused(seconds):
    with pytest.raises(ValueError, match="seconds must be positive"):
        hooks.time_limit(seconds)


def test_they_keep_the_laws(state):
    testing.check_hook(hooks.time_limit(3600), state, {"time/epoch_seconds": 1.0})
    testing.check_hook(hooks.stop_early("val/loss", patience=2), state, {"val/loss": 1.0})
    testing.check_hook(hooks.stop_on_nan(), state, {"val/loss": 1.0})
    testing.check_hook(hooks.stop_on_nan(), state, {"val/loss": math.nan})


def test_law_7_an_interrupt_and_a_stop_end_alike_in_either_order(state, phase):
    for order in (0, 1):
        ended = []

        def stop(state, metrics):
            return state.replace(stop=True)

        def end(state, metrics, ended=ended):
            ended.append(int(state.epoch))
            return state

        both = [hooks.time_limit(1e-9), stop]
        chain = hooks.chain(*(both if order else both[::-1]), hooks.on("end", end))
        after, _ = trainer.fit(state, phase, epochs=9, hooks=chain)
        assert (after.stop, ended) == (True, [1])


@pytest.mark.parametrize(
    ("values", "window", "ends"),
    [
        ([9, 10, 3], 1, 2),
        ([9, 10, 11], 2, 3),  # 9.5, then 10.5
        ([50], 2, None),  # the window is not full
        ([math.nan, 12, 12], 2, 3),
    ],
)
def test_stop_at_return_uses_the_mean_of_a_full_window(values, window, ends, state):
    hook = hooks.stop_at_return(10.0, window=window)
    assert count_values(hook, state, values, "rollout/return") == ends
    testing.check_hook(hook, state, {"rollout/return": 3.0})


def test_epochs_without_a_return_do_not_count(state):
    hook = hooks.stop_at_return(10.0)
    assert hook(state, {"rollout/episodes": 0.0}) is state


@pytest.mark.parametrize("settings", [{"target": math.inf}, {"target": 1.0, "window": 0}])
def test_a_target_out_of_range_is_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        hooks.stop_at_return(**settings)
