"""Load the checkpoints of another run: a whole state, or parts of it by path."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
from flax.traverse_util import unflatten_dict

from trainer.checkpoints import manifest as manifests
from trainer.checkpoints import manifest_schema, publishing, run_id
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.leaves import Leaf, compare_leaves, flatten_section, to_box
from trainer.checkpoints.arrays.rebuild import assemble
from trainer.checkpoints.piece_reader import read_blocks
from trainer.checkpoints.reading_together import read_together
from trainer.checkpoints.restore_one import SavedCheckpoint, rebuild_trees, restore_checkpoint
from trainer.checkpoints.select import get_checkpoint_folder, list_candidates, read_first_intact
from trainer.checkpoints.storage.bucket_path import BucketPath
from trainer.checkpoints.storage.run_paths import RunPath
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
    directory: str | os.PathLike[str] | BucketPath,
    target: TrainState,
    *,
    epoch: int | None = None,
    best: str | None = None,
    mode: str | None = None,
) -> TrainState:
    """Restore a state from a run directory, to evaluate it or to start another run from it.

    It takes the newest intact checkpoint, or the best by a score; damaged ones are skipped with a
    warning. Hook states that the target does not name are dropped, and so are the hooks' decision
    to stop and the positions of streams. The run's own script needs none of this:
    `save_checkpoints` resumes it.

    Args:
        directory: of the run, or its URL, as given to `save_checkpoints`; nothing in it is changed.
        target: has the structure, types and devices to restore to: `task.init(key, example)`.
        epoch: restore exactly this one.
        best: restore the checkpoint with the best score of this name, such as `val/accuracy`.
        mode: `min` if a smaller score is better, `max` if a larger is; None infers it by name.

    Raises:
        FileNotFoundError: there is no checkpoint, or none of this epoch (others are listed).
        DamagedCheckpoint: no checkpoint is intact, or the requested one is not.
        ValueError: it does not fit the target (every path is listed), or none has the score.

    >>> import jax, tempfile, jax.numpy as jnp
    >>> from trainer import Checkpoints
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as run, Checkpoints(run) as checkpoints:
    ...     checkpoints.save(state, scores={"val/loss": 0.5})
    ...     restore(run, state.replace(params={"w": jnp.zeros(2)}), best="val/loss").params
    {'w': Array([1., 1.], dtype=float32)}
    """

    def read(folder: RunPath, number: int) -> SavedCheckpoint:
        return restore_checkpoint(folder, number, _add_positions(folder, number, target))

    found = _read_chosen(directory, (epoch, best, mode), read, lambda found: found.identity)
    state = found.state.replace(stop=target.stop)
    if isinstance(target.carry, dict):
        state = state.replace(carry={name: state.carry[name] for name in target.carry})
    return state


def _read_chosen(
    directory: str | os.PathLike[str] | BucketPath,
    choice: tuple[int | None, str | None, str | None],
    read: Callable[[RunPath, int], Found],
    identify: Callable[[Found], tuple[int, int]],
) -> Found:
    """Read the first intact checkpoint of a choice (`list_candidates`), on all processes."""
    folder = get_checkpoint_folder(directory)

    found = read_together(
        folder,
        lambda read_one: read_first_intact(
            folder, lambda: list_candidates(folder, *choice), read_one
        ),
        lambda number: read(folder, number),
        identify,
    )
    assert found is not None  # without candidates they raise
    return found


def read_part(
    directory: str | os.PathLike[str] | BucketPath,
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
        FileNotFoundError, DamagedCheckpoint, ValueError: as `restore`; all paths are listed that
            are missing or of another structure.

    >>> import jax, tempfile, jax.numpy as jnp
    >>> from trainer import Checkpoints
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as run, Checkpoints(run) as checkpoints:
    ...     checkpoints.save(state)
    ...     read_part(run, {"params": {"w": jnp.zeros(2)}})
    ({'params': {'w': Array([1., 1.], dtype=float32)}}, 0)
    """
    found = _read_chosen(
        directory,
        (epoch, best, mode),
        lambda folder, number: read_part_at(folder, number, wanted, optional),
        lambda part: (part.epoch, part.digest),
    )
    return found.trees, found.epoch


