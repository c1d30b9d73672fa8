"""Averages of parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hooks
import trainer
from hooks import testing


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8), st.floats(0, 0.99))
def test_it_is_the_bias_corrected_moving_average(values, decay):
    state = trainer.TrainState.create(params={"w": jnp.float32(7)}, rng=jax.random.key(0))
    hook = hooks.average_params(decay)
    for value in values:
        state = hook(state.replace(params={"w": jnp.float32(value)}), {})
    weights = decay ** np.arange(len(values))[::-1]
    wanted = np.sum(weights * np.array(values)) / weights.sum()
    average = state.hook_state["average_params"]["params"]["w"]
    assert float(average) == pytest.approx(wanted, abs=1e-4)


def test_after_one_update_it_equals_the_parameters_bit_for_bit(state):
    average = hooks.average_params(0.999)(state, {}).hook_state["average_params"]["params"]
    chex.assert_trees_all_equal(average, state.params)


def test_it_survives_donation_and_does_not_change_training(start, train):
    state, phase = start, train
    alone, _ = trainer.fit(state, phase, epochs=3)
    averaged, _ = trainer.fit(state, phase, epochs=3, hooks=hooks.average_params(0.5))
    chex.assert_trees_all_equal(alone.params, averaged.params)
    average = averaged.hook_state["average_params"]
    chex.assert_tree_all_finite(average["params"])
    assert average["updates"] == 3
    assert not np.array_equal(average["params"]["w"], alone.params["w"])


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        hooks.average_params(decay)


def test_dtypes_are_kept(state, phase):
    params = {"w": jnp.ones(2, jnp.bfloat16), "b": jnp.zeros(())}
    state = state.replace(params=params, opt_state=())
    state, _ = trainer.fit(state, phase, epochs=2, hooks=hooks.average_params(0.5))
    average = state.hook_state["average_params"]["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(average, state.params)


def test_it_keeps_the_laws(state):
    testing.check_hook(hooks.average_params(0.9), state, {})


# swa


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8), st.integers(1, 8))
def test_swa_is_the_mean_since_its_start_and_the_parameters_before(values, start):
    state = trainer.TrainState.create(params={"w": jnp.float32(7)}, rng=jax.random.key(0))
    hook = hooks.swa(start=start)
    for epoch, value in enumerate(values, 1):
        params = {"w": jnp.float32(value)}
        state = hook(state.replace(params=params, epoch=jnp.int32(epoch)), {})
    wanted = np.mean(values[start - 1 :] or values[-1])
    kept = state.hook_state["swa"]
    assert float(kept["params"]["w"]) == pytest.approx(wanted, abs=1e-4)
    assert kept["updates"] == max(len(values) - start + 1, 0)


def test_swa_is_measured_and_resumes(start, train, val, check_resumes):
    make = lambda: [hooks.swa(start=2), hooks.evaluate(val, params="swa")]  # noqa: E731
    averaged = check_resumes(make, start, train, epochs=4)
    alone, _ = trainer.fit(start, train, epochs=4)
    chex.assert_trees_all_equal(alone.params, averaged.params)
    assert averaged.hook_state["swa"]["updates"] == 3
    assert not np.array_equal(averaged.hook_state["swa"]["params"]["w"], alone.params["w"])


def test_swa_keeps_dtypes(state, phase):
    params = {"w": jnp.ones(2, jnp.bfloat16), "b": jnp.zeros((), jnp.int32)}
    first = state.replace(params=params, opt_state=())
    state = hooks.swa(start=1)(first, {})
    chex.assert_trees_all_equal_shapes_and_dtypes(state.hook_state["swa"]["params"], params)


def test_swa_keeps_the_laws_and_refuses_a_start_before_the_first_epoch(state):
    testing.check_hook(hooks.swa(start=3), state, {})
    testing.check_hook(hooks.swa(start=1, name="mean"), state.replace(epoch=jnp.int32(2)), {})
    with pytest.raises(
        ValueError, match="the first epoch that counts, must be a whole number of at least 1; got 0"
    ):
        hooks.swa(start=0)
