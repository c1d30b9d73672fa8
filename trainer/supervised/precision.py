"""The precision in which a step computes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from trainer.checks.suggestions import suggest_name
from trainer.state import PyTree

PRECISIONS = ("float32", "bfloat16", "float16")
"""Dtypes that a step may compute in; parameters and the optimizer's state keep theirs."""


def require_known(precision: str) -> None:
    """Check that a precision is one of `PRECISIONS`.

    Raises:
        ValueError: it is another.

    >>> require_known("half")
    Traceback (most recent call last):
        ...
    ValueError: precision must be one of float32, bfloat16, float16; got 'half'.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}."
            f"{suggest_name(precision, PRECISIONS)}"
        )


def require_available(precision: str, device: jax.Device) -> None:
    """Check that a device supports a precision; CPUs support all, without a gain in speed.

    Raises:
        ValueError: it does not: bfloat16 on GPUs before compute capability 8.0, float16 on TPUs.
    """
    capability = str(getattr(device, "compute_capability", ""))
    # The capabilities of other vendors are names.
    old = capability.replace(".", "").isdigit() and float(capability) < 8.0
    if precision == "bfloat16" and old:
        raise ValueError(
            f"bfloat16 needs a GPU of compute capability 8.0 or more; {device.device_kind} has "
            f"{capability}: use float16 or float32"
        )
    if precision == "float16" and device.platform == "tpu":
        raise ValueError(f"float16 is not available on {device.device_kind}; use bfloat16")


def cast_floating(tree: PyTree, dtype: Any) -> PyTree:
    """Cast floating leaves to a dtype; all others stay.

    >>> cast_floating({"w": jnp.ones(2), "n": jnp.int32(1)}, jnp.bfloat16)
    {'n': Array(1, dtype=int32...), 'w': Array([1, 1], dtype=bfloat16)}
    """

    def cast(leaf: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, dtype) if floating else leaf

    return jax.tree.map(cast, tree)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """Cast every leaf to the dtype of its counterpart."""
    return jax.tree.map(lambda leaf, model: jnp.asarray(leaf, model.dtype), tree, like)
