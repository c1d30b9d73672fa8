"""Hyperparameters that `optax.inject_hyperparams` keeps in the optimizer's state, by group."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import DictKey, SequenceKey

from trainer.checks.suggestions import suggest_and_list
from trainer.state import PyTree


def hyperparam_names(opt_state: PyTree) -> list[str]:
    """List the hyperparameters that can be set: floating numbers that no schedule sets.

    >>> import optax
    >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)
    >>> hyperparam_names(optimizer.init({"w": jnp.ones(2)}))
    ['learning_rate', 'momentum']
    """
    found = _list_hyperparams(opt_state)
    return sorted(
        {name for _, name, leaf in found if _is_float(leaf)} - _scheduled_names(opt_state)
    )


def get_hyperparam(opt_state: PyTree, name: str) -> dict[str, jax.Array]:
    """Return the values of a hyperparameter by group, see `group_names`.

    >>> import optax
    >>> optimizer = optax.named_chain(
    ...     ("momentum", optax.inject_hyperparams(optax.trace)(decay=0.9)),
    ...     ("descent", optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)),
    ... )
    >>> get_hyperparam(optimizer.init({"w": jnp.ones(2)}), "learning_rate")
    {'descent': Array(0.5, dtype=float32)}
    """
    return {group: leaf for group, one, leaf in _list_hyperparams(opt_state) if one == name}


def set_hyperparam(
    opt_state: PyTree, name: str, change: Callable[[Any], Any], *, group: str | None = None
) -> PyTree:
    """Change a hyperparameter in one group, or in all that have it; dtypes and shapes stay.

    `change` is `(numpy array) -> value`. Returns the same object where no value changed.

    >>> import optax
    >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    >>> state = optimizer.init({"w": jnp.ones(2)})
    >>> set_hyperparam(state, "learning_rate", lambda rate: rate / 2).hyperparams
    {'learning_rate': Array(0.25, dtype=float32)}
    """

    def change_leaf(leaf: Any) -> Any:
        return fill_leaf(leaf, change(np.asarray(leaf)))

    return map_hyperparam(opt_state, name, change_leaf, group=group)


def map_hyperparam(
    opt_state: PyTree,
    name: str,
    change: Callable[[jax.Array], jax.Array],
    *,
    group: str | None = None,
) -> PyTree:
    """Apply a function to a hyperparameter's leaves; like `set_hyperparam`, but jittable."""
    groups = {} if group is None else _groups(opt_state)
    before, structure = jax.tree_util.tree_flatten_with_path(opt_state)
    after = [
        change(leaf)
        if _is_hyperparam(path, name) and (group is None or groups[path[:-1]] == group)
        else leaf
        for path, leaf in before
    ]
    if all(new is leaf for new, (_, leaf) in zip(after, before, strict=True)):
        return opt_state
    return jax.tree.unflatten(structure, after)


def check_hyperparam(
    who: str, opt_state: PyTree, name: str, *, group: str | None = None, instead: str = ""
) -> None:
    """Check that a hyperparameter can be set in this group, or in each group that has it.

    The message says who sets it, and what the user can do instead.

    Raises:
        ValueError: it does not exist, a schedule sets it, or it is an integer; or the group does
            not exist.
    """
    found = get_hyperparam(opt_state, name)
    if group is not None and group not in found:
        groups = sorted(set(_groups(opt_state).values()))
        if group in groups:
            names = [one for at, one, _ in _list_hyperparams(opt_state) if at == group]
            raise ValueError(
                f"{who} sets {name} of the group {group!r}, which keeps no such number"
                f"{suggest_and_list(name, names)}"
            )
        known = list(found) or groups
        shown = [f"{one}/{name}" for one in found] or known
        raise ValueError(
            f"{who} sets {name} of a group {group!r}, which the optimizer does not have, or not "
            f"with {name} in it{suggest_and_list(group, known, shown)}"
        )
    leaves = list(found.values()) if group is None else [found[group]]
    if name in _scheduled_names(opt_state, group):
        got = "with a schedule, which sets it at every step"
    elif not leaves:
        got = f"without it{suggest_and_list(name, hyperparam_names(opt_state))}"
    elif not all(map(_is_float, leaves)):
        got = f"with an integer, {leaves[0]}, which cannot take fractions"
    else:
        return
    raise ValueError(
        f"{who} needs an optimizer whose {name} can be set, a float under "
        f"optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3); got one {got}: wrap it so"
        + (f", or {instead}" if instead else "")
    )


