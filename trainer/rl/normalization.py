"""Running statistics, kept in `state.carry["normalization"]`: of observations, and of returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trainer.state import PyTree

LIMIT = 10.0
"""Standard deviations beyond which a normalised number is cut off."""


class RunningStatistics(NamedTuple):
    """How numbers were distributed so far."""

    weight: jax.Array
    """() float32: how many numbers were seen."""
    mean: PyTree
    """Of one observation's structure and shapes."""
    m2: PyTree
    """Sums of the squared differences from the mean, alike."""


class RewardStatistics(NamedTuple):
    """What the scale of rewards is taken from."""

    discounted: jax.Array
    """float32 `[env]`: each environment's discounted sum of rewards, of the running episode."""
    statistics: RunningStatistics
    """Of these sums."""


def init_statistics(example: PyTree) -> RunningStatistics:
    """Begin with the mean 0 and the variance 1, which the first numbers outweigh.

    Args:
        example: one observation, without batch axes.
    """
    weight = 1e-4
    zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), example)
    spread = jax.tree.map(lambda x: jnp.full_like(x, weight), zeros)
    return RunningStatistics(jnp.float32(weight), zeros, spread)


def update_statistics(statistics: RunningStatistics, batch: PyTree) -> RunningStatistics:
    """Take in a batch of numbers at once.

    Args:
        statistics: so far.
        batch: of the structure of the mean, with leading axes `[time, env]`, say.

    Source: T. F. Chan, G. H. Golub, R. J. LeVeque, Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances, 1979.

    >>> seen = update_statistics(init_statistics(jnp.float32(0)), jnp.array([1.0, 3.0]))
    >>> round(float(seen.mean), 2), round(float(seen.m2 / seen.weight), 2)
    (2.0, 1.0)
    """
    one, whole = jax.tree.leaves(statistics.mean)[0], jax.tree.leaves(batch)[0]
    axes = tuple(range(whole.ndim - one.ndim))
    new = jnp.float32(whole.size // one.size)
    total = statistics.weight + new

    def moments(mean: jax.Array, m2: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.astype(jnp.float32)
        here = jnp.mean(x, axes)
        apart = here - mean
        spread = (
            jnp.sum((x - jnp.expand_dims(here, axes)) ** 2, axes)
            + apart**2 * statistics.weight * new / total
        )
        return mean + apart * new / total, m2 + spread

    both = jax.tree.map(moments, statistics.mean, statistics.m2, batch)
    mean, m2 = jax.tree.transpose(jax.tree.structure(batch), jax.tree.structure((0, 0)), both)
    return RunningStatistics(total, mean, m2)


def normalize(statistics: RunningStatistics, observation: PyTree) -> PyTree:
    """Bring observations to mean 0 and variance 1, within 10 standard deviations.

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
    """Begin with rewards as they are."""
    return RewardStatistics(jnp.zeros(envs), init_statistics(jnp.float32(0)))


def scale_rewards(
    rewards: RewardStatistics, given: jax.Array, ended: jax.Array, *, discount: float
) -> tuple[RewardStatistics, jax.Array]:
    """Divide rewards by the standard deviation of the discounted sums, these ones included.

    Args:
        rewards: what is known so far.
        given: rewards `[time, env]`.
        ended: bool `[time, env]`: the episode ended with this step.
        discount: of a reward a step later.

    Returns:
        What is known now, and the rewards, within 10 standard deviations.
    """

    def add(total: jax.Array, row: Any) -> tuple[jax.Array, jax.Array]:
        reward, over = row
        total = total * discount + reward
        return jnp.where(over, 0.0, total), total

    discounted, totals = lax.scan(add, rewards.discounted, (given, ended))
    statistics = update_statistics(rewards.statistics, totals)
    scale = lax.rsqrt(statistics.m2 / statistics.weight + 1e-8)
    return RewardStatistics(discounted, statistics), jnp.clip(given * scale, -LIMIT, LIMIT)
