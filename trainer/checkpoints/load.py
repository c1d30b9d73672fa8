"""Reading another run's commits: a whole state, or parts of it by path."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer.checkpoints import host_snapshot, manifest_schema, publishing, run_id
from trainer.checkpoints import manifest as manifests
from trainer.checkpoints.manifest import DamagedCheckpoint, Leaf
from trainer.checkpoints.restore_one import (
    SavedCheckpoint,
    read_on_all_processes,
    read_verified_arrays,
    restore_checkpoint,
)
from trainer.checkpoints.select import get_checkpoint_folder, list_candidates, read_first_intact
from trainer.data.source import POSITION
from trainer.state import PyTree, TrainState

PARAMS = "params"
"""Where parameters are in a commit; those that are one array have the path itself."""


class CheckpointPart(NamedTuple):
    """What was read of a commit."""

    trees: dict[str, PyTree]
    """By the path that was asked for."""
    epoch: int
    """The commit's number."""
    others: list[str]
    """Paths of the leaves that were not asked for."""
    digest: int
    """Of all of the commit; see `manifest.digest`."""


def restore(
    directory: str | os.PathLike[str],
    target: TrainState,
    *,
    epoch: int | None = None,
    best: str | None = None,
    mode: str | None = None,
) -> TrainState:
    """Restore a state from a run directory, to evaluate it or to start another run from it.

    It is the newest intact commit, or the best by a score. Damaged ones are skipped with a warning.
    What hooks remember is dropped but for memories that the target names, and so are their decision
    to stop and how far streams were read. The run's own script needs none of this:
    `save_checkpoints` resumes it.

    Args:
        directory: of the run, as `save_checkpoints` was given it; nothing in it is changed.
        target: gives the structure, types and places: `task.init(key, example)`.
        epoch: restore exactly this one.
        best: restore the commit with the best score of this name, such as `val/accuracy`.
        mode: `min` if a smaller score is better, `max` if a larger is; None goes by its name.

    Raises:
        FileNotFoundError: there is no commit, or none of this epoch (there are others, named).
        DamagedCommit: no commit is intact, or the one asked for is not.
        ValueError: it does not fit the target, every path is listed; or no commit has the score.

    >>> import jax, tempfile, jax.numpy as jnp
    >>> from trainer import Checkpoints
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as run, Checkpoints(run) as checkpoints:
    ...     checkpoints.save(state, scores={"val/loss": 0.5})
    ...     restore(run, state.replace(params={"w": jnp.zeros(2)}), best="val/loss").params
    {'w': Array([1., 1.], dtype=float32)}
    """
    folder, storage = get_checkpoint_folder(directory), publishing.ArrayStorage()

    def read(number: int) -> SavedCheckpoint:
        wanted = _with_positions(folder, number, target)
        commit = restore_checkpoint(folder, number, storage, wanted, None)
        state = commit.state.replace(stop=target.stop)
        if wanted is not target:
            state = state.replace(carry={name: state.carry[name] for name in target.carry})
        return dataclasses.replace(commit, state=state)

    return read_on_all_processes(
        folder,
        lambda: read_first_intact(folder, lambda: list_candidates(folder, epoch, best, mode), read),
        lambda commit: commit.identity,
    ).state


def read_part(
    directory: str | os.PathLike[str],
    wanted: Mapping[str, PyTree],
    *,
    optional: Collection[str] = (),
    epoch: int | None = None,
    best: str | None = None,
    mode: str | None = None,
) -> tuple[dict[str, PyTree], int]:
    """Read parts of a commit by their paths, chosen as by `restore`; the rest need not be known.

    The run may be going on: a commit that it removes meanwhile is no error, a newer one is read.

    Args:
        directory: of the run; nothing in it is changed.
        wanted: path of a part of the saved state, such as `params`, `carry/normalization` or
            `hook_state/average_params`, to a tree of arrays that gives its structure, types and
            places.
        optional: those of the paths that are left out where the commit has nothing there.
        epoch: read exactly this commit.
        best: read the commit with the best score of this name.
        mode: `min` if a smaller score is better, `max` if a larger is; None goes by its name.

    Returns:
        Path to tree, and the epoch of the commit.

    Raises:
        FileNotFoundError, DamagedCommit: as `restore`.
        ValueError: a part is missing or of another structure, all paths are listed; or as
            `restore`.

    >>> import jax, tempfile, jax.numpy as jnp
    >>> from trainer import Checkpoints
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as run, Checkpoints(run) as checkpoints:
    ...     checkpoints.save(state)
    ...     read_part(run, {"params": {"w": jnp.zeros(2)}})
    ({'params': {'w': Array([1., 1.], dtype=float32)}}, 0)
    """
    folder, storage = get_checkpoint_folder(directory), publishing.ArrayStorage()

    part = read_on_all_processes(
        folder,
        lambda: read_first_intact(
            folder,
            lambda: list_candidates(folder, epoch, best, mode),
            lambda number: read_part_at(folder, number, storage, wanted, optional),
        ),
        lambda part: (part.epoch, part.digest),
    )
    return part.trees, part.epoch


