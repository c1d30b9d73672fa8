"""Following another run: the newest parameters that it committed, in the place of one's own."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from hooks.base import get_hook_state, set_hook_state
from hooks.combining import Chain, chain
from hooks.metric_logging import read_step_epoch
from trainer import Hook, Interrupt, TrainState
from trainer.checkpoints.load import CheckpointPart, read_part
from trainer.checkpoints.poll import make_poller
from trainer.checkpoints.restore_one import read_on_all_processes
from trainer.checks.paths import to_absolute_path
from trainer.hook import HookState
from trainer.host.escaping import escape_text
from trainer.host.processes import fail_together, from_main_process, is_main_process
from trainer.state import PyTree

log = logging.getLogger("entracte")

NAME = "follow_checkpoints"

PAUSE = 0.2
"""Seconds between two looks at a directory in which nothing new is."""


def follow_checkpoints(
    directory: str | os.PathLike[str],
    *,
    carry: Sequence[str] = ("normalization/observations",),
    wait: bool = False,
    timeout: float = 60.0,
) -> Chain:
    """Take the newest parameters of another run, which may be going on in another process.

    With it a rollout worker is `fit` over a rollout alone, and an evaluator `fit` over an
    evaluation. Parameters and `model_state` are taken, and of `carry` what is named, where the
    other run has it; the rest is this run's own. Nothing is trained here: a program that moves
    `step`, as an update does, is refused at the end of its first epoch, before that is committed.

    Three parts. At the `start` the first commit is taken, which may have to be waited for. At each
    `epoch` the step is set to that of the commit in use, so that what the epoch measured is
    recorded where it belongs, and the score `follow/epoch` is the commit's epoch. Then the newest
    commit is taken for the next epoch. Hooks that measure the state, or keep something of it, stand
    before this one in the chain: those after it find the next parameters beside this epoch's
    metrics.

    Which commits are found depends on when one looks. That is remembered, and all else follows from
    it: an interrupted run goes on with the commit that was in use, at the same bits.

    Args:
        directory: of the run to follow; it need not be there yet, and nothing in it is changed.
        carry: names in `state.carry`, or paths in it, whose parts are taken where the other run has
            them: this one must have a place for each.
        wait: measure no commit twice: wait for a newer one at each epoch. Where none comes, this
            run ends as it does on an interrupt.
        timeout: seconds to wait, for the first commit too.

    Raises:
        ValueError: `timeout` is not positive; at the start, the commit is of another network, or
            keeps what this run has no place for: every path is listed; after an epoch, the program
            trains.
        TimeoutError: there is no first commit in time.

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
    where = to_absolute_path(directory, NAME)
    read = make_poller(where)

    def look(state: TrainState) -> CheckpointPart | None:
        """Read what is new, if anything is; on several processes what the first one found."""
        wanted = _wanted(state, carry)
        optional = [path for path in wanted if path.startswith("carry/")]
        part: CheckpointPart | None = None
        with fail_together(f"{NAME} in reading {where}"):
            if is_main_process():
                part = read(wanted, optional, _read_hook_state(state)["epoch"])
        number = int(from_main_process({"epoch": -1 if part is None else part.epoch})["epoch"])
        if number < 0:
            return None
        if part is not None:  # as `read_part` does on the others
            found = part
            return read_on_all_processes(
                where, lambda: found, lambda part: (part.epoch, part.digest)
            )
        return CheckpointPart(*read_part(where, wanted, optional=optional, epoch=number), [], 0)

    def advance(state: TrainState, *, waiting: bool) -> TrainState | None:
        """Take what is new; None where nothing came in time."""
        began, said = time.monotonic(), False
        while (part := look(state)) is None:
            waited = from_main_process({"seconds": time.monotonic() - began})["seconds"]
            if not waiting or waited >= timeout:
                return None
            if not said:
                log.info("%s: waiting for %s, up to %g s", NAME, _awaited(state, where), timeout)
                said = True
            time.sleep(PAUSE)
        if _read_hook_state(state)["epoch"] < 0:
            _check_first_checkpoint(part, where, carry)
        return _apply_part(state, part)

    def begin(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        memory = _read_hook_state(state)
        if memory["epoch"] >= 0 and not memory["measured"]:
            return state
        after = advance(state, waiting=wait or memory["epoch"] < 0)
        if after is None and memory["epoch"] < 0:
            raise TimeoutError(
                f"{NAME} waited {timeout:g} s for {_awaited(state, where)}, and none is there that "
                "is intact: start the run that is to be followed, with save_checkpoints in this "
                "directory, or give it longer: timeout=..."
            )
        if after is None and wait:
            log.warning("%s: ends, since there is still no %s", NAME, _awaited(state, where))
            return state.replace(stop=True)
        return state if after is None else after

    def measured(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        memory = _read_hook_state(state)
        if memory["epoch"] < 0:
            return state
        if taken := read_step_epoch(state)[0] - memory["began"]:
            raise ValueError(
                f"{NAME}: the program took {taken} optimizer steps in this epoch, and what they "
                f"learn is lost wherever parameters of {where} take its place: follow with phases "
                "that train nothing, such as agent.rollout alone or an evaluation"
            )
        state = state.replace(
            step=jnp.asarray(memory["step"], jnp.int32),
            scores={**state.scores, "follow/epoch": float(memory["epoch"])},
        )
        return set_hook_state(state, NAME, {**memory, "measured": True, "began": memory["step"]})

    def proceed(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        if state.stop or read_step_epoch(state)[1] == getattr(metrics, "epochs", None):
            return state
        after = advance(state, waiting=wait)
        if after is None and wait:
            raise Interrupt(f"{NAME}: no {_awaited(state, where)} came within {timeout:g} s")
        return state if after is None else after

    def stay(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        return state  # a newer commit may take long to come

    return chain(
        Hook(begin, f"{NAME}/start", event="start"),
        Hook(
            measured,
            NAME,
            event="epoch",
            writes=("follow/epoch",),
            hook_states=(HookState(NAME, _nothing),),
        ),
        Hook(proceed, f"{NAME}/next", event="epoch", dry_run=stay),
    )


def _nothing(state: TrainState) -> dict[str, Any]:
    """The first memory.

    `epoch` and `step` are those of the commit in use, `measured` says whether an epoch ran with it,
    and `began` is the step at which the epoch to come begins.
    """
    return {"epoch": -1, "step": 0, "measured": False, "began": 0}


def _read_hook_state(state: TrainState) -> dict[str, Any]:
    memory: dict[str, Any] = get_hook_state(state, NAME, _nothing)
    return memory


def _awaited(state: TrainState, where: Path) -> str:
    epoch = _read_hook_state(state)["epoch"]
    kind = "first commit" if epoch < 0 else f"commit newer than that of epoch {epoch}"
    return f"{kind} in {where}"


def _wanted(state: TrainState, carry: Sequence[str]) -> dict[str, PyTree]:
    """Give what is read, by its path in the saved state; of a dict in `carry` each entry alone."""
    wanted = {"params": state.params, "model_state": state.model_state, "step": state.step}
    for name in carry:
        found = state.carry
        for part in name.split("/"):
            found = found.get(part) if isinstance(found, Mapping) else None
        entries = found if isinstance(found, Mapping) else {"": found}
        wanted |= {f"carry/{name}/{k}".rstrip("/"): v for k, v in entries.items() if v is not None}
    return wanted


def _apply_part(state: TrainState, part: CheckpointPart) -> TrainState:
    """Put what was read in its place, and remember of which commit it is."""
    trees = dict(part.trees)
    memory = {
        "epoch": part.epoch,
        "step": int(trees.pop("step")),
        "measured": False,
        "began": read_step_epoch(state)[0],
    }
    fields = {name: trees.pop(name) for name in ("params", "model_state")}
    after = set_hook_state(state.replace(**fields), NAME, memory)
    for path, tree in trees.items():
        after = after.replace(carry=_put(after.carry, path.split("/")[1:], tree))
    return after


def _put(carry: PyTree, path: Sequence[str], tree: PyTree) -> PyTree:
    return {**carry, path[0]: _put(carry[path[0]], path[1:], tree)} if path else tree


def _check_first_checkpoint(part: CheckpointPart, where: Path, carry: Sequence[str]) -> None:
    """Say from which commit the run begins; refuse where it has no place for what was asked for."""
    asked = tuple(f"carry/{name}/" for name in carry)
    if left := [path for path in part.others if f"{path}/".startswith(asked)]:
        raise ValueError(
            f"{NAME}: the run in {where} keeps {', '.join(map(escape_text, left))}, for which this "
            "run's "
            "state has no place, so that its policy would see other numbers than it learnt from: "
            "make the state with the same settings (normalize_observations=True), or do without: "
            "carry=()"
        )
    log.info("%s: begins with the commit of epoch %d in %s", NAME, part.epoch, where)
