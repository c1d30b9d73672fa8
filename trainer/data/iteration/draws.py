"""Drawing examples from several sources in proportion to weights, without chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer.data.iteration.mixing_weights import UNIT


class DrawPosition(NamedTuple):
    """How much was drawn of each source."""

    step: int
    """The number of batches."""
    places: tuple[tuple[int, int], ...]
    """For each source, the number of its pass, and of examples read in it."""
    credits: tuple[int, ...]
    """For each source, by how many examples it is behind its share, times `UNIT`."""


class Draws(NamedTuple):
    """The examples of a batch, int64 `[batch]` each."""

    sources: np.ndarray
    passes: np.ndarray
    examples: np.ndarray
    """The place of an example in the order of its pass."""


def draw_batch(
    position: DrawPosition, sizes: Sequence[int], shares: Sequence[int], batch_size: int
) -> tuple[Draws, DrawPosition]:
    """Draw the examples of a batch, each from the source that is furthest behind its share.

    While shares stay the same, the number of examples of each source differs from its share of all
    by less than the number of sources; with two sources, by at most one half. A source without a
    share is not drawn from.

    Args:
        position: before the batch.
        sizes: the number of examples of each source.
        shares: of each source, with the sum `UNIT`.
        batch_size: the number of examples to draw.

    Returns:
        (the examples, the position after the batch).

    >>> position = DrawPosition(0, ((0, 0), (0, 0)), (0, 0))
    >>> draws, after = draw_batch(position, (2, 9), (UNIT // 2, UNIT // 2), 6)
    >>> draws.sources.tolist(), draws.passes.tolist(), draws.examples.tolist()
    ([0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 0], [0, 0, 1, 1, 0, 2])
    >>> after.places
    ((1, 1), (0, 3))
    """
    credits, places = [*position.credits], [*position.places]
    active = [source for source, share in enumerate(shares) if share]
    drawn = []
    for _ in range(batch_size):
        for source in active:
            credits[source] += shares[source]
        source = max(active, key=credits.__getitem__)
        credits[source] -= UNIT
        number, read = places[source]
        drawn.append((source, number, read))
        places[source] = (number + 1, 0) if read + 1 == sizes[source] else (number, read + 1)
    after = DrawPosition(position.step + 1, tuple(places), tuple(credits))
    return Draws(*np.array(drawn, np.int64).T), after
