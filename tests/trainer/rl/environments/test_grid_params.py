"""Params of the gridworld: what is out of range is refused by name."""

import pytest

from trainer.rl.environments import gridworld, gridworld_levels
from trainer.rl.environments.grid_params import make_level

ENV = gridworld()
LEVELS = gridworld_levels()


def _params(size, rooms, doors, locked, fetch, max_steps=1000):
    return make_level(size, rooms, doors=doors, locked=locked, fetch=fetch, max_steps=max_steps)


@pytest.mark.parametrize("name", LEVELS)
def test_the_named_levels_are_valid(name):
    ENV.check(LEVELS[name])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (_params(12, 1, False, False, False), "`size` must be a whole number from 3 to 11; got 12"),
        (_params(5, 0, False, False, False), "`rooms` must be a whole number from 1 to 4; got 0"),
        (_params(5, 1, 2, False, False).replace(doors=2), "`doors` must be a truth value; got 2"),
        (_params(5, 1, False, False, False, 0), "`max_steps` must be a whole number from 1 to"),
        (_params(7, 3, False, False, False), "3 rooms need a `size` of at least 8; got 7"),
        (_params(7, 1, False, True, False), "`locked` needs a door, so at least 2 `rooms`; got 1"),
        (_params(7, 2, False, False, True), "`fetch` needs a door that the key opens"),
    ],
)
def test_params_out_of_range_are_refused_by_name(params, message):
    with pytest.raises(ValueError, match=f"gridworld: {message}.*outside the environment's range"):
        ENV.check(params)


def test_other_params_are_refused():
    with pytest.raises(TypeError, match="gridworld: params must be GridworldParams.*got dict"):
        ENV.check({"size": 5})
