"""How a run ends with an error: the other processes learn of it, `error` hooks run, all close."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import jax

from trainer.host.failure_watch import FailureWatch
from trainer.host.signals import attach_progress
from trainer.loop.events import HookRunner, format_epoch, has_deleted_arrays
from trainer.loop.hook_states import init_hook_states, restore_state
from trainer.phases.buffers.state_buffers import copy_state
from trainer.phases.metrics import Metrics
from trainer.state import TrainState

log = logging.getLogger("entracte")


@contextlib.contextmanager
def close_on_exit(
    events: HookRunner, history: list[dict[str, float]], first: TrainState | None
) -> Iterator[None]:
    """Close all hooks at the end of a block; on an error, tell other processes and run hooks first.

    `first` is the state that `fit` was called with, for hooks at `error`.
    """
    watch = FailureWatch()
    try:
        yield
    except BaseException as error:
        watch.report(error)
        if isinstance(error, KeyboardInterrupt):
            attach_progress(error, events.readable, history)
        try:
            run_error_hooks(events, first, error)
        finally:
            events.close(error)
        raise
    finally:
        watch.close()
    events.close()


def run_error_hooks(events: HookRunner, first: TrainState | None, error: BaseException) -> None:
    """Run the `error` hooks on the newest readable state; their failures are notes on the error.

    `first` is the state that `fit` was called with; None before it was copied.
    """
    if not events.order["error"] or events.latest is None or not isinstance(error, Exception):
        return  # before the start there is no state to show
    assert first is not None
    try:
        events.run("error", *_find_readable_state(events, *events.latest, first))
    except Exception as failure:
        error.add_note(f"and an error hook failed: {failure!r}")


def _find_readable_state(
    events: HookRunner, latest: TrainState, metrics: Metrics, first: TrainState
) -> tuple[TrainState, Metrics]:
    """Return the newest state that can be read: a phase that failed has used up its own.

    This is the latest, else the last checkpoint, else the one that `fit` was called with. On
    several processes no checkpoint is read: others may have ended, or not have failed.
    """
    if not has_deleted_arrays(latest):
        return latest, metrics
    state = latest
    try:
        if jax.process_count() == 1:
            state, metrics = restore_state(events.hooks, latest)
    except Exception:
        log.exception("the last checkpoint cannot be shown to error hooks")
    if state is latest:
        state, metrics = copy_state(first), Metrics()
    log.warning("the failed phase had used up the state: error hooks see %s", format_epoch(state))
    return init_hook_states(events.hooks, state), metrics
