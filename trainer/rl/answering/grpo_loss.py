"""The advantages and the loss of group relative policy optimization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainer.losses.loss import LossFunction
from trainer.rl.answering.grpo_config import GRPOConfig


def compute_group_advantages(
    reward: jax.Array, group_size: int, *, normalize_std: bool = True
) -> jax.Array:
    """Return how much better each answer is than its group, float32 `[answer]`.

    That is its reward minus the mean of the group; it is divided by the group's standard deviation
    (that of a sample, with `group_size - 1`) if `normalize_std`. In a group of equal rewards it is
    exactly 0.

    Args:
        reward: float32 `[answer]`, the answers of a group side by side.
        group_size: answers of a group.

    >>> compute_group_advantages(jnp.array([0.0, 2.0, 5.0, 5.0]), 2, normalize_std=False).tolist()
    [-1.0, 1.0, 0.0, 0.0]
    """
    groups = reward.reshape(-1, group_size)
    centered = groups - groups.mean(axis=1, keepdims=True)
    if normalize_std:
        centered /= groups.std(axis=1, keepdims=True, ddof=1) + 1e-6
    return jnp.where(has_signal(reward, group_size)[:, None], centered, 0).reshape(-1)


def has_signal(reward: jax.Array, group_size: int) -> jax.Array:
    """Return whether the rewards of a group differ, bool `[group]`.

    >>> has_signal(jnp.array([0.0, 2.0, 5.0, 5.0]), 2).tolist()
    [True, False]
    """
    groups = reward.reshape(-1, group_size)
    return groups.max(axis=1) > groups.min(axis=1)


def grpo_loss(config: GRPOConfig) -> LossFunction:
    """Build the loss of group relative policy optimization.

    Its outputs are `{"log_prob": float32 [batch, length]}`, log-probabilities of the answers'
    tokens. Its batch has `log_prob`, the same of the policy that sampled them; `lengths` int32
    `[batch]`, tokens of each answer; `advantage` float32 `[batch]`; and if `kl_coefficient` is
    above 0 `reference`, the log-probabilities under the reference, of the shape of `log_prob`.

    It reports `loss` and `policy_loss`, averaged as `config.average` says, and over all tokens
    `approx_kl` (of the policy from the one that sampled, nats), `clip_fraction`, and `kl` (from the
    reference, nats).

    Source: equations 3 and 4 of Z. Shao et al., DeepSeekMath, 2024; both divergences are by the
    third estimator of J. Schulman, Approximating KL Divergence, 2020. See `GRPOConfig`.

    >>> config = GRPOConfig(clip=0.25, kl_coefficient=0.0, length=2)
    >>> outputs = {"log_prob": jnp.log(jnp.array([[0.5, 0.5]]))}
    >>> batch = {
    ...     "log_prob": jnp.log(jnp.array([[0.5, 0.25]])), "lengths": jnp.array([2]),
    ...     "advantage": jnp.ones(1),
    ... }
    >>> values = grpo_loss(config)(outputs, batch)    # ratios 1 and 2, the second clipped to 1.25
    >>> values["policy_loss"].tolist(), values["clip_fraction"][0].tolist()
    ([-1.125], [0.5])
    """
    low = 1 - config.clip
    high = 1 + (config.clip if config.clip_high is None else config.clip_high)

    def average(values: jax.Array, counts: jax.Array, over: str) -> Any:
        total = jnp.sum(values, axis=1)
        if over == "constant":
            return total / config.length
        means = total / jnp.maximum(counts, 1)
        return (means, counts) if over == "token" else means

    def grpo(outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        counts = batch["lengths"].astype(jnp.float32)
        there = jnp.arange(batch["log_prob"].shape[1]) < batch["lengths"][:, None]

        def differ(one: jax.Array, other: jax.Array) -> jax.Array:
            return jnp.where(there, one - other, 0)  # 0 * nan is nan, in the gradient too

        log_ratio = differ(outputs["log_prob"], batch["log_prob"])
        ratio, advantage = jnp.exp(log_ratio), batch["advantage"][:, None]
        clipped = jnp.clip(ratio, low, high)
        objective = jnp.where(there, jnp.minimum(ratio * advantage, clipped * advantage), 0)
        beyond = jnp.where(advantage > 0, ratio > high, ratio < low) & (advantage != 0)
        tokens = {
            "approx_kl": jax.lax.stop_gradient(ratio - 1 - log_ratio),
            "clip_fraction": beyond,
        }
        loss = -objective
        if config.kl_coefficient:
            away = differ(batch["reference"], outputs["log_prob"])
            tokens["kl"] = jnp.exp(away) - 1 - away
            loss += config.kl_coefficient * tokens["kl"]
        return {
            "loss": average(loss, counts, config.average),
            "policy_loss": average(-objective, counts, config.average),
            **{name: average(x.astype(jnp.float32), counts, "token") for name, x in tokens.items()},
        }

    return grpo
