"""Reading examples by index: shuffled or in order, gathered one superbatch ahead of use."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import xxhash
from jax.sharding import Mesh

from trainer.checks.arguments import require_integer
from trainer.data.batches import Batch, count_whole_batches, require_whole_pass
from trainer.data.iteration import chunks, positions
from trainer.data.iteration.permutation import permute_indices
from trainer.data.source import POSITION, Check, Feed
from trainer.host.time_spans import span
from trainer.placement.constraints import list_local_rows
from trainer.placement.meshes import get_mesh
from trainer.state import TrainState, stream_seed


class IndexedRows(NamedTuple):
    """Examples on the host that can be read by index, and how to read them."""

    size: int
    """The number of examples."""
    read: Callable[[np.ndarray], Batch]
    """`indices -> batch`: integer indices of any shape to arrays `[*indices, ...]`."""
    content: str
    """A text that identifies the data."""
    batch_size: int
    """Examples per step, of all processes together."""
    superbatch: int
    """Steps per transfer."""
    steps_per_epoch: int | None
    """Optimizer steps per epoch of training; None: an epoch is one pass."""

    @property
    def example(self) -> Batch:
        """The first batch, padded with the last example if there are too few."""
        return self.read(np.minimum(np.arange(self.batch_size), self.size - 1))

    @property
    def content_hash(self) -> np.ndarray:
        """The hash of the data that a position keeps, uint32 `[2]`."""
        return np.frombuffer(xxhash.xxh3_64_digest(self.content.encode()), np.uint32)


def check_settings(rows: IndexedRows) -> None:
    """Check the settings of `IndexedRows`.

    Raises:
        TypeError: a size is no whole number.
        ValueError: a size is below 1.
    """
    for name in ("batch_size", "superbatch", "steps_per_epoch"):
        if (size := getattr(rows, name)) is not None:
            require_integer(name, size, 1)


def make_training_feed(rows: IndexedRows) -> Feed:
    """Read shuffled, whole batches only, pass after pass, each in its own order.

    Raises:
        ValueError: there are fewer examples than a batch.
    """
    whole = count_whole_batches(rows.size, rows.batch_size)
    steps = rows.steps_per_epoch or whole
    most = balance_chunk_steps(steps, rows.superbatch)
    content = rows.content_hash

    def gather(key: tuple[Mesh | None, int, positions.Place, int]) -> Batch:
        mesh, seed, (number, read), left = key
        here = list_local_rows(mesh, rows.batch_size)
        indices = []
        while left:
            batches = np.arange(read, min(whole, read + left))[:, None]
            order = batches * rows.batch_size + here
            indices.append(permute_indices(order, rows.size, seed, number))
            number, read, left = number + 1, 0, left - len(batches)
        return rows.read(np.concatenate(indices))

    prefetch = Prefetcher(gather)

    def position_of(place: positions.Place) -> positions.Position:
        return {**positions.make_position(place, rows.batch_size), "content": content}

    def pieces(
        state: TrainState, check: Check | None, position: positions.Position
    ) -> Iterator[tuple[Any, positions.Position | None]]:
        check_content(position["content"], content)
        mesh, seed, left = get_mesh(state), stream_seed(state), steps
        place = positions.advance_place(positions.read_place(position, rows.batch_size), 0, whole)
        while left:
            count = min(most, left)
            left -= count
            after = positions.advance_place(place, count, whole)
            following = mesh, seed, after, min(most, left or steps)
            piece = prefetch((mesh, seed, place, count), then=following)
            new = None if left else position_of(after)
            yield chunks.transfer_chunk(piece, state, check, batch=rows.batch_size), new
            place = after

    feed = chunks.make_chunk_feed(pieces, rows.example, most)
    return feed._replace(start=position_of((0, 0)), steps=steps, repeatable=True)


def make_evaluation_feed(rows: IndexedRows) -> Feed:
    """Read in order, every example once, the last batch padded under a mask `[batch]`.

    Raises:
        ValueError: an epoch is not a pass.
    """
    require_whole_pass(rows.steps_per_epoch)
    steps = -(-rows.size // rows.batch_size)
    most = balance_chunk_steps(steps, rows.superbatch)

    def gather(key: tuple[Mesh | None, int]) -> tuple[Batch, np.ndarray]:
        mesh, first = key
        batches = np.arange(first, first + most)[:, None]  # the mask hides those past the end
        indices = batches * rows.batch_size + list_local_rows(mesh, rows.batch_size)
        return rows.read(np.minimum(indices, rows.size - 1)), indices < rows.size

    prefetch = Prefetcher(gather)

    def pieces(
        state: TrainState, check: Check | None, position: None
    ) -> Iterator[tuple[Any, None]]:
        mesh = get_mesh(state)
        for first in range(0, steps, most):
            after = first + most if first + most < steps else 0
            piece = prefetch((mesh, first), then=(mesh, after))
            yield chunks.transfer_chunk(piece, state, check, batch=rows.batch_size), None

    feed = chunks.make_chunk_feed(pieces, rows.example, most, masked=True)
    return feed._replace(repeatable=True)


def iterate_in_order(rows: IndexedRows) -> Iterator[Batch]:
    """Yield the batches of a pass in order; the last one may be smaller."""
    for first in range(0, rows.size, rows.batch_size):
        yield rows.read(np.arange(first, min(first + rows.batch_size, rows.size)))


def balance_chunk_steps(steps: int, most: int) -> int:
    """Return the steps per superbatch that make superbatches of equal size, where possible.

    A superbatch of another size would be compiled again in the middle of an epoch.

    >>> balance_chunk_steps(100, 32), balance_chunk_steps(97, 32)
    (25, 25)
    """
    return -(-steps // -(-steps // most))


class Prefetcher:
    """A function that is called one key ahead, in its own thread.

    An exception of the function is raised by the call for that key. The thread ends with this
    object, or with the process, after its current call.

    Args:
        function: its result depends on the key alone, so a prefetched one is as good as a new one.

    >>> prefetch = Prefetcher(lambda number: number**2)
    >>> prefetch(3, then=4), prefetch(4, then=5), prefetch(9, then=10)
    (9, 16, 81)
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        def read(key: Hashable) -> Any:
            with span("read"):
                return function(key)

        self._function = read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="entracte-data")
        self._waiting: dict[Hashable, Future[Any]] = {}

    def __call__(self, key: Hashable, *, then: Hashable) -> Any:
        """Return the result for a key, and start computing that of the next key."""
        result = self._waiting.pop(key, None) or self._thread.submit(self._function, key)
        self._waiting = {then: self._thread.submit(self._function, then)}
        return result.result()


def check_content(saved: np.ndarray, content: np.ndarray) -> None:
    """Raise ValueError if the hash of a position is not that of the given data."""
    if not np.array_equal(saved, content):
        raise ValueError(
            f"the run began with other data: their hash is {_to_hex(saved)} at 'content' of the "
            f"entry {POSITION + '<phase>'!r} in state.carry, and that of the given data is "
            f"{_to_hex(content)}; resume with the original data, or remove the entry from the "
            "carry, to read these from the beginning"
        )


def _to_hex(content: np.ndarray) -> str:
    return f"{int(content.view(np.uint64)[0]):016x}"
