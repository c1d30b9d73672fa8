"""Several sources in one batch, each example drawn from one of them by weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from trainer.checks.arguments import require_integer
from trainer.checks.pytrees import list_differences
from trainer.data.adapters.indexed_source import IndexedSource
from trainer.data.arrays import Arrays
from trainer.data.batches import Batch, map_arrays
from trainer.data.conversations.conversation_source import Conversations
from trainer.data.iteration import chunks
from trainer.data.iteration.draws import DrawPosition, Draws, draw_batch
from trainer.data.iteration.index_loader import (
    IndexedRows,
    Prefetcher,
    balance_chunk_steps,
    check_content,
)
from trainer.data.iteration.mixing_weights import Weight, compute_shares, evaluate_weight
from trainer.data.iteration.permutation import permute_indices
from trainer.data.memory_map import MemoryMap
from trainer.data.source import Check, Feed
from trainer.data.tokens import Tokens
from trainer.placement.constraints import list_local_rows
from trainer.placement.meshes import get_mesh
from trainer.state import PyTree, TrainState, name_number, stream_seed

Ingredient = Arrays | MemoryMap | Tokens | Conversations | IndexedSource

SUPERBATCH = 16
"""Steps per transfer."""


def mixture(
    sources: Mapping[str, Ingredient],
    *,
    weights: Mapping[str, Weight],
    steps_per_epoch: int | None = None,
) -> Mixture:
    """Fill each batch with examples of several sources, in proportion to weights.

    Each example comes from the source that is furthest behind its share, so the proportions hold
    in every batch, to an example, and not by chance alone. Weights are relative, and may follow a
    schedule. Each source has its own order, which differs from pass to pass, and its own position
    in the state, at `carry["position/train"]["sources"][name]` for the phase `train`: a resumed run
    continues with the next example of each, also with other weights or another batch size.

    Args:
        sources: name to source, whose batches have the same arrays and size.
        weights: name to a number, or to a function of the step or a table `{step: weight}`. Steps
            are batches of the mixture, counted from 0.
        steps_per_epoch: optimizer steps of an epoch; None: as many as all examples together fill.

    Returns:
        A source for `trainer.training`. `for batch in source` iterates over the batches of the
        first epoch, with the examples of each source in order.

    Raises:
        TypeError: a source is of another kind, or a weight is no number.
        ValueError: there is no source, their batches differ, the names of weights are not those of
            the sources, a weight is negative or not finite, or all are zero.

    >>> few = MemoryMap({"inputs": np.arange(3)}, batch_size=4)
    >>> many = MemoryMap({"inputs": np.arange(100, 140)}, batch_size=4)
    >>> both = mixture({"few": few, "many": many}, weights={"few": 1, "many": 3})
    >>> [batch["inputs"].tolist() for batch in both][:2]
    [[100, 0, 101, 102], [103, 1, 104, 105]]
    """
    if not isinstance(sources, Mapping) or not sources:
        raise ValueError(
            f'mixture needs sources by name, {{"a": source, "b": source}}; got {sources!r:.100}'
        )
    for name, source in sources.items():
        if not isinstance(source, Ingredient):
            raise TypeError(
                "mixture reads sources whose examples have numbers, such as data.Arrays, "
                f"MemoryMap, Tokens, chat and image_folder; got {type(source).__name__} for "
                f"{name!r}: mix within the function of a Stream"
            )
    if not isinstance(weights, Mapping) or weights.keys() != sources.keys():
        got = sorted(weights) if isinstance(weights, Mapping) else weights
        raise ValueError(f"weights must be given for {sorted(sources)}; got {got!r:.100}")
    rows = {name: _index(source) for name, source in sources.items()}
    _check_alike(rows)
    if steps_per_epoch is None:
        batch_size = next(iter(rows.values())).batch_size
        steps_per_epoch = max(1, sum(one.size for one in rows.values()) // batch_size)
    require_integer("steps_per_epoch", steps_per_epoch, 1)
    made = Mixture(dict(sources), dict(weights), steps_per_epoch, rows)
    made.compute_shares(0)
    return made


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Several sources in one batch, made by `mixture`."""

    sources: Mapping[str, Ingredient]
    weights: Mapping[str, Weight]
    steps_per_epoch: int
    _rows: Mapping[str, IndexedRows] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        position = _begin(len(self._rows))
        for _ in range(self.steps_per_epoch):
            draws, position = self._draw(position)
            yield self._read(draws, draws.examples)

    @property
    def batch_size(self) -> int:
        """Examples per step, of all processes together."""
        return next(iter(self._rows.values())).batch_size

    @property
    def example(self) -> Batch:
        """The first batch."""
        return next(iter(self))

    def compute_shares(self, step: int) -> tuple[int, ...]:
        """Return the shares of the sources at a step, whole numbers with a constant sum.

        Raises:
            TypeError: a schedule returns no number.
            ValueError: a weight is negative or not finite, or all are zero.
        """
        weights = [evaluate_weight(name, self.weights[name], step) for name in self._rows]
        return compute_shares(weights, f"weights at step {step} of {', '.join(self._rows)}")

    def training(self) -> Feed:
        """Read each source shuffled, pass after pass."""
        steps = self.steps_per_epoch
        most = balance_chunk_steps(steps, SUPERBATCH)

        @functools.lru_cache(maxsize=4)  # a piece, and the one after it, in two threads
        def draw(position: DrawPosition, count: int) -> tuple[Draws, DrawPosition]:
            drawn = []
            for _ in range(count):
                draws, position = self._draw(position)
                drawn.append(draws)
            return Draws(*map(np.stack, zip(*drawn, strict=True))), position

        def gather(key: tuple[Mesh | None, int, DrawPosition, int]) -> Batch:
            mesh, seed, position, count = key
            here = list_local_rows(mesh, self.batch_size)
            draws = Draws(*(array[:, here] for array in draw(position, count)[0]))
            return self._read(draws, self._shuffle(draws, seed))

        prefetch = Prefetcher(gather)

        def pieces(
            state: TrainState, check: Check | None, position: PyTree
        ) -> Iterator[tuple[Any, PyTree]]:
            here, mesh, seed, left = (
                self._load(position),
                get_mesh(state),
                stream_seed(state),
                steps,
            )
            while left:
                count = min(most, left)
                left -= count
                _, after = draw(here, count)
                piece = prefetch(
                    (mesh, seed, here, count), then=(mesh, seed, after, min(most, left or steps))
                )
                placed = chunks.transfer_chunk(piece, state, check, batch=self.batch_size)
                yield placed, None if left else self._save(after)
                here = after

        feed = chunks.make_chunk_feed(pieces, self.example, most)
        start = self._save(_begin(len(self._rows)))
        return feed._replace(start=start, steps=steps, repeatable=True, verify=self._verify)

    def evaluation(self) -> Feed:
        """Raise an error: examples would repeat.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "an evaluation must visit every example exactly once, but a mixture visits some more "
            f"often than others; evaluate each of {sorted(self.sources)} in its own phase"
        )

    def _draw(self, position: DrawPosition) -> tuple[Draws, DrawPosition]:
        sizes = [one.size for one in self._rows.values()]
        return draw_batch(position, sizes, self.compute_shares(position.step), self.batch_size)

    def _shuffle(self, draws: Draws, seed: int) -> np.ndarray:
        """Return the examples that stand at these places of their passes."""
        indices = np.zeros_like(draws.examples)
        for source, (name, rows) in enumerate(self._rows.items()):
            # Each has its own seed; otherwise two of one size would have the same order.
            own = int(np.random.SeedSequence((seed, int(name_number(name)))).generate_state(1)[0])
            for number in np.unique(draws.passes[draws.sources == source]):
                these = (draws.sources == source) & (draws.passes == number)
                indices[these] = permute_indices(draws.examples[these], rows.size, own, int(number))
        return indices

    def _read(self, draws: Draws, indices: np.ndarray) -> Batch:
        """Read examples, `[*draws, ...]`, at these indices of their sources."""
        shape = draws.sources.shape
        leaves: list[np.ndarray] = []
        for source, rows in enumerate(self._rows.values()):
            here = draws.sources == source
            if not here.any():
                continue
            found, structure = jax.tree.flatten(rows.read(indices[here]))
            if not leaves:
                leaves = [np.zeros((*shape, *one.shape[1:]), one.dtype) for one in found]
            for whole, part in zip(leaves, found, strict=True):
                whole[here] = part
        return jax.tree.unflatten(structure, leaves)

    def _save(self, position: DrawPosition) -> PyTree:
        parts = zip(self._rows.items(), position.places, position.credits, strict=True)
        sources = {
            name: {
                "place": np.array(place, np.int32),
                "credit": np.array(credit, np.int32),
                "content": rows.content_hash,
            }
            for (name, rows), place, credit in parts
        }
        return {"step": np.array(position.step, np.int32), "sources": sources}

    def _load(self, position: PyTree) -> DrawPosition:
        parts = [position["sources"][name] for name in self._rows]
        for rows, part in zip(self._rows.values(), parts, strict=True):
            check_content(part["content"], rows.content_hash)
        places = tuple(tuple(part["place"].tolist()) for part in parts)
        return DrawPosition(int(position["step"]), places, tuple(int(p["credit"]) for p in parts))

    def _verify(self, state: TrainState, check: Check) -> None:
        for (name, source), rows in zip(self.sources.items(), self._rows.values(), strict=True):
            try:
                if isinstance(source, Conversations):
                    source.verify(state, check)
                else:
                    check(state, rows.example)
            except (ValueError, TypeError) as error:
                error.add_note(f"in the source {name!r} of a mixture")
                raise


def _begin(sources: int) -> DrawPosition:
    return DrawPosition(0, ((0, 0),) * sources, (0,) * sources)


def _index(source: Ingredient) -> IndexedRows:
    """Return the examples of a source by index, on the host."""
    if isinstance(source, Arrays):
        source = MemoryMap(map_arrays(np.asarray, source.arrays), source.batch_size)
    return source.training_rows


def _check_alike(rows: Mapping[str, IndexedRows]) -> None:
    """Raise ValueError unless the batches of all sources have the same arrays and size."""
    (first, model), *others = rows.items()
    for name, one in others:
        if lines := list_differences(model.example, one.example):
            raise ValueError(
                f"the sources of a mixture must have batches of the same arrays and size; from "
                f"{first!r} to {name!r}:\n  " + "\n  ".join(lines) + "\nmake them with one "
                'batch_size and one length, and text with data.chat, which reads {"text": ...}'
            )
