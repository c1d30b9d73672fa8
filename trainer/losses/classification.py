"""One class an example, or a whole sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer.losses.loss import check_range, require_entry, require_logits
from trainer.losses.weighing import (
    ClassWeights,
    attach_weights,
    combine_weights,
    compute_count_mask,
    lookup_class_weights,
)


def classification(
    outputs: jax.Array,
    batch: Mapping[str, Any],
    *,
    label_smoothing: float = 0.0,
    class_weights: ClassWeights | None = None,
) -> dict[str, Any]:
    """Softmax cross entropy and accuracy of one class an example.

    Use `functools.partial(classification, label_smoothing=0.1)` to smooth; accuracy is unsmoothed,
    and that of the likeliest class where labels are probabilities.

    Args:
        outputs: logits, floating `[batch, classes]`.
        batch: `labels` integer `[batch]`, between 0 and classes - 1, or probabilities, floating
            `[batch, classes]`, as mixup makes them; `weights`, numbers `[batch]`, where examples
            shall not count the same; `mask` `[batch]`, true or not 0 for those that count at all.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
        class_weights: how much an example of each class counts in the loss, `[classes]`, none below
            0; of labels that are probabilities, their average. It is times the example's weight.

    Returns:
        `loss` in nats and `accuracy` (0 or 1), float32 `[batch]` each; pairs with their weights
        where there are any.

    Raises:
        ValueError: outputs, labels, mask or weights of another shape or kind, or a weight of a
            class below 0.

    >>> logits = jnp.array([[0.0, 0.0], [0.0, jnp.log(3.0)]])
    >>> values = classification(logits, {"labels": jnp.array([0, 1])})
    >>> [round(float(value), 4) for value in values["loss"]]    # log 2, log 4/3
    [0.6931, 0.2877]
    """
    return _compute_cross_entropy("classification", outputs, batch, label_smoothing, class_weights)


def sequence_classification(
    outputs: jax.Array,
    batch: Mapping[str, Any],
    *,
    label_smoothing: float = 0.0,
    class_weights: ClassWeights | None = None,
) -> dict[str, Any]:
    """Softmax cross entropy and accuracy of one class a sequence.

    Of a network that gives logits at every position, as a causal one does, those at the last
    position count: it alone has seen the whole sequence.

    Args:
        outputs: logits, floating `[batch, classes]`, or `[batch, time, classes]`.
        batch: `labels`, `weights` and `mask` as in `classification`; of outputs with a time a mask
            may also be bool `[batch, time]`, true at the tokens of the sequence, where not all are.
        label_smoothing, class_weights: as in `classification`.

    Returns:
        As `classification`.

    Raises:
        ValueError: as `classification`; there is a mask of tokens but the network gives no logits
            at each of them, so that the loss has no use for it.

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
            batch = {name: part for name, part in batch.items() if name != "mask"}  # it was read
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
    if weights is not None:  # what does not count need not be a class
        there = weights > 0
        labels = jnp.where(there if labels.ndim == 1 else there[:, None], labels, 0)
    logits = outputs.astype(jnp.float32)
    sparse = labels.ndim == 1
    if sparse and not label_smoothing:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        targets = jax.nn.one_hot(labels, logits.shape[-1]) if sparse else labels
        loss = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
    classes = labels if sparse else labels.argmax(-1)
    right = (logits.argmax(-1) == classes).astype(jnp.float32)
    in_loss = weights
    if class_weights is not None:
        in_loss = lookup_class_weights(task, class_weights, labels, logits.shape[-1], "classes")
        in_loss = in_loss if weights is None else in_loss * weights
    return {"loss": attach_weights(loss, in_loss), "accuracy": attach_weights(right, weights)}


def _labels(task: str, outputs: Any, batch: Mapping[str, Any]) -> Any:
    labels = require_entry(task, batch, "labels")
    integers = jnp.issubdtype(labels.dtype, jnp.integer) and labels.ndim == 1
    if not integers and not (jnp.issubdtype(labels.dtype, jnp.floating) and labels.ndim == 2):
        remedy = "make them integers, labels.astype('int32'), one an example"
        if labels.ndim == 2:
            remedy = "of one-hot rows the classes are labels.argmax(-1)"
            if labels.shape[-1] == 1:
                remedy = "the axis of size 1 goes with labels[:, 0], as int32"
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


def _check(outputs: jax.ShapeDtypeStruct, batch: Mapping[str, np.ndarray]) -> None:
    """Check host labels, of any leading shape, against the network's classes.

    Raises:
        ValueError: a label outside the classes, where it counts, or a weight below 0.
    """
    labels = batch["labels"]
    count = compute_count_mask(batch, labels)
    if np.issubdtype(labels.dtype, np.integer):
        check_range("labels", labels[count], outputs.shape[-1], "classes")


def _check_sequences(outputs: jax.ShapeDtypeStruct, batch: Mapping[str, np.ndarray]) -> None:
    """Check host labels as `_check` does, and that every sequence has a token.

    Raises:
        ValueError: a label outside the classes, or a sequence that is masked as a whole.
    """
    _check(outputs, batch)
    if "mask" in batch and batch["mask"].ndim > 1 and not (batch["mask"] != 0).any(-1).all():
        raise ValueError(
            "sequence_classification needs a token in every sequence, which its class is read "
            "from; got a mask that is false in a whole row: leave such sequences out"
        )


classification.check = _check  # type: ignore[attr-defined]
sequence_classification.check = _check_sequences  # type: ignore[attr-defined]
