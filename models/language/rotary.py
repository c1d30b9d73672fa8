"""Rotary positions: the angle between a query and a key tells their distance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

BASE = 10_000.0
"""Ratio of the longest wavelength of the rotary positions to the shortest."""

Pair = tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class LinearScaling:
    """Stretch all positions by a factor.

    Source: Chen et al., "Extending Context Window of Large Language Models via Positional
    Interpolation" (2023).
    """

    factor: float

    def __post_init__(self) -> None:
        _require_positive(self)

    def scale(self, frequencies: jax.Array) -> jax.Array:
        """Scale frequencies, in radians a position.

        >>> LinearScaling(4.0).scale(jnp.array([1.0, 0.5])).tolist()
        [0.25, 0.125]
        """
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Stretch positions by a factor for long wavelengths, and not at all for short ones.

    Source: Llama Team, "The Llama 3 Herd of Models" (2024), with the formula of its code.
    """

    factor: float
    low_frequency_factor: float
    """Wavelengths above `original_context / low_frequency_factor` are stretched by the factor."""
    high_frequency_factor: float
    """Wavelengths below `original_context / high_frequency_factor` are not; between the two the
    frequency is interpolated."""
    original_context: int
    """Context of the pretraining, in tokens."""

    def __post_init__(self) -> None:
        _require_positive(self)
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError(
                "Llama3Scaling: low_frequency_factor must be below high_frequency_factor; got "
                f"{self.low_frequency_factor} and {self.high_frequency_factor}"
            )

    def scale(self, frequencies: jax.Array) -> jax.Array:
        """Scale frequencies, in radians a position.

        >>> scaling = Llama3Scaling(8.0, 1.0, 4.0, original_context=100)
        >>> turns = 2 * math.pi / jnp.array([10.0, 40.0, 200.0])  # wavelengths
        >>> [round(x, 4) for x in (scaling.scale(turns) / turns).tolist()]
        [1.0, 0.5625, 0.125]
        """
        low, high = self.low_frequency_factor, self.high_frequency_factor
        waves = self.original_context * frequencies / (2 * math.pi)
        kept = jnp.clip((waves - low) / (high - low), 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


def _require_positive(scaling: LinearScaling | Llama3Scaling) -> None:
    for name, value in vars(scaling).items():
        if not 0 < value < math.inf:
            owner = type(scaling).__name__
            raise ValueError(f"{owner}: {name} must be above 0, and finite; got {value!r}")


def compute_rotary(
    positions: jax.Array,
    size: int,
    base: float = BASE,
    scaling: LinearScaling | Llama3Scaling | None = None,
) -> Pair:
    """Compute the cosines and sines, float32 `[..., time, size / 2]`, that rotate heads of a size.

    `positions` are numbers `[time]`, or `[batch, time]` where they differ between rows.

    >>> cosines, sines = compute_rotary(jnp.arange(3), 4)
    >>> cosines.shape, float(sines[0, 0]), round(float(sines[1, 0]), 4)
    ((3, 2), 0.0, 0.8415)
    """
    frequencies = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    frequencies = frequencies if scaling is None else scaling.scale(frequencies)
    shape = (1,) * positions.ndim + frequencies.shape
    angles = positions[..., None].astype(jnp.float32) * frequencies.reshape(shape)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(heads: jax.Array, rotary: Pair) -> jax.Array:
    """Rotate each pair of features by an angle proportional to the position.

    The product of a query and a key then depends only on the distance of their positions. Feature i
    of a head is paired with feature i + size / 2; the computation is in float32, the result in the
    dtype of the heads `[batch, time, heads, size]`.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", equation 34
    (2021).

    >>> one = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> apply_rotary(one, (jnp.zeros((1, 1)), jnp.ones((1, 1)))).ravel().tolist()
    [0.0, 1.0]
    """
    cosines, sines = (x.reshape(-1, *x.shape[-2:])[:, :, None] for x in rotary)
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate(rotated, axis=-1).astype(heads.dtype)
