"""Checkpoints in a bucket: their data first, under names of their own, and the manifest last.

    <run>/checkpoints/12/manifest.json         names its data
    <run>/data/12.<run's nonce>-<save>/...     the parts of the processes

Whatever is killed, a manifest has all its data: nothing is ever renamed or written twice.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from trainer.checkpoints.storage.bucket_path import BucketPath
from trainer.checkpoints.storage.disk_checkpoints import MANIFEST
from trainer.checkpoints.storage.lease import check_lease

_NUMBER = re.compile(r"0|[1-9][0-9]*")


def get_stage(directory: BucketPath, name: str) -> BucketPath:
    """Return the path below which the data of a checkpoint lies, staged or published."""
    return directory.parent / "data" / name


def get_checkpoints(stage: BucketPath) -> BucketPath:
    """Return the path of the checkpoints, the opposite of `get_stage`."""
    return stage.parent.parent / "checkpoints"


def ensure_writable(directory: BucketPath) -> None:
    """Write an object beside the checkpoints, and remove it: raise now, rather than at a save."""
    token = directory.parent / f"writable-{secrets.token_hex(8)}"
    token.touch()
    token.unlink()


def list_numbers(directory: BucketPath) -> list[int]:
    """List the numbers of the checkpoints, ascending: each is complete."""
    names = (path.name for path in directory.iterdir())
    return sorted(int(name) for name in names if _NUMBER.fullmatch(name))


def publish(stage: BucketPath, number: int, manifest: bytes, replaced: BucketPath | None) -> None:
    """Write the manifest of a checkpoint whose data is staged; remove the data it had before.

    Args:
        stage: with the data, which the manifest names.
        number: of the checkpoint.
        manifest: the content.
        replaced: the data of an earlier checkpoint of this number.

    Raises:
        DirectoryInUse: the lease of this run was lost.
    """
    directory = get_checkpoints(stage)
    check_lease(directory.parent)
    (directory / str(number) / MANIFEST).write_bytes(manifest)
    if replaced is not None:
        replaced.remove_all()


def remove(directory: BucketPath, number: int, data: BucketPath | None) -> None:
    """Remove a checkpoint: its manifest first, so that none is left that looks complete."""
    (directory / str(number)).remove_all()
    if data is not None:
        data.remove_all()


def remove_leftovers(directory: BucketPath, find_data: Callable[[int], BucketPath | None]) -> None:
    """Remove the data that no manifest names: what killed runs staged.

    Args:
        directory: of the checkpoints.
        find_data: returns the path of the data that a checkpoint's manifest names.
    """
    there = [*get_stage(directory, "").parent.iterdir()]
    named = {find_data(number) for number in list_numbers(directory)} if there else ()
    for path in there:
        if path not in named:
            path.remove_all()
