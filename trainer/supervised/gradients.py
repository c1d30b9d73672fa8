"""Gradients of a batch: at once, or accumulated over micro-batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from trainer.losses.loss import Loss, evaluate_loss
from trainer.phases.jaxprs import has_convolution
from trainer.phases.reductions import WEIGHT
from trainer.placement.constraints import is_on_mesh
from trainer.state import PyTree, TrainState
from trainer.supervised.hyperparams import learning_rates
from trainer.supervised.optimizer_updates import ValueFn, keep_where, update_optimizer
from trainer.supervised.precision import cast_floating, cast_like

Objective = Callable[[PyTree, PyTree, Mapping[str, Any], jax.Array], tuple[jax.Array, Any]]
"""`(params, model_state, batch, key) -> (loss (), ({name: Mean}, model_state))`."""


class WeightedMean(NamedTuple):
    """The mean of a loss's values over a batch, () each."""

    value: jax.Array
    """0 where no example has a weight."""
    weight: jax.Array | None
    """The sum of the examples' weights; None where all weigh the same."""


class Gradients(NamedTuple):
    """The gradients of a batch, and what was computed with them."""

    grads: PyTree
    """Gradients, in the structure of the parameters."""
    means: dict[str, WeightedMean]
    """The means of the loss's values, by name."""
    model_state: PyTree
    value_fn: ValueFn
    """`(params) -> ()`, the same batch's mean loss at other parameters, with the same key."""


def compute_mean(values: Any) -> WeightedMean:
    """Return the mean of a loss's values, and its weight.

    Args:
        values: `[batch]`, or a pair (values, weights) of `[batch]` each.
    """
    if isinstance(values, tuple):
        values, weights = values
        total = jnp.sum(weights, dtype=jnp.float32)
        summed = jnp.sum(jnp.where(weights == 0, 0, values * weights))  # 0 * nan is nan
        return WeightedMean(summed / jnp.where(total == 0, 1, total), total)
    return WeightedMean(jnp.mean(values), None)


def compute_means(loss: Loss, step: jax.Array, outputs: Any, batch: Any) -> dict[str, WeightedMean]:
    """Return the means of a loss's values at an optimizer step.

    Raises:
        TypeError, ValueError: see `trainer.losses.loss.evaluate_loss`.
    """
    return {name: compute_mean(v) for name, v in evaluate_loss(loss, step, outputs, batch).items()}


def has_weight(means: Mapping[str, WeightedMean]) -> jax.Array | None:
    """Return whether an example of the batch has a weight, () bool; None without weights."""
    weight = means["loss"].weight
    return None if weight is None else weight > 0


def to_metrics(means: Mapping[str, WeightedMean]) -> dict[str, jax.Array]:
    """Return the metrics of a step: means, nan where nothing has a weight, and their weights."""
    metrics: dict[str, jax.Array] = {}
    for name, (value, weight) in means.items():
        if weight is None:
            metrics[name] = value
        else:
            metrics[name] = jnp.where(weight > 0, value, jnp.nan)
            metrics[name + WEIGHT] = weight
    return metrics


