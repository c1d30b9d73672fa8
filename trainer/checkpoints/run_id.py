"""Which run a commit is of: an id in each manifest, and this run's in a file of its directory."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.checkpoints import publishing
from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.host.atomic_files import atomic_replace
from trainer.host.safe_open import read_bytes

log = logging.getLogger("entracte")

FILE = "run_id"
"""What the file is called in the run's directory."""

_ID = re.compile(rb"([0-9a-f]{16})\n")


class ForeignCheckpoint(ValueError):  # noqa: N818 (what it is, as its message says)
    """A commit among those of a run is of another one."""


def read_run_id(folder: Path) -> str | None:
    """Give the id of the run whose commits are in a folder; None where its file is lost.

    Raises:
        OSError: the file is a link or a special one, or cannot be read.
    """
    try:
        said = _ID.fullmatch(read_bytes(folder.parent / FILE, most=100))
    except FileNotFoundError:
        return None
    return said[1].decode() if said else None


def ensure_run_id(folder: Path) -> str:
    """Give the id of the run, and write it where it is not on file.

    It is that of the commits that are there, the newest where they differ, or a new one: so a file
    that was lost comes back with the next save.
    """
    if known := read_run_id(folder):
        return known
    there = _ids(folder)
    new = there[max(there)] if there else secrets.token_hex(8)
    with atomic_replace(folder.parent / FILE) as beside:
        beside.write_text(f"{new}\n")
    return new


def check_run_id(
    folder: Path, number: int, manifest: Mapping[str, Any], *, foreign: bool = False
) -> None:
    """Refuse a commit that another run made, unless it is asked for.

    A directory that was moved or copied as a whole has its own id with it. Where the file with it
    was lost, the commits must all be of one run. One that an older version wrote has none, and is
    taken.

    Args:
        folder: of the commits.
        number: of the one.
        manifest: of the one.
        foreign: take it whoever made it.

    Raises:
        ForeignCommit: it is of another run.
    """
    theirs = manifest.get("run")
    if foreign or theirs is None:
        return
    ours = read_run_id(folder)
    remedy = (
        "move away what is of another run and restore it from that run's own directory, or go on "
        "from it all the same with save_checkpoints(..., foreign=True)"
    )
    if ours is None and len(set((ids := _ids(folder)).values()) | {theirs}) > 1:
        told = ", ".join(f"{one} of {run}" for one, run in sorted(ids.items()))
        raise ForeignCheckpoint(
            f"the commits in {folder} are of several runs ({told}), and the file {FILE!r} that "
            f"says which one's directory this is was lost: {remedy}"
        )
    if ours is not None and theirs != ours:
        raise ForeignCheckpoint(
            f"commit {number} in {folder} is of another run: it is of {theirs}, and this directory "
            f"is that of {ours}: {remedy}"
        )


def removable(folder: Path, number: int) -> bool:
    """Say whether a commit that was there before may be removed: none of another run is."""
    try:
        theirs = publishing.read_manifest(folder, number).get("run")
    except DamagedCheckpoint:
        return True
    if theirs in (None, read_run_id(folder)):
        return True
    log.warning(f"commit {number} in {folder} is of another run ({theirs}), and is kept")
    return False


def _ids(folder: Path) -> dict[int, str]:
    """Give the ids of the commits that are intact and have one."""
    found: dict[int, str] = {}
    for number in publishing.list_complete(folder):
        try:
            theirs = publishing.read_manifest(folder, number).get("run")
        except (DamagedCheckpoint, ValueError):
            continue
        if theirs is not None:
            found[number] = theirs
    return found
