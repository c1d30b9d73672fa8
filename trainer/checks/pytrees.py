"""Paths, shapes and dtypes of pytrees: names of leaves, and differences between two trees."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

PyTree = Any


def format_path(path: tuple[Any, ...]) -> str:
    """Format the path of a leaf as in messages and checkpoints: `params/dense/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_key(leaf: Any) -> bool:
    """Return whether a leaf is an array of typed random keys."""
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def map_key_data(function: Callable[[Any], jax.Array], leaves: Sequence[jax.Array]) -> jax.Array:
    """Call a function with leaves; of keys with their data, which JAX does not count as a use.

    >>> keys = [jax.random.key(0), jax.random.key(1)]
    >>> map_key_data(jax.numpy.stack, keys).shape, map_key_data(jax.numpy.stack, [keys[0]]).dtype
    ((2,), key<fry>)
    """
    if not is_key(leaves[0]):
        return function(leaves)
    data = function([jax.random.key_data(leaf) for leaf in leaves])
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaves[0]))


def describe_leaf(leaf: Any) -> str:
    """Describe a leaf as in messages: `float32[2, 3]`, `int`."""
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return type(leaf).__name__


def list_differences(wanted: PyTree, got: PyTree) -> list[str]:
    """List the leaves that are missing, new, or of another shape or dtype.

    >>> import jax.numpy as jnp
    >>> list_differences({"w": jnp.ones(2), "b": 1}, {"w": jnp.ones(3), "b": 1})
    ['w: float32[2] became float32[3]']
    """
    before, after = (
        {
            format_path(path): describe_leaf(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(t)
        }
        for t in (wanted, got)
    )
    lines = [f"{path}: {before[path]} is missing" for path in before if path not in after]
    lines += [f"{path}: {after[path]} is new" for path in after if path not in before]
    lines += [
        f"{path}: {before[path]} became {after[path]}"
        for path in before
        if path in after and before[path] != after[path]
    ]
    if not lines and not has_same_structure(wanted, got):
        lines = [f"structure {jax.tree.structure(wanted)} became {jax.tree.structure(got)}"]
    return lines


def has_same_structure(one: PyTree, other: PyTree) -> bool:
    """Return whether two trees have the same structure."""
    return bool(jax.tree.structure(one) == jax.tree.structure(other))  # type: ignore[operator]


def measure_leaves(tree: PyTree) -> tuple[int, int, int]:
    """Return how many leaves a tree has, and the elements and bytes of them.

    >>> measure_leaves({"w": jax.numpy.ones((2, 3)), "count": 7})
    (2, 7, 24)
    """
    leaves = jax.tree.leaves(tree)
    counts = [math.prod(getattr(leaf, "shape", ())) for leaf in leaves]
    sizes = [getattr(getattr(leaf, "dtype", None), "itemsize", 0) for leaf in leaves]
    return len(leaves), sum(counts), sum(map(math.prod, zip(counts, sizes, strict=True)))
