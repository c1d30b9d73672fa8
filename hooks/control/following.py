"""Following another run: use the newest parameters that it saved instead of training one's own."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from hooks.base import stateful
from hooks.combining import Chain, chain
from trainer import Hook, Interrupt, TrainState
from trainer.checkpoints.load import CheckpointPart, read_part_at
from trainer.checkpoints.poll import make_poller
from trainer.checkpoints.reading_together import read_together
from trainer.checkpoints.select import get_checkpoint_folder
from trainer.checkpoints.storage.run_paths import RunPath, to_run_path
from trainer.hook import SKIP, get_hook_state, set_hook_state
from trainer.host.escaping import escape_text
from trainer.host.processes import from_main_process
from trainer.state import PyTree, read_epoch, read_step_count

log = logging.getLogger("entracte")

NAME = "follow_checkpoints"

PAUSE = 0.2
"""Seconds between two polls of a directory that has no new checkpoint."""

Loaded = dict[str, Any]
"""The hook state: `epoch` and `step` of the loaded checkpoint, `measured`: whether an epoch ran
with it, `began`: the step at which the next epoch begins."""


def follow_checkpoints(
    directory: str | os.PathLike[str],
    *,
    carry: Sequence[str] = ("normalization/observations",),
    wait: bool = False,
    timeout: float = 60.0,
) -> Chain:
    """Load the newest parameters of another run, which may be training in another process.

    With it a rollout worker is `fit` over a rollout alone, and an evaluator is `fit` over an
    evaluation. It loads `params`, `model_state`, and the named parts of `carry` that the other run
    has; the rest of the state is this run's own. This run must not train: a program that changes
    `step` is refused at the end of its first epoch, before that is saved.

    At `start` it loads the first checkpoint, and waits for it if needed. At each `epoch` it sets
    the step to that of the loaded checkpoint, at which hooks then record what was measured, and
    scores the checkpoint's epoch as `follow/epoch`. Then it loads the newest checkpoint for the
    next epoch. Place hooks that measure the state, or keep parts of it, before this one.

    The hook state says which checkpoint is loaded: an interrupted run resumes with it bit for bit.

    Args:
        directory: of the run to follow, or its URL in a bucket; it need not exist yet, and nothing
            in it is changed.
        carry: names in `state.carry`, or paths in it, of the parts to load if the other run has
            them; this run must have a place for each.
        wait: measure no checkpoint twice: wait for a newer one at each epoch. If none is saved in
            time, this run ends as it does on an interrupt.
        timeout: seconds to wait, for the first checkpoint too.

    Raises:
        ValueError: `timeout` is not positive; at the start, the checkpoint is of another network,
            or has parts for which this run has no place; after an epoch, the program trains.
        TimeoutError: no first checkpoint was saved in time.

    >>> import jax, tempfile
    >>> from trainer import Checkpoints
    >>> other = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> state = other.replace(params={"w": jnp.zeros(2)})
    >>> with tempfile.TemporaryDirectory() as run:
    ...     with Checkpoints(run) as checkpoints:
    ...         checkpoints.save(other.replace(epoch=jnp.int32(3), step=jnp.int32(96)))
    ...     hook = follow_checkpoints(run)
    ...     state = hook(hook(state, {}, event="start"), {})
    >>> state.params, int(state.step), state.scores
    ({'w': Array([1., 1.], dtype=float32)}, 96, {'follow/epoch': 3.0})
    """
    if not timeout > 0:
        raise ValueError(f"timeout must be positive seconds; got {timeout}")
    if isinstance(carry, str):
        raise ValueError(f"carry must be a sequence of names, such as ({carry!r},)")
    where = to_run_path(directory, NAME)
    poll_newer = make_poller(where)

    def poll(loaded: Loaded, state: TrainState) -> CheckpointPart | None:
        """Read a new checkpoint if there is one; all processes read what the main process found."""
        wanted = _list_wanted(state, carry)
        optional = [path for path in wanted if path.startswith("carry/")]
        folder = get_checkpoint_folder(where)
        return read_together(
            folder,
            lambda read: poll_newer(read, loaded["epoch"]),
            lambda number: read_part_at(folder, number, wanted, optional),
            lambda part: (part.epoch, part.digest),
        )

    def load(
        loaded: Loaded, state: TrainState, *, waiting: bool
    ) -> tuple[Loaded, TrainState] | None:
        """Load a new checkpoint; None if there is none in time."""
        started, logged = time.monotonic(), False
        while (part := poll(loaded, state)) is None:
            waited = from_main_process({"seconds": time.monotonic() - started})["seconds"]
            if not waiting or waited >= timeout:
                return None
            if not logged:
                log.info("%s: waiting for %s, up to %g s", NAME, _awaited(loaded, where), timeout)
                logged = True
            time.sleep(PAUSE)
        if loaded["epoch"] < 0:
            _check_first_checkpoint(part, where, carry)
        return _apply_part(state, part)

    def start(
        loaded: Loaded, state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[Loaded, TrainState]:
        first = loaded["epoch"] < 0
        if not first and not loaded["measured"]:
            return loaded, state
        if found := load(loaded, state, waiting=wait or first):
            return found
        if first:
            raise TimeoutError(
                f"{NAME} waited {timeout:g} s for {_awaited(loaded, where)}, and there is no "
                "intact one: start the run to follow, with save_checkpoints in this directory, or "
                "wait longer: timeout=..."
            )
        if wait:
            log.warning("%s: ending, since there is still no %s", NAME, _awaited(loaded, where))
        return loaded, state.replace(stop=True) if wait else state

    def attribute(
        loaded: Loaded, state: TrainState, metrics: Mapping[str, float]
    ) -> tuple[Loaded, TrainState]:
        """Attribute this epoch's metrics to the checkpoint that it ran with."""
        if loaded["epoch"] < 0:
            return loaded, state
        if taken := read_step_count(state) - loaded["began"]:
            raise ValueError(
                f"{NAME}: the program took {taken} optimizer steps in this epoch, and what they "
                f"learn is lost when parameters of {where} replace it: follow with phases that "
                "train nothing, such as agent.rollout alone or an evaluation"
            )
        state = state.replace(
            step=jnp.asarray(loaded["step"], jnp.int32),
            scores={**state.scores, "follow/epoch": float(loaded["epoch"])},
        )
        return {**loaded, "measured": True, "began": loaded["step"]}, state

    def advance(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        """Load the checkpoint for the next epoch."""
        if state.stop or read_epoch(state) == getattr(metrics, "epochs", None):
            return state
        loaded = get_hook_state(state, NAME, _init)
        if found := load(loaded, state, waiting=wait):
            return set_hook_state(found[1], NAME, found[0])
        if wait:
            raise Interrupt(f"{NAME}: no {_awaited(loaded, where)} was saved within {timeout:g} s")
        return state

    return chain(
        stateful(NAME, _init, attribute, start=start, event="epoch", writes=("follow/epoch",)),
        Hook(advance, f"{NAME}/next", event="epoch", dry_run=SKIP),  # it may wait long
    )


def _init(state: TrainState) -> Loaded:
    return {"epoch": -1, "step": 0, "measured": False, "began": 0}


def _awaited(loaded: Loaded, where: RunPath) -> str:
    epoch = loaded["epoch"]
    kind = "first checkpoint" if epoch < 0 else f"checkpoint newer than that of epoch {epoch}"
    return f"{kind} in {where}"


def _list_wanted(state: TrainState, carry: Sequence[str]) -> dict[str, PyTree]:
    """Return path in the saved state to tree; each entry of a dict in `carry` has its own path."""
    wanted = {"params": state.params, "model_state": state.model_state, "step": state.step}
    for name in carry:
        found = state.carry
        for part in name.split("/"):
            found = found.get(part) if isinstance(found, Mapping) else None
        entries = found if isinstance(found, Mapping) else {"": found}
        wanted |= {f"carry/{name}/{k}".rstrip("/"): v for k, v in entries.items() if v is not None}
    return wanted


def _apply_part(state: TrainState, part: CheckpointPart) -> tuple[Loaded, TrainState]:
    """Replace parts of the state by those that were read."""
    trees = dict(part.trees)
    loaded = {
        "epoch": part.epoch,
        "step": int(trees.pop("step")),
        "measured": False,
        "began": read_step_count(state),
    }
    fields = {name: trees.pop(name) for name in ("params", "model_state")}
    carry = state.carry
    for path, tree in trees.items():
        carry = _replace_at(carry, path.split("/")[1:], tree)
    return loaded, state.replace(**fields, carry=carry)


def _replace_at(carry: PyTree, path: Sequence[str], tree: PyTree) -> PyTree:
    return {**carry, path[0]: _replace_at(carry[path[0]], path[1:], tree)} if path else tree


def _check_first_checkpoint(part: CheckpointPart, where: RunPath, carry: Sequence[str]) -> None:
    """Log the first checkpoint; refuse it if it has parts for which this run has no place."""
    asked = tuple(f"carry/{name}/" for name in carry)
    if left := [path for path in part.others if f"{path}/".startswith(asked)]:
        raise ValueError(
            f"{NAME}: the run in {where} keeps {', '.join(map(escape_text, left))}, for which this "
            "run's state has no place, so its policy would see other numbers than those it was "
            "trained on: make the state with the same settings (normalize_observations=True), or "
            "leave them out: carry=()"
        )
    log.info("%s: starts with the checkpoint of epoch %d in %s", NAME, part.epoch, where)
