"""Write one checkpoint: stage its arrays and manifest, then publish it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checkpoints import host_snapshot, publishing, run_id
from trainer.checkpoints import manifest as manifests
from trainer.checkpoints.array_storage import ArrayStorage
from trainer.checkpoints.manifest import Leaf
from trainer.host.atomic_files import explain_disk_full


def write_checkpoint(
    directory: Path,
    epoch: int,
    storage: ArrayStorage,
    leaves: Mapping[str, Sequence[Leaf]],
    buffer: np.ndarray,
    head: Mapping[str, Any],
    is_abandoned: Callable[[], bool],
) -> None:
    """Write a checkpoint, replacing one of its number; if that fails, nothing is left of it.

    Args:
        directory: of the checkpoints.
        epoch: the number of the checkpoint.
        storage: writes the bytes.
        leaves, buffer: from `host_snapshot.copy_to_host`.
        head: the other arguments of `manifest.build_manifest`: scores, config, settings.
        is_abandoned: returns whether nothing waits for this save any more; it then raises.
    """
    publishing.recover_replaced(directory)
    publishing.remove_leftovers(directory)
    data = buffer[: host_snapshot.count_bytes(leaf for group in leaves.values() for leaf in group)]
    stage = directory / f"{epoch}.staged"
    try:
        with explain_disk_full(data.nbytes, stage):
            publishing.make_staging_folder(directory, epoch)
            storage.write(stage / publishing.ARRAYS_FOLDER, data)
            checked = {
                name: host_snapshot.add_checksums(group, data) for name, group in leaves.items()
            }
            manifest = manifests.build_manifest(
                epoch, checked, run=run_id.ensure_run_id(directory), **head
            )
            if is_abandoned():
                raise TimeoutError(f"epoch {epoch} was given up: saving it took too long")
            publishing.publish(stage, manifest)
    except BaseException:
        publishing.discard_staged(stage)
        raise
