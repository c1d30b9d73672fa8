"""Data sets of `tf.data`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from trainer.checks.arguments import describe_value, require_integer
from trainer.data.adapters.batch_structure import name_arrays
from trainer.data.batches import Batch
from trainer.data.streams import Stream

log = logging.getLogger("entracte")

WHO = "data.from_tf"


def from_tf(
    dataset: Any,
    *,
    batch_size: int | None = None,
    superbatch: int = 16,
    steps_per_epoch: int | None = None,
) -> Stream:
    """Build a stream from a `tf.data.Dataset`.

    With `steps_per_epoch` passes take the place of epochs. A run that resumes within a pass lets
    the data set skip what was read of it.

    A data set that shuffles does so by states of its own, which are not saved: a notice says so.
    For an order that a resumed run repeats, pass a function that shuffles by the seed of the run
    and the number of the pass:

        data.from_tf(lambda seed, number: base.shuffle(10_000, seed=seed + number), batch_size=64)

    Args:
        dataset: a `tf.data.Dataset`, or a function `(seed, epoch)` that returns one. Its elements
            are dicts of tensors, pairs (inputs, labels), or tensors of inputs.
        batch_size: examples per step; None where the elements are batches already.
        superbatch: steps per transfer; larger means fewer dispatches and more memory.
        steps_per_epoch: optimizer steps per epoch of training; None: an epoch is one pass.

    Raises:
        TypeError: it is something else; when it is read, its elements are.
        ValueError: a size is below 1.
    """
    if batch_size is not None:
        require_integer("batch_size", batch_size, 1)
    is_factory = callable(dataset) and not hasattr(dataset, "as_numpy_iterator")
    if not is_factory:
        _require_dataset(dataset)
        if _shuffles(dataset):
            log.info(
                "a tf.data.Dataset that shuffles does so by states that are not saved: a run that "
                "resumes sees another order; data.from_tf(lambda seed, number: "
                "base.shuffle(10_000, seed=seed + number)) repeats it"
            )

    def batches(seed: int, number: int) -> _DatasetPass:
        made = dataset(seed, number) if is_factory else dataset
        _require_dataset(made)
        return _DatasetPass(made if batch_size is None else made.batch(batch_size))

    return Stream(batches, superbatch, steps_per_epoch=steps_per_epoch)


class _DatasetPass:
    """The batches of a data set, which can be read from any number on."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Batch]:
        return self.iterate_from(0)

    def iterate_from(self, batch: int) -> Iterator[Batch]:
        """Iterate from the batch of a number on."""
        remedy = "name the tensors, dataset.map(lambda a, b, c: {'inputs': a, ...})"
        rest = self._dataset.skip(batch) if batch else self._dataset
        return (name_arrays(element, WHO, remedy) for element in rest.as_numpy_iterator())


def _require_dataset(dataset: Any) -> None:
    if not hasattr(dataset, "as_numpy_iterator"):
        raise TypeError(
            f"{WHO} takes a tf.data.Dataset, or a function (seed, epoch) that returns one; got "
            f"{describe_value(dataset)}"
        )


def _shuffles(dataset: Any) -> bool:
    """Return whether a data set, or one that it is made of, shuffles."""
    inner = dataset._inputs() if hasattr(dataset, "_inputs") else ()
    return "Shuffle" in type(dataset).__name__ or any(_shuffles(part) for part in inner)
