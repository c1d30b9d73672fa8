"""Data that need not fit in memory: `.npy` files, read by the rows that a step needs."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xxhash

from trainer.checks.paths import to_absolute_path
from trainer.data.batches import Batch, count_examples, describe_arrays, iter_arrays, map_arrays
from trainer.data.iteration import index_loader
from trainer.data.source import Feed
from trainer.host.safe_open import open_regular


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryMap:
    """A data set in `.npy` files, which may be larger than memory.

    Training shuffles it anew in every pass, by the state's root key and the number of the pass,
    without keeping the order anywhere; evaluation reads it in order. A thread gathers superbatches
    `[superbatch, batch, ...]` one ahead of their use.

    The position lives in the state, at `carry["position/train"]` for the phase `train`, so that a
    resumed run goes on at the very next example, at once. With `steps_per_epoch` an epoch is a
    stretch of a long pass, and where a pass ends, the next begins, within an epoch too. The files
    must stay as they are during a run; one that goes on with others is refused if their shapes,
    dtypes, first or last example differ.

    On several processes every one reads the same, as the trainer does today: each trains the same
    parameters on the same batches. A step that is itself distributed takes a part of each batch on
    each process with `shard=(jax.process_index(), jax.process_count())`; the position is the same
    on all.

    `len` counts the batches of a pass, a smaller last one included, and `for batch in source` gives
    them in order.

    Args:
        arrays: name to a `.npy` file, or to an array on the host, of `[examples, ...]`, or to a
            dict of them; `inputs` feeds the network.
        batch_size: examples a step, of all processes together.
        superbatch: steps a transfer; larger means fewer dispatches and more memory.
        steps_per_epoch: optimizer steps of an epoch of training; an epoch is one pass if None.
        shard: which part of each batch is read here, and how many parts there are.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is no whole array; the arrays differ in length; a size is below 1; or a
            batch cannot be split into as many parts.

    >>> source = MemoryMap({"inputs": np.ones((10, 3)), "labels": np.zeros(10, int)}, batch_size=4)
    >>> source.size, source.example["inputs"].shape
    (10, (4, 3))
    >>> source.make_training_feed().start["place"]
    array([0, 0], dtype=int32)
    """

    arrays: Mapping[str, Any]
    batch_size: int
    _: dataclasses.KW_ONLY
    superbatch: int = 32
    steps_per_epoch: int | None = None
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if isinstance(self.arrays, Mapping):
            object.__setattr__(self, "arrays", map_arrays(_opened, self.arrays))
        count_examples(self.arrays, "arrays")
        index_loader.check_settings(self._rows)

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return index_loader.in_order(self._rows)

    @property
    def size(self) -> int:
        """How many examples there are."""
        return count_examples(self.arrays, "arrays")

    @property
    def example(self) -> Batch:
        """The first batch, or this process's part of it."""
        return self._rows.example

    def training(self) -> Feed:
        """Read shuffled, whole batches only.

        Raises:
            ValueError: there are fewer examples than a batch.
        """
        return index_loader.make_training_feed(self._rows)

    def evaluation(self) -> Feed:
        """Read in order, with a mask `[batch]` that is false where the tail was padded.

        Raises:
            ValueError: it has `steps_per_epoch`.
        """
        return index_loader.make_evaluation_feed(self._rows)

    @functools.cached_property
    def _rows(self) -> index_loader.IndexedRows:
        ends = xxhash.xxh3_64()
        for _, array in sorted(iter_arrays(self.arrays)):
            ends.update(array[[0, -1]].tobytes())
        return index_loader.IndexedRows(
            size=self.size,
            read=lambda places: map_arrays(lambda array: array[places], self.arrays),
            content=f"{self.size} of {describe_arrays(self.arrays)} {ends.hexdigest()}",
            batch_size=self.batch_size,
            superbatch=self.superbatch,
            steps_per_epoch=self.steps_per_epoch,
            shard=self.shard,
        )


def _opened(array: Any) -> np.ndarray:
    """Map a file into memory; give an array as it is."""
    if not isinstance(array, str | os.PathLike):
        return np.asarray(array)
    try:
        file = to_absolute_path(array, "MemoryMap")
        os.close(open_regular(file, follow=True))  # a pipe would wait for its other end
        mapped = np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        error.add_note(f"MemoryMap needs {array} to be a whole .npy file, as np.save writes")
        raise
    if not isinstance(mapped, np.ndarray):
        raise ValueError(
            f"MemoryMap needs a .npy file, as np.save writes, for each array; {array} holds "
            f"several: save each to a file of its own"
        )
    return mapped.view(np.ndarray)  # a memmap's own indexing costs more, and gives memmaps
