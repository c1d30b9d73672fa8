"""The parts of a checkpoint: what each process writes of arrays that are split over processes.

A part is files with the pieces, and a file that lists them, which appears when they are durable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xxhash

from trainer.checkpoints import manifest as manifests
from trainer.checkpoints import manifest_schema
from trainer.checkpoints.arrays import array_storage, host_snapshot
from trainer.checkpoints.arrays.copied_arrays import CopiedArrays
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.leaves import Leaf
from trainer.checkpoints.arrays.piece_files import (
    get_piece_file,
    name_own_file,
    name_shared_file,
)
from trainer.checkpoints.arrays.sharing import EarlierPieces, list_earlier_pieces, plan_pieces
from trainer.checkpoints.storage.bucket_path import BucketError, BucketPath
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
    copied: CopiedArrays = field(default_factory=CopiedArrays)
    """The arrays in the buffer; it takes in their checksums."""

    def write(self, stage: RunPath, process: int, earlier: EarlierPieces) -> WrittenPart:
        """Write the pieces that changed since the last checkpoint into a new file, durably.

        Args:
            stage: of the checkpoint; its folder for arrays exists.
            process: this one.
            earlier: what the last checkpoint has of this process.
        """
        data = self.buffer[: host_snapshot.count_bytes(chain.from_iterable(self.leaves.values()))]
        checked = {
            name: host_snapshot.add_checksums(group, data) for name, group in self.leaves.items()
        }
        self.copied.learn_checksums(chain.from_iterable(checked.values()))
        save = get_save_name(stage)

        def share(name: str) -> bool:
            source, size = earlier.files[name]
            return array_storage.share_arrays(source, get_piece_file(stage, process, name), size)

        steady = name_shared_file(process, save, steady=True)
        plan = plan_pieces(checked, earlier, steady, share)
        for name, ranges in plan.ranges.items():
            array_storage.save_arrays(get_piece_file(stage, process, name), data, ranges)
        leaves = [*chain.from_iterable(plan.leaves.values())]
        published = stage if isinstance(stage, BucketPath) else stage.with_name(str(self.epoch))
        sizes = {**plan.files, "": plan.count_own()}
        saved = list_earlier_pieces(published, process, save, leaves, sizes)
        return WrittenPart(plan.leaves, plan.files, saved)


class WrittenPart(NamedTuple):
    """What a process wrote of a checkpoint."""

    leaves: Mapping[str, Sequence[Leaf]]
    """Of every section, with checksums and the places of the pieces in their files."""
    files: Mapping[str, int]
    """The sizes of the shared files."""
    saved: EarlierPieces
    """What the next checkpoint may refer to, once this one is published."""


class PartFile(NamedTuple):
    """A part file that a process wrote."""

    checksum: str
    """Of its bytes."""
    layout: str
    """A hash of arrays and boxes in it, from `manifest.compute_layout`."""
    files: Mapping[str, int]
    """The sizes of the shared files in it."""


class PartPieces(NamedTuple):
    """The pieces that a process has of a checkpoint."""

    leaves: Sequence[Leaf]
    files: Mapping[str, int]
    """The sizes of the shared files among theirs."""


def get_save_name(stage: RunPath) -> str:
    """Return the name of the save that is staged there.

    >>> get_save_name(Path("checkpoints/7.ab-3.staged"))
    '7.ab-3'
    """
    return stage.name.removesuffix(".staged")


def get_part_file(checkpoint: RunPath, process: int) -> RunPath:
    """Return the file that lists the pieces that a process wrote."""
    return checkpoint / f"part_{process}.json"


def get_failed_file(checkpoint: RunPath, process: int) -> RunPath:
    """Return the file in which a process says why it could not write its part."""
    return checkpoint / f"failed_{process}"


def write_part(
    stage: RunPath,
    snapshot: Snapshot,
    is_abandoned: Callable[[], bool],
    earlier: EarlierPieces,
) -> EarlierPieces:
    """Write the part of this process, which is not the main one; if that fails, say so there.

    Args:
        stage: of the checkpoint, which may not exist yet.
        snapshot: of this process.
        is_abandoned: returns whether nothing waits for this save any more; it then raises.
        earlier: what the last checkpoint has of this process.

    Returns:
        What the next checkpoint may refer to, once this one is published.

    Raises:
        OSError: it cannot be written.
        RuntimeError: the main process gave this save up.
    """
    process = jax.process_index()
    arrays, file = get_piece_file(stage, process, ""), get_part_file(stage, process)
    written = WrittenPart(snapshot.leaves, {}, EarlierPieces())
    make_folder(stage)
    try:
        make_folder(arrays.parent)
        if any(leaf.pieces for leaf in chain.from_iterable(snapshot.leaves.values())):
            written = snapshot.write(stage, process, earlier)
            if isinstance(arrays, Path):
                sync_folder(arrays.parent)
        content = manifests.encode_manifest(
            manifests.build_part(snapshot.epoch, process, written.leaves, written.files)
        )
        manifest_schema.check_size(content, f"the part of process {process}")
        if is_abandoned():
            raise TimeoutError(f"epoch {snapshot.epoch} was given up: saving it took too long")
        write_whole(file, content)
        return written.saved
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


def read_part_pieces(
    checkpoint: RunPath, process: int, manifest: Mapping[str, Any], leaves: Sequence[Leaf]
) -> PartPieces:
    """Read which pieces a process has: `leaves` for the main one, else from its part file.

    Args:
        checkpoint, process: whose part.
        manifest: of the checkpoint.
        leaves: all that the manifest lists.

    Raises:
        DamagedCheckpoint: the part file is not as it was written.
    """
    if process == 0:
        return PartPieces(leaves, manifest.get("files") or {})
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
    return PartPieces(rows, part.get("files") or {})


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
        lambda process: read_part_pieces(checkpoint, process, manifest, rows).leaves,
        processes,
        checkpoint,
    )
    return dict(zip(map(name_own_file, processes), written, strict=True))
