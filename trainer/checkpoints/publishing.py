"""Checkpoints, on a disk or in a bucket: how one is written and published, listed and read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.checkpoints import manifest as manifests
from trainer.checkpoints import manifest_schema, parts
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.piece_index import PieceIndex
from trainer.checkpoints.arrays.sharing import EarlierPieces
from trainer.checkpoints.storage import bucket_checkpoints, disk_checkpoints
from trainer.checkpoints.storage.bucket_checkpoints import NamedData
from trainer.checkpoints.storage.bucket_path import BucketPath
from trainer.checkpoints.storage.directory_lock import find_holder
from trainer.checkpoints.storage.disk_checkpoints import MANIFEST, check_no_link
from trainer.checkpoints.storage.run_paths import RunPath, make_folder, read_whole, remove_tree
from trainer.host.atomic_files import explain_disk_full, write_durably
from trainer.host.safe_open import UnsafeFile

Stamp = tuple[int, int] | bytes
"""Inode and time of a checkpoint's folder, which is renamed into place when it is complete, or the
generation of its manifest in a bucket: a checkpoint that replaces another one has another stamp."""


def ensure_writable(directory: RunPath) -> None:
    """Write to a directory, created if absent: raise now, rather than at the first save.

    Raises:
        BucketError, OSError: it cannot be written.
    """
    if isinstance(directory, Path):
        disk_checkpoints.ensure_writable(directory)
    else:
        bucket_checkpoints.ensure_writable(directory)


def list_epochs(directory: RunPath) -> list[int]:
    """List the numbers of the checkpoints in a directory, ascending, damaged ones and links too."""
    if isinstance(directory, Path):
        return disk_checkpoints.list_numbers(directory)
    return bucket_checkpoints.list_numbers(directory)


def list_complete_epochs(directory: RunPath) -> list[int]:
    """List the numbers of the checkpoints that have a manifest and are no links, ascending."""
    if isinstance(directory, Path):
        return disk_checkpoints.list_complete_numbers(directory)
    return bucket_checkpoints.list_numbers(directory)


def recover(directory: RunPath) -> bool:
    """Repair what a killed run left half-way, and return whether nothing is left to repair.

    Nothing is done while another process trains there. In a bucket nothing is half-way.
    """
    if isinstance(directory, Path):
        if find_holder(directory.parent, by_others=True):
            return False
        disk_checkpoints.recover(directory)
    return True


def remove_leftovers(stage: RunPath, named: NamedData, *, first: bool) -> None:
    """Remove what killed runs left beside a staging folder; in a bucket at the `first` save only.

    Raises:
        BucketError, OSError: it cannot be removed.
        DirectoryInUse: the lease of a run in a bucket was lost.
    """
    if isinstance(stage, Path):
        disk_checkpoints.remove_leftovers(stage)
    elif first:
        bucket_checkpoints.remove_leftovers(stage, named)


def publish(stage: RunPath, number: int, manifest: Mapping[str, Any], named: NamedData) -> None:
    """Make what is staged a checkpoint, all of it at once, replacing one of its number.

    Raises:
        BucketError, OSError: it cannot be written.
        DirectoryInUse: the lease of a run in a bucket was lost, or another process wrote it.
        ValueError: the manifest is larger than what a reader accepts.
    """
    content = manifests.encode_manifest(manifest)
    manifest_schema.check_size(content, f"the manifest of {number}")
    if isinstance(stage, Path):
        with explain_disk_full(None, stage):
            disk_checkpoints.publish(stage, number, content)
    else:
        bucket_checkpoints.publish(stage, number, content, named)


class RunMemory:
    """What the process that publishes the checkpoints of a run keeps from save to save."""

    def __init__(self) -> None:
        self.index = PieceIndex()
        self.named = NamedData(_read_data_names)


def write_checkpoint(
    stage: RunPath,
    snapshot: parts.Snapshot,
    head: Mapping[str, Any],
    is_abandoned: Callable[[], bool],
    wait_for_parts: Callable[[], Sequence[parts.PartFile]],
    memory: RunMemory,
    earlier: EarlierPieces,
) -> EarlierPieces:
    """Write a checkpoint, replacing one of its number; if that fails, nothing is left of it.

    If a bucket does not say whether it wrote the manifest, all stays: it may be a checkpoint.

    Args:
        stage: where to write it; see `choose_stage`.
        snapshot: of the main process.
        head: the other arguments of `manifest.build_manifest`.
        is_abandoned: returns whether nothing waits for this save any more; it then raises.
        wait_for_parts: returns the part files that other processes write in `stage`.
        memory: of the run.
        earlier: what the last checkpoint has of the main process.

    Returns:
        What the next checkpoint may refer to of the main process.

    Raises:
        NotADirectoryError: a link is in the place of the checkpoint, or of what is left of one.
        OSError: it cannot be written.
        RuntimeError: the parts do not make up whole arrays.
    """
    epoch = snapshot.epoch
    if isinstance(stage, Path):
        check_no_link(stage.parent / str(epoch))
    try:
        make_folder(stage)  # another process may have been faster
        make_folder(stage / "arrays")
        written = snapshot.write(stage, 0, earlier)
        others = wait_for_parts()
        checksums, layouts = [x.checksum for x in others], [x.layout for x in others]
        manifest = manifests.build_manifest(epoch, written.leaves, **head, parts=checksums)
        manifest |= {"save": parts.get_save_name(stage), "files": {**written.files}}
        if isinstance(stage, BucketPath):
            shared = {*written.files}.union(*(x.files for x in others))
            refers = sorted(name for name in shared if not name.endswith(f".{stage.name}"))
            manifest |= {"data": stage.name, "refers": refers}
        places = memory.index.update(
            [manifests.compute_layout(written.leaves), *layouts],
            lambda: parts.read_all_leaves(stage, manifest, written.leaves),
        )
        manifest["holders"] = places.holders
        if isinstance(stage, Path):
            for name, content in places.orbax_files.items():
                write_durably(stage / "arrays" / name, content)
        if is_abandoned():
            raise TimeoutError(f"epoch {epoch} was given up: saving it took too long")
        publish(stage, epoch, manifest, memory.named)
        return written.saved
    except bucket_checkpoints.UnknownOutcomeError:
        raise
    except BaseException:
        remove_tree(stage)  # it may have filled the disk
        raise


def choose_stage(directory: RunPath, name: str) -> RunPath:
    """Return where a checkpoint of this name, epoch and nonce, is staged."""
    if isinstance(directory, BucketPath):
        return bucket_checkpoints.get_stage(directory, name)
    return directory / f"{name}.staged"


def get_data(directory: RunPath, number: int, manifest: Mapping[str, Any]) -> RunPath:
    """Return the path below which the arrays and the part files of a checkpoint are.

    Raises:
        DamagedCheckpoint: it was copied from a disk to a bucket, or the other way.
    """
    name = manifest.get("data")
    if isinstance(directory, BucketPath) is not isinstance(name, str):
        here, there = ("disk", "bucket") if name else ("bucket", "disk")
        raise DamagedCheckpoint(
            f"it was written to a {there} and copied to a {here}, where its arrays lie in other "
            f"files: read it from the {there}, or copy the run back"
        )
    if isinstance(directory, BucketPath):
        return bucket_checkpoints.get_stage(directory, str(name))
    return directory / str(number)


def _read_data_names(content: bytes) -> list[str] | None:
    """Return the data and the shared files that a manifest names; None if it is damaged."""
    try:
        manifest = manifests.decode_manifest(content)
    except DamagedCheckpoint:
        return None
    refers = manifest.get("refers")
    names = [manifest.get("data"), *(refers if isinstance(refers, list) else ())]
    return names if all(isinstance(name, str) for name in names) else None


def read_stamp(directory: RunPath, number: int) -> Stamp | None:
    """Return what tells a checkpoint from another one of its number; None if it is gone."""
    if isinstance(directory, BucketPath):
        return (directory / str(number) / MANIFEST).read_generation()
    try:
        status = (directory / str(number)).lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def is_being_replaced(directory: RunPath, number: int) -> bool:
    """Return whether a checkpoint is just being replaced, on a disk."""
    return isinstance(directory, Path) and os.path.lexists(directory / f"{number}.replaced")


def remove_checkpoint(directory: RunPath, number: int, named: NamedData) -> None:
    """Remove a checkpoint; if the process is killed half-way, none is left that looks complete."""
    if isinstance(directory, Path):
        disk_checkpoints.remove(directory, number)
    else:
        bucket_checkpoints.remove(directory, number, named)


def read_manifest(directory: RunPath, number: int) -> dict[str, Any]:
    """Read the manifest of a checkpoint and check its fields.

    Raises:
        BucketError: its bucket cannot be read.
        DamagedCheckpoint: it is missing, unreadable or not as it was written.
        ValueError: a newer version of this library wrote it.
    """
    where = f"checkpoint {number} in {directory}"
    try:
        if isinstance(directory, Path):
            check_no_link(directory / str(number))
        content = read_whole(directory / str(number) / MANIFEST, most=manifest_schema.MOST_BYTES)
        manifest = manifests.decode_manifest(content)
        manifest_schema.check_manifest(manifest)
    except UnsafeFile as error:
        raise DamagedCheckpoint(
            f"{where}: its manifest is not from this library: {error}"
        ) from error
    except OSError as error:
        raise DamagedCheckpoint(f"{where}: its manifest cannot be read ({error})") from error
    except DamagedCheckpoint as damage:
        raise DamagedCheckpoint(f"{where}: {damage}") from damage
    if manifest["format"] > manifests.FORMAT:
        raise ValueError(
            f"{where} is of format {manifest['format']}, and this version reads up to "
            f"{manifests.FORMAT}: restore it with the versions that wrote it, "
            f"{manifest.get('versions')!r:.200}"
        )
    if manifest["epoch"] != number:
        raise DamagedCheckpoint(f"{where}: it says that it is checkpoint {manifest['epoch']}")
    return manifest
