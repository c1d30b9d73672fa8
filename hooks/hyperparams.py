"""The numbers that `optax.inject_hyperparams` keeps in the optimizer's state: read and set."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.names import among
from trainer.state import PyTree


def hyperparam_names(opt_state: PyTree) -> list[str]:
    """Name the numbers that can be set: kept, of a floating type, and under no schedule.

    >>> import optax
    >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)
    >>> hyperparam_names(optimizer.init({"w": jnp.ones(2)}))
    ['learning_rate', 'momentum']
    """
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    kept = {path[-1].key for path, leaf in leaves if _is_kept(path) and _is_float(leaf)}
    return sorted(kept - _scheduled(opt_state))


def hyperparam(opt_state: PyTree, name: str) -> list[jax.Array]:
    """Give the values of a name, one for each optimizer that keeps it."""
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    return [leaf for path, leaf in leaves if _is_kept(path, name)]


def with_hyperparam(opt_state: PyTree, name: str, change: Callable[[Any], Any]) -> PyTree:
    """Change the values of a name, in each optimizer that keeps it; dtypes and shapes stay.

    Args:
        opt_state: of an optimizer, or of several in one.
        name: of the number, such as `learning_rate`.
        change: `(numpy array) -> value`.

    Returns:
        The very same object where no value became another.

    >>> import optax
    >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    >>> state = optimizer.init({"w": jnp.ones(2)})
    >>> with_hyperparam(state, "learning_rate", lambda rate: rate / 2).hyperparams
    {'learning_rate': Array(0.25, dtype=float32)}
    """
    return map_hyperparam(opt_state, name, lambda leaf: replaced(leaf, change(np.asarray(leaf))))


def map_hyperparam(
    opt_state: PyTree, name: str, change: Callable[[jax.Array], jax.Array]
) -> PyTree:
    """Change the leaves of a name, as `with_hyperparam` does, within a jitted function too."""
    before, structure = jax.tree_util.tree_flatten_with_path(opt_state)
    after = [change(leaf) if _is_kept(path, name) else leaf for path, leaf in before]
    if all(new is leaf for new, (_, leaf) in zip(after, before, strict=True)):
        return opt_state
    return jax.tree.unflatten(structure, after)


def check_hyperparam(who: str, opt_state: PyTree, name: str, *, instead: str = "") -> None:
    """Check that the number of this name can be set.

    Args:
        who: that sets it, for the message.
        opt_state: of the optimizer.
        name: of the number.
        instead: what the user may do otherwise, for the message.

    Raises:
        ValueError: there is none, a schedule sets it, or it is an integer.
    """
    leaves = hyperparam(opt_state, name)
    if name in _scheduled(opt_state):
        got = "with a schedule, which sets it at every step"
    elif not leaves:
        got = f"without it{among(name, hyperparam_names(opt_state))}"
    elif not all(map(_is_float, leaves)):
        got = f"with an integer, {leaves[0]}, which no fraction fits"
    else:
        return
    raise ValueError(
        f"{who} needs an optimizer whose {name} can be set, a float under "
        f"optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3); got one {got}: make it so"
        + (f", or {instead}" if instead else "")
    )


def replaced(leaf: Any, value: Any) -> Any:
    """Give a value the dtype, shape and devices of a leaf; the leaf itself where it equals it.

    A member of a population has leaves of numpy, and keeps them.
    """
    old = np.asarray(leaf)
    new = np.broadcast_to(np.asarray(value).astype(old.dtype), old.shape)
    if np.array_equal(old, new):
        return leaf
    return jax.device_put(new, leaf.sharding) if isinstance(leaf, jax.Array) else new


def _is_kept(path: Any, name: str | None = None) -> bool:
    """Say whether a path is that of a number (of this name) that `inject_hyperparams` keeps."""
    if len(path) < 2 or getattr(path[-2], "name", None) != "hyperparams":
        return False
    return name is None or path[-1].key == name


def _scheduled(opt_state: PyTree) -> set[str]:
    """Name the numbers that a schedule sets."""
    return {
        after.key
        for path, _ in jax.tree_util.tree_leaves_with_path(opt_state)
        for before, after in itertools.pairwise(path)
        if getattr(before, "name", None) == "hyperparams_states"
    }


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))
