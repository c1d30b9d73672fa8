"""Distributions of actions: categorical, or a diagonal Gaussian.

A policy's outputs are a dict with `logits` `[..., actions]`, or with `mean` and `log_std`
`[..., actions]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

Outputs = Mapping[str, jax.Array]


def sample(outputs: Outputs, key: jax.Array) -> jax.Array:
    """Sample an action: int32 `[...]` from logits, float32 `[..., actions]` from a Gaussian.

    The latter is not clipped.

    >>> certain = {"logits": jnp.array([[0.0, 99.0], [99.0, 0.0]])}
    >>> sample(certain, jax.random.key(0)).tolist()
    [1, 0]
    """
    if "logits" in outputs:
        return jax.random.categorical(key, outputs["logits"]).astype(jnp.int32)
    mean, log_std = outputs["mean"], outputs["log_std"]
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)


def mode(outputs: Outputs) -> jax.Array:
    """Return the likeliest action, with the shape and dtype of `sample`.

    >>> mode({"logits": jnp.array([0.1, 0.7, 0.2])}).item()
    1
    """
    if "logits" in outputs:
        return jnp.argmax(outputs["logits"], axis=-1).astype(jnp.int32)
    return outputs["mean"]


def log_prob(outputs: Outputs, action: jax.Array) -> jax.Array:
    """Return the logarithm of an action's probability, or of its density, `[...]`.

    >>> round(float(log_prob({"logits": jnp.zeros(4)}, jnp.int32(2))), 4)  # log(1/4)
    -1.3863
    """
    if "logits" in outputs:
        logs = jax.nn.log_softmax(outputs["logits"])
        return jnp.take_along_axis(logs, action[..., None], axis=-1)[..., 0]
    mean, log_std = outputs["mean"], outputs["log_std"]
    scaled = (action - mean) * jnp.exp(-log_std)
    return -jnp.sum(0.5 * scaled**2 + log_std + 0.5 * math.log(2 * math.pi), axis=-1)


def entropy(outputs: Outputs) -> jax.Array:
    """Return the entropy, in nats, `[...]`.

    >>> round(float(entropy({"logits": jnp.zeros(4)})), 4)  # log 4
    1.3863
    """
    if "logits" in outputs:
        logs = _finite_log_softmax(outputs["logits"])
        return -jnp.sum(jnp.exp(logs) * logs, axis=-1)
    return jnp.sum(outputs["log_std"] + 0.5 * math.log(2 * math.pi * math.e), axis=-1)


def kl(outputs: Outputs, others: Outputs) -> jax.Array:
    """Return the Kullback-Leibler divergence KL(outputs || others), in nats, `[...]`.

    >>> sure = {"logits": jnp.array([0.0, -99.0])}
    >>> round(float(kl(sure, {"logits": jnp.zeros(2)})), 4)  # log 2
    0.6931
    """
    if "logits" in outputs:
        here, there = (_finite_log_softmax(o["logits"]) for o in (outputs, others))
        return jnp.sum(jnp.exp(here) * (here - there), axis=-1)
    wider = others["log_std"] - outputs["log_std"]
    apart = (outputs["mean"] - others["mean"]) * jnp.exp(-others["log_std"])
    return jnp.sum(wider + 0.5 * (jnp.exp(-2 * wider) + apart**2) - 0.5, axis=-1)


def _finite_log_softmax(logits: jax.Array) -> jax.Array:
    """Return log probabilities, finite also for an action whose logit is -inf."""
    logs = jax.nn.log_softmax(logits)
    return jnp.maximum(logs, jnp.finfo(logs.dtype).min)
