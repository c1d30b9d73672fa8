"""The gridworld: its rules and its view, on a level laid out by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.rl.environments import gridworld, gridworld_levels
from trainer.rl.environments.grid_layouts import (
    DOOR,
    FLOOR,
    GOAL,
    KEY,
    LOCKED,
    NOWHERE,
    WALL,
    GridLayout,
)
from trainer.rl.environments.gridworld import AGENT, COLOURS, HOLDING, GridworldState

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ENV = gridworld("gauntlet")
PRNG = jax.random.key(0)
UP, RIGHT, DOWN, LEFT, INTERACT = range(5)
PARAMS = gridworld_levels()["key_behind_door"].replace(
    size=jnp.int32(8), rooms=jnp.int32(3), max_steps=jnp.int32(100)
)
step = jax.jit(chex.assert_max_traces(ENV.step, n=1))
render = jax.jit(ENV.render)

# Columns 0 to 7: the key's room, a wall with a door at row 1, the agent's room, a wall with a
# locked door at row 3, the goal's room; the rooms are rows 0 to 7.


def _state(*, agent, key=(1, 0), opened=(False, False, False), holding=False, time=0):
    layout = GridLayout(
        sideways=jnp.bool_(False),
        walls=jnp.array([2, 5, NOWHERE]),
        doorways=jnp.array([1, 3, 0]),
        agent=jnp.array(agent),
        key=jnp.array(key),
        goal=jnp.array((3, 7)),
    )
    return GridworldState(layout, jnp.array(opened), jnp.bool_(holding), jnp.int32(time))


def _act(state, *actions, params=PARAMS):
    for action in actions:
        taken = step(PRNG, state, jnp.int32(action), params)
        state = taken.state
    return taken


def _where(taken):
    return tuple(taken.state.layout.agent.tolist())


def _view(taken):
    assert taken.observation["view"].dtype == jnp.float32
    assert (taken.observation["view"].sum(axis=-1) == 1).all()
    return np.asarray(taken.observation["view"].argmax(axis=-1))


@pytest.mark.parametrize(
    ("agent", "action", "after"),
    [
        ((4, 3), UP, (3, 3)),
        ((4, 3), RIGHT, (4, 4)),
        ((4, 3), DOWN, (5, 3)),
        ((4, 3), LEFT, (4, 3)),  # a wall
        ((4, 3), INTERACT, (4, 3)),
        ((0, 3), UP, (0, 3)),  # the border
        ((7, 3), DOWN, (7, 3)),
        ((1, 3), LEFT, (1, 3)),  # a closed door
        ((3, 4), RIGHT, (3, 4)),  # a locked door
        ((1, 1), LEFT, (1, 0)),  # the key is no obstacle
    ],
)
def test_moves_and_obstacles(agent, action, after):
    taken = _act(_state(agent=agent), action)
    assert _where(taken) == after
    assert int(taken.state.time) == 1
    assert float(taken.reward) == 0
    assert not taken.terminated
    assert not taken.truncated


def test_a_door_opens_for_an_agent_beside_it():
    taken = _act(_state(agent=(1, 3)), INTERACT)
    assert taken.state.opened.tolist() == [True, False, False]
    assert _where(_act(taken.state, LEFT, LEFT)) == (1, 1)
    assert not _act(_state(agent=(2, 3)), INTERACT).state.opened.any()  # at a corner of it


def test_a_locked_door_opens_only_with_the_key():
    assert not _act(_state(agent=(3, 4)), INTERACT).state.opened.any()
    taken = _act(_state(agent=(3, 4), key=(NOWHERE, NOWHERE), holding=True), INTERACT)
    assert taken.state.opened.tolist() == [False, True, False]
    assert taken.state.holding
    assert _where(_act(taken.state, RIGHT)) == (3, 5)


@pytest.mark.parametrize(("agent", "taken"), [((1, 0), True), ((2, 0), True), ((2, 1), False)])
def test_the_key_is_taken_from_its_cell_or_beside_it(agent, taken):
    after = _act(_state(agent=agent), INTERACT)
    assert bool(after.state.holding) == taken
    assert after.observation["holding"].tolist() == [float(taken)]
    assert after.state.layout.key.tolist() == ([NOWHERE, NOWHERE] if taken else [1, 0])
    assert (KEY in _view(after)) != taken


def test_the_key_opens_no_lock_in_the_step_that_takes_it():
    # The key lies beside a cell from which the locked door can be reached as well.
    state = _state(agent=(3, 4), key=(3, 3))
    assert not _act(state, INTERACT).state.opened[1]
    assert _act(state, INTERACT, INTERACT).state.opened[1]


def test_the_whole_way_and_its_reward():
    # Door, key, back, lock, goal: 20 steps of 100, a reward of 1 - 0.9 * 0.2.
    way = [UP, INTERACT, LEFT, LEFT, LEFT, INTERACT, UP, DOWN]
    way += [RIGHT, RIGHT, RIGHT, DOWN, DOWN, RIGHT, INTERACT, RIGHT, RIGHT, UP, DOWN, RIGHT]
    assert len(way) == 20
    taken = _act(_state(agent=(2, 3)), *way[:-1])
    assert _where(taken) == (3, 6)
    assert not taken.terminated
    taken = _act(taken.state, way[-1])
    assert (bool(taken.terminated), bool(taken.truncated)) == (True, False)
    np.testing.assert_allclose(float(taken.reward), 0.82, rtol=1e-6)


def test_the_last_step_terminates_at_the_goal_and_truncates_elsewhere():
    taken = _act(_state(agent=(3, 6), time=99), RIGHT)
    assert (bool(taken.terminated), bool(taken.truncated)) == (True, False)
    np.testing.assert_allclose(float(taken.reward), 0.1, rtol=1e-5)
    taken = _act(_state(agent=(3, 6), time=99), INTERACT)
    assert (bool(taken.terminated), bool(taken.truncated)) == (False, True)
    assert float(taken.reward) == 0
    assert not _act(_state(agent=(3, 6), time=98), INTERACT).truncated


def test_the_view_shows_only_nearby_cells():
    f, w, d, x, k, g = FLOOR, WALL, DOOR, LOCKED, KEY, GOAL
    np.testing.assert_array_equal(
        _view(_act(_state(agent=(1, 2)), INTERACT)),
        [[w, w, w, w, w], [f, f, w, f, f], [k, f, f, f, f], [f, f, w, f, f], [f, f, w, f, f]],
    )
    np.testing.assert_array_equal(
        _view(_act(_state(agent=(2, 1)), LEFT)),
        [[w, w, f, f, w], [w, w, k, f, d], [w, w, f, f, w], [w, w, f, f, w], [w, w, f, f, w]],
    )
    np.testing.assert_array_equal(
        _view(_act(_state(agent=(2, 6)), DOWN)),
        [[f, w, f, f, w], [f, w, f, f, w], [f, x, f, g, w], [f, w, f, f, w], [f, w, f, f, w]],
    )
    far = gridworld_levels()["empty"].replace(size=jnp.int32(5))
    nothing = jnp.full(3, NOWHERE, jnp.int32)
    layout = _state(agent=(2, 2)).layout._replace(walls=nothing, key=nothing[:2])
    state = _state(agent=(2, 2))._replace(layout=layout)
    assert (_view(_act(state, INTERACT, params=far)) == FLOOR).all()


def test_rooms_from_top_to_bottom_are_the_transpose():
    state = _state(agent=(2, 3))
    layout = state.layout
    turned = state._replace(
        layout=layout._replace(
            sideways=jnp.bool_(True),
            agent=layout.agent[::-1],
            key=layout.key[::-1],
            goal=layout.goal[::-1],
        )
    )
    ways = {UP: LEFT, LEFT: UP, RIGHT: DOWN, DOWN: RIGHT, INTERACT: INTERACT}
    for action in (UP, INTERACT, LEFT, LEFT, LEFT, INTERACT, RIGHT, DOWN):
        plain, other = _act(state, action), _act(turned, ways[action])
        np.testing.assert_array_equal(_view(plain).T, _view(other))
        chex.assert_trees_all_equal(plain.state.opened, other.state.opened)
        assert _where(plain) == _where(other)[::-1]
        state, turned = plain.state, other.state


def test_levels_vmap_and_a_reset_observes_what_a_step_in_place_does():
    levels = gridworld_levels()
    stacked = jax.tree.map(lambda *leaves: jnp.repeat(jnp.stack(leaves), 20), *levels.values())
    keys = jax.random.split(PRNG, 140)
    states, before = jax.jit(jax.vmap(ENV.reset))(keys, stacked)
    assert before["view"].shape == (140, 5, 5, 6)
    holds = before["holding"].reshape(7, 20)
    assert [name for name, row in zip(levels, holds, strict=True) if row.all()] == ["unlock"]
    assert holds.sum() == 20
    steps = jax.jit(jax.vmap(ENV.step))(keys, states, jnp.full(140, UP), stacked)
    chex.assert_trees_all_equal_shapes_and_dtypes(states, steps.state)
    stayed = (steps.state.layout.agent == states.layout.agent).all(axis=1)
    assert stayed.sum() > 10  # at the upper border, or below a wall
    np.testing.assert_array_equal(before["view"][stayed], steps.observation["view"][stayed])


def test_the_picture_shows_the_cells_and_the_agent():
    picture = np.asarray(render(_state(agent=(4, 4)), PARAMS))
    assert (picture.shape, picture.dtype) == ((104, 104, 3), np.uint8)

    def corner(row, column):
        return picture[8 * (row + 1), 8 * (column + 1)].tolist()

    cells = {(4, 4): FLOOR, (0, 2): WALL, (1, 2): DOOR, (3, 5): LOCKED, (1, 0): KEY, (3, 7): GOAL}
    for cell, kind in cells.items():
        assert corner(*cell) == list(COLOURS[kind]), cell
    assert corner(-1, -1) == corner(8, 8) == corner(11, 11) == list(COLOURS[WALL])
    of_agent = (picture == np.array(AGENT)).all(axis=-1)
    assert of_agent.sum() == 36
    assert of_agent[41:47, 41:47].all()
    held = np.asarray(render(_state(agent=(4, 4), key=(-2, -2), holding=True), PARAMS))
    assert (held[43:45, 43:45] == HOLDING).all()
    assert not (picture[43:45, 43:45] == HOLDING).all()


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="level must be one of empty, two_rooms, .*; got 'maze'"):
        gridworld("maze")
    assert gridworld("key").params == gridworld_levels()["key"]