def check_one_group(who: str, opt_state: PyTree, name: str) -> None:
    """Check that only one group has a hyperparameter, so that its name is unambiguous.

    Raises:
        ValueError: several groups have it.
    """
    found = get_hyperparam(opt_state, name)
    if len(found) > 1:
        groups = ", ".join(f"{group!r} ({np.ravel(leaf)[0]:.6g})" for group, leaf in found.items())
        first = next(iter(found))
        raise ValueError(
            f"{who} sets {name}, which several groups of the optimizer keep, and would make them "
            f"equal: {groups}; name the group, such as {{{first!r}: {{{name!r}: ...}}}}"
        )


def fill_leaf(leaf: Any, value: Any) -> Any:
    """Return a value in the dtype, shape and devices of a leaf; the leaf itself if they are equal.

    Leaves of numpy, as a member of a population has them, stay numpy.
    """
    old = np.asarray(leaf)
    new = np.broadcast_to(np.asarray(value).astype(old.dtype), old.shape)
    if np.array_equal(old, new):
        return leaf
    return jax.device_put(new, leaf.sharding) if isinstance(leaf, jax.Array) else new


def _is_hyperparam(path: Any, name: str | None = None) -> bool:
    """Return whether a path is that of a hyperparameter (of this name)."""
    if len(path) < 2 or getattr(path[-2], "name", None) != "hyperparams":
        return False
    return name is None or path[-1].key == name


def _groups(opt_state: PyTree) -> dict[Any, str]:
    """Return the name of each group with hyperparameters, by the path that they share."""
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    paths = list(dict.fromkeys(path[:-1] for path, _ in leaves if _is_hyperparam(path)))
    return dict(zip(paths, group_names(paths), strict=True))


def _list_hyperparams(opt_state: PyTree) -> list[tuple[str, str, Any]]:
    """List (group, name, leaf) of each hyperparameter."""
    leaves, groups = jax.tree_util.tree_leaves_with_path(opt_state), _groups(opt_state)
    return [(groups[p[:-1]], p[-1].key, leaf) for p, leaf in leaves if _is_hyperparam(p)]


def _scheduled_names(opt_state: PyTree, group: str | None = None) -> set[str]:
    """Return the hyperparameters that a schedule sets (in this group)."""
    groups = {path[:-1]: name for path, name in _groups(opt_state).items()}
    return {
        after.key
        for path, _ in jax.tree_util.tree_leaves_with_path(opt_state)
        for place, (before, after) in enumerate(itertools.pairwise(path))
        if getattr(before, "name", None) == "hyperparams_states"
        if group is None or groups.get(path[:place]) == group
    }


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def group_names(paths: Sequence[tuple[Any, ...]]) -> list[str]:
    """Return the names of the groups of leaves in an optimizer's state, from their paths.

    A group is named by the labels of `optax.multi_transform` and `optax.named_chain`; where these
    are ambiguous, by the positions in `optax.chain` as well. It is empty where nothing in a path
    names a group.

    >>> group_names([(DictKey("trunk"), DictKey("rate")), (DictKey("head"), DictKey("rate"))])
    ['trunk', 'head']
    >>> group_names([(SequenceKey(0), DictKey("rate")), (SequenceKey(2), DictKey("rate"))])
    ['0', '2']
    """
    names = [_group_name(path[:-1], positions=False) for path in paths]
    if len(set(names)) < len(names):
        names = [_group_name(path[:-1], positions=True) for path in paths]
    return names


def learning_rates(opt_state: PyTree) -> dict[str, jax.Array]:
    """Return the learning rates in an optimizer's state, named as metrics: by group if several.

    >>> import jax.numpy as jnp
    >>> sgd = optax.inject_hyperparams(optax.sgd)
    >>> one, two = sgd(learning_rate=0.5), sgd(learning_rate=0.25)
    >>> params = {"head": jnp.ones(2), "trunk": jnp.ones(2)}
    >>> learning_rates(one.init(params))
    {'learning_rate': Array(0.5, dtype=float32)}
    >>> both = optax.multi_transform({"fast": one, "slow": two}, {"head": "fast", "trunk": "slow"})
    >>> sorted(learning_rates(both.init(params)))
    ['learning_rate/fast', 'learning_rate/slow']
    """
    found = optax.tree.get_all_with_path(opt_state, "learning_rate")
    found = [(path, rate) for path, rate in found if isinstance(rate, jax.Array)]  # no schedules
    names = group_names([path for path, _ in found]) if len(found) > 1 else [""]
    return {
        f"learning_rate/{name}" if name else "learning_rate": rate
        for name, (_, rate) in zip(names, found, strict=False)
    }


def _group_name(path: tuple[Any, ...], *, positions: bool) -> str:
    parts = [
        str(part.key if isinstance(part, DictKey) else part.idx)
        for part in path
        if isinstance(part, DictKey) or (positions and isinstance(part, SequenceKey))
    ]
    return "/".join(parts)
