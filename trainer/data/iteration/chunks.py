"""Superbatches: pieces `[steps, batch, ...]` of the host that a phase splits into steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.data.batches import Batch, map_arrays, require_representable
from trainer.data.source import Check, Feed
from trainer.host.time_spans import span
from trainer.placement.constraints import place_batches
from trainer.state import PyTree, TrainState

Pieces = Callable[[TrainState, Check | None, Any], Iterator[tuple[Any, PyTree]]]
"""See `Feed.pieces`."""


BATCH_AXIS = 1
"""Axis of the examples of a batch in superbatches `[steps, batch, ...]`."""


def make_chunk_feed(pieces: Pieces, example: Batch, steps: int, *, masked: bool = False) -> Feed:
    """Build the feed of a source that yields superbatches, in their order.

    A piece is a superbatch of arrays `[steps, batch, ...]`; if masked, a pair of one and its masks
    `[steps, batch]`. The example, which `verify` checks, is the first batch, in numpy arrays.
    """
    batch = jax.tree.leaves(example)[0].shape[:1]
    one = (example, np.ones(batch, bool)) if masked else example
    return Feed(
        pieces=pieces,
        example=jax.tree.map(lambda array: _stack_shape(array, steps), one),
        rows=_step_indices,
        batch=_take_batch,
        verify=lambda state, check: check(state, example),
        batch_axis=BATCH_AXIS,
    )


def transfer_chunk(
    piece: Any, state: TrainState, check: Check | None, *, batch: int | None = None
) -> Any:
    """Check a superbatch, or a pair of one and its masks, and start its transfer.

    With `batch`, the examples in a whole batch, the piece holds those rows of each that the devices
    of this process need; without it, all.

    Raises:
        ValueError: it does not suit the task, or an integer does not fit 32 bits.
    """
    arrays = piece[0] if isinstance(piece, tuple) else piece
    require_representable("batch", arrays)
    if check is not None:
        check(state, map_arrays(lambda array: array.reshape(-1, *array.shape[2:]), arrays))
    with span("transfer"):
        return place_batches(piece, state, axis=BATCH_AXIS, size=batch)


def _step_indices(piece: Any, key: jax.Array) -> jax.Array:
    return jnp.arange(jax.tree.leaves(piece)[0].shape[0])


def _take_batch(piece: Any, row: jax.Array) -> Any:
    """Return the batch of a step.

    It is a gather of one row per example. XLA on CPU fuses a plain slice into all that reads the
    batch, and takes it again for every element: a step of a small transformer took 9% longer.
    """

    def take(array: jax.Array) -> jax.Array:
        rows = jnp.full(array.shape[BATCH_AXIS], row)
        return jax.vmap(_get, in_axes=(BATCH_AXIS, 0))(array, rows)

    return jax.tree.map(take, piece)


def _get(column: jax.Array, row: jax.Array) -> jax.Array:
    return column.at[row].get(mode="promise_in_bounds")


def _stack_shape(array: np.ndarray, steps: int) -> jax.ShapeDtypeStruct:
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return jax.ShapeDtypeStruct((steps, *array.shape), dtype)
