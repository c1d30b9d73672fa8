"""Events: run their hooks in order, check what each returns, and time it."""

from __future__ import annotations

import logging
import time
from collections import ChainMap
from collections.abc import Sequence

import jax

from trainer.checks.suggestions import suggest_and_list
from trainer.hook import STAGES, Gate, Hook, Hooks, Interrupt, flatten_hooks
from trainer.host.processes import is_main_process
from trainer.host.time_spans import span
from trainer.loop.hook_checks import check_hook_result
from trainer.loop.hook_states import init_hook_states, restore_state
from trainer.loop.shutdown import close_all
from trainer.phases.in_place_changes import MutationGuard, add_write_remedy
from trainer.phases.metrics import Metrics
from trainer.phases.state_buffers import copy_state
from trainer.state import PyTree, TrainState

log = logging.getLogger("entracte")


class HookRunner:
    """The hooks of one run, by event and in the order of execution.

    Args:
        hooks: anything that `flatten_hooks` accepts.
        phases: names of the program's phases, each an event.

    Raises:
        ValueError: a hook has an unknown event or stage, or two keep a hook state of one name.
    """

    def __init__(self, hooks: Hooks, phases: Sequence[str]) -> None:
        self.hooks = flatten_hooks(hooks)
        events = ("start", *phases, "epoch", "end", "error")
        _check_hooks(self.hooks, events)
        self.order = {event: sort_hooks(self.hooks, event) for event in events}
        self.interrupt: str | None = None
        """Reason of an `Interrupt` that a hook raised."""
        self.latest: tuple[TrainState, Metrics] | None = None
        """The newest state and its metrics."""
        self._seconds = {hook.name: 0.0 for hook in self.hooks}
        self._is_main = is_main_process()
        self._observed: set[str] = set()

    @property
    def readable(self) -> TrainState | None:
        """The newest state, or None if a phase has used it up."""
        state = self.latest[0] if self.latest else None
        return None if state is None or has_deleted_arrays(state) else state

    def run(
        self, event: str, state: TrainState, metrics: Metrics, *, stages: Sequence[str] = STAGES
    ) -> tuple[TrainState, Metrics]:
        """Run the hooks of an event, in order.

        Scores of observers are seen by observers only: the other hooks run on all processes, and
        decide by values that are the same on all.

        After an `Interrupt` the other hooks still run, so that what is saved is a whole event.

        Returns:
            The state, scores cleared, and the metrics with the scores merged in.
        """
        with span("event", event):
            self.latest = state, metrics
            if event != "error":
                self._check_background(event, state)
            flushed = event == "end"  # hooks that read all records find the last ones there
            if flushed:
                self.flush()
            answers: dict[Gate, bool] = {}
            observer_answers: ChainMap[Gate, bool] = ChainMap({}, answers)
            guard: MutationGuard | None = None
            for hook in self.order[event]:
                observing = hook.stage == "observe"
                if hook.stage not in stages or (observing and not self._is_main):
                    continue
                started = time.perf_counter()
                seen = metrics if observing else metrics.without(self._observed)
                asked = observer_answers if observing else answers
                try:
                    if guard is None:
                        guard = MutationGuard(state, metrics.output)
                    due = hook.is_due(state, seen, asked)
                    if hook.gates and not due:
                        guard.check_unchanged(f"a condition of hook {hook.name!r}")
                    if not due:
                        continue
                    if hook.stage == "save" and not flushed:
                        flushed = True
                        self.flush()
                    after = self._apply(hook, state, seen, guard)
                except Exception as error:
                    add_write_remedy(error)
                    where = format_epoch(state, event)
                    error.add_note(f"in hook {hook.name!r} at {event!r} of {where}")
                    raise
                finally:
                    self._seconds[hook.name] += time.perf_counter() - started
                if after.scores is not state.scores:
                    if observing:
                        self._observed |= after.scores.keys() - state.scores.keys()
                    metrics = metrics.with_scores(after.scores)
                state = after
                self.latest = state, metrics
            return state.replace(scores={}) if state.scores else state, metrics

    def _apply(
        self, hook: Hook, state: TrainState, metrics: Metrics, guard: MutationGuard
    ) -> TrainState:
        """Run one hook and check what it returns."""
        with span("hook", hook.name):
            try:
                after = hook.apply(state, metrics)
            except Interrupt as interrupt:
                self.interrupt, after = str(interrupt) or hook.name, state
            guard.check_unchanged(f"hook {hook.name!r}")
            if after is not state:
                after = check_hook_result(hook, state, after)
                guard.follow(after)
            return after

    def _check_background(self, event: str, state: TrainState) -> None:
        """Raise an error that occurred in the background since the last event."""
        for hook in self.hooks:
            if hook.check_background:
                try:
                    hook.check_background()
                except Exception as error:
                    where = format_epoch(state, event)
                    error.add_note(f"of hook {hook.name!r}, found at {event!r} of {where}")
                    raise

    def pop_hook_times(self) -> dict[str, float]:
        """Return the seconds that each hook took since the last call."""
        times = {f"time/hook/{name}": seconds for name, seconds in self._seconds.items()}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return times

    def flush(self) -> None:
        """Make records durable; a checkpoint is published only after them."""
        for hook in self.hooks:
            if hook.flush:
                with span("flush", hook.name):
                    hook.flush()

    def close(self, error: BaseException | None = None) -> None:
        """Close all hooks in reverse order, then what they share; see `close_all`."""
        close_all(self.hooks, error)


def has_deleted_arrays(tree: PyTree) -> bool:
    """Return whether a phase has used up an array of a tree, by donation."""
    leaves = jax.tree.leaves(tree)
    return any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves)


def format_epoch(state: TrainState, event: str = "epoch") -> str:
    """Format the epoch of a state, also of one that was used up; at a phase, the one it is in."""
    if has_deleted_arrays(state.epoch):
        return "an epoch"
    within = event not in ("start", "epoch", "end", "error")
    return f"epoch {int(state.epoch) + within}"


def sort_hooks(hooks: Sequence[Hook], event: str) -> tuple[Hook, ...]:
    """Return the hooks of an event in the order of execution: by stage, then as listed.

    At `end` saves come first: what hooks change there is returned and not saved.
    """
    stages = ("save", "control", "observe") if event == "end" else STAGES
    here = [hook for hook in hooks if hook.at == event]
    return tuple(sorted(here, key=lambda hook: stages.index(hook.stage)))


def _check_hooks(hooks: Sequence[Hook], events: Sequence[str]) -> None:
    names: set[str] = set()
    for hook in hooks:
        if hook.at not in events:
            raise ValueError(
                f"hook {hook.name!r} runs at {hook.at!r}, which is no event of this program"
                f"{suggest_and_list(hook.at, events)}"
            )
        if hook.stage not in STAGES:
            raise ValueError(f"hook {hook.name!r} is of stage {hook.stage!r}; one of {STAGES}")
        for name, _ in hook.hook_states:
            if name in names:
                raise ValueError(
                    f"two hooks keep a hook state named {name!r}; a name belongs to one hook: "
                    "give one of them another name or subject"
                )
            names.add(name)


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
