"""Layouts of the gridworld: its lessons, how a level is drawn at random, and what its cells are."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from trainer.rl.environments.ranges import Range, check_ranges
from trainer.state import PyTree

SIZE = 11
"""Side of the largest area, in cells."""
ROOMS = 4
"""How many rooms there are at most."""
FLOOR, WALL, DOOR, LOCKED, KEY, GOAL = range(6)
"""Kinds of cells; an open door is floor."""
KINDS = 6
NOWHERE = -2
"""A coordinate outside of every area and its border: of a key that is not on the floor."""

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
    """A lesson of the gridworld; each field is an array `()`."""

    size: jax.Array
    """int32, side of the square area in cells, 3 to 11; a room takes two cells, a wall one."""
    rooms: jax.Array
    """int32, rooms in a row, 1 to 4, with a doorway in each wall between two; `3 * rooms - 1` is
    at most `size`."""
    doors: jax.Array
    """bool, closed doors stand in the doorways."""
    locked: jax.Array
    """bool, the door to the last room, the goal's, is locked; needs two rooms or more."""
    fetch: jax.Array
    """bool, the key lies in the first room; else the agent holds it from the start."""
    max_steps: jax.Array
    """int32, steps after which the episode is cut off."""


class GridLayout(NamedTuple):
    """A level: rooms in a row along one axis, between walls that reach from side to side.

    Cells are (row, column), int32 `[2]`, from 0 to `size - 1`; all around is wall.
    """

    sideways: jax.Array
    """() bool, the rooms follow one another from row to row; else from column to column."""
    walls: jax.Array
    """[3] int32, where each wall stands along that axis, in the order of the rooms."""
    doorways: jax.Array
    """[3] int32, where its doorway is along the wall."""
    agent: jax.Array
    """The cell where it begins."""
    key: jax.Array
    """The key's cell, or `NOWHERE`."""
    goal: jax.Array
    """The goal's cell."""


def gridworld_levels() -> dict[str, GridworldParams]:
    """Give the named lessons of the gridworld, from easy to hard.

    An agent that acts at random reaches the goal in half of the episodes of `empty`, in one of
    1,000 of `key_behind_door`, and practically never in `gauntlet`, where the key lies behind a
    door at the agent's back and the goal behind two more, one of them locked.

    >>> list(gridworld_levels())
    ['empty', 'two_rooms', 'unlock', 'key', 'doors', 'key_behind_door', 'gauntlet']
    >>> int(gridworld_levels()["key"].rooms), bool(gridworld_levels()["key"].fetch)
    (2, True)
    """
    return {
        "empty": _level(5, 1, max_steps=50),
        "two_rooms": _level(7, 2, max_steps=100),
        "unlock": _level(7, 2, locked=True, max_steps=100),
        "key": _level(7, 2, locked=True, fetch=True, max_steps=150),
        "doors": _level(8, 3, doors=True, max_steps=150),
        "key_behind_door": _level(9, 3, doors=True, locked=True, fetch=True, max_steps=250),
        "gauntlet": _level(11, 4, doors=True, locked=True, fetch=True, max_steps=350),
    }


def _level(
    size: int,
    rooms: int,
    *,
    doors: bool = False,
    locked: bool = False,
    fetch: bool = False,
    max_steps: int,
) -> GridworldParams:
    return GridworldParams(
        size=jnp.int32(size),
        rooms=jnp.int32(rooms),
        doors=jnp.bool_(doors),
        locked=jnp.bool_(locked),
        fetch=jnp.bool_(fetch),
        max_steps=jnp.int32(max_steps),
    )


def check_lesson(params: PyTree) -> None:
    """Raise unless a level can be drawn for each episode of this lesson.

    Raises:
        TypeError: `params` are no `GridworldParams`.
        ValueError: a field is out of range, or two do not go together; they are named.
    """
    if not isinstance(params, GridworldParams):
        raise TypeError(
            f"gridworld: params must be GridworldParams, as `gridworld_levels()` gives them; got "
            f"{type(params).__name__}"
        )
    check_ranges("gridworld", params, RANGES)
    size, rooms = int(params.size), int(params.rooms)
    outside = "a lesson outside the environment's range"
    if 3 * rooms - 1 > size:
        raise ValueError(
            f"gridworld: {rooms} rooms need a `size` of at least {3 * rooms - 1}; got {size}, "
            f"{outside}; raise `size` or lower `rooms`"
        )
    if params.locked and rooms < 2:
        raise ValueError(
            f"gridworld: `locked` needs a door, so at least 2 `rooms`; got {rooms}, {outside}; "
            f"raise `rooms`"
        )
    if params.fetch and not params.locked:
        raise ValueError(
            f"gridworld: `fetch` needs a door that the key opens; got `locked` False, {outside}; "
            f"set `locked`"
        )


