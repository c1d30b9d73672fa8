"""The structure and buffers of a state: what a phase must keep, and which arrays it may donate."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trainer.checks.pytrees import list_differences
from trainer.state import TrainState, attach_host_fields, strip_host_fields


def check_structure(before: TrainState, after: Any, who: str) -> TrainState:
    """Check, while tracing, that a phase kept the state's structure; strip weak types.

    Raises:
        TypeError: what came back is no state.
        ValueError: a leaf changed its shape or dtype; all are listed.
    """
    if not isinstance(after, TrainState):
        raise TypeError(f"{who} must give back a TrainState first; got {type(after).__name__}")
    after = strip_host_fields(after)
    if lines := list_differences(before, after):
        raise ValueError(
            f"{who} must keep the structure, shapes and dtypes of the state:\n  "
            + "\n  ".join(lines)
        )
    return jax.tree.map(_strong, after)


def _strong(leaf: jax.Array) -> jax.Array:
    return (
        lax.convert_element_type(leaf, leaf.dtype)
        if jnp.issubdtype(leaf.dtype, np.number) and getattr(leaf, "weak_type", False)
        else leaf
    )


def copy_state(state: TrainState) -> TrainState:
    """Copy every leaf of the device part, so that donating it touches nobody else's arrays.

    Python numbers and numpy arrays become strongly typed jax arrays, and `stop`, of which jit and
    vmap make an array, a bool again.
    """
    host = state if type(state.stop) is bool else state.replace(stop=bool(state.stop))
    return attach_host_fields(jax.tree.map(_copy, strip_host_fields(state)), host)


def _copy(leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array):
        return _strong(jnp.copy(leaf))
    return _strong(jnp.asarray(leaf))


def conform_state(template: TrainState, state: TrainState) -> TrainState:
    """Give changed leaves of the device part the weak type and sharding that programs expect.

    Structure, shapes and dtypes must agree already.
    """

    def conform(wanted: jax.Array, leaf: Any) -> jax.Array:
        if leaf is wanted:
            return leaf
        if not isinstance(leaf, jax.Array):
            leaf = jnp.asarray(leaf, wanted.dtype)
        if getattr(leaf, "weak_type", False):  # keys have none
            leaf = _strong(leaf)
        if leaf.sharding != wanted.sharding:
            leaf = jax.device_put(leaf, wanted.sharding)
        return leaf

    return attach_host_fields(
        jax.tree.map(conform, strip_host_fields(template), strip_host_fields(state)), state
    )


def get_buffer_addresses(leaf: Any) -> tuple[int, ...]:
    """Give the addresses of a jax array's buffers; none for anything else.

    Two array objects may be views of one buffer, so identity of objects says nothing.
    """
    if not hasattr(leaf, "unsafe_buffer_pointer") or leaf.size == 0:
        return ()
    if len(leaf.sharding.device_set) == 1:
        return (leaf.unsafe_buffer_pointer(),)
    return tuple(shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards)


def unshare_buffers(state: TrainState) -> TrainState:
    """Copy leaves so that no two of the device part share a buffer, nor one with a memory.

    Donating one buffer twice crashes, and a memory must outlive the arrays that training donates.
    The very same state comes back where nothing is shared.
    """
    leaves, structure = jax.tree.flatten((strip_host_fields(state), state.hook_state))
    seen: set[int] = set()
    shared = []
    for place, leaf in enumerate(leaves):
        addresses = get_buffer_addresses(leaf)
        if seen.isdisjoint(addresses):
            seen.update(addresses)
        else:
            shared.append(place)
    if not shared:
        return state
    for place in shared:
        leaves[place] = jnp.copy(leaves[place])
    device, memory = jax.tree.unflatten(structure, leaves)
    return attach_host_fields(device, state.replace(hook_state=memory))
