"""Several sources in one step, each with its own batches, order and position."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from trainer.checks.arguments import require_integer
from trainer.data.adapters.indexed_source import IndexedSource
from trainer.data.arrays import Arrays
from trainer.data.batches import Batch, map_arrays
from trainer.data.conversations.conversation_source import Conversations
from trainer.data.iteration.index_loader import balance_chunk_steps
from trainer.data.memory_map import MemoryMap
from trainer.data.source import Check, Feed
from trainer.data.streams import Stream
from trainer.data.tokens import Tokens
from trainer.state import PyTree, TrainState, name_number

Part = Arrays | MemoryMap | Tokens | Conversations | IndexedSource | Stream

SUPERBATCH = 16
"""Steps per transfer, where one of the sources is on the host."""


def zip_sources(sources: Mapping[str, Part], *, steps_per_epoch: int | None = None) -> ZippedSource:
    """Read several sources in one step, whatever their sizes and batch sizes.

    A batch contains a batch of each source, by name: `batch["labelled"]["inputs"]`. An epoch is one
    epoch of the first source, or `steps_per_epoch`; the others repeat, each in its own order that
    differs from pass to pass. The next pass of a source begins where one ends, also within an
    epoch. Each source has its own position in the state, `carry["position/train"][name]` for the
    phase `train`, so a resumed run continues with the next example of each.

    If all sources are `Arrays`, they stay on the device; otherwise all are read from the host.

    Args:
        sources: name to source, read for training; the first determines the length of an epoch.
        steps_per_epoch: optimizer steps of an epoch.

    Returns:
        A source for `trainer.training`. `for batch in source` iterates over the batches of an
        epoch in the order of the data.

    Raises:
        TypeError: a source is of another kind.
        ValueError: there is no source, or the first does not know the steps of an epoch.

    >>> labelled = Arrays({"inputs": np.arange(4.0), "labels": np.arange(4)}, batch_size=2)
    >>> more = Arrays({"inputs": np.arange(30.0)}, batch_size=3)
    >>> both = zip_sources({"labelled": labelled, "more": more})
    >>> len(both), jax.tree.map(np.shape, both.example)
    (2, {'labelled': {'inputs': (2,), 'labels': (2,)}, 'more': {'inputs': (3,)}})
    """
    if not isinstance(sources, Mapping) or not sources:
        raise ValueError(
            'zip_sources needs sources by name, {"labelled": source, "more": source}; got '
            f"{sources!r:.100}"
        )
    for name, source in sources.items():
        if not isinstance(source, Part):
            raise TypeError(
                "zip_sources reads sources that keep positions, such as data.Arrays, MemoryMap, "
                f"Tokens, Stream, chat and image_folder; got {type(source).__name__} for {name!r}"
            )
    first, source = next(iter(sources.items()))
    if steps_per_epoch is None:
        steps_per_epoch = source.training().steps
    if steps_per_epoch is None:
        raise ValueError(
            f"the first source of a zip, {first!r}, determines the steps of an epoch, which a "
            "Stream does not know; pass steps_per_epoch"
        )
    require_integer("steps_per_epoch", steps_per_epoch, 1)
    return ZippedSource(dict(sources), steps_per_epoch)


@dataclasses.dataclass(frozen=True, eq=False)
class ZippedSource:
    """Several sources that are read in one step, made by `zip_sources`."""

    sources: Mapping[str, Part]
    steps_per_epoch: int

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        cycles = {name: _cycle(source) for name, source in self.sources.items()}
        for _ in range(self.steps_per_epoch):
            yield {name: next(cycle) for name, cycle in cycles.items()}

    @property
    def example(self) -> Batch:
        """The first batch of each."""
        return {name: source.example for name, source in self.sources.items()}

    def training(self) -> Feed:
        """Read each source shuffled, as it is alone, whole batches only.

        Raises:
            ValueError: a source has fewer examples than a batch.
        """
        resident = all(isinstance(source, Arrays) for source in self.sources.values())
        feeds: dict[str, Feed] = {}
        for name, source in self.sources.items():
            try:
                feeds[name] = _with_epoch_steps(source, self.steps_per_epoch, resident).training()
            except (ValueError, TypeError) as error:
                error.add_note(f"in the source {name!r} of a zip")
                raise

        def pieces(
            state: TrainState, check: Check | None, position: PyTree
        ) -> Iterator[tuple[Any, PyTree]]:
            # Each has its own seed; otherwise two of one size would have the same order.
            own = {
                name: state.replace(rng=_fold_in(state.rng, name_number(name))) for name in feeds
            }
            parts = [feed.pieces(own[n], None, position[n]) for n, feed in feeds.items()]
            for group in zip(*parts, strict=True):
                piece = dict(zip(feeds, (part for part, _ in group), strict=True))
                after = dict(zip(feeds, (place for _, place in group), strict=True))
                yield piece, None if None in after.values() else after

        return Feed(
            pieces,
            {name: feed.example for name, feed in feeds.items()},
            _Rows(tuple((name, feed.rows) for name, feed in feeds.items())),
            _Batch(tuple((name, feed.batch) for name, feed in feeds.items())),
            lambda state, check: check(state, map_arrays(np.asarray, self.example)),
            {name: feed.start for name, feed in feeds.items()},
            self.steps_per_epoch,
            repeatable=all(feed.in_turn is None for feed in feeds.values()),
        )

    def evaluation(self) -> Feed:
        """Raise an error: the shorter sources would repeat.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "an evaluation must visit every example exactly once, but the shorter sources of a zip "
            f"repeat; evaluate each of {sorted(self.sources)} in its own phase"
        )


@dataclasses.dataclass(frozen=True)
class _Rows:
    """`(pieces by name, key) -> rows by name`; equal where the parts are equal."""

    parts: tuple[tuple[str, Callable[[Any, jax.Array], Any]], ...]

    def __call__(self, piece: Any, key: jax.Array) -> Any:
        return {name: rows(piece[name], key) for name, rows in self.parts}


@dataclasses.dataclass(frozen=True)
class _Batch:
    """`(pieces by name, row by name) -> batch by name`; equal where the parts are equal."""

    parts: tuple[tuple[str, Callable[[Any, Any], Any]], ...]

    def __call__(self, piece: Any, row: Any) -> Any:
        return {name: batch(piece[name], row[name]) for name, batch in self.parts}


def _with_epoch_steps(source: Part, steps: int, resident: bool) -> Part:
    """Return a source whose epochs have this many steps, in superbatches like the others."""
    if resident:
        return dataclasses.replace(source, steps_per_epoch=steps)
    superbatch = balance_chunk_steps(steps, SUPERBATCH)
    if isinstance(source, Arrays):
        arrays = map_arrays(np.asarray, source.arrays)
        return MemoryMap(arrays, source.batch_size, superbatch=superbatch, steps_per_epoch=steps)
    return dataclasses.replace(source, superbatch=superbatch, steps_per_epoch=steps)


def _cycle(source: Part) -> Iterator[Batch]:
    """Yield whole batches in order, pass after pass."""
    size = len(jax.tree.leaves(source.example)[0])
    while True:
        yield from (batch for batch in source if len(jax.tree.leaves(batch)[0]) == size)


@jax.jit
def _fold_in(rng: jax.Array, number: np.uint32) -> jax.Array:
    return jax.random.fold_in(rng, number)
