"""The position of a source: an entry of the state's carry that holds how far a phase has read."""

from __future__ import annotations

import jax

from trainer.checks.pytrees import list_differences
from trainer.data.source import POSITION
from trainer.state import PyTree, TrainState


def ensure_position(state: TrainState, phase: str, start: PyTree) -> TrainState:
    """Add the starting position of a phase's source to a state, if it is missing.

    Args:
        state: to add it to.
        phase: its name.
        start: the position at the beginning, of numpy arrays.

    Raises:
        TypeError: `state.carry` is no dict, so it cannot hold the position.
        ValueError: the position in the state belongs to another kind of stream.
    """
    name = POSITION + phase
    if not isinstance(state.carry, dict):
        raise TypeError(
            f"state.carry must be a dict, since phase {phase!r} keeps at {name!r} how far it has "
            f"read; got {type(state.carry).__name__}: make it a dict with named entries"
        )
    if name not in state.carry:
        return state.replace(carry={**state.carry, name: _put(start, state.step)})
    if lines := list_differences(start, state.carry[name]):
        raise ValueError(
            f"state.carry[{name!r}] must be as the stream of phase {phase!r} keeps it; got that of "
            "another stream:\n  "
            + "\n  ".join(lines)
            + "\ntrain with the original stream, or remove the entry from the carry, to read from "
            "the beginning"
        )
    return state


def get_position(state: TrainState, phase: str) -> PyTree:
    """Return the position of a phase, as numpy arrays.

    Raises:
        ValueError: the state has none.
    """
    name = POSITION + phase
    if not isinstance(state.carry, dict) or name not in state.carry:
        raise ValueError(
            f"phase {phase!r} needs state.carry[{name!r}], which says how far it has read; the "
            f"state has none: train with fit, or run on phase.add_position(state)"
        )
    return jax.device_get(state.carry[name])


def set_position(state: TrainState, phase: str, position: PyTree) -> TrainState:
    """Replace the position of a phase, on the same devices."""
    name = POSITION + phase
    old = jax.tree.leaves(state.carry[name])[0]
    return state.replace(carry={**state.carry, name: _put(position, old)})


def _put(position: PyTree, like: jax.Array) -> PyTree:
    """Put numpy arrays where another array is, in new buffers, since they will be donated."""
    return jax.device_put(position, like.sharding if like.committed else None, may_alias=False)
