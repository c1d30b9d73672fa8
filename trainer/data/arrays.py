"""Data that lives on the device: shuffled and batched inside the jitted phase."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from trainer.checks.arguments import require_integer
from trainer.data.batches import (
    Batch,
    count_examples,
    count_whole_batches,
    map_arrays,
    require_representable,
    require_whole_pass,
)
from trainer.data.iteration import positions
from trainer.data.source import Check, Feed
from trainer.placement.constraints import place_batches
from trainer.placement.meshes import get_mesh
from trainer.state import TrainState, stream_seed


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """A data set that fits on the device, as named arrays of equal length.

    Training shuffles it in every epoch, by the state's root key and the epoch, and drops the
    smaller last batch. Evaluation visits every example exactly once, padding hidden by a mask.

    With `steps_per_epoch` an epoch is a part of a pass, or of several; each pass has its own order,
    and the next pass begins where one ends, also within an epoch. The position is in the state, at
    `carry["position/train"]` for the phase `train`.

    `len` counts the batches of a pass, a smaller last one included, and `for batch in source`
    iterates over them in order. Training uses only whole batches.

    Args:
        arrays: name to array `[examples, ...]`, or to a dict of arrays; `inputs` feeds the network.
        batch_size: examples per step.
        steps_per_epoch: optimizer steps per epoch of training; None: an epoch is one pass.

    Raises:
        TypeError: an array holds no numbers, or a size is no whole number.
        ValueError: there is no data, the arrays differ in length, a size is below 1, or an integer
            does not fit the 32 bits to which JAX casts it.

    >>> source = Arrays({"inputs": np.zeros((10, 3)), "labels": np.zeros(10, int)}, batch_size=4)
    >>> source.size, source.example["inputs"].shape
    (10, (4, 3))
    >>> len(source), [len(batch["labels"]) for batch in source]
    (3, [4, 4, 2])
    """

    arrays: Mapping[str, Any]
    batch_size: int
    _: dataclasses.KW_ONLY
    steps_per_epoch: int | None = None
    _example: Batch = dataclasses.field(default_factory=dict, init=False, repr=False)
    _copies: dict[Mesh, Batch] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        count_examples(self.arrays, "arrays")
        require_integer("batch_size", self.batch_size, 1)
        if self.steps_per_epoch is not None:
            require_integer("steps_per_epoch", self.steps_per_epoch, 1)
        require_representable("arrays", self.arrays)
        first = map_arrays(lambda array: _to_device(array[: self.batch_size]), self.arrays)
        object.__setattr__(self, "_example", first)
        object.__setattr__(self, "arrays", map_arrays(_to_device, self.arrays))

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self.size, self.batch_size):
            cut = operator.itemgetter(slice(first, first + self.batch_size))
            yield map_arrays(cut, self.arrays)

    @property
    def size(self) -> int:
        """The number of examples."""
        return _count_rows(self.arrays)  # type: ignore[arg-type]

    @property
    def example(self) -> Batch:
        """The first batch."""
        return dict(self._example)

    def training(self) -> Feed:
        """Read shuffled, whole batches only.

        Raises:
            ValueError: there are fewer examples than a batch.
        """
        whole = count_whole_batches(self.size, self.batch_size)
        if self.steps_per_epoch is not None:
            return self._windows(whole, self.steps_per_epoch)
        rows = ShuffledRows(self.batch_size)
        return Feed(
            self._pieces, self.arrays, rows, _take, self._verify, steps=whole, repeatable=True
        )

    def evaluation(self) -> Feed:
        """Read in order, with a mask `[batch]` that is false where the last batch is padded.

        Raises:
            ValueError: it has `steps_per_epoch`.
        """
        require_whole_pass(self.steps_per_epoch)
        rows = SequentialRows(self.batch_size)
        return Feed(self._pieces, self.arrays, rows, _take_masked, self._verify, repeatable=True)

    def _pieces(
        self, state: TrainState, check: Check | None, position: None
    ) -> Iterator[tuple[Any, None]]:
        yield self._copy_to(state), None

    def _copy_to(self, state: TrainState) -> Mapping[str, Any]:
        """Return the arrays where a state lies; for a mesh they are copied once."""
        if (mesh := get_mesh(state)) is None:
            return self.arrays
        if mesh not in self._copies:
            self._copies[mesh] = place_batches(self.arrays, state, axis=None)
        return self._copies[mesh]

    def _windows(self, whole: int, steps: int) -> Feed:
        def pieces(
            state: TrainState, check: Check | None, position: positions.Position
        ) -> Iterator[tuple[Any, positions.Position]]:
            place = positions.advance_place(
                positions.read_place(position, self.batch_size), 0, whole
            )
            after = positions.advance_place(place, steps, whole)
            window = piece(self._copy_to(state), place, stream_seed(state))
            yield window, positions.make_position(after, self.batch_size)

        def piece(arrays: Mapping[str, Any], place: positions.Place, seed: int) -> Batch:
            window = {"place": np.array(place, np.int32), "seed": np.array(seed, np.uint32)}
            return {"arrays": arrays, **jax.device_put(window)}

        return Feed(
            pieces,
            piece(self.arrays, (0, 0), 0),
            EpochWindow(self.batch_size, steps),
            _take_from_window,
            self._verify,
            positions.make_position((0, 0), self.batch_size),
            steps,
            repeatable=True,
        )

    def _verify(self, state: TrainState, check: Check) -> None:
        check(state, map_arrays(np.asarray, self.arrays))


@dataclasses.dataclass(frozen=True)
class ShuffledRows:
    """`(arrays, key) -> indices [steps, batch]` of one pass, whole batches only."""

    batch_size: int

    def __call__(self, arrays: Batch, key: jax.Array) -> jax.Array:
        """Shuffle all examples."""
        return _shuffle(key, _count_rows(arrays), self.batch_size)


@dataclasses.dataclass(frozen=True)
class SequentialRows:
    """`(arrays, key) -> (indices, mask)`, both `[steps, batch]`, of all, the last batch padded."""

    batch_size: int

    def __call__(self, arrays: Batch, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Number the examples in order."""
        size = _count_rows(arrays)
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
        size = _count_rows(piece["arrays"])
        whole = size // self.batch_size
        root, (number, read) = jax.random.key(piece["seed"]), piece["place"]

        def shuffle_pass(number: jax.Array) -> jax.Array:
            return _shuffle(jax.random.fold_in(root, number), size, self.batch_size)

        passes = -(-(whole - 1 + self.steps) // whole)
        orders = jax.vmap(shuffle_pass)(number + jnp.arange(passes))
        rows = orders.reshape(passes * whole, self.batch_size)
        return lax.dynamic_slice_in_dim(rows, read, self.steps)


def _to_device(array: Any) -> jax.Array:
    """Copy an array to the device; `jnp.asarray` of numpy compiles, 5 to 20 ms for each shape."""
    return jnp.asarray(array) if isinstance(array, jax.Array) else jax.device_put(np.array(array))


def _take(arrays: Batch, indices: jax.Array) -> Batch:
    return map_arrays(lambda array: array[indices], arrays)


def _take_masked(arrays: Batch, row: tuple[jax.Array, jax.Array]) -> tuple[Batch, jax.Array]:
    return _take(arrays, row[0]), row[1]


def _take_from_window(piece: Batch, indices: jax.Array) -> Batch:
    return _take(piece["arrays"], indices)


def _count_rows(arrays: Batch) -> int:
    return len(jax.tree.leaves(arrays)[0])


def _shuffle(key: jax.Array, size: int, batch_size: int) -> jax.Array:
    steps = size // batch_size
    order = jax.random.permutation(key, size)
    return order[: steps * batch_size].reshape(steps, batch_size)
