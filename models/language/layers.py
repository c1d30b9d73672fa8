"""Dense layers and norms, and their initial values."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from models.initializers import lecun_normal
from models.language.architecture import Activation, Architecture

ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
}


def dense(
    inputs: int, outputs: int, *, scale: float = 1.0, bias: bool = False, rngs: nnx.Rngs
) -> nnx.Linear:
    """Build a layer whose initial kernel has variance `scale**2 / inputs`, and whose bias is 0."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return lecun_normal(key, shape, dtype) * jnp.asarray(scale, dtype)

    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=draw, rngs=rngs)


def residual_scale(layers: int, branches: int) -> float:
    """Return the scale of residual branches that keeps the variance of their sum.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.3
    (2019).

    >>> residual_scale(8, 2)
    0.25
    """
    return 1 / math.sqrt(layers * branches)


class FeatureNorm(nnx.Module):
    """Normalise the last axis in float32, as an architecture says, and scale it.

    Source: Ba, Kiros and Hinton, "Layer Normalization" (2016); Zhang and Sennrich, "Root Mean
    Square Layer Normalization" (2019).

    >>> norm = FeatureNorm(2, Architecture(), rngs=nnx.Rngs(0))
    >>> [round(x, 4) for x in norm(jnp.array([3.0, 4.0])).tolist()]
    [0.8485, 1.1314]
    """

    def __init__(self, size: int, architecture: Architecture, *, rngs: nnx.Rngs) -> None:
        self.architecture = architecture
        start = jnp.zeros(size) if architecture.norm_offset else jnp.ones(size)
        self.scale = nnx.Param(start)
        self.bias = nnx.Param(jnp.zeros(size)) if architecture.norm == "layer" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[..., size]` of the same shape and dtype."""
        shape = (1,) * (x.ndim - 1) + (-1,)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.architecture.norm == "layer":
            wide = wide - wide.mean(-1, keepdims=True)
        square = jnp.square(wide).mean(-1, keepdims=True)
        scale = self.scale[...].astype(wide.dtype) + float(self.architecture.norm_offset)
        wide = wide * lax.rsqrt(square + self.architecture.norm_epsilon) * scale.reshape(shape)
        if self.bias is not None:
            wide = wide + self.bias[...].astype(wide.dtype).reshape(shape)
        return wide.astype(x.dtype)
