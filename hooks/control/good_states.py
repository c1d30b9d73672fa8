"""Good states: what is one, a copy to return to, the newest one on disk."""

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

Good = dict[str, PyTree]
"""Of a good state what is returned to, and the epoch that it is of."""

_FIELDS = ("epoch", "params", "opt_state", "model_state", "carry")


def take_snapshot(state: TrainState) -> Good:
    """Take from a state what would be returned to: not how far streams were read."""
    good = {name: getattr(state, name) for name in _FIELDS}
    if isinstance(state.carry, dict):
        good["carry"] = {k: v for k, v in state.carry.items() if not str(k).startswith(POSITION)}
    return good


def restore_snapshot(good: Good, state: TrainState) -> TrainState:
    """Give the good state with the epoch, step and stream positions of the present one."""
    carry = {**state.carry, **good["carry"]} if isinstance(state.carry, dict) else good["carry"]
    return state.replace(**{**good, "epoch": state.epoch, "carry": carry})


def _numbers(good: Good) -> Iterator[tuple[str, Any]]:
    for part in ("params", "model_state", "opt_state"):
        for path, leaf in jax.tree_util.tree_leaves_with_path({part: good[part]}):
            if jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact):
                yield format_path(path), leaf


@functools.partial(jax.jit, static_argnames="copying")
def _test_finite(good: Good, *, copying: bool) -> tuple[jax.Array, Good | None]:
    """Say of each leaf of numbers whether it is sound `[leaves]`, and copy all in the same call.

    Infinity is legitimate in the optimizer's state: optax keeps the best loss so far.
    """
    sound = [
        (~jnp.isnan(leaf) if name.startswith("opt_state") else jnp.isfinite(leaf)).all()
        for name, leaf in _numbers(good)
    ]
    copies = jax.tree.map(jnp.copy, good) if copying else None
    return jnp.stack(sound) if sound else jnp.ones(0, bool), copies


def inspect_state(state: TrainState, *, copying: bool) -> tuple[list[str], dict[str, Good]]:
    """List what is wrong in a state, and give a copy of what would be returned to, as `good`.

    A state is good if parameters and `model_state` are finite and no nan is in the optimizer's.
    """
    good = take_snapshot(state)
    sound, copies = _test_finite(good, copying=copying)
    kept = {} if copies is None else {"good": copies}
    if (flags := np.asarray(sound)).all():
        return [], kept
    names = [name for name, _ in _numbers(good)]
    return [f"{names[n]} is not finite" for n in np.flatnonzero(~flags)], kept


def find_newest_good(
    name: str, directory: str | os.PathLike[str], state: TrainState
) -> tuple[Good, int] | None:
    """Give the newest good commit before this epoch, and how often its hook had returned by then.

    A save may be under way. Whether its commit is there yet must not decide, so it is waited for.
    """
    wait_for_saves()
    commits, below = Checkpoints(directory, read_only=True), int(state.epoch)
    while True:
        newest = max((n for n in commits.epochs() if n < below), default=-1)
        below = int(from_main_process({"epoch": newest})["epoch"])
        if below < 0:
            return None
        try:
            commit = commits.restore(state, epoch=below)
        except DamagedCheckpoint as damage:
            log.warning(f"skipped a damaged commit: {damage}")
            continue
        assert commit is not None
        faults, _ = inspect_state(commit.state, copying=False)
        if not faults:
            return take_snapshot(commit.state), commit.state.hook_state.get(name, {"count": 0})[
                "count"
            ]
        log.warning(f"skipped the commit of epoch {below}, in which {faults[0]}")
