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
from trainer.rl.normalization import scale_rewards, update_statistics
from trainer.rl.policies import is_recurrent, unroll_policy, weights_of
from trainer.rl.returns import compute_gae
from trainer.rl.rollouts import Experience
from trainer.state import PyTree, TrainState
from trainer.supervised import gradients


class ExperienceUnits(NamedTuple):
    """Experience `[time, unit, ...]`, of which minibatches take units.

    A unit is a transition (and the time 1) for a policy without memory; with one, it is all that an
    environment went through, in order.
    """

    batch: dict[str, PyTree]
    """`[time, unit, ...]`: what the loss reads, and `first`."""
    recurrent: PyTree
    """The policy's memory before the first of them, `[unit, ...]`."""


def minibatches_of(envs: int, steps: int, batch_size: int) -> int:
    """Give how many minibatches of so many transitions a rollout makes.

    Args:
        envs: how many environments play.
        steps: of each in a rollout.
        batch_size: transitions a minibatch.

    Raises:
        ValueError: the rollout is not made of minibatches of this size.

    >>> minibatches_of(envs=16, steps=64, batch_size=256)
    4
    """
    transitions = envs * steps
    if batch_size < 1 or transitions % batch_size or not transitions:
        raise ValueError(
            f"batch_size must divide a rollout into minibatches: {transitions} transitions ({envs} "
            f"envs of {steps} steps) do not make minibatches of {batch_size}"
        )
    return transitions // batch_size


def update(
    network: Any,
    optimizer: optax.GradientTransformation,
    *,
    loss: LossFunction,
    epochs: int,
    minibatches: int,
    discount: float,
    gae_lambda: float,
    target_kl: float | None = None,
    clip_norm: float | None = None,
    teacher: Any = None,
    name: str = "update",
) -> Phase:
    """Make a phase that learns from the `Experience` of the phase before it.

    It reports the loss's means, `grad_norm` (global L2 norm, before clipping), `clipped` and
    `learning_rate` as `supervised` does, each with a trace of one value a minibatch, and
    `explained_variance`: the share of the returns' variance that the values foresaw, which is
    missing where the returns do not vary. With `target_kl` also `apply_gradients`, the share of
    minibatches that were learnt from.

    Args:
        network, optimizer, and the rest: as of `ppo`.
        name: of the phase.

    Raises:
        TypeError: before training, the phase before it does not hand on an `Experience`.
    """
    loss = as_loss(loss)

    def run(state: TrainState, experience: Experience) -> tuple[TrainState, None, dict[str, Any]]:
        if not isinstance(experience, Experience):
            raise TypeError(
                f"phase {name!r} learns from the Experience of the phase before it, which must be "
                f"a rollout; got {type(experience).__name__}: a program is (rollout, update)"
            )
        state, experience = apply_reward_scaling(state, experience, discount)
        batch = build_loss_batch(experience, discount=discount, gae_lambda=gae_lambda)
        if teacher is not None:
            state, batch["teacher"] = run_teacher(teacher.network, state, experience)
        parts = group_units(batch, experience.recurrent)
        after, traces = update_on_minibatches(
            *(state, parts, network, optimizer, loss),
            epochs=epochs,
            minibatches=minibatches,
            target_kl=target_kl,
            clip_norm=clip_norm,
            key=state.key(name),
        )
        explained = explained_variance(batch["target"], batch["value"])
        after = update_observation_statistics(after, experience.observation)
        return after, None, {**traces, "explained_variance": explained}

    def finalized(means: Mapping[str, float]) -> dict[str, float | None]:
        found: dict[str, float | None] = dict(loss.finalize(means)) if loss.finalize else {}
        if math.isnan(means["explained_variance"]):
            found["explained_variance"] = None
        return found

    return Phase(name, run, finalize=finalized)


