"""One class an example, or a whole sequence."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer.checks.arguments import check_range
from trainer.losses.loss import Loss, require_entry, require_logits
from trainer.losses.weighing import (
    ClassWeights,
    attach_weights,
    combine_weights,
    compute_count_mask,
    lookup_class_weights,
)


def _check(outputs: jax.ShapeDtypeStruct, batch: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError for a host label outside the classes, where it counts, or a bad weight."""
    labels = batch["labels"]
    count = compute_count_mask(batch, labels)
    if np.issubdtype(labels.dtype, np.integer):
        check_range("labels", labels[count], outputs.shape[-1], "classes")


def _check_sequences(outputs: jax.ShapeDtypeStruct, batch: Mapping[str, np.ndarray]) -> None:
    """Check host labels as `_check` does, and that every sequence has a token."""
    _check(outputs, batch)
    if "mask" in batch and batch["mask"].ndim > 1 and not (batch["mask"] != 0).any(-1).all():
        raise ValueError(
            "sequence_classification needs a token in every sequence, which its class is read "
            "from; got a mask that is false in a whole row: leave such sequences out"
        )


@functools.partial(Loss, check=_check)
def classification(
    outputs: jax.Array,
    batch: Mapping[str, Any],
    *,
    label_smoothing: float = 0.0,
    class_weights: ClassWeights | None = None,
) -> dict[str, Any]:
    """Softmax cross entropy and accuracy of one class an example.

    Use `functools.partial(classification, label_smoothing=0.1)` to smooth the labels. The accuracy
    is of unsmoothed labels; where labels are probabilities, of their likeliest class.

    Args:
        outputs: logits, floating `[batch, classes]`.
        batch: `labels` integer `[batch]`, between 0 and classes - 1, or probabilities, floating
            `[batch, classes]`, as mixup makes them; optionally `weights`, numbers `[batch]`, how
            much each example counts; `mask` `[batch]`, true or not 0 for those that count at all.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
        class_weights: how much an example of each class counts in the loss, `[classes]`, none below
            0; averaged where labels are probabilities. It multiplies the example's weight.

    Returns:
        `loss` in nats and `accuracy` (0 or 1), float32 `[batch]` each; pairs with their weights
        where there are any.

    Raises:
        ValueError: outputs, labels, mask or weights have another shape or kind, or a class weight
            is below 0.

    >>> logits = jnp.array([[0.0, 0.0], [0.0, jnp.log(3.0)]])
    >>> values = classification(logits, {"labels": jnp.array([0, 1])})
    >>> [round(float(value), 4) for value in values["loss"]]    # log 2, log 4/3
    [0.6931, 0.2877]
    """
    return _compute_cross_entropy("classification", outputs, batch, label_smoothing, class_weights)


@functools.partial(Loss, check=_check_sequences)
def sequence_classification(
    outputs: jax.Array,
    batch: Mapping[str, Any],
    *,
    label_smoothing: float = 0.0,
    class_weights: ClassWeights | None = None,
) -> dict[str, Any]:
    """Softmax cross entropy and accuracy of one class a sequence.

    Where a network computes logits at every position, as a causal network does, those at the last
    position count: it alone has seen the whole sequence.

    Args:
        outputs: logits, floating `[batch, classes]`, or `[batch, time, classes]`.
        batch: `labels`, `weights` and `mask` as in `classification`; for outputs with a time axis
            the mask may also be bool `[batch, time]`, true at the tokens of the sequence.
        label_smoothing, class_weights: as in `classification`.

    Returns:
        As `classification`.

    Raises:
        ValueError: as `classification`; the mask is of tokens but the network computes no logits
            at each of them, so that the loss cannot use it.

    >>> logits = jnp.array([[[0.0, 0.0], [0.0, jnp.log(3.0)], [9.0, 0.0]]])
    >>> mask = jnp.array([[True, True, False]])
    >>> values = sequence_classification(logits, {"labels": jnp.array([1]), "mask": mask})
    >>> round(float(values["loss"][0]), 4)
    0.2877
    """
    if getattr(outputs, "ndim", 2) == 3:
        batch_size, time, _ = outputs.shape
        last = jnp.full(batch_size, time - 1)
        if getattr(batch.get("mask"), "ndim", 1) != 1:
            mask = batch["mask"]
            if mask.shape != (batch_size, time):
                raise ValueError(
                    f"sequence_classification needs mask [batch, time] = {[batch_size, time]}; "
                    f"got {list(mask.shape)}"
                )
            last = time - 1 - jnp.argmax(mask[:, ::-1] != 0, axis=1)
            batch = {name: part for name, part in batch.items() if name != "mask"}  # already used
        outputs = outputs[jnp.arange(batch_size), last]
    return _compute_cross_entropy(
        "sequence_classification", outputs, batch, label_smoothing, class_weights
    )


def _compute_cross_entropy(
    task: str,
    outputs: Any,
    batch: Mapping[str, Any],
    label_smoothing: float,
    class_weights: ClassWeights | None,
) -> dict[str, Any]:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1); got {label_smoothing}")
    labels = _labels(task, outputs, batch)
    weights = combine_weights(task, batch, labels.shape[:1], "[batch]")
    if weights is not None:  # the label of an example that does not count may be anything
        counts = weights > 0
        labels = jnp.where(counts if labels.ndim == 1 else counts[:, None], labels, 0)
    logits = outputs.astype(jnp.float32)
    sparse = labels.ndim == 1
    if sparse and not label_smoothing:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        targets = jax.nn.one_hot(labels, logits.shape[-1]) if sparse else labels
        loss = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
    classes = labels if sparse else labels.argmax(-1)
    right = (logits.argmax(-1) == classes).astype(jnp.float32)
    loss_weights = weights
    if class_weights is not None:
        by_class = lookup_class_weights(task, class_weights, labels, logits.shape[-1], "classes")
        loss_weights = by_class if weights is None else by_class * weights
    return {"loss": attach_weights(loss, loss_weights), "accuracy": attach_weights(right, weights)}


def _labels(task: str, outputs: Any, batch: Mapping[str, Any]) -> Any:
    labels = require_entry(task, batch, "labels")
    integers = jnp.issubdtype(labels.dtype, jnp.integer) and labels.ndim == 1
    if not integers and not (jnp.issubdtype(labels.dtype, jnp.floating) and labels.ndim == 2):
        remedy = "make them integers, labels.astype('int32'), one per example"
        if labels.ndim == 2:
            remedy = "for one-hot rows the classes are labels.argmax(-1)"
            if labels.shape[-1] == 1:
                remedy = "remove the axis of size 1 with labels[:, 0], as int32"
        raise ValueError(
            f"{task} needs integer labels [batch], or probabilities [batch, classes]; got "
            f"{labels.dtype}{list(labels.shape)}: {remedy}"
        )
    require_logits(task, outputs, "[batch, classes]", labels.shape[:1])
    if labels.ndim == 2 and labels.shape != outputs.shape:
        raise ValueError(
            f"{task} needs probabilities of the network's {outputs.shape[-1]} classes; got labels "
            f"{list(labels.shape)}"
        )
    return labels
