"""Checks of what a hook returns: what it may change depends on its stage."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from trainer.checks.arguments import describe_value
from trainer.checks.pytrees import describe_leaf, has_same_structure, list_differences
from trainer.hook import Hook
from trainer.phases.buffers.state_buffers import (
    conform_state,
    get_buffer_addresses,
    unshare_buffers,
)
from trainer.phases.in_place_changes import read_only
from trainer.phases.metrics import Members
from trainer.state import DEVICE_FIELDS, PyTree, TrainState


def check_hook_result(
    hook: Hook, before: TrainState, after: TrainState, *, donate: bool = True
) -> TrainState:
    """Check the state that a hook returned, and prepare it for training.

    Leaves that a control hook changed get the weak type and sharding that the compiled phases
    expect. Where training donates buffers, leaves that share one, with another or with a hook
    state, are copied; to ask for its address waits until it is computed.

    Raises:
        ValueError: a control hook changed structure, shape or dtype, or the epoch; an observer or
            a save changed something that is not its own; a hook state changed its structure or
            types.
    """
    changed = [f for f in DEVICE_FIELDS if getattr(after, f) is not getattr(before, f)]
    if hook.stage != "control":
        changed = [
            f for f in changed if not _has_same_leaves(getattr(before, f), getattr(after, f))
        ]
        _refuse_changes(hook, before, after, changed)
    elif "rng" in changed and not hook.rekeys:
        raise ValueError(
            f"hook {hook.name!r} replaced state.rng, the root of all randomness, with "
            f"{describe_leaf(after.rng)}; it is never consumed, only folded: draw with state.key("
            f"'hook/{hook.name}'), or declare hooks.rekeys(hook) if the run is to have another root"
        )
    elif "epoch" in changed:
        raise ValueError(f"hook {hook.name!r} changed epoch, which fit alone counts")
    elif lines := [
        line
        for field in changed
        for line in _differences(getattr(before, field), getattr(after, field), field)
    ]:
        raise ValueError(
            f"hook {hook.name!r} must keep the structure, shapes and dtypes of the state:\n  "
            + "\n  ".join(lines)
        )
    hook_states = _check_hook_states(hook, before, after)
    if changed:
        after = conform_state(before, after)
    if hook_states:
        read_only(hook_states)
    if donate and (changed or any(map(get_buffer_addresses, jax.tree.leaves(hook_states)))):
        after = unshare_buffers(after, before)
    if after.scores is not before.scores:
        after = after.replace(scores={k: _to_score(hook, k, v) for k, v in after.scores.items()})
    if type(after.stop) is not bool:
        after = after.replace(stop=_to_stop(hook, after.stop))
    return after


def _refuse_changes(hook: Hook, before: TrainState, after: TrainState, changed: list[str]) -> None:
    if hook.stage == "save" and after.scores is not before.scores:
        changed = [*changed, "scores"]
    if hook.stage == "observe" and after.scores is not before.scores:
        others = [k for k, v in before.scores.items() if after.scores.get(k, None) is not v]
        changed = [*changed, *(f"the score {name!r} of another hook" for name in others)]
    if _to_stop(hook, after.stop) != before.stop:
        changed = [*changed, "stop"]
    if changed:
        raise ValueError(
            f"hook {hook.name!r} is of stage {hook.stage!r} and may change its own hook state"
            f"{' and scores' if hook.stage == 'observe' else ''}, nothing else; it changed "
            f"{', '.join(changed)}: make it a control hook if that is intended"
        )


def _check_hook_states(hook: Hook, before: TrainState, after: TrainState) -> dict[str, PyTree]:
    """Return the hook states that changed, after checking that the hook may change them so."""
    if after.hook_state is before.hook_state:
        return {}
    own = {name for name, _ in hook.hook_states}
    changed: dict[str, PyTree] = {}
    for name in before.hook_state.keys() | after.hook_state.keys():
        if name not in after.hook_state or name not in before.hook_state:
            raise ValueError(
                f"hook {hook.name!r} must keep the names of state.hook_state; it "
                f"{'added' if name in after.hook_state else 'removed'} {name!r}: "
                "make it with hooks.stateful"
            )
        old, new = before.hook_state[name], after.hook_state[name]
        if new is old:
            continue
        if name not in own and hook.stage != "control":
            raise ValueError(
                f"hook {hook.name!r} of stage {hook.stage!r} may change its own hook state; "
                f"it changed {name!r}"
            )
        if lines := _differences(old, new, name):
            raise ValueError(
                f"hook {hook.name!r} must return a hook state of the structure and types that init "
                "returned:\n  " + "\n  ".join(lines)
            )
        changed[name] = new
    return changed


def _differences(old: PyTree, new: PyTree, where: str) -> list[str]:
    """List how the structure changed; quick if it did not."""
    before, after = jax.tree.leaves(old), jax.tree.leaves(new)
    if has_same_structure(old, new) and all(map(_has_same_type, before, after)):
        return []
    return [f"{where}/{line}".replace("/:", ":") for line in list_differences(old, new)]


def _has_same_type(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if type(old) is not type(new):
        return False
    return not hasattr(old, "dtype") or (old.dtype == new.dtype and old.shape == new.shape)


def _has_same_leaves(old: PyTree, new: PyTree) -> bool:
    """Return whether two trees hold the same leaf objects."""
    leaves = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=False)
    return has_same_structure(old, new) and all(a is b for a, b in leaves)


def _to_stop(hook: Hook, stop: Any) -> bool:
    if np.ndim(stop):
        raise TypeError(
            f"hook {hook.name!r} must set stop to True or False; got {describe_value(stop)}: "
            "reduce it, such as by bool(array.all())"
        )
    return bool(stop)


def _to_score(hook: Hook, name: str, score: Any) -> float:
    if isinstance(score, Members):
        return score
    try:
        return float(score)
    except (TypeError, ValueError):
        remedy = ": reduce it, such as by float(array.mean())" if np.ndim(score) else ""
        raise TypeError(
            f"hook {hook.name!r} wrote the score {name!r}, which must be a number; got "
            f"{describe_value(score)}{remedy}"
        ) from None
