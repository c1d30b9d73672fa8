"""Running statistics: the same as numpy's over all numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from trainer.rl import normalization


def test_batches_add_up_to_the_moments_of_the_whole():
    pieces = [jax.random.normal(jax.random.key(n), (5, 4, 3)) * (n + 1) + n for n in range(4)]
    statistics = normalization.init_statistics(jnp.zeros(3))
    for piece in pieces:
        statistics = normalization.update_statistics(statistics, piece)
    whole = np.concatenate([np.asarray(p).reshape(-1, 3) for p in pieces])
    np.testing.assert_allclose(statistics.mean, whole.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(statistics.m2 / statistics.weight, whole.var(axis=0), rtol=1e-4)
    seen = normalization.normalize(statistics, jnp.asarray(whole))
    np.testing.assert_allclose(seen.std(axis=0), np.ones(3), rtol=1e-3)


def test_initial_statistics_leave_observations_nearly_unchanged():
    statistics = normalization.init_statistics({"a": jnp.zeros(2), "b": jnp.int32(0)})
    observation = {"a": jnp.array([[0.5, -2.0]]), "b": jnp.array([3])}
    seen = normalization.normalize(statistics, observation)
    chex.assert_trees_all_close(seen, {"a": observation["a"], "b": jnp.array([3.0])}, rtol=1e-3)


def test_rewards_are_divided_by_the_deviation_of_their_discounted_sums():
    given = jnp.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    ended = jnp.array([[False, True], [False, False], [True, False]])
    rewards, scaled = normalization.scale_rewards(
        normalization.init_reward_statistics(2), given, ended, discount=0.5
    )
    totals = np.array([1.0, 2.0, 1.5, 2.0, 1.75, 3.0])  # an ended episode begins again at 0
    np.testing.assert_allclose(scaled, given / totals.std(), rtol=1e-3)
    np.testing.assert_allclose(rewards.discounted, [0.0, 3.0])