def read_params(
    directory: str | os.PathLike[str],
    *,
    part: str = PARAMS,
    epoch: int | None = None,
    best: str | None = None,
    mode: str | None = None,
) -> tuple[dict[str, np.ndarray], str, frozenset[str]]:
    """Read the parameters of a commit without knowing their structure, chosen as by `restore`.

    Args:
        directory: of the run.
        part: of the state, `params` or `model_state`.
        epoch: the commit's number.
        best: name of a score; see `restore`.
        mode: which of its values is best.

    Returns:
        Path in `params` to array ("" where they are one array), which commit it is, and which parts
        of a state it has.

    Raises:
        FileNotFoundError, DamagedCommit, ValueError: as `restore`.
    """
    folder, storage = get_checkpoint_folder(directory), publishing.ArrayStorage()

    parts: set[str] = set()

    def read(number: int) -> tuple[dict[str, np.ndarray], int, int]:
        leaves = _leaves(folder, number)
        data = read_verified_arrays(folder, number, storage, leaves)
        parts.clear()
        parts.update(leaf.path.partition("/")[0] for leaf in leaves)
        arrays = {
            leaf.path.removeprefix(part).removeprefix("/"): host_snapshot.array(leaf, data, dtype)
            for leaf in leaves
            if _below(leaf, part) and leaf.shape is not None
            if (dtype := manifest_schema.parse_dtype(leaf.type)) is not None
        }
        return arrays, number, manifests.digest(leaves)

    arrays, number, _ = read_on_all_processes(
        folder,
        lambda: read_first_intact(folder, lambda: list_candidates(folder, epoch, best, mode), read),
        lambda found: found[1:],
    )
    return arrays, f"commit {number} in {folder}", frozenset(parts)


def _leaves(folder: Path, number: int) -> list[Leaf]:
    """List all leaves of a commit, those of memories too."""
    manifest = publishing.read_manifest(folder, number)
    run_id.check_run_id(folder, number, manifest)
    sections = manifests.parse_leaves(manifest)
    return [leaf for group in sections.values() for leaf in group]


def read_part_at(
    folder: Path,
    number: int,
    storage: publishing.ArrayStorage,
    wanted: Mapping[str, PyTree],
    optional: Collection[str],
) -> CheckpointPart:
    """Read parts of one commit, as `read_part` does.

    Args:
        folder: of the commits.
        number: of the commit.
        storage: reads the bytes.
        wanted, optional: as of `read_part`.

    Raises:
        DamagedCommit: it is not what was written.
        ValueError: a part is missing or of another structure.
    """
    where = f"commit {number} in {folder}"
    leaves = _leaves(folder, number)
    saved = {path: [leaf for leaf in leaves if _below(leaf, path)] for path in wanted}
    targets = {
        path: manifests.flatten_section(path, tree)
        for path, tree in wanted.items()
        if saved[path] or path not in optional
    }
    lines = [
        line
        for path, (those, _, _) in targets.items()
        for line in manifests.compare_leaves(saved[path], those)
    ]
    if lines:
        raise ValueError(
            f"{where} does not fit what is to be read of it:\n  "
            + "\n  ".join(lines)
            + "\ngive the network and the settings that the run was made with, or another run"
        )
    sizes = {leaf.path: leaf.bytes for those, _, _ in targets.values() for leaf in those}
    if wrong := [x.path for x in leaves if x.bytes != sizes.get(x.path, x.bytes)]:
        raise DamagedCheckpoint(f"{where}: its manifest gives a wrong size to {', '.join(wrong)}")
    data = read_verified_arrays(folder, number, storage, leaves)
    trees = {
        path: host_snapshot.rebuild_section(saved[path], data, *made)
        for path, made in targets.items()
    }
    asked = {leaf.path for group in saved.values() for leaf in group}
    others = [leaf.path for leaf in leaves if leaf.path not in asked]
    return CheckpointPart(trees, number, others, manifests.digest(leaves))


def _below(leaf: Leaf, path: str) -> bool:
    return leaf.path == path or leaf.path.startswith(f"{path}/")


def _with_positions(folder: Path, number: int, target: TrainState) -> TrainState:
    """Add to the target what the commit holds of streams that the target does not read."""
    if not isinstance(target.carry, dict):
        return target
    positions: dict[str, Any] = {}
    prefix = f"carry/{POSITION}"
    for leaf in manifests.parse_leaves(publishing.read_manifest(folder, number))[""]:
        if leaf.path.startswith(prefix) and leaf.shape is not None:
            phase, _, part = leaf.path.removeprefix(prefix).partition("/")
            if (name := POSITION + phase) not in target.carry:
                *parents, last = part.split("/")  # of a zip each source has its own
                inner = positions.setdefault(name, {})
                for parent in parents:
                    inner = inner.setdefault(parent, {})
                inner[last] = np.zeros(leaf.shape, manifest_schema.parse_dtype(leaf.type))
    return target.replace(carry={**target.carry, **positions}) if positions else target
