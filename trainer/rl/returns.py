"""Returns and advantages, from rewards and the values of later observations.

An episode may end inside a `Trajectory`: `terminated`, nothing follows it; `truncated`, the value
of the last observation stands for the rewards that would have followed. The end of the arrays
truncates too.

Everywhere `discount` is the weight of a reward one step later, in [0, 1], and arrays that differ in
shape raise ValueError. All is jittable and differentiable; a loss that treats a result as constant
applies `jax.lax.stop_gradient`.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Trajectory(NamedTuple):
    """Consecutive steps, arrays `[time, ...]` of one shape."""

    rewards: jax.Array
    values: jax.Array
    """Values of the observations before each step."""
    next_values: jax.Array
    """Values of the observations after each step, before any reset; within an episode they are the
    values one step later."""
    terminated: jax.Array
    """bool: the step ended the episode; nothing follows it."""
    truncated: jax.Array
    """bool: the episode was cut off after the step."""


class VTrace(NamedTuple):
    """The result of `compute_vtrace`, `[time, ...]` each."""

    targets: jax.Array
    """For the values."""
    advantages: jax.Array
    """For the policy gradient, already weighted by each action's importance."""


def compute_gae(
    trajectory: Trajectory, *, discount: float | jax.Array, gae_lambda: float | jax.Array
) -> jax.Array:
    """Estimate how much better each action was than the values expected.

    `gae_lambda`, in [0, 1], goes from the error of one step (0: biased by the values, little noise)
    to the whole return minus the value (1).

    Returns:
        Advantages `[time, ...]`. Values plus advantages are targets for the values.

    Source: J. Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage
    Estimation, 2016, equation 16.

    >>> rewards, ended, never = jnp.ones(3), jnp.array([False, True, False]), jnp.zeros(3, bool)
    >>> trajectory = Trajectory(rewards, 0 * rewards, jnp.full(3, 4.0), ended, never)
    >>> compute_gae(trajectory, discount=0.5, gae_lambda=0.5)
    Array([3.25, 1.  , 3.  ], dtype=float32)
    """
    _check_shapes("compute_gae", *trajectory)
    errors = _compute_errors(trajectory, discount)
    ended = trajectory.terminated | trajectory.truncated
    return _accumulate(errors, jnp.where(ended, 0, discount * gae_lambda))


def compute_n_step_returns(
    trajectory: Trajectory, *, n: int, discount: float | jax.Array
) -> jax.Array:
    """Return the discounted rewards of `n` steps plus the value of the observation after them.

    Fewer steps count if the episode, or the arrays, end before: from their length on, `n`, a Python
    int, means the whole return.

    Returns:
        Targets for the values, `[time, ...]`.

    Raises:
        ValueError: `n` is less than 1.

    Source: R. Sutton and A. Barto, Reinforcement Learning: An Introduction, 2018, equation 7.1.

    >>> rewards, ended, never = jnp.ones(3), jnp.array([False, False, True]), jnp.zeros(3, bool)
    >>> trajectory = Trajectory(rewards, 0 * rewards, jnp.full(3, 4.0), ended, never)
    >>> compute_n_step_returns(trajectory, n=2, discount=0.5)
    Array([2.5, 1.5, 1. ], dtype=float32)
    """
    _check_shapes("compute_n_step_returns", *trajectory)
    if operator.index(n) < 1:
        raise ValueError(f"compute_n_step_returns: n must be at least 1 step; got {n}")
    rewards, _, next_values, terminated, truncated = trajectory
    following = jnp.where(terminated, 0, next_values)
    one = rewards + discount * following
    ends = (terminated | truncated)[:-1]

    def lengthen(_: int, targets: jax.Array) -> jax.Array:
        later = jnp.where(ends, following[:-1], targets[1:])
        return targets.at[:-1].set(rewards[:-1] + discount * later)

    return lax.fori_loop(1, min(n, len(rewards)), lengthen, one)


def compute_vtrace(
    trajectory: Trajectory,
    log_ratios: jax.Array,
    *,
    discount: float | jax.Array,
    gae_lambda: float | jax.Array = 1.0,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
) -> VTrace:
    """Estimate targets and advantages of a policy from the actions of another one.

    If the two policies are the same, the advantages are those of `compute_gae`, and the targets
    are the values plus the advantages.

    Args:
        trajectory: the steps.
        log_ratios: log probability of each action under the policy to estimate, minus that under
            the policy that acted, `[time, ...]`.
        discount: see above.
        gae_lambda: as in `compute_gae`; it shortens the traces.
        clip_rho: largest importance of an action, above 0. It decides whose values the targets
            approach: at infinity those of the policy to estimate, near 0 of the one that acted.
        clip_c: largest importance of an action in the trace of later ones, above 0; a smaller one
            means less noise, and slower learning.

    Source: L. Espeholt et al., IMPALA: Scalable Distributed Deep-RL with Importance Weighted
    Actor-Learner Architectures, 2018, equation 1 and remarks 1 and 2.

    >>> rewards, never = jnp.ones(2), jnp.zeros(2, bool)
    >>> trajectory = Trajectory(rewards, 0 * rewards, 0 * rewards, never, never)
    >>> compute_vtrace(trajectory, jnp.log(jnp.array([0.5, 4.0])), discount=0.5).targets
    Array([0.75, 1.  ], dtype=float32)
    """
    _check_shapes("compute_vtrace", *trajectory, log_ratios)
    ratios = jnp.exp(log_ratios)
    rho, c = jnp.minimum(clip_rho, ratios), jnp.minimum(clip_c, ratios)
    errors = _compute_errors(trajectory, discount)
    ended = trajectory.terminated | trajectory.truncated
    decay = jnp.where(ended, 0, discount * gae_lambda)
    corrections = _accumulate(rho * errors, decay * c)
    later = jnp.concatenate([corrections[1:], jnp.zeros_like(corrections[:1])])
    return VTrace(trajectory.values + corrections, rho * (errors + decay * later))


def _compute_errors(trajectory: Trajectory, discount: float | jax.Array) -> jax.Array:
    """Return the temporal-difference error of each step."""
    following = jnp.where(trajectory.terminated, 0, trajectory.next_values)
    return trajectory.rewards + discount * following - trajectory.values


def _accumulate(errors: jax.Array, decay: jax.Array) -> jax.Array:
    """Sum each error and, decayed, those after it: `x[t] = e[t] + d[t] x[t+1]`."""

    def add(later: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total = now[0] + now[1] * later
        return total, total

    start = jnp.zeros_like(errors[0])
    return lax.scan(add, start, (errors, decay.astype(errors.dtype)), reverse=True)[1]


def _check_shapes(owner: str, *arrays: jax.Array) -> None:
    """Check that arrays have one shape: another one would broadcast to wrong numbers."""
    shapes = [jnp.shape(array) for array in arrays]
    if len(set(shapes)) > 1 or not shapes[0]:
        raise ValueError(
            f"{owner} needs arrays of one shape [time, ...]; got {', '.join(map(str, shapes))}"
        )
