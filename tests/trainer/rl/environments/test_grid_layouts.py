"""Layouts: every level can be solved, and has what its params say."""

import collections
import itertools

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
    draw_layout,
    kinds_of,
)
from trainer.rl.environments.grid_params import SIZE, make_level
from trainer.rl.environments.gridworld import INTERACT, MOVES

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ENV = gridworld()
LEVELS = gridworld_levels()


def _params(size, rooms, doors, locked, fetch, max_steps=1000):
    return make_level(size, rooms, doors=doors, locked=locked, fetch=fetch, max_steps=max_steps)


def _all_params():
    """Yield all valid params, apart from the step limit."""
    for size, rooms in itertools.product(range(3, SIZE + 1), range(1, 5)):
        if 3 * rooms - 1 > size:
            continue
        for doors in (False, True):
            yield _params(size, rooms, doors, False, False)
            if rooms > 1:
                yield _params(size, rooms, doors, True, False)
                yield _params(size, rooms, doors, True, True)


def _stack(all_params, repeats):
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *all_params)
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, repeats), stacked)


@jax.jit
@jax.vmap
def _begin(key, params):
    """Begin an episode; return it with the kinds of all cells, the border included."""
    state, _ = ENV.reset(key, params)
    cells = jnp.arange(-1, SIZE + 1)
    return state, kinds_of(state.layout, state.opened, params, cells[:, None], cells)


@jax.jit
@jax.vmap
def _run_plans(state, params, plan):
    """Act as planned (a negative action: no more); return the rewards and the ends."""

    def act(state, action):
        step = ENV.step(jax.random.key(0), state, jnp.maximum(action, 0), params)
        return step.state, (step.reward, step.terminated, step.truncated)

    return jax.lax.scan(act, state, plan)[1]


drawn = jax.jit(jax.vmap(draw_layout, in_axes=(0, None)))


def _plan(kinds, start, holding):
    """Search breadth-first for the fewest actions from `start` to the goal; None: there are none.

    It knows the rules, and the kinds of the level's cells with a border.
    """
    begin = (start, holding, frozenset())
    before = {begin: None}
    queue = collections.deque([begin])
    while queue:
        state = queue.popleft()
        (row, column), holding, changed = state
        if kinds[row, column] == GOAL:
            actions = []
            while before[state] is not None:
                state, action = before[state]
                actions.append(action)
            return actions[::-1]
        takes, opened = holding, changed
        for number, (down, right) in enumerate(MOVES):
            cell = (row + down, column + right)
            kind = FLOOR if cell in changed else kinds[cell]
            takes |= kind == KEY
            if kind == DOOR or (kind == LOCKED and holding):
                opened |= {cell}
            if number != INTERACT and kind not in (WALL, DOOR, LOCKED):
                after = (cell, holding, changed)
                if after not in before:
                    before[after] = (state, number)
                    queue.append(after)
        after = ((row, column), takes, opened)
        if after not in before:
            before[after] = (state, INTERACT)
            queue.append(after)
    return None


def _solve(all_params, repeats):
    """Solve levels for each params and run the solutions; return their lengths."""
    params = _stack(all_params, repeats)
    count = len(all_params) * repeats
    states, kinds = _begin(jax.random.split(jax.random.key(7), count), params)
    agents, holding = np.asarray(states.layout.agent) + 1, np.asarray(states.holding)
    plans = [
        _plan(grid, tuple(agent.tolist()), bool(holds))
        for grid, agent, holds in zip(np.asarray(kinds), agents, holding, strict=True)
    ]
    assert None not in plans
    lengths = np.array([len(plan) for plan in plans])
    padded = np.full((count, lengths.max()), -1, np.int32)
    for row, plan in zip(padded, plans, strict=True):
        row[: len(plan)] = plan
    last = (np.arange(count), lengths - 1)
    rewards, terminated, truncated = map(np.asarray, _run_plans(states, params, padded))
    assert terminated[last].all()
    assert not truncated[last].any()
    for index, length in enumerate(lengths):
        assert not terminated[index, : length - 1].any()
        assert not rewards[index, : length - 1].any()
    expected = 1 - 0.9 * lengths / np.asarray(params.max_steps)
    np.testing.assert_allclose(rewards[last], expected, rtol=1e-5)
    return lengths.reshape(len(all_params), repeats)


