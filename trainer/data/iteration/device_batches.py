"""Splitting arrays on the device into steps, by functions that compare equal by their settings."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trainer.data.batches import Batch, map_arrays


@dataclasses.dataclass(frozen=True)
class ShuffledRows:
    """`(arrays, key) -> indices [steps, batch]` of one pass, whole batches only."""

    batch_size: int

    def __call__(self, arrays: Batch, key: jax.Array) -> jax.Array:
        """Shuffle all examples."""
        return _shuffle(key, count_rows(arrays), self.batch_size)


@dataclasses.dataclass(frozen=True)
class SequentialRows:
    """`(arrays, key) -> (indices, mask)`, both `[steps, batch]`, of all, the last batch padded."""

    batch_size: int

    def __call__(self, arrays: Batch, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Number the examples in order."""
        size = count_rows(arrays)
        steps = -(-size // self.batch_size)
        indices = np.arange(steps * self.batch_size).reshape(steps, self.batch_size)
        return np.minimum(indices, size - 1), indices < size


@dataclasses.dataclass(frozen=True)
class EpochWindow:
    """`(piece, key) -> indices [steps, batch]` from a place on, over several shuffled passes.

    A piece holds `arrays`, `seed` and `place`: the number of the pass, and the number of batches
    read of it.
    """

    batch_size: int
    steps: int

    def __call__(self, piece: Batch, key: jax.Array) -> jax.Array:
        """Shuffle as many passes as the epoch may touch, and cut the epoch out."""
        size = count_rows(piece["arrays"])
        whole = size // self.batch_size
        root, (number, read) = jax.random.key(piece["seed"]), piece["place"]

        def shuffle_pass(number: jax.Array) -> jax.Array:
            return _shuffle(jax.random.fold_in(root, number), size, self.batch_size)

        passes = -(-(whole - 1 + self.steps) // whole)
        orders = jax.vmap(shuffle_pass)(number + jnp.arange(passes))
        rows = orders.reshape(passes * whole, self.batch_size)
        return lax.dynamic_slice_in_dim(rows, read, self.steps)


def take(arrays: Batch, indices: jax.Array) -> Batch:
    """Return the batch of these examples."""
    return map_arrays(lambda array: array[indices], arrays)


def take_masked(arrays: Batch, row: tuple[jax.Array, jax.Array]) -> tuple[Batch, jax.Array]:
    """Return the batch of a row of (indices, mask), and its mask."""
    return take(arrays, row[0]), row[1]


def take_from_window(piece: Batch, indices: jax.Array) -> Batch:
    """Return the batch of these examples of a piece of `EpochWindow`."""
    return take(piece["arrays"], indices)


def count_rows(arrays: Batch) -> int:
    """Count the examples."""
    return len(jax.tree.leaves(arrays)[0])


def _shuffle(key: jax.Array, size: int, batch_size: int) -> jax.Array:
    steps = size // batch_size
    order = jax.random.permutation(key, size)
    return order[: steps * batch_size].reshape(steps, batch_size)
