"""One class an example, or a whole sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer.losses.contract import check_range, entry, require_logits


def classification(
    outputs: jax.Array, batch: Mapping[str, Any], *, label_smoothing: float = 0.0
) -> dict[str, jax.Array]:
    """Softmax cross entropy and accuracy of one class an example.

    Use `functools.partial(classification, label_smoothing=0.1)` to smooth; accuracy is unsmoothed,
    and that of the likeliest class where labels are probabilities.

    Args:
        outputs: logits, floating `[batch, classes]`.
        batch: `labels` integer `[batch]`, between 0 and classes - 1, or probabilities, floating
            `[batch, classes]`, as mixup makes them.
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
    return _classified("classification", outputs, batch, label_smoothing)


def sequence_classification(
    outputs: jax.Array, batch: Mapping[str, Any], *, label_smoothing: float = 0.0
) -> dict[str, jax.Array]:
    """Softmax cross entropy and accuracy of one class a sequence.

    Of a network that gives logits at every position, as a causal one does, those at the last
    position count: it alone has seen the whole sequence.

    Args:
        outputs: logits, floating `[batch, classes]`, or `[batch, time, classes]`.
        batch: `labels` as in `classification`; `mask`, bool `[batch, time]`, true at the tokens of
            the sequence, where not all are.
        label_smoothing: as in `classification`.

    Returns:
        As `classification`.

    Raises:
        ValueError: outputs, labels or mask of another shape or kind.

    >>> logits = jnp.array([[[0.0, 0.0], [0.0, jnp.log(3.0)], [9.0, 0.0]]])
    >>> mask = jnp.array([[True, True, False]])
    >>> values = sequence_classification(logits, {"labels": jnp.array([1]), "mask": mask})
    >>> round(float(values["loss"][0]), 4)
    0.2877
    """
    if getattr(outputs, "ndim", 2) == 3:
        batch_size, time, _ = outputs.shape
        last = jnp.full(batch_size, time - 1)
        if "mask" in batch:
            mask = batch["mask"]
            if mask.shape != (batch_size, time):
                raise ValueError(
                    f"sequence_classification needs mask [batch, time] = {[batch_size, time]}; "
                    f"got {list(mask.shape)}"
                )
            last = time - 1 - jnp.argmax(mask[:, ::-1] != 0, axis=1)
        outputs = outputs[jnp.arange(batch_size), last]
    return _classified("sequence_classification", outputs, batch, label_smoothing)


def _classified(
    task: str, outputs: Any, batch: Mapping[str, Any], label_smoothing: float
) -> dict[str, jax.Array]:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1); got {label_smoothing}")
    labels = _labels(task, outputs, batch)
    logits = outputs.astype(jnp.float32)
    sparse = labels.ndim == 1
    if sparse and not label_smoothing:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        targets = jax.nn.one_hot(labels, logits.shape[-1]) if sparse else labels
        loss = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
    classes = labels if sparse else labels.argmax(-1)
    return {"loss": loss, "accuracy": (logits.argmax(-1) == classes).astype(jnp.float32)}


def _labels(task: str, outputs: Any, batch: Mapping[str, Any]) -> Any:
    labels = entry(task, batch, "labels")
    integers = jnp.issubdtype(labels.dtype, jnp.integer) and labels.ndim == 1
    if not integers and not (jnp.issubdtype(labels.dtype, jnp.floating) and labels.ndim == 2):
        raise ValueError(
            f"{task} needs integer labels [batch], or probabilities [batch, classes]; got "
            f"{labels.dtype}{list(labels.shape)}"
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
        ValueError: a label outside the classes.
    """
    if np.issubdtype(batch["labels"].dtype, np.integer):
        check_range("labels", batch["labels"], outputs.shape[-1], "classes")


def _check_sequences(outputs: jax.ShapeDtypeStruct, batch: Mapping[str, np.ndarray]) -> None:
    """Check host labels as `_check` does, and that every sequence has a token.

    Raises:
        ValueError: a label outside the classes, or a sequence that is masked as a whole.
    """
    _check(outputs, batch)
    if "mask" in batch and not (batch["mask"] != 0).any(-1).all():
        raise ValueError(
            "sequence_classification needs a token in every sequence, which its class is read "
            "from; got a mask that is false in a whole row: leave such sequences out"
        )


classification.check = _check  # type: ignore[attr-defined]
sequence_classification.check = _check_sequences  # type: ignore[attr-defined]
