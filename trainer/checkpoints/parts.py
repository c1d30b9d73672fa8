"""The parts of a checkpoint: what each process writes of arrays that are split over processes.

A part is a file with the pieces, and a file that lists them, which appears when they are durable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xxhash

from trainer.checkpoints import manifest as manifests
from trainer.checkpoints import manifest_schema
from trainer.checkpoints.arrays import array_storage, host_snapshot
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.leaves import Leaf
from trainer.checkpoints.storage.bucket_path import BucketError
from trainer.checkpoints.storage.run_paths import (
    RunPath,
    make_folder,
    map_requests,
    read_whole,
    write_whole,
)
from trainer.host.atomic_files import sync_folder


@dataclass(frozen=True)
class Snapshot:
    """What one process writes of a checkpoint."""

    epoch: int
    leaves: Mapping[str, Sequence[Leaf]]
    """Of every section, with the pieces of this process."""
    buffer: np.ndarray
    """uint8 [bytes]: the pieces, one after another; it may be longer."""

    def write(self, file: RunPath) -> Snapshot:
        """Write the pieces into a new file, durably, and return the leaves with checksums."""
        size = host_snapshot.count_bytes(chain.from_iterable(self.leaves.values()))
        data = self.buffer[:size]
        array_storage.save_arrays(file, data)
        checked = {
            name: host_snapshot.add_checksums(group, data) for name, group in self.leaves.items()
        }
        return Snapshot(self.epoch, checked, data)


class PartFile(NamedTuple):
    """A part file that a process wrote."""

    checksum: str
    """Of its bytes."""
    layout: str
    """A hash of arrays and boxes in it, from `manifest.compute_layout`."""


def get_arrays_file(checkpoint: RunPath, process: int) -> RunPath:
    """Return the file with the pieces that a process wrote.

    >>> str(get_arrays_file(Path("7"), 12))
    '7/arrays/process_12'
    """
    return checkpoint / "arrays" / f"process_{process}"


def get_part_file(checkpoint: RunPath, process: int) -> RunPath:
    """Return the file that lists the pieces that a process wrote."""
    return checkpoint / f"part_{process}.json"


def get_failed_file(checkpoint: RunPath, process: int) -> RunPath:
    """Return the file in which a process says why it could not write its part."""
    return checkpoint / f"failed_{process}"


def write_part(stage: RunPath, snapshot: Snapshot, is_abandoned: Callable[[], bool]) -> None:
    """Write the part of this process, which is not the main one; if that fails, say so there.

    Args:
        stage: of the checkpoint, which may not exist yet.
        snapshot: of this process.
        is_abandoned: returns whether nothing waits for this save any more; it then raises.

    Raises:
        OSError: it cannot be written.
        RuntimeError: the main process gave this save up.
    """
    process = jax.process_index()
    arrays, file = get_arrays_file(stage, process), get_part_file(stage, process)
    make_folder(stage)
    try:
        make_folder(arrays.parent)
        if any(leaf.pieces for leaf in chain.from_iterable(snapshot.leaves.values())):
            snapshot = snapshot.write(arrays)
            if isinstance(arrays, Path):
                sync_folder(arrays.parent)
        content = manifests.encode_manifest(
            manifests.build_part(snapshot.epoch, process, snapshot.leaves)
        )
        manifest_schema.check_size(content, f"the part of process {process}")
        if is_abandoned():
            raise TimeoutError(f"epoch {snapshot.epoch} was given up: saving it took too long")
        write_whole(file, content)
    except BaseException as error:
        if isinstance(error, FileNotFoundError):  # its folder is gone
            raise RuntimeError(
                f"the main process gave up saving epoch {snapshot.epoch}, and says why"
            ) from error
        if isinstance(arrays, Path):
            arrays.unlink(missing_ok=True)  # it may have filled the disk
        reason = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
        with contextlib.suppress(OSError, BucketError):  # then the main one waits until its limit
            get_failed_file(stage, process).write_bytes(reason.encode())
        raise


LONGEST_REASON = 1000
"""Characters of the reason why a process could not write its part."""


def read_part_leaves(
    checkpoint: RunPath, process: int, manifest: Mapping[str, Any], leaves: Sequence[Leaf]
) -> Sequence[Leaf]:
    """Read which pieces a process wrote: `leaves` for the main one, else from its part file.

    Args:
        checkpoint, process: whose part.
        manifest: of the checkpoint.
        leaves: all that the manifest lists.

    Raises:
        DamagedCheckpoint: the part file is not as it was written.
    """
    if process == 0:
        return leaves
    file = get_part_file(checkpoint, process)
    try:
        content = read_whole(file, most=manifest_schema.MOST_BYTES)
    except OSError as error:
        raise DamagedCheckpoint(f"its {file.name} cannot be read ({error})") from error
    if xxhash.xxh3_64_hexdigest(content) != manifest["parts"][process - 1]:
        raise DamagedCheckpoint(f"its {file.name} is not the one that was published with it")
    part = manifests.decode_manifest(content)
    manifest_schema.check_part(part, manifest["epoch"], process)
    kinds = {leaf.path: (str(leaf), leaf.itemsize) for leaf in leaves}
    rows = [*chain.from_iterable(manifests.parse_leaves(part).values())]
    if wrong := [x.path for x in rows if (str(x), x.itemsize) != kinds.get(x.path)]:
        raise DamagedCheckpoint(f"its {file.name} differs from the manifest at {', '.join(wrong)}")
    return rows


def read_all_leaves(
    checkpoint: RunPath, manifest: Mapping[str, Any], leaves: Mapping[str, Sequence[Leaf]]
) -> dict[str, Sequence[Leaf]]:
    """Read which pieces all processes wrote, in their order, by the name of the file of bytes.

    Args:
        checkpoint, manifest: whose parts.
        leaves: of every section, with the pieces of the main process.

    Raises:
        DamagedCheckpoint: a part file is not as it was written.
    """
    rows = [*chain.from_iterable(leaves.values())]
    processes = range(len(manifest["parts"]) + 1)
    written = map_requests(
        lambda process: read_part_leaves(checkpoint, process, manifest, rows), processes, checkpoint
    )
    names = [get_arrays_file(checkpoint, process).name for process in processes]
    return dict(zip(names, written, strict=True))