def read_params(
    directory: str | os.PathLike[str] | BucketPath,
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

    def read(folder: RunPath, number: int) -> tuple[dict[str, np.ndarray], str, list[Leaf], int]:
        manifest, leaves = _read_manifest(folder, number)
        wanted = [
            (leaf, leaf.shape, dtype)
            for leaf in leaves
            if _below(leaf, part) and leaf.shape is not None
            if (dtype := manifest_schema.parse_dtype(leaf.type)) is not None
        ]
        where = f"checkpoint {number} in {folder}"
        if wrong := [x.path for x, _, dtype in wanted if x.itemsize != dtype.itemsize]:
            raise DamagedCheckpoint(f"{where}: its manifest gives a wrong size to {wrong}")
        needed = {leaf.path: [to_box((), shape)] for leaf, shape, _ in wanted}
        blocks = read_blocks(folder, number, manifest, leaves, needed)
        arrays = {
            leaf.path.removeprefix(part).removeprefix("/"): assemble(
                blocks[leaf.path], dtype, shape
            )
            for leaf, shape, dtype in wanted
        }
        return arrays, where, leaves, manifests.compute_digest(manifest)

    arrays, where, leaves, _ = _read_chosen(
        directory,
        (epoch, best, mode),
        read,
        lambda found: (0, found[3]),
    )
    return arrays, where, frozenset(leaf.path.partition("/")[0] for leaf in leaves)


def _read_manifest(folder: RunPath, number: int) -> tuple[dict[str, Any], list[Leaf]]:
    """Read a checkpoint's manifest, and list all leaves in it, hook states included."""
    manifest = publishing.read_manifest(folder, number)
    run_id.check_run_id(folder, number, manifest)
    return manifest, [*chain.from_iterable(manifests.parse_leaves(manifest).values())]


def read_part_at(
    folder: RunPath, number: int, wanted: Mapping[str, PyTree], optional: Collection[str] = ()
) -> CheckpointPart:
    """Read parts of one checkpoint in a folder, as `read_part` does.

    Raises:
        DamagedCheckpoint: it is not as it was written.
        ValueError: a part is missing or of another structure.
    """
    manifest, leaves = _read_manifest(folder, number)
    saved = {path: [leaf for leaf in leaves if _below(leaf, path)] for path in wanted}
    targets = {
        path: flatten_section(path, tree)
        for path, tree in wanted.items()
        if saved[path] or path not in optional
    }
    lines = [
        line
        for path, (those, _, _) in targets.items()
        for line in compare_leaves(saved[path], those)
    ]
    if lines:
        raise ValueError(
            f"checkpoint {number} in {folder} does not fit what is to be read from it:\n  "
            + "\n  ".join(lines)
            + "\ngive the network and the settings that the run was made with, or another run"
        )
    trees = rebuild_trees(folder, number, manifest, leaves, saved, targets)
    requested = {leaf.path for group in saved.values() for leaf in group}
    others = [leaf.path for leaf in leaves if leaf.path not in requested]
    return CheckpointPart(trees, number, others, manifests.compute_digest(manifest))


def _below(leaf: Leaf, path: str) -> bool:
    return leaf.path == path or leaf.path.startswith(f"{path}/")


def _add_positions(folder: RunPath, number: int, target: TrainState) -> TrainState:
    """Add to the target the checkpoint's positions of streams that the target does not read."""
    if not isinstance(target.carry, dict):
        return target
    prefix = f"carry/{POSITION}"
    positions = {
        tuple(leaf.path.removeprefix(prefix).split("/")): np.zeros(
            leaf.shape, manifest_schema.parse_dtype(leaf.type)
        )
        for leaf in manifests.parse_leaves(publishing.read_manifest(folder, number))[""]
        if leaf.path.startswith(prefix) and leaf.shape is not None
    }
    added = {POSITION + phase: tree for phase, tree in unflatten_dict(positions).items()}
    return target.replace(carry={**added, **target.carry})
