"""Rollouts, step for step, in an environment that counts."""

from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import trainer
from trainer.rl import PPOConfig, curriculum, evaluation_of, ppo, rollout
from trainer.rl.environments import Box, TimeStep
from trainer.rl.policies import PolicyWeights
from trainer.rl.rollouts import collect, init_rollout_state

pytestmark = pytest.mark.usefixtures("compiled_quickly")

STILL = optax.sgd(0.0)


def _collect(network, env, *, steps, envs=1, params=None):
    params = env.params if params is None else params
    start = init_rollout_state(network, env, envs, jax.random.key(0), params)
    weights = PolicyWeights({"w": jnp.zeros(())}, {})
    return collect(network, weights, env, params, start, jax.random.key(1), steps=steps)


def test_a_truncated_step_is_followed_by_the_value_of_its_own_observation(counts, always):
    after, experience, statistics = _collect(always(0), counts(3), steps=4, envs=2)
    column = jax.tree.map(lambda x: np.asarray(x)[:, 0].ravel().tolist(), experience)
    assert column.observation == [0, 1, 2, 0]
    assert column.reward == [1, 2, 3, 1]
    assert column.truncated == [False, False, True, False]
    assert column.terminated == [False] * 4
    assert column.first == [True, False, False, True]
    assert column.value == [0, 10, 20, 0]
    assert column.next_value == [10, 20, 30, 10]  # 30: of the count 3, not of the new episode's 0
    assert statistics.episode_return[:, 0].tolist() == [1, 3, 6, 1]
    assert after.observation[:, 0].tolist() == [1, 1]
    chex.assert_trees_all_equal(after.first, jnp.zeros(2, bool))


def test_an_episode_begins_after_each_termination(counts, always):
    _, experience, _ = _collect(always(1), counts(3), steps=2)
    assert experience.terminated.ravel().tolist() == [True, True]
    assert experience.truncated.ravel().tolist() == [False, False]
    assert experience.first.ravel().tolist() == [True, True]


def test_a_rollout_continues_where_the_last_one_ended(counts, always):
    agent = ppo(always(0), counts(5), STILL, PPOConfig(envs=2, steps=3, minibatches=1))
    state, history = trainer.fit(agent.init(jax.random.key(0)), agent.rollout, epochs=4)
    assert [epoch["rollout/episodes"] for epoch in history] == [0, 2, 0, 2]
    assert [epoch.get("rollout/return") for epoch in history] == [None, 15, None, 15]
    assert [epoch.get("rollout/length") for epoch in history] == [None, 5, None, 5]
    assert {epoch["rollout/steps"] for epoch in history} == {6}
    assert not any("diagnostics" in name for name in history[0])
    assert int(state.step) == 0


def test_returns_are_reported_by_lesson(counts, always):
    env = curriculum.lessons(counts(), {"short": jnp.int32(1), "long": jnp.int32(2)})
    agent = ppo(always(0), env, STILL, PPOConfig(envs=8, steps=8, minibatches=1))
    _, history = trainer.fit(agent.init(jax.random.key(0)), agent.rollout, epochs=1)
    measured = history[0]
    assert measured["rollout/return/short"] == 1.0
    assert measured["rollout/return/long"] == 3.0
    episodes = measured["rollout/episodes/short"], measured["rollout/episodes/long"]
    assert min(episodes) > 0
    assert sum(episodes) == measured["rollout/episodes"]


def test_lessons_are_drawn_by_the_weights_in_the_carry(counts, always):
    env = curriculum.lessons(counts(), {"short": jnp.int32(1), "long": jnp.int32(2)})
    agent = ppo(always(0), env, STILL, PPOConfig(envs=4, steps=6, minibatches=1))
    state = agent.init(jax.random.key(0))
    state = state.replace(carry={**state.carry, "lessons": jnp.array([0.0, 1.0])})
    _, history = trainer.fit(state, agent.rollout, epochs=2)
    assert "rollout/return/short" not in history[1]
    assert history[1]["rollout/return/long"] == 3.0