def skip_empty_batch(
    weighted: jax.Array | None,
    before: TrainState,
    after: TrainState,
    metrics: dict[str, jax.Array],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Keep the state, except for its step, where no example of a batch has a weight.

    The step still counts: it used its data and its random numbers. Its metrics, those of
    `apply_gradients`, count in no mean. `weighted` is from `has_weight`.
    """
    if weighted is None:
        return after, metrics
    weight = weighted.astype(jnp.float32)
    weights = {name + WEIGHT: weight for name in ("grad_norm", "clipped") if name in metrics}
    return keep_where(~weighted, before, after), metrics | weights


def compute_gradients(
    objective: Objective, params: PyTree, model_state: PyTree, batch: PyTree, key: jax.Array
) -> Gradients:
    """Compute the gradients of a whole batch."""
    before = model_state
    grads, (means, model_state) = jax.grad(objective, has_aux=True)(params, model_state, batch, key)

    def value_fn(params: PyTree) -> jax.Array:
        return objective(params, before, batch, jax.random.clone(key))[0]  # the same, on purpose

    return Gradients(grads, means, model_state, value_fn)


def accumulate_gradients(
    objective: Objective,
    params: PyTree,
    model_state: PyTree,
    batch: PyTree,
    key: jax.Array,
    *,
    count: int,
) -> Gradients:
    """Compute the gradients of a batch from micro-batches, one after another.

    They equal those of the whole batch up to rounding, also where examples weigh differently. The
    model state passes from one micro-batch to the next, so batch normalisation sees micro-batches:
    it normalises by their statistics, and takes `count` steps of its running averages. Each gets a
    key of its own.

    Raises:
        ValueError: `count` does not divide the batch.
    """
    size = len(jax.tree.leaves(batch)[0])
    if size % count:
        raise ValueError(
            f"accumulate must divide the batch: {size} examples do not make {count} micro-batches "
            f"of equal size; use a batch_size that is a multiple of {count}"
        )
    # By a stride: contiguous micro-batches of a batch that is split over devices would move.
    parts = jax.tree.map(
        lambda x: x.reshape(size // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(count))
    derive = jax.grad(objective, has_aux=True)

    def add(carried: Any, part: Any) -> tuple[Any, None]:
        model_state, sums = carried
        grads, (means, model_state) = derive(params, model_state, *part)
        weights = {n: jnp.float32(size // count if w is None else w) for n, (_, w) in means.items()}
        weight = weights["loss"]
        totals = {name: (means[name].value * w, w) for name, w in weights.items()}
        grads = optax.tree.scale(weight, cast_floating(grads, jnp.float32))
        return (model_state, optax.tree.add(sums, (grads, totals))), None

    before = model_state
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (parts, keys))
    grads, (shapes, _) = jax.eval_shape(derive, params, model_state, *first)
    nothing = {name: (jnp.zeros(()), jnp.zeros(())) for name in shapes}
    zeros = optax.tree.zeros_like(grads, jnp.float32), nothing
    # In a loop XLA on CPU runs a convolution several times slower.
    looping = jax.default_backend() != "cpu" or not has_convolution(
        jax.make_jaxpr(derive)(params, model_state, *first)
    )
    scan = functools.partial(lax.scan, unroll=1 if looping else count)
    (model_state, (grads, totals)), _ = scan(add, (model_state, zeros), (parts, keys))
    means = {
        name: WeightedMean(
            total / jnp.where(weight == 0, 1, weight),
            None if shapes[name].weight is None else weight,
        )
        for name, (total, weight) in totals.items()
    }
    weight = totals["loss"][1]
    grads = optax.tree.scale(1 / jnp.where(weight == 0, 1, weight), grads)

    def value_fn(params: PyTree) -> jax.Array:
        def add(carried: Any, part: Any) -> tuple[Any, None]:
            model_state, total = carried
            value, (means, model_state) = objective(params, model_state, *part)
            share = means["loss"].weight
            share = size // count if share is None else share
            return (model_state, total + value * share), None

        again = jax.random.clone(keys)  # the same numbers, on purpose
        (_, total), _ = scan(add, (before, jnp.zeros((), jnp.float32)), (parts, again))
        return total / jnp.where(weight == 0, 1, weight)

    return Gradients(cast_like(grads, params), means, model_state, value_fn)


def compute_updates(
    state: TrainState, found: Gradients, grads: PyTree, optimizer: optax.GradientTransformation
) -> tuple[PyTree, PyTree]:
    """Return (updates, opt_state) of an optimizer for gradients, which may be clipped."""
    return update_optimizer(
        *(optimizer, grads, state.opt_state, state.params),
        value=found.means["loss"].value,
        grad=found.grads,
        value_fn=found.value_fn,
    )


def apply_gradients(
    state: TrainState,
    found: Gradients,
    optimizer: optax.GradientTransformation,
    *,
    grad_norm: jax.Array,
    clip_norm: float | None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimizer step.

    An optimizer that asks for `value`, `grad` (not clipped) or `value_fn` receives those found.
    Gradients whose L2 norm is over `clip_norm` are scaled to it.

    Returns:
        The state, and the metrics `grad_norm`; with `clip_norm` also `clipped`, 1 where the
        gradients were clipped; `learning_rate` where the optimizer keeps one, or
        `learning_rate/<group>` where several groups do.
    """
    grads = found.grads
    metrics = {"grad_norm": grad_norm}
    if clip_norm is not None:
        metrics["clipped"] = (grad_norm > clip_norm).astype(jnp.float32)
        grads = optax.tree.scale(jnp.minimum(1.0, clip_norm / grad_norm), grads)
    updates, opt_state = compute_updates(state, found, grads, optimizer)
    metrics |= learning_rates(opt_state)
    after = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        model_state=found.model_state,
    )
    return after, metrics


SMALL = 2**15
"""Elements below which starting to compute a leaf's norm costs more than computing it."""


def global_norm(tree: PyTree) -> jax.Array:
    """Return the L2 norm over all leaves; small leaves are concatenated first.

    One by one they take 5% of an MLP's step on CPU; concatenating large ones would copy them. In
    smaller floats `optax.tree.norm` is faster, by 5%. On a mesh it gathers nothing.
    """
    if is_on_mesh():
        return optax.tree.norm(tree)
    leaves = jax.tree.leaves(tree)
    small = [leaf.ravel() for leaf in leaves if leaf.size < SMALL]
    large = [leaf for leaf in leaves if leaf.size >= SMALL]
    return optax.tree.norm([*large, jnp.concatenate(small)] if small else large)
