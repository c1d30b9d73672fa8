"""Replays: the same states and frames, reproduced from seed and actions."""

import dataclasses
import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainer
from trainer.rl.curriculum import lessons
from trainer.rl.environments import Box, Discrete, Environment, TimeStep, cartpole
from trainer.rl.replays.episodes import make_episode_runner
from trainer.rl.replays.replay import CHUNK

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def balancing(params, model_state, x, *, key, train):
    """Balance the pole for all 500 steps."""
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
    return make_episode_runner(NETWORK, cartpole())(state, 0, 0)


def test_500_steps_of_cartpole_end_in_the_same_state(replay, caplog):
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
    for step in (0, CHUNK, CHUNK + 1, 500):
        state = jax.tree.map(lambda rows, step=step: rows[step], states)
        np.testing.assert_array_equal(frames[step], env.render(state, env.params))


def test_a_different_last_state_is_logged(replay, caplog):
    env = cartpole()
    other = env._replace(params=env.params.replace(gravity=jnp.float32(9.9)))
    with caplog.at_level(logging.WARNING):
        replay.states(other)  # the params are the replay's own
        assert not caplog.records
        dataclasses.replace(replay, checksum="0" * 16).states(env)
    (record,) = caplog.records
    assert "ends in another state than the recorded one" in record.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"environment": "maze"}, "its environment is 'maze'; use that environment"),
        ({"actions": np.zeros((500, 2), np.int32)}, r"an action has shape \[\]; got \[2\]"),
        ({"actions": np.full(500, 2, np.int32)}, "whole numbers below 2; got 2 to 2"),
        ({"actions": np.full(500, -1, np.int32)}, "whole numbers below 2; got -1 to -1"),
        ({"actions": np.zeros(500, np.float32)}, "whole numbers below 2"),
        ({"params": ()}, r"params have sizes \[1, 1"),
        ({"seed": 1}, "differs in this environment 'cartpole' from step"),
        ({"actions": np.zeros(500, np.int32)}, "differs in this environment"),
        ({"truncated": False}, "from step 499 of 500 on"),
        ({"rewards": np.full(500, 2, np.float32)}, "from step 0 of 500 on"),
    ],
)
def test_a_replay_that_does_not_fit_is_refused(replay, change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(replay, **change).states(cartpole())


def test_an_environment_without_render_has_no_frames(replay):
    env = cartpole()._replace(render=None)
    with pytest.raises(ValueError, match="'cartpole' has no render"):
        replay.frames(env)


def test_a_replay_reproduces_its_lesson(state):
    env = cartpole()
    brief = env.params.replace(max_steps=jnp.int32(5))
    both = lessons(env, {"long": env.params, "brief": brief})
    replay = make_episode_runner(NETWORK, both, lesson="brief")(state, 0, 0)
    states = replay.states(both)
    assert (replay.lesson, replay.length) == ("brief", 5)
    assert states.lesson.tolist() == [1] * 6


def test_keys_in_a_state_are_reproduced_as_their_data(always):
    def step(key, state, action, params):
        state = jax.random.split(state)[0]
        value = jax.random.uniform(state)
        return TimeStep(state, value[None], value, value > 2, jnp.bool_(False))

    env = Environment(
        "keyed", lambda key, params: (key, jnp.zeros(1)), step, Box((1,)), Discrete(2), ()
    )
    state = trainer.TrainState.create(params={"w": 0.0}, rng=jax.random.key(0))
    replay = make_episode_runner(always(0), env, max_steps=CHUNK + 3)(state, 0, 0)
    assert replay.states(env).shape == (CHUNK + 4, 2)