@pytest.mark.parametrize("where", ["reward", "observation"])
def test_the_first_step_that_is_not_finite_is_named(where, counts, always):
    env = counts(9)

    def step(key, state, action, params):
        made = env.step(key, state, action, params)
        broken = jnp.where((made.state == 3) & (state > 0), jnp.nan, 0.0)
        return made._replace(**{where: getattr(made, where) + broken})

    broken = env._replace(step=step, name="broken")
    agent = ppo(always(0), broken, STILL, PPOConfig(envs=2, steps=4, minibatches=1))
    said = r"environment 0 of 2 \('broken'\) returned .* at step 2 of the"
    with pytest.raises(ValueError, match=said) as found:
        trainer.fit(agent.init(jax.random.key(0)), agent.program, epochs=1)
    assert found.value.__notes__ == ["in phase 'rollout' of epoch 1"]


@pytest.mark.parametrize("lost", ["w", "observation"])
def test_a_policy_that_is_not_finite_is_not_laid_to_the_environment(lost, counts):
    """Nor the other way about: of what is not finite no finite action follows."""

    def apply(params, model_state, seen, *, key, train):
        mean = seen + params["w"]
        return {"mean": mean, "log_std": 0 * mean, "value": mean[:, 0]}, model_state

    def step(key, state, action, params):
        made = counts(9).step(key, state, jnp.int32(0), params)
        broken = jnp.where((state == 2) & (lost == "observation"), jnp.nan, 0.0)
        return made._replace(reward=action[0], observation=made.observation + broken)

    network = SimpleNamespace(init=lambda key, x: ({"w": jnp.zeros(())}, {}), apply=apply)
    env = counts(9)._replace(step=step, action_space=Box((1,), -1.0, 1.0))
    agent = ppo(network, env, STILL, PPOConfig(envs=2, steps=3, minibatches=1))
    state = agent.init(jax.random.key(0))
    if lost == "w":
        state = state.replace(params={"w": jnp.float32(jnp.nan)})
    said = {
        "w": "policy gave environment 0 .* at step 0",
        "observation": r"environment 0 of .*\) returned",
    }
    with pytest.raises(ValueError, match=said[lost]):
        trainer.fit(state, agent.program, epochs=2)


@pytest.mark.parametrize(("first_is_finite", "step"), [(False, 0), (True, 2)])
def test_a_first_observation_that_is_not_finite_is_named(first_is_finite, step, counts, always):
    env = counts(2)

    def reset(key, params):
        state, observation = env.reset(key, params)
        return state, observation + jnp.nan

    broken = env._replace(reset=reset)
    begun = ppo(always(0), env if first_is_finite else broken, STILL, PPOConfig(envs=2, steps=4))
    phase = rollout(always(0), broken, 4)
    with pytest.raises(ValueError, match=f"not finite at step {step} of .* its reset"):
        trainer.fit(begun.init(jax.random.key(0)), phase, epochs=1)


def test_rewards_and_observations_may_be_integers(counts, always):
    env = counts(3)

    def reset(key, params):
        state, observation = env.reset(key, params)
        return state, observation.astype(jnp.int32)

    def step(key, state, action, params):
        made = env.step(key, state, action, params)
        return made._replace(observation=made.state[None], reward=made.state)

    whole = env._replace(reset=reset, step=step)
    agent = ppo(always(0), whole, STILL, PPOConfig(envs=2, steps=3, minibatches=1))
    _, history = trainer.fit(agent.init(jax.random.key(0)), agent.program, epochs=1)
    assert history[0]["rollout/return"] == 6.0


def test_python_numbers_are_accepted(counts, always):
    """In a state, as a reward and as flags; in training and in an evaluation."""

    def step(key, state, action, params):
        return TimeStep(state + 1, (state + 1).astype(jnp.float32)[None], 2.0, True, False)

    env = counts(3)._replace(reset=lambda key, params: (0, jnp.zeros(1)), step=step)
    agent = ppo(always(0), env, STILL, PPOConfig(envs=2, steps=3, minibatches=1))
    exam = evaluation_of(always(0), env, episodes=2)
    state, history = trainer.fit(agent.init(jax.random.key(0)), agent.rollout, epochs=1)
    assert history[0]["rollout/return"] == trainer.evaluate(state, exam)["val/return"] == 2.0


def test_a_state_without_environments_is_refused(counts, always):
    state = trainer.TrainState.create(params={"w": jnp.zeros(())}, rng=jax.random.key(0))
    with pytest.raises(ValueError, match=r"state.carry\['environment'\], which is not there"):
        trainer.fit(state, rollout(always(0), counts(), 2), epochs=1)


def test_a_rollout_needs_steps(counts, always):
    with pytest.raises(ValueError, match="at least 1 step; got 0"):
        rollout(always(0), counts(), 0)
