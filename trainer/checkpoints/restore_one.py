"""Restoring one commit: does it fit, is it intact, and what becomes of memories."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from trainer.checkpoints import host_snapshot, publishing, run_id
from trainer.checkpoints import manifest as manifests
from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.checkpoints.saved_config import config_differences, normalize_config
from trainer.host.processes import fail_together, gather_values, is_main_process
from trainer.state import TrainState

log = logging.getLogger("entracte")

Found = TypeVar("Found")


@dataclass(frozen=True)
class SavedCheckpoint:
    """What was restored."""

    epoch: int
    """Its number: the epochs that were completed."""
    state: TrainState
    """The target with what was saved, without the memories that the commit does not know."""
    scores: dict[str, float]
    """The metrics of the committed event."""
    manifest: dict[str, Any]
    """What the commit says of itself."""

    @property
    def identity(self) -> tuple[int, int]:
        """Its number, and the digest of its contents."""
        leaves = manifests.parse_leaves(self.manifest).values()
        return self.epoch, manifests.digest(leaf for group in leaves for leaf in group)


def restore_checkpoint(
    directory: Path,
    number: int,
    storage: publishing.ArrayStorage,
    target: TrainState,
    config: Mapping[str, Any] | None,
    *,
    foreign: bool = False,
) -> SavedCheckpoint:
    """Restore a commit into a state of the target's structure, types and places.

    Raises:
        DamagedCommit: it is not what was written.
        ForeignCommit: another run made it, and `foreign` is not set.
        MemoryError: it takes more than this machine has.
        ValueError: it does not fit target or config; every path and key is listed.
    """
    where = f"commit {number} in {directory}"
    manifest = publishing.read_manifest(directory, number)
    run_id.check_run_id(directory, number, manifest, foreign=foreign)
    saved = manifests.parse_leaves(manifest)
    wanted = {
        n: manifests.flatten_section(n, tree) for n, tree in manifests.sections(target).items()
    }
    shared = [name for name in wanted if name in saved]
    lines = manifests.compare_leaves(
        [leaf for name in shared for leaf in saved[name]],
        [leaf for name in shared for leaf in wanted[name][0]],
    )
    if config is not None and manifest["config"] is not None:
        config = normalize_config(config)
        try:
            lines += config_differences(manifest["config"], config)
        except (RecursionError, ValueError) as error:
            raise DamagedCheckpoint(f"{where}: its config is nested too deeply") from error
    if lines:
        raise ValueError(
            f"{where} does not fit this run:\n  "
            + "\n  ".join(lines)
            + "\nrun with what it was saved with, or in another directory"
        )
    leaves = [leaf for group in saved.values() for leaf in group]
    sizes = {leaf.path: leaf.bytes for name in shared for leaf in wanted[name][0]}
    if wrong := [x.path for name in shared for x in saved[name] if x.bytes != sizes[x.path]]:
        raise DamagedCheckpoint(f"{where}: its manifest gives a wrong size to {', '.join(wrong)}")
    data = read_verified_arrays(directory, number, storage, leaves)
    trees = {
        name: host_snapshot.rebuild_section(saved[name], data, *wanted[name]) for name in shared
    }
    # What observers remember is known to process 0 alone, which is the one to speak of it.
    for name in sorted(wanted.keys() ^ saved.keys()) if is_main_process() else ():
        happens = "begins anew" if name in wanted else "is dropped, since no hook keeps it"
        log.info(f"{where}: {name} {happens}")
    if changes := manifests.list_environment_changes(manifest):
        log.warning(
            f"{where}: the same bits as without a stop are not to be expected, since other "
            f"software or devices round otherwise: {'; '.join(changes)}"
        )
    state = trees.pop("")
    memory = {name.removeprefix("hook_state/"): tree for name, tree in trees.items()}
    return SavedCheckpoint(
        number, state.replace(hook_state=memory), manifests.parse_scores(manifest), manifest
    )


def read_verified_arrays(
    directory: Path, number: int, storage: publishing.ArrayStorage, leaves: Sequence[manifests.Leaf]
) -> np.ndarray:
    """Read the bytes of a commit's arrays, uint8 [bytes].

    Raises:
        DamagedCommit: they are not, bit for bit, what was written.
        MemoryError: they take more than this machine has.
    """
    try:
        data = storage.read(
            directory / str(number) / publishing.ARRAYS, host_snapshot.count_bytes(leaves)
        )
        host_snapshot.verify_checksums(leaves, data)
    except DamagedCheckpoint as damage:
        raise DamagedCheckpoint(f"commit {number} in {directory}: {damage}") from damage
    return data


def read_on_all_processes(
    where: Path, read: Callable[[], Found], mark: Callable[[Found], tuple[int, int]]
) -> Found:
    """Read a checkpoint on every process, and check that all read the same one; all must call it.

    Args:
        where: the folder of the checkpoints, for messages.
        read: reads one, and waits for no other process.
        mark: gives its number (-1 where there is none) and its `digest`.

    Raises:
        RuntimeError: processes read different ones, on all of them; or another one failed.
        Exception: what `read` raised here.
    """
    if jax.process_count() == 1:
        return read()
    with fail_together(f"reading a checkpoint in {where}"):
        found = read()
    marks = gather_values(mark(found))
    if len(set(marks)) > 1:
        numbers = [number for number, _ in marks]
        told = ", ".join(
            f"process {process} {'none' if number < 0 else f'that of epoch {number}'}"
            for process, number in enumerate(numbers)
        )
        if len(set(numbers)) == 1:
            told += ", with other contents"
        raise RuntimeError(
            f"processes read different checkpoints in {where}: {told}; the directory must be one "
            "that all processes share, and nothing else may write there"
        )
    return found
