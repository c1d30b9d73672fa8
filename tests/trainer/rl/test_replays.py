"""Replays: the very states and frames, made again from seed and actions."""

import dataclasses
import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainer
from trainer.rl.curriculum import lessons
from trainer.rl.environments import Box, Discrete, Environment, Step, cartpole
from trainer.rl.episodes import make_episode_player
from trainer.rl.replays import STRETCH


def balancing(params, model_state, x, *, key, train):
    """Hold the pole up: enough for all 500 steps."""
    pushed = x @ params["w"]
    return {"logits": jnp.stack([-pushed, pushed], axis=-1), "value": x[:, 0]}, model_state


NETWORK = SimpleNamespace(
    init=lambda key, x: ({"w": jnp.zeros(4)}, {}),
    apply=balancing,
)


@pytest.fixture(scope="module")
def state():
    params = {"w": jnp.array([0.05, 0.1, 1.0, 0.5])}
    return trainer.TrainState.create(params=params, rng=jax.random.key(0))


@pytest.fixture(scope="module")
def replay(state):
    return make_episode_player(NETWORK, cartpole())(state, 0, 0)


def test_500_steps_of_cartpole_end_in_the_very_state_that_was_played_to(replay, caplog):
    with caplog.at_level(logging.WARNING):
        states = replay.states(cartpole())
    assert (replay.length, replay.truncated) == (500, True)
    assert states.position.shape == (501,)
    assert states.time.tolist() == list(range(501))
    assert not caplog.records  # it warns where the checksum differs


def test_frames_are_those_of_the_states(replay):
    env = cartpole()
    states, frames = replay.states(env), replay.frames(env)
    assert (frames.shape, frames.dtype) == ((501, 80, 120, 3), np.uint8)
    for step in (0, STRETCH, STRETCH + 1, 500):
        state = jax.tree.map(lambda rows, step=step: rows[step], states)
        np.testing.assert_array_equal(frames[step], env.render(state, env.params))


def test_a_change_that_no_reward_shows_is_told(replay, caplog):
    env = cartpole()
    other = env._replace(params=env.params.replace(gravity=jnp.float32(9.9)))
    with caplog.at_level(logging.WARNING):
        replay.states(other)  # the params are the replay's own
        assert not caplog.records
        dataclasses.replace(replay, checksum="0" * 16).states(env)
    (record,) = caplog.records
    assert "ends in another state than it was played to" in record.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"environment": "maze"}, "played in 'maze'; give the environment it is of"),
        ({"actions": np.zeros((500, 2), np.int32)}, r"an action has shape \[\]; got \[2\]"),
        ({"actions": np.full(500, 2, np.int32)}, "whole numbers below 2; got 2 to 2"),
        ({"actions": np.full(500, -1, np.int32)}, "whole numbers below 2; got -1 to -1"),
        ({"actions": np.zeros(500, np.float32)}, "whole numbers below 2"),
        ({"params": ()}, r"params have sizes \[1, 1"),
        ({"seed": 1}, "goes otherwise in this environment 'cartpole' from step"),
        ({"actions": np.zeros(500, np.int32)}, "goes otherwise in this environment"),
        ({"truncated": False}, "from step 499 of 500 on"),
        ({"rewards": np.full(500, 2, np.float32)}, "from step 0 of 500 on"),
    ],
)
def test_a_replay_of_something_else_is_refused(replay, change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(replay, **change).states(cartpole())


def test_what_cannot_be_drawn_has_states_alone(replay):
    env = cartpole()._replace(render=None)
    with pytest.raises(ValueError, match="'cartpole' has no render"):
        replay.frames(env)


def test_a_lesson_is_made_again_from_the_replay_alone(state):
    env = cartpole()
    brief = env.params.replace(max_steps=jnp.int32(5))
    both = lessons(env, {"long": env.params, "brief": brief})
    replay = make_episode_player(NETWORK, both, lesson="brief")(state, 0, 0)
    states = replay.states(both)
    assert (replay.lesson, replay.length) == ("brief", 5)
    assert states.lesson.tolist() == [1] * 6


def test_keys_in_a_state_are_numbers_in_what_is_made_again(always):
    def step(key, state, action, params):
        state = jax.random.split(state)[0]
        value = jax.random.uniform(state)
        return Step(state, value[None], value, value > 2, jnp.bool_(False))

    env = Environment(
        "keyed", lambda key, params: (key, jnp.zeros(1)), step, Box((1,)), Discrete(2), ()
    )
    state = trainer.TrainState.create(params={"w": 0.0}, rng=jax.random.key(0))
    replay = make_episode_player(always(0), env, max_steps=STRETCH + 3)(state, 0, 0)
    assert replay.states(env).shape == (STRETCH + 4, 2)
