"""Places in a pass, counted in batches, and their conversion to another batch size."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

log = logging.getLogger("entracte")

Place = tuple[int, int]
"""The number of a pass, and the number of batches read of it."""


def convert_place(place: Place, before: int, now: int, note: str = "") -> Place:
    """Convert a place from batches of one size to batches of another.

    No example is skipped. Where the new size does not divide the number of examples read, those of
    the unfinished batch repeat. A warning reports both.

    Args:
        place: the number of the pass, and the number of batches read of it.
        before: examples of these batches.
        now: examples of the next batches.
        note: ends the warning.

    >>> convert_place((2, 6), before=8, now=8), convert_place((2, 6), before=8, now=16)
    ((2, 6), (2, 3))
    """
    number, read = place
    if before == now:
        return place
    examples = read * before
    log.warning(
        "the run had batches of %d examples, and resumes with %d: %d examples of pass %d were "
        "read%s%s",
        before,
        now,
        examples,
        number + 1,
        f", of which {again} repeat" if (again := examples % now) else "",
        note,
    )
    return number, examples // now


def read_place(position: Mapping[str, np.ndarray], batch_size: int, note: str = "") -> Place:
    """Read the place of a position, in batches of this size; see `convert_place`."""
    number, read = position["place"].tolist()
    return convert_place((number, read), int(position["batch_size"]), batch_size, note)


def make_position(place: Place, batch_size: int) -> dict[str, np.ndarray]:
    """Return a place and the size of its batches as arrays for the state.

    >>> read_place(make_position((2, 6), batch_size=8), batch_size=16)
    (2, 3)
    """
    return {"place": np.array(place, np.int32), "batch_size": np.array(batch_size, np.int32)}


def advance_place(place: Place, batches: int, whole: int) -> Place:
    """Return the place a number of batches later, with `whole` batches per pass.

    >>> advance_place((0, 5), 4, whole=7), advance_place((0, 7), 0, whole=7)
    ((1, 2), (1, 0))
    """
    number, read = place
    return divmod(number * whole + read + batches, whole)
