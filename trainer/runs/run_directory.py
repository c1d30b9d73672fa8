"""A run's directory as its store sees it: claimed by one process, with checkpoints and files."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer.checkpoints import manifest as manifests
from trainer.checkpoints import publishing
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.select import get_local_checkpoint_folder
from trainer.checkpoints.storage.directory_lock import (
    DirectoryInUse,
    DirectoryLock,
    lock_for_recording,
)
from trainer.runs.rows import Artifact, CheckpointRow

QUEUE = "queue.jsonl"
"""File in the run's directory with what is not yet in the store."""

_claimed: set[tuple[int, str]] = set()
"""Process id and directory of each queue that is open here; a fork owns none of them."""

KINDS = {".gif": "replay", ".png": "plot", ".html": "report", ".json": "trace"}
"""Kind by ending, of files in the directory itself; in `replays` all are replays."""

EPOCH_PREFIX = re.compile(r"(\d{1,18})-")
"""Beginning of the name of a file that belongs to an epoch."""

_TRACE = re.compile(r"(.*[._-])?trace[._-].*|trace\.json")


@contextlib.contextmanager
def claim_directory(directory: Path) -> Iterator[DirectoryLock]:
    """Claim a run's directory, against other processes and within this one.

    Raises:
        DirectoryInUse: another process has it, or another run in this one.
    """
    key = os.getpid(), os.path.realpath(directory)
    if key in _claimed:
        raise DirectoryInUse(
            f"{directory} is recorded by another Run in this process, and its queue has one "
            "owner: give all hooks the same Run, or close that one first"
        )
    with contextlib.ExitStack() as undo:
        _claimed.add(key)
        undo.callback(_claimed.discard, key)
        lock = lock_for_recording(directory)
        undo.callback(lock)
        yield lock


def list_checkpoint_epochs(directory: str | os.PathLike[str]) -> list[int]:
    """List the epochs of a run's complete checkpoints, ascending."""
    return publishing.list_complete_epochs(get_local_checkpoint_folder(directory))


def describe_checkpoint(directory: str | os.PathLike[str], epoch: int) -> CheckpointRow:
    """Describe a checkpoint by its manifest; its arrays are not read.

    Raises:
        DamagedCheckpoint: it is missing, not as it was written, or of a newer version.
    """
    folder = get_local_checkpoint_folder(directory)
    try:
        manifest = publishing.read_manifest(folder, epoch)
    except ValueError as error:
        raise DamagedCheckpoint(str(error)) from error
    path = folder / str(epoch)
    written: Any = manifest.get("written")
    try:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        when = datetime.fromisoformat(written)
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"checkpoint {epoch} in {folder} was removed just now") from error
    except (TypeError, ValueError) as error:
        raise DamagedCheckpoint(
            f"checkpoint {epoch} in {folder}: its time cannot be {written!r:.60}"
        ) from error
    return CheckpointRow(
        epoch=epoch,
        path=os.fspath(path),
        bytes=size,
        scores=manifests.parse_scores(manifest),
        checksum=manifests.compute_content_checksum(manifest),  # equal states have equal ones
        written=when.isoformat(),
    )


def list_artifacts(directory: Path) -> dict[Artifact, int]:
    """List the files that exist, each with the time of its last change in nanoseconds.

    Paths are relative to the directory, which may be moved. Checkpoints are left out, and so are
    files that writers append to. A file named `12-0.gif` belongs to epoch 12, as
    `hooks.record_replays` names its files; others belong to the run, epoch 0.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "replays").mkdir()
    ...     for name in ("replays/12-0.gif", "history.png", "metrics.jsonl", "config.json"):
    ...         _ = Path(folder, name).write_text("some")
    ...     [(file.path, file.kind, file.epoch) for file in list_artifacts(Path(folder))]
    [('history.png', 'plot', 0), ('replays/12-0.gif', 'replay', 12)]
    """
    found = {}
    for kind, entry in _list_candidates(directory):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # it was replaced meanwhile
            continue
        if stat.S_ISREG(status.st_mode):
            epoch = EPOCH_PREFIX.match(entry.name)
            path = os.path.relpath(entry.path, directory)
            made = Artifact(path, kind, int(epoch[1]) if epoch else 0, 0, status.st_size)
            found[made] = status.st_mtime_ns
    return dict(sorted(found.items()))


def to_stored_path(directory: str | os.PathLike[str], path: str | os.PathLike[str]) -> str:
    """Return a path as a store keeps it: relative in the run's directory, absolute elsewhere.

    Links in either path are resolved.

    >>> to_stored_path("/runs/maze", "/runs/maze/replays/12-0.gif")
    'replays/12-0.gif'
    >>> to_stored_path("/runs/maze", "/elsewhere/a.gif")
    '/elsewhere/a.gif'
    """
    file, real = Path(path).absolute(), Path(os.path.realpath(Path(path).parent), Path(path).name)
    for found, below in ((file, directory), (real, os.path.realpath(directory))):
        if found.is_relative_to(below):
            return os.fspath(found.relative_to(below))
    return os.fspath(file)


def _list_candidates(directory: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    if directory.is_dir():
        with os.scandir(directory) as entries:
            for entry in entries:
                ending = os.path.splitext(entry.name)[1]
                if ending in KINDS and (ending != ".json" or _TRACE.fullmatch(entry.name)):
                    yield KINDS[ending], entry
    if (directory / "replays").is_dir():
        with os.scandir(directory / "replays") as entries:
            for entry in entries:
                if EPOCH_PREFIX.match(entry.name) and entry.name.endswith((".gif", ".json")):
                    yield "replay", entry
