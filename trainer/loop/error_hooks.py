"""Hooks of the event `error`: they see the newest state that can still be read."""

from __future__ import annotations

import logging

import jax

from trainer.loop.events import HookRunner, format_epoch, has_deleted_arrays
from trainer.loop.hook_states import init_hook_states, restore_state
from trainer.phases.metrics import Metrics
from trainer.phases.state_buffers import copy_state
from trainer.state import TrainState

log = logging.getLogger("entracte")


def run_error_hooks(events: HookRunner, first: TrainState | None, error: BaseException) -> None:
    """Run the `error` hooks on the newest readable state; their failures are notes on the error.

    Args:
        events: the hooks of the run.
        first: the state that `fit` was called with; None before it was copied.
        error: that ended the run.
    """
    if not events.order["error"] or events.latest is None or not isinstance(error, Exception):
        return  # before the start there is no state to show
    assert first is not None
    try:
        events.run("error", *_find_readable_state(events, first))
    except Exception as failure:
        error.add_note(f"and an error hook failed: {failure!r}")


def _find_readable_state(events: HookRunner, first: TrainState) -> tuple[TrainState, Metrics]:
    """Return the newest state that can be read: a phase that failed has used up its own.

    This is the latest, else the last checkpoint, else the one that `fit` was called with. On
    several processes no checkpoint is read: others may have ended, or not have failed.
    """
    assert events.latest is not None
    state, metrics = events.latest
    if not has_deleted_arrays(state):
        return state, metrics
    used_up = state
    try:
        if jax.process_count() == 1:
            state, metrics = restore_state(events.hooks, used_up)
    except Exception:
        log.exception("the last checkpoint cannot be shown to error hooks")
    if state is used_up:
        state, metrics = copy_state(first), Metrics()
    log.warning("the failed phase had used up the state: error hooks see %s", format_epoch(state))
    return init_hook_states(events.hooks, state), metrics
