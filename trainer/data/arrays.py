"""Data that lives on the device: shuffled and batched inside the jitted phase."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.data.batches import Batch, each, examples_in
from trainer.data.feed import Check, Feed
from trainer.state import TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """A data set that fits on the device, as named arrays of equal length.

    Training shuffles it anew in every epoch, by the state's root key and the epoch, and drops the
    ragged tail. Evaluation visits every example exactly once, the tail under a mask.

    Args:
        arrays: name to array `[examples, ...]`, or to a dict of arrays; `inputs` feeds the network.
        batch_size: examples a step.

    Raises:
        ValueError: there is no data, or the arrays differ in length, or `batch_size` is below 1.

    >>> source = Arrays({"inputs": np.zeros((10, 3)), "labels": np.zeros(10, int)}, batch_size=4)
    >>> source.size, source.example["inputs"].shape
    (10, (4, 3))
    """

    arrays: Mapping[str, Any]
    batch_size: int

    def __post_init__(self) -> None:
        examples_in(self.arrays, "arrays")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")
        object.__setattr__(self, "arrays", each(jnp.asarray, self.arrays))

    @property
    def size(self) -> int:
        """How many examples there are."""
        return len(jax.tree.leaves(self.arrays)[0])

    @property
    def example(self) -> Batch:
        """The first batch."""
        return each(lambda array: array[: self.batch_size], self.arrays)

    def training(self) -> Feed:
        """Read shuffled, whole batches only.

        Raises:
            ValueError: there are fewer examples than a batch.
        """
        steps = self.size // self.batch_size
        if steps == 0:
            raise ValueError(
                f"training needs at least one whole batch: there are {self.size} examples and "
                f"batch_size is {self.batch_size}; choose a batch_size of at most {self.size}"
            )

        def rows(piece: Batch, key: jax.Array) -> jax.Array:
            order = jax.random.permutation(key, self.size)
            return order[: steps * self.batch_size].reshape(steps, self.batch_size)

        return Feed(self._pieces, self.arrays, rows, _take, self._verify, steps=steps)

    def evaluation(self) -> Feed:
        """Read in order, with a mask `[batch]` that is false where the tail was padded."""
        steps = -(-self.size // self.batch_size)
        places = np.arange(steps * self.batch_size).reshape(steps, self.batch_size)

        def rows(piece: Batch, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
            return np.minimum(places, self.size - 1), places < self.size

        def batch(piece: Batch, row: tuple[jax.Array, jax.Array]) -> tuple[Batch, jax.Array]:
            places, mask = row
            return _take(piece, places), mask

        return Feed(self._pieces, self.arrays, rows, batch, self._verify)

    def _pieces(
        self, state: TrainState, check: Check | None, position: None
    ) -> Iterator[tuple[Any, None]]:
        yield self.arrays, None

    def _verify(self, state: TrainState, check: Check) -> None:
        check(state, each(np.asarray, self.arrays))


def _take(piece: Batch, places: jax.Array) -> Batch:
    return each(lambda array: array[places], piece)
