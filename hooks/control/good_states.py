"""Good states: whether a state is one, a copy to roll back to, the newest one on disk."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer import Checkpoints, TrainState
from trainer.checkpoints import DamagedCheckpoint, wait_for_saves
from trainer.checks.pytrees import format_path
from trainer.data.source import POSITION
from trainer.host.processes import from_main_process
from trainer.state import PyTree

log = logging.getLogger("entracte")

GoodState = dict[str, PyTree]
"""The fields of a good state that a rollback restores, and its epoch."""

_FIELDS = ("epoch", "params", "opt_state", "model_state", "carry")


def take_snapshot(state: TrainState) -> GoodState:
    """Return the fields of a state that a rollback restores, without stream positions."""
    good = {name: getattr(state, name) for name in _FIELDS}
    if isinstance(state.carry, dict):
        good["carry"] = {k: v for k, v in state.carry.items() if not str(k).startswith(POSITION)}
    return good


def restore_snapshot(good: GoodState, state: TrainState) -> TrainState:
    """Return the good state with the epoch, step and stream positions of the current one."""
    carry = {**state.carry, **good["carry"]} if isinstance(state.carry, dict) else good["carry"]
    return state.replace(**{**good, "epoch": state.epoch, "carry": carry})


def inspect_state(state: TrainState, *, copying: bool) -> tuple[list[str], dict[str, GoodState]]:
    """List what is wrong in a state, and return a copy of its snapshot as `good` if asked to.

    A state is good if parameters and `model_state` are finite and the optimizer's state has no nan.
    """
    good = take_snapshot(state)
    sound, copies = _test_finite(good, copying=copying)
    kept = {} if copies is None else {"good": copies}
    if (flags := np.asarray(sound)).all():
        return [], kept
    paths = [path for path, _ in _float_leaves(good)]
    return [f"{paths[n]} is not finite" for n in np.flatnonzero(~flags)], kept


@functools.partial(jax.jit, static_argnames="copying")
def _test_finite(good: GoodState, *, copying: bool) -> tuple[jax.Array, GoodState | None]:
    """Test each leaf of floats `[leaves]`, and copy all leaves in the same call.

    Infinity is legitimate in the optimizer's state: optax keeps the best loss so far.
    """
    sound = [
        (~jnp.isnan(leaf) if path.startswith("opt_state") else jnp.isfinite(leaf)).all()
        for path, leaf in _float_leaves(good)
    ]
    copies = jax.tree.map(jnp.copy, good) if copying else None
    return jnp.stack(sound) if sound else jnp.ones(0, bool), copies


def _float_leaves(good: GoodState) -> Iterator[tuple[str, Any]]:
    for part in ("params", "model_state", "opt_state"):
        for path, leaf in jax.tree_util.tree_leaves_with_path({part: good[part]}):
            if jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact):
                yield format_path(path), leaf


def find_newest_good(
    name: str, directory: str | os.PathLike[str], state: TrainState
) -> tuple[GoodState, int] | None:
    """Return the newest good checkpoint before this epoch, and its hook's number of rollbacks.

    Waits for a save in progress: the result must not depend on whether it has finished.
    """
    wait_for_saves()
    checkpoints, below = Checkpoints(directory, read_only=True), int(state.epoch)
    while True:
        newest = max((n for n in checkpoints.epochs() if n < below), default=-1)
        below = int(from_main_process({"epoch": newest})["epoch"])
        if below < 0:
            return None
        try:
            found = checkpoints.restore(state, epoch=below)
        except DamagedCheckpoint as damage:
            log.warning(f"skipped a damaged checkpoint: {damage}")
            continue
        assert found is not None
        faults, _ = inspect_state(found.state, copying=False)
        if not faults:
            saved = found.state.hook_state.get(name, {"count": 0})
            return take_snapshot(found.state), saved["count"]
        log.warning(f"skipped the checkpoint of epoch {below}, in which {faults[0]}")
