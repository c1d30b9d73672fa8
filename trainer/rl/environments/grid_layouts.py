"""Layouts of the gridworld: how a level is drawn, and the kinds of its cells."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from trainer.rl.environments.grid_params import ROOMS, SIZE, GridworldParams, locked_doors

FLOOR, WALL, DOOR, LOCKED, KEY, GOAL = range(6)
"""Kinds of cells; an open door is floor."""
KINDS = 6
NOWHERE = -2
"""A coordinate outside of every area and its border, for a key that is not on the floor."""


class GridLayout(NamedTuple):
    """A level: rooms in a row along one axis, separated by walls across the area.

    Cells are (row, column), int32 `[2]`, from 0 to `size - 1`; the border is wall.
    """

    sideways: jax.Array
    """() bool: the rooms are in a column, one below another; else in a row."""
    walls: jax.Array
    """int32 `[3]`: position of each wall along that axis, in the order of the rooms."""
    doorways: jax.Array
    """int32 `[3]`: position of its doorway along the wall."""
    agent: jax.Array
    """The agent's first cell."""
    key: jax.Array
    """The key's cell, or `NOWHERE`."""
    goal: jax.Array
    """The goal's cell."""


def draw_layout(key: jax.Array, params: GridworldParams) -> GridLayout:
    """Draw a random level, whose goal can always be reached.

    Each wall has one doorway, nothing on the floor blocks the way, and the key is before the
    locked door. The agent begins in the first room, or in the second if it must fetch the key and
    that room is not the goal's.

    It costs one draw of random numbers and no array of cells: with `auto_reset` under `vmap` it is
    computed at every step of every environment.
    """
    size, last = params.size, params.rooms - 1
    chances = jax.random.uniform(key, (14,))

    def choose(count: jax.Array, chance: jax.Array) -> jax.Array:
        return jnp.floor(chance * count).astype(jnp.int32)

    def place(room: jax.Array, chances: jax.Array) -> jax.Array:
        begin, end = begins[room], ends[room]
        cell = jnp.stack([begin + choose(end - begin, chances[0]), choose(size, chances[1])])
        return jnp.where(mirrored, jnp.stack([size - 1 - cell[0], cell[1]]), cell)

    def apart(cell: jax.Array, other: jax.Array) -> jax.Array:
        """Move a cell by one, within its room, if it is the same as the other."""
        same = (cell == other).all()
        return cell.at[1].set(jnp.where(same, (cell[1] + 1) % size, cell[1]))

    sideways, mirrored = chances[12] < 0.5, chances[13] < 0.5
    exists = jnp.arange(ROOMS - 1) < last
    # Each room has two cells or more; sorted gaps distribute the cells that are left over.
    gaps = jnp.where(exists, choose(size - 3 * params.rooms + 2, chances[:3]), SIZE)
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
        doorways=choose(size, chances[3:6]),
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
    """Return the cell of each doorway, int32 `[3, 2]`; outside the area without its wall."""
    cells = jnp.stack([layout.walls, layout.doorways], axis=-1)
    return jnp.where(layout.sideways, cells, cells[:, ::-1])


def kinds_of(
    layout: GridLayout,
    opened: jax.Array,
    params: GridworldParams,
    rows: jax.Array,
    columns: jax.Array,
) -> jax.Array:
    """Return the kinds of cells of a level, int32, of the broadcast shape of rows and columns.

    Args:
        layout: the level; its `key` is the current one.
        opened: bool `[3]`: whether each doorway can be passed.
        params: of the gridworld.
        rows, columns: int32, also outside the area.
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
