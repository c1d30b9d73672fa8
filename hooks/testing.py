"""A check for tests that a hook keeps the laws."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

from trainer import Checkpoints, Hook, TrainState, fingerprint
from trainer.checks.pytrees import list_differences
from trainer.loop.events import HookRunner
from trainer.loop.hook_checks import check_hook_result
from trainer.loop.hook_states import init_hook_states
from trainer.phases.buffers.state_buffers import copy_state
from trainer.phases.in_place_changes import MutationGuard


def check_hook(
    hook: Any, state: TrainState, metrics: Mapping[str, float], *, phases: tuple[str, ...] = ()
) -> TrainState:
    """Check that a hook keeps the laws, each of its parts in the order of execution.

    It must be pure (the same arguments, the same result; only scores of an observer may vary), not
    change its arguments, keep the state's structure, change only what its stage may change, and
    behave the same after a round trip through a checkpoint. It is closed at the end.

    Args:
        hook: a plain function, a hook or a chain.
        state: to call it with; the state after all parts is returned.
        metrics: all that it reads, so that it fires.
        phases: names of the program's phases, for a hook that runs after one.

    Raises:
        AssertionError: a law is broken, or a part does not fire on these arguments.
        ValueError: a part changes what its stage may not.

    >>> import jax
    >>> def nothing(state, metrics):
    ...     return state
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> check_hook(nothing, state, {}).stop
    False
    """
    events = HookRunner(hook, phases)
    before = fingerprint(state)
    current = init_hook_states(events.hooks, copy_state(state))
    try:
        for event in ("start", *phases, "epoch", "end", "error"):
            for part in events.order[event]:
                current = _check_part(part, current, metrics)
    finally:
        events.close()
    assert fingerprint(state) == before, f"{hook!r} changed the state that it was given"
    return current


def _check_part(part: Hook, state: TrainState, metrics: Mapping[str, float]) -> TrainState:
    missing = [key for key in part.reads if key not in metrics]
    assert not missing, f"hook {part.name!r} does not fire: {missing} is not among the metrics"
    assert part.is_due(state, metrics, {}), f"hook {part.name!r} does not fire: a trigger is closed"
    before, seen = fingerprint(state), dict(metrics)
    after = check_hook_result(part, state, _apply_unchanged(part, state, metrics))
    again = check_hook_result(part, state, _apply_unchanged(part, state, metrics))
    assert fingerprint(state) == before, f"hook {part.name!r} changed its argument, the state"
    assert dict(metrics) == seen, f"hook {part.name!r} changed its argument, the metrics"
    assert fingerprint(after) == fingerprint(again), (
        f"hook {part.name!r} is not pure: two calls with the same arguments differ"
    )
    if part.stage == "observe":
        assert after.scores.keys() == again.scores.keys(), f"hook {part.name!r} scores by chance"
    else:
        assert after.scores == again.scores, f"hook {part.name!r} is not pure: its scores differ"
    if part.hook_states:
        _check_round_trip(part, after, metrics)
    return after


def _apply_unchanged(part: Hook, state: TrainState, metrics: Mapping[str, float]) -> TrainState:
    """Run a part, and check that it does not change its arguments, scores and output included."""
    guard = MutationGuard(state, getattr(metrics, "output", None))
    after = part.apply(state, metrics)
    try:
        guard.check_unchanged(f"hook {part.name!r}")
    except ValueError as error:
        raise AssertionError(str(error)) from None
    return after


def _check_round_trip(part: Hook, state: TrainState, metrics: Mapping[str, float]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        with Checkpoints(directory) as checkpoints:
            checkpoints.save(state)
        with Checkpoints(directory) as checkpoints:
            checkpoint = checkpoints.restore(state)
    assert checkpoint is not None
    restored = checkpoint.state
    for name, _ in part.hook_states:
        lines = list_differences(state.hook_state[name], restored.hook_state[name])
        assert not lines, f"hook state {name!r} changes in a checkpoint: {lines}"
    continued, resumed = part(state, metrics), part(restored, metrics)
    assert fingerprint(continued) == fingerprint(resumed), (
        f"hook {part.name!r} behaves differently after a checkpoint"
    )
