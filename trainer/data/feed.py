"""What a source of data owes to a phase: the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    another for a stream. `rows` and `batch` are jittable and say how a piece is cut into steps.
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
