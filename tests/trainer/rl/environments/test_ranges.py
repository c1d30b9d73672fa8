"""Ranges: a value out of range is named, with the range and the value."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest

from trainer.rl.environments.ranges import Range, check_ranges

RANGES = {
    "speed": Range(0.5, 2),
    "rooms": Range(1, 4, "whole number"),
    "locked": Range(0, 1, "truth value"),
}


@dataclasses.dataclass
class Params:
    speed: object = 1.0
    rooms: object = 2
    locked: object = False


@pytest.mark.parametrize(
    "params",
    [
        Params(),
        Params(speed=0.5, rooms=4, locked=True),
        Params(speed=2, rooms=np.int64(1), locked=np.True_),
        Params(jnp.float32(1.5), jnp.int32(3), jnp.bool_(True)),
    ],
)
def test_values_in_range_pass_both_ends_included(params):
    check_ranges("maze", Params, "Params()", RANGES, params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (Params(speed=2.1), "`speed` must be a number from 0.5 to 2; got 2.1"),
        (Params(speed=jnp.nan), "`speed` must be a number from 0.5 to 2; got nan"),
        (Params(speed=jnp.ones(3)), "got an array of shape (3,)"),
        (Params(rooms=0), "`rooms` must be a whole number from 1 to 4; got 0"),
        (Params(rooms=2.0), "`rooms` must be a whole number from 1 to 4; got 2.0"),
        (Params(rooms=True), "`rooms` must be a whole number from 1 to 4; got True"),
        (Params(locked=1), "`locked` must be a truth value; got 1"),
        (Params(locked="yes"), "`locked` must be a truth value; got yes"),
    ],
)
def test_values_out_of_range_are_named(params, message):
    expected = f"maze: .*{re.escape(message)}: outside the environment's range"
    with pytest.raises(ValueError, match=expected):
        check_ranges("maze", Params, "Params()", RANGES, params)
