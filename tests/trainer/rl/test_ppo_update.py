"""The update: its parts, and the optimizer steps that it takes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import trainer
from trainer import losses
from trainer.rl import PPOConfig, count_minibatches, ppo, ppo_loss, ppo_update
from trainer.rl.experience import Experience
from trainer.rl.normalization import init_reward_statistics

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def _experience(steps=3, envs=2):
    shape = (steps, envs)
    rewards = jnp.arange(steps * envs, dtype=jnp.float32).reshape(shape)
    no = jnp.zeros(shape, bool)
    return Experience(
        observation=rewards[..., None],
        action=jnp.zeros(shape, jnp.int32),
        log_prob=jnp.zeros(shape),
        value=jnp.ones(shape),
        reward=rewards,
        terminated=no.at[1, 0].set(True),
        truncated=no,
        first=no,
        next_value=jnp.full(shape, 2.0),
        recurrent=(),
    )


def test_advantages_and_targets_by_hand():
    batch = ppo_update.build_loss_batch(_experience(), PPOConfig(discount=0.5, gae_lambda=0.0))
    expected = jnp.array([[0.0, 1.0], [1.0, 3.0], [4.0, 5.0]])  # r + 0.5 * 2 - 1, or r - 1
    chex.assert_trees_all_close(batch["advantage"], expected)
    chex.assert_trees_all_close(batch["target"], expected + 1)


@pytest.mark.parametrize(
    ("target", "value", "expected"),
    [
        ([1.0, 3.0], [2.0, 4.0], 1.0),  # a constant error explains all of the variance
        ([1.0, 3.0], [5.0, 5.0], 0.0),
        ([1.0, 3.0], [3.0, 1.0], -3.0),
        ([1e-6, 3e-6], [1e-6, 2e-6], 0.75),
        ([2.0, 2.0], [1.0, 3.0], None),
        ([0.0, 0.0], [0.0, 0.0], None),
        ([2.0, 2.0000002], [1.0, 3.0], None),  # a constant, up to rounding
    ],
)
def test_explained_variance_by_hand(target, value, expected):
    share = float(ppo_update.explained_variance(jnp.array(target), jnp.array(value)))
    assert share == pytest.approx(np.nan if expected is None else expected, rel=1e-5, nan_ok=True)


def test_an_undefined_explained_variance_is_missing_and_stops_nothing(counts, always):
    """Every step has a reward of 1 and ends an episode, so all returns are 1."""
    env = counts(3, reward=lambda state: jnp.float32(1))
    agent = ppo(always(1), env, optax.sgd(0.01), PPOConfig(envs=2, steps=4, minibatches=1))
    state = agent.init(jax.random.key(0))
    state, history = trainer.fit(state, agent.program, epochs=2, hooks=hooks.stop_on_nan())
    assert not state.stop
    assert "update/explained_variance" not in history[-1]
    assert "update/value_loss" in history[-1]


def test_an_update_needs_a_rollout_before_it(counts, always):
    agent = _agent(always, counts)
    with pytest.raises(TypeError, match="'update' learns .* got NoneType: a program is"):
        trainer.fit(agent.init(jax.random.key(0)), agent.update, epochs=1)


def test_rewards_are_scaled_only_if_the_state_keeps_statistics(state):
    experience = _experience()
    same, plain = ppo_update.apply_reward_scaling(state, experience, 0.9)
    assert same is state
    assert plain is experience
    keeping = state.replace(carry={"normalization": {"rewards": init_reward_statistics(2)}})
    after, scaled = ppo_update.apply_reward_scaling(keeping, experience, 0.9)
    assert float(after.carry["normalization"]["rewards"].statistics.weight) > 5
    assert float(scaled.reward.max()) < float(experience.reward.max())


@pytest.mark.parametrize("batch_size", [0, 3, 64])
def test_a_batch_size_must_divide_the_rollout(batch_size):
    assert count_minibatches(4, 8, 16) == 2
    with pytest.raises(ValueError, match=rf"32 transitions .* minibatches of {batch_size}$"):
        count_minibatches(4, 8, batch_size)


def _agent(always, counts, loss=None, **settings):
    settings = {"envs": 4, "steps": 8, "epochs": 2, "minibatches": 4, **settings}
    rate = optax.inject_hyperparams(optax.sgd)(learning_rate=0.01)
    return ppo(always(0), counts(3), rate, PPOConfig(**settings), loss=loss)


def test_every_transition_is_used_once_an_epoch(counts, always):
    used = []

    def record(outputs, batch):
        jax.debug.callback(lambda x: used.append(np.asarray(x)), batch["observation"][:, 0])
        return {"loss": outputs["value"] - batch["observation"][:, 0]}

    agent = _agent(always, counts, loss=record)
    experience = _experience(8, 4)  # whose observations are 0 to 31
    state, _, _ = agent.update.execute(agent.init(jax.random.key(0)), experience, donate=False)
    jax.effects_barrier()
    assert sorted(np.concatenate(used)) == sorted([*range(32)] * 2)
    assert int(state.step) == 8


def test_one_minibatch_is_a_step_of_plain_gradient_descent(counts, always):
    agent = _agent(always, counts, epochs=1, minibatches=1, clip_norm=None)
    state = agent.init(jax.random.key(0))
    state, experience, _ = agent.rollout.execute(state, None, donate=False)
    batch = ppo_update.build_loss_batch(experience, PPOConfig())
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    network = always(0)

    def objective(params):
        outputs, _ = network.apply(params, {}, flat["observation"], key=None, train=True)
        return ppo_loss()(outputs, flat)["loss"].mean()

    expected = state.params["w"] - 0.01 * jax.grad(objective)(state.params)["w"]
    after, _, measured = agent.update.execute(state, experience, donate=False)
    chex.assert_trees_all_close(after.params["w"], expected, rtol=1e-5)
    values, _, _ = measured.read()
    assert values["update/learning_rate"] == pytest.approx(0.01)
    assert values["update/loss"] == pytest.approx(float(objective(state.params)), rel=1e-5)


@pytest.mark.parametrize(("target_kl", "taken"), [(0.005, 0), (0.035, 3), (1.0, 8)])
def test_an_update_stops_when_the_policy_has_moved_too_far(target_kl, taken, counts, always):
    """Each step lowers the weight by 0.01, so `approx_kl` is 0.01, 0.02, ..."""

    def loss(outputs, batch):
        weight = outputs["value"] - 10 * batch["observation"][:, 0]
        return {"loss": outputs["value"], "approx_kl": 0.01 - weight}

    agent = _agent(always, counts, loss=loss, target_kl=target_kl, clip_norm=None)
    state = agent.init(jax.random.key(0))
    state, experience, _ = agent.rollout.execute(state, None, donate=False)
    after, _, measured = agent.update.execute(state, experience, donate=False)
    values, traces, _ = measured.read()
    assert int(after.step) == taken
    assert float(after.params["w"]) == pytest.approx(-0.01 * taken)
    assert traces["update/applied"].tolist() == [1] * taken + [0] * (8 - taken)
    assert values["update/applied"] == taken / 8


@pytest.mark.parametrize(
    ("settings", "name", "said"),
    [
        ({}, "los", r"must return 'loss' to minimise; it returned \['los'\]"),
        ({"target_kl": 0.1}, "loss", "target_kl needs a loss that reports 'approx_kl'"),
    ],
)
def test_a_loss_without_a_required_value_is_refused(settings, name, said, counts, always):
    def loss(outputs, batch):
        return {name: outputs["value"]}

    agent = _agent(always, counts, loss=loss, **settings)
    with pytest.raises(ValueError, match=said):
        trainer.fit(agent.init(jax.random.key(0)), agent.program, epochs=1)


def test_a_loss_may_depend_on_the_step(counts, always):
    def loss(outputs, batch, *, step):
        return {"loss": outputs["value"] * 0 + step}

    agent = _agent(always, counts, loss=losses.Loss(loss, takes_step=True))
    _, history = trainer.fit(agent.init(jax.random.key(0)), agent.program, epochs=2)
    assert [epoch["update/loss"] for epoch in history] == [3.5, 11.5]  # of steps 0 to 7, 8 to 15
