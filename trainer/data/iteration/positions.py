"""How far a phase has read its source: a place in a pass, kept in the state's carry."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import jax
import numpy as np

from trainer.checks.pytrees import list_differences
from trainer.data.iteration.mixture_sources import describe_source_changes, have_other_sources
from trainer.data.source import POSITION
from trainer.state import PyTree, TrainState

log = logging.getLogger("entracte")

Place = tuple[int, int]
"""The number of a pass, and the number of whole batches read of it."""

Position = dict[str, np.ndarray]
"""`place`, int32 `[2]`: see `Place`. `batch_size`, int32 `()`, of these batches. For data read by
index also `content`, uint32 `[2]`: its hash. For a stream's iterator with a state also `iterator`,
uint8 `[room]`: that of this pass."""


def make_position(place: Place, batch_size: int) -> Position:
    """Return a place and the size of its batches as arrays for the state."""
    return {"place": np.array(place, np.int32), "batch_size": np.array(batch_size, np.int32)}


def read_place(position: Mapping[str, np.ndarray], batch_size: int, note: str = "") -> Place:
    """Read the place of a position, in batches of this size.

    If the position counts batches of another size, it is converted. No example is skipped. Where
    the new size does not divide the number of examples read, those of the unfinished batch repeat.
    A warning reports both, and ends with the note.

    >>> position = make_position((2, 6), batch_size=8)
    >>> read_place(position, batch_size=8), read_place(position, batch_size=16)
    ((2, 6), (2, 3))
    """
    number, read = position["place"].tolist()
    before = int(position["batch_size"])
    if before == batch_size:
        return number, read
    examples = read * before
    again = examples % batch_size
    log.warning(
        "the run had batches of %d examples, and resumes with %d: %d examples of pass %d were "
        "read%s%s",
        before,
        batch_size,
        examples,
        number + 1,
        f", of which {again} repeat" if again else "",
        note,
    )
    return number, examples // batch_size


def advance_place(place: Place, batches: int, whole: int) -> Place:
    """Return the place a number of batches later, with `whole` batches per pass.

    >>> advance_place((0, 5), 4, whole=7), advance_place((0, 7), 0, whole=7)
    ((1, 2), (1, 0))
    """
    number, read = place
    return divmod(number * whole + read + batches, whole)


def ensure_position(state: TrainState, phase: str, start: PyTree) -> TrainState:
    """Add the starting position of a phase's source to a state, if it is missing.

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
    if have_other_sources(saved := state.carry[name], start):
        changes = describe_source_changes(saved["sources"], start["sources"])
        raise ValueError(f"the mixture of phase {phase!r} at state.carry[{name!r}]: {changes}")
    if lines := list_differences(start, saved):
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
