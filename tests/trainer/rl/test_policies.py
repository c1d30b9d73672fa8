"""Policies: one step, many steps, and networks that do not fit."""

from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import pytest

import models
from trainer.rl import policies
from trainer.rl.environments import Box, cartpole
from trainer.rl.normalization import init_statistics, update_statistics

pytestmark = pytest.mark.usefixtures("compiled_quickly")

OBSERVATIONS = jax.random.normal(jax.random.key(5), (6, 3, 4))
FIRST = jnp.zeros((6, 3), bool).at[0].set(True).at[4, 1].set(True)


def _weights(network):
    return policies.init_weights(network, cartpole(), jax.random.key(0))


@pytest.mark.parametrize("recurrent_size", [None, 8])
def test_unrolling_equals_one_step_after_another(recurrent_size):
    network = models.actor_critic(actions=2, hidden=(8,), recurrent_size=recurrent_size)
    weights, recurrent = _weights(network), policies.init_recurrent_state(network, 3)
    whole, last, _ = policies.unroll_policy(network, weights, OBSERVATIONS, recurrent, FIRST)
    for t in range(6):
        one, recurrent, _ = policies.forward(network, weights, OBSERVATIONS[t], recurrent, FIRST[t])
        chex.assert_trees_all_close(one, jax.tree.map(lambda x, t=t: x[t], whole), atol=1e-6)
    chex.assert_trees_all_close(last, recurrent, atol=1e-6)


def test_the_recurrent_state_is_reset_when_an_episode_begins():
    network = models.actor_critic(actions=2, hidden=(8,), recurrent_size=8)
    weights, recurrent = _weights(network), policies.init_recurrent_state(network, 3)
    whole, _, _ = policies.unroll_policy(network, weights, OBSERVATIONS, recurrent, FIRST)
    later, _, _ = policies.unroll_policy(network, weights, OBSERVATIONS[4:], recurrent, FIRST[4:])
    chex.assert_trees_all_close(later["value"][:, 1], whole["value"][4:, 1], atol=1e-6)
    assert not jnp.allclose(later["value"][:, 0], whole["value"][4:, 0], atol=1e-6)


def test_observations_are_normalized():
    network = models.actor_critic(actions=2, hidden=(8,))
    weights = _weights(network)
    statistics = update_statistics(init_statistics(jnp.zeros(4)), 3 * OBSERVATIONS + 1)
    plain, _, _ = policies.unroll_policy(network, weights, OBSERVATIONS, (), FIRST)
    moved, _, _ = policies.unroll_policy(
        network, weights._replace(statistics=statistics), 3 * OBSERVATIONS + 1, (), FIRST
    )
    centred = (OBSERVATIONS - OBSERVATIONS.mean((0, 1), keepdims=True)) / OBSERVATIONS.std(
        (0, 1), keepdims=True
    )
    expected, _, _ = policies.unroll_policy(network, weights, centred, (), FIRST)
    chex.assert_trees_all_close(moved, expected, atol=1e-3)
    assert not jnp.allclose(moved["value"], plain["value"], atol=1e-2)


def test_actions_are_sampled_or_the_likeliest():
    outputs = {"logits": jnp.log(jnp.array([[0.9, 0.1]] * 500))}
    likeliest, log_prob = policies.act(outputs, None)
    assert set(likeliest.tolist()) == {0}
    chex.assert_trees_all_close(jnp.exp(log_prob), jnp.full(500, 0.9), rtol=1e-5)
    sampled, _ = policies.act(outputs, jax.random.key(0))
    assert 20 < int(sampled.sum()) < 80


def test_actions_in_a_box_are_clipped_to_its_bounds():
    space = Box((2,), -1.0, 1.0)
    assert policies.clip_action(jnp.array([[3.0, -0.5]]), space).tolist() == [[1.0, -0.5]]
    unbounded = Box((2,))
    assert policies.clip_action(jnp.array([[3.0, -0.5]]), unbounded).tolist() == [[3.0, -0.5]]


def test_actions_in_a_box_of_integers_are_rounded():
    space = Box((4,), -2, 2, jnp.dtype(jnp.int32))
    clipped = policies.clip_action(jnp.array([[1.6, -0.9, 0.4, 9.0]]), space)
    assert clipped.dtype == jnp.int32
    assert clipped.tolist() == [[2, -1, 0, 2]]


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (models.actor_critic(actions=3), r"logits \['batch', 2\].*'cartpole'.*actions=2\)"),
        (
            models.actor_critic(actions=2, continuous=True),
            "must return logits .* returns .*mean",
        ),
        (models.mlp(classes=2), "must return a dict"),
    ],
)
def test_a_policy_for_other_actions_is_refused(network, said):
    with pytest.raises((TypeError, ValueError), match=said):
        policies.check_policy(network, cartpole())


def test_a_box_needs_a_continuous_policy():
    env = cartpole()._replace(action_space=Box((2,), -1.0, 1.0))
    policies.check_policy(models.actor_critic(actions=2, continuous=True), env)
    with pytest.raises(ValueError, match="actions=2, continuous=True"):
        policies.check_policy(models.actor_critic(actions=2), env)
    with pytest.raises(ValueError, match="one axis"):
        policies.check_policy(
            models.actor_critic(actions=2, continuous=True),
            env._replace(action_space=Box((2, 2), -1.0, 1.0)),
        )


@pytest.mark.parametrize("log_std", [{}, {"log_std": jnp.zeros(2)}])
def test_a_gaussian_policy_needs_a_log_std_with_a_batch_axis(log_std):
    outputs = {"mean": jnp.zeros((1, 2)), "value": jnp.zeros(1), **log_std}
    network = SimpleNamespace(
        init=lambda key, x: ({}, {}),
        apply=lambda params, model_state, x, *, key, train: (outputs, model_state),
    )
    with pytest.raises(ValueError, match=r"must return log_std \['batch', 2\]"):
        policies.check_policy(network, cartpole()._replace(action_space=Box((2,), -1.0, 1.0)))


def test_weights_for_other_observations_are_refused():
    network = models.actor_critic(actions=2, hidden=(8,))
    weights = _weights(network)
    policies.check_policy(network, cartpole(), weights=weights)
    with pytest.raises(ValueError, match="must be .6, 8., got .4, 8.") as raised:
        policies.check_policy(
            network,
            cartpole()._replace(observation_space=Box((6,))),
            weights=weights,
            who="the teacher",
        )
    assert "the teacher to the observations of 'cartpole'" in " ".join(raised.value.__notes__)


def test_a_policy_without_a_value_or_with_a_changing_recurrent_state_is_refused():
    def network(outputs, init_recurrent_state=lambda batch: ()):
        return SimpleNamespace(
            init=lambda key, x: ({}, {}),
            apply=lambda params, model_state, x, *, key, train: (outputs, model_state),
            init_recurrent_state=init_recurrent_state,
        )

    with pytest.raises(ValueError, match="must return a value"):
        policies.check_policy(network({"logits": jnp.zeros((1, 2))}), cartpole())
    outputs = {"logits": jnp.zeros((1, 2)), "value": jnp.zeros(1), "recurrent": jnp.zeros((1, 5))}
    with pytest.raises(TypeError, match="must keep the shapes of its recurrent state"):
        policies.check_policy(network(outputs, lambda batch: jnp.zeros((batch, 4))), cartpole())
