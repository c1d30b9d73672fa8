"""The update: its parts alone, and the steps that it takes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import trainer
from trainer import losses
from trainer.rl import ppo, ppo_loss, ppo_update
from trainer.rl.normalization import init_reward_statistics
from trainer.rl.rollouts import Experience

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
    batch = ppo_update.build_loss_batch(_experience(), discount=0.5, gae_lambda=0.0)
    expected = jnp.array([[0.0, 1.0], [1.0, 3.0], [4.0, 5.0]])  # r + 0.5 * 2 - 1, or r - 1
    chex.assert_trees_all_close(batch["advantage"], expected)
    chex.assert_trees_all_close(batch["target"], expected + 1)


@pytest.mark.parametrize(
    ("target", "value", "expected"),
    [
        ([1.0, 3.0], [2.0, 4.0], 1.0),  # what is off by the same foresees all that varies
        ([1.0, 3.0], [5.0, 5.0], 0.0),
        ([1.0, 3.0], [3.0, 1.0], -3.0),
        ([1e-6, 3e-6], [1e-6, 2e-6], 0.75),
        ([2.0, 2.0], [1.0, 3.0], None),
        ([0.0, 0.0], [0.0, 0.0], None),
        ([2.0, 2.0000002], [1.0, 3.0], None),  # which is how rounding leaves a constant
    ],
)
def test_the_explained_variance_by_hand(target, value, expected):
    share = float(ppo_update.explained_variance(jnp.array(target), jnp.array(value)))
    assert share == pytest.approx(np.nan if expected is None else expected, rel=1e-5, nan_ok=True)


def test_what_is_undefined_is_missing_and_stops_nothing(counts, always):
    """Every step gives 1 and ends an episode, so that all returns are 1."""
    env = counts(3, reward=lambda state: jnp.float32(1))
    agent = ppo(always(1), env, optax.sgd(0.01), envs=2, steps=4, minibatches=1)
    state = agent.init(jax.random.key(0))
    state, history = trainer.fit(state, agent.program, epochs=2, hooks=hooks.stop_on_nan())
    assert not state.stop
    assert "update/explained_variance" not in history[-1]
    assert "update/value_loss" in history[-1]


def test_an_update_needs_a_rollout_before_it(counts, always):
    agent = _agent(always, counts)
    with pytest.raises(TypeError, match="'update' learns .* got NoneType: a program is"):
        trainer.fit(agent.init(jax.random.key(0)), agent.update, epochs=1)


def test_transitions_are_units_without_memory_and_environments_with_one():
    batch = {"value": jnp.zeros((3, 2)), "observation": jnp.zeros((3, 2, 5))}
    assert ppo_update.group_units(batch, ()).batch["observation"].shape == (1, 6, 5)
    kept = ppo_update.group_units(batch, jnp.zeros((2, 4)))
    assert kept.batch["observation"].shape == (3, 2, 5)


def test_rewards_are_scaled_only_where_statistics_are_kept(state):
    experience = _experience()
    same, plain = ppo_update.apply_reward_scaling(state, experience, 0.9)
    assert same is state
    assert plain is experience
    keeping = state.replace(carry={"normalization": {"rewards": init_reward_statistics(2)}})
    after, scaled = ppo_update.apply_reward_scaling(keeping, experience, 0.9)
    assert float(after.carry["normalization"]["rewards"].statistics.weight) > 5
    assert float(scaled.reward.max()) < float(experience.reward.max())


@pytest.mark.parametrize("batch_size", [0, 3, 64])
def test_a_rollout_is_made_of_whole_minibatches(batch_size):
    assert ppo_update.minibatches_of(4, 8, 16) == 2
    with pytest.raises(ValueError, match=rf"32 transitions .* minibatches of {batch_size}$"):
        ppo_update.minibatches_of(4, 8, batch_size)


def _agent(always, counts, **settings):
    settings = {"envs": 4, "steps": 8, "epochs": 2, "minibatches": 4, **settings}
    rate = optax.inject_hyperparams(optax.sgd)(learning_rate=0.01)
    return ppo(always(0), counts(3), rate, **settings)


def test_every_transition_is_learnt_from_once_an_epoch(counts, always):
    seen = []

    def remember(outputs, batch):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), batch["log_prob"] * 0 + 1)
        return {"loss": outputs["value"] - batch["observation"][:, 0]}

    agent = _agent(always, counts, loss=remember)
    state, _ = trainer.fit(agent.init(jax.random.key(0)), agent.program, epochs=1)
    jax.effects_barrier()
    assert sum(len(x) for x in seen) == 2 * 32
    assert int(state.step) == 8


def test_one_minibatch_is_a_step_of_plain_gradient_descent(counts, always):
    agent = _agent(always, counts, epochs=1, minibatches=1, clip_norm=None)
    state = agent.init(jax.random.key(0))
    state, experience, _ = agent.rollout.execute(state, None, donate=False)
    batch = ppo_update.build_loss_batch(experience, discount=0.99, gae_lambda=0.95)
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


def test_an_update_ends_where_the_policy_moved_too_far(counts, always):
    def moving(outputs, batch):
        values = ppo_loss()(outputs, batch)
        return {**values, "approx_kl": jnp.full_like(values["loss"], outputs["value"][0])}

    agent = _agent(always, counts, loss=moving, target_kl=1e9)
    state = agent.init(jax.random.key(0))
    whole, history = trainer.fit(state, agent.program, epochs=1)
    assert int(whole.step) == 8
    assert history[0]["update/applied"] == 1.0
    agent = _agent(always, counts, loss=moving, target_kl=1e-9)
    still, history = trainer.fit(state, agent.program, epochs=1)
    taken = int(still.step)
    assert taken < 8
    assert history[0]["update/applied"] == pytest.approx(taken / 8)
    if not taken:
        chex.assert_trees_all_equal(still.params, state.params)


@pytest.mark.parametrize(
    ("settings", "given", "said"),
    [
        ({}, "los", r"must return 'loss' to minimise; it returned \['los'\]"),
        ({"target_kl": 0.1}, "loss", "target_kl needs a loss that gives 'approx_kl'"),
    ],
)
def test_a_loss_that_lacks_what_is_read_is_refused(settings, given, said, counts, always):
    def loss(outputs, batch):
        return {given: outputs["value"]}

    agent = _agent(always, counts, loss=loss, **settings)
    with pytest.raises(ValueError, match=said):
        trainer.fit(agent.init(jax.random.key(0)), agent.program, epochs=1)


def test_a_loss_may_depend_on_the_step(counts, always):
    def loss(outputs, batch, *, step):
        return {"loss": outputs["value"] * 0 + step}

    agent = _agent(always, counts, loss=losses.Loss(loss, takes_step=True))
    _, history = trainer.fit(agent.init(jax.random.key(0)), agent.program, epochs=2)
    assert [epoch["update/loss"] for epoch in history] == [3.5, 11.5]  # of steps 0 to 7, 8 to 15
