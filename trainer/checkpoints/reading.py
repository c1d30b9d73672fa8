"""Reading another run's commits: a whole state, or its parameters by path."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from trainer.checkpoints import commits, schema, snapshots
from trainer.checkpoints import manifest as manifests
from trainer.checkpoints.manifest import DamagedCommit
from trainer.checkpoints.restoring import agree, restored, verified
from trainer.checkpoints.worker import wait_for_saves
from trainer.data.feed import POSITION
from trainer.state import TrainState

log = logging.getLogger("entracte")

Found = TypeVar("Found")

PARAMS = "params/"
"""What the paths of parameters begin with in a commit."""


def restore(
    directory: str | os.PathLike[str],
    target: TrainState,
    *,
    epoch: int | None = None,
    best: str | None = None,
    mode: str = "min",
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
        mode: `min` if a smaller score is better, `max` if a larger is.

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
    folder, storage = _folder(directory), commits.Storage()

    def read(number: int) -> TrainState:
        wanted = _with_positions(folder, number, target)
        state = restored(folder, number, storage, wanted, None).state
        agree(number)
        if wanted is not target:
            state = state.replace(carry={name: state.carry[name] for name in target.carry})
        return state.replace(stop=target.stop)

    return _first_intact(_candidates(folder, epoch, best, mode), read)


def read_params(
    directory: str | os.PathLike[str], *, best: str | None = None, mode: str = "min"
) -> tuple[dict[str, np.ndarray], str]:
    """Read the parameters of a commit without knowing their structure, chosen as by `restore`.

    Returns:
        Path in `params` to array, and which commit it is.

    Raises:
        FileNotFoundError, DamagedCommit, ValueError: as `restore`.
    """
    folder, storage = _folder(directory), commits.Storage()

    def read(number: int) -> tuple[dict[str, np.ndarray], str]:
        sections = manifests.saved_leaves(commits.read_manifest(folder, number))
        leaves = [leaf for group in sections.values() for leaf in group]
        data = verified(folder, number, storage, leaves)
        agree(number)
        arrays = {
            leaf.path.removeprefix(PARAMS): snapshots.array(leaf, data, dtype)
            for leaf in sections[""]
            if leaf.path.startswith(PARAMS) and leaf.shape is not None
            if (dtype := schema.plain(leaf.type)) is not None
        }
        return arrays, f"commit {number} in {folder}"

    return _first_intact(_candidates(folder, None, best, mode), read)


def _folder(directory: str | os.PathLike[str]) -> Path:
    folder = Path(directory).absolute() / "checkpoints"
    commits.check_no_link(folder)
    return folder


def _candidates(folder: Path, epoch: int | None, best: str | None, mode: str) -> Sequence[int]:
    """Order the commits that would do, the one to take if it is intact first."""
    if mode not in ("min", "max"):
        raise ValueError(f"mode must be 'min' or 'max'; got {mode!r}")
    if epoch is not None and best is not None:
        raise ValueError(f"give an epoch or best, not both; got {epoch} and {best!r}")
    wait_for_saves()
    numbers = commits.numbers(folder)
    if not numbers:
        raise FileNotFoundError(
            f"there is no commit in {folder}: give the directory of a run that was saved, as "
            "save_checkpoints was given it"
        )
    if epoch is not None:
        if epoch not in numbers:
            raise FileNotFoundError(
                f"there is no commit of epoch {epoch} in {folder}; there are: {numbers}"
            )
        return [epoch]
    if best is None:
        return numbers[::-1]
    scores: dict[int, Mapping[str, float]] = {}
    for number in numbers:
        try:
            scores[number] = manifests.saved_scores(commits.read_manifest(folder, number))
        except DamagedCommit as damage:
            log.warning(f"skipped a damaged commit: {damage}")
    ranked = commits.ranked({number: found.get(best) for number, found in scores.items()}, mode)
    if not ranked:
        known = sorted({name for found in scores.values() for name in found})
        raise ValueError(
            f"no commit in {folder} has a score {best!r} that is a number (there is: "
            f"{', '.join(known) or 'nothing'})"
        )
    return ranked


def _first_intact(numbers: Sequence[int], read: Callable[[int], Found]) -> Found:
    reasons = []
    for number in numbers:
        try:
            return read(number)
        except DamagedCommit as damage:
            if len(numbers) == 1:
                raise
            log.warning(f"skipped a damaged commit: {damage}")
            reasons.append(str(damage))
    raise DamagedCommit("no commit is intact:\n  " + "\n  ".join(reasons))


def _with_positions(folder: Path, number: int, target: TrainState) -> TrainState:
    """Add to the target what the commit holds of streams that the target does not read."""
    if not isinstance(target.carry, dict):
        return target
    positions: dict[str, dict[str, Any]] = {}
    prefix = f"carry/{POSITION}"
    for leaf in manifests.saved_leaves(commits.read_manifest(folder, number))[""]:
        if leaf.path.startswith(prefix) and leaf.shape is not None:
            phase, _, part = leaf.path.removeprefix(prefix).partition("/")
            if (name := POSITION + phase) not in target.carry:
                dtype = schema.plain(leaf.type)
                positions.setdefault(name, {})[part] = np.zeros(leaf.shape, dtype)
    return target.replace(carry={**target.carry, **positions}) if positions else target
