"""Exact match: how often a language model writes the expected answer, to the last token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainer.checks.arguments import require_function
from trainer.losses.loss import require_entry, require_logits
from trainer.losses.weighing import combine_weights
from trainer.phases.batch_functions import Measure
from trainer.state import TrainState


def exact_match(outputs: Callable[[TrainState, Any], Any]) -> Measure:
    """Build a measure of the share of answers that greedy decoding writes to the last token.

    Greedy decoding writes an answer if at each of its tokens the likeliest one is right, given the
    prompt and the right tokens before it, since it then continues from them at every step. So all
    tokens of an answer are checked in one pass of the network, and nothing is generated.

    An answer is a run of labels that count, within a row and a segment: each text of the assistant
    in a batch of `data.chat`, with the token that ends it. All answers weigh the same, and the
    mean `exact_match` over a split is exact at any batch size.

    Args:
        outputs: `(state, batch) -> logits [batch, time, vocabulary]`, such as a task's `outputs`.

    Returns:
        A measure for `trainer.evaluation`. A batch has `inputs`, tokens or a dict that may have
        `segments`; `labels` integer `[batch, time]`; and perhaps `mask`, true where a label counts.

    Raises:
        TypeError: `outputs` is no function.
        ValueError: when traced, logits, labels or mask have another shape.

    >>> outputs = lambda state, batch: jax.nn.one_hot(batch["inputs"] + 1, 9)    # it counts
    >>> batch = {"inputs": jnp.array([[1, 2, 3, 4]]), "labels": jnp.array([[2, 3, 4, 6]]),
    ...          "mask": jnp.array([[True, True, False, True]])}
    >>> share, answers = exact_match(outputs)(None, batch)["exact_match"]
    >>> share.tolist(), answers.tolist()    # 2 3 is right, 6 is wrong
    ([0.5], [2.0])
    """
    who = "exact_match"
    require_function(
        f"{who} takes outputs, which", outputs, "(state, batch) -> logits", "pass task.outputs"
    )

    def measure(state: TrainState, batch: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        labels = require_entry(who, batch, "labels")
        logits = outputs(state, batch)
        require_logits(who, logits, "[batch, time, vocabulary]", labels.shape)
        weights = combine_weights(who, batch, labels.shape, "[batch, time]")
        counted = jnp.ones(labels.shape, bool) if weights is None else weights > 0
        continued = counted[:, :-1]
        inputs = batch["inputs"]
        if isinstance(inputs, Mapping) and "segments" in inputs:
            continued &= inputs["segments"][:, 1:] == inputs["segments"][:, :-1]
        begins = counted & ~jnp.pad(continued, ((0, 0), (1, 0)))
        answer = jnp.cumsum(begins, axis=1)  # from 1
        wrong = counted & (logits.argmax(-1) != labels)
        rows = jnp.arange(len(labels))[:, None]
        failed = jnp.zeros((len(labels), labels.shape[1] + 1), jnp.int32)
        failed = failed.at[rows, answer].max(wrong.astype(jnp.int32))
        count = jnp.sum(begins, axis=1)
        right = count - jnp.sum(failed, axis=1)
        share = right / jnp.maximum(count, 1)
        return {"exact_match": (share.astype(jnp.float32), count.astype(jnp.float32))}

    return Measure(measure)
