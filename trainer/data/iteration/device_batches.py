"""How arrays on the device are cut into steps, by functions that are equal where they do alike."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trainer.data.batches import Batch, map_arrays


@dataclasses.dataclass(frozen=True)
class ShuffledRows:
    """`(arrays, key) -> places [steps, batch]` of one pass, whole batches only."""

    batch_size: int

    def __call__(self, arrays: Batch, key: jax.Array) -> jax.Array:
        """Shuffle them all."""
        return _order(key, count_rows(arrays), self.batch_size)


@dataclasses.dataclass(frozen=True)
class SequentialRows:
    """`(arrays, key) -> (places, mask)`, both `[steps, batch]`, of all, the end filled up."""

    batch_size: int

    def __call__(self, arrays: Batch, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Count them."""
        size = count_rows(arrays)
        steps = -(-size // self.batch_size)
        places = np.arange(steps * self.batch_size).reshape(steps, self.batch_size)
        return np.minimum(places, size - 1), places < size


@dataclasses.dataclass(frozen=True)
class EpochWindow:
    """`(piece, key) -> places [steps, batch]` from a place on, of one shuffled pass after another.

    A piece holds `arrays`, `seed` and `place`: the number of the pass, and how many of its batches
    were read.
    """

    batch_size: int
    steps: int

    def __call__(self, piece: Batch, key: jax.Array) -> jax.Array:
        """Shuffle as many passes as the stretch may touch, and cut it out."""
        size = count_rows(piece["arrays"])
        whole = size // self.batch_size
        root, (number, read) = jax.random.key(piece["seed"]), piece["place"]

        def one(number: jax.Array) -> jax.Array:
            return _order(jax.random.fold_in(root, number), size, self.batch_size)

        touched = -(-(whole - 1 + self.steps) // whole)
        orders = jax.vmap(one)(number + jnp.arange(touched))
        rows = orders.reshape(touched * whole, self.batch_size)
        return lax.dynamic_slice_in_dim(rows, read, self.steps)


def take(arrays: Batch, places: jax.Array) -> Batch:
    """Give the batch at these places."""
    return map_arrays(lambda array: array[places], arrays)


def take_masked(arrays: Batch, row: tuple[jax.Array, jax.Array]) -> tuple[Batch, jax.Array]:
    """Give the batch at these places, and its mask."""
    return take(arrays, row[0]), row[1]


def take_of_stretch(piece: Batch, places: jax.Array) -> Batch:
    """Give the batch at these places of a piece of a stretch."""
    return take(piece["arrays"], places)


def count_rows(arrays: Batch) -> int:
    """Count the examples."""
    return len(jax.tree.leaves(arrays)[0])


def _order(key: jax.Array, size: int, batch_size: int) -> jax.Array:
    steps = size // batch_size
    order = jax.random.permutation(key, size)
    return order[: steps * batch_size].reshape(steps, batch_size)
