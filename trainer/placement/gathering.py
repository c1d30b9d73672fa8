"""`gather`: bring arrays that are split over processes to each of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from trainer.checks.pytrees import is_key
from trainer.state import PyTree


def gather(tree: PyTree) -> PyTree:
    """Gather the arrays of a tree that are split over processes; all processes must call it.

    A leaf at a time is whole on every device, and then on the host of each process. Control hooks
    run on all processes, and may call it; for an observer, which runs on the main process alone,
    declare `hooks.observe(hook, gather="params")`.

    Args:
        tree: a pytree, such as `state.params`.

    Returns:
        The tree, with such arrays as read-only numpy arrays; typed keys stay typed keys, on one
        device. All other leaves are as they were, so that on one process this does nothing.

    >>> import jax.numpy as jnp
    >>> gather({"w": jnp.ones(2), "name": "head"})
    {'name': 'head', 'w': Array([1., 1.], dtype=float32)}
    """
    return jax.tree.map(_gather_leaf, tree)


def is_split_over_processes(leaf: Any) -> bool:
    """Return whether no process holds all of an array."""
    return (
        isinstance(leaf, jax.Array)
        and not leaf.is_fully_addressable
        and not leaf.is_fully_replicated
    )


def _gather_leaf(leaf: Any) -> Any:
    if not is_split_over_processes(leaf):
        return leaf
    if is_key(leaf):
        data = _gather_leaf(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(leaf))
    whole: np.ndarray = multihost_utils.process_allgather(leaf, tiled=True)
    whole.flags.writeable = False
    return whole
