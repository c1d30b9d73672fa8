"""Proximal policy optimization: the loss by hand, and the program under the laws."""

import math

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import hooks
import models
import trainer
from trainer import losses
from trainer.rl import PPOConfig, curriculum, policies, ppo, ppo_loss
from trainer.rl.distillation import Teacher, kickstart
from trainer.rl.environments import Box, cartpole

pytestmark = pytest.mark.usefixtures("compiled_quickly")

OUTPUTS = {"logits": jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5]])), "value": jnp.array([1.0, 3.0])}
BATCH = {
    "action": jnp.array([0, 1]),
    "log_prob": jnp.log(jnp.array([0.25, 1.0])),  # ratios 2 and 0.5
    "advantage": jnp.array([1.0, 1.0]),
    "value": jnp.array([0.0, 3.0]),
    "target": jnp.array([2.0, 0.0]),
}


def test_the_clipped_objective_by_hand():
    values = ppo_loss(normalize_advantages=False)(OUTPUTS, BATCH)
    chex.assert_trees_all_close(values["policy_loss"], jnp.array([-1.2, -0.5]), rtol=1e-6)
    chex.assert_trees_all_close(values["value_loss"], jnp.array([1.0, 9.0]))
    chex.assert_trees_all_close(values["clip_fraction"], jnp.array([1.0, 1.0]))
    entropy = jnp.full(2, math.log(2))
    chex.assert_trees_all_close(values["entropy"], entropy, rtol=1e-6)
    expected = jnp.array([-1.2 + 0.5, -0.5 + 4.5]) - 0.01 * entropy
    chex.assert_trees_all_close(values["loss"], expected, rtol=1e-6)
    kl = jnp.array([2 - 1 - math.log(2), 0.5 - 1 + math.log(2)])
    chex.assert_trees_all_close(values["approx_kl"], kl, rtol=1e-6)


def test_a_negative_advantage_is_clipped_from_below():
    batch = {**BATCH, "advantage": jnp.array([-1.0, -1.0])}
    values = ppo_loss(normalize_advantages=False)(OUTPUTS, batch)
    chex.assert_trees_all_close(values["policy_loss"], jnp.array([2.0, 0.8]), rtol=1e-6)


def test_values_are_clipped_to_those_of_the_rollout():
    values = ppo_loss(value_clip=0.5)(OUTPUTS, BATCH)
    chex.assert_trees_all_close(values["value_loss"], jnp.array([2.25, 9.0]))  # (0.5 - 2)^2


def test_advantages_are_normalized_over_the_minibatch():
    batch = {**BATCH, "advantage": jnp.array([5.0, 9.0]), "log_prob": jnp.log(jnp.full(2, 0.5))}
    values = ppo_loss()(OUTPUTS, batch)
    chex.assert_trees_all_close(values["policy_loss"], jnp.array([1.0, -1.0]), rtol=1e-5)


def test_a_single_advantage_cannot_be_normalized():
    one = jax.tree.map(lambda x: x[:1], (OUTPUTS, BATCH))
    with pytest.raises(ValueError, match="one transition .* normalize_advantages=False"):
        ppo_loss()(*one)
    values = ppo_loss(normalize_advantages=False)(*one)
    chex.assert_trees_all_close(values["policy_loss"], jnp.array([-1.2]), rtol=1e-6)


