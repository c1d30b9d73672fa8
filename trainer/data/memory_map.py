"""Data larger than memory: `.npy` files, of which only the rows of a step are read."""

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

    Training shuffles it in every pass, by the state's root key and the number of the pass, without
    storing the order; evaluation reads it in order. A thread gathers superbatches `[superbatch,
    batch, ...]` one ahead of their use.

    The position is in the state, at `carry["position/train"]` for the phase `train`, so a resumed
    run continues with the next example, without delay. With `steps_per_epoch` an epoch is a part of
    a pass, or of several; the next pass begins where one ends, also within an epoch. The files must
    not change during a run: it does not resume if their shapes, dtypes, first or last example
    differ.

    With a state of `trainer.spread` each process reads only the rows that its devices hold; the
    batches and the position are the same for any number of processes.

    `len` counts the batches of a pass, a smaller last one included, and `for batch in source`
    iterates over them in order.

    Args:
        arrays: name to a `.npy` file, or to an array on the host, of `[examples, ...]`, or to a
            dict of them; `inputs` feeds the network.
        batch_size: examples per step, of all processes together.
        superbatch: steps per transfer; larger means fewer dispatches and more memory.
        steps_per_epoch: optimizer steps per epoch of training; None: an epoch is one pass.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is no whole array; the arrays differ in length; or a size is below 1.

    >>> source = MemoryMap({"inputs": np.ones((10, 3)), "labels": np.zeros(10, int)}, batch_size=4)
    >>> source.size, source.example["inputs"].shape
    (10, (4, 3))
    >>> source.training().start["place"]
    array([0, 0], dtype=int32)
    """

    arrays: Mapping[str, Any]
    batch_size: int
    _: dataclasses.KW_ONLY
    superbatch: int = 32
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.arrays, Mapping):
            object.__setattr__(self, "arrays", map_arrays(_open, self.arrays))
        count_examples(self.arrays, "arrays")
        index_loader.check_settings(self.training_rows)

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return index_loader.iterate_in_order(self.training_rows)

    @property
    def size(self) -> int:
        """The number of examples."""
        return count_examples(self.arrays, "arrays")

    @property
    def example(self) -> Batch:
        """The first batch."""
        return self.training_rows.example

    def training(self) -> Feed:
        """Read shuffled, whole batches only.

        Raises:
            ValueError: there are fewer examples than a batch.
        """
        return index_loader.make_training_feed(self.training_rows)

    def evaluation(self) -> Feed:
        """Read in order, with a mask `[batch]` that is false where the last batch is padded.

        Raises:
            ValueError: it has `steps_per_epoch`.
        """
        return index_loader.make_evaluation_feed(self.training_rows)

    @functools.cached_property
    def training_rows(self) -> index_loader.IndexedRows:
        """The examples by index."""
        ends = xxhash.xxh3_64()
        for _, array in sorted(iter_arrays(self.arrays)):
            ends.update(array[[0, -1]].tobytes())
        return index_loader.IndexedRows(
            size=self.size,
            read=lambda indices: map_arrays(lambda array: array[indices], self.arrays),
            content=f"{self.size} of {describe_arrays(self.arrays)} {ends.hexdigest()}",
            batch_size=self.batch_size,
            superbatch=self.superbatch,
            steps_per_epoch=self.steps_per_epoch,
        )


def _open(array: Any) -> np.ndarray:
    """Map a file into memory; return an array unchanged."""
    if not isinstance(array, str | os.PathLike):
        return np.asarray(array)
    try:
        file = to_absolute_path(array, "MemoryMap")
        os.close(open_regular(file, follow=True))  # a pipe would block
        mapped = np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        error.add_note(f"MemoryMap needs {array} to be a whole .npy file, as np.save writes")
        raise
    if not isinstance(mapped, np.ndarray):
        raise ValueError(
            f"MemoryMap needs a .npy file, as np.save writes, for each array; {array} holds "
            f"several: save each to a file of its own"
        )
    return mapped.view(np.ndarray)  # indexing a memmap is slower, and returns memmaps
