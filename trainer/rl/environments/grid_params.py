"""Params of the gridworld: its levels, and which of them can be drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from trainer.rl.environments.ranges import Range, check_ranges
from trainer.state import PyTree

SIZE = 11
"""Side of the largest area, in cells."""
ROOMS = 4
"""Largest number of rooms."""

RANGES = {
    "size": Range(3, SIZE, "whole number"),
    "rooms": Range(1, ROOMS, "whole number"),
    "doors": Range(0, 1, "truth value"),
    "locked": Range(0, 1, "truth value"),
    "fetch": Range(0, 1, "truth value"),
    "max_steps": Range(1, 2**31 - 1, "whole number"),
}


@struct.dataclass
class GridworldParams:
    """Params of the gridworld; each field is an array `()`."""

    size: jax.Array
    """int32: side of the square area in cells, 3 to 11; a room takes two cells, a wall one."""
    rooms: jax.Array
    """int32: rooms in a row, 1 to 4, with a doorway in each wall between two; `3 * rooms - 1` is
    at most `size`."""
    doors: jax.Array
    """bool: the doorways have closed doors."""
    locked: jax.Array
    """bool: the door to the last room, the goal's, is locked; needs two rooms or more."""
    fetch: jax.Array
    """bool: the key is in the first room; else the agent holds it from the start."""
    max_steps: jax.Array
    """int32: steps after which the episode is cut off."""


def gridworld_levels() -> dict[str, GridworldParams]:
    """Return the named levels of the gridworld, from easy to hard.

    An agent that acts at random reaches the goal in half of the episodes of `empty`, in one of
    1,000 of `key_behind_door`, and practically never in `gauntlet`, where the key is behind a
    door at the agent's back and the goal behind two more, one of them locked.

    >>> list(gridworld_levels())
    ['empty', 'two_rooms', 'unlock', 'key', 'doors', 'key_behind_door', 'gauntlet']
    >>> int(gridworld_levels()["key"].rooms), bool(gridworld_levels()["key"].fetch)
    (2, True)
    """
    return {
        "empty": make_level(5, 1, max_steps=50),
        "two_rooms": make_level(7, 2, max_steps=100),
        "unlock": make_level(7, 2, locked=True, max_steps=100),
        "key": make_level(7, 2, locked=True, fetch=True, max_steps=150),
        "doors": make_level(8, 3, doors=True, max_steps=150),
        "key_behind_door": make_level(9, 3, doors=True, locked=True, fetch=True, max_steps=250),
        "gauntlet": make_level(11, 4, doors=True, locked=True, fetch=True, max_steps=350),
    }


def make_level(
    size: int,
    rooms: int,
    *,
    doors: bool = False,
    locked: bool = False,
    fetch: bool = False,
    max_steps: int,
) -> GridworldParams:
    """Return a level of these settings, unchecked."""
    return GridworldParams(
        size=jnp.int32(size),
        rooms=jnp.int32(rooms),
        doors=jnp.bool_(doors),
        locked=jnp.bool_(locked),
        fetch=jnp.bool_(fetch),
        max_steps=jnp.int32(max_steps),
    )


def check_params(params: PyTree) -> None:
    """Check that a level can be drawn with these params.

    Raises:
        TypeError: `params` are no `GridworldParams`.
        ValueError: a field is out of range, or two do not fit together; the error names them.
    """
    check_ranges("gridworld", GridworldParams, "gridworld_levels()", RANGES, params)
    size, rooms = int(params.size), int(params.rooms)
    outside = "outside the environment's range"
    if 3 * rooms - 1 > size:
        raise ValueError(
            f"gridworld: {rooms} rooms need a `size` of at least {3 * rooms - 1}; got {size}: "
            f"{outside}; raise `size` or lower `rooms`"
        )
    if params.locked and rooms < 2:
        raise ValueError(
            f"gridworld: `locked` needs a door, so at least 2 `rooms`; got {rooms}: {outside}; "
            f"raise `rooms`"
        )
    if params.fetch and not params.locked:
        raise ValueError(
            f"gridworld: `fetch` needs a door that the key opens; got `locked` False: {outside}; "
            f"set `locked`"
        )


def locked_doors(params: GridworldParams) -> jax.Array:
    """Return whether each doorway has a locked door, bool `[3]`."""
    return params.locked & (jnp.arange(ROOMS - 1) == params.rooms - 2)