def test_the_gradient_is_0_beyond_the_clip():
    gradient = jax.grad(
        lambda logits: ppo_loss(normalize_advantages=False, entropy_coefficient=0.0)(
            {**OUTPUTS, "logits": logits}, BATCH
        )["loss"].sum()
    )(OUTPUTS["logits"])
    chex.assert_trees_all_close(gradient[0], jnp.zeros(2), atol=1e-7)
    assert float(jnp.abs(gradient[1]).sum()) > 0.1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clip": 0.0}, "clip must be above 0"),
        ({"value_clip": -1.0}, "value_clip must be above 0"),
        ({"entropy_coefficient": -0.1}, "entropy_coefficient must not be negative"),
    ],
)
def test_a_loss_out_of_range_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        ppo_loss(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"envs": 0}, "envs must be at least 1"),
        ({"steps": 8.0}, r"steps must be at least 1, a whole number; got 8\.0"),
        ({"discount": 1.5}, r"discount must be in \[0, 1\]"),
        ({"target_kl": 0.0}, "target_kl must be above 0"),
        ({"minibatches": 3}, r"1024 transitions \(8 envs of 128 steps\) do not make 3"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        ppo(models.actor_critic(actions=2), cartpole(), optax.adam(1e-3), PPOConfig(**settings))


def test_minibatches_of_a_recurrent_policy_are_whole_environments():
    network = models.actor_critic(actions=2, recurrent_size=4)
    with pytest.raises(ValueError, match="6 environments, whole as .* do not make 4"):
        ppo(network, cartpole(), optax.adam(1e-3), PPOConfig(envs=6, minibatches=4))


def test_something_other_than_an_environment_is_refused():
    with pytest.raises(TypeError, match="from_gymnasium makes; got 'CartPole-v1'"):
        ppo(models.actor_critic(actions=2), "CartPole-v1", optax.adam(1e-3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reward": jnp.ones(1)}, r"'cartpole': the reward must be of shape \[\]; got \[1\]"),
        ({"observation": jnp.ones(3)}, r"of its step must be of shape \[4\]; got \[3\]"),
        ({"truncated": jnp.int32(0)}, "'cartpole': truncated must be a bool; got int32"),
        ({"state": jnp.ones(3)}, r"state after its step .*position.*; got \[3\]"),
    ],
)
def test_an_environment_that_returns_what_it_does_not_declare_is_refused(change, said):
    env = cartpole()
    broken = env._replace(step=lambda *arguments: env.step(*arguments)._replace(**change))
    with pytest.raises((TypeError, ValueError), match=said):
        ppo(models.actor_critic(actions=2), broken, optax.adam(1e-3))


def test_a_step_that_is_no_step_is_refused():
    env = cartpole()
    broken = env._replace(step=lambda *arguments: tuple(env.step(*arguments)))
    with pytest.raises(TypeError, match="'cartpole': its step must return .*TimeStep; got a tuple"):
        ppo(models.actor_critic(actions=2), broken, optax.adam(1e-3))


def test_a_teacher_must_fit_the_environment_and_have_a_loss():
    env, network = cartpole(), models.actor_critic(actions=2, hidden=(4,))
    other = models.actor_critic(actions=3, hidden=(4,))
    key, kickstarted = jax.random.key(0), losses.total(ppo_loss(), kickstart())
    teacher = Teacher(other, policies.init_weights(other, env, key))
    with pytest.raises(ValueError, match="the teacher must return logits"):
        ppo(network, env, optax.adam(1e-3), teacher=teacher, loss=kickstarted)
    teacher = Teacher(network, policies.init_weights(network, env, key))
    with pytest.raises(ValueError, match="needs a loss that reads .*kickstart"):
        ppo(network, env, optax.adam(1e-3), teacher=teacher)


def test_params_out_of_range_are_refused():
    env = cartpole()
    with pytest.raises(ValueError, match="pole_length"):
        ppo(
            models.actor_critic(actions=2),
            env._replace(params=env.params.replace(pole_length=jnp.float32(-1.0))),
            optax.adam(1e-3),
        )


def _agent(kind):
    """An agent of discrete actions, or one that has everything else."""
    env, settings = cartpole(), {"envs": 4, "steps": 16, "epochs": 2, "minibatches": 2}
    if kind == "plain":
        network = models.actor_critic(actions=2, hidden=(8,))
    else:
        network = models.actor_critic(actions=1, hidden=(8,), recurrent_size=4, continuous=True)
        settings |= {"normalize_observations": True, "normalize_rewards": True}
        short = env.params.replace(max_steps=jnp.int32(5))
        env = curriculum.lessons(_pushed(env), {"short": short, "long": env.params})
    return ppo(network, env, optax.adam(1e-2), PPOConfig(**settings))


def _pushed(env):
    """CartPole whose action is a number: its sign is the direction."""

    def step(key, state, action, params):
        return env.step(key, state, (action[0] > 0).astype(jnp.int32), params)

    return env._replace(step=step, action_space=Box((1,), -1.0, 1.0), name="pushed")


KINDS = ("plain", "full")


@pytest.fixture(scope="module")
def agents():
    """Agents of both kinds, compiled once."""
    return {kind: _agent(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_resumes_bit_for_bit(kind, agents, tmp_path):
    agent, start = agents[kind], agents[kind].init(jax.random.key(0))
    whole, history = trainer.fit(start, agent.program, epochs=4)
    for epochs in (1, 3, 4):
        saved = hooks.save_checkpoints(tmp_path, max_cost=None)
        parts, _ = trainer.fit(start, agent.program, epochs=epochs, hooks=saved)
    assert trainer.fingerprint(parts) == trainer.fingerprint(whole)
    assert int(whole.step) == 4 * 2 * 2
    assert all(math.isfinite(value) for epoch in history for value in epoch.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_minibatch_has_the_policy_of_the_rollout(kind, agents):
    agent = agents[kind]
    state = agent.init(jax.random.key(1))
    state, experience, _ = agent.rollout.execute(state, None, donate=True)
    _, _, measured = agent.update.execute(state, experience, donate=True)
    _, traces, taken = measured.read()
    assert traces["update/approx_kl"][0] == pytest.approx(0.0, abs=1e-6)
    assert traces["update/clip_fraction"][0] == 0.0
    assert traces["update/approx_kl"][-1] > 1e-5
    assert len(traces["update/loss"]) == taken == 4


def test_observers_and_checks_change_no_bit(agents, tmp_path):
    agent, start = agents["plain"], agents["plain"].init(jax.random.key(0))
    bare, _ = trainer.fit(start, agent.program, epochs=2)
    watched, _ = trainer.fit(
        start,
        agent.program,
        epochs=2,
        dry_run=True,
        hooks=hooks.chain(
            hooks.log_metrics(hooks.JsonLines(tmp_path / "metrics.jsonl")), hooks.watch_system()
        ),
    )
    assert trainer.fingerprint(watched.replace(hook_state={})) == trainer.fingerprint(bare)


def test_hooks_at_the_rollout_see_the_experience(agents):
    seen = []

    @hooks.observe
    def look(state, metrics):
        seen.append(metrics.output.reward.shape)
        return state

    agent = agents["plain"]
    state = agent.init(jax.random.key(0))
    trainer.fit(state, agent.program, epochs=2, hooks=hooks.on("rollout", look))
    assert seen == [(16, 4)] * 2


@pytest.mark.soak  # the example trains until it is solved
def test_it_learns_cartpole():
    agent = ppo(
        models.actor_critic(actions=2),
        cartpole(),
        optax.adam(2.5e-3),
        PPOConfig(envs=16, steps=128),
    )
    _, history = trainer.fit(agent.init(jax.random.key(0)), agent.program, epochs=40)
    returns = [epoch["rollout/return"] for epoch in history if "rollout/return" in epoch]
    assert returns[0] < 40
    assert max(returns) > 150
