"""The bytes of arrays in a bucket: in several objects, written and read side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.storage.bucket_path import BucketError, BucketPath

CHUNK = 2**26
"""Bytes of each object but the last; several are in flight at once."""

CHUNK_SECONDS = 900.0
"""Seconds to wait for the answer to one of them: all together fill a link of 5 Mbit/s."""

_REQUESTS = 8
"""Requests in flight: on a fast network one does not fill it."""


def save_to_bucket(file: BucketPath, data: np.ndarray, ranges: Sequence[tuple[int, int]]) -> None:
    """Write ranges of the bytes of arrays one after another; they are durable afterwards.

    Args:
        file: below which the objects lie.
        data: uint8 [bytes].
        ranges: `(start, stop)`.

    Raises:
        BucketError: the bucket refuses them, or does not answer.
    """

    def begin(job: tuple[int, list[tuple[int, int]]]) -> Any:
        number, parts = job
        content = b"".join([data[start:stop].data for start, stop in parts])
        return file.store.write(_get_key(file, number), content)

    _run(file, enumerate(_split(ranges)), begin, lambda number, answer: None)


def _split(ranges: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield the ranges of one object after another."""
    parts, room = [], CHUNK
    for start, end in ranges:
        while start < end:
            stop = min(end, start + room)
            parts.append((start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield parts
                parts, room = [], CHUNK
    if parts:
        yield parts


def has_all_objects(file: BucketPath, size: int) -> bool:
    """Return whether all objects of an array file of `size` bytes are there."""
    return len(file.list_keys()) == -(-size // CHUNK)


def load_from_bucket(
    file: BucketPath, buffer: np.ndarray, ranges: Sequence[tuple[int, int]]
) -> None:
    """Read ranges of the bytes of arrays into a buffer, uint8 [bytes in all].

    Args:
        file: that was written with as many bytes as the buffer has.
        buffer: what is in no range is left alone.
        ranges: `(start, stop)`.

    Raises:
        BucketError: the bucket cannot be read.
        DamagedCheckpoint: an object is missing or too short.
    """
    jobs = [
        (at, min(stop, (at // CHUNK + 1) * CHUNK))
        for start, stop in ranges
        for at in [start, *range((start // CHUNK + 1) * CHUNK, stop, CHUNK)]
        if start < stop
    ]

    def begin(job: tuple[int, int]) -> Any:
        number = job[0] // CHUNK
        within = slice(job[0] - number * CHUNK, job[1] - number * CHUNK)
        return file.store.read(_get_key(file, number), byte_range=within)

    def finish(job: tuple[int, int], answer: Any) -> None:
        if len(answer.value) != job[1] - job[0]:
            raise DamagedCheckpoint(f"an object of its arrays is missing: {file}")
        buffer[slice(*job)] = np.frombuffer(answer.value, np.uint8)

    try:
        _run(file, jobs, begin, finish)
    except BucketError as error:
        if str(error.__cause__).startswith("OUT_OF_RANGE"):
            raise DamagedCheckpoint(f"an object of its arrays is too short: {file}") from error
        raise


def _get_key(file: BucketPath, number: int) -> str:
    return f"{file.key}/{number:06}"


def _run(
    file: BucketPath,
    jobs: Iterable[Any],
    begin: Callable[[Any], Any],
    finish: Callable[[Any, Any], None],
) -> None:
    """Run requests, several at once, and give each answer to `finish`, in order."""
    flying: deque[tuple[Any, Any]] = deque()

    def land() -> None:
        job, request = flying.popleft()
        finish(job, file.await_answer(request, CHUNK_SECONDS))

    for job in jobs:
        if len(flying) == _REQUESTS:
            land()
        flying.append((job, begin(job)))
    while flying:
        land()
