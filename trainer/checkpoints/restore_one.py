"""Restore one checkpoint: check that it fits and is intact, and match hook states."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import jax

from trainer.checkpoints import manifest as manifests
from trainer.checkpoints import parts, publishing, run_id
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.host_snapshot import count_bytes
from trainer.checkpoints.arrays.leaves import Leaf, Section, compare_leaves, flatten_state
from trainer.checkpoints.arrays.piece_files import select_pieces
from trainer.checkpoints.arrays.rebuild import list_needed_boxes, rebuild_section
from trainer.checkpoints.arrays.sharing import EarlierPieces, list_earlier_pieces
from trainer.checkpoints.piece_reader import read_blocks
from trainer.checkpoints.saved_config import config_differences, normalize_config
from trainer.checkpoints.storage.run_paths import RunPath
from trainer.data.iteration.mixture_sources import find_source_changes
from trainer.host.processes import is_main_process
from trainer.placement.meshes import describe_mesh
from trainer.state import PyTree, TrainState

log = logging.getLogger("entracte")


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
        return self.epoch, manifests.compute_digest(self.manifest)


def restore_checkpoint(
    directory: RunPath,
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
    wanted = flatten_state(target)
    shared = {name: section for name, section in wanted.items() if name in saved}
    before = [leaf for name in shared for leaf in saved[name]]
    after = [leaf for leaves, _, _ in shared.values() for leaf in leaves]
    sources = find_source_changes((x.path for x in before), (x.path for x in after))
    lines = [x for x in compare_leaves(before, after) if not x.startswith(tuple(sources))]
    lines += sources.values()
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
    leaves = [*chain.from_iterable(saved.values())]
    trees = rebuild_trees(directory, number, manifest, leaves, saved, shared)
    # Only the main process has the hook states of observers, so it alone logs them.
    for name in sorted(wanted.keys() ^ saved.keys()) if is_main_process() else ():
        what = "starts fresh" if name in wanted else "is dropped, since no hook keeps it"
        log.info(f"{where}: {name} {what}")
    if changes := manifests.list_environment_changes(manifest, describe_mesh(target)):
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
    directory: RunPath,
    number: int,
    manifest: Mapping[str, Any],
    leaves: Sequence[Leaf],
    saved: Mapping[str, Sequence[Leaf]],
    targets: Mapping[str, Section],
) -> dict[str, PyTree]:
    """Read what this process needs of the arrays of a checkpoint, and rebuild trees from it.

    Args:
        directory, number, manifest: of the checkpoint.
        leaves: all that the manifest lists.
        saved: the leaves of each tree.
        targets: what each tree must become; `compare_leaves` found no difference.

    Raises:
        DamagedCheckpoint, MemoryError: as `read_blocks`.
    """
    sizes = {leaf.path: leaf.itemsize for section in targets.values() for leaf in section[0]}
    if wrong := [x.path for name in targets for x in saved[name] if x.itemsize != sizes[x.path]]:
        raise DamagedCheckpoint(
            f"checkpoint {number} in {directory}: its manifest gives a wrong size to "
            f"{', '.join(wrong)}"
        )
    needed = {
        leaf.path: list_needed_boxes(target, leaf.shape)
        for section, values, _ in targets.values()
        for leaf, target in zip(section, values, strict=True)
        if leaf.shape is not None
    }
    blocks = read_blocks(directory, number, manifest, leaves, needed)
    try:
        return {
            name: rebuild_section(saved[name], blocks, *target) for name, target in targets.items()
        }
    except DamagedCheckpoint as damage:
        raise DamagedCheckpoint(f"checkpoint {number} in {directory}: {damage}") from damage


def list_restored_pieces(directory: RunPath, found: SavedCheckpoint) -> EarlierPieces:
    """List what this process has of a checkpoint that was restored, for the next one to refer to.

    Nothing for one of an older version, or that other processes wrote alone.
    """
    manifest, process = found.manifest, jax.process_index()
    restored = {"", *(f"hook_state/{name}" for name in found.state.hook_state)}  # and verified
    leaves = manifests.parse_leaves(manifest)
    if "save" not in manifest or process > len(manifest.get("parts") or ()):
        return EarlierPieces()
    data = publishing.get_data(directory, found.epoch, manifest)
    rows = [*chain.from_iterable(leaves.values())]
    try:
        part = parts.read_part_pieces(data, process, manifest, rows)
    except DamagedCheckpoint:  # nothing of it was needed
        return EarlierPieces()
    sizes = {**part.files, "": count_bytes(select_pieces(part.leaves, ""))}
    earlier = list_earlier_pieces(data, process, manifest["save"], part.leaves, sizes)
    paths = {leaf.path for name in leaves.keys() & restored for leaf in leaves[name]}
    places = {key: piece for key, piece in earlier.places.items() if key[0] in paths}
    return replace(earlier, places=places)
