"""Checkpoints in a bucket: their data first, under names of their own, and the manifest last.

    <run>/checkpoints/12/manifest.json         names its data
    <run>/data/12.<run's nonce>-<save>/...     the parts of the processes

Whatever is killed, a manifest has all its data: nothing is ever renamed or written twice.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable
from typing import Any

from trainer.checkpoints.storage.bucket_path import BucketError, BucketPath
from trainer.checkpoints.storage.directory_lock import DirectoryInUse
from trainer.checkpoints.storage.disk_checkpoints import MANIFEST
from trainer.checkpoints.storage.lease import check_lease

log = logging.getLogger("entracte")

DATA = re.compile(r"(0|[1-9][0-9]*)\.[0-9a-f]+-[0-9]+")
"""The names of data: all else below `data` is not this library's."""

_CHECKPOINT = re.compile(r"(0|[1-9][0-9]*)/" + re.escape(MANIFEST))


ReadName = Callable[[bytes], Any]
"""Returns what the content of a manifest says of its data, None if it is damaged."""


class UnknownOutcomeError(BucketError):
    """A bucket did not say whether it wrote a manifest: its data must stay."""


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
    """List the numbers of the checkpoints, ascending: each has a manifest and is complete."""
    found = (_CHECKPOINT.fullmatch(key) for key in directory.list_keys())
    return sorted(int(key[1]) for key in found if key)


def publish(
    stage: BucketPath,
    number: int,
    manifest: bytes,
    read_name: ReadName,
) -> None:
    """Write the manifest of a checkpoint whose data is staged; remove the data it had before.

    Args:
        stage: with the data, which the manifest names.
        number: of the checkpoint.
        manifest: the content.
        read_name: of the data of the checkpoint that has this number now.

    Raises:
        DirectoryInUse: the lease of this run was lost, or another process wrote this checkpoint.
        UnknownOutcomeError: the bucket did not say whether it wrote the manifest.
    """
    directory = get_checkpoints(stage)
    file = directory / str(number) / MANIFEST
    content, before = file.read_with_generation()
    replaced = _find_data(directory, number, content, read_name)
    check_lease(directory.parent)
    try:
        written = file.replace(manifest, None if content is None else before)
    except BucketError as error:
        raise UnknownOutcomeError(str(error)) from error
    if written is None:
        raise DirectoryInUse(
            f"another process wrote checkpoint {number} in {directory} while this one saved it: "
            "give this run another path, or end that process first"
        )
    if replaced is not None and replaced != stage:
        remove_tree(replaced)


def remove_tree(path: BucketPath) -> None:
    """Remove the objects below a path; what cannot be removed stays, and is logged."""
    try:
        path.remove_all()
    except BucketError as error:
        log.warning("what is left of %s takes space until the next run: %s", path, error)


def remove(directory: BucketPath, number: int, read_name: ReadName) -> None:
    """Remove a checkpoint: its manifest first, so that none is left that looks complete.

    Raises:
        DirectoryInUse: the lease of this run was lost.
    """
    data = _read_data(directory, number, read_name)
    check_lease(directory.parent)
    (directory / str(number) / MANIFEST).unlink()
    if data is not None:
        remove_tree(data)


def remove_leftovers(stage: BucketPath, read_name: ReadName) -> None:
    """Remove the data that no manifest names: what killed runs staged.

    Of a checkpoint whose manifest cannot be read, all data stays.

    Args:
        stage: of the save in progress, which stays.
        read_name: of the data of a checkpoint.

    Raises:
        DirectoryInUse: the lease of this run was lost.
    """
    directory = get_checkpoints(stage)
    there = [path for path in stage.parent.iterdir() if DATA.fullmatch(path.name)]
    if {*there} <= {stage}:
        return
    data = {number: _read_data(directory, number, read_name) for number in list_numbers(directory)}
    kept = {stage, *data.values()}
    unknown = {str(number) for number, path in data.items() if path is None}
    check_lease(directory.parent)
    for path in there:
        if path not in kept and path.name.partition(".")[0] not in unknown:
            remove_tree(path)


def _read_data(directory: BucketPath, number: int, read_name: ReadName) -> BucketPath | None:
    content, _ = (directory / str(number) / MANIFEST).read_with_generation()
    return _find_data(directory, number, content, read_name)


def _find_data(
    directory: BucketPath, number: int, content: bytes | None, read_name: ReadName
) -> BucketPath | None:
    """Return where the data of a checkpoint is; None if its manifest does not say.

    The data of another number is never meant: a manifest may have been copied.
    """
    name = None if content is None else read_name(content)
    found = DATA.fullmatch(name) if isinstance(name, str) else None
    return get_stage(directory, found[0]) if found and found[1] == str(number) else None
