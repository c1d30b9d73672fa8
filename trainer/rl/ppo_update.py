"""The update: several passes over a rollout's experience, in shuffled minibatches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from trainer.losses.loss import Loss, LossFunction, as_loss
from trainer.phases.phase import Phase
from trainer.rl.experience import Experience
from trainer.rl.normalization import scale_rewards, update_statistics
from trainer.rl.policies import is_recurrent, unroll_policy, weights_of
from trainer.rl.ppo_config import PPOConfig
from trainer.rl.ppo_loss import ppo_loss
from trainer.rl.returns import Trajectory, compute_gae
from trainer.state import PyTree, TrainState
from trainer.supervised import gradients


class ExperienceUnits(NamedTuple):
    """Experience `[time, unit, ...]`; a minibatch takes some of the units.

    A unit is one transition (and the time 1), or, for a recurrent policy, all steps of one
    environment in order.
    """

    batch: dict[str, PyTree]
    """`[time, unit, ...]`: what the loss reads, and `first`."""
    recurrent: PyTree
    """Recurrent state of the policy before the first step, `[unit, ...]`."""


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
        return after, None, {**traces, "explained_variance": explained}

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


def group_units(batch: dict[str, PyTree], recurrent: PyTree) -> ExperienceUnits:
    """Group experience `[time, env, ...]` into the units that minibatches are made of."""
    if not is_recurrent(recurrent):
        batch = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), batch)
    return ExperienceUnits(batch, recurrent)


def update_on_minibatches(
    state: TrainState,
    units: ExperienceUnits,
    network: Any,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    config: PPOConfig,
    key: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimizer step per minibatch, with the units shuffled in each epoch.

    From the first minibatch on whose `approx_kl` is above `target_kl`, no gradients are applied.

    Returns:
        The state, and the traces of what was measured, `[epochs * minibatches]` each.
    """
    count, target_kl = units.batch["value"].shape[1], config.target_kl
    orders = jax.vmap(lambda k: jax.random.permutation(k, count))(
        jax.random.split(key, config.epochs)
    )
    rows = orders.reshape(config.epochs * config.minibatches, count // config.minibatches)

    def step(carried: Any, row: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        state, applying = carried
        batch = jax.tree.map(lambda x: jnp.take(x, row, axis=1), units.batch)
        recurrent = jax.tree.map(lambda x: jnp.take(x, row, axis=0), units.recurrent)
        found = compute_minibatch_gradients(state, batch, recurrent, network, loss)
        after, measured = gradients.apply_gradients(
            state,
            found,
            optimizer,
            grad_norm=gradients.global_norm(found.grads),
            clip_norm=config.clip_norm,
        )
        weighted = gradients.has_weight(found.means)
        after, measured = gradients.skip_empty_batch(weighted, state, after, measured)
        metrics = gradients.to_metrics(found.means) | measured
        if target_kl is None:
            return (after, applying), metrics
        if "approx_kl" not in metrics:
            raise ValueError(
                "target_kl needs a loss that reports 'approx_kl', as ppo_loss does; it reported "
                f"{sorted(metrics)}"
            )
        within = metrics["approx_kl"] <= target_kl
        applying &= within if weighted is None else within | ~weighted
        after = jax.tree.map(lambda new, old: jnp.where(applying, new, old), after, state)
        return (after, applying), metrics | {"applied": applying.astype(jnp.float32)}

    (state, _), traces = lax.scan(step, (state, jnp.bool_(True)), rows)
    return state, traces


def compute_minibatch_gradients(
    state: TrainState, batch: dict[str, PyTree], recurrent: PyTree, network: Any, loss: Loss
) -> gradients.Gradients:
    """Return gradients, the loss's means and the model state of a minibatch `[time, unit, ...]`."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

    def objective(
        params: PyTree, model_state: PyTree, batch: Mapping[str, PyTree], key: jax.Array
    ) -> tuple[jax.Array, Any]:
        weights = weights_of(state)._replace(params=params, model_state=model_state)
        outputs, _, model_state = unroll_policy(
            *(network, weights, batch["observation"], recurrent, batch["first"]),
            key=key,
            train=True,
        )
        outputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
        means = gradients.compute_means(loss, state.step, outputs, flat)
        return means["loss"].value, (means, model_state)

    return gradients.compute_gradients(
        objective, state.params, state.model_state, batch, state.key("network")
    )
