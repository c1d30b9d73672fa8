"""Predicting the next token: of a text, or of the sentence that describes an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer.losses.contract import check_range, entry, require_logits


def language_modeling(
    outputs: jax.Array, batch: Mapping[str, Any], *, z_loss: float = 0.0
) -> dict[str, Any]:
    """Softmax cross entropy and accuracy of the next token, every token weighing the same.

    From the means come `perplexity` and `bits_per_character`, which is what it says where a token
    is a character; of longer tokens it is bits a token.

    Args:
        outputs: logits, floating `[batch, time, vocabulary]`.
        batch: `labels` integer `[batch, time]`, the token after each of the inputs; `mask`
            `[batch, time]`, true or 1 where a label counts, all of them where it is missing.
        z_loss: weight of the squared logarithm of the softmax's normaliser, which keeps logits
            from drifting; 1e-4 is usual. It is part of `loss`; `cross_entropy` is then without it.

    Returns:
        `loss` in nats a token and `accuracy`, as pairs (mean over the tokens, number of tokens) of
        float32 `[batch]` each; with `z_loss` also `cross_entropy`.

    Raises:
        ValueError: outputs, labels or mask of another shape or kind, or a negative `z_loss`.

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
    entropy, right, mask = _tokens("language_modeling", outputs, batch)
    measured: dict[str, Any] = _measured(entropy, right, mask)
    if z_loss:
        normaliser = jax.nn.logsumexp(outputs.astype(jnp.float32), axis=-1)
        measured["cross_entropy"] = measured["loss"]
        measured["loss"] = _means(entropy + z_loss * normaliser**2, mask)
    return measured


def captioning(outputs: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Softmax cross entropy of a caption's next token, and whether a caption is right as a whole.

    `exact_match` is 1 where the likeliest token is the right one at every position. That is so
    exactly where greedy decoding writes this very caption, since it then stands on the right
    tokens at every step. From the means comes `perplexity`.

    Args:
        outputs: logits, floating `[batch, time, vocabulary]`.
        batch: `labels` and `mask` as in `language_modeling`; `inputs`, which feed the network, are
            `{"image": [batch, height, width, channels], "tokens": [batch, time]}`.

    Returns:
        `loss` in nats a token and `accuracy` as `language_modeling` gives them, and `exact_match`,
        float32 `[batch]`.

    Raises:
        ValueError: outputs, labels or mask of another shape or kind.

    >>> logits = jnp.log(jnp.array([[[0.6, 0.4], [0.3, 0.7]], [[0.6, 0.4], [0.7, 0.3]]]))
    >>> captioning(logits, {"labels": jnp.array([[0, 1], [0, 1]])})["exact_match"].tolist()
    [1.0, 0.0]
    """
    entropy, right, mask = _tokens("captioning", outputs, batch)
    measured = _measured(entropy, right, mask)
    return {**measured, "exact_match": (right | ~mask).all(-1).astype(jnp.float32)}


def _tokens(
    task: str, outputs: Any, batch: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Give cross entropy, whether the likeliest token is right, and the mask: `[batch, time]`."""
    labels = entry(task, batch, "labels")
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim != 2:
        raise ValueError(
            f"{task} needs integer labels [batch, time]; got {labels.dtype}{list(labels.shape)}"
        )
    require_logits(task, outputs, "[batch, time, vocabulary]", labels.shape)
    mask = batch.get("mask", jnp.ones(labels.shape, bool)) != 0
    if mask.shape != labels.shape:
        raise ValueError(
            f"{task} needs mask [batch, time] = {list(labels.shape)}; got {list(mask.shape)}"
        )
    labels = jnp.where(mask, labels, 0)  # what is no token need not be in the vocabulary
    logits = outputs.astype(jnp.float32)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return entropy, logits.argmax(-1) == labels, mask


def _measured(entropy: jax.Array, right: jax.Array, mask: jax.Array) -> dict[str, Any]:
    accuracy = _means(right.astype(jnp.float32), mask)
    return {"loss": _means(entropy, mask), "accuracy": accuracy}


def _means(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Give the mean over each sequence's tokens, and how many they are, float32 `[batch]` each."""
    tokens = mask.sum(-1, dtype=jnp.float32)
    return jnp.sum(values, axis=-1, where=mask) / jnp.maximum(tokens, 1), tokens


def _check(outputs: jax.ShapeDtypeStruct, batch: Mapping[str, Any]) -> None:
    """Check host tokens, of any leading shape, against the network's vocabulary.

    Raises:
        ValueError: a token outside the vocabulary.
    """
    vocabulary, labels = outputs.shape[-1], batch["labels"]
    check_range("labels", labels[batch.get("mask", labels == labels) != 0], vocabulary, "tokens")
    inputs = batch["inputs"]
    tokens = inputs.get("tokens") if isinstance(inputs, Mapping) else inputs
    if tokens is not None and np.issubdtype(tokens.dtype, np.integer):
        check_range("inputs", tokens, vocabulary, "tokens")


def _perplexity(means: Mapping[str, float]) -> dict[str, float]:
    entropy = means.get("cross_entropy", means["loss"])
    return {"perplexity": math.inf if entropy > 700 else math.exp(entropy)}


def _language(means: Mapping[str, float]) -> dict[str, float]:
    entropy = means.get("cross_entropy", means["loss"])
    return {**_perplexity(means), "bits_per_character": entropy / math.log(2)}


language_modeling.check = captioning.check = _check  # type: ignore[attr-defined]
language_modeling.finalize = _language  # type: ignore[attr-defined]
captioning.finalize = _perplexity  # type: ignore[attr-defined]
