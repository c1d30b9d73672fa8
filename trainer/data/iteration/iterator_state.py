"""How far a phase has read: an entry of the state's carry, where the epoch alone does not tell."""

from __future__ import annotations

import jax

from trainer.checks.pytrees import list_differences
from trainer.data.source import POSITION
from trainer.state import PyTree, TrainState


def ensure_position(state: TrainState, phase: str, start: PyTree) -> TrainState:
    """Add the position of a phase at which its source begins, where it is missing.

    Args:
        state: to add it to.
        phase: its name.
        start: the position at the beginning, of numpy arrays.

    Raises:
        TypeError: `state.carry` is no dict, which could hold the position.
        ValueError: the position that is there belongs to another kind of stream.
    """
    name = POSITION + phase
    if not isinstance(state.carry, dict):
        raise TypeError(
            f"state.carry must be a dict, since phase {phase!r} keeps at {name!r} how far it has "
            f"read; got {type(state.carry).__name__}: make it a dict that names what it holds"
        )
    if name not in state.carry:
        return state.replace(carry={**state.carry, name: _placed(start, state.step)})
    if lines := list_differences(start, state.carry[name]):
        raise ValueError(
            f"state.carry[{name!r}] must be as the stream of phase {phase!r} keeps it; got that of "
            "another stream:\n  "
            + "\n  ".join(lines)
            + "\ntrain with the stream that it was made with, or take it out of the carry, to read "
            "from the beginning"
        )
    return state


def get_position(state: TrainState, phase: str) -> PyTree:
    """Give the position of a phase, as numpy arrays.

    Raises:
        ValueError: the state has none.
    """
    name = POSITION + phase
    if not isinstance(state.carry, dict) or name not in state.carry:
        raise ValueError(
            f"phase {phase!r} needs state.carry[{name!r}], which says how far it has read; the "
            f"state has none: train with fit, or run on phase.prepared(state)"
        )
    return jax.device_get(state.carry[name])


def set_position(state: TrainState, phase: str, position: PyTree) -> TrainState:
    """Put a position in the place of the old one, on the same devices."""
    name = POSITION + phase
    old = jax.tree.leaves(state.carry[name])[0]
    return state.replace(carry={**state.carry, name: _placed(position, old)})


def _placed(position: PyTree, like: jax.Array) -> PyTree:
    """Put numpy arrays where another array is, in buffers of their own: they will be donated."""
    return jax.device_put(position, like.sharding if like.committed else None, may_alias=False)
