"""Checkpoints on a disk: each a folder, which is renamed into its place when it is complete.

<run>/checkpoints/12/manifest.json
<run>/checkpoints/13.<run's nonce>-<save>.staged/...
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

from trainer.host.atomic_files import sync_folder, write_durably

MANIFEST = "manifest.json"
"""The file in a checkpoint's folder that makes it complete."""

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


def list_numbers(directory: Path) -> list[int]:
    """List the numbers of the checkpoints in a directory, ascending, damaged ones and links too."""
    if not directory.is_dir():
        return []
    with os.scandir(directory) as entries:
        named = [entry for entry in entries if _NUMBER.fullmatch(entry.name)]
    return sorted(int(entry.name) for entry in named if entry.is_symlink() or entry.is_dir())


def list_complete_numbers(directory: Path) -> list[int]:
    """List the numbers of the checkpoints that have a manifest and are no links, ascending."""
    paths = {n: directory / str(n) for n in list_numbers(directory)}
    return [n for n, p in paths.items() if not p.is_symlink() and is_checkpoint(p)]


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is a checkpoint: it has a manifest."""
    return (folder / MANIFEST).is_file()


def recover(directory: Path) -> None:
    """Restore checkpoints whose replacement was interrupted between its two renames."""
    for path in directory.glob("*.replaced"):
        if _LEFTOVER.fullmatch(path.name) and not os.path.lexists(path.with_suffix("")):
            path.rename(path.with_suffix(""))


def remove_leftovers(stage: Path) -> None:
    """Remove what an interrupted save or removal left beside a staging folder."""
    recover(stage.parent)
    for path in stage.parent.iterdir():
        if _LEFTOVER.fullmatch(path.name) and path != stage:
            check_no_link(path)
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder, or whatever else is in its place and is no link."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def publish(stage: Path, number: int, manifest: bytes) -> None:
    """Write the manifest and turn a staging folder into a checkpoint, replacing one of its number.

    If the process is killed at any instant, the old checkpoint or the new one is there (see
    `recover`).
    """
    write_durably(stage / MANIFEST, manifest)
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
        recover(final.parent)
        raise
    sync_folder(final.parent)
    if os.path.lexists(old):
        _remove(old)


def remove(directory: Path, number: int) -> None:
    """Remove a checkpoint; if the process is killed half-way, none is left that looks complete."""
    path = directory / f"{number}.removed"
    (directory / str(number)).rename(path)
    shutil.rmtree(path)
