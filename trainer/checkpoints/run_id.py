"""Which run a checkpoint belongs to: an id in each manifest, and one in the run directory."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
from collections.abc import Mapping
from typing import Any

from trainer.checkpoints import publishing
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.select import iterate_checkpoints
from trainer.checkpoints.storage.bucket_path import BucketPath
from trainer.checkpoints.storage.run_paths import RunPath, read_whole
from trainer.host.atomic_files import atomic_replace

log = logging.getLogger("entracte")

FILE = "run_id"
"""The name of the file in the run directory."""

_ID = re.compile(rb"([0-9a-f]{16})\n")


class ForeignCheckpoint(ValueError):  # noqa: N818 - what is the case, as its message says
    """A checkpoint in a run directory belongs to another run."""


def read_run_id(folder: RunPath) -> str | None:
    """Read the id of the run whose checkpoints are in a folder; None if its file is lost."""
    try:
        found = _ID.fullmatch(read_whole(folder.parent / FILE, most=100))
    except FileNotFoundError:
        return None
    return found[1].decode() if found else None


def ensure_run_id(folder: RunPath) -> str:
    """Return the id of the run, and write its file if it is missing.

    The id is that of the existing checkpoints, the newest if they differ, or a new one: so the next
    save restores a file that was lost.
    """
    if known := read_run_id(folder):
        return known
    ids = _read_ids(folder)
    new = ids[max(ids)] if ids else secrets.token_hex(8)
    file, content = folder.parent / FILE, f"{new}\n"
    if isinstance(file, BucketPath):
        file.write_bytes(content.encode())
    else:
        with atomic_replace(file) as beside:
            beside.write_text(content)
    return new


def check_run_id(
    folder: RunPath, number: int, manifest: Mapping[str, Any], *, foreign: bool = False
) -> None:
    """Refuse a checkpoint that another run made, unless `foreign` allows it.

    A directory that was moved or copied as a whole brings its id along. If the file with the id was
    lost, all checkpoints must be of one run. A checkpoint of an older version has no id, and is
    accepted.

    Raises:
        ForeignCheckpoint: it belongs to another run.
    """
    theirs = manifest.get("run")
    if foreign or theirs is None:
        return
    ours = read_run_id(folder)
    remedy = (
        "move away what is of another run and restore it from that run's own directory, or resume "
        "from it all the same with save_checkpoints(..., foreign=True)"
    )
    if ours is None and len(set((ids := _read_ids(folder)).values()) | {theirs}) > 1:
        listed = ", ".join(f"{one} of {run}" for one, run in sorted(ids.items()))
        raise ForeignCheckpoint(
            f"the checkpoints in {folder} are of several runs ({listed}), and the file {FILE!r} "
            f"that says which one's directory this is was lost: {remedy}"
        )
    if ours is not None and theirs != ours:
        raise ForeignCheckpoint(
            f"checkpoint {number} in {folder} is of another run: it is of {theirs}, and this "
            f"directory is that of {ours}: {remedy}"
        )


def may_remove(folder: RunPath, number: int) -> bool:
    """Return whether an earlier checkpoint may be removed; one of another run may not."""
    try:
        theirs = publishing.read_manifest(folder, number).get("run")
    except DamagedCheckpoint:
        return True
    if theirs in (None, read_run_id(folder)):
        return True
    log.warning(f"checkpoint {number} in {folder} is of another run ({theirs}), and is kept")
    return False


def _read_ids(folder: RunPath) -> dict[int, str]:
    """Read the run ids of the intact checkpoints that have one."""

    def read(number: int) -> Any:
        with contextlib.suppress(ValueError):  # of a newer format
            return publishing.read_manifest(folder, number).get("run")

    found = iterate_checkpoints(folder, lambda: publishing.list_complete_epochs(folder), read)
    return {number: run for number, _, run in found if isinstance(run, str)}
