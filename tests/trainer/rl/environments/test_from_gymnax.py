"""Environments of gymnax: the same, step for step, apart from the reset."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
import trainer
from trainer.rl import PPOConfig, ppo
from trainer.rl.curriculum import lessons
from trainer.rl.environments import Box, Discrete, from_gymnax
from trainer.rl.rollouts import rollout

gymnax = pytest.importorskip("gymnax")

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
SMALL = models.actor_critic(actions=2, hidden=(8,))


@pytest.fixture(scope="module")
def cartpole():
    return from_gymnax(*gymnax.make("CartPole-v1"))


def stepped(env, params, actions):
    """Step ours and gymnax's own, which resets by itself, with the same keys and actions."""
    theirs, _ = gymnax.make(env.name)

    def both(state, row):
        key, action = row
        own = env.step(jax.random.split(key)[0], state, action, params)
        _, after, reward, terminated, truncated, info = theirs.step(key, state, action, params)
        told = info["final_observation"], reward, terminated, truncated
        return after, ((own.observation, own.reward, own.terminated, own.truncated), told)

    state, _ = env.reset(KEY, params)
    keys = jax.random.split(KEY, len(actions))
    return jax.jit(lambda *rows: jax.lax.scan(both, state, rows)[1])(keys, jnp.asarray(actions))


def test_steps_are_those_of_gymnax(cartpole):
    own, theirs = stepped(cartpole, cartpole.params, np.arange(60) % 7 % 2)
    jax.tree.map(np.testing.assert_array_equal, own, theirs)
    assert own[2].any()
    assert not own[3].any()


def test_a_time_limit_truncates():
    env = from_gymnax(*gymnax.make("Pendulum-v1"))
    assert env.action_space == Box((1,), -2.0, 2.0)
    params = env.params.replace(max_steps_in_episode=3)
    own, _ = stepped(env, params, np.ones((7, 1), np.float32))
    assert own[3].tolist() == [False, False, True, False, False, True, False]
    assert not own[2].any()


def test_a_termination_at_the_limit_is_no_truncation(cartpole):
    params = cartpole.params.replace(max_steps_in_episode=1, x_threshold=0.0)
    own, theirs = stepped(cartpole, params, [0, 1])
    assert theirs[3].all()
    assert own[2].all()
    assert not own[3].any()


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("Catch-bsuite", Box((10, 5), 0.0, 1.0)),  # declares int32
        ("FourRooms-misc", Box((4,), 1.0, 11.0, jnp.dtype(jnp.int32))),  # declares float32
        ("FrozenLake-misc", Discrete(16)),
        ("UmbrellaChain-bsuite", Box((3,), 0.0, 1.0)),  # its rewards are int32
    ],
)
def test_observations_are_in_the_space_and_all_types_are_kept(name, space):
    env = from_gymnax(*gymnax.make(name))
    assert env.observation_space == space
    state, observation = jax.eval_shape(env.reset, KEY, env.params)
    step = jax.eval_shape(env.step, KEY, state, jnp.int32(0), env.params)
    kinds = [
        [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(both)]
        for both in ((state, observation), (step.state, step.observation))
    ]
    assert kinds[0] == kinds[1]
    assert not any(weak for _, _, weak in kinds[0])
    assert (observation.shape, observation.dtype) == (space.shape, space.dtype)
    assert [x.dtype for x in step[2:5]] == [jnp.float32, bool, bool]


def test_lessons_compile_once(cartpole):
    heavy = cartpole.params.replace(gravity=20.0)
    env = lessons(cartpole, {"light": cartpole.params, "heavy": heavy})
    step = jax.jit(env.step)
    ends = []
    for weights in (jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])):
        state, _ = env.reset(KEY, weights)
        for _ in range(3):
            state, observation, *_ = step(KEY, state, jnp.int32(0), weights)
        ends.append(observation)
    assert ends[0][3] != ends[1][3]
    assert step._cache_size() == 1


def test_params_of_another_environment_are_refused(cartpole):
    _, params = gymnax.make("Pendulum-v1")
    with pytest.raises(ValueError, match="'CartPole-v1' must be a EnvParams, as env.params is"):
        cartpole.check(params)


def test_params_that_change_the_spaces_are_refused():
    class Wider(type(gymnax.make("CartPole-v1")[0])):
        def action_space(self, params=None):
            return gymnax.environments.spaces.Discrete(int(params.max_steps_in_episode))

    env = from_gymnax(Wider())
    env.check(env.params.replace(gravity=20.0))
    with pytest.raises(ValueError, match=r"leave its spaces as they are.*got .*Discrete\(n=3\)"):
        env.check(env.params.replace(max_steps_in_episode=3))


def test_something_else_is_refused():
    with pytest.raises(TypeError, match=r"got a tuple without reset_env: pass .*gymnax.make"):
        from_gymnax(gymnax.make("CartPole-v1"))


def test_a_step_that_returns_nan_is_named(cartpole):
    env = cartpole._replace(params=cartpole.params.replace(tau=jnp.float32(jnp.nan)))
    agent = ppo(SMALL, env, optax.sgd(0.1), PPOConfig(envs=2, steps=4, minibatches=1, epochs=1))
    with pytest.raises(ValueError, match=r"environment 0 of 2 \('CartPole-v1'\).*step 0"):
        trainer.fit(agent.init(KEY), rollout(SMALL, env, 4), epochs=1)


def test_it_trains(cartpole):
    agent = ppo(
        SMALL, cartpole, optax.sgd(0.1), PPOConfig(envs=4, steps=32, minibatches=1, epochs=1)
    )
    state, history = trainer.fit(agent.init(KEY), agent.program, epochs=1)
    assert int(state.step) == 1
    assert history[0]["rollout/steps"] == 128
    assert np.isfinite(history[0]["update/loss"])
