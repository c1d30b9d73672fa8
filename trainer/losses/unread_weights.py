"""Weights and masks of a batch that a loss does not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from trainer.losses.loss import Loss

WEIGHT_KEYS = ("weights", "mask")
"""Names that say how much examples, tokens or targets count."""


def check_weights_read(loss: Loss, step: Any, outputs: Any, batch: Mapping[str, Any]) -> None:
    """Check that a loss reads `weights` and `mask` where a batch has them.

    The loss is traced, neither compiled nor run. A loss that cannot be traced passes: its next
    caller reports the reason better.

    Args:
        loss: to check.
        step: () int32.
        outputs: shapes and dtypes of the network's outputs for the batch.
        batch: shapes and dtypes.

    Raises:
        ValueError: it ignores one of them, so that all examples would count the same.

    >>> one = jax.ShapeDtypeStruct((1,), "float32")
    >>> check_weights_read(Loss(lambda o, b: {"loss": (o, b["mask"])}), 0, one, {"mask": one})
    >>> check_weights_read(Loss(lambda o, b: {"loss": o}), 0, one, {"mask": one})
    Traceback (most recent call last):
    ValueError: the loss '<lambda>' does not read batch['mask'], which says what counts: ...
    """
    weights = {name: batch[name] for name in WEIGHT_KEYS if name in batch}

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
    unread = [
        path[0].key
        for (path, _), one in zip(paths, traced.invars, strict=False)
        if id(one) not in read
    ]
    if unread:
        raise ValueError(
            f"the loss {loss.name!r} does not read batch[{unread[0]!r}], which says what counts: "
            "return its values as pairs (values, weights), or rename the entry that it should not "
            "read"
        )
