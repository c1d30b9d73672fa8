"""States of hooks before the first event: their first values, or those of an earlier run."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import jax

from trainer.hook import Hook
from trainer.host.processes import is_main_process
from trainer.loop.observer_views import ObserverView, refuse_split_arrays
from trainer.phases.buffers.state_buffers import unshare_buffers
from trainer.phases.in_place_changes import read_only
from trainer.phases.metrics import Metrics
from trainer.state import PyTree, TrainState

log = logging.getLogger("entracte")


def init_hook_states(hooks: Iterable[Hook], state: TrainState) -> TrainState:
    """Add first hook states where hooks have none yet, and drop those that no hook keeps.

    Observers keep theirs on the main process, which alone runs them.
    """
    main, together = is_main_process(), jax.process_count() > 1
    hook_state: dict[str, PyTree] = {}
    for hook in hooks:
        observing = hook.stage == "observe"
        for name, init in hook.hook_states if main or not observing else ():
            if name in state.hook_state:
                hook_state[name] = state.hook_state[name]
            elif not (observing and together):
                hook_state[name] = init(state)
            else:
                hook_state[name] = init(ObserverView(state, Metrics(), hook.name).state)
                refuse_split_arrays(hook.name, hook_state[name])
    read_only(hook_state)
    return unshare_buffers(state.replace(hook_state=hook_state))


def restore_state(hooks: Iterable[Hook], template: TrainState) -> tuple[TrainState, Metrics]:
    """Let hooks restore an earlier run, into a template with every hook's first hook state.

    Returns:
        The state to start from, without hook states that the earlier run did not know, and the
        metrics of its last event.
    """
    state, metrics = template, Metrics()
    for hook in hooks:
        if hook.restore and (restored := hook.restore(state)):
            state, metrics = restored.state, Metrics(restored.scores)
            log.info("resuming from epoch %d, restored by %s", int(state.epoch), hook.name)
    return state, metrics


def read_history(
    hooks: Iterable[Hook], state: TrainState, metrics: Metrics
) -> list[tuple[int, dict[str, float]]]:
    """Read the number of each epoch of a run that is complete, and its recorded metrics.

    The last epoch's were restored with the state. Those before come from the first hook that
    recorded some, on one process alone: on several, all must return the same.
    """
    if not metrics:
        return []
    epoch, before = int(state.epoch), list[dict[str, float]]()
    for hook in hooks if jax.process_count() == 1 else ():
        if hook.read_history and not before:
            before = [dict(one) for one in hook.read_history()]
    numbered = [(int(one.pop("epoch")), one) for one in before]
    return [*(one for one in numbered if one[0] < epoch), (epoch, metrics.as_dict())]
