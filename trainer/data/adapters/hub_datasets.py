"""Data sets of Hugging Face's `datasets`."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xxhash

from trainer.checks.arguments import describe_value, require_integer
from trainer.checks.suggestions import suggest_and_list
from trainer.data.adapters.indexed_source import IndexedSource
from trainer.data.batches import Batch, count_examples, describe_arrays, iter_arrays, map_arrays
from trainer.data.streams import Stream

log = logging.getLogger("entracte")

WHO = "data.from_datasets"

READ_AGAIN = 1000
"""Batches of an `IterableDataset` before an epoch that a resumed run reads again, at most."""


def from_datasets(
    dataset: Any,
    columns: Mapping[str, Any] | None = None,
    *,
    batch_size: int,
    superbatch: int = 16,
    steps_per_epoch: int | None = None,
) -> IndexedSource | Stream:
    """Build a source from a data set of Hugging Face's `datasets`.

        dataset = datasets.load_dataset("csv", data_files="flowers.csv", split="train")
        source = data.from_datasets(dataset, {"inputs": "petals", "labels": "kind"}, batch_size=64)

    A `Dataset` is read by number: it is shuffled in every pass by the run's seed, and a resumed run
    continues with the next example, without delay.

    An `IterableDataset` has its own order, by its `shuffle(seed=...)` and the number of the pass,
    which it gets by `set_epoch`. With `steps_per_epoch` its `state_dict` is kept in the state, at
    the first epoch of a pass and once 1,000 batches were read since: a resumed run continues from
    there to the next example. One that is shuffled within a buffer loses the buffer with that
    state, so it is read and discarded from the beginning of the pass instead; a notice says so.

    Args:
        dataset: a `Dataset` or an `IterableDataset`: one split.
        columns: by name of an array, a column of the data set, or a dict of such:
            `{"inputs": "image", "labels": "label"}`; None: all columns under their names.
        batch_size: examples per step.
        superbatch: steps per transfer; larger means fewer dispatches and more memory.
        steps_per_epoch: optimizer steps per epoch of training; None: an epoch is one pass.

    Raises:
        TypeError: it is something else, such as a dict of splits; or a column holds texts.
        ValueError: there is no such column, or a size is below 1; when it is read, the values of a
            column differ in shape.
    """
    require_integer("batch_size", batch_size, 1)
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"{WHO} takes one split; got {describe_value(dataset)}: "
            f"dataset[{next(iter(dataset), 'train')!r}]"
        )
    if not hasattr(dataset, "with_format"):
        raise TypeError(
            f"{WHO} takes a Dataset or an IterableDataset of datasets; got "
            f"{describe_value(dataset)}"
        )
    names = dataset.column_names
    if columns is None:
        columns = {name: name for name in names or next(iter(dataset))}
    wanted = [column for _, column in iter_arrays(columns)]
    for column in wanted:
        if names is not None and column not in names:
            raise ValueError(f"{WHO} needs a column {column!r}{suggest_and_list(column, names)}")

    def pick(rows: Mapping[str, Any]) -> Batch:
        return map_arrays(lambda column: _as_array(rows[column], column), columns)

    if hasattr(dataset, "set_epoch"):
        return _stream(dataset, pick, batch_size, superbatch, steps_per_epoch)
    view = dataset.with_format("numpy", columns=wanted)

    def read(indices: np.ndarray) -> Batch:
        flat = pick(view[indices.ravel()])
        return map_arrays(lambda array: array.reshape(*indices.shape, *array.shape[1:]), flat)

    size = len(dataset)
    if not size:
        raise ValueError(f"{WHO} needs at least one example; got an empty data set")
    ends, identity = read(np.array([0, size - 1])), xxhash.xxh3_64()
    count_examples(ends, "the data set")
    for _, array in sorted(iter_arrays(ends)):
        identity.update(array.tobytes())
    content = f"{size} of {describe_arrays(ends)} {identity.hexdigest()}"
    return IndexedSource(
        size, read, content, batch_size, superbatch=superbatch, steps_per_epoch=steps_per_epoch
    )


def _as_array(values: Any, column: str) -> np.ndarray:
    """Return the values of a column as one array `[examples, ...]`."""
    shapes = {np.shape(value) for value in values} if _is_ragged(values) else set()
    if shapes:
        raise ValueError(
            f"{WHO} needs values of one shape in column {column!r}; got {sorted(shapes)[:4]}: pad "
            "or cut them, dataset.map(...)"
        )
    return np.asarray(values)


def _is_ragged(values: Any) -> bool:
    if isinstance(values, np.ndarray) and values.dtype != object:
        return False
    return len({np.shape(value) for value in values}) > 1


class _ResumableBatches:
    """One pass over batches, which knows its place by the data set's own state.

    The states of a data set at one place differ with where its iterator began. So a place is such a
    state and the batches read since, and whoever takes a new state begins there again: a run that
    was resumed has the states of one that was not.
    """

    def __init__(self, dataset: Any, pick: Any) -> None:
        self._dataset, self._pick = dataset, pick
        self._rest: Iterator[Any] | None = None
        self._begin: Any = None
        self._read = 0

    def __iter__(self) -> _ResumableBatches:
        return self

    def __next__(self) -> Batch:
        if self._rest is None:
            if self._begin is not None:
                self._dataset.load_state_dict(copy.deepcopy(self._begin))
            self._rest = itertools.islice(self._dataset, self._read, None)
        batch = next(self._rest)
        self._read += 1
        return self._pick(batch)

    def get_state(self) -> Any:
        """Return the place."""
        if self._begin is None or self._read >= READ_AGAIN:
            self._begin, self._read, self._rest = self._dataset.state_dict(), 0, None
        return {"begin": self._begin, "read": self._read}

    def set_state(self, state: Any) -> None:
        """Begin at a place."""
        self._begin, self._read = state["begin"], state["read"]


def _stream(
    dataset: Any, pick: Any, batch_size: int, superbatch: int, steps_per_epoch: int | None
) -> Stream:
    buffered = _has_buffer(dataset)
    if buffered and steps_per_epoch is not None:
        log.info(
            "a data set that is shuffled within a buffer cannot return to a place: a run that "
            "resumes within a pass reads it from the beginning of the pass, to the same examples"
        )

    def batches(seed: int, number: int) -> Any:
        batched = dataset.with_format("numpy").batch(batch_size)
        batched.set_epoch(number)
        return map(pick, batched) if buffered else _ResumableBatches(batched, pick)

    return Stream(batches, superbatch, steps_per_epoch=steps_per_epoch)


def _has_buffer(dataset: Any) -> bool:
    """Return whether a data set is shuffled within a buffer; True where that cannot be seen."""
    whole = getattr(dataset, "_ex_iterable", None)
    return whole is None or _contains_buffer(whole)


def _contains_buffer(part: Any) -> bool:
    if "Shuffle" in type(part).__name__:
        return True
    inner = [getattr(part, "ex_iterable", None), *getattr(part, "ex_iterables", ())]
    return any(_contains_buffer(one) for one in inner if one is not None)
