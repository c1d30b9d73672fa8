"""How much examples, tokens and targets count: `weights`, `mask` and class weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.pytrees import describe_leaf
from trainer.losses.loss import Loss

WEIGHT_KEYS = ("weights", "mask")
"""Names that say how much examples, tokens or targets count."""

ClassWeights = Sequence[float] | jax.Array | np.ndarray
"""How much each class counts in the loss, `[classes]`, none below 0."""


def combine_weights(task: str, batch: Mapping[str, Any], units: tuple[int, ...], form: str) -> Any:
    """Return how much each unit counts: its weight where its mask is true, otherwise 0.

    A batch may have `weights`, numbers not below 0, and `mask`, true or not 0 where a unit counts;
    each per example, `[batch]`, or per unit (a token, a target). `units` is the shape of the units,
    `[batch, ...]`, and `form` its form in messages: `[batch, time]`.

    Returns:
        float32 of the shape of the units, or None where all count the same.

    Raises:
        ValueError: weights or mask have another shape, or hold no numbers.

    >>> combine_weights("a loss", {"weights": jnp.array([2.0, 3.0])}, (2,), "[batch]").tolist()
    [2.0, 3.0]
    """
    found = None
    for name, entry in _list_weights(batch):
        shape, dtype = getattr(entry, "shape", None), getattr(entry, "dtype", None)
        numbers = dtype is not None and any(
            jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_)
        )
        if shape not in (units, units[:1]) or not numbers:
            forms = f"[batch] = {list(units[:1])}"
            if len(units) > 1:
                forms += f" or {form} = {list(units)}"
            raise ValueError(
                f"{task} needs {name} {forms}, which says what counts; got {describe_leaf(entry)}: "
                "rename the entry if the loss should not read it, or put it into `inputs` for the "
                "network"
            )
        value = entry != 0 if name == "mask" else entry
        value = value.astype(jnp.float32).reshape(*shape, *[1] * (len(units) - len(shape)))
        found = value if found is None else found * value
    return None if found is None else jnp.broadcast_to(found, units)


def attach_weights(values: jax.Array, weights: jax.Array | None) -> Any:
    """Return the values, paired with their weights if there are any."""
    return values if weights is None else (values, weights)


def lookup_class_weights(
    task: str, class_weights: ClassWeights, labels: jax.Array, classes: int, things: str
) -> jax.Array:
    """Return how much the class of each label counts, float32 of the labels' shape.

    The labels are integers of any shape, or probabilities `[batch, classes]`, which are averaged;
    `things` is what messages call the classes.

    Raises:
        ValueError: the number of weights is not that of classes, or one is negative or not finite.
    """
    if not isinstance(class_weights, jax.Array):
        check_weights(f"{task}: class_weights", np.asarray(class_weights))
    table = jnp.asarray(class_weights, jnp.float32)
    if table.shape != (classes,):
        raise ValueError(
            f"{task} needs class_weights with one weight for each of {classes} {things}; got "
            f"{list(table.shape)}"
        )
    return labels @ table if jnp.issubdtype(labels.dtype, jnp.floating) else table[labels]


def check_weights(what: str, weights: np.ndarray) -> None:
    """Raise ValueError if a weight on the host is negative or not finite."""
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        raise ValueError(
            f"{what} must be finite and not negative; got {weights[bad].flat[0]} among "
            f"{weights.size}"
        )


def compute_count_mask(batch: Mapping[str, np.ndarray], like: np.ndarray) -> np.ndarray:
    """Return which host labels count, bool of their shape, after a check of the weights.

    `weights` and `mask`, if there are any, are of the shape of the labels, `like`, or of its first
    axes.

    Raises:
        ValueError: a weight is negative or not finite.
    """
    count = np.ones(like.shape, bool)
    for name, entry in _list_weights(batch):
        if name == "weights":
            check_weights("weights", entry)
        if entry.shape == like.shape[: entry.ndim]:
            count &= (entry != 0).reshape(*entry.shape, *[1] * (like.ndim - entry.ndim))
    return count


def check_weights_read(loss: Loss, step: Any, outputs: Any, batch: Mapping[str, Any]) -> None:
    """Raise ValueError if a loss ignores `weights` or `mask`, where a batch has them.

    It is traced for the shapes and dtypes of outputs and batch, neither compiled nor run. A loss
    that cannot be traced passes: its next caller reports the reason better.

    >>> one = jax.ShapeDtypeStruct((1,), "float32")
    >>> check_weights_read(Loss(lambda o, b: {"loss": (o, b["mask"])}), 0, one, {"mask": one})
    >>> check_weights_read(Loss(lambda o, b: {"loss": o}), 0, one, {"mask": one})
    Traceback (most recent call last):
    ValueError: the loss '<lambda>' does not read batch['mask'], which says what counts: ...
    """
    weights = dict(_list_weights(batch))

    def values(weights: dict[str, Any], outputs: Any, others: dict[str, Any]) -> Any:
        return loss.at_step(step, outputs, {**others, **weights})

    others = {name: leaf for name, leaf in batch.items() if name not in weights}
    try:
        traced = jax.make_jaxpr(values)(weights, outputs, others).jaxpr
    except Exception:  # the phase's own check reports it
        return
    read = {id(one) for equation in traced.eqns for one in equation.invars}
    read |= {id(one) for one in traced.outvars}
    paths = jax.tree_util.tree_leaves_with_path(weights)
    for (path, _), one in zip(paths, traced.invars, strict=False):
        if id(one) not in read:
            raise ValueError(
                f"the loss {loss.name!r} does not read batch[{path[0].key!r}], which says what "
                "counts: return its values as pairs (values, weights), or rename the entry that it "
                "should not read"
            )


def _list_weights(batch: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, batch[name]) for name in WEIGHT_KEYS if name in batch]
