"""CartPole: gymnasium's, step for step."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.rl.environments import CartPoleParams, cartpole
from trainer.rl.environments.cartpole import RANGES, CartPoleState

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ENV = cartpole()
KEY = jax.random.key(0)
reset = jax.jit(ENV.reset)
step = jax.jit(ENV.step)
render = jax.jit(ENV.render)


@pytest.fixture(scope="module")
def theirs():
    """Gymnasium's CartPole-v1 with its own time limit."""
    env = pytest.importorskip("gymnasium").make("CartPole-v1")
    yield env
    env.close()


def _at_random(seed):
    draws = np.random.default_rng(seed)
    return lambda observation: int(draws.integers(2))


def _balanced(seed):
    """Push towards where the pole falls: it stays up for the whole episode."""
    return lambda observation: int(observation @ np.array([0.1, 0.5, 10.0, 2.0]) > 0)


def _compare(theirs, policy, seed, *, resynced):
    """Run an episode of both from our initial state; return its steps and how it ended."""
    state, observation = reset(jax.random.key(seed), ENV.params)
    theirs.reset(seed=seed)
    theirs.unwrapped.state = np.asarray(observation, np.float64)
    for count in range(1, 501):
        action = policy(np.asarray(observation))
        ours = step(KEY, state, jnp.int32(action), ENV.params)
        if resynced:
            theirs.unwrapped.state = np.asarray(observation, np.float64)
        expected, reward, terminated, truncated, _ = theirs.step(action)
        tolerance = 1e-6 if resynced else 1e-5
        np.testing.assert_allclose(ours.observation, expected, rtol=tolerance, atol=tolerance)
        assert float(ours.reward) == reward
        assert bool(ours.terminated) == terminated
        assert bool(ours.truncated) == (truncated and not terminated)
        state, observation = ours.state, ours.observation
        if terminated or truncated:
            return count, "fell" if terminated else "cut off"
    raise AssertionError("the episode did not end")


@pytest.mark.parametrize("seed", range(8))
def test_whole_episodes_end_at_gymnasiums_step(theirs, seed):
    count, end = _compare(theirs, _at_random(seed), seed, resynced=False)
    assert end == "fell"
    assert 5 < count < 100


@pytest.mark.parametrize("seed", range(2))
def test_each_of_500_steps_is_gymnasiums_and_the_last_truncates(theirs, seed):
    # Float32 errors grow e-fold in a quarter of a second where nothing damps them, so over 500
    # steps gymnasium, which counts in float64, starts each step from our state.
    assert _compare(theirs, _balanced(seed), seed, resynced=True) == (500, "cut off")


def _state(*, position=0.0, angle=0.0, time=0):
    zero = jnp.float32(0)
    return CartPoleState(jnp.float32(position), zero, jnp.float32(angle), zero, jnp.int32(time))


@pytest.mark.parametrize("side", [-1, 1])
def test_both_limits_end_an_episode_on_both_sides(side):
    for state in (_state(position=2.41 * side), _state(angle=0.21 * side)):
        after = step(KEY, state, jnp.int32(0), ENV.params)
        assert after.terminated
        assert not after.truncated
        assert float(after.reward) == 1
    after = step(KEY, _state(position=2.39 * side, angle=0.2 * side), jnp.int32(0), ENV.params)
    assert not after.terminated


def test_a_fall_in_the_last_step_terminates():
    after = step(KEY, _state(angle=0.3, time=499), jnp.int32(0), ENV.params)
    assert (bool(after.terminated), bool(after.truncated)) == (True, False)
    after = step(KEY, _state(time=499), jnp.int32(0), ENV.params)
    assert (bool(after.terminated), bool(after.truncated)) == (False, True)
    after = step(KEY, _state(time=498), jnp.int32(0), ENV.params)
    assert (bool(after.terminated), bool(after.truncated)) == (False, False)


def test_a_hand_worked_push():
    # At rest, upright, pushed to the right by 10 N: push = 10 / 1.1, angular acceleration
    # = -push / (0.5 * (4/3 - 0.1/1.1)), acceleration = push + 0.05 * -angular / 1.1.
    after = step(KEY, _state(), jnp.int32(1), ENV.params).state
    push = 10 / 1.1
    angular = -push / (0.5 * (4 / 3 - 0.1 / 1.1))
    chex.assert_trees_all_close(
        after,
        CartPoleState(0.0, 0.02 * (push - 0.05 * angular / 1.1), 0.0, 0.02 * angular, 1),
        rtol=1e-6,
    )


def test_other_params_compile_nothing():
    stepped = jax.jit(chex.assert_max_traces(ENV.step, n=1))
    params = ENV.params.replace(force=jnp.float32(20), max_steps=jnp.int32(1))
    plain = stepped(KEY, _state(), jnp.int32(1), ENV.params)
    strong = stepped(KEY, _state(), jnp.int32(1), params)
    np.testing.assert_allclose(strong.state.velocity, 2 * plain.state.velocity, rtol=1e-6)
    assert strong.truncated
    assert not plain.truncated


def test_episodes_begin_near_the_middle_each_at_random():
    keys = jax.random.split(KEY, 500)
    states, observations = jax.jit(jax.vmap(ENV.reset, in_axes=(0, None)))(keys, ENV.params)
    assert observations.shape == (500, 4)
    assert 0.049 < float(jnp.abs(observations).max()) <= 0.05
    assert jnp.unique(observations).size > 1900
    chex.assert_trees_all_equal(jnp.stack(states[:4], axis=1), observations)


@pytest.mark.parametrize("name", RANGES)
def test_params_out_of_range_are_refused_by_name(name):
    low, high = RANGES[name].least, RANGES[name].most
    kind = int if name == "max_steps" else float
    ENV.check(ENV.params.replace(**{name: kind(low)}))
    ENV.check(ENV.params.replace(**{name: kind(high)}))
    for value in (kind(low) - 1, kind(high) * 2, jnp.nan):
        with pytest.raises(ValueError, match=f"cartpole: `{name}` must be .*outside the envir"):
            ENV.check(ENV.params.replace(**{name: value}))


def test_other_params_are_refused():
    ENV.check(ENV.params)
    assert RANGES.keys() == {field.name for field in dataclasses.fields(CartPoleParams)}
    with pytest.raises(TypeError, match="cartpole: params must be CartPoleParams.*got dict"):
        ENV.check({"gravity": 9.8})


def test_the_picture_follows_the_state():
    upright = render(_state(), ENV.params)
    assert (upright.shape, upright.dtype) == ((80, 120, 3), jnp.uint8)
    # The cart moves 1 m to the right: 25 of 120 pixels for 4.8 m.
    right = render(_state(position=1.0), ENV.params)
    pole = np.array([200, 120, 50])

    def columns(picture):
        rows, columns = np.nonzero((np.asarray(picture) == pole).all(axis=-1))
        return columns, rows

    np.testing.assert_allclose(columns(right)[0].mean() - columns(upright)[0].mean(), 25, atol=0.5)
    # A leaning pole's tip is to the right of its foot, and as high as its cosine.
    leaning_columns, leaning_rows = columns(render(_state(angle=0.5), ENV.params))
    tip, foot = leaning_rows.argmin(), leaning_rows.argmax()
    assert leaning_columns[tip] - leaning_columns[foot] > 8
    assert 1 <= leaning_rows.min() - columns(upright)[1].min() <= 5
