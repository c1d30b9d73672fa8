"""What a source of data owes to a phase: the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from trainer.data.batches import Batch
from trainer.state import PyTree, TrainState

Check = Callable[[TrainState, Batch], None]
"""Raises ValueError where host arrays `[examples, ...]`, of any number, do not suit the task."""

POSITION = "position/"
"""What names of `state.carry` begin with that hold how far a phase has read: `position/train`."""


class Feed(NamedTuple):
    """One way of reading a source: for training (shuffled, whole batches) or for evaluation.

    An epoch's data arrives in pieces: one for data that lives on the device, one superbatch after
    another for a stream. `rows` and `batch` are jittable and say how a piece is cut into steps;
    phases share what was compiled where these are equal, so they close over no data.
    """

    pieces: Callable[[TrainState, Check | None, PyTree], Iterator[tuple[Any, PyTree]]]
    """Host function `(state, check, position)`: the pieces of the state's epoch, checked as they
    arrive, on the device. With the last comes the position at which the next epoch begins; None
    with the others, and wherever the epoch alone tells it."""
    example: Any
    """One piece, or the shapes of one, to compile for."""
    rows: Callable[[Any, jax.Array], Any]
    """`(piece, key) -> rows`: a pytree with a leading axis, one row a step."""
    batch: Callable[[Any, Any], Any]
    """`(piece, row)` -> what a step is given: a batch, or (batch, mask `[batch]`) to evaluate."""
    verify: Callable[[TrainState, Check], None]
    """Host function: check all that is already there, before anything is compiled."""
    start: PyTree = None
    """The position at the beginning, of numpy arrays; None where the epoch alone tells it."""
    steps: int | None = None
    """Steps of an epoch, where they are known before it is read."""


class Source(Protocol):
    """Where a phase takes its data from: an epoch's worth, from a key and the epoch alone.

    A source that cannot tell an epoch's data from these keeps a position; see `Feed.start`.
    """

    @property
    def example(self) -> Batch:
        """One batch, `[batch, ...]`, to initialise a network with."""

    def training(self) -> Feed:
        """Read for training: shuffled, whole batches only."""

    def evaluation(self) -> Feed:
        """Read for evaluation: in order, every example exactly once, with a mask."""


def require_source(source: Any, who: str, way: str) -> None:
    """Check that data come as a source, and say which one takes what was given.

    Args:
        source: what was given.
        who: reads it.
        way: how it is read: `training` or `evaluation`.

    Raises:
        TypeError: it is none.
    """
    if callable(getattr(source, way, None)) and not isinstance(source, type):
        return
    if isinstance(source, type):
        remedy = f"make one of it, {source.__name__}(...)"
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
