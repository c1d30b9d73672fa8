"""Evaluation of policies: whole episodes, each counted once."""

import jax
import jax.numpy as jnp
import optax
import pytest

import hooks
import models
import trainer
from trainer.rl import evaluation_of, lessons, ppo
from trainer.rl.environments import cartpole, gridworld

STILL = optax.sgd(0.0)


@pytest.fixture
def course(counts):
    return lessons(counts(), {"short": jnp.int32(1), "long": jnp.int32(4)})


def _state(network, env, **settings):
    return ppo(network, env, STILL, envs=2, steps=2, minibatches=1, **settings).init(
        jax.random.key(0)
    )


def test_each_episode_counts_once(counts, always):
    env, network = counts(4), always(0)
    phase = evaluation_of(network, env, episodes=5)
    scores = trainer.evaluate(_state(network, env), phase)
    assert scores == {"val/return": 10.0, "val/length": 4.0, "val/unfinished": 0.0}
    ended = evaluation_of(always(1), env, episodes=5)
    assert trainer.evaluate(_state(network, env), ended)["val/length"] == 1.0


def test_what_has_no_end_is_left(counts, always):
    env, network = counts(10), always(0)
    phase = evaluation_of(network, env, max_steps=3)
    scores = trainer.evaluate(_state(network, env), phase)
    assert scores == {"val/return": 6.0, "val/length": 3.0, "val/unfinished": 1.0}


def test_all_lessons_are_played_alike(course, always):
    network = always(0)
    phase = evaluation_of(network, course, episodes=3, name="full")
    scores = trainer.evaluate(_state(network, course), phase)
    assert scores["full/return/short"] == 1.0
    assert scores["full/return/long"] == 10.0
    assert scores["full/return"] == 5.5
    assert not any("episodes" in name or "_" in name for name in scores)


def test_some_lessons_can_be_named(course, always):
    network = always(0)
    scores = trainer.evaluate(
        _state(network, course), evaluation_of(network, course, lessons=["long"])
    )
    assert scores["val/return"] == scores["val/return/long"] == 10.0
    assert "val/return/short" not in scores


def test_the_current_lessons_are_drawn_as_in_training(course, always):
    network = always(0)
    state = _state(network, course)
    state = state.replace(carry={**state.carry, "lessons": jnp.array([1.0, 0.0])})
    scores = trainer.evaluate(state, evaluation_of(network, course, episodes=6, lessons="current"))
    assert scores["val/return"] == scores["val/return/short"] == 1.0
    assert "val/return/long" not in scores


@pytest.mark.parametrize("greedy", [True, False])
def test_policies_with_memory_and_statistics_play_too(greedy):
    network = models.actor_critic(actions=2, hidden=(4,), memory=4)
    state = _state(network, cartpole(), normalize_observations=True)
    phase = evaluation_of(network, cartpole(), episodes=4, greedy=greedy)
    first, again = trainer.evaluate(state, phase), trainer.evaluate(state, phase)
    assert first == again
    assert first["val/return"] == first["val/length"] > 5
    later = trainer.evaluate(state.replace(epoch=jnp.int32(1)), phase)
    assert later != first


def test_it_serves_as_a_hook_and_as_a_program(counts, always):
    env, network = counts(3), always(0)
    agent = ppo(network, env, STILL, envs=2, steps=2, minibatches=1)
    state, phase = agent.init(jax.random.key(0)), evaluation_of(network, env, episodes=2)
    chain = hooks.chain(
        hooks.evaluate(phase, sanity=True), hooks.stop_at_return(6.0, metric="val/return")
    )
    after, history = trainer.fit(state, agent.program, epochs=3, hooks=chain, check=True)
    assert after.stop
    assert history[0]["val/return"] == 6.0
    _, history = trainer.fit(state, phase, epochs=2)
    assert [epoch["val/return"] for epoch in history] == [6.0, 6.0]


def test_what_is_not_finite_is_named(counts, always):
    def reward(state):
        return jnp.where(state == 2, jnp.nan, 1.0)

    env, network = counts(4, reward=reward), always(0)
    with pytest.raises(ValueError, match=r"environment 0 of 3 \('counting'\).* at step 1"):
        trainer.evaluate(_state(network, env), evaluation_of(network, env, episodes=3))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"lessons": ["steep"]}, "'gridworld' has no lessons .*steep"),
        ({"lessons": "current"}, "has no lessons .*trainer.rl.lessons makes some"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        evaluation_of(models.actor_critic(actions=5), gridworld(), **settings)
