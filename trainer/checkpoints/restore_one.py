"""Restore one checkpoint: check that it fits and is intact, and match hook states."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from trainer.checkpoints import array_storage, host_snapshot, publishing, run_id
from trainer.checkpoints import manifest as manifests
from trainer.checkpoints.manifest import DamagedCheckpoint, Leaf, Section
from trainer.checkpoints.saved_config import config_differences, normalize_config
from trainer.host.processes import fail_together, gather_values, is_main_process
from trainer.state import PyTree, TrainState

log = logging.getLogger("entracte")

Found = TypeVar("Found")


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that was restored."""

    epoch: int
    """Its number: the count of completed epochs."""
    state: TrainState
    """The target with the saved values, without hook states that the checkpoint does not have."""
    scores: dict[str, float]
    """The metrics of the saved event."""
    manifest: dict[str, Any]
    """The content of its manifest."""

    @property
    def identity(self) -> tuple[int, int]:
        """Its number and the digest of its content."""
        sections = manifests.parse_leaves(self.manifest).values()
        return self.epoch, manifests.compute_digest(chain.from_iterable(sections))


def restore_checkpoint(
    directory: Path,
    number: int,
    target: TrainState,
    config: Mapping[str, Any] | None = None,
    *,
    foreign: bool = False,
) -> SavedCheckpoint:
    """Restore a checkpoint into a state of the target's structure, types and places.

    Raises:
        DamagedCheckpoint: it is not as it was written.
        ForeignCheckpoint: another run made it, and `foreign` is not set.
        MemoryError: it needs more memory than this machine has.
        ValueError: it does not fit target or config; every path and key is listed.
    """
    where = f"checkpoint {number} in {directory}"
    manifest = publishing.read_manifest(directory, number)
    run_id.check_run_id(directory, number, manifest, foreign=foreign)
    saved = manifests.parse_leaves(manifest)
    wanted = manifests.flatten_state(target)
    shared = {name: section for name, section in wanted.items() if name in saved}
    lines = manifests.compare_leaves(
        [leaf for name in shared for leaf in saved[name]],
        [leaf for leaves, _, _ in shared.values() for leaf in leaves],
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
    trees = rebuild_trees(directory, number, [*chain.from_iterable(saved.values())], saved, shared)
    # Only the main process has the hook states of observers, so it alone logs them.
    for name in sorted(wanted.keys() ^ saved.keys()) if is_main_process() else ():
        what = "starts fresh" if name in wanted else "is dropped, since no hook keeps it"
        log.info(f"{where}: {name} {what}")
    if changes := manifests.list_environment_changes(manifest):
        log.warning(
            f"{where}: do not expect the same bits as without a stop, since other software or "
            f"devices round differently: {'; '.join(changes)}"
        )
    state = trees.pop("")
    hook_state = {name.removeprefix("hook_state/"): tree for name, tree in trees.items()}
    return SavedCheckpoint(
        number, state.replace(hook_state=hook_state), manifests.parse_scores(manifest), manifest
    )


def rebuild_trees(
    directory: Path,
    number: int,
    leaves: Sequence[Leaf],
    saved: Mapping[str, Sequence[Leaf]],
    targets: Mapping[str, Section],
) -> dict[str, PyTree]:
    """Read the arrays of a checkpoint, and rebuild trees from them.

    Args:
        directory, number: of the checkpoint.
        leaves: all that it has.
        saved: those of each tree.
        targets: what each tree must become; `compare_leaves` found no difference.

    Raises:
        DamagedCheckpoint, MemoryError: as `read_verified_arrays`.
    """
    sizes = {leaf.path: leaf.bytes for section in targets.values() for leaf in section[0]}
    if wrong := [x.path for name in targets for x in saved[name] if x.bytes != sizes[x.path]]:
        raise DamagedCheckpoint(
            f"checkpoint {number} in {directory}: its manifest gives a wrong size to "
            f"{', '.join(wrong)}"
        )
    data = read_verified_arrays(directory, number, leaves)
    return {
        name: host_snapshot.rebuild_section(saved[name], data, *target)
        for name, target in targets.items()
    }


def read_verified_arrays(directory: Path, number: int, leaves: Sequence[Leaf]) -> np.ndarray:
    """Read the bytes of a checkpoint's arrays, uint8 [bytes].

    Raises:
        DamagedCheckpoint: a bit changed since they were written.
        MemoryError: they need more memory than this machine has.
    """
    try:
        data = array_storage.load_arrays(
            directory / str(number) / publishing.ARRAYS_FOLDER, host_snapshot.count_bytes(leaves)
        )
        host_snapshot.verify_checksums(leaves, data)
    except DamagedCheckpoint as damage:
        raise DamagedCheckpoint(f"checkpoint {number} in {directory}: {damage}") from damage
    return data


def read_on_all_processes(
    where: Path, read: Callable[[], Found], identify: Callable[[Found], tuple[int, int]]
) -> Found:
    """Read a checkpoint on every process, and check that all read the same one; all must call it.

    Args:
        where: the folder of the checkpoints, for messages.
        read: reads one without waiting for another process.
        identify: returns its number (-1 if there is none) and its digest.

    Raises:
        RuntimeError: processes read different ones, on all of them; or another one failed.
        Exception: what `read` raised here.
    """
    if jax.process_count() == 1:
        return read()
    with fail_together(f"reading a checkpoint in {where}"):
        found = read()
    identities = gather_values(identify(found))
    if len(set(identities)) > 1:
        numbers = [number for number, _ in identities]
        listed = ", ".join(
            f"process {process} {'none' if number < 0 else f'that of epoch {number}'}"
            for process, number in enumerate(numbers)
        )
        if len(set(numbers)) == 1:
            listed += ", with other contents"
        raise RuntimeError(
            f"processes read different checkpoints in {where}: {listed}; the directory must be one "
            "that all processes share, and nothing else may write there"
        )
    return found