def draw_layout(key: jax.Array, params: GridworldParams) -> GridLayout:
    """Draw a level at random; the goal can be reached in each.

    Each wall has one doorway, nothing on the floor bars the way, and the key lies before the
    locked door. The agent begins in the first room, or in the second where it must fetch the key
    and that is not the goal's.

    It costs one draw of random numbers and no array of cells, for with `auto_reset` under `vmap`
    it is computed at every step of every environment.
    """
    size, last = params.size, params.rooms - 1
    chances = jax.random.uniform(key, (14,))

    def among(count: jax.Array, chance: jax.Array) -> jax.Array:
        return jnp.floor(chance * count).astype(jnp.int32)

    def place(room: jax.Array, chances: jax.Array) -> jax.Array:
        begin, end = begins[room], ends[room]
        cell = jnp.stack([begin + among(end - begin, chances[0]), among(size, chances[1])])
        return jnp.where(mirrored, jnp.stack([size - 1 - cell[0], cell[1]]), cell)

    def apart(cell: jax.Array, other: jax.Array) -> jax.Array:
        """Move a cell that is the other one by one, within its room."""
        same = (cell == other).all()
        return cell.at[1].set(jnp.where(same, (cell[1] + 1) % size, cell[1]))

    sideways, mirrored = chances[12] < 0.5, chances[13] < 0.5
    exists = jnp.arange(ROOMS - 1) < last
    # Each room has two cells or more; what is left over is dealt out by sorted gaps.
    gaps = jnp.where(exists, among(size - 3 * params.rooms + 2, chances[:3]), SIZE)
    stands = jnp.where(exists, _sorted(gaps) + jnp.array([2, 5, 8]), size)
    begins = jnp.concatenate([jnp.zeros(1, jnp.int32), stands + 1])
    ends = jnp.concatenate([stands, size[None]])
    first = jnp.where(params.fetch & (last > 1), 1, 0)
    agent = place(first, chances[6:8])
    goal = apart(place(last, chances[8:10]), agent)
    fetched = apart(place(jnp.int32(0), chances[10:12]), agent)
    cells = jnp.stack([agent, fetched, goal])
    cells = jnp.where(sideways, cells, cells[:, ::-1])
    return GridLayout(
        sideways=sideways,
        walls=jnp.where(exists, jnp.where(mirrored, size - 1 - stands, stands), NOWHERE),
        doorways=among(size, chances[3:6]),
        agent=cells[0],
        key=jnp.where(params.fetch, cells[1], NOWHERE),
        goal=cells[2],
    )


def _sorted(three: jax.Array) -> jax.Array:
    """Sort three numbers; under `vmap` on CPU cheaper than `jnp.sort`."""
    a, b, c = three
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    return jnp.stack([jnp.minimum(low, c), jnp.clip(c, low, high), jnp.maximum(high, c)])


def doorway_cells(layout: GridLayout) -> jax.Array:
    """Give the cell of each doorway, int32 `[3, 2]`; of a wall that is not there, one outside."""
    return jnp.where(
        layout.sideways,
        jnp.stack([layout.walls, layout.doorways], axis=-1),
        jnp.stack([layout.doorways, layout.walls], axis=-1),
    )


def kinds_of(
    layout: GridLayout,
    opened: jax.Array,
    params: GridworldParams,
    rows: jax.Array,
    columns: jax.Array,
) -> jax.Array:
    """Say what is in cells of a level.

    Args:
        layout: the level; its `key` is where the key is now.
        opened: bool `[3]`, whether a doorway can be passed.
        params: the lesson.
        rows: int32, of any shape, also outside the area.
        columns: int32, the same or a shape that broadcasts with it.

    Returns:
        Kinds, int32, of the broadcast shape.
    """
    rows, columns = jnp.broadcast_arrays(rows, columns)
    along = jnp.where(layout.sideways, rows, columns)[..., None]
    across = jnp.where(layout.sideways, columns, rows)[..., None]
    closed = jnp.where(locked_doors(params), LOCKED, DOOR)
    passed = jnp.where(opened, FLOOR, closed)
    walls, doorways, passed = (
        jnp.expand_dims(each, tuple(range(rows.ndim)))
        for each in (layout.walls, layout.doorways, passed)
    )
    barriers = jnp.where(across == doorways, passed, jnp.int32(WALL))
    kinds = jnp.where(along == walls, barriers, FLOOR).max(axis=-1)
    for kind, cell in ((KEY, layout.key), (GOAL, layout.goal)):
        kinds = jnp.where((rows == cell[0]) & (columns == cell[1]), kind, kinds)
    outside = (rows < 0) | (columns < 0) | (rows >= params.size) | (columns >= params.size)
    return jnp.where(outside, WALL, kinds)


def locked_doors(params: GridworldParams) -> jax.Array:
    """Say of each doorway whether its door, while closed, takes the key: bool `[3]`."""
    return params.locked & (jnp.arange(ROOMS - 1) == params.rooms - 2)
