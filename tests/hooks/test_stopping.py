"""Deciding to end."""

import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hooks
import trainer
from hooks import testing
from trainer import Metrics


def _ends(hook, state, values, name="val/loss"):
    """After how many values it stops, or None."""
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
    assert _ends(hooks.stop_early("val/loss", **settings), state, values) == ends


@given(st.lists(st.floats(-1e6, 1e6), max_size=12), st.integers(1, 4))
def test_it_stops_as_soon_as_the_best_is_patience_evaluations_old(values, patience):
    state = trainer.TrainState.create(params={}, rng=jax.random.key(0))
    expected, best, since = None, math.inf, 0
    for number, value in enumerate(values, 1):
        best, since = (value, 0) if value < best else (best, since + 1)
        if since == patience:
            expected = number
            break
    assert _ends(hooks.stop_early("val/loss", patience=patience), state, values) == expected


def test_it_counts_evaluations_and_not_epochs(state):
    hook = hooks.stop_early("val/loss", patience=2)
    state = hook(state, {"val/loss": 1.0})
    assert hook(state, {"train/loss": 9.0}) is state


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"patience": 0}, "at least 1 evaluation"),
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


def test_stop_on_nan_leaves_finite_numbers_alone(state):
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


def test_stop_on_nan_ends_a_run_that_diverges(linear, digits, caplog):
    task = trainer.supervised(linear, trainer.losses.classification, optax.sgd(1e38))
    state = task.init(jax.random.key(0), digits[0].example)
    phase = trainer.training(task.step, digits[0])
    state, history = trainer.fit(state, phase, epochs=9, hooks=hooks.stop_on_nan())
    assert state.stop
    assert len(history) < 9
    assert "is not finite at step" in caplog.text


def test_they_keep_the_laws(state):
    testing.check_hook(hooks.stop_early("val/loss", patience=2), state, {"val/loss": 1.0})
    testing.check_hook(hooks.stop_on_nan(), state, {"val/loss": 1.0})
    testing.check_hook(hooks.stop_on_nan(), state, {"val/loss": math.nan})
