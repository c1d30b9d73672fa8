"""Numbers an example."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainer.losses.contract import entry


def regression(outputs: jax.Array, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Squared and absolute error, meant over an example's targets.

    From the mean of the first comes `root_mean_squared_error`.

    Args:
        outputs: floating, of the shape of the targets, or with one more axis of size 1.
        batch: `targets`, numbers `[batch, ...]`.

    Returns:
        `loss`, the squared error, and `absolute_error`, float32 `[batch]` each.

    Raises:
        ValueError: outputs of another shape or kind.

    >>> values = regression(jnp.array([[1.0], [3.0]]), {"targets": jnp.array([1.0, 1.0])})
    >>> values["loss"].tolist(), values["absolute_error"].tolist()
    ([0.0, 4.0], [0.0, 2.0])
    """
    targets = entry("regression", batch, "targets")
    shape = getattr(outputs, "shape", None)
    if shape not in (targets.shape, (*targets.shape, 1)) or not jnp.issubdtype(
        outputs.dtype, jnp.floating
    ):
        got = type(outputs).__name__ if shape is None else f"{outputs.dtype}{list(shape)}"
        raise ValueError(
            f"regression needs floating outputs of the targets' shape {list(targets.shape)} from "
            f"the network; got {got}"
        )
    error = outputs.reshape(targets.shape).astype(jnp.float32) - targets
    error = error.reshape(len(error), -1)
    return {"loss": jnp.mean(error**2, axis=1), "absolute_error": jnp.mean(jnp.abs(error), axis=1)}


def _finalize(means: Mapping[str, float]) -> dict[str, float]:
    return {"root_mean_squared_error": math.sqrt(means["loss"])}


regression.finalize = _finalize  # type: ignore[attr-defined]
