"""A population on the host: split it into views, one a member, and merge what hooks changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer import TrainState
from trainer.checks.pytrees import has_same_structure, is_key, list_differences
from trainer.phases.population import MAPPED, get_member_fields
from trainer.placement.gathering import gather
from trainer.state import DEVICE_FIELDS, PyTree


def split_members(state: TrainState) -> list[TrainState]:
    """Split a population into the states of its members: read-only numpy views, and jax keys.

    Slicing 256 members on the device takes 50 times as long. The host part is left out.

    >>> from trainer import stack_states
    >>> alone = [TrainState.create(params=jnp.float32(p), rng=jax.random.key(p)) for p in (1, 3)]
    >>> [float(one.params) for one in split_members(stack_states(alone))]
    [1.0, 3.0]
    """
    leaves, structure = jax.tree.flatten(gather(get_member_fields(state)))
    host = iter(jax.device_get([_local(leaf) for leaf in leaves if not is_key(leaf)]))
    columns = [list(leaf) if is_key(leaf) else _make_views(next(host)) for leaf in leaves]
    epoch: Any = np.asarray(state.epoch)
    return [
        TrainState(**jax.tree.unflatten(structure, row), epoch=epoch)
        for row in zip(*columns, strict=True)
    ]


def merge_members(
    who: str, state: TrainState, before: Sequence[TrainState], after: Sequence[TrainState]
) -> TrainState:
    """Write the leaves that changed in members' states into the population.

    Args:
        who: what changed them, for messages.
        state: of the population.
        before: `split_members(state)`.
        after: the same, with changes, but of the same structure, shapes, dtypes and epoch.
    """
    changed: dict[int, dict[int, Any]] = {}
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        if all(getattr(new, field) is getattr(old, field) for field in DEVICE_FIELDS):
            continue
        if new.epoch is not old.epoch:
            raise ValueError(f"hook {who!r} changed epoch, which fit alone counts")
        for place, leaf in _find_changes(who, number, old, new):
            changed.setdefault(place, {})[number] = leaf
    if not changed:
        return state
    leaves, structure = jax.tree.flatten(get_member_fields(state))
    for place, rows in changed.items():
        leaves[place] = _replace_rows(leaves[place], rows)
    fields = jax.tree.unflatten(structure, leaves)
    return state.replace(**{**fields, "carry": {**state.carry, **fields["carry"]}})


def _local(leaf: Any) -> Any:
    """Return another array object over the same buffer, or a copy of what several devices hold.

    A view keeps its array object alive, and while that lives training cannot donate the buffer.
    """
    if not isinstance(leaf, jax.Array):
        return leaf
    return leaf.addressable_data(0) if leaf.is_fully_replicated else np.asarray(leaf)


def _make_views(column: np.ndarray) -> list[np.ndarray]:
    column = column.view()
    column.flags.writeable = False
    return [column[number, ...] for number in range(len(column))]


def _find_changes(
    who: str, number: int, before: TrainState, after: TrainState
) -> list[tuple[int, Any]]:
    """Return position and value of the leaves that changed, after checking shapes and dtypes."""
    old, new = ({field: getattr(state, field) for field in MAPPED} for state in (before, after))
    pairs = list(zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=False))
    found = [(place, leaf) for place, (was, leaf) in enumerate(pairs) if leaf is not was]
    same_types = all(
        hasattr(leaf, "dtype") and (leaf.dtype, leaf.shape) == (was.dtype, was.shape)
        for was, leaf in pairs
        if leaf is not was
    )
    if not has_same_structure(old, new) or not same_types:
        raise ValueError(
            f"hook {who!r} must keep the structure, shapes and dtypes of the state, here of "
            f"member {number}:\n  " + "\n  ".join(list_differences(old, new))
        )
    return found


def _replace_rows(leaf: jax.Array, rows: dict[int, Any]) -> jax.Array:
    if is_key(leaf):
        keys = jnp.stack([rows.get(number, key) for number, key in enumerate(gather(leaf))])
        return keys if leaf.is_fully_addressable else _place_keys(keys, leaf)
    host = np.array(_local(gather(leaf)))
    for number, row in rows.items():
        host[number] = row
    return jax.device_put(host, leaf.sharding, may_alias=False)  # in a buffer to be donated


def _place_keys(keys: jax.Array, like: jax.Array) -> jax.Array:
    """Place keys that every process has as those of several processes lie."""
    data = np.asarray(jax.random.key_data(keys))
    placed = jax.device_put(data, jax.random.key_data(like).sharding)
    return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(like))


def copy_to_host(tree: PyTree) -> PyTree:
    """Copy the arrays of a tree to the host: a later step may overwrite what a view shows."""

    def copy(leaf: Any) -> Any:
        is_array = isinstance(leaf, jax.Array | np.ndarray) and not is_key(leaf)
        return np.array(leaf) if is_array else leaf

    return jax.tree.map(copy, tree)
