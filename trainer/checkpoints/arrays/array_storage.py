"""The file with the bytes of arrays that one process wrote: durable, and read by ranges."""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.checkpoints.arrays.bucket_arrays import (
    has_all_objects,
    load_from_bucket,
    save_to_bucket,
)
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.two_threads import map_in_threads
from trainer.checkpoints.storage.bucket_path import BucketPath
from trainer.checkpoints.storage.run_paths import RunPath
from trainer.host.atomic_files import check_free_space, explain_disk_full
from trainer.host.safe_open import create_new, describe_file_type, open_regular

_CHUNK = 2**25
"""Bytes that one thread writes or reads at a time."""


def save_arrays(
    file: RunPath, data: np.ndarray, ranges: Sequence[tuple[int, int]] | None = None
) -> None:
    """Write the bytes of arrays into a new file, durably. The manifest names its parts.

    Orbax takes 1 to 3 CPU-ms for each array, which slow training down when XLA keeps all cores
    busy; one file takes less than that for all of them.

    Args:
        file: in a folder that exists.
        data: uint8 [bytes].
        ranges: `(start, stop)` of the data, written one after another; None: all of it.

    Raises:
        BucketError: its bucket refuses them.
        OSError: there is not enough space, or the disk fails.
    """
    ranges = [(0, data.nbytes)] if ranges is None else ranges
    if isinstance(file, BucketPath):
        save_to_bucket(file, data, ranges)
        return
    size = sum(stop - start for start, stop in ranges)
    check_free_space(file, size)
    with explain_disk_full(size, file):
        descriptor = create_new(file)
        try:
            chunks = _split(ranges)
            ends = itertools.accumulate((stop - start for start, stop in chunks), initial=0)
            jobs = [(*chunk, at) for chunk, at in zip(chunks, ends, strict=False)]
            map_in_threads(lambda job: _write_range(descriptor, data, *job), jobs, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_range(descriptor: int, data: np.ndarray, start: int, stop: int, at: int) -> None:
    """Write a range of the data at a place in a file."""
    while start < stop:
        count = os.pwrite(descriptor, data[start:stop].data, at)
        start, at = start + count, at + count


def share_arrays(source: RunPath, target: RunPath, size: int) -> bool:
    """Give the bytes of arrays that an earlier save wrote to another checkpoint, too.

    On a disk they get a second name (a hard link), and stay until the last name is removed. In a
    bucket they stay where they are, until no checkpoint refers to them.

    Args:
        source: the file that has them.
        target: their name in the other checkpoint, whose folder exists; in a bucket the same.
        size: bytes in all.

    Returns:
        Whether they are there, whole, under the other name: not every file system has such names,
        and somebody may have removed the file.

    Raises:
        BucketError: the bucket does not answer.
    """
    if isinstance(source, BucketPath):
        return has_all_objects(source, size)
    try:
        check_array_file(source, size)
        os.link(source, str(target), follow_symlinks=False)
    except (DamagedCheckpoint, OSError):
        return False
    return True


def load_arrays(file: RunPath, size: int, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Read ranges of the bytes of arrays; the others take no memory, and are zeros.

    The caller verifies checksums.

    Args:
        file: a regular file of `size` bytes; no link is followed.
        size: bytes in all.
        ranges: `(start, stop)`, ascending.

    Returns:
        uint8 [size].

    Raises:
        BucketError: their bucket cannot be read.
        DamagedCheckpoint: they cannot be read, or the file is another one.
        MemoryError: they take more memory than the machine has free.
    """
    try:
        if isinstance(file, Path):
            check_array_file(file, size)
        needed = sum(stop - start for start, stop in ranges)
        if needed > (memory := get_free_memory()):
            raise MemoryError(
                f"the arrays in {file} take {needed:,} bytes and this machine has {memory:,} "
                "free: restore where there is more memory, or move the checkpoint away"
            )
        # Pages of it are taken when they are written, and their sum is not limited.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        buffer = np.frombuffer(mmap.mmap(-1, max(size, 1), flags=flags), np.uint8)[:size]
        if isinstance(file, BucketPath):
            load_from_bucket(file, buffer, ranges)
            return buffer
        descriptor = open_regular(file)
        try:
            jobs = _split(ranges)
            map_in_threads(lambda job: _read_range(descriptor, buffer, *job), jobs, needed)
        finally:
            os.close(descriptor)
        return buffer
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"the arrays in {file} take {size:,} bytes") from error
        raise DamagedCheckpoint(
            f"its arrays cannot be read ({type(error).__name__}: {error})"
        ) from error


def _read_range(descriptor: int, buffer: np.ndarray, start: int, stop: int) -> None:
    while start < stop:
        if not (count := os.preadv(descriptor, [buffer[start:stop].data], start)):
            raise DamagedCheckpoint("its arrays end too early")
        start += count


def _split(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that are adjacent, and split them into chunks."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return [
        (at, min(at + _CHUNK, stop)) for start, stop in joined for at in range(start, stop, _CHUNK)
    ]


def check_array_file(file: Path, size: int) -> None:
    """Check that a file is a regular one of `size` bytes, in a folder that is no link.

    Raises:
        DamagedCheckpoint: it is anything else.
    """
    _check_kind(file.parent, stat.S_IFDIR, "folder")
    _check_kind(file, stat.S_IFREG, "file")
    if (found := file.lstat().st_size) != size:
        raise DamagedCheckpoint(f"{_short(file)} has {found} bytes instead of {size}")


def _check_kind(path: Path, kind: int, name: str) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise DamagedCheckpoint(f"{_short(path)} is missing ({error.strerror})") from error
    if stat.S_IFMT(mode) != kind:
        raise DamagedCheckpoint(f"{_short(path)} is {describe_file_type(mode)} and no {name}")


def _short(path: Path) -> str:
    """Return a file's name with its folder: `arrays/process_0`."""
    return "/".join(path.parts[-2:])


def get_free_memory() -> int:
    """Return the bytes of memory that this process could allocate.

    A sparse file can claim any size, and a process that allocates too much is killed.

    >>> get_free_memory() > 0
    True
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):  # not on Linux
        words = Path("/proc/meminfo").read_text().split()
        limits.append(int(words[words.index("MemAvailable:") + 1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # not in a container, or one without a limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)
