"""Load the checkpoints of another run: a whole state, or parts of it by path."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from trainer.checkpoints import host_snapshot, manifest_schema, publishing, run_id
from trainer.checkpoints import manifest as manifests
from trainer.checkpoints.array_storage import ArrayStorage
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

Found = TypeVar("Found")

PARAMS = "params"
"""The path of the parameters in a checkpoint; if they are one array, it has this path itself."""


class CheckpointPart(NamedTuple):
    """Parts that were read from a checkpoint."""

    trees: dict[str, PyTree]
    """By the requested path."""
    epoch: int
    """The checkpoint's number."""
    others: list[str]
    """Paths of the leaves that were not requested."""
    digest: int
    """Of the whole checkpoint; see `manifest.compute_digest`."""


def restore(
    directory: str | os.PathLike[str],
    target: TrainState,
    *,
    epoch: int | None = None,
    best: str | None = None,
    mode: str | None = None,
) -> TrainState:
    """Restore a state from a run directory, to evaluate it or to start another run from it.

    It takes the newest intact checkpoint, or the best by a score. Damaged ones are skipped with a
    warning. Hook states are dropped except those that the target names, and so are the hooks'
    decision to stop and the positions of streams. The run's own script needs none of this:
    `save_checkpoints` resumes it.

    Args:
        directory: of the run, as given to `save_checkpoints`; nothing in it is changed.
        target: has the structure, types and devices to restore to: `task.init(key, example)`.
        epoch: restore exactly this one.
        best: restore the checkpoint with the best score of this name, such as `val/accuracy`.
        mode: `min` if a smaller score is better, `max` if a larger is; None infers it by name.

    Raises:
        FileNotFoundError: there is no checkpoint, or none of this epoch (others are listed).
        DamagedCheckpoint: no checkpoint is intact, or the requested one is not.
        ValueError: it does not fit the target, every path is listed; or no checkpoint has the
            score.

    >>> import jax, tempfile, jax.numpy as jnp
    >>> from trainer import Checkpoints
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as run, Checkpoints(run) as checkpoints:
    ...     checkpoints.save(state, scores={"val/loss": 0.5})
    ...     restore(run, state.replace(params={"w": jnp.zeros(2)}), best="val/loss").params
    {'w': Array([1., 1.], dtype=float32)}
    """
    folder, storage = get_checkpoint_folder(directory), ArrayStorage()

    def read(number: int) -> SavedCheckpoint:
        wanted = _add_positions(folder, number, target)
        checkpoint = restore_checkpoint(folder, number, storage, wanted, None)
        state = checkpoint.state.replace(stop=target.stop)
        if wanted is not target:
            state = state.replace(carry={name: state.carry[name] for name in target.carry})
        return dataclasses.replace(checkpoint, state=state)

    candidates = functools.partial(list_candidates, folder, epoch, best, mode)
    return _read_chosen(folder, candidates, read, lambda checkpoint: checkpoint.identity).state


def _read_chosen(
    folder: Path,
    candidates: Callable[[], Sequence[int]],
    read: Callable[[int], Found],
    identify: Callable[[Found], tuple[int, int]],
) -> Found:
    """Read the first intact candidate, the same one on all processes."""

    def read_here() -> Found:
        found = read_first_intact(folder, candidates, read)
        assert found is not None  # without candidates they raise
        return found

    return read_on_all_processes(folder, read_here, identify)


