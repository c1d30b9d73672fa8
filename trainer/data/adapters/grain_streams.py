"""Streams of Grain's data sets and loaders."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from trainer.checks.arguments import require_integer
from trainer.data.streams import Stream
from trainer.host.extras import require_extra


def from_grain(
    dataset: Any,
    *,
    batch_size: int | None = None,
    shuffle: bool = True,
    superbatch: int = 16,
    steps_per_epoch: int | None = None,
) -> Stream:
    """Build a stream from a data set or a loader of Grain.

    A `MapDataset` is shuffled in every epoch, by the run's seed and the epoch. An `IterDataset` or
    a loader has its built-in order, the same in every epoch: for another one, pass a function
    `(seed, epoch) -> dataset` that shuffles by them. With `steps_per_epoch` passes take the place
    of epochs, and the state of Grain's iterator is kept in the state, so a resumed run continues
    with the next batch.

    Args:
        dataset: a `MapDataset`, `IterDataset` or `DataLoader`, or a function `(seed, epoch)` that
            returns one. Its elements are dicts of arrays, of examples or of whole batches.
        batch_size: examples per step; None where the elements are batches already.
        shuffle: shuffle a `MapDataset`, before it is batched; False to evaluate on it in order, or
            if it is shuffled already.
        superbatch: steps per transfer; larger means fewer dispatches and more memory.
        steps_per_epoch: optimizer steps per epoch of training; None: an epoch is one pass.

    Raises:
        ImportError: Grain is not installed.
        ValueError: a size is below 1.

    >>> import grain
    >>> dataset = grain.MapDataset.range(10).map(lambda n: {"inputs": np.float32([n])})
    >>> from_grain(dataset, batch_size=4, superbatch=2).example["inputs"].shape
    (4, 1)
    """
    with require_extra("grain", "data.from_grain", "grain"):
        import grain
    if batch_size is not None:
        require_integer("batch_size", batch_size, 1)
    kinds = grain.MapDataset, grain.IterDataset, grain.DataLoader

    def batches(seed: int, number: int) -> Any:
        is_factory = callable(dataset) and not isinstance(dataset, kinds)
        source = dataset(seed, number) if is_factory else dataset
        if not isinstance(source, kinds):
            raise TypeError(
                "from_grain needs a MapDataset, an IterDataset or a DataLoader of grain, or a "
                f"function (seed, epoch) that returns one; got {type(source).__name__}"
            )
        if isinstance(source, grain.MapDataset) and shuffle and not is_factory:
            entropy = np.random.SeedSequence((seed, number))
            source = source.shuffle(seed=int(entropy.generate_state(1)[0]))  # of 32 bits
        if batch_size is not None:
            if isinstance(source, grain.DataLoader):
                raise TypeError(
                    f"from_grain cannot make batches of {batch_size} from a DataLoader: "
                    "add grain.transforms.Batch to its operations, and leave batch_size out"
                )
            source = source.batch(batch_size)
        if isinstance(source, grain.MapDataset):
            # Grain's default reads 500 elements ahead, which are whole batches here.
            ahead = 2 * superbatch
            by_batch = batch_size is None and shuffle and not is_factory
            source = source.to_iter_dataset(grain.ReadOptions(min(16, ahead), ahead))
            return _SeekableDataset(source, by_batch)
        return source

    return Stream(batches, superbatch, steps_per_epoch=steps_per_epoch)


@dataclasses.dataclass(frozen=True)
class _SeekableDataset:
    """Batches of a `MapDataset`, which can be read from any position at once."""

    dataset: Any
    by_batch: bool
    """Whether whole batches were shuffled, into an order that depends on the batch size."""

    def __iter__(self) -> Any:
        return iter(self.dataset)

    def iterate_from(self, batch: int) -> Any:
        iterator = iter(self.dataset)
        iterator.set_state({**iterator.get_state(), "next_index": batch})
        return iterator
