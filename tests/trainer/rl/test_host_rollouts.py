"""Rollouts on the host: the experience and metrics of the device, and fresh episodes."""

import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
import trainer
from trainer.rl import PPOConfig, ppo
from trainer.rl.environments import Box, Discrete, Environment, TimeStep, from_gymnasium
from trainer.rl.rollouts import init_rollout_state, rollout

pytestmark = pytest.mark.usefixtures("compiled_quickly")

gymnasium = pytest.importorskip("gymnasium")

KEY = jax.random.key(0)
BEGINS = np.array([[0.0], [1.0], [4.0], [-4.0]], np.float32)
STEPS = 6


class Rising(gymnasium.Env):
    """Rises by 1 and the action; terminates at 5 and above, is cut off after 3 steps."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

    def __init__(self, begin=0.0, breaks=None):
        self.begin, self.breaks, self.total = begin, breaks, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.elapsed = (self.begin if seed is not None else 0.0), 0
        return np.float32([self.at]), {}

    def step(self, action):
        self.at += 1.0 + action
        self.elapsed += 1
        self.total += 1
        seen = np.nan if self.total == self.breaks else self.at
        return np.float32([seen]), 2 * self.at, self.at >= 5, self.elapsed >= 3, {}


def rising():
    """The same as a pure function; episodes begin at 0."""

    def reset(key, params):
        return (jnp.float32(0), jnp.int32(0)), jnp.zeros(1)

    def step(key, state, action, params):
        at, elapsed = state[0] + 1.0 + action, state[1] + 1
        over = at >= 5
        return TimeStep((at, elapsed), at[None], 2 * at, over, (elapsed >= 3) & ~over)

    return Environment("Rising", reset, step, Box((1,)), Discrete(2), ())


def on_host(**settings):
    left = [Rising(begin=float(at), **settings) for at in BEGINS[:, 0]]
    return from_gymnasium(lambda: left.pop(0), len(BEGINS))


def certain(recurrent_policy):
    """A policy that always does 1 at even numbers; if recurrent, at even sums of them."""

    def apply(params, model_state, inputs, *, key, train):
        if recurrent_policy:
            before = jnp.where(inputs["first"][:, None], 0, inputs["recurrent"])
            recurrent = before + inputs["observation"]
        else:
            recurrent = inputs
        even = recurrent[:, 0] % 2 == 0
        logits = jnp.where(even[:, None], jnp.array([-99.0, 99.0]), jnp.array([99.0, -99.0]))
        outputs = {"logits": logits, "value": 10 * recurrent[:, 0]}
        return (outputs | {"recurrent": recurrent} if recurrent_policy else outputs), model_state

    network = SimpleNamespace(init=lambda key, example: ({}, {}), apply=apply)
    if recurrent_policy:
        network.init_recurrent_state = lambda batch: jnp.zeros((batch, 1))
    return network


def run_epochs(phase, state, epochs=2):
    """Run epochs of a phase; return the experience and the metrics of each."""
    results = []
    for _ in range(epochs):
        state, experience, measured = phase.execute(state, None, donate=False)
        state = state.replace(epoch=state.epoch + 1)
        results.append((jax.tree.map(np.asarray, experience), measured.read()[0]))
    return results


def returns(history):
    return [{k: v for k, v in e.items() if k.startswith("rollout/")} for e in history]


@pytest.mark.parametrize("recurrent_policy", [False, True])
def test_experience_and_metrics_are_those_of_the_device(recurrent_policy):
    network, env = certain(recurrent_policy), rising()
    start = init_rollout_state(network, env, len(BEGINS), KEY, env.params)
    at = BEGINS[:, 0], np.zeros(len(BEGINS), np.int32)
    start = start._replace(
        state=start.state._replace(environment=jax.tree.map(jnp.asarray, at)),
        observation=jnp.asarray(BEGINS),
    )
    state = trainer.TrainState.create(params={}, rng=KEY, carry={"environment": start})
    wanted = run_epochs(rollout(network, env, STEPS), state)
    got = run_epochs(rollout(network, on_host(), STEPS), state.replace(carry={}))
    for (experience, measured), (theirs, numbers) in zip(wanted, got, strict=True):
        jax.tree.map(np.testing.assert_array_equal, experience, theirs)
        assert measured == numbers
    assert wanted[0][0].terminated.any()
    assert wanted[0][0].truncated.any()


def test_next_values_by_hand():
    (experience, measured), *_ = run_epochs(
        rollout(certain(False), on_host(), 4), trainer.TrainState.create(params={}, rng=KEY)
    )
    # From 0: 0, 2, 4, then 6, where it terminates, and 0 again.
    assert experience.observation[:, 0, 0].tolist() == [0, 2, 4, 0]
    assert experience.terminated[:, 0].tolist() == [False, False, True, False]
    assert experience.next_value[[0, 1, 3], 0].tolist() == [20, 40, 20]
    # From 1: 1, 2, 4, 6. From 4: 6, and from there on as the first.
    assert experience.observation[:, 1, 0].tolist() == [1, 2, 4, 0]
    assert experience.first[:, 2].tolist() == [True, True, False, False]
    # From -4: -4, -2, 0, then 2, where it is cut off, and 0 again.
    assert experience.truncated[:, 3].tolist() == [False, False, True, False]
    assert experience.next_value[:, 3].tolist() == [-20, 0, 20, 20]
    assert measured == {
        "rollout/return": (24.0 + 24.0 + 12.0 + 24.0 + 0.0) / 5,
        "rollout/length": (3 + 3 + 1 + 3 + 3) / 5,
        "rollout/episodes": 5.0,
        "rollout/steps": 16.0,
    }


def test_the_next_value_at_a_time_limit_is_that_before_the_reset():
    class Slow(Rising):
        def step(self, action):
            return super().step(-0.5)

    network = certain(True)
    envs = from_gymnasium(Slow, 1)
    state = trainer.TrainState.create(params={}, rng=KEY)
    (experience, _), *_ = run_epochs(rollout(network, envs, 4), state)
    # It observes 0, 0.5, 1 and keeps their sum; after the limit, at 1.5, that would be 3.
    assert experience.truncated[:, 0].tolist() == [False, False, True, False]
    assert experience.value[:, 0].tolist() == [0, 5, 15, 0]
    assert experience.next_value[:, 0].tolist() == [5, 15, 30, 5]


@pytest.fixture
def cartpole():
    """A phase in CartPole, and a state of a random policy."""
    network = models.actor_critic(actions=2, hidden=(4,))
    params, model_state = network.init(KEY, jnp.zeros((1, 4)))
    state = trainer.TrainState.create(params=params, model_state=model_state, rng=KEY)
    return rollout(network, from_gymnasium("CartPole-v1", 2), 40), state


def test_two_runs_from_the_beginning_are_the_same(cartpole, caplog):
    phase, state = cartpole
    with caplog.at_level(logging.WARNING, "entracte"):
        once = trainer.fit(state, phase, epochs=3)[1]
        again = trainer.fit(state, phase, epochs=3)[1]
        checked = trainer.fit(state, phase, epochs=3, dry_run=True)[1]
    assert returns(once) == returns(again) == returns(checked)
    assert not caplog.records


def test_a_second_fit_in_the_same_process_continues(cartpole, caplog):
    phase, state = cartpole
    with caplog.at_level(logging.WARNING, "entracte"):
        whole = trainer.fit(state, phase, epochs=4)[1]
        half, first = trainer.fit(state, phase, epochs=2)
        _, second = trainer.fit(half, phase, epochs=4)
    assert returns(whole) == returns(first + second)
    assert not caplog.records


def test_a_resumed_run_begins_new_episodes_and_logs_it_once(cartpole, caplog):
    phase, state = cartpole
    resumed = state.replace(epoch=jnp.int32(2))
    with caplog.at_level(logging.WARNING, "entracte"):
        first = trainer.fit(resumed, phase, epochs=4)[1]
    (record,) = caplog.records
    assert "begin new episodes at epoch 2" in record.getMessage()
    assert returns(first) == returns(trainer.fit(resumed, phase, epochs=4)[1])
    assert returns(first) != returns(trainer.fit(state, phase, epochs=4)[1])[2:]


def test_it_starts_fresh_if_other_code_has_stepped_the_environments(caplog):
    envs = on_host()
    phase, state = (
        rollout(certain(False), envs, 2),
        trainer.TrainState.create(params={}, rng=KEY),
    )
    run_epochs(phase, state, 1)
    envs.step(np.zeros(len(BEGINS), np.int32))
    with caplog.at_level(logging.WARNING, "entracte"):
        ((experience, _),) = run_epochs(phase, state.replace(epoch=state.epoch + 1), 1)
    assert "begin new episodes at epoch 1" in caplog.text
    np.testing.assert_array_equal(experience.observation[0], BEGINS)


def test_the_policy_is_traced_once():
    network, traced = certain(True), []

    def apply(*args, **settings):
        traced.append(1)
        return network.apply(*args, **settings)

    counted = SimpleNamespace(
        init=network.init, apply=apply, init_recurrent_state=network.init_recurrent_state
    )
    phase = rollout(counted, on_host(), STEPS)
    state = trainer.TrainState.create(params={}, rng=KEY)
    trainer.fit(state, phase, epochs=2)
    trainer.fit(state, phase, epochs=2)
    assert len(traced) == 1


def test_a_step_that_returns_nan_is_named():
    left = [Rising(), Rising(breaks=3)]
    envs = from_gymnasium(lambda: left.pop(0), 2)
    state = trainer.TrainState.create(params={}, rng=KEY)
    message = (
        r"environment 1 of 2 \('Rising'\) returned .* not finite at step 2 .* for the action 1"
    )
    with pytest.raises(ValueError, match=message):
        trainer.fit(state, rollout(certain(False), envs, STEPS), epochs=1)


def test_a_first_observation_that_is_nan_is_named():
    left = [Rising(), Rising(begin=np.nan)]
    envs = from_gymnasium(lambda: left.pop(0), 2)
    state = trainer.TrainState.create(params={}, rng=KEY)
    with pytest.raises(ValueError, match="environment 1 of 2 .* step 0 of the rollout: look at"):
        trainer.fit(state, rollout(certain(False), envs, STEPS), epochs=1)


def test_actions_are_clipped_for_the_environment_and_kept_as_sampled():
    class Driven(gymnasium.Env):
        action_space = gymnasium.spaces.Box(-0.5, 0.5, (2,))
        observation_space = gymnasium.spaces.Box(-9, 9, (2,))

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def step(self, action):
            return action, 0.0, False, False, {}

    def apply(params, model_state, inputs, *, key, train):
        zeros = jnp.zeros_like(inputs)
        return {"mean": zeros + 3.0, "log_std": zeros, "value": zeros[:, 0]}, model_state

    network = SimpleNamespace(init=lambda key, example: ({}, {}), apply=apply)
    envs = from_gymnasium(Driven, 2)
    state = trainer.TrainState.create(params={}, rng=KEY)
    (experience, measured), *_ = run_epochs(rollout(network, envs, 8), state, 1)
    assert experience.action.max() > 0.5
    np.testing.assert_array_equal(
        experience.observation[1:], experience.action[:-1].clip(-0.5, 0.5)
    )
    assert "rollout/return" not in measured


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1 step; got 0"):
        rollout(certain(False), on_host(), 0)


def test_a_rollout_is_no_split_to_evaluate_on(cartpole):
    with pytest.raises(TypeError, match="no split"):
        cartpole[0].source.evaluation()


def test_it_trains():
    network = models.actor_critic(actions=2, hidden=(8,))
    with from_gymnasium("CartPole-v1", 4) as envs:
        agent = ppo(
            network, envs, optax.sgd(0.1), PPOConfig(envs=4, steps=32, minibatches=1, epochs=1)
        )
        begun = agent.init(KEY)
        state, history = trainer.fit(begun, agent.program, epochs=2)
        again, _ = trainer.fit(begun, agent.program, epochs=2)
    assert int(state.step) == 2
    assert history[0]["rollout/steps"] == 128
    assert np.isfinite(history[1]["update/loss"])
    assert trainer.fingerprint(state) == trainer.fingerprint(again)


def test_the_number_of_environments_must_match():
    network = models.actor_critic(actions=2, hidden=(8,))
    few = pytest.raises(ValueError, match="4 environments of .* were made, .* set envs=4")
    with from_gymnasium("CartPole-v1", 4) as envs, few:
        ppo(network, envs, optax.sgd(0.1), PPOConfig(envs=8))


def test_a_state_on_a_mesh_is_refused_before_training(cartpole):
    phase, state = cartpole
    with pytest.raises(ValueError, match=r"rollout: the environments 'CartPole-v1' are .* of 8"):
        trainer.fit(trainer.spread(state), phase, epochs=1, hooks=lambda state, metrics: state)
