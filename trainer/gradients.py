"""Gradients of a batch: whole, or by micro-batches that are joined again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from trainer.executors import has_convolution
from trainer.losses.contract import Loss, loss_at
from trainer.precision import cast, cast_like
from trainer.state import PyTree, TrainState

Objective = Callable[[PyTree, PyTree, Mapping[str, Any], jax.Array], tuple[jax.Array, Any]]
"""`(params, model_state, batch, key) -> (loss (), ({name: (mean (), weight ())}, model_state))`."""


class Gradients(NamedTuple):
    """What a batch gives."""

    params: PyTree
    """Gradients, of the structure of the parameters."""
    means: dict[str, jax.Array]
    """What the loss measured, () each."""
    model_state: PyTree


def mean(values: Any) -> tuple[jax.Array, jax.Array]:
    """Give the mean of a loss's values and its weight, () each.

    Args:
        values: `[batch]`, or a pair (values, weights) of `[batch]` each.
    """
    if isinstance(values, tuple):
        values, weights = values
        total = jnp.sum(weights)
        return jnp.sum(values * weights) / jnp.where(total == 0, 1, total), total
    return jnp.mean(values), jnp.float32(values.size)


def means_of(loss: Loss, step: jax.Array, outputs: Any, batch: Any) -> dict[str, Any]:
    """Give the means of what a loss measures at an optimizer step, and their weights, () each.

    Raises:
        ValueError: it gives no `loss`.
    """
    means = {name: mean(values) for name, values in loss_at(loss, step)(outputs, batch).items()}
    if "loss" not in means:
        raise ValueError(f"a loss must give 'loss' to minimise; it gave {sorted(means)}")
    return means


def of_batch(
    objective: Objective, params: PyTree, model_state: PyTree, batch: PyTree, key: jax.Array
) -> Gradients:
    """Give the gradients of a whole batch."""
    grads, (measured, model_state) = jax.grad(objective, has_aux=True)(
        params, model_state, batch, key
    )
    return Gradients(grads, {name: value for name, (value, _) in measured.items()}, model_state)


def accumulated(
    objective: Objective,
    params: PyTree,
    model_state: PyTree,
    batch: PyTree,
    key: jax.Array,
    *,
    count: int,
) -> Gradients:
    """Give the gradients of a batch, computed by micro-batches one after another.

    They are those of the whole batch to rounding, also where examples weigh differently. The model
    state passes from one micro-batch to the next, so that batch normalisation sees micro-batches:
    it normalises by their statistics, and takes `count` steps of its running averages.

    Args:
        objective: see `Objective`.
        params: of the network.
        model_state: of the network.
        batch: pytree of arrays `[batch, ...]`; `count` divides `batch`.
        key: () typed key; each micro-batch has one of its own.
        count: micro-batches.

    Raises:
        ValueError: `count` does not divide the batch.
    """
    size = len(jax.tree.leaves(batch)[0])
    if size % count:
        raise ValueError(
            f"accumulate must divide the batch: {size} examples do not make {count} micro-batches "
            f"of one size; use a batch_size that is a multiple of {count}"
        )
    parts = jax.tree.map(lambda x: x.reshape(count, size // count, *x.shape[1:]), batch)
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(count))
    derive = jax.grad(objective, has_aux=True)

    def add(carried: Any, part: Any) -> tuple[Any, None]:
        model_state, sums = carried
        grads, (measured, model_state) = derive(params, model_state, *part)
        weight = measured["loss"][1]
        totals = {name: (value * w, w) for name, (value, w) in measured.items()}
        grads = optax.tree.scale(weight, cast(grads, jnp.float32))
        return (model_state, optax.tree.add(sums, (grads, totals))), None

    first = jax.tree.map(lambda x: x[0], (parts, keys))
    grads, (measured, _) = jax.eval_shape(derive, params, model_state, *first)
    zeros = optax.tree.zeros_like((grads, measured), jnp.float32)
    # In a loop XLA on CPU runs a convolution several times slower.
    looping = jax.default_backend() != "cpu" or not has_convolution(
        jax.make_jaxpr(derive)(params, model_state, *first)
    )
    (model_state, (grads, totals)), _ = lax.scan(
        add, (model_state, zeros), (parts, keys), unroll=1 if looping else count
    )
    means = {
        name: total / jnp.where(weight == 0, 1, weight) for name, (total, weight) in totals.items()
    }
    weight = totals["loss"][1]
    grads = optax.tree.scale(1 / jnp.where(weight == 0, 1, weight), grads)
    return Gradients(cast_like(grads, params), means, model_state)


def applied(
    state: TrainState,
    grads: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    length: jax.Array,
    clip_norm: float | None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimizer step.

    Args:
        state: to step from.
        grads: of its parameters.
        optimizer: of optax.
        length: () L2 norm of the gradients.
        clip_norm: norm to which larger gradients are scaled; None: not clipped.

    Returns:
        The state, and `grad_norm`, which is the length, with `clip_norm` also `clipped`, 1 where
        they were, and `learning_rate` where the optimizer keeps one.
    """
    metrics = {"grad_norm": length}
    if clip_norm is not None:
        metrics["clipped"] = (length > clip_norm).astype(jnp.float32)
        grads = optax.tree.scale(jnp.minimum(1.0, clip_norm / length), grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    rates = optax.tree.get_all_with_path(opt_state, "learning_rate")
    rates = [rate for _, rate in rates if isinstance(rate, jax.Array)]  # not schedules' states
    if len(rates) == 1:
        metrics["learning_rate"] = rates[0]
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


SMALL = 2**15
"""Elements below which a leaf's norm costs more to start than to compute."""


def norm(tree: PyTree) -> jax.Array:
    """Give the L2 norm over all leaves, the small ones joined.

    One by one they take 5% of an MLP's step on CPU; joining large ones would copy them. In
    smaller floats it is `optax.tree.norm` that is faster, by 5%.
    """
    leaves = jax.tree.leaves(tree)
    small = [leaf.ravel() for leaf in leaves if leaf.size < SMALL]
    large = [leaf for leaf in leaves if leaf.size >= SMALL]
    return optax.tree.norm([*large, jnp.concatenate(small)] if small else large)
