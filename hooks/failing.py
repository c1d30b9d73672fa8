"""Hooks that may fail or take long: guarded, or moved to a thread."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hooks.combining import PASSING, Combined, combined
from hooks.worker import Worker
from trainer import Hook, Interrupt, Metrics, TrainState
from trainer.checks.arguments import number, whole
from trainer.hook import Function, parts_of
from trainer.host.time_spans import span
from trainer.phases.in_place_changes import Shadow
from trainer.state import device_part, rejoin

log = logging.getLogger("entracte")


def guard(hook: Combined, retries: int = 0) -> Combined:
    """Retry a failing hook, then log the failure and go on without it.

    Args:
        hook: whose parts at phases and at `epoch` are guarded.
        retries: further tries at the same event.

    Raises:
        ValueError: a part is a commit, whose failure must not be passed over; or a control hook on
            several processes, which would part ways.

    >>> import jax
    >>> def fail(state, metrics):
    ...     raise OSError("no answer")
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> guard(fail)(state, {}) is state
    True
    """
    whole("retries", retries, 0)

    def guarded(part: Hook) -> Hook:
        if part.at in PASSING:
            return part
        if part.stage == "commit":
            raise ValueError(f"commit {part.name!r} cannot be guarded: its failure must be raised")
        if part.stage == "control" and jax.process_count() > 1:
            raise ValueError(
                f"control hook {part.name!r} cannot be guarded on several processes: it might fail "
                "on one of them, and their states would differ"
            )

        def tried(function: Function) -> Function:
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

        rehearse = part.rehearse and tried(part.rehearse)
        return dataclasses.replace(part, function=tried(part.function), rehearse=rehearse)

    return combined([guarded(part) for part in parts_of(hook)])


def background(hook: Combined, *, time_limit: float = 600.0) -> Combined:
    """Run observers on a worker thread, in order, on a host copy of the state.

    The event waits for the copy alone. A failure is raised at the next event, before a commit, or
    when the run closes. Since its result is not waited for, it can neither score nor remember.

    Parts at `start`, `end` and `error` stay where they are.

    Args:
        hook: the observers.
        time_limit: seconds that one call may take. One that takes longer hangs: TimeoutError is
            raised as a failure is, and its thread left behind.

    Raises:
        ValueError: a part is no observer, or keeps a memory, or writes scores; or the limit is not
            positive.
    """
    if not 0 < number("time_limit", time_limit) <= threading.TIMEOUT_MAX:
        raise ValueError(f"time_limit must be a number of seconds above 0; got {time_limit}")

    def moved(part: Hook) -> Hook:
        if part.at in PASSING:
            return part
        if part.stage != "observe" or part.memories or part.writes:
            raise ValueError(
                f"background takes observers without memory and scores; {part.name!r} is "
                f"{'one with memory or scores' if part.stage == 'observe' else 'a ' + part.stage}"
                f"{': declare it, hooks.observe(...)' if part.stage == 'control' else ''}"
            )
        worker = Worker(
            part.name, lambda item: _observe(part, *item), waiting=2, time_limit=time_limit
        )

        def run(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
            worker.put((_on_host(state), _with_host_output(metrics)))
            return state

        def flush() -> None:
            worker.flush()
            if part.flush:
                part.flush()

        def close() -> None:
            try:
                worker.close()
            finally:
                if part.close:
                    part.close()

        return dataclasses.replace(part, function=run, check=worker.check, flush=flush, close=close)

    return combined([moved(part) for part in parts_of(hook)])


def _observe(part: Hook, state: TrainState, metrics: Mapping[str, float]) -> None:
    shadow = Shadow(state, getattr(metrics, "output", None))
    with span("hook", part.name):
        after = part.function(state, metrics)
    shadow.refuse_changes(f"background observer {part.name!r}")
    if after is not state:
        raise ValueError(f"background observer {part.name!r} must return the state it was given")


def _on_host(state: TrainState) -> TrainState:
    """Copy a state; of the host part the containers, for training goes on with those of the run."""
    host = jax.tree.map(lambda leaf: leaf, (state.memory, state.scores))
    copied = rejoin(_copied(device_part(state)), state)
    return copied.replace(memory=host[0], scores=host[1])


def _with_host_output(metrics: Mapping[str, float]) -> Mapping[str, float]:
    if isinstance(metrics, Metrics) and metrics.output is not None:
        output = _copied(metrics.output)
        return Metrics(metrics, steps=metrics.steps, output=output, epochs=metrics.epochs)
    return metrics


def _copied(tree: Any) -> Any:
    """Copy arrays to the host; a view of a buffer would keep it from being donated."""

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = jnp.array(np.array(jax.random.key_data(leaf)))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return np.array(leaf) if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(copy, tree)
