"""Scores of classifiers over a whole split: AUC, F1, confusion matrix, calibration error."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.arguments import describe_value, require_function, require_integer
from trainer.checks.suggestions import suggest_name
from trainer.losses.loss import require_entry
from trainer.losses.weighing import combine_weights
from trainer.phases.batch_functions import Measure
from trainer.state import TrainState
from trainer.supervised.measures.split_values import over_split

Outputs = Callable[[TrainState, Any], Any]
"""`(state, batch) -> logits`: `[batch, classes]`, or `[batch]` of two classes, positive for class
1; such as a task's `outputs`. A batch has `labels`, integer `[batch]`, and perhaps `weights` and
`mask`, `[batch]`: how much an example counts, and whether it does."""

Collected = Mapping[str, np.ndarray]

AVERAGES = ("macro", "micro", "binary")


def auc(outputs: Outputs) -> Measure:
    """Build a measure of the area under the ROC curve, `auc`.

    It is the probability that an example of class 1 has a larger logit than one of class 0, where
    equal ones count half. Of several classes it is the mean over them, each against all others by
    its probability. It is nan if a class has no example.

    Args:
        outputs: logits, see `Outputs`.

    >>> outputs = lambda state, batch: batch["inputs"]
    >>> batch = {"inputs": jnp.array([0.1, 0.4, 0.35, 0.8]), "labels": jnp.array([0, 0, 1, 1])}
    >>> _compute(auc(outputs), batch)
    {'auc': 0.75}
    """

    def collect(logits: jax.Array) -> dict[str, jax.Array]:
        several = logits.shape[1] > 2
        return {"scores": jax.nn.softmax(logits) if several else logits[:, 1:] - logits[:, :1]}

    def compute(split: Collected) -> float:
        scores, labels, weights = split["scores"], split["labels"], split["weights"]
        if scores.shape[1] == 1:
            return _compute_auc(scores[:, 0], labels == 1, weights)
        each = [_compute_auc(scores[:, k], labels == k, weights) for k in range(scores.shape[1])]
        return float(np.mean(each))

    return _classify("measures.auc", outputs, collect, {"auc": compute})


def f1(outputs: Outputs, *, average: str = "macro") -> Measure:
    """Build a measure of `f1`, `precision` and `recall`.

    Args:
        outputs: logits, see `Outputs`.
        average: `macro`, the mean over the classes that are labelled or predicted; `micro`, of all
            decisions together, which is the accuracy; `binary`, of class 1.

    Raises:
        ValueError: an unknown average.

    >>> outputs = lambda state, batch: jax.nn.one_hot(batch["inputs"], 2)
    >>> batch = {"inputs": jnp.array([1, 1, 0, 0]), "labels": jnp.array([1, 0, 1, 0])}
    >>> _compute(f1(outputs, average="binary"), batch)
    {'f1': 0.5, 'precision': 0.5, 'recall': 0.5}
    """
    if average not in AVERAGES:
        raise ValueError(
            f"measures.f1 takes average macro, micro or binary; got {average!r}."
            f"{suggest_name(average, AVERAGES)}"
        )
    part = functools.partial(_compute_f1, average)
    metrics = {
        name: lambda split, name=name: part(split)[name] for name in ("f1", "precision", "recall")
    }
    return _classify("measures.f1", outputs, _predict, metrics)


def confusion_matrix(outputs: Outputs, *, classes: int) -> Measure:
    """Build a measure of how many examples of each class are predicted as each class.

    Args:
        outputs: logits, see `Outputs`.
        classes: their number. There is a metric for each pair: `confusion/2/7` counts examples of
            class 2 that are predicted as class 7, each by its weight.

    >>> outputs = lambda state, batch: jax.nn.one_hot(batch["inputs"], 2)
    >>> batch = {"inputs": jnp.array([1, 1, 1]), "labels": jnp.array([1, 0, 1])}
    >>> _compute(confusion_matrix(outputs, classes=2), batch)
    {'confusion/0/0': 0.0, 'confusion/0/1': 1.0, 'confusion/1/0': 0.0, 'confusion/1/1': 2.0}
    """
    require_integer("classes", classes, 2)

    def count(label: int, predicted: int, split: Collected) -> float:
        counted = (split["labels"] == label) & (split["predicted"] == predicted)
        return float(np.sum(split["weights"], where=counted, dtype=np.float64))

    pairs = [(label, predicted) for label in range(classes) for predicted in range(classes)]
    metrics = {f"confusion/{a}/{b}": functools.partial(count, a, b) for a, b in pairs}
    return _classify("measures.confusion_matrix", outputs, _predict, metrics)


def calibration_error(outputs: Outputs, *, bins: int = 15) -> Measure:
    """Build a measure of the expected calibration error, `calibration_error`.

    Examples are put in bins of equal width by the probability of the likeliest class. The error is
    the mean distance between probability and accuracy of a bin, by its examples.

    Args:
        outputs: logits, see `Outputs`.
        bins: their number.

    Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.

    >>> outputs = lambda state, batch: jnp.log(jnp.stack([1 - batch["inputs"], batch["inputs"]], 1))
    >>> batch = {"inputs": jnp.array([0.75, 0.75]), "labels": jnp.array([1, 0])}    # one is right
    >>> round(_compute(calibration_error(outputs), batch)["calibration_error"], 6)
    0.25
    """
    require_integer("bins", bins, 1)

    def collect(logits: jax.Array) -> dict[str, jax.Array]:
        return _predict(logits) | {"probability": jax.nn.softmax(logits).max(axis=1)}

    def compute(split: Collected) -> float:
        right = split["predicted"] == split["labels"]
        weights, probability = _in_float64(split["weights"]), _in_float64(split["probability"])
        place = np.clip(np.ceil(probability * bins).astype(int) - 1, 0, bins - 1)
        gap = np.bincount(place, weights * (right - probability), bins)
        return float(np.abs(gap).sum() / weights.sum())

    metrics = {"calibration_error": compute}
    return _classify("measures.calibration_error", outputs, collect, metrics)


def _classify(
    who: str,
    outputs: Outputs,
    collect: Callable[[jax.Array], dict[str, jax.Array]],
    metrics: Mapping[str, Callable[[Any], float]],
) -> Measure:
    """Build a measure of what is collected of logits, with `labels` and `weights`."""
    form, remedy = "(state, batch) -> logits", "pass task.outputs"
    require_function(f"{who} takes outputs, which", outputs, form, remedy)

    def values(state: TrainState, batch: Any) -> dict[str, jax.Array]:
        labels, logits = require_entry(who, batch, "labels"), outputs(state, batch)
        shape = getattr(logits, "shape", ())
        whole = jnp.issubdtype(labels.dtype, jnp.integer) and labels.ndim == 1
        if not whole or shape[:1] != labels.shape or len(shape) > 2 or shape[1:] == (0,):
            raise ValueError(
                f"{who} needs logits [batch, classes] or [batch], and labels integer [batch]; got "
                f"{describe_value(logits)} and {describe_value(labels)}"
            )
        if shape[1:] in ((), (1,)):
            logits = jnp.stack([jnp.zeros(len(labels)), logits.reshape(-1)], axis=1)
        weights = combine_weights(who, batch, labels.shape, "[batch]")
        ones = jnp.ones(len(labels)) if weights is None else weights
        return {**collect(logits.astype(jnp.float32)), "labels": labels, "weights": ones}

    return over_split(values, metrics)


def _predict(logits: jax.Array) -> dict[str, jax.Array]:
    return {"predicted": logits.argmax(axis=1)}


def _compute_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """Compute the share of pairs in which the positive example has the larger score."""
    weights = _in_float64(weights)
    known, place = np.unique(scores, return_inverse=True)
    ours = np.bincount(place, weights * positive, len(known))
    others = np.bincount(place, weights * ~positive, len(known))
    pairs = ours.sum() * others.sum()
    below = np.cumsum(others) - others
    return float((ours * (below + others / 2)).sum() / pairs) if pairs else float("nan")


def _compute_f1(average: str, split: Collected) -> dict[str, float]:
    labels, predicted, weights = split["labels"], split["predicted"], _in_float64(split["weights"])
    classes = 1 + max(labels.max(), predicted.max(), 1)
    hits = np.bincount(labels, weights * (labels == predicted), classes)
    labelled, chosen = (
        np.bincount(labels, weights, classes),
        np.bincount(predicted, weights, classes),
    )
    if average == "binary":
        hits, labelled, chosen = hits[1:2], labelled[1:2], chosen[1:2]
    elif average == "micro":
        hits, labelled, chosen = (x.sum(keepdims=True) for x in (hits, labelled, chosen))
    else:
        seen = labelled + chosen > 0
        hits, labelled, chosen = hits[seen], labelled[seen], chosen[seen]

    def mean_share(whole: np.ndarray) -> float:
        """Divide, with 0 where there is nothing to divide by."""
        return float(np.mean(np.divide(hits, whole, out=np.zeros_like(hits), where=whole > 0)))

    f1 = mean_share((labelled + chosen) / 2)
    return {"f1": f1, "precision": mean_share(chosen), "recall": mean_share(labelled)}


def _in_float64(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _compute(measure: Measure, batch: Mapping[str, Any]) -> Mapping[str, float]:
    """Compute a measure of a single batch, for the examples above."""
    ((key, split),) = measure.split_metrics.items()
    values = measure(None, batch)  # type: ignore[arg-type]
    (collected,) = values.values()
    return split.compute(jax.tree.map(np.asarray, collected[key]))
