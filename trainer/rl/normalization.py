"""Running statistics of observations and of returns, at `state.carry["normalization"]`."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trainer.state import PyTree

LIMIT = 10.0
"""Standard deviations to which a normalized number is clipped."""


class RunningStatistics(NamedTuple):
    """Mean and variance of the numbers seen so far."""

    weight: jax.Array
    """() float32: count of the numbers."""
    mean: PyTree
    """Mean, with the structure and shapes of one observation."""
    m2: PyTree
    """Sums of the squared differences from the mean, likewise."""


class RewardStatistics(NamedTuple):
    """The statistics that rewards are scaled by."""

    discounted: jax.Array
    """float32 `[env]`: discounted sum of the rewards of each running episode."""
    statistics: RunningStatistics
    """Statistics of these sums."""


def init_statistics(example: PyTree) -> RunningStatistics:
    """Return statistics of mean 0 and variance 1, which the first numbers outweigh."""
    weight = 1e-4
    zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), example)
    spread = jax.tree.map(lambda x: jnp.full_like(x, weight), zeros)
    return RunningStatistics(jnp.float32(weight), zeros, spread)


def update_statistics(statistics: RunningStatistics, batch: PyTree) -> RunningStatistics:
    """Add a batch of numbers, with leading axes such as `[time, env]`, to the statistics.

    Source: T. F. Chan, G. H. Golub, R. J. LeVeque, Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances, 1979.

    >>> seen = update_statistics(init_statistics(jnp.float32(0)), jnp.array([1.0, 3.0]))
    >>> round(float(seen.mean), 2), round(float(seen.m2 / seen.weight), 2)
    (2.0, 1.0)
    """
    one, many = jax.tree.leaves(statistics.mean)[0], jax.tree.leaves(batch)[0]
    axes = tuple(range(many.ndim - one.ndim))
    new = jnp.float32(many.size // one.size)
    total = statistics.weight + new

    def moments(mean: jax.Array, m2: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.astype(jnp.float32)
        batch_mean = jnp.mean(x, axes)
        difference = batch_mean - mean
        spread = (
            jnp.sum((x - jnp.expand_dims(batch_mean, axes)) ** 2, axes)
            + difference**2 * statistics.weight * new / total
        )
        return mean + difference * new / total, m2 + spread

    both = jax.tree.map(moments, statistics.mean, statistics.m2, batch)
    mean, m2 = jax.tree.transpose(jax.tree.structure(batch), jax.tree.structure((0, 0)), both)
    return RunningStatistics(total, mean, m2)


def normalize(statistics: RunningStatistics, observation: PyTree) -> PyTree:
    """Normalize observations to mean 0 and variance 1, clipped to 10 standard deviations.

    >>> seen = update_statistics(init_statistics(jnp.zeros(1)), jnp.array([[1.0], [3.0]]))
    >>> normalize(seen, jnp.array([[3.0], [99.0]])).round(2).tolist()
    [[1.0], [10.0]]
    """

    def one(x: jax.Array, mean: jax.Array, m2: jax.Array) -> jax.Array:
        leading = tuple(range(x.ndim - mean.ndim))
        mean, m2 = jnp.expand_dims(mean, leading), jnp.expand_dims(m2, leading)
        scaled = (x - mean) * lax.rsqrt(m2 / statistics.weight + 1e-8)
        return jnp.clip(scaled, -LIMIT, LIMIT)

    return jax.tree.map(one, observation, statistics.mean, statistics.m2)


def init_reward_statistics(envs: int) -> RewardStatistics:
    """Return the statistics before any reward, which leave rewards nearly unscaled."""
    return RewardStatistics(jnp.zeros(envs), init_statistics(jnp.float32(0)))


def scale_rewards(
    statistics: RewardStatistics, rewards: jax.Array, ended: jax.Array, *, discount: float
) -> tuple[RewardStatistics, jax.Array]:
    """Divide rewards by the standard deviation of their discounted sums, these included.

    Args:
        statistics: so far.
        rewards: `[time, env]`.
        ended: bool `[time, env]`: the episode ended with this step.
        discount: weight of a reward one step later.

    Returns:
        The new statistics, and the scaled rewards, clipped to 10 standard deviations.
    """

    def add(total: jax.Array, row: Any) -> tuple[jax.Array, jax.Array]:
        reward, over = row
        total = total * discount + reward
        return jnp.where(over, 0.0, total), total

    discounted, totals = lax.scan(add, statistics.discounted, (rewards, ended))
    of_sums = update_statistics(statistics.statistics, totals)
    scale = lax.rsqrt(of_sums.m2 / of_sums.weight + 1e-8)
    return RewardStatistics(discounted, of_sums), jnp.clip(rewards * scale, -LIMIT, LIMIT)
