"""The checkpoints in a run's directory, as a store keeps them."""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import Any

import xxhash

from trainer.checkpoints import manifest as manifests
from trainer.checkpoints import publishing
from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.checkpoints.select import get_checkpoint_folder
from trainer.runs.rows import CheckpointRow


def list_checkpoint_epochs(directory: str | os.PathLike[str]) -> list[int]:
    """List the epochs of a run's complete checkpoints, ascending."""
    return publishing.list_complete_epochs(get_checkpoint_folder(directory))


def describe_checkpoint(directory: str | os.PathLike[str], epoch: int) -> CheckpointRow:
    """Describe a checkpoint by its manifest; its arrays are not read.

    Raises:
        DamagedCheckpoint: it is missing, not as it was written, or of a newer version.
    """
    folder = get_checkpoint_folder(directory)
    try:
        manifest = publishing.read_manifest(folder, epoch)
    except ValueError as error:
        raise DamagedCheckpoint(str(error)) from error
    path = folder / str(epoch)
    leaves = json.dumps(manifest["leaves"], sort_keys=True).encode()
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
        checksum=xxhash.xxh3_64_hexdigest(
            leaves
        ),  # of the state alone: equal states, equal checksums
        written=when.isoformat(),
    )
