"""Dense layers without a bias, and their initial scale."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from models.initializers import lecun_normal


def dense(inputs: int, outputs: int, *, scale: float = 1.0, rngs: nnx.Rngs) -> nnx.Linear:
    """Build a layer without a bias, whose initial kernel has variance `scale**2 / inputs`."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return lecun_normal(key, shape, dtype) * jnp.asarray(scale, dtype)

    return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=draw, rngs=rngs)


def residual_scale(layers: int, branches: int) -> float:
    """Return the scale of residual branches that keeps the variance of their sum.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.3
    (2019).

    >>> residual_scale(8, 2)
    0.25
    """
    return 1 / math.sqrt(layers * branches)
