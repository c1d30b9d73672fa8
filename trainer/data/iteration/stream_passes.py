"""Reading the passes of a stream from a saved position on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from trainer.data.batches import Batch
from trainer.data.iteration.positions import Position, make_position, read_place

Factory = Callable[[int, int], Iterable[Batch]]
"""`(seed, epoch or pass) -> batches`: equal arguments must return equal batches."""

MIN_STATE_BYTES = 4096
"""The least number of bytes for an iterator's state; Grain's take 20 to a few hundred."""

GROWTH = 8
"""The factor by which an iterator's state may grow after the first batch."""

NOTE = "; this is right if the order of the examples does not depend on the size of a batch"


Whole = Callable[[Iterable[Batch], str, int], Iterator[Batch]]
"""`(batches, where, first)`: yields the whole batches of an iterable, checked. `where` names the
pass in messages, and `first` is the number of the first."""


class PassIterator:
    """An endless iterator over the whole batches of pass after pass, from a position on.

    After an exception it must not be used again.

    Args:
        batches: `(seed, pass) -> batches`.
        whole: yields the whole batches of the rest of a pass.
        batch_size: examples of a whole batch.
        seed: of the run.
        position: to begin at, possibly reached with another batch size.

    Raises:
        ValueError: a pass has no whole batch, or ends before the position.
    """

    def __init__(
        self, batches: Factory, whole: Whole, batch_size: int, seed: int, position: Position
    ) -> None:
        self._batches, self._whole, self._seed = batches, whole, seed
        self._batch_size = batch_size
        self._before = before = int(position["batch_size"])
        self._number, self._read = read_place(position, batch_size, NOTE)
        self._room = len(position.get("iterator", ()))
        # The state of an iterator over batches of another size cannot be used.
        usable = self._room and before == batch_size
        self._open(decode_state(position["iterator"]) if usable else None)

    def __iter__(self) -> Iterator[Batch]:
        """Return itself."""
        return self

    def __next__(self) -> Batch:
        """Return the next whole batch, from the next pass if this one has ended."""
        while (batch := next(self._rest, None)) is None:
            if self._read == 0:
                raise ValueError(
                    f"the stream had no whole batch in pass {self._number + 1}; pass a list or a "
                    "factory, which can be iterated in every pass"
                )
            self._number, self._read = self._number + 1, 0
            self._before = self._batch_size
            self._open(None)
        self._read += 1
        return batch

    def is_at(self, seed: int, position: Position) -> bool:
        """Return whether it is at this position, in the run of this seed."""
        here = self.position()
        return seed == self._seed and all(
            np.array_equal(here[name], position[name]) for name in here.keys() | position.keys()
        )

    def position(self) -> Position:
        """Return its position, in arrays of fixed shapes."""
        place = make_position((self._number, self._read), self._batch_size)
        if not self._room:
            return place
        return {**place, "iterator": encode_state(self._iterator.get_state(), self._room)}

    def _open(self, state: Any) -> None:
        """Open a pass after the batches that were read of it; `state` is its iterator's own."""
        batches: Any = self._batches(self._seed, self._number)
        if self._read and self._before != self._batch_size and getattr(batches, "by_batch", False):
            raise ValueError(
                f"the run shuffled batches of {self._before} examples, and cannot resume within a "
                f"pass with batches of {self._batch_size}, whose order differs: keep the size, or "
                "start again and let from_grain(dataset, batch_size=...) make the batches from "
                "shuffled examples"
            )
        where = f"pass {self._number + 1}"
        if state is None and self._read and hasattr(batches, "iterate_from"):
            self._iterator = rest = batches.iterate_from(self._read)
        else:
            self._iterator = rest = iter(batches)
            if state is not None:
                self._iterator.set_state(state)
            else:
                rest = _skip_batches(batches, rest, self._read, where)
        self._rest = self._whole(rest, where, self._read)


def initial_position(iterator: Iterator[Batch], batch_size: int) -> Position:
    """Return the position at the beginning, with room for the state of iterators like this one.

    The iterator has yielded its first batch.

    >>> initial_position(iter([]), 8)
    {'place': array([0, 0], dtype=int32), 'batch_size': array(8, dtype=int32)}
    """
    start = make_position((0, 0), batch_size)
    if not hasattr(iterator, "get_state"):
        return start
    room = max(MIN_STATE_BYTES, GROWTH * len(_to_bytes(iterator.get_state())))
    # A power of two, so that the shape stays if the state is a little longer in another run.
    return {**start, "iterator": np.zeros(1 << (room - 1).bit_length(), np.uint8)}


def encode_state(state: Any, room: int) -> np.ndarray:
    """Write an iterator's state, JSON data or bytes, into a buffer of fixed size.

    Returns:
        uint8 `[room]`: the length of the state in 4 bytes, the state, zeros.

    Raises:
        TypeError: the state is neither JSON data nor bytes.
        ValueError: it is longer than the buffer.

    >>> decode_state(encode_state({"next_index": 3}, room=64))
    {'next_index': 3}
    """
    written = _to_bytes(state)
    if len(written) + 4 > room:
        raise ValueError(
            f"the state of a stream's iterator must fit the {room - 4} bytes that were reserved "
            f"at the beginning, {GROWTH} times its first length or more; got {len(written)} bytes: "
            "pass an iterator whose state does not grow, or one without get_state, which is read "
            "from the start of the pass and skipped forward"
        )
    buffer = np.zeros(room, np.uint8)
    buffer[:4] = np.frombuffer(len(written).to_bytes(4, "little"), np.uint8)
    buffer[4 : 4 + len(written)] = np.frombuffer(written, np.uint8)
    return buffer


def decode_state(buffer: np.ndarray) -> Any:
    """Read the state that `encode_state` wrote; None from a buffer of zeros."""
    content = np.asarray(buffer).tobytes()
    written = content[4 : 4 + int.from_bytes(content[:4], "little")]
    if not written:
        return None
    return written[1:] if written[:1] == b"b" else json.loads(written[1:])


def _to_bytes(state: Any) -> bytes:
    """Convert to bytes, the first of which distinguishes JSON from bytes."""
    if isinstance(state, bytes):
        return b"b" + state
    try:
        return b"j" + json.dumps(state).encode()
    except (TypeError, ValueError) as error:
        raise TypeError(
            "get_state of a stream's iterator must return JSON data or bytes, as Grain's do; got "
            f"{state!r:.200} ({error}): return one of these, or pass an iterator without get_state"
        ) from error


def _skip_batches(
    batches: Any, iterator: Iterator[Batch], read: int, where: str
) -> Iterator[Batch]:
    """Return the batches after those read: a sequence is indexed, an iterator is consumed."""
    rest = iterator
    if read and hasattr(batches, "__len__") and hasattr(batches, "__getitem__"):
        skipped = min(read, len(batches))
        rest = (batches[index] for index in range(read, len(batches)))
    else:
        skipped = sum(1 for _ in itertools.islice(iterator, read))
    if skipped < read:
        raise ValueError(
            f"{where} must have the {read} batches that were read of it; got {skipped}: resume "
            "with the original data"
        )
    return rest
