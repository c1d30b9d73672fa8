"""The source of examples that are read by number: pictures, or rows of a data set."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np

from trainer.data.batches import Batch
from trainer.data.iteration import index_loader
from trainer.data.source import Feed


@dataclasses.dataclass(frozen=True, eq=False)
class IndexedSource:
    """Examples that are read by number, made by `data.image_folder` or `data.from_datasets`.

    Training visits all examples in every pass, shuffled, whole batches only; evaluation reads them
    in order. The position is in the state, with a hash that identifies the data: a resumed run
    continues with the next example, without delay, and does not resume with other data. For this,
    for `steps_per_epoch`, the order, the thread and several processes see `MemoryMap`.

    `len` counts the batches of a pass, a smaller last one included, and `for batch in source`
    iterates over them in order.
    """

    size: int
    """The number of examples."""
    read: Callable[[np.ndarray], Batch] = dataclasses.field(repr=False)
    """`indices -> batch`: integer indices of any shape to arrays `[*indices, ...]`."""
    content: str = dataclasses.field(repr=False)
    """A text that identifies the data."""
    batch_size: int
    """Examples per step, of all processes together."""
    _: dataclasses.KW_ONLY
    classes: tuple[str, ...] = ()
    """The names of the classes that `labels` number, where they are known."""
    superbatch: int = 16
    """Steps per transfer."""
    steps_per_epoch: int | None = None
    """Optimizer steps per epoch of training; None: an epoch is one pass."""

    def __post_init__(self) -> None:
        index_loader.check_settings(self.training_rows)

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return index_loader.iterate_in_order(self.training_rows)

    @property
    def training_rows(self) -> index_loader.IndexedRows:
        """The examples by index."""
        return index_loader.IndexedRows(
            size=self.size,
            read=self.read,
            content=self.content,
            batch_size=self.batch_size,
            superbatch=self.superbatch,
            steps_per_epoch=self.steps_per_epoch,
        )

    @functools.cached_property
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
