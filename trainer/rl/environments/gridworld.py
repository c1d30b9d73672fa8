"""The gridworld: reach a goal through rooms, doors and a lock, seeing only nearby cells."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from trainer.checks.suggestions import suggest_name
from trainer.rl.environments.environment import Box, Discrete, Environment, TimeStep
from trainer.rl.environments.grid_layouts import (
    DOOR,
    KINDS,
    LOCKED,
    NOWHERE,
    WALL,
    GridLayout,
    doorway_cells,
    draw_layout,
    kinds_of,
)
from trainer.rl.environments.grid_params import (
    SIZE,
    GridworldParams,
    check_params,
    gridworld_levels,
    locked_doors,
)

VIEW = 5
"""Side of the agent's view, in cells; the agent is in the middle."""
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0))
"""Change of row and column by each action: up, right, down, left; then `interact`."""
INTERACT = 4
PIXELS = 8
"""Side of a cell in pictures."""
COLOURS = (
    (235, 235, 225),  # floor
    (60, 60, 70),  # wall
    (150, 100, 60),  # door
    (200, 60, 50),  # locked door
    (235, 180, 40),  # key
    (70, 170, 90),  # goal
)
AGENT, HOLDING = (50, 90, 200), (235, 180, 40)


class GridworldState(NamedTuple):
    """A level, and what has changed in it."""

    layout: GridLayout
    """The level; its `agent` and its `key` are the current ones."""
    opened: jax.Array
    """bool `[3]`: whether each doorway can be passed."""
    holding: jax.Array
    """() bool: the agent holds the key."""
    time: jax.Array
    """() int32: steps since the episode began."""


def gridworld(level: str = "empty") -> Environment:
    """Build the gridworld: a random level for each episode, of which the agent sees little.

    Up to four rooms are in a row, horizontal or vertical, in either direction. The goal is in the
    last room. The params set the size of the area, the number of rooms, whether there are doors
    between them, whether the last door is locked, and whether the agent must fetch the key; see
    `GridworldParams`. All levels share one compiled function.

    Five actions: up, right, down, left, and `interact`, which takes a key and opens doors in the
    agent's cell and the four around it; a locked door only if the agent already holds the key. The
    episode terminates at the goal with a reward of 1 minus 0.9 times the share of `max_steps` that
    it took; every other step has a reward of 0. So a return is 0, or from 0.1 to 1.

    Args:
        level: a name of `gridworld_levels()`, for `params`.

    Returns:
        An environment with observations `{"view": float32 [5, 5, 6], "holding": float32 [1]}`:
        the cells around the agent, also behind walls, one-hot (floor, wall, door, locked door,
        key, goal), and 1 if it holds the key. Images are `[104, 104, 3]`.

    Raises:
        ValueError: there is no such level.

    >>> env = gridworld("key")
    >>> state, observation = env.reset(jax.random.key(0), env.params)
    >>> step = env.step(jax.random.key(1), state, jnp.int32(INTERACT), env.params)
    >>> step.observation["view"].shape, float(step.reward)
    ((5, 5, 6), 0.0)
    """
    levels = gridworld_levels()
    if level not in levels:
        raise ValueError(
            f"gridworld: level must be one of {', '.join(levels)}; got {level!r}."
            f"{suggest_name(level, levels)}"
        )
    return Environment(
        name="gridworld",
        reset=_reset,
        step=_step,
        observation_space={
            "view": Box((VIEW, VIEW, KINDS), 0.0, 1.0),
            "holding": Box((1,), 0.0, 1.0),
        },
        action_space=Discrete(len(MOVES)),
        params=levels[level],
        check=check_params,
        render=_render,
    )


def _reset(key: jax.Array, params: GridworldParams) -> tuple[GridworldState, dict[str, jax.Array]]:
    locked = locked_doors(params)
    state = GridworldState(
        layout=draw_layout(key, params),
        opened=~(params.doors | locked),
        holding=params.locked & ~params.fetch,
        time=jnp.int32(0),
    )
    return state, _observe(state, params)


def _step(
    key: jax.Array, state: GridworldState, action: jax.Array, params: GridworldParams
) -> TimeStep:
    layout, time = state.layout, state.time + 1
    wanted = layout.agent + jnp.array(MOVES)[action]
    kind = kinds_of(layout, state.opened, params, wanted[0], wanted[1])
    barred = (kind == WALL) | (kind == DOOR) | (kind == LOCKED)
    agent = jnp.where(barred, layout.agent, wanted)

    interacts = action == INTERACT
    takes = interacts & _within_reach(agent, layout.key)
    opens = interacts & _within_reach(agent, doorway_cells(layout))
    after = GridworldState(
        layout=layout._replace(agent=agent, key=jnp.where(takes, NOWHERE, layout.key)),
        opened=state.opened | (opens & (state.holding | ~locked_doors(params))),
        holding=state.holding | takes,
        time=time,
    )
    terminated = (agent == layout.goal).all()
    return TimeStep(
        state=after,
        observation=_observe(after, params),
        reward=jnp.where(terminated, 1 - 0.9 * time / params.max_steps, 0).astype(jnp.float32),
        terminated=terminated,
        truncated=(time >= params.max_steps) & ~terminated,
    )


def _within_reach(agent: jax.Array, cells: jax.Array) -> jax.Array:
    """Return whether cells `[..., 2]` are the agent's own or one of the four around it."""
    return jnp.abs(cells - jnp.expand_dims(agent, tuple(range(cells.ndim - 1)))).sum(axis=-1) <= 1


def _observe(state: GridworldState, params: GridworldParams) -> dict[str, jax.Array]:
    row, column = state.layout.agent
    offsets = jnp.arange(VIEW) - VIEW // 2
    kinds = kinds_of(
        state.layout, state.opened, params, row + offsets[:, None], column + offsets[None]
    )
    return {
        "view": jax.nn.one_hot(kinds, KINDS, dtype=jnp.float32),
        "holding": state.holding.astype(jnp.float32)[None],
    }


def _render(state: GridworldState, params: GridworldParams) -> jax.Array:
    """Draw the level and its border; an agent that holds the key has the key's colour inside."""
    row, column = state.layout.agent
    cells = jnp.arange(-1, SIZE + 1)
    kinds = kinds_of(state.layout, state.opened, params, cells[:, None], cells[None])
    picture = jnp.array(COLOURS, jnp.uint8)[kinds]
    picture = jnp.repeat(jnp.repeat(picture, PIXELS, axis=0), PIXELS, axis=1)

    middle = (PIXELS - 1) / 2
    pixels = jnp.arange(PIXELS * (SIZE + 2))
    down = jnp.abs(pixels - PIXELS * (row + 1) - middle)[:, None]
    right = jnp.abs(pixels - PIXELS * (column + 1) - middle)[None]
    distance = jnp.maximum(down, right)[:, :, None]  # from the middle of the agent's cell
    picture = jnp.where(distance < 3, jnp.array(AGENT, jnp.uint8)[None, None], picture)
    held = jnp.array(HOLDING, jnp.uint8)[None, None]
    return jnp.where((distance < 1) & state.holding, held, picture)
