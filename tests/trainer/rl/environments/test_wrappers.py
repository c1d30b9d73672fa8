"""Wrappers: termination and truncation, automatic resets, final observations."""

import chex
import jax
import jax.numpy as jnp
import pytest

from trainer.rl.environments import (
    Box,
    Discrete,
    Environment,
    TimeStep,
    auto_reset,
    cartpole,
    gridworld,
    record_episodes,
    time_limit,
)

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)


def _counting():
    """Count up by the action from a random start below 1; terminates at `params` and above."""

    def reset(key, params):
        state = jax.random.uniform(key)
        return {"count": state, "key": key}, state

    def step(key, state, action, params):
        count = state["count"] + action
        after = {"count": count, "key": key}
        return TimeStep(
            after, count, 0.5 * action, count >= params, jnp.bool_(False), {"seen": count}
        )

    return Environment(
        name="counting",
        reset=reset,
        step=step,
        observation_space=Box(()),
        action_space=Discrete(10),
        params=jnp.float32(5),
        check=lambda params: None,
        render=lambda state, params: jnp.full((2, 2, 3), state["count"], jnp.uint8),
        lessons=("low", "high"),
    )


def _run(env, actions):
    """Step through the actions; return the first observation, and each `TimeStep`."""
    state, observation = jax.jit(env.reset)(KEY, env.params)
    step, steps = jax.jit(env.step), []
    for number, action in enumerate(actions):
        steps.append(step(jax.random.key(number), state, jnp.float32(action), env.params))
        state = steps[-1].state
    return observation, steps


def test_the_statistics_of_hand_worked_episodes():
    env = auto_reset(record_episodes(_counting()))
    _, steps = _run(env, [1, 2, 3, 4, 1, 2])
    assert [bool(step.terminated) for step in steps] == [False, False, True, False, True, False]
    assert [float(step.info["episode_return"]) for step in steps] == [0.5, 1.5, 3, 2, 2.5, 1]
    assert [int(step.info["episode_length"]) for step in steps] == [1, 2, 3, 1, 2, 1]
    assert steps[0].info["episode_return"].dtype == jnp.float32
    assert steps[0].info["episode_length"].dtype == jnp.int32


def test_a_new_episode_begins_and_the_final_observation_is_kept():
    begun, steps = _run(auto_reset(_counting()), [4, 3, 1])
    end = begun + 4 + 3
    assert float(steps[0].observation) == float(steps[0].info["final_observation"]) == begun + 4
    assert steps[1].terminated
    assert float(steps[1].info["final_observation"]) == end
    assert float(steps[1].reward) == 1.5
    assert 0 <= float(steps[1].observation) < 1
    assert float(steps[1].observation) != float(begun)
    chex.assert_trees_all_equal(steps[1].state["count"], steps[1].observation)
    assert float(steps[2].observation) == steps[1].observation + 1
    assert float(steps[1].info["seen"]) == end


def test_the_reset_has_a_key_of_its_own():
    _, steps = _run(auto_reset(_counting()), [9])
    plain_state, _ = _counting().reset(jax.random.key(0), jnp.float32(5))
    assert steps[0].state["key"] != plain_state["key"]
    _, going = _run(auto_reset(_counting()), [0])
    assert steps[0].state["key"] != going[0].state["key"]


def test_a_time_limit_truncates_unless_the_step_terminates():
    _, steps = _run(time_limit(_counting(), 2), [1, 1, 1])
    assert [bool(step.truncated) for step in steps] == [False, True, True]
    assert not any(bool(step.terminated) for step in steps)
    _, steps = _run(time_limit(_counting(), 2), [1, 9])
    assert (bool(steps[1].terminated), bool(steps[1].truncated)) == (True, False)


def test_a_time_limit_counts_each_episode_from_its_start():
    _, steps = _run(auto_reset(time_limit(_counting(), 3)), [1, 9, 1, 1, 0, 0])
    assert [bool(step.terminated) for step in steps] == [False, True, False, False, False, False]
    assert [bool(step.truncated) for step in steps] == [False, False, False, False, True, False]
    assert [int(step.state.elapsed) for step in steps] == [1, 0, 1, 2, 0, 1]


def test_an_environments_own_truncation_is_kept():
    env = cartpole()
    params = env.params.replace(max_steps=jnp.int32(1))
    for wrapped in (time_limit(env, 5), record_episodes(env), auto_reset(env)):
        state, _ = wrapped.reset(KEY, params)
        step = wrapped.step(KEY, state, jnp.int32(0), params)
        assert (bool(step.terminated), bool(step.truncated)) == (False, True)


@pytest.mark.parametrize("wrap", [auto_reset, record_episodes, lambda env: time_limit(env, 3)])
def test_everything_else_is_unchanged(wrap):
    env = _counting()
    wrapped = wrap(env)
    assert wrapped._replace(reset=env.reset, step=env.step, render=env.render) == env
    state, _ = wrapped.reset(KEY, env.params)
    step = wrapped.step(KEY, state, jnp.float32(3), env.params)
    assert (wrapped.render(step.state, env.params) == 3).all()
    assert wrap(env._replace(render=None)).render is None


@pytest.mark.parametrize("wrap", [auto_reset, record_episodes, lambda env: time_limit(env, 3)])
def test_an_environment_that_resets_by_itself_is_refused(wrap):
    env = wrap(auto_reset(_counting()))
    state, _ = env.reset(KEY, env.params)
    with pytest.raises(ValueError, match="put auto_reset around the other wrappers"):
        env.step(KEY, state, jnp.float32(1), env.params)


def test_a_time_limit_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="time_limit: steps must be at least 1; got 0"):
        time_limit(cartpole(), 0)


@pytest.mark.parametrize("make", [cartpole, lambda: gridworld("key")])
def test_many_environments_run_in_one_compiled_scan(make):
    env = auto_reset(record_episodes(time_limit(make(), 7)))
    reset = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))
    states, begun = reset(jax.random.split(KEY, 5), env.params)

    @jax.jit
    def run(states):
        def one(states, key):
            action_key, step_key = jax.random.split(key)
            actions = jax.random.randint(action_key, (5,), 0, env.action_space.n)
            keys = jax.random.split(step_key, 5)
            step = jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys, states, actions, env.params)
            return step.state, step

        return jax.lax.scan(one, states, jax.random.split(KEY, 15))

    after, steps = run(states)
    # With a weak type, a phase that returns the state would compile twice.
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((states, begun, after, steps)))
    chex.assert_trees_all_equal_shapes_and_dtypes(states, after)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.tree.map(lambda x: x[0], steps.observation), begun
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(
        steps.observation, steps.info["final_observation"]
    )
    ended = steps.terminated | steps.truncated
    assert steps.info["episode_length"].max() <= 7
    assert (ended.sum(axis=0) >= 2).all()
