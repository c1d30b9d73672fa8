"""Checks of settings, inputs and parameters of networks."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp

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


def require_fit(name: str, expected: PyTree, got: PyTree, *, remedy: str) -> None:
    """Raise ValueError, with a list, if a pytree lacks an array, has another, or one misshapen.

    Dtypes are not checked: a network may run on parameters of a lower precision.

    Args:
        name: what `got` is, for the message.
        expected: pytree of arrays or `jax.ShapeDtypeStruct`s.
        got: pytree of arrays.
        remedy: what to do, for the message.

    >>> require_fit("params", {"w": jnp.ones(2)}, {"w": jnp.ones(3)}, remedy="call init again")
    Traceback (most recent call last):
        ...
    ValueError: params: the arrays do not fit: w must be (2,), got (3,); call init again
    """
    wanted, found = _shapes_by_path(expected), _shapes_by_path(got)
    faults = [f"{path} is missing" for path in wanted.keys() - found.keys()]
    faults += [f"{path} is not expected" for path in found.keys() - wanted.keys()]
    faults += [
        f"{path} must be {wanted[path]}, got {found[path]}"
        for path in wanted.keys() & found.keys()
        if wanted[path] != found[path]
    ]
    if faults:
        listed = sorted(faults)[:6] + [f"and {len(faults) - 6} more"] * (len(faults) > 6)
        raise ValueError(f"{name}: the arrays do not fit: {', '.join(listed)}; {remedy}")


def _shapes_by_path(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
