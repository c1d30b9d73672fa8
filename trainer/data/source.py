"""The contract between sources of data and phases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from trainer.data.batches import Batch
from trainer.state import PyTree, TrainState

Check = Callable[[TrainState, Batch], None]
"""Raises ValueError where host arrays `[examples, ...]`, of any length, do not suit the task."""

POSITION = "position/"
"""Prefix of the names in `state.carry` that hold how far a phase has read: `position/train`."""


class Feed(NamedTuple):
    """One way of reading a source: for training (shuffled, whole batches) or for evaluation.

    An epoch's data arrives in pieces: one piece for data on the device, one superbatch after
    another for a stream. `rows` and `batch` are jittable and split a piece into steps; phases share
    compiled functions where these two are equal, so they close over no data.
    """

    pieces: Callable[[TrainState, Check | None, PyTree], Iterator[tuple[Any, PyTree]]]
    """Host function `(state, check, position)`: the pieces of the state's epoch, on the device,
    checked as they arrive. The last comes with the position at which the next epoch begins; the
    others with None, as do all of a source whose epochs follow from their number alone."""
    example: Any
    """One piece, or the shapes of one, to compile for."""
    rows: Callable[[Any, jax.Array], Any]
    """`(piece, key) -> rows`: a pytree with a leading axis, one row per step."""
    batch: Callable[[Any, Any], Any]
    """`(piece, row)` -> the data of a step: a batch, or (batch, mask `[batch]`) for evaluation."""
    verify: Callable[[TrainState, Check], None]
    """Host function: check the data that is already there, before anything is compiled."""
    start: PyTree = None
    """The position at the beginning, of numpy arrays; None where the source keeps none."""
    steps: int | None = None
    """Steps of an epoch, where they are known before it is read."""
    batch_axis: int | None = None
    """Axis of a batch's examples in the arrays of a piece; None where a piece is a whole data set,
    which every device holds."""
    repeatable: bool = False
    """Whether pieces may be read before their turn, discarded, and read again with the same result,
    which `fit(..., overlap=True)` does."""

    @property
    def in_turn(self) -> str | None:
        """Why its pieces must not be read before their turn, if so."""
        if not self.repeatable:
            return "its data cannot be read early, discarded, and read again"
        if self.batch_axis is not None and jax.process_count() > 1:
            return "of several processes, one may fail to read its data while others compute"
        return None


class Source(Protocol):
    """A source of a phase's data: each epoch follows from a key and the epoch's number.

    A source whose epochs depend on more keeps a position; see `Feed.start`.
    """

    @property
    def example(self) -> Batch:
        """One batch, `[batch, ...]`, to initialise a network with."""

    def training(self) -> Feed:
        """Read for training: shuffled, whole batches only."""

    def evaluation(self) -> Feed:
        """Read for evaluation: in order, every example exactly once, with a mask."""


def require_source(source: Any, who: str, way: str) -> None:
    """Check that data come as a source, and name the source that suits them otherwise.

    `who` reads it, in the way of `training` or `evaluation`.

    Raises:
        TypeError: it is no source.
    """
    if callable(getattr(source, way, None)) and not isinstance(source, type):
        return
    if isinstance(source, type):
        remedy = f"construct one, {source.__name__}(...)"
    elif isinstance(source, Mapping):
        remedy = "data.Arrays(arrays, batch_size=64) takes a dict of arrays"
    elif isinstance(source, Iterator) or callable(source):
        remedy = "data.Stream(factory) takes the function (seed, epoch) that makes the batches"
    elif isinstance(source, Iterable) and not hasattr(source, "dtype"):
        remedy = "data.Stream(batches) takes a list, or a loader, of dicts of arrays"
    else:
        remedy = 'data.Arrays({"inputs": array}, batch_size=64) takes arrays by name'
    kind = source.__name__ if isinstance(source, type) else type(source).__name__
    raise TypeError(
        f"{who} reads a source of data, such as data.Arrays or data.Stream; got {kind}: {remedy}"
    )
