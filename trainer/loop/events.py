"""Events: run their hooks in order, check what each returns, and time it."""

from __future__ import annotations

import time
from collections import ChainMap
from collections.abc import MutableMapping, Sequence

import jax

from trainer.hook import STAGES, Gate, Hook, Hooks, Interrupt, flatten_hooks
from trainer.host.processes import is_main_process
from trainer.host.time_spans import span
from trainer.loop.hook_checks import check_hook_result
from trainer.loop.hook_order import order_hooks
from trainer.loop.shutdown import close_all
from trainer.phases.in_place_changes import MutationGuard, add_write_remedy
from trainer.phases.metrics import Metrics
from trainer.state import PyTree, TrainState


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
        self.order = order_hooks(self.hooks, ("start", *phases, "epoch", "end", "error"))
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
                    if not _is_due(hook, state, seen, asked, guard):
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


def _is_due(
    hook: Hook,
    state: TrainState,
    metrics: Metrics,
    answers: MutableMapping[Gate, bool],
    guard: MutationGuard,
) -> bool:
    due = hook.is_due(state, metrics, answers)
    if hook.gates and not due:
        guard.check_unchanged(f"a condition of hook {hook.name!r}")
    return due


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
