"""The commits of a run's directory, as a store keeps them."""

from __future__ import annotations

import json
import os

import xxhash

from trainer.checkpoints import commits
from trainer.checkpoints import manifest as manifests
from trainer.checkpoints.choosing import folder_of
from trainer.checkpoints.manifest import DamagedCommit
from trainer.runs.rows import CommitRow


def complete(directory: str | os.PathLike[str]) -> list[int]:
    """List the epochs of a run's complete commits, ascending."""
    return commits.complete(folder_of(directory))


def described(directory: str | os.PathLike[str], epoch: int) -> CommitRow:
    """Describe a commit by its manifest; its arrays are not read.

    Raises:
        DamagedCommit: it is missing, or not as it was written.
    """
    folder = folder_of(directory)
    manifest = commits.read_manifest(folder, epoch)
    path = folder / str(epoch)
    leaves = json.dumps(manifest["leaves"], sort_keys=True).encode()
    try:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    except FileNotFoundError as error:
        raise DamagedCommit(f"commit {epoch} in {folder} was removed just now") from error
    return CommitRow(
        epoch=epoch,
        path=os.fspath(path),
        bytes=size,
        scores=manifests.saved_scores(manifest),
        checksum=xxhash.xxh3_64_hexdigest(leaves),  # of the state alone: equal bits, equal commit
        written=manifest["written"],
    )
