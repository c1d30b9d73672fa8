"""Hooks that may fail or be slow: retry them, or run them on a worker thread."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hooks.combining import UNGATED_EVENTS, HookLike, join_parts
from trainer import Hook, Interrupt, Metrics, TrainState
from trainer.checks.arguments import require_integer, require_number
from trainer.checks.pytrees import is_key, map_key_data
from trainer.hook import HookFunction, flatten_hooks
from trainer.host.background_worker import BackgroundWorker
from trainer.host.time_spans import span
from trainer.phases.in_place_changes import MutationGuard
from trainer.state import attach_host_fields, strip_host_fields

log = logging.getLogger("entracte")


def guard(hook: HookLike, retries: int = 0) -> HookLike:
    """Retry a hook that fails, then log the failure and continue without it.

    Args:
        hook: whose parts at phases and at `epoch` are guarded.
        retries: further attempts at the same event.

    Raises:
        ValueError: a part saves, which must not fail silently; or is a control hook on several
            processes, whose states would differ.

    >>> import jax
    >>> def fail(state, metrics):
    ...     raise OSError("no answer")
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> guard(fail)(state, {}) is state
    True
    """
    require_integer("retries", retries, 0)

    def guard_part(part: Hook) -> Hook:
        if part.at in UNGATED_EVENTS:
            return part
        if part.stage == "save":
            raise ValueError(
                f"hook {part.name!r} saves and cannot be guarded: its failure must be raised"
            )
        if part.stage == "control" and jax.process_count() > 1:
            raise ValueError(
                f"control hook {part.name!r} cannot be guarded on several processes: it might fail "
                "on one of them, and their states would differ"
            )

        def retry(function: HookFunction) -> HookFunction:
            def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
                for attempt in range(1, retries + 2):
                    try:
                        return function(state, metrics)
                    except Interrupt:
                        raise
                    except Exception:
                        tries = f"try {attempt} of {retries + 1}"
                        log.exception("hook %r failed, %s", part.name, tries)
                return state

            return run

        dry_run = part.dry_run and retry(part.dry_run)
        return dataclasses.replace(part, function=retry(part.function), dry_run=dry_run)

    return join_parts([guard_part(part) for part in flatten_hooks(hook)])


def background(hook: HookLike, *, time_limit: float = 600.0) -> HookLike:
    """Run observers on a worker thread, in order, on a host copy of the state.

    The event waits only for the copy. A failure is raised at the next event, before a checkpoint is
    saved, or when the run closes. Parts at `start`, `end` and `error` do not move to the thread.

    Args:
        hook: the observers.
        time_limit: seconds that a call may take. If one takes longer, TimeoutError is raised like a
            failure, and its thread is left behind.

    Raises:
        ValueError: a part is not an observer, keeps a hook state, or writes scores, which it would
            do too late; or the limit is not positive.
    """
    if not 0 < require_number("time_limit", time_limit) <= threading.TIMEOUT_MAX:
        raise ValueError(f"time_limit must be a number of seconds above 0; got {time_limit}")

    def move(part: Hook) -> Hook:
        if part.at in UNGATED_EVENTS:
            return part
        if part.stage != "observe" or part.hook_states or part.writes:
            raise ValueError(
                f"background takes observers without hook state and scores; {part.name!r} is "
                f"{'one with them' if part.stage == 'observe' else 'a ' + part.stage + ' hook'}"
                f"{': declare it, hooks.observe(...)' if part.stage == 'control' else ''}"
            )
        worker = BackgroundWorker(
            part.name, lambda item: _observe(part, *item), max_queued=2, time_limit=time_limit
        )

        def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
            worker.put((_copy_to_host(state), _copy_output(metrics)))
            return state

        def flush() -> None:
            worker.flush()
            if part.flush:
                part.flush()

        def close(error: BaseException | None) -> None:
            try:
                worker.close()
            finally:
                if part.close:
                    part.close(error)

        return dataclasses.replace(
            part,
            function=run,
            prepare=None,  # the worker has another state
            check_background=worker.check,
            flush=flush,
            close=close,
        )

    return join_parts([move(part) for part in flatten_hooks(hook)])


def _observe(part: Hook, state: TrainState, metrics: Mapping[str, float]) -> None:
    guard = MutationGuard(state, getattr(metrics, "output", None))
    with span("hook", part.name):
        after = part.function(state, metrics)
    guard.check_unchanged(f"background observer {part.name!r}")
    if after is not state:
        raise ValueError(f"background observer {part.name!r} must return the state it was given")


def _copy_to_host(state: TrainState) -> TrainState:
    """Copy a state to the host; of its host part the containers, which training may change."""
    copied = attach_host_fields(_copy_arrays(strip_host_fields(state)), state)
    hook_state, scores = jax.tree.map(lambda leaf: leaf, (state.hook_state, state.scores))
    return copied.replace(hook_state=hook_state, scores=scores)


def _copy_output(metrics: Mapping[str, float]) -> Mapping[str, float]:
    if isinstance(metrics, Metrics) and metrics.output is not None:
        return metrics.with_output(_copy_arrays(metrics.output))
    return metrics


def _copy_arrays(tree: Any) -> Any:
    """Copy arrays to the host; a view of a buffer would prevent its donation."""

    def copy(leaf: Any) -> Any:
        if is_key(leaf):
            return map_key_data(lambda leaves: jnp.array(np.array(leaves[0])), [leaf])
        return np.array(leaf) if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(copy, tree)
