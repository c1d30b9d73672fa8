"""Pairs of answers to one prompt, and what a network assigns to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer.checks.arguments import check_range
from trainer.checks.pytrees import describe_leaf
from trainer.losses.loss import require_entry, require_logits
from trainer.losses.weighing import check_weights

CHOSEN, REJECTED = 1, 2
"""The segments of a pair: prompt and chosen answer, prompt and rejected answer."""


class PairLogProbs(NamedTuple):
    """What a network assigns to the answers of pairs, float32 `[batch, 2]`: chosen, rejected."""

    total: jax.Array
    """The sum of the log-probabilities of an answer's tokens, in nats."""
    tokens: jax.Array
    """The number of tokens of an answer."""

    @property
    def mean(self) -> jax.Array:
        """The mean log-probability of an answer's tokens; 0 where there is none."""
        return self.total / jnp.maximum(self.tokens, 1)


def compute_pair_log_probs(owner: str, logits: Any, batch: Mapping[str, Any]) -> PairLogProbs:
    """Sum the log-probabilities of each answer of pairs.

    Args:
        owner: who asks, for messages.
        logits: floating `[batch, time, vocabulary]`.
        batch: pairs, as `dpo` reads them.

    Raises:
        ValueError: an entry is missing, or has another shape or kind.

    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))
    >>> batch = {
    ...     "inputs": {"segments": jnp.array([[1, 2]])},
    ...     "labels": jnp.array([[0, 1]]), "mask": jnp.array([[True, True]]),
    ... }
    >>> jnp.exp(compute_pair_log_probs("dpo", logits, batch).total).tolist()
    [[0.5, 0.75]]
    """
    labels, mask, segments = _require_pairs(owner, batch)
    require_logits(owner, logits, "[batch, time, vocabulary]", labels.shape)
    counts = mask != 0
    labels = jnp.where(counts, labels, 0)  # a label that does not count may be anything
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    answers = [counts & (segments == segment) for segment in (CHOSEN, REJECTED)]
    total = [-jnp.sum(entropy, axis=-1, where=answer) for answer in answers]
    tokens = [jnp.sum(answer, axis=-1, dtype=jnp.float32) for answer in answers]
    return PairLogProbs(jnp.stack(total, axis=-1), jnp.stack(tokens, axis=-1))


def _require_pairs(owner: str, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return labels, mask and segments `[batch, time]` of pairs."""
    labels, mask = require_entry(owner, batch, "labels"), require_entry(owner, batch, "mask")
    inputs = require_entry(owner, batch, "inputs")
    if not isinstance(inputs, Mapping) or "segments" not in inputs:
        raise ValueError(
            f"{owner} reads pairs: inputs with `segments` [batch, time], 1 where a token belongs "
            "to the chosen answer and 2 to the rejected one, as data.preferences makes them; got "
            f"{sorted(inputs) if isinstance(inputs, Mapping) else describe_leaf(inputs)}"
        )
    found = {"labels": labels, "inputs['segments']": inputs["segments"], "mask": mask}
    for name, entry in found.items():
        integers = name == "mask" or jnp.issubdtype(entry.dtype, jnp.integer)
        if entry.ndim != 2 or entry.shape != labels.shape or not integers:
            kind = "true or not 0" if name == "mask" else "integer"
            raise ValueError(
                f"{owner} needs {name}, {kind}, [batch, time] = {list(labels.shape)}; got "
                f"{describe_leaf(entry)}"
            )
    return labels, mask, inputs["segments"]


def check_pairs(outputs: Any, batch: Mapping[str, Any]) -> None:
    """Raise ValueError for host pairs that lack an answer, or tokens outside the vocabulary."""
    logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs
    labels, mask, segments = _require_pairs("a loss of preferences", batch)
    counts = mask != 0
    check_range("labels", labels[counts], logits.shape[-1], "tokens")
    if "tokens" in batch["inputs"]:
        check_range("inputs", batch["inputs"]["tokens"], logits.shape[-1], "tokens")
    if "weights" in batch:
        check_weights("weights", batch["weights"])
    chosen, rejected = ((counts & (segments == segment)).any(-1) for segment in (CHOSEN, REJECTED))
    if (lacking := chosen != rejected).any():
        row = int(np.argmax(lacking))
        raise ValueError(
            "a loss of preferences needs both answers of a pair; among the pairs that came "
            f"together, {int(lacking.sum())} of {len(lacking)} have only one, such as row {row}, "
            f"without a {'rejected' if chosen[row] else 'chosen'} one: an answer needs a label "
            "where mask is true and segments is "
            f"{REJECTED if chosen[row] else CHOSEN}; leave such pairs out, or make rows longer"
        )
