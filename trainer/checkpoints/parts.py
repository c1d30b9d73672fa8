"""The parts of a checkpoint: what each process writes of arrays that are split over processes.

No process waits for another but the main one, which publishes when all parts are there. The staging
folder's name has a nonce of the run, so that what a killed run, or a process that outlived it, left
behind is never mixed in.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xxhash

from trainer.checkpoints import array_storage, host_snapshot, manifest_schema
from trainer.checkpoints import manifest as manifests
from trainer.checkpoints.leaves import Leaf
from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.host.atomic_files import sync_folder, write_durably
from trainer.host.processes import gather_values
from trainer.host.safe_open import read_bytes

_LONGEST_PAUSE = 0.1
"""Seconds between two looks for parts."""


@dataclass(frozen=True)
class Snapshot:
    """What one process writes of a checkpoint."""

    epoch: int
    leaves: Mapping[str, Sequence[Leaf]]
    """Of every section, with the pieces of this process."""
    buffer: np.ndarray
    """uint8 [bytes]: the pieces, one after another; it may be longer."""

    def write(self, file: Path) -> Snapshot:
        """Write the pieces into a new file, durably, and return the leaves with checksums."""
        size = host_snapshot.count_bytes(chain.from_iterable(self.leaves.values()))
        data = self.buffer[:size]
        array_storage.save_arrays(file, data)
        checked = {
            name: host_snapshot.add_checksums(group, data) for name, group in self.leaves.items()
        }
        return Snapshot(self.epoch, checked, data)


def draw_nonce() -> str:
    """Draw a name for the saves of a run, the same on all processes; all must call it."""
    return f"{gather_values([secrets.randbits(62)])[0][0]:016x}"


def get_stage(directory: Path, epoch: int, nonce: str, save: int) -> Path:
    """Return the folder in which a checkpoint is staged: of this save of this run alone."""
    return directory / f"{epoch}.{nonce}-{save}.staged"


def get_arrays_file(checkpoint: Path, process: int) -> Path:
    """Return the file with the pieces that a process wrote.

    >>> str(get_arrays_file(Path("7"), 12))
    '7/arrays/process_12'
    """
    return checkpoint / "arrays" / f"process_{process}"


def _get_part_file(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"part_{process}.json"


def _get_failed_file(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"failed_{process}"


def write_part(stage: Path, snapshot: Snapshot, is_abandoned: Callable[[], bool]) -> None:
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
    arrays, file = get_arrays_file(stage, process), _get_part_file(stage, process)
    stage.mkdir(exist_ok=True)
    try:
        arrays.parent.mkdir(exist_ok=True)
        if any(leaf.pieces for leaf in chain.from_iterable(snapshot.leaves.values())):
            snapshot = snapshot.write(arrays)
            sync_folder(arrays.parent)
        content = manifests.encode_manifest(
            manifests.build_part(snapshot.epoch, process, snapshot.leaves)
        )
        manifest_schema.check_size(content, f"the part of process {process}")
        if is_abandoned():
            raise TimeoutError(f"epoch {snapshot.epoch} was given up: saving it took too long")
        beside = file.with_suffix(".tmp")
        write_durably(beside, content)
        beside.rename(file)
        sync_folder(stage)
    except BaseException as error:
        if not stage.exists():
            raise RuntimeError(
                f"the main process gave up saving epoch {snapshot.epoch}, and says why"
            ) from error
        arrays.unlink(missing_ok=True)  # it may have filled the disk
        reason = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
        with contextlib.suppress(OSError):  # then the main process waits until its limit
            _get_failed_file(stage, process).write_text(reason, "utf-8")
        raise


_LONGEST_REASON = 1000


def wait_for_parts(
    stage: Path, processes: int, check: Callable[[Sequence[int]], None]
) -> list[str]:
    """Wait until all other processes have written their parts of a checkpoint.

    Args:
        stage: of the checkpoint.
        processes: how many there are.
        check: called with the processes that are missing, again and again; it raises to give up.

    Returns:
        The checksum of each part file: of process 1, 2, ...

    Raises:
        RuntimeError: a process could not write its part; the message has its reason.
    """
    found: dict[int, str] = {}
    pause = 0.001
    while missing := [process for process in range(1, processes) if process not in found]:
        names = set(os.listdir(stage))
        for process in missing:
            if (failed := _get_failed_file(stage, process)).name in names:
                reason = read_bytes(failed, most=4 * _LONGEST_REASON).decode("utf-8", "replace")
                raise RuntimeError(f"process {process} could not write its part: {reason}")
            if (file := _get_part_file(stage, process)).name in names:
                content = read_bytes(file, most=manifest_schema.MOST_BYTES)
                manifests.check_content(content)
                found[process] = xxhash.xxh3_64_hexdigest(content)
        if len(found) < processes - 1:
            check([process for process in missing if process not in found])
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    return [found[process] for process in range(1, processes)]


def read_part_leaves(checkpoint: Path, process: int, manifest: Mapping[str, Any]) -> list[Leaf]:
    """Read which pieces a process wrote: from the manifest for the main one, else its part file.

    Raises:
        DamagedCheckpoint: the part file is not as it was written.
    """
    leaves = [*chain.from_iterable(manifests.parse_leaves(manifest).values())]
    if process == 0:
        return leaves
    file = _get_part_file(checkpoint, process)
    try:
        content = read_bytes(file, most=manifest_schema.MOST_BYTES)
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
