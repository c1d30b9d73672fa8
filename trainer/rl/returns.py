"""What actions led to: returns and advantages, from rewards and the values of what followed.

All arrays are `[time, ...]`, an episode a stretch of time, and one may end inside: by what happened
(`terminated`), after which nothing comes, or because it was cut off (`truncated`), after which the
value of the last observation stands for what would have come. `next_values` are the values of the
observations that followed each step, before any reset. The end of the arrays cuts off too.

Everything is jittable and passes gradients on; what a loss takes for a constant goes through
`jax.lax.stop_gradient`.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class VTrace(NamedTuple):
    """What `compute_vtrace` gives, `[time, ...]` each."""

    targets: jax.Array
    """For the values."""
    advantages: jax.Array
    """For the policy gradient, by the importance of each action already."""


def compute_gae(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    *,
    discount: float | jax.Array,
    gae_lambda: float | jax.Array,
) -> jax.Array:
    """Estimate how much better each action was than what the values expected.

    `gae_lambda` weighs between the error of one step (0: biased by the values, little noise) and
    the whole return less the value (1). Added to the values, the advantages are targets for them.

    Args:
        rewards: `[time, ...]`.
        values: of the observations before each step, `[time, ...]`.
        next_values: of the observations after each step, before any reset, `[time, ...]`.
        terminated: bool `[time, ...]`, the step ended the episode for good.
        truncated: bool `[time, ...]`, the step was the episode's last that was let happen.
        discount: of a reward one step later, in [0, 1].
        gae_lambda: in [0, 1].

    Returns:
        Advantages `[time, ...]`.

    Raises:
        ValueError: the arrays differ in shape.

    Source: J. Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage
    Estimation, 2016, equation 16.

    >>> rewards, ended, never = jnp.ones(3), jnp.array([False, True, False]), jnp.zeros(3, bool)
    >>> compute_gae(rewards, 0 * rewards, jnp.full(3, 4.0), ended, never, discount=0.5,
    ...     gae_lambda=0.5)
    Array([3.25, 1.  , 3.  ], dtype=float32)
    """
    _require_alike("gae", rewards, values, next_values, terminated, truncated)
    errors = rewards + discount * jnp.where(terminated, 0, next_values) - values
    ended = terminated | truncated
    return _accumulated(errors, jnp.where(ended, 0, discount * gae_lambda))


def compute_n_step_returns(
    rewards: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    *,
    n: int,
    discount: float | jax.Array,
) -> jax.Array:
    """Give the discounted rewards of `n` steps and the value of what followed them.

    Fewer steps count where the episode, or the arrays, end before.

    Args:
        rewards: `[time, ...]`.
        next_values: of the observations after each step, before any reset, `[time, ...]`.
        terminated: bool `[time, ...]`, the step ended the episode for good.
        truncated: bool `[time, ...]`, the step was the episode's last that was let happen.
        n: steps; a Python whole number. From the length of the arrays on it is the whole return.
        discount: of a reward one step later, in [0, 1].

    Returns:
        Targets for the values, `[time, ...]`.

    Raises:
        ValueError: the arrays differ in shape, or `n` is less than 1.

    Source: R. Sutton and A. Barto, Reinforcement Learning: An Introduction, 2018, equation 7.1.

    >>> rewards, ended, never = jnp.ones(3), jnp.array([False, False, True]), jnp.zeros(3, bool)
    >>> compute_n_step_returns(rewards, jnp.full(3, 4.0), ended, never, n=2, discount=0.5)
    Array([2.5, 1.5, 1. ], dtype=float32)
    """
    _require_alike("n_step", rewards, next_values, terminated, truncated)
    if operator.index(n) < 1:
        raise ValueError(f"n_step: n must be at least 1 step; got {n}")
    following = jnp.where(terminated, 0, next_values)
    one = rewards + discount * following
    stays = (terminated | truncated)[:-1]

    def lengthen(_: int, targets: jax.Array) -> jax.Array:
        later = jnp.where(stays, following[:-1], targets[1:])
        return targets.at[:-1].set(rewards[:-1] + discount * later)

    return lax.fori_loop(1, min(n, len(rewards)), lengthen, one)


def compute_vtrace(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    log_ratios: jax.Array,
    *,
    discount: float | jax.Array,
    gae_lambda: float | jax.Array = 1.0,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
) -> VTrace:
    """Estimate returns and advantages of a policy from what another one did.

    Where the two policies are the same, the advantages are those of `compute_gae`, and the targets
    are the values and the advantages.

    Args:
        rewards: `[time, ...]`.
        values: of the observations before each step, `[time, ...]`.
        next_values: of the observations after each step, before any reset, `[time, ...]`; within
            an episode they are the values one step later.
        terminated: bool `[time, ...]`, the step ended the episode for good.
        truncated: bool `[time, ...]`, the step was the episode's last that was let happen.
        log_ratios: of each action, its log-probability under the policy in question less that
            under the policy that acted, `[time, ...]`.
        discount: of a reward one step later, in [0, 1].
        gae_lambda: as in `compute_gae`; it shortens the traces.
        clip_rho: largest importance of an action, above 0; it decides which policy's values the
            targets tend to: at infinity those of the policy in question, near 0 of the other.
        clip_c: largest importance of an action in the trace of later ones, above 0; it lowers the
            noise, and the speed.

    Returns:
        The targets and the advantages.

    Raises:
        ValueError: the arrays differ in shape.

    Source: L. Espeholt et al., IMPALA: Scalable Distributed Deep-RL with Importance Weighted
    Actor-Learner Architectures, 2018, equation 1 and remarks 1 and 2.

    >>> rewards, never = jnp.ones(2), jnp.zeros(2, bool)
    >>> ratios = jnp.log(jnp.array([0.5, 4.0]))
    >>> compute_vtrace(rewards, 0 * rewards, 0 * rewards, never, never, ratios,
    ...     discount=0.5).targets
    Array([0.75, 1.  ], dtype=float32)
    """
    _require_alike("vtrace", rewards, values, next_values, terminated, truncated, log_ratios)
    ratios = jnp.exp(log_ratios)
    rho, c = jnp.minimum(clip_rho, ratios), jnp.minimum(clip_c, ratios)
    errors = rewards + discount * jnp.where(terminated, 0, next_values) - values
    decay = jnp.where(terminated | truncated, 0, discount * gae_lambda)
    corrections = _accumulated(rho * errors, decay * c)
    later = jnp.concatenate([corrections[1:], jnp.zeros_like(corrections[:1])])
    return VTrace(values + corrections, rho * (errors + decay * later))


def _accumulated(errors: jax.Array, decay: jax.Array) -> jax.Array:
    """Give the sums of each error and, decayed, of those after it: `x[t] = e[t] + d[t] x[t+1]`."""

    def add(later: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        error, decay = now
        total = error + decay * later
        return total, total

    start = jnp.zeros_like(errors[0])
    return lax.scan(add, start, (errors, decay.astype(errors.dtype)), reverse=True)[1]


def _require_alike(owner: str, rewards: Any, *others: Any) -> None:
    """Check that arrays are of one shape: what differs would be broadcast, and be wrong."""
    shapes = [jnp.shape(array) for array in (rewards, *others)]
    if len(set(shapes)) > 1 or not shapes[0]:
        raise ValueError(
            f"{owner} needs arrays of one shape [time, ...]; got {', '.join(map(str, shapes))}"
        )
