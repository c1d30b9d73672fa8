"""Checks of the settings and inputs of the bundled networks."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import jax

from models.network import PyTree


def require_size(owner: str, name: str, value: Any) -> None:
    """Raise TypeError if a setting is no whole number, and ValueError if it is less than 1.

    >>> require_size("mlp", "classes", 0)
    Traceback (most recent call last):
        ...
    ValueError: mlp: classes must be at least 1; got 0
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be a whole number; got {value!r}")
    if value < 1:
        raise ValueError(f"{owner}: {name} must be at least 1; got {value}")


def require_sizes(owner: str, name: str, values: Sequence[int]) -> None:
    """Raise TypeError if a setting is no sequence of whole numbers, ValueError if one is below 1.

    >>> require_sizes("mlp", "hidden", 128)
    Traceback (most recent call last):
        ...
    TypeError: mlp: hidden must be a sequence of sizes, such as (128,); got 128
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(
            f"{owner}: {name} must be a sequence of sizes, such as (128,); got {values!r}"
        )
    for index, value in enumerate(values):
        require_size(owner, f"{name}[{index}]", value)


def require_rate(owner: str, name: str, value: float) -> None:
    """Raise ValueError if a setting is less than 0, or 1 or more.

    >>> require_rate("mlp", "dropout", 1.0)
    Traceback (most recent call last):
        ...
    ValueError: mlp: dropout must be at least 0 and less than 1; got 1.0
    """
    if not 0 <= value < 1:
        raise ValueError(f"{owner}: {name} must be at least 0 and less than 1; got {value}")


def require_array(owner: str, form: str, inputs: PyTree, *, ranks: Sequence[int] = ()) -> None:
    """Raise TypeError if inputs are no array (or its shape), ValueError if their rank is wrong.

    `form` is the required shape, for the message; `ranks` the allowed ones, any from 1 on if empty.

    >>> import jax.numpy as jnp
    >>> require_array("cnn", "[batch, height, width, channels]", jnp.ones((4, 8, 8)), ranks=(4,))
    Traceback (most recent call last):
        ...
    ValueError: cnn takes inputs [batch, height, width, channels]; got shape (4, 8, 8): images of
    one channel are images[..., None]
    """
    if not isinstance(inputs, jax.Array | jax.ShapeDtypeStruct):
        raise TypeError(f"{owner} takes one array {form}; got {type(inputs).__name__}")
    if not inputs.shape or (ranks and len(inputs.shape) not in ranks):
        remedy = ""
        if ranks and len(inputs.shape) + 1 in ranks and "channels" in form:
            remedy = ": images of one channel are images[..., None]"
        raise ValueError(f"{owner} takes inputs {form}; got shape {inputs.shape}{remedy}")
