"""The structure and buffers of a state: what a phase must keep, and which arrays it may donate."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trainer.checks.pytrees import has_same_structure, list_differences, map_key_data
from trainer.state import DEVICE_FIELDS, TrainState, attach_host_fields, strip_host_fields


def check_structure(before: TrainState, after: Any, who: str) -> TrainState:
    """Check, while tracing, that a phase kept the state's structure; strip weak types.

    Raises:
        TypeError: the result is not a state.
        ValueError: a leaf changed its shape or dtype; all are listed.
    """
    if not isinstance(after, TrainState):
        raise TypeError(f"{who} must return a TrainState first; got {type(after).__name__}")
    after = strip_host_fields(after)
    if lines := list_differences(before, after):
        raise ValueError(
            f"{who} must keep the structure, shapes and dtypes of the state:\n  "
            + "\n  ".join(lines)
        )
    return jax.tree.map(_strong, after)


def _strong(leaf: jax.Array) -> jax.Array:
    weak = jnp.issubdtype(leaf.dtype, np.number) and getattr(leaf, "weak_type", False)
    return lax.convert_element_type(leaf, leaf.dtype) if weak else leaf


def copy_state(state: TrainState) -> TrainState:
    """Copy every leaf of the device part, so that donating it leaves the caller's arrays alone.

    The leaves become those of `make_arrays`.
    """
    return copy_shared_leaves(make_arrays(state), state)


def make_arrays(state: TrainState) -> TrainState:
    """Make all leaves of the device part strongly typed jax arrays; those that are one stay.

    Python numbers, numpy arrays and weakly typed ones are copied. `stop`, an array after jit or
    vmap, becomes a bool again.
    """
    host = state if type(state.stop) is bool else state.replace(stop=bool(state.stop))

    def make_array(leaf: Any) -> jax.Array:
        if not isinstance(leaf, jax.Array):
            return _strong(jnp.array(leaf))
        return _strong(_copy(leaf)) if getattr(leaf, "weak_type", False) else leaf

    return attach_host_fields(jax.tree.map(make_array, strip_host_fields(state)), host)


def copy_shared_leaves(
    state: TrainState, given: TrainState, passed: Sequence[bool] | None = None
) -> TrainState:
    """Copy the leaves of the device part that are arrays of another state, `given`.

    Those that are `passed` through, of all leaves, are left: nothing donates them.
    """
    theirs = set(map(id, jax.tree.leaves(given)))
    leaves, structure = jax.tree.flatten(strip_host_fields(state))
    for place, leaf in enumerate(leaves):
        if id(leaf) in theirs and not (passed and passed[place]):
            leaves[place] = _copy(leaf)
    return attach_host_fields(jax.tree.unflatten(structure, leaves), state)


def _copy(leaf: jax.Array) -> jax.Array:
    """Copy a leaf to where it lies; `jnp.copy` would compile, 5 to 20 ms for each shape."""
    if not leaf.is_fully_addressable:
        return jnp.array(leaf)
    return map_key_data(lambda leaves: jax.device_put(leaves[0], may_alias=False), [leaf])


def conform_state(template: TrainState, state: TrainState) -> TrainState:
    """Restore the weak types and shardings of the device part that compiled phases expect.

    Structure, shapes and dtypes must agree already.
    """

    def conform(wanted: jax.Array, leaf: Any) -> jax.Array:
        if leaf is wanted:
            return leaf
        if not isinstance(leaf, jax.Array):
            leaf = jnp.array(leaf, wanted.dtype)  # what is not donated must not share memory
        leaf = _strong(leaf)
        if leaf.sharding != wanted.sharding:
            leaf = jax.device_put(leaf, wanted.sharding)
        return leaf

    return attach_host_fields(
        jax.tree.map(conform, strip_host_fields(template), strip_host_fields(state)), state
    )


def has_same_arrays(before: TrainState, after: TrainState) -> bool:
    """Return whether the device parts of two states hold the very same leaf objects."""
    for field in DEVICE_FIELDS:
        old, new = getattr(before, field), getattr(after, field)
        if old is new:
            continue
        if not has_same_structure(old, new):
            return False
        if not all(map(operator.is_, jax.tree.leaves(old), jax.tree.leaves(new))):
            return False
    return True


def get_buffer_addresses(leaf: Any) -> tuple[int, ...]:
    """Return the addresses of a jax array's buffers; none for other objects.

    Two array objects may be views of one buffer, so comparing objects is not enough.
    """
    if not hasattr(leaf, "unsafe_buffer_pointer") or leaf.size == 0:
        return ()
    if len(leaf.sharding.device_set) == 1:
        return (leaf.unsafe_buffer_pointer(),)
    return tuple(shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards)


def unshare_buffers(state: TrainState, before: TrainState | None = None) -> TrainState:
    """Copy leaves so that none of the device part shares a buffer with another or a hook state.

    Donating a buffer twice crashes, and hook states must outlive the arrays that training donates.
    What lies where it lay in the state `before` keeps its buffer: it may be the caller's, passed
    through. Returns the same state if nothing is shared.
    """
    leaves, structure = jax.tree.flatten((strip_host_fields(state), state.hook_state))
    earlier = [] if before is None else jax.tree.leaves(strip_host_fields(before))
    stayed = [leaf is old for leaf, old in zip(leaves, earlier, strict=False)]
    stayed += [False] * (len(leaves) - len(stayed))
    seen: set[int] = set()
    shares = False
    for place in sorted(range(len(leaves)), key=stayed.__getitem__, reverse=True):
        addresses = get_buffer_addresses(leaves[place])
        if seen.isdisjoint(addresses):
            seen.update(addresses)
        else:
            leaves[place], shares = jnp.copy(leaves[place]), True
    if not shares:
        return state
    device, hook_state = jax.tree.unflatten(structure, leaves)
    return attach_host_fields(device, state.replace(hook_state=hook_state))