def explained_variance(target: jax.Array, value: jax.Array) -> jax.Array:
    """Give the share of the targets' variance that the values foresaw, () float32; at most 1.

    It is nan where the targets do not vary by more than their rounding.

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
    """Scale the rewards where the state keeps statistics of them."""
    known = state.carry.get("normalization", {})
    if "rewards" not in known:
        return state, experience
    ended = experience.terminated | experience.truncated
    rewards, scaled = scale_rewards(known["rewards"], experience.reward, ended, discount=discount)
    carry = {**state.carry, "normalization": {**known, "rewards": rewards}}
    return state.replace(carry=carry), experience._replace(reward=scaled)


def update_observation_statistics(state: TrainState, observation: PyTree) -> TrainState:
    """Take a rollout's observations into the statistics, where the state keeps them.

    It is done when all was learnt: rollout and update see them normalised alike.
    """
    known = state.carry.get("normalization", {})
    if "observations" not in known:
        return state
    observations = update_statistics(known["observations"], observation)
    return state.replace(
        carry={**state.carry, "normalization": {**known, "observations": observations}}
    )


def build_loss_batch(
    experience: Experience, *, discount: float, gae_lambda: float
) -> dict[str, PyTree]:
    """Give what losses read, `[time, env, ...]`: advantages, and targets of the values."""
    advantage = compute_gae(
        *(experience.reward, experience.value, experience.next_value),
        *(experience.terminated, experience.truncated),
        discount=discount,
        gae_lambda=gae_lambda,
    )
    return {
        "observation": experience.observation,
        "first": experience.first,
        "action": experience.action,
        "log_prob": experience.log_prob,
        "value": experience.value,
        "advantage": advantage,
        "target": advantage + experience.value,
    }


def run_teacher(
    network: Any, state: TrainState, experience: Experience
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Ask the teacher at `state.carry["teacher"]` once what it would have done, `[time, env, ...]`.

    What it remembers goes on in the carry, as the environments do.
    """
    known = state.carry["teacher"]
    outputs, recurrent, _ = unroll_policy(
        *(network, known["weights"], experience.observation),
        *(known["recurrent"], experience.first),
    )
    carry = {**state.carry, "teacher": {**known, "recurrent": recurrent}}
    return state.replace(carry=carry), outputs


def group_units(batch: dict[str, PyTree], recurrent: PyTree) -> ExperienceUnits:
    """Lay experience `[time, env, ...]` out in units."""
    if is_recurrent(recurrent):
        return ExperienceUnits(batch, recurrent)
    flat = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), batch)
    return ExperienceUnits(flat, recurrent)


def update_on_minibatches(
    state: TrainState,
    parts: ExperienceUnits,
    network: Any,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    epochs: int,
    minibatches: int,
    target_kl: float | None,
    clip_norm: float | None,
    key: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimizer step a minibatch, in each epoch in another order.

    Where `approx_kl` of a minibatch is above `target_kl`, neither it nor those after it are learnt
    from.

    Returns:
        The state, and the traces of what was measured, `[epochs * minibatches]` each.
    """
    units = parts.batch["value"].shape[1]
    orders = jax.vmap(lambda k: jax.random.permutation(k, units))(jax.random.split(key, epochs))
    rows = orders.reshape(epochs * minibatches, units // minibatches)

    def step(carried: Any, row: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        state, going = carried
        batch = jax.tree.map(lambda x: jnp.take(x, row, axis=1), parts.batch)
        recurrent = jax.tree.map(lambda x: jnp.take(x, row, axis=0), parts.recurrent)
        found = compute_minibatch_gradients(state, batch, recurrent, network, loss)
        after, told = gradients.apply_gradients(
            state,
            found,
            optimizer,
            grad_norm=gradients.global_norm(found.grads),
            clip_norm=clip_norm,
        )
        moves = gradients.has_weight(found.means)
        after, told = gradients.skip_empty_batch(moves, state, after, told)
        metrics = gradients.to_metrics(found.means) | told
        if target_kl is None:
            return (after, going), metrics
        if "approx_kl" not in metrics:
            raise ValueError(
                "target_kl needs a loss that gives 'approx_kl', as ppo_loss does; it gave "
                f"{sorted(metrics)}"
            )
        within = metrics["approx_kl"] <= target_kl
        going &= within if moves is None else within | ~moves
        after = jax.tree.map(lambda new, old: jnp.where(going, new, old), after, state)
        return (after, going), metrics | {"applied": going.astype(jnp.float32)}

    (state, _), traces = lax.scan(step, (state, jnp.bool_(True)), rows)
    return state, traces


def compute_minibatch_gradients(
    state: TrainState, batch: dict[str, PyTree], recurrent: PyTree, network: Any, loss: Loss
) -> gradients.Gradients:
    """Give what a minibatch `[time, unit, ...]` gives: gradients, the loss's means, model state."""
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
