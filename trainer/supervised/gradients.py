"""Gradients of a batch: at once, or accumulated over micro-batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from trainer.phases.jaxprs import has_convolution
from trainer.phases.reductions import WEIGHT
from trainer.placement.constraints import is_on_mesh
from trainer.state import PyTree, TrainState
from trainer.supervised.batch_means import WeightedMean
from trainer.supervised.hyperparams import learning_rates
from trainer.supervised.optimizer_updates import ValueFn, keep_where, update_optimizer
from trainer.supervised.precision import cast_floating, cast_like

Objective = Callable[
    [PyTree, PyTree, Mapping[str, Any], jax.Array], tuple[dict[str, WeightedMean], PyTree]
]
"""`(params, model_state, batch, key) -> ({name: mean}, model_state)`; `loss` is minimised."""


class Gradients(NamedTuple):
    """The gradients of a batch, and what was computed with them."""

    grads: PyTree
    """Gradients, in the structure of the parameters."""
    means: dict[str, WeightedMean]
    """The means of the loss's values, by name."""
    model_state: PyTree
    value_fn: ValueFn
    """`(params) -> ()`, the same batch's mean loss at other parameters, with the same key."""


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
    objective: Objective,
    params: PyTree,
    model_state: PyTree,
    batch: PyTree,
    key: jax.Array,
    *,
    scale: jax.Array | None = None,
) -> Gradients:
    """Compute the gradients of a whole batch, times `scale` if there is one, () float32."""
    before = model_state
    derive = _make_derivation(objective, scale)
    grads, (means, model_state) = derive(params, model_state, batch, key)
    if _is_of_total(means, scale):
        grads = cast_like(_divide(grads, means["loss"].weight), grads)

    def value_fn(params: PyTree) -> jax.Array:
        again = jax.random.clone(key)  # the same numbers, on purpose
        return objective(params, before, batch, again)[0]["loss"].value

    return Gradients(grads, means, model_state, value_fn)


def _make_derivation(objective: Objective, scale: jax.Array | None) -> Callable[..., Any]:
    """Return `(params, model_state, batch, key) -> (gradients, (means, model_state))`.

    The gradients are those of the mean loss, or of its total; see `_is_of_total`.
    """

    def measure(*arguments: Any) -> tuple[jax.Array, Any]:
        means, model_state = objective(*arguments)
        value: Any = means["loss"].total if _is_of_total(means, scale) else means["loss"].value
        return value if scale is None else value * scale, (means, model_state)

    return jax.grad(measure, has_aux=True)


def _is_of_total(means: Mapping[str, WeightedMean], scale: jax.Array | None) -> bool:
    """Return whether the total loss is differentiated, and the gradients are divided afterwards.

    On a mesh: the sum of the weights then travels with the gradients, in one exchange instead of
    two. Float16, which has a scale, would overflow.
    """
    return is_on_mesh() and scale is None and means["loss"].weight is not None


def _divide(grads: PyTree, weight: Any) -> PyTree:
    return optax.tree.scale(1 / jnp.where(weight == 0, 1, weight), grads)


def accumulate_gradients(
    objective: Objective,
    params: PyTree,
    model_state: PyTree,
    batch: PyTree,
    key: jax.Array,
    *,
    count: int,
    scale: jax.Array | None = None,
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
    derive = _make_derivation(objective, scale)

    def add(carried: Any, part: Any) -> tuple[Any, None]:
        model_state, sums = carried
        grads, (means, model_state) = derive(params, model_state, *part)
        weights = {
            n: jnp.float32(size // count if w is None else w) for n, (_, w, _) in means.items()
        }
        weight = weights["loss"]
        totals = {name: (means[name].value * w, w) for name, w in weights.items()}
        grads = cast_floating(grads, jnp.float32)
        grads = grads if _is_of_total(means, scale) else optax.tree.scale(weight, grads)
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
    grads = _divide(grads, weight)

    def value_fn(params: PyTree) -> jax.Array:
        def add(carried: Any, part: Any) -> tuple[Any, None]:
            model_state, total = carried
            means, model_state = objective(params, model_state, *part)
            loss = means["loss"]
            share = size // count if loss.weight is None else loss.weight
            return (model_state, total + loss.value * share), None

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
