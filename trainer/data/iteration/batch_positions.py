"""Places in a long pass, counted in batches, and the same places in batches of another size."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

log = logging.getLogger("entracte")

Place = tuple[int, int]
"""The number of a pass, and how many batches of it were read."""


def in_batches(place: Place, before: int, now: int, note: str = "") -> Place:
    """Give a place that was reached with batches of one size in batches of another.

    No example is skipped. Where the new size does not divide what was read, the examples of the
    batch that was left unfinished come again. Both are said in a warning.

    Args:
        place: the number of the pass, and how many batches of it were read.
        before: examples of these batches.
        now: examples of those to come.
        note: ends the warning.

    >>> in_batches((2, 6), before=8, now=8), in_batches((2, 6), before=8, now=16)
    ((2, 6), (2, 3))
    """
    number, read = place
    if before == now:
        return place
    examples = read * before
    log.warning(
        "the run had batches of %d examples, and goes on with %d: of pass %d, %d examples were read"
        "%s%s",
        before,
        now,
        number + 1,
        examples,
        f", of which {again} come again" if (again := examples % now) else "",
        note,
    )
    return number, examples // now


def read_place(position: Mapping[str, np.ndarray], batch_size: int, note: str = "") -> Place:
    """Read the place of a position, in batches of this size; see `in_batches`."""
    number, read = position["place"].tolist()
    return in_batches((number, read), int(position["batch_size"]), batch_size, note)


def make_position(place: Place, batch_size: int) -> dict[str, np.ndarray]:
    """Keep a place and the size of its batches in arrays, as the state holds them.

    >>> read_place(make_position((2, 6), batch_size=8), batch_size=16)
    (2, 3)
    """
    return {"place": np.array(place, np.int32), "batch_size": np.array(batch_size, np.int32)}


def advance_place(place: Place, batches: int, whole: int) -> Place:
    """Say where one is a number of batches later, with so many to a pass.

    >>> advance_place((0, 5), 4, whole=7), advance_place((0, 7), 0, whole=7)
    ((1, 2), (1, 0))
    """
    number, read = place
    return divmod(number * whole + read + batches, whole)
