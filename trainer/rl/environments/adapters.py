"""Convert spaces and observations of other libraries; all adapters share it.

Spaces are recognized by their attributes, not by their class, so that no library is imported: a
`Discrete` of gymnasium or gymnax has `n`, one of jumanji `num_values`; a box has `low` and `high`,
or `minimum` and `maximum`; a space of several spaces has `spaces`, or attributes that are spaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trainer.checks.pytrees import format_path
from trainer.rl.environments.environment import Box, Discrete, Space
from trainer.state import PyTree


def flatten_observation(observation: PyTree) -> PyTree:
    """Return an observation as an array, or as a dict of arrays if it is a record of several.

    Names of nested arrays are paths.

    >>> flatten_observation({"at": {"x": 1, "y": 2}, "walls": 3})
    {'at/x': 1, 'at/y': 2, 'walls': 3}
    """
    leaves = jax.tree_util.tree_leaves_with_path(observation)
    if len(leaves) == 1 and not leaves[0][0]:
        return leaves[0][1]
    return {format_path(path): leaf for path, leaf in leaves}


def flatten_space(declared: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the spaces of single arrays, with the paths of `flatten_observation`."""
    children = getattr(declared, "spaces", None)
    if children is None and not hasattr(declared, "shape"):
        own = vars(declared) if hasattr(declared, "__dict__") else {}
        children = {name: part for name, part in own.items() if not name.startswith("_")}
    if children is None:
        yield path, declared
        return
    pairs = children.items() if isinstance(children, Mapping) else enumerate(children)
    for name, part in pairs:
        yield from flatten_space(part, f"{path}/{name}" if path else str(name))


def observation_space(declared: Any, example: PyTree) -> Space:
    """Return the space of observations: shapes and dtypes of an example, with declared bounds.

    Only bounds and categories are read from what an environment declares: some declare another
    dtype than they return. The example is one of `flatten_observation`, or its shapes and dtypes.
    """
    parts = dict(flatten_space(declared))

    def one(path: str, leaf: Any) -> Discrete | Box:
        part = parts.get(path)
        if (count := _categories(part)) is not None and not leaf.shape:
            return Discrete(count)
        low, high = _bounds(part)
        return Box(tuple(leaf.shape), float(low.min()), float(high.max()), jnp.dtype(leaf.dtype))

    if isinstance(example, Mapping):
        return {path: one(path, leaf) for path, leaf in example.items()}
    return one("", example)


def action_space(declared: Any, environment: str) -> Discrete | Box:
    """Return the space of actions, from an environment's own description of them.

    Raises:
        ValueError: they are neither one category nor numbers with the same bounds.
    """
    if (count := _categories(declared)) is not None:
        return Discrete(count)
    who = f"actions of {environment!r} must be one category of several, or an array of floats "
    dtype = getattr(declared, "dtype", None)
    if dtype is None or not np.issubdtype(np.dtype(dtype), np.floating):
        raise ValueError(
            f"{who}between two bounds; got {declared}: wrap the environment so that one number "
            "says which of the actions to take, or choose another"
        )
    low, high = _bounds(declared)
    if low.min() != low.max() or high.min() != high.max():
        raise ValueError(
            f"{who}between two bounds that are the same for all entries; got {declared}: wrap the "
            "environment so that all entries have the same, such as -1 and 1"
        )
    return Box(tuple(declared.shape), float(low.min()), float(high.max()))


def cast_observation(space: Space, observation: PyTree) -> PyTree:
    """Cast an observation of `flatten_observation` to its space's dtypes, not weakly typed."""
    if isinstance(space, Mapping):
        return {name: cast_observation(part, observation[name]) for name, part in space.items()}
    return lax.convert_element_type(observation, space.dtype)


def strip_weak_types(state: PyTree) -> PyTree:
    """Strip the weak types that Python numbers in a state have; keys stay the same."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, np.number):
            return leaf
        return lax.convert_element_type(leaf, jnp.result_type(leaf))

    return jax.tree.map(one, state)


def _categories(declared: Any) -> int | None:
    """Return the number of categories of a categorical space; None for another one."""
    count = getattr(declared, "n", getattr(declared, "num_values", None))
    return int(count) if count is not None and not getattr(declared, "shape", ()) else None


def _bounds(declared: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high), infinite if there are none."""
    for names in (("low", "high"), ("minimum", "maximum")):
        if all(hasattr(declared, name) for name in names):
            low, high = (np.asarray(getattr(declared, name)) for name in names)
            return low, high
    if (counts := getattr(declared, "nvec", None)) is not None:
        return np.zeros(()), np.asarray(counts) - 1
    return np.asarray(-np.inf), np.asarray(np.inf)
