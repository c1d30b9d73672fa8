"""Data that lives on the device: shuffled and batched inside the jitted phase."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.arguments import require_integer
from trainer.data.batches import (
    Batch,
    count_examples,
    count_whole_batches,
    map_arrays,
    require_representable,
    require_whole_pass,
)
from trainer.data.iteration import batch_positions, device_batches
from trainer.data.source import Check, Feed
from trainer.state import TrainState, stream_seed

Position = dict[str, np.ndarray]
"""`place`, int32 `[2]`: the number of the pass, and the number of batches read of it.
`batch_size`, int32 `()`, of these batches."""


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

    def __post_init__(self) -> None:
        count_examples(self.arrays, "arrays")
        require_integer("batch_size", self.batch_size, 1)
        if self.steps_per_epoch is not None:
            require_integer("steps_per_epoch", self.steps_per_epoch, 1)
        require_representable("arrays", map_arrays(_to_array, self.arrays))
        object.__setattr__(self, "arrays", map_arrays(jnp.asarray, self.arrays))

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self.size, self.batch_size):
            cut = operator.itemgetter(slice(first, first + self.batch_size))
            yield map_arrays(cut, self.arrays)

    @property
    def size(self) -> int:
        """The number of examples."""
        return device_batches.count_rows(self.arrays)  # type: ignore[arg-type]

    @property
    def example(self) -> Batch:
        """The first batch."""
        return map_arrays(lambda array: array[: self.batch_size], self.arrays)

    def training(self) -> Feed:
        """Read shuffled, whole batches only.

        Raises:
            ValueError: there are fewer examples than a batch.
        """
        whole = count_whole_batches(self.size, self.batch_size)
        if self.steps_per_epoch is not None:
            return self._windows(whole, self.steps_per_epoch)
        rows = device_batches.ShuffledRows(self.batch_size)
        return Feed(self._pieces, self.arrays, rows, device_batches.take, self._verify, steps=whole)

    def evaluation(self) -> Feed:
        """Read in order, with a mask `[batch]` that is false where the last batch is padded.

        Raises:
            ValueError: it has `steps_per_epoch`.
        """
        require_whole_pass(self.steps_per_epoch)
        rows = device_batches.SequentialRows(self.batch_size)
        return Feed(self._pieces, self.arrays, rows, device_batches.take_masked, self._verify)

    def _pieces(
        self, state: TrainState, check: Check | None, position: None
    ) -> Iterator[tuple[Any, None]]:
        yield self.arrays, None

    def _windows(self, whole: int, steps: int) -> Feed:
        def pieces(
            state: TrainState, check: Check | None, position: Position
        ) -> Iterator[tuple[Any, Position]]:
            place = batch_positions.advance_place(
                batch_positions.read_place(position, self.batch_size), 0, whole
            )
            after = batch_positions.advance_place(place, steps, whole)
            yield (
                piece(place, stream_seed(state)),
                batch_positions.make_position(after, self.batch_size),
            )

        def piece(place: batch_positions.Place, seed: int) -> Batch:
            window = {"place": np.array(place, np.int32), "seed": np.array(seed, np.uint32)}
            return {"arrays": self.arrays, **jax.device_put(window)}

        return Feed(
            pieces,
            piece((0, 0), 0),
            device_batches.EpochWindow(self.batch_size, steps),
            device_batches.take_from_window,
            self._verify,
            batch_positions.make_position((0, 0), self.batch_size),
            steps,
        )

    def _verify(self, state: TrainState, check: Check) -> None:
        check(state, map_arrays(np.asarray, self.arrays))


def _to_array(array: Any) -> Any:
    """Convert anything but a JAX array to a numpy array."""
    return array if isinstance(array, jax.Array) else np.asarray(array)
