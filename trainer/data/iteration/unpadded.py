"""Reading a split in order without padding, for functions that look at the whole batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.data.source import Check, Feed
from trainer.placement.gathering import gather
from trainer.state import PyTree, TrainState

PIECE, ROWS, TAIL = "piece", "rows", "tail"


def _read_rows(part: Any, key: jax.Array) -> Any:
    """Return the whole rows of a piece, or the single row of a tail."""
    return part[ROWS] if ROWS in part else jnp.arange(1)


@dataclasses.dataclass(frozen=True)
class UnpaddedBatch:
    """`(part, row) -> (batch, mask)`; the mask hides nothing."""

    whole: Callable[[Any, Any], Any]
    """The source's `Feed.batch`."""

    def __call__(self, part: Any, row: Any) -> Any:
        """Return the batch of a row."""
        if TAIL in part:
            batch = jax.tree.map(lambda array: array[row], part[TAIL])
            return batch, jnp.ones(len(jax.tree.leaves(batch)[0]), bool)
        batch, mask = self.whole(part[PIECE], row)
        return batch, jnp.ones_like(mask)


def unpad_feed(feed: Feed) -> Feed:
    """Return a feed with the same batches as a feed for evaluation, without padding.

    A piece becomes one or two: its whole batches, and the smaller last one, for whose size the
    phase is compiled again.
    """

    def pieces(
        state: TrainState, check: Check | None, position: PyTree
    ) -> Iterator[tuple[Any, PyTree]]:
        for piece, after in feed.pieces(state, check, position):
            for part in _parts(feed, piece):
                yield part, after

    return feed._replace(
        pieces=pieces, example=_example(feed), rows=_read_rows, batch=UnpaddedBatch(feed.batch)
    )


def _example(feed: Feed) -> Any:
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(feed.example)):
        rows = jax.eval_shape(feed.rows, feed.example, jax.random.key(0))
        return {PIECE: feed.example, ROWS: rows}
    return next(_parts(feed, feed.example))


def _parts(feed: Feed, piece: Any) -> Iterator[dict[str, Any]]:
    unused = jax.random.key(0)  # reading in order is not random
    rows = jax.tree.map(np.asarray, feed.rows(piece, unused))
    masks = np.asarray(gather(_read_masks(feed.batch, piece, rows)))
    whole = np.flatnonzero(masks.all(axis=1))
    if len(whole):
        yield {PIECE: piece, ROWS: jax.tree.map(lambda x: jnp.asarray(x[whole]), rows)}
    for step in np.flatnonzero(masks.any(axis=1) & ~masks.all(axis=1)):
        row = jax.tree.map(lambda x, step=step: x[step], rows)
        batch, real = gather(_read_batch(feed.batch, piece, row)), np.flatnonzero(masks[step])
        yield {TAIL: jax.tree.map(lambda x, real=real: x[real][None], batch)}


@functools.partial(jax.jit, static_argnums=0)
def _read_masks(batch: Callable[[Any, Any], Any], piece: Any, rows: Any) -> Any:
    return jax.vmap(lambda row: batch(piece, row)[1])(rows)


@functools.partial(jax.jit, static_argnums=0)
def _read_batch(batch: Callable[[Any, Any], Any], piece: Any, row: Any) -> Any:
    return batch(piece, row)[0]
