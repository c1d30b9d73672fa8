"""The update: several passes over a rollout's experience, in shuffled minibatches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from trainer.losses.loss import LossFunction, as_loss
from trainer.phases.phase import Phase
from trainer.phases.reductions import WEIGHT
from trainer.rl.experience import Experience
from trainer.rl.minibatch_steps import group_units, update_on_minibatches
from trainer.rl.normalization import scale_rewards, update_statistics
from trainer.rl.policies import unroll_policy
from trainer.rl.ppo_config import PPOConfig
from trainer.rl.ppo_loss import ppo_loss
from trainer.rl.returns import Trajectory, compute_gae
from trainer.state import PyTree, TrainState


def update(
    network: Any,
    optimizer: optax.GradientTransformation,
    config: PPOConfig = PPOConfig(),
    *,
    loss: LossFunction | None = None,
    teacher: Any = None,
    name: str = "update",
) -> Phase:
    """Build the phase that learns from the `Experience` of the phase before it.

    It reports the loss's means, `grad_norm` (global L2 norm, before clipping), `clipped` and
    `learning_rate` as `supervised` does, each with a trace of one value per minibatch, and
    `explained_variance`: the share of the returns' variance that the values predicted, which is
    missing if the returns do not vary. With `target_kl` also `applied`, the share of minibatches
    whose gradients were applied.

    Args:
        network, optimizer, config, loss, teacher: as for `ppo`.
        name: of the phase.

    Raises:
        TypeError: before training, the phase before it does not output an `Experience`.
    """
    loss = as_loss(ppo_loss() if loss is None else loss)

    def run(state: TrainState, experience: Experience) -> tuple[TrainState, None, dict[str, Any]]:
        if not isinstance(experience, Experience):
            raise TypeError(
                f"phase {name!r} learns from the Experience of the phase before it, which must be "
                f"a rollout; got {type(experience).__name__}: a program is (rollout, update)"
            )
        state, experience = apply_reward_scaling(state, experience, config.discount)
        batch = build_loss_batch(experience, config)
        if teacher is not None:
            state, batch["teacher"] = run_teacher(teacher.network, state, experience)
        units = group_units(batch, experience.recurrent)
        after, traces = update_on_minibatches(
            state, units, network, optimizer, loss, config, state.key(name)
        )
        explained = explained_variance(batch["target"], batch["value"])
        after = update_observation_statistics(after, experience.observation)
        varied = ~jnp.isnan(explained)
        measured = {"explained_variance": explained, f"explained_variance{WEIGHT}": varied}
        return after, None, traces | measured

    def finalize(means: Mapping[str, float]) -> dict[str, float | None]:
        found: dict[str, float | None] = dict(loss.finalize(means)) if loss.finalize else {}
        if math.isnan(means["explained_variance"]):
            found["explained_variance"] = None
        return found

    return Phase(name, run, finalize=finalize)


def explained_variance(target: jax.Array, value: jax.Array) -> jax.Array:
    """Return the share of the targets' variance that the values predicted, () float32; at most 1.

    It is nan if the targets do not vary by more than their rounding.

    >>> explained_variance(jnp.array([1.0, 3.0]), jnp.array([1.0, 2.0])).item()
    0.75
    """
    variance = jnp.var(target)
    rounding = 1e-6 * jnp.maximum(jnp.abs(target).max(), jnp.abs(value).max())
    share = 1 - jnp.var(target - value) / variance
    return jnp.where(jnp.sqrt(variance) > rounding, share, jnp.nan)


def apply_reward_scaling(
    state: TrainState, experience: Experience, discount: float
) -> tuple[TrainState, Experience]:
    """Scale the rewards, if the state keeps statistics of them."""
    known = state.carry.get("normalization", {})
    if "rewards" not in known:
        return state, experience
    ended = experience.terminated | experience.truncated
    rewards, scaled = scale_rewards(known["rewards"], experience.reward, ended, discount=discount)
    carry = {**state.carry, "normalization": {**known, "rewards": rewards}}
    return state.replace(carry=carry), experience._replace(reward=scaled)


def update_observation_statistics(state: TrainState, observation: PyTree) -> TrainState:
    """Add a rollout's observations to the statistics, if the state keeps them.

    This comes after the update, so that rollout and update normalize observations alike.
    """
    known = state.carry.get("normalization", {})
    if "observations" not in known:
        return state
    seen = update_statistics(known["observations"], observation)
    carry = {**state.carry, "normalization": {**known, "observations": seen}}
    return state.replace(carry=carry)


def build_loss_batch(experience: Experience, config: PPOConfig) -> dict[str, PyTree]:
    """Return what losses read, `[time, env, ...]`: advantages, and targets of the values."""
    steps = Trajectory(
        rewards=experience.reward,
        values=experience.value,
        next_values=experience.next_value,
        terminated=experience.terminated,
        truncated=experience.truncated,
    )
    advantage = compute_gae(steps, discount=config.discount, gae_lambda=config.gae_lambda)
    read = ("observation", "first", "action", "log_prob", "value")
    batch = {name: getattr(experience, name) for name in read}
    return batch | {"advantage": advantage, "target": advantage + experience.value}


def run_teacher(
    network: Any, state: TrainState, experience: Experience
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the teacher's outputs for the observations of a rollout, `[time, env, ...]`.

    The teacher is at `state.carry["teacher"]`; its recurrent state continues there.
    """
    known = state.carry["teacher"]
    seen = experience.observation, known["recurrent"], experience.first
    outputs, recurrent, _ = unroll_policy(network, known["weights"], *seen)
    carry = {**state.carry, "teacher": {**known, "recurrent": recurrent}}
    return state.replace(carry=carry), outputs
