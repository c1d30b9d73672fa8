"""Losses of predicting the next token: of a text, or of a caption of an image."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer.checks.arguments import check_range
from trainer.losses.loss import Loss, require_entry, require_logits
from trainer.losses.weighing import (
    WEIGHT_KEYS,
    ClassWeights,
    attach_weights,
    combine_weights,
    compute_count_mask,
    lookup_class_weights,
)


def _check(outputs: jax.ShapeDtypeStruct, batch: Mapping[str, Any]) -> None:
    """Raise ValueError for a host token outside the vocabulary that counts, or a bad weight."""
    vocabulary, labels = outputs.shape[-1], batch["labels"]
    check_range("labels", labels[compute_count_mask(batch, labels)], vocabulary, "tokens")
    inputs = batch["inputs"]
    tokens = inputs.get("tokens") if isinstance(inputs, Mapping) else inputs
    if tokens is not None and np.issubdtype(tokens.dtype, np.integer):
        check_range("inputs", tokens, vocabulary, "tokens")


def _perplexity(means: Mapping[str, float]) -> dict[str, float]:
    entropy = means.get("cross_entropy", means["loss"])
    return {"perplexity": math.inf if entropy > 700 else math.exp(entropy)}


def _finalize_text(means: Mapping[str, float]) -> dict[str, float]:
    entropy = means.get("cross_entropy", means["loss"])
    return {**_perplexity(means), "bits_per_character": entropy / math.log(2)}


@functools.partial(Loss, check=_check, finalize=_finalize_text)
def language_modeling(
    outputs: jax.Array,
    batch: Mapping[str, Any],
    *,
    z_loss: float = 0.0,
    class_weights: ClassWeights | None = None,
) -> dict[str, Any]:
    """Softmax cross entropy and accuracy of the next token; every token weighs the same.

    `perplexity` and `bits_per_character` are computed from the means; the second is bits per token,
    so the name is right where a token is a character.

    Args:
        outputs: logits, floating `[batch, time, vocabulary]`.
        batch: `labels` integer `[batch, time]`, the token after each of the inputs; optionally
            `mask` `[batch, time]` or `[batch]`, true or 1 where a label counts; `weights`, numbers
            of either shape, how much each counts.
        z_loss: weight of the squared logarithm of the softmax's normaliser, which keeps logits
            from drifting; 1e-4 is usual. It is part of `loss`, and not of `cross_entropy`.
        class_weights: how much each token of the vocabulary counts as a label in `loss` and
            `cross_entropy`, `[vocabulary]`, none below 0. It multiplies the token's weight.

    Returns:
        `loss` in nats per token and `accuracy`, as pairs (mean over the tokens, number of tokens,
        or the sum of their weights) of float32 `[batch]` each; with `z_loss` also `cross_entropy`.

    Raises:
        ValueError: outputs, labels, mask or weights have another shape or kind, or `z_loss` or a
            class weight is negative.

    Source: z-loss as in A. Chowdhery et al., PaLM: Scaling Language Modeling with Pathways, 2022,
    section 5.

    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))
    >>> batch = {"labels": jnp.array([[0, 1]]), "mask": jnp.array([[0, 1]])}
    >>> loss, tokens = language_modeling(logits, batch)["loss"]
    >>> round(float(loss[0]), 4), float(tokens[0])    # log 4/3, of one token
    (0.2877, 1.0)
    """
    if z_loss < 0:
        raise ValueError(f"z_loss must not be negative; got {z_loss}")
    tokens = _compute_token_stats("language_modeling", outputs, batch, class_weights)
    measured: dict[str, Any] = _summarize_tokens(tokens)
    if z_loss:
        normaliser = jax.nn.logsumexp(outputs.astype(jnp.float32), axis=-1)
        measured["cross_entropy"] = measured["loss"]
        measured["loss"] = _average(tokens.entropy + z_loss * normaliser**2, tokens.loss_weights)
    return measured


@functools.partial(Loss, check=_check, finalize=_perplexity)
def captioning(
    outputs: jax.Array, batch: Mapping[str, Any], *, class_weights: ClassWeights | None = None
) -> dict[str, Any]:
    """Softmax cross entropy of a caption's next token, and whether the whole caption is right.

    `exact_match` is 1 where the likeliest token is the right one at every position. This is
    exactly where greedy decoding writes this caption, since it then continues from the right
    tokens at every step. `perplexity` is computed from the means.

    Args:
        outputs: logits, floating `[batch, time, vocabulary]`.
        batch: `labels`, `mask` and `weights` as in `language_modeling`; `inputs`, which feed the
            network, are `{"image": [batch, height, width, channels], "tokens": [batch, time]}`.
        class_weights: as in `language_modeling`.

    Returns:
        `loss` in nats per token and `accuracy` as in `language_modeling`, and `exact_match`,
        float32 `[batch]`; a pair with weights where the batch has a mask or weights: a caption
        weighs as much as the heaviest of its tokens.

    Raises:
        ValueError: outputs, labels, mask or weights have another shape or kind, or a class weight
            is below 0.

    >>> logits = jnp.log(jnp.array([[[0.6, 0.4], [0.3, 0.7]], [[0.6, 0.4], [0.7, 0.3]]]))
    >>> captioning(logits, {"labels": jnp.array([[0, 1], [0, 1]])})["exact_match"].tolist()
    [1.0, 0.0]
    """
    tokens = _compute_token_stats("captioning", outputs, batch, class_weights)
    exact = (tokens.right | ~(tokens.weights > 0)).all(-1).astype(jnp.float32)
    weights = tokens.weights.max(-1) if any(name in batch for name in WEIGHT_KEYS) else None
    return {**_summarize_tokens(tokens), "exact_match": attach_weights(exact, weights)}


class _TokenStats(NamedTuple):
    """What a loss measures of tokens, `[batch, time]` each."""

    entropy: jax.Array
    """Cross entropy in nats."""
    right: jax.Array
    """Whether the likeliest token is the right one."""
    weights: jax.Array
    """How much the token counts."""
    loss_weights: jax.Array
    """How much it counts in the loss, which also weighs classes."""


def _compute_token_stats(
    task: str, outputs: Any, batch: Mapping[str, Any], class_weights: ClassWeights | None
) -> _TokenStats:
    labels = require_entry(task, batch, "labels")
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim != 2:
        raise ValueError(
            f"{task} needs integer labels [batch, time]; got {labels.dtype}{list(labels.shape)}"
        )
    require_logits(task, outputs, "[batch, time, vocabulary]", labels.shape)
    weights = combine_weights(task, batch, labels.shape, "[batch, time]")
    weights = jnp.ones(labels.shape) if weights is None else weights
    labels = jnp.where(weights > 0, labels, 0)  # a label that does not count may be anything
    logits = outputs.astype(jnp.float32)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    loss_weights = weights
    if class_weights is not None:
        by_class = lookup_class_weights(task, class_weights, labels, logits.shape[-1], "tokens")
        loss_weights = weights * by_class
    return _TokenStats(entropy, logits.argmax(-1) == labels, weights, loss_weights)


def _summarize_tokens(tokens: _TokenStats) -> dict[str, Any]:
    accuracy = _average(tokens.right.astype(jnp.float32), tokens.weights)
    return {"loss": _average(tokens.entropy, tokens.loss_weights), "accuracy": accuracy}


def _average(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean over each sequence's tokens, and how much they weigh, float32 `[batch]`."""
    total = jnp.sum(weights, axis=-1)
    means = jnp.sum(values * weights, axis=-1, where=weights > 0)
    return means / jnp.where(total == 0, 1, total), total
