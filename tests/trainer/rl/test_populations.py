"""Populations of agents: each member learns as it would alone."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import models
import trainer
from trainer.rl import PPOConfig, environments, evaluation_of, ppo

pytestmark = pytest.mark.usefixtures("compiled_quickly")

COUNT = 3


def test_members_learn_as_runs_alone():
    agent = ppo(
        models.actor_critic(actions=2, hidden=(8,)),
        environments.cartpole(),
        optax.adam(1e-2),
        PPOConfig(envs=4, steps=16, minibatches=2, epochs=2, normalize_observations=True),
    )
    states = [agent.init(key) for key in jax.random.split(jax.random.key(3), COUNT)]
    program = trainer.population(agent.program, COUNT)
    whole, history = trainer.fit(trainer.stack_states(states), program, epochs=2)
    for number, state in enumerate(states):
        alone, before = trainer.fit(state, agent.program, epochs=2)
        chex.assert_trees_all_close(trainer.member(whole, number).params, alone.params, atol=1e-4)
        measured = {k: v for k, v in before[-1].items() if k.startswith(("rollout/", "update/"))}
        assert {"rollout/episodes", "update/loss", "update/explained_variance"} <= measured.keys()
        for name, value in measured.items():
            assert history[-1][name].values[number] == pytest.approx(value, abs=1e-3)


def test_a_member_without_an_episode_has_no_return(counts):
    env = counts(4)
    agent = ppo(
        models.actor_critic(actions=2, hidden=(4,)),
        env._replace(step=lambda k, s, a, p: env.step(k, s, jnp.int32(0), p)),
        optax.sgd(0.0),
        PPOConfig(envs=1, steps=3, minibatches=1),
    )
    first, second = (agent.init(jax.random.key(n)) for n in range(2))
    second, _ = trainer.fit(second, agent.rollout, epochs=1)
    second = second.replace(epoch=first.epoch)
    program = trainer.population(agent.rollout, 2)
    _, history = trainer.fit(trainer.stack_states([first, second]), program, epochs=1)
    returns = history[0]["rollout/return"]
    assert returns.present.tolist() == [False, True]
    assert returns == 10.0
    assert history[0]["rollout/episodes"].values.tolist() == [0.0, 1.0]
    assert not any("diagnostics" in name for name in history[0])


def test_members_are_evaluated(counts):
    network = models.actor_critic(actions=2, hidden=(4,))
    env = counts(4)
    agent = ppo(network, env, optax.sgd(0.0), PPOConfig(envs=2, steps=4, minibatches=1))
    state = trainer.stack_states([agent.init(jax.random.key(n)) for n in range(2)])
    exam = trainer.population(evaluation_of(network, env, episodes=4), 2)
    scores = trainer.evaluate(state, exam)
    assert scores["val/return"].values.shape == (2,)
    assert scores["val/length"] == pytest.approx(scores["val/length"].values.mean())
