"""Paths of runs, on a disk or in a bucket, and the few things that are done at both."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from trainer.checkpoints.storage import bucket_checkpoints
from trainer.checkpoints.storage.bucket_path import BucketPath, parse_bucket_url
from trainer.checks.paths import to_absolute_path
from trainer.host.atomic_files import sync_folder, write_durably
from trainer.host.safe_open import read_bytes

RunPath = Path | BucketPath

Item = TypeVar("Item")
Result = TypeVar("Result")

_REQUESTS = 16
"""Requests at once: each takes some 30 ms, most of it waiting."""


def to_run_path(path: str | os.PathLike[str] | BucketPath, who: str = "") -> RunPath:
    """Return the path of a run directory that a user named: a local one is made absolute.

    Args:
        path: local, or a URL: `s3://bucket/runs/digits`, `gs://bucket/runs/digits`.
        who: what takes it, for the message.

    Raises:
        TypeError, ValueError: as `to_absolute_path`, or the URL is malformed.

    >>> print(to_run_path("s3://models/runs/digits"), to_run_path("/runs/digits"))
    s3://models/runs/digits /runs/digits
    """
    if isinstance(path, BucketPath):
        return path
    if isinstance(path, str | os.PathLike) and isinstance(text := os.fspath(path), str):
        try:
            found = parse_bucket_url(text)
        except ValueError as error:
            raise ValueError(f"{who or 'this'}: {error}") from None
        if found is not None:
            return found
    return to_absolute_path(path, who)


def make_folder(folder: RunPath) -> None:
    """Make a folder in one that exists, if it is not there yet; a bucket needs none."""
    if isinstance(folder, Path):
        folder.mkdir(exist_ok=True)


def write_whole(file: RunPath, content: bytes) -> None:
    """Write a new file durably: others see all of it or none."""
    if isinstance(file, BucketPath):
        file.write_bytes(content)
        return
    beside = file.with_suffix(".tmp")
    write_durably(beside, content)
    beside.rename(file)
    sync_folder(file.parent)


def read_whole(file: RunPath, *, most: int) -> bytes:
    """Read a file that has `most` bytes at most.

    Raises:
        BucketError: its bucket cannot be read.
        OSError: it is missing, cannot be read, or is larger.
    """
    if isinstance(file, Path):
        return read_bytes(file, most=most)
    content = file.read_bytes()
    if len(content) > most:
        raise OSError(f"{file} has {len(content)} bytes, and may have {most}")
    return content


def map_requests(
    function: Callable[[Item], Result], items: Sequence[Item], folder: RunPath
) -> list[Result]:
    """Call a function that reads from a folder with each item; several at once in a bucket.

    >>> map_requests(abs, [-1, 2], Path("/runs"))
    [1, 2]
    """
    if isinstance(folder, Path):
        return [function(item) for item in items]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return [*pool.map(function, items)]


def list_names(folder: RunPath) -> set[str]:
    """Return the names of what is in a folder."""
    return {path.name for path in folder.iterdir()}


def remove_tree(folder: RunPath) -> None:
    """Remove a folder with all that is in it; what cannot be removed stays."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        bucket_checkpoints.remove_tree(folder)
