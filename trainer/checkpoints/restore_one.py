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
from trainer.checkpoints.manifest import DamagedCommit
from trainer.checkpoints.saved_config import config_differences, normalised
from trainer.host.processes import every_value, is_lead, together
from trainer.state import TrainState

log = logging.getLogger("entracte")

Found = TypeVar("Found")


@dataclass(frozen=True)
class Commit:
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
    def mark(self) -> tuple[int, int]:
        """Its number, and the digest of its contents."""
        leaves = manifests.saved_leaves(self.manifest).values()
        return self.epoch, manifests.digest(leaf for group in leaves for leaf in group)


def restored(
    directory: Path,
    number: int,
    storage: publishing.Storage,
    target: TrainState,
    config: Mapping[str, Any] | None,
    *,
    foreign: bool = False,
) -> Commit:
    """Restore a commit into a state of the target's structure, types and places.

    Raises:
        DamagedCommit: it is not what was written.
        ForeignCommit: another run made it, and `foreign` is not set.
        MemoryError: it takes more than this machine has.
        ValueError: it does not fit target or config; every path and key is listed.
    """
    where = f"commit {number} in {directory}"
    manifest = publishing.read_manifest(directory, number)
    run_id.check(directory, number, manifest, foreign=foreign)
    saved = manifests.saved_leaves(manifest)
    wanted = {n: manifests.flattened(n, tree) for n, tree in manifests.sections(target).items()}
    shared = [name for name in wanted if name in saved]
    lines = manifests.differences(
        [leaf for name in shared for leaf in saved[name]],
        [leaf for name in shared for leaf in wanted[name][0]],
    )
    if config is not None and manifest["config"] is not None:
        config = normalised(config)
        try:
            lines += config_differences(manifest["config"], config)
        except (RecursionError, ValueError) as error:
            raise DamagedCommit(f"{where}: its config is nested too deeply") from error
    if lines:
        raise ValueError(
            f"{where} does not fit this run:\n  "
            + "\n  ".join(lines)
            + "\nrun with what it was saved with, or in another directory"
        )
    leaves = [leaf for group in saved.values() for leaf in group]
    sizes = {leaf.path: leaf.bytes for name in shared for leaf in wanted[name][0]}
    if wrong := [x.path for name in shared for x in saved[name] if x.bytes != sizes[x.path]]:
        raise DamagedCommit(f"{where}: its manifest gives a wrong size to {', '.join(wrong)}")
    data = verified(directory, number, storage, leaves)
    trees = {name: host_snapshot.rebuilt(saved[name], data, *wanted[name]) for name in shared}
    # What observers remember is known to process 0 alone, which is the one to speak of it.
    for name in sorted(wanted.keys() ^ saved.keys()) if is_lead() else ():
        happens = "begins anew" if name in wanted else "is dropped, since no hook keeps it"
        log.info(f"{where}: {name} {happens}")
    if changes := manifests.changes(manifest):
        log.warning(
            f"{where}: the same bits as without a stop are not to be expected, since other "
            f"software or devices round otherwise: {'; '.join(changes)}"
        )
    state = trees.pop("")
    memory = {name.removeprefix("memory/"): tree for name, tree in trees.items()}
    return Commit(number, state.replace(memory=memory), manifests.saved_scores(manifest), manifest)


def verified(
    directory: Path, number: int, storage: publishing.Storage, leaves: Sequence[manifests.Leaf]
) -> np.ndarray:
    """Read the bytes of a commit's arrays, uint8 [bytes].

    Raises:
        DamagedCommit: they are not, bit for bit, what was written.
        MemoryError: they take more than this machine has.
    """
    try:
        data = storage.read(directory / str(number) / publishing.ARRAYS, host_snapshot.size(leaves))
        host_snapshot.verify(leaves, data)
    except DamagedCommit as damage:
        raise DamagedCommit(f"commit {number} in {directory}: {damage}") from damage
    return data


def everywhere(
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
    with together(f"reading a checkpoint in {where}"):
        found = read()
    marks = every_value(mark(found))
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
