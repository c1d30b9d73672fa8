"""The loss of proximal policy optimization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainer.losses.loss import LossFunction
from trainer.rl import distributions


def ppo_loss(
    *,
    clip: float = 0.2,
    value_coefficient: float = 0.5,
    value_clip: float | None = None,
    entropy_coefficient: float = 0.01,
    normalize_advantages: bool = True,
) -> LossFunction:
    """Build the loss of proximal policy optimization.

    It reports, per example, `loss`, `policy_loss`, `value_loss` (squared error), `entropy` (nats),
    `approx_kl` (of the current policy from the one that acted, nats), and `clip_fraction`.

    Args:
        clip: relative change of an action's probability beyond which the objective is flat.
        value_coefficient: weight of the value loss.
        value_clip: change of a value since the rollout beyond which its loss is flat; None: values
            are not clipped.
        entropy_coefficient: weight of the policy's entropy, a bonus that keeps it exploring.
        normalize_advantages: normalize them to mean 0 and deviation 1 in each minibatch.

    Raises:
        ValueError: a setting is negative, or a clip is 0; when traced, advantages are to be
            normalized in a minibatch of one.

    Source: J. Schulman et al., Proximal Policy Optimization Algorithms, 2017, equations 7 and 9;
    `approx_kl` is the third estimator of J. Schulman, Approximating KL Divergence, 2020.

    >>> outputs = {"logits": jnp.zeros((2, 2)), "value": jnp.zeros(2)}
    >>> batch = {
    ...     "action": jnp.array([0, 1]), "log_prob": jnp.log(jnp.array([0.5, 0.25])),
    ...     "value": jnp.zeros(2), "advantage": jnp.ones(2), "target": jnp.ones(2),
    ... }
    >>> values = ppo_loss(clip=0.25, normalize_advantages=False)(outputs, batch)
    >>> values["policy_loss"].round(2).tolist(), values["clip_fraction"].tolist()
    ([-1.0, -1.25], [0.0, 1.0])
    """
    for name, bound in (("clip", clip), ("value_clip", value_clip)):
        if bound is not None and not bound > 0:
            raise ValueError(f"ppo_loss: {name} must be above 0; got {bound}")
    for name, weight in (("value", value_coefficient), ("entropy", entropy_coefficient)):
        if not weight >= 0:
            raise ValueError(f"ppo_loss: {name}_coefficient must not be negative; got {weight}")

    def ppo(outputs: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        advantage = batch["advantage"]
        if normalize_advantages:
            if advantage.size == 1:
                raise ValueError(
                    "ppo_loss: in a minibatch of one transition the normalized advantage is 0, so "
                    "the policy would learn nothing: fewer minibatches, more envs or steps, or "
                    "normalize_advantages=False"
                )
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        log_ratio = distributions.log_prob(outputs, batch["action"]) - batch["log_prob"]
        ratio = jnp.exp(log_ratio)
        clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
        policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage)
        value_loss = (outputs["value"] - batch["target"]) ** 2
        if value_clip is not None:
            change = jnp.clip(outputs["value"] - batch["value"], -value_clip, value_clip)
            clipped_loss = (batch["value"] + change - batch["target"]) ** 2
            value_loss = jnp.maximum(value_loss, clipped_loss)
        entropy = distributions.entropy(outputs)
        loss = policy_loss + value_coefficient * value_loss - entropy_coefficient * entropy
        return {
            "loss": loss,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": jax.lax.stop_gradient(ratio - 1 - log_ratio),
            "clip_fraction": (jnp.abs(ratio - 1) > clip).astype(jnp.float32),
        }

    return ppo
