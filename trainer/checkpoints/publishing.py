"""Checkpoints on disk: how one is written and published at once, listed, read and removed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.checkpoints import manifest as manifests
from trainer.checkpoints import manifest_schema, parts
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.piece_index import PieceIndex
from trainer.host.atomic_files import explain_disk_full, sync_folder, write_durably
from trainer.host.safe_open import UnsafeFile, read_bytes

_MANIFEST = "manifest.json"
_NUMBER = re.compile(r"0|[1-9][0-9]*")
_LEFTOVER = re.compile(r"(0|[1-9][0-9]*)(\.[0-9a-f-]+)?\.(staged|replaced|removed)")


def check_no_link(path: Path) -> None:
    """Raise NotADirectoryError for a link: its target is not this run's to write or remove."""
    if path.is_symlink():
        raise NotADirectoryError(
            errno.ENOTDIR,
            f"{path} is a link to {os.readlink(path)}, and checkpoints must lie in the run's own "
            "directory: remove the link, or give the directory that it points to",
        )


def ensure_writable(directory: Path) -> None:
    """Create a directory and write to it: raise now, rather than at the first save, if it fails."""
    try:
        if not directory.exists():
            directory.mkdir(parents=True)
            sync_folder(directory.parent)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise type(error)(
            error.errno,
            f"cannot write checkpoints to {directory} ({error.strerror}): choose a directory that "
            "this user may write to, or pass read_only=True to restore only",
        ) from error


def list_epochs(directory: Path) -> list[int]:
    """List the numbers of the checkpoints in a directory, ascending, damaged ones and links too."""
    if not directory.is_dir():
        return []
    with os.scandir(directory) as entries:
        named = [entry for entry in entries if _NUMBER.fullmatch(entry.name)]
    return sorted(int(entry.name) for entry in named if entry.is_symlink() or entry.is_dir())


def list_complete_epochs(directory: Path) -> list[int]:
    """List the numbers of the checkpoints that have a manifest and are no links, ascending."""
    paths = {n: directory / str(n) for n in list_epochs(directory)}
    return [n for n, p in paths.items() if not p.is_symlink() and is_checkpoint(p)]


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is a checkpoint: it has a manifest."""
    return (folder / _MANIFEST).is_file()


def recover_replaced(directory: Path) -> None:
    """Restore checkpoints whose replacement was interrupted between its two renames."""
    for path in directory.glob("*.replaced"):
        if _LEFTOVER.fullmatch(path.name) and not os.path.lexists(path.with_suffix("")):
            path.rename(path.with_suffix(""))


def _remove(path: Path) -> None:
    """Remove a folder, or whatever else is in its place and is no link."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def publish(stage: Path, number: int, manifest: Mapping[str, Any]) -> None:
    """Write the manifest and turn a staging folder into a checkpoint, replacing one of its number.

    If the process is killed at any instant, the old checkpoint or the new one is there (see
    `recover_replaced`).

    Raises:
        ValueError: the manifest is larger than what a reader accepts.
    """
    content = manifests.encode_manifest(manifest)
    manifest_schema.check_size(content, f"the manifest of {number}")
    write_durably(stage / _MANIFEST, content)
    with os.scandir(stage) as entries:  # asks for no file's status: there may be thousands
        folders = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    for folder in (stage, *folders):
        sync_folder(folder)
    final = stage.with_name(str(number))
    old = stage.with_name(f"{number}.replaced")
    if os.path.lexists(final):
        final.rename(old)
    try:
        stage.rename(final)
    except OSError:
        recover_replaced(final.parent)
        raise
    sync_folder(final.parent)
    if os.path.lexists(old):
        _remove(old)


def write_checkpoint(
    stage: Path,
    snapshot: parts.Snapshot,
    head: Mapping[str, Any],
    is_abandoned: Callable[[], bool],
    wait_for_parts: Callable[[], Sequence[parts.PartFile]],
    index: PieceIndex,
) -> None:
    """Write a checkpoint, replacing one of its number; if that fails, nothing is left of it.

    Args:
        stage: the folder to write it in, of the folder of the checkpoints.
        snapshot: of the main process.
        head: the other arguments of `manifest.build_manifest`.
        is_abandoned: returns whether nothing waits for this save any more; it then raises.
        wait_for_parts: returns the part files that other processes write in `stage`.
        index: of the run: where pieces lay in its last checkpoint.

    Raises:
        NotADirectoryError: a link is in the place of the checkpoint, or of what is left of one.
        OSError: it cannot be written.
        RuntimeError: the parts do not make up whole arrays.
    """
    directory, epoch = stage.parent, snapshot.epoch
    recover_replaced(directory)
    for path in directory.iterdir():
        if _LEFTOVER.fullmatch(path.name) and path != stage:  # of an interrupted save or removal
            check_no_link(path)
            _remove(path)
    try:
        check_no_link(directory / str(epoch))
        stage.mkdir(exist_ok=True)  # another process may have been faster
        file = parts.get_arrays_file(stage, 0)
        file.parent.mkdir(exist_ok=True)
        written = snapshot.write(file)
        others = wait_for_parts()
        checksums, layouts = [x.checksum for x in others], [x.layout for x in others]
        manifest = manifests.build_manifest(epoch, written.leaves, **head, parts=checksums)
        places = index.update(
            [manifests.compute_layout(written.leaves), *layouts],
            lambda: parts.read_all_leaves(stage, manifest, written.leaves),
        )
        manifest["holders"] = places.holders
        for name, content in places.orbax_files.items():
            write_durably(file.parent / name, content)
        if is_abandoned():
            raise TimeoutError(f"epoch {epoch} was given up: saving it took too long")
        with explain_disk_full(None, stage):
            publish(stage, epoch, manifest)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)  # it may have filled the disk
        raise


def remove_checkpoint(directory: Path, number: int) -> None:
    """Remove a checkpoint; if the process is killed half-way, none is left that looks complete."""
    path = directory / f"{number}.removed"
    (directory / str(number)).rename(path)
    shutil.rmtree(path)


def read_manifest(directory: Path, number: int) -> dict[str, Any]:
    """Read the manifest of a checkpoint and check its fields.

    Raises:
        DamagedCheckpoint: it is missing, unreadable or not as it was written.
        ValueError: a newer version of this library wrote it.
    """
    where = f"checkpoint {number} in {directory}"
    try:
        check_no_link(directory / str(number))
        content = read_bytes(directory / str(number) / _MANIFEST, most=manifest_schema.MOST_BYTES)
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
