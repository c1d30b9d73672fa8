"""Weights and masks that stand in a batch and that a loss does not look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from trainer.losses.loss import Loss, get_loss_name, loss_at

WEIGHT_KEYS = ("weights", "mask")
"""Names that say how much examples, tokens or targets count."""


def check_weights_read(loss: Loss, step: Any, outputs: Any, batch: Mapping[str, Any]) -> None:
    """Check that a loss reads `weights` and `mask` where a batch has them.

    It is traced, and neither compiled nor run. One that cannot be traced passes: what asks it next
    says why, and better.

    Args:
        loss: to ask.
        step: () int32.
        outputs: shapes and dtypes of the network's for the batch.
        batch: shapes and dtypes.

    Raises:
        ValueError: it ignores one of them, so that all would count the same.

    >>> one = jax.ShapeDtypeStruct((1,), "float32")
    >>> check_weights_read(lambda o, b: {"loss": (o, b["mask"])}, 0, one, {"mask": one})
    >>> check_weights_read(lambda o, b: {"loss": o}, 0, one, {"mask": one})
    Traceback (most recent call last):
    ValueError: the loss '<lambda>' does not read batch['mask'], which says what counts: ...
    """
    there = {name: batch[name] for name in WEIGHT_KEYS if name in batch}

    def asked(there: dict[str, Any], outputs: Any, others: dict[str, Any]) -> Any:
        return loss_at(loss, step)(outputs, {**others, **there})

    others = {name: leaf for name, leaf in batch.items() if name not in there}
    try:
        traced = jax.make_jaxpr(asked)(there, outputs, others).jaxpr
    except Exception:  # of which the phase's own check tells
        return
    read = {id(one) for equation in traced.eqns for one in equation.invars}
    read |= {id(one) for one in traced.outvars}
    paths = jax.tree_util.tree_leaves_with_path(there)
    unread = [
        path[0].key
        for (path, _), one in zip(paths, traced.invars, strict=False)
        if id(one) not in read
    ]
    if unread:
        name = get_loss_name(loss)
        raise ValueError(
            f"the loss {name!r} does not read batch[{unread[0]!r}], which says what counts: give "
            "its values as pairs (values, weights), or give what it is not to read another name"
        )
