"""Losses: `(outputs, batch) -> {name: values}`, per example; `loss` is what is minimised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Loss = Callable[[Any, Mapping[str, Any]], dict[str, Any]]
"""Values are `[batch]`, or pairs (values, weights) where examples weigh differently."""


def classification(
    outputs: jax.Array, batch: Mapping[str, Any], *, label_smoothing: float = 0.0
) -> dict[str, jax.Array]:
    """Softmax cross entropy and accuracy of one class an example.

    Use `functools.partial(classification, label_smoothing=0.1)` to smooth; accuracy is unsmoothed.

    Args:
        outputs: logits, floating `[batch, classes]`.
        batch: `labels` integer `[batch]`, between 0 and classes - 1.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).

    Returns:
        `loss` in nats and `accuracy` (0 or 1), float32 `[batch]` each.

    Raises:
        ValueError: outputs or labels of another shape or kind.

    >>> logits = jnp.array([[0.0, 0.0], [0.0, jnp.log(3.0)]])
    >>> values = classification(logits, {"labels": jnp.array([0, 1])})
    >>> [round(float(value), 4) for value in values["loss"]]    # log 2, log 4/3
    [0.6931, 0.2877]
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1); got {label_smoothing}")
    labels = _labels(outputs, batch)
    logits = outputs.astype(jnp.float32)
    if label_smoothing:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
        loss = optax.softmax_cross_entropy(logits, targets)
    else:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {"loss": loss, "accuracy": (logits.argmax(-1) == labels).astype(jnp.float32)}


def _labels(outputs: Any, batch: Mapping[str, Any]) -> Any:
    if "labels" not in batch:
        raise ValueError(f"classification reads batch['labels']; there is: {sorted(batch)}")
    labels = batch["labels"]
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim != 1:
        raise ValueError(
            f"classification needs integer labels [batch]; got {labels.dtype}{list(labels.shape)}"
        )
    shape = getattr(outputs, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != labels.shape[0]:
        raise ValueError(
            f"classification needs logits [batch, classes] = [{labels.shape[0]}, classes] from the "
            f"network; got {list(shape) if shape is not None else type(outputs).__name__}"
        )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(f"classification needs floating logits; got {outputs.dtype}")
    return labels


def _check_labels(outputs: jax.ShapeDtypeStruct, batch: Mapping[str, np.ndarray]) -> None:
    """Check host labels, of any leading shape, against the network's classes.

    Raises:
        ValueError: a label outside the classes.
    """
    labels, classes = batch["labels"], outputs.shape[-1]
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels must be between 0 and {classes - 1}, as the network has {classes} classes; "
            f"got labels between {low} and {high}"
        )


classification.check = _check_labels  # type: ignore[attr-defined]
