"""Evaluation of policies: whole episodes, each counted once."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest

import hooks
import models
import trainer
from trainer.rl import PPOConfig, evaluation_of, lessons, policies, ppo
from trainer.rl.environments import auto_reset, cartpole, gridworld
from trainer.rl.normalization import init_statistics, update_statistics

pytestmark = pytest.mark.usefixtures("compiled_quickly")

STILL = optax.sgd(0.0)


@pytest.fixture
def course(counts):
    return lessons(counts(), {"short": jnp.int32(1), "long": jnp.int32(4)})


def _state(network, env, **carry):
    weights = policies.init_weights(network, env, jax.random.key(0))
    carry |= {"lessons": env.params} if env.lessons else {}
    return trainer.TrainState.create(
        params=weights.params, model_state=weights.model_state, rng=jax.random.key(0), carry=carry
    )


def test_each_episode_counts_once(counts, always):
    env, network = counts(4), always(0)
    phase = evaluation_of(network, env, episodes=5)
    scores = trainer.evaluate(_state(network, env), phase)
    assert scores == {"val/return": 10.0, "val/length": 4.0, "val/unfinished": 0.0}
    ended = evaluation_of(always(1), env, episodes=5)
    assert trainer.evaluate(_state(network, env), ended)["val/length"] == 1.0


def test_an_episode_without_an_end_is_cut_off(counts, always):
    env, network = counts(10), always(0)
    phase = evaluation_of(network, env, max_steps=3)
    scores = trainer.evaluate(_state(network, env), phase)
    assert scores == {"val/return": 6.0, "val/length": 3.0, "val/unfinished": 1.0}


def test_all_lessons_have_the_same_number_of_episodes(course, always):
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
def test_recurrent_policies_and_statistics_are_evaluated(greedy):
    network = models.actor_critic(actions=2, hidden=(4,), recurrent_size=4)
    seen = update_statistics(init_statistics(jnp.zeros(4)), jnp.eye(4))
    state = _state(network, cartpole(), normalization={"observations": seen})
    phase = evaluation_of(network, cartpole(), episodes=4, greedy=greedy)
    first, again = trainer.evaluate(state, phase), trainer.evaluate(state, phase)
    assert first == again
    assert first["val/return"] == first["val/length"] > 5
    later = trainer.evaluate(state.replace(epoch=jnp.int32(1)), phase)
    assert later != first


def test_it_is_a_hook_and_a_program(counts, always):
    env, network = counts(3), always(0)
    agent = ppo(network, env, STILL, PPOConfig(envs=2, steps=2, minibatches=1))
    state, phase = agent.init(jax.random.key(0)), evaluation_of(network, env, episodes=2)
    chain = hooks.chain(
        hooks.evaluate(phase, sanity=True), hooks.stop_at_return(6.0, metric="val/return")
    )
    after, history = trainer.fit(state, agent.program, epochs=3, hooks=chain, dry_run=True)
    assert after.stop
    assert history[0]["val/return"] == 6.0
    _, history = trainer.fit(state, phase, epochs=2)
    assert [epoch["val/return"] for epoch in history] == [6.0, 6.0]


def _ending_at(limit):
    """A policy that counts the steps of an episode, and ends it at the limit."""

    def apply(params, model_state, inputs, *, key, train):
        seen = jnp.where(inputs["first"][:, None], 0.0, inputs["recurrent"]) + 1
        ends = seen >= limit
        outputs = {"logits": jnp.concatenate([~ends, ends], axis=1) * 50.0, "value": seen[:, 0]}
        return {**outputs, "recurrent": seen}, model_state

    return SimpleNamespace(
        init=lambda key, inputs: ({}, {}),
        apply=apply,
        init_recurrent_state=lambda batch: jnp.full((batch, 1), 7.0),  # reset at each episode
    )


def test_it_equals_a_plain_loop(counts):
    limits = {"one": 1, "three": 3, "nine": 9}
    course = lessons(counts(), {name: jnp.int32(limit) for name, limit in limits.items()})
    network = _ending_at(5)
    lengths, returns = {}, {}
    for name, limit in limits.items():
        count, total, over = 0, 0.0, False
        while not over:
            count += 1
            total += count
            over = count >= limit or count >= 5
        lengths[name], returns[name] = count, total
    state = _state(network, course)
    scores = trainer.evaluate(state, evaluation_of(network, course, episodes=2))
    assert scores == {
        "val/return": sum(returns.values()) / 3,
        "val/length": sum(lengths.values()) / 3,
        "val/unfinished": 0.0,
        **{f"val/return/{name}": value for name, value in returns.items()},
    }
    assert returns == {"one": 1.0, "three": 6.0, "nine": 15.0}


def test_a_reward_that_is_not_finite_is_named(counts, always):
    def reward(state):
        return jnp.where(state == 2, jnp.nan, 1.0)

    env, network = counts(4, reward=reward), always(0)
    with pytest.raises(ValueError, match=r"environment 0 of 3 \('counting'\).* at step 1"):
        trainer.evaluate(_state(network, env), evaluation_of(network, env, episodes=3))


@pytest.mark.parametrize(
    ("breaks", "named"), [([4, 7, 3], "2 of 3 .* step 3"), ([9, 0], "1 of 2 .* step 0")]
)
def test_the_earliest_step_that_is_not_finite_is_named(counts, always, breaks, named):
    env = counts(9)

    def reset(key, params):  # at 0, the first observation is broken
        state, observation = env.reset(key, params)
        return (state, params), jnp.where(params == 0, jnp.nan, observation)

    def step(key, state, action, params):
        made = env.step(key, state[0], action, jnp.int32(9))
        reward = jnp.where((state[0] == state[1]) & (state[1] > 0), jnp.nan, 1.0)
        return made._replace(state=(made.state, state[1]), reward=reward)

    broken = env._replace(reset=reset, step=step, name="broken")
    course = lessons(broken, {f"at {place}": jnp.int32(place) for place in breaks})
    phase = evaluation_of(always(0), course, episodes=1)
    with pytest.raises(ValueError, match=f"environment {named}"):
        trainer.evaluate(_state(always(0), course), phase)


def test_a_lesson_that_was_not_drawn_is_missing_before_training(course, always):
    network = always(0)
    state = _state(network, course)
    state = state.replace(carry={**state.carry, "lessons": jnp.array([1.0, 0.0])})
    quick = evaluation_of(network, course, episodes=2, lessons="current", name="quick")
    seen = hooks.evaluate(quick, sanity=True)
    begin = next(part for part in seen.parts if part.at == "start")
    assert "quick/return/long" not in begin(state, {}).scores


def test_a_state_without_weights_of_lessons_is_refused(course, always):
    state = _state(always(0), course)
    bare = state.replace(carry={})
    with pytest.raises(ValueError, match=r"state.carry\['lessons'\], which is not there"):
        trainer.evaluate(bare, evaluation_of(always(0), course, lessons="current"))


def test_an_environment_that_resets_by_itself_is_refused(counts, always):
    with pytest.raises(ValueError, match="'counting' without auto_reset"):
        evaluation_of(always(0), auto_reset(counts()))


def test_params_outside_the_range_are_refused():
    env = cartpole()
    with pytest.raises(ValueError, match="pole_length"):
        evaluation_of(
            models.actor_critic(actions=2),
            env._replace(params=env.params.replace(pole_length=jnp.float32(-1.0))),
        )


def test_environments_on_the_host_are_refused(always):
    there = SimpleNamespace(name="host", params=(), lessons=())
    with pytest.raises(TypeError, match="runs on the device, .* got SimpleNamespace"):
        evaluation_of(always(0), there)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"episodes": 2.5}, r"episodes must be at least 1, a whole number; got 2\.5"),
        ({"lessons": ["steep"]}, "'gridworld' has no lessons .*steep"),
        ({"lessons": "current"}, "has no lessons .*trainer.rl.lessons makes some"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        evaluation_of(models.actor_critic(actions=5), gridworld(), **settings)