def test_many_levels_of_all_params_can_be_solved():
    all_params = list(_all_params())
    assert len(all_params) == 90
    _solve(all_params, 12)


def test_the_named_levels_allow_three_times_the_steps_needed():
    lengths = _solve(list(LEVELS.values()), 60)
    for name, needed in zip(LEVELS, lengths, strict=True):
        assert needed.max() <= int(LEVELS[name].max_steps) / 3, name
    # They are listed from easy to hard: the last takes the longest way by far.
    assert lengths[-1].mean() > 6 * lengths[0].mean()


def test_without_the_key_a_locked_goal_cannot_be_reached():
    params = _stack([LEVELS["gauntlet"], LEVELS["key"]], 20)
    states, kinds = _begin(jax.random.split(jax.random.key(3), 40), params)
    agents = np.asarray(states.layout.agent) + 1
    for grid, agent in zip(np.asarray(kinds), agents, strict=True):
        assert _plan(np.where(grid == KEY, FLOOR, grid), tuple(agent.tolist()), False) is None


@pytest.fixture(scope="module")
def many():
    """500 levels of `gauntlet`, and the kinds of their cells."""
    states, kinds = _begin(
        jax.random.split(jax.random.key(1), 500), _stack([LEVELS["gauntlet"]], 500)
    )
    return states, np.asarray(kinds)


def test_a_level_has_what_its_params_say(many):
    states, kinds = many
    assert (kinds[:, [0, -1]] == WALL).all()
    assert (kinds[:, :, [0, -1]] == WALL).all()
    for kind, count in ((KEY, 1), (GOAL, 1), (LOCKED, 1), (DOOR, 2)):
        assert ((kinds == kind).sum(axis=(1, 2)) == count).all()
    assert ((kinds[:, 1:-1, 1:-1] == WALL).sum(axis=(1, 2)) == 3 * (SIZE - 1)).all()
    begun = kinds[np.arange(500), *(np.asarray(states.layout.agent) + 1).T]
    assert (begun == FLOOR).all()


def test_levels_differ_in_all_directions(many):
    states, _ = many
    layout = states.layout
    first, last = layout.walls[:, 0], layout.walls[:, 2]
    for sideways, mirrored in itertools.product((False, True), repeat=2):
        share = ((layout.sideways == sideways) & ((first > last) == mirrored)).mean()
        assert 0.17 < share < 0.33
    codes = jnp.concatenate([layout.doorways, layout.agent, layout.goal, layout.key], axis=1)
    assert len({tuple(code) for code in codes.tolist()}) == 500
    assert set(np.unique(layout.doorways)) == set(range(SIZE))


def test_walls_leave_each_room_two_cells_in_every_possible_way():
    draws = drawn(jax.random.split(jax.random.key(2), 2000), _params(10, 3, False, False, False))
    walls = np.sort(np.asarray(draws.walls), axis=1)
    assert (walls[:, 0] == NOWHERE).all()
    # Two gaps of at most two cells, in order: the six pairs of walls that leave room for all.
    found = collections.Counter(map(tuple, walls[:, 1:].tolist()))
    assert set(found) == {(2, 5), (2, 6), (2, 7), (3, 6), (3, 7), (4, 7)}


def test_the_agent_begins_in_the_room_that_the_params_say():
    for name, room in (("doors", 0), ("key", 0), ("key_behind_door", 1), ("gauntlet", 1)):
        draws = drawn(jax.random.split(jax.random.key(4), 100), LEVELS[name])
        axis = np.where(draws.sideways, 0, 1)[:, None]
        along = np.take_along_axis(np.asarray(draws.agent), axis, axis=1)
        goal = np.take_along_axis(np.asarray(draws.goal), axis, axis=1)
        walls = np.asarray(draws.walls)
        # Walls between the agent and the goal: all but those behind its back.
        between = (walls - along) * (walls - goal) < 0
        assert (between[walls != NOWHERE].reshape(100, -1).sum(axis=1)).tolist() == [
            int(LEVELS[name].rooms) - 1 - room
        ] * 100