def read_part(
    directory: str | os.PathLike[str],
    wanted: Mapping[str, PyTree],
    *,
    optional: Collection[str] = (),
    epoch: int | None = None,
    best: str | None = None,
    mode: str | None = None,
) -> tuple[dict[str, PyTree], int]:
    """Read parts of a checkpoint by their paths, chosen as by `restore`, without knowing the rest.

    The run may be active: a checkpoint that it removes meanwhile is no error, a newer one is read.

    Args:
        directory: of the run; nothing in it is changed.
        wanted: path of a part of the saved state, such as `params`, `carry/normalization` or
            `hook_state/average_params`, to a tree of arrays with its structure, types and devices.
        optional: paths that are left out if the checkpoint has nothing there.
        epoch, best, mode: which checkpoint to read; see `restore`.

    Returns:
        Path to tree, and the epoch of the checkpoint.

    Raises:
        FileNotFoundError, DamagedCheckpoint: as `restore`.
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
    folder, storage = get_checkpoint_folder(directory), ArrayStorage()
    found = _read_chosen(
        folder,
        functools.partial(list_candidates, folder, epoch, best, mode),
        lambda number: read_part_at(folder, number, storage, wanted, optional),
        lambda part: (part.epoch, part.digest),
    )
    return found.trees, found.epoch


def read_params(
    directory: str | os.PathLike[str],
    *,
    part: str = PARAMS,
    epoch: int | None = None,
    best: str | None = None,
    mode: str | None = None,
) -> tuple[dict[str, np.ndarray], str, frozenset[str]]:
    """Read the parameters of a checkpoint without knowing their structure, chosen as by `restore`.

    Args:
        directory: of the run.
        part: of the state, `params` or `model_state`.
        epoch, best, mode: which checkpoint to read; see `restore`.

    Returns:
        Path in `params` to array ("" if they are one array), which checkpoint it is, and the names
        of the parts of the state that it has.

    Raises:
        FileNotFoundError, DamagedCheckpoint, ValueError: as `restore`.
    """
    folder, storage = get_checkpoint_folder(directory), ArrayStorage()

    parts: set[str] = set()

    def read(number: int) -> tuple[dict[str, np.ndarray], int, int]:
        leaves = _read_leaves(folder, number)
        data = read_verified_arrays(folder, number, storage, leaves)
        parts.clear()
        parts.update(leaf.path.partition("/")[0] for leaf in leaves)
        arrays = {
            leaf.path.removeprefix(part).removeprefix("/"): host_snapshot.view_array(
                leaf, data, dtype
            )
            for leaf in leaves
            if _below(leaf, part) and leaf.shape is not None
            if (dtype := manifest_schema.parse_dtype(leaf.type)) is not None
        }
        return arrays, number, manifests.compute_digest(leaves)

    candidates = functools.partial(list_candidates, folder, epoch, best, mode)
    arrays, number, _ = _read_chosen(folder, candidates, read, lambda found: found[1:])
    return arrays, f"checkpoint {number} in {folder}", frozenset(parts)


def _read_leaves(folder: Path, number: int) -> list[Leaf]:
    """Read all leaves of a checkpoint's manifest, hook states included."""
    manifest = publishing.read_manifest(folder, number)
    run_id.check_run_id(folder, number, manifest)
    sections = manifests.parse_leaves(manifest)
    return [leaf for group in sections.values() for leaf in group]


def read_part_at(
    folder: Path,
    number: int,
    storage: ArrayStorage,
    wanted: Mapping[str, PyTree],
    optional: Collection[str],
) -> CheckpointPart:
    """Read parts of one checkpoint, as `read_part` does.

    Args:
        folder: of the checkpoints.
        number: of the checkpoint.
        storage: reads the bytes.
        wanted, optional: as in `read_part`.

    Raises:
        DamagedCheckpoint: it is not as it was written.
        ValueError: a part is missing or of another structure.
    """
    where = f"checkpoint {number} in {folder}"
    leaves = _read_leaves(folder, number)
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
            f"{where} does not fit what is to be read from it:\n  "
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
    requested = {leaf.path for group in saved.values() for leaf in group}
    others = [leaf.path for leaf in leaves if leaf.path not in requested]
    return CheckpointPart(trees, number, others, manifests.compute_digest(leaves))


def _below(leaf: Leaf, path: str) -> bool:
    return leaf.path == path or leaf.path.startswith(f"{path}/")


def _add_positions(folder: Path, number: int, target: TrainState) -> TrainState:
    """Add to the target the checkpoint's positions of streams that the target does not read."""
    if not isinstance(target.carry, dict):
        return target
    positions: dict[str, Any] = {}
    prefix = f"carry/{POSITION}"
    for leaf in manifests.parse_leaves(publishing.read_manifest(folder, number))[""]:
        if leaf.path.startswith(prefix) and leaf.shape is not None:
            phase, _, part = leaf.path.removeprefix(prefix).partition("/")
            if (name := POSITION + phase) not in target.carry:
                *parents, last = part.split("/")  # in a zip each source has its own
                inner = positions.setdefault(name, {})
                for parent in parents:
                    inner = inner.setdefault(parent, {})
                inner[last] = np.zeros(leaf.shape, manifest_schema.parse_dtype(leaf.type))
    return target.replace(carry={**target.carry, **positions}) if positions else target
