"""Environments of jumanji: the same, step for step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.rl.environments import Box, Discrete, auto_reset, from_jumanji

jumanji = pytest.importorskip("jumanji")
wrappers = pytest.importorskip("jumanji.wrappers")
environments = pytest.importorskip("jumanji.environments")

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)


def snake(limit=4):
    return environments.Snake(num_rows=4, num_cols=4, time_limit=limit)


def truncating(env):
    """Make the end of an episode a truncation, by its discount."""

    class Truncating(wrappers.Wrapper):
        def step(self, state, action):
            state, given = super().step(state, action)
            return state, given.replace(discount=jnp.ones_like(given.discount))

    return Truncating(env)


def steps_of(env, count):
    """Take the first of the allowed actions at each step."""

    def one(carried, key):
        state, mask = carried
        step = env.step(key, state, jnp.argmax(mask).astype(jnp.int32), env.params)
        return (step.state, step.observation["action_mask"]), step

    state, observation = env.reset(KEY, env.params)
    begun = state, observation["action_mask"]
    return jax.jit(lambda keys: jax.lax.scan(one, begun, keys)[1])(jax.random.split(KEY, count))


def test_steps_are_those_of_jumanji():
    theirs = snake()
    steps = steps_of(from_jumanji(theirs), 4)
    state, given = theirs.reset(KEY)
    step = jax.jit(theirs.step)
    for number in range(4):
        state, given = step(state, jnp.argmax(given.observation.action_mask))
        for name in ("grid", "step_count", "action_mask"):
            np.testing.assert_array_equal(
                steps.observation[name][number], getattr(given.observation, name)
            )
        assert steps.reward[number] == given.reward
    assert given.last()


def test_a_discount_of_0_terminates():
    steps = steps_of(from_jumanji(snake()), 4)
    assert steps.terminated.tolist() == [False, False, False, True]
    assert not steps.truncated.any()


def test_the_last_step_with_a_discount_truncates():
    steps = steps_of(from_jumanji(truncating(snake())), 4)
    assert steps.truncated.tolist() == [False, False, False, True]
    assert not steps.terminated.any()


def test_it_resets():
    steps = steps_of(auto_reset(from_jumanji(snake())), 8)
    assert steps.observation["step_count"].tolist() == [1, 2, 3, 0, 1, 2, 3, 0]
    assert steps.info["final_observation"]["step_count"].tolist() == [1, 2, 3, 4, 1, 2, 3, 4]


def test_records_become_dicts_with_paths_as_names():
    env = from_jumanji(jumanji.make("Maze-v0"))
    assert env.name == "Maze"
    assert env.action_space == Discrete(4)
    assert env.observation_space["walls"] == Box((10, 10), 0.0, 1.0, jnp.dtype(bool))
    assert env.observation_space["agent_position/row"] == Box((), 0.0, 9.0, jnp.dtype(jnp.int32))
    state, observation = jax.eval_shape(env.reset, KEY, env.params)
    step = jax.eval_shape(env.step, KEY, state, jnp.int32(0), env.params)
    for given in (observation, step.observation):
        shapes = {name: (x.shape, x.dtype) for name, x in given.items()}
        assert shapes == {name: (x.shape, x.dtype) for name, x in env.observation_space.items()}
    assert [x.dtype for x in step[2:5]] == [jnp.float32, bool, bool]


def test_several_categories_at_once_are_refused():
    with pytest.raises(ValueError, match="actions of 'Minesweeper' must be one category"):
        from_jumanji(jumanji.make("Minesweeper-v0"))


def test_several_agents_are_refused():
    with pytest.raises(
        ValueError, match=r"'Connector' must return one reward a step; it returns \["
    ):
        from_jumanji(jumanji.make("Connector-v3"))


def test_something_else_is_refused():
    with pytest.raises(TypeError, match="got a str without action_spec"):
        from_jumanji("Maze-v0")
