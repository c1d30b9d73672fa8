"""Optimizer steps on experience, one per shuffled minibatch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from trainer.losses.loss import Loss
from trainer.placement.constraints import split_batch
from trainer.rl.policies import is_recurrent, unroll_policy, weights_of
from trainer.rl.ppo_config import PPOConfig
from trainer.state import PyTree, TrainState
from trainer.supervised import batch_means, gradients


class ExperienceUnits(NamedTuple):
    """Experience `[time, unit, ...]`; a minibatch takes some of the units.

    A unit is one transition (and the time 1), or, for a recurrent policy, all steps of one
    environment in order.
    """

    batch: dict[str, PyTree]
    """`[time, unit, ...]`: what the loss reads, and `first`."""
    recurrent: PyTree
    """Recurrent state of the policy before the first step, `[unit, ...]`."""


def group_units(batch: dict[str, PyTree], recurrent: PyTree) -> ExperienceUnits:
    """Group experience `[time, env, ...]` into the units that minibatches are made of."""
    if not is_recurrent(recurrent):
        batch = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), batch)
    return ExperienceUnits(batch, recurrent)


class MinibatchSettings(Protocol):
    """The settings of an algorithm that minibatches depend on."""

    @property
    def epochs(self) -> int:
        """Passes over the experience."""

    @property
    def minibatches(self) -> int:
        """Minibatches of a pass."""


def shuffle_minibatches(key: jax.Array, count: int, config: MinibatchSettings) -> jax.Array:
    """Return the minibatches of all passes: indices below `count`, shuffled in each pass.

    They are int32 `[epochs * minibatches, unit]`.
    """
    orders = jax.vmap(lambda k: jax.random.permutation(k, count))(
        jax.random.split(key, config.epochs)
    )
    return orders.reshape(config.epochs * config.minibatches, count // config.minibatches)


def take_minibatch_steps(
    state: TrainState,
    rows: jax.Array,
    compute: Callable[[TrainState, jax.Array], gradients.Gradients],
    optimizer: optax.GradientTransformation,
    *,
    clip_norm: float | None,
    target_kl: float | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimizer step per minibatch.

    From the first minibatch on whose `approx_kl` is above `target_kl`, no gradients are applied.

    Args:
        rows: `[minibatch, ...]`, what `compute` takes one after the other.
        compute: `(state, row) -> gradients` of a minibatch.

    Returns:
        The state, and the traces of what was measured, `[minibatch]` each.
    """

    def step(carried: Any, row: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        state, applying = carried
        found = compute(state, row)
        after, measured = gradients.apply_gradients(
            state,
            found,
            optimizer,
            grad_norm=gradients.global_norm(found.grads),
            clip_norm=clip_norm,
        )
        weighted = batch_means.has_weight(found.means)
        after, measured = gradients.skip_empty_batch(weighted, state, after, measured)
        metrics = batch_means.to_metrics(found.means) | measured
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

    Returns:
        The state, and the traces of what was measured, `[epochs * minibatches]` each.
    """

    def compute(state: TrainState, row: jax.Array) -> gradients.Gradients:
        batch = jax.tree.map(lambda x: jnp.take(x, row, axis=1), units.batch)
        recurrent = jax.tree.map(lambda x: jnp.take(x, row, axis=0), units.recurrent)
        batch, recurrent = split_batch(batch, axis=1), split_batch(recurrent)
        return compute_minibatch_gradients(state, batch, recurrent, network, loss)

    rows = shuffle_minibatches(key, units.batch["value"].shape[1], config)
    return take_minibatch_steps(
        *(state, rows, compute, optimizer),
        clip_norm=config.clip_norm,
        target_kl=config.target_kl,
    )


def compute_minibatch_gradients(
    state: TrainState, batch: dict[str, PyTree], recurrent: PyTree, network: Any, loss: Loss
) -> gradients.Gradients:
    """Return gradients, the loss's means and the model state of a minibatch `[time, unit, ...]`."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

    def objective(
        params: PyTree, model_state: PyTree, batch: Mapping[str, PyTree], key: jax.Array
    ) -> tuple[dict[str, batch_means.WeightedMean], PyTree]:
        weights = weights_of(state.replace(params=params, model_state=model_state))
        outputs, _, model_state = unroll_policy(
            *(network, weights, batch["observation"], recurrent, batch["first"]),
            key=key,
            train=True,
        )
        outputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
        return batch_means.compute_means(loss, state.step, outputs, flat), model_state

    return gradients.compute_gradients(
        objective, state.params, state.model_state, batch, state.key("network")
    )
